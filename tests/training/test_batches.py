from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftscout.training.batches import WORTH_A_BATCH, BatchMaker, evaluation_order, padded_width, training_order

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)


def rows(*lengths):
    return [{"input_ids": list(range(1, n + 1)), "attention_mask": [1] * n} for n in lengths]


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_pass_over_the_data_sees_every_row_once(lengths, batch_size, seed):
    batches = -(-len(lengths) // batch_size)
    for _ in range(2):
        order = training_order(lengths, batch_size, seed)
        for _ in range(2):
            assert sorted(np.concatenate(list(islice(order, batches)))) == list(range(len(lengths)))


@given(lengths=LENGTHS, batch_size=st.integers(1, 40))
def test_evaluation_covers_every_row_once(lengths, batch_size):
    batches = list(evaluation_order(lengths, batch_size))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


@given(lengths=LENGTHS, batch_size=st.integers(1, 40))
def test_no_row_makes_an_evaluation_batch_much_wider(lengths, batch_size):
    for batch in evaluation_order(lengths, batch_size):
        others = len(batch) - 1
        assert others * (padded_width(lengths[batch[-1]]) - padded_width(lengths[batch[0]])) <= WORTH_A_BATCH


def test_rows_of_one_length_fill_their_evaluation_batches():
    assert [len(b) for b in evaluation_order(np.full(100, 30), 32)] == [32, 32, 32, 4]


def test_the_order_follows_from_the_seed():
    lengths = np.arange(1, 101)
    first, again, other = (np.concatenate(list(islice(training_order(lengths, 8, s), 13))) for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_batches_group_rows_of_similar_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 120, size=1000)

    def computed(batches):
        return sum(len(b) * lengths[b].max() for b in batches)

    grouped = computed(list(islice(training_order(lengths, 32, 0), 32)))
    shuffled = computed(np.array_split(rng.permutation(1000), 32))
    assert grouped / lengths.sum() < 1.1 < 1.5 < shuffled / lengths.sum()


def test_passes_differ_from_one_another():
    order = training_order(np.full(64, 7), 8, 0)
    first, second = (np.concatenate(list(islice(order, 8))) for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize(("side", "expected"), [("right", [1, 2, 9, 9, 9, 9]), ("left", [9] * 4 + [1, 2])])
def test_rows_are_padded_on_the_side_that_the_tokenizer_says(side, expected):
    batch = BatchMaker(9, side, regression=False)(rows(2, 5), np.array([0, 1]))
    assert batch["input_ids"][0].tolist() == expected
    assert batch["attention_mask"].sum().item() == 7
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(("longest", "width"), [(1, 2), (2, 2), (7, 8), (17, 18)])
def test_widths_are_even(longest, width):
    assert BatchMaker(0, "right", False)(rows(longest), np.array([0]))["input_ids"].shape[1] == width


def test_regression_targets_are_floats():
    batch = BatchMaker(0, "right", regression=True)(rows(2), np.array([2.5], dtype=np.float32))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [2.5]


def test_choices_become_a_dimension():
    row = {"input_ids": [[1, 2], [1, 2, 3]], "attention_mask": [[1, 1], [1, 1, 1]]}
    batch = BatchMaker(0, "right", regression=False)([row, row, row], np.array([0, 1, 0]))
    assert batch["input_ids"].shape == (3, 2, 4)
    assert batch["input_ids"][2, 1].tolist() == [1, 2, 3, 0]
