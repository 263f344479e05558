"""Budgets: read exactly, or refused in words."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peftscout.errors import BudgetError
from peftscout.plan import Budget

TOTAL = 109_482_240


@pytest.mark.parametrize(
    ("value", "parameters"),
    [
        (200_000, 200_000),
        ("200000", 200_000),
        ("200_000", 200_000),
        ("200,000", 200_000),
        ("1,234,567", 1_234_567),
        (" 200k ", 200_000),
        ("1.5M", 1_500_000),
        (".5M", 500_000),
        ("0.5%", 547_411),
        ("0.5 %", 547_411),
        ("100%", TOTAL),
        ("1‰", 109_482),
        ("1.39‱", 15_218),
        ("2MB", 500_000),
        ("2mb", 500_000),
        ("1MiB", 262_144),
        ("10 kB", 2_500),
        ("1GB", 250_000_000),
    ],
)
def test_budgets_are_read_exactly_and_rounded_down(value: str | int, parameters: int) -> None:
    assert Budget.parse(value, TOTAL).parameters == parameters


def test_a_size_on_disk_depends_on_the_width_of_a_parameter() -> None:
    assert Budget.parse("2MB", TOTAL, bytes_per_parameter=2).parameters == 1_000_000


def test_the_released_budget_of_bipeft_on_t5_large() -> None:
    # 1.39 permyriad of T5-large with its embeddings resized to the tokenizer
    assert Budget.parse("1.39‱", 737_639_424).parameters == 102_531


def test_a_share_is_exact_where_floats_are_not() -> None:
    total = 10**17 + 1
    assert Budget.parse("100%", total).parameters == total
    assert Budget.parse("0.3%", 1_000).parameters == 3  # 0.003 * 1000 is below 3 in binary


@given(st.decimals(min_value="0.0001", max_value=100, places=4), st.integers(1, 10**12), st.sampled_from("%‰‱"))
def test_a_share_is_never_above_the_exact_fraction_and_less_than_one_below(
    share: object, total: int, unit: str
) -> None:
    exact = Fraction(str(share)) * total / {"%": 100, "‰": 1000, "‱": 10_000}[unit]
    if exact < 1:
        with pytest.raises(BudgetError, match="less than one parameter"):
            Budget.parse(f"{share}{unit}", total)
    else:
        assert exact - 1 < Budget.parse(f"{share}{unit}", total).parameters <= exact


@given(st.integers(1, 10**15))
def test_a_whole_number_is_itself_however_it_is_written(number: int) -> None:
    for value in (number, str(number), f"{number:_}", f"{number:,}"):
        assert Budget.parse(value, 1).parameters == number


@given(st.text(max_size=60) | st.from_regex(r"[0-9.,_]{0,8} ?[%‰‱kKmMgGbBi]{0,3}", fullmatch=True))
@example("0,5%")
@example("½%")
@example("²")
@example("٣%")
@example("1e6")
@example("9" * 5000)
@example("nan")
@example("0x10")
def test_any_text_is_read_or_refused_with_a_budget_error(text: str) -> None:
    try:
        budget = Budget.parse(text, TOTAL)
    except BudgetError:
        return
    assert budget.parameters >= 1
    assert str(budget)


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.integers(), max_size=2))
@example(10**5000)
@example(-(10**5000))
def test_any_value_is_read_or_refused_with_a_budget_error(value: object) -> None:
    if type(value) is int and 1 <= value < 10**30:
        assert Budget.parse(value, TOTAL).parameters == value
    else:
        with pytest.raises(BudgetError):
            Budget.parse(value, TOTAL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["0,5%", "1,5M", "12,34", "1__0", "_1", "1_", ",5", "5.", "1.2.3", "", "%", "-3", "+3"]
)
def test_what_could_be_read_two_ways_is_refused_with_the_ways_to_write_it(text: str) -> None:
    with pytest.raises(BudgetError, match=r"write a number of parameters .* a share .* size"):
        Budget.parse(text, TOTAL)


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(BudgetError, match=r"unknown unit 'TB'; use %"):
        Budget.parse("2TB", TOTAL)


@pytest.mark.parametrize("text", ["0", 0, "0%", "0.0000001%", "1kB"])
def test_a_budget_below_one_parameter_is_refused(text: str | int) -> None:
    with pytest.raises(BudgetError, match="less than one parameter"):
        Budget.parse(text, 1_000, bytes_per_parameter=2_000)


def test_a_share_above_the_whole_backbone_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"more than the whole backbone \(109,482,240"):
        Budget.parse("100.1%", TOTAL)


def test_a_cost_equal_to_the_budget_is_within() -> None:
    budget = Budget.parse("1k", TOTAL)
    assert 1_000 in budget
    assert 1_001 not in budget
    assert 0 in budget


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (200_000, "200,000 parameters"),
        ("200,000", "200,000 parameters"),
        ("0.5%", "0.5% = 547,411 parameters"),
        ("2MB", "2MB = 500,000 parameters"),
    ],
)
def test_a_budget_is_shown_as_written_and_in_parameters(value: str | int, shown: str) -> None:
    assert str(Budget.parse(value, TOTAL)) == shown
