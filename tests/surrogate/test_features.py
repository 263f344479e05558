import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.space import load_space
from peftscout.surrogate.features import Encoder
from small_spaces import all_points, autopeft_space, layerwise_space, switched_space

SPACES = {"autopeft": autopeft_space(), "layerwise": layerwise_space(2), "switched": switched_space()}


@pytest.fixture(params=SPACES, scope="module")
def encoder(request) -> Encoder:
    return Encoder(SPACES[request.param], (0.5, 1.0, 2.0))


def test_points_are_numbered_last_column_fastest(encoder):
    points = all_points(encoder)
    assert len(points) == encoder.combinations == np.prod(encoder.radix)
    assert len({tuple(p) for p in points}) == len(points)
    assert points[1].tolist() == [0] * (len(encoder.radix) - 1) + [1]
    assert points[-1].tolist() == (encoder.radix - 1).tolist()


def test_canonical_points_are_those_of_the_space(encoder):
    points = all_points(encoder)[:: max(1, encoder.combinations // 3000)]
    canonical = encoder.canonical(points)
    for point, form in zip(points, canonical, strict=True):
        assert form[:-1].tolist() == encoder.space.encode(encoder.space.decode(point[:-1])).tolist()
        assert form[-1] == point[-1]
    np.testing.assert_array_equal(encoder.is_canonical(points), (points == canonical).all(axis=1))


def test_canonical_points_that_are_not_empty_are_counted_exactly(encoder):
    points = all_points(encoder)
    proper = encoder.is_canonical(points) & (encoder.costs(points) > 0)
    assert proper.sum() == 3 * encoder.space.cardinality()


def test_inputs_are_within_zero_and_one_and_tell_plans_apart(encoder):
    points = all_points(encoder)
    points = points[encoder.is_canonical(points) & (encoder.costs(points) > 0)][:5000]
    X = encoder(points)
    assert X.min() >= 0.0
    assert X.max() <= 1.0
    assert len(np.unique(X, axis=0)) == len(points)


def test_known_costs_change_nothing(encoder):
    points = all_points(encoder)
    points = points[encoder.costs(points) > 0][:500]
    np.testing.assert_array_equal(encoder(points), encoder(points, encoder.costs(points)))


def test_a_size_axis_rises_from_absent_to_the_largest():
    encoder = Encoder(SPACES["autopeft"], summaries=False)
    assert encoder.space.variables[0].kind == "size"
    levels = int(encoder.radix[0])
    points = np.repeat([[0, 1, 1, 1, 1, 1, 0]], levels, axis=0)
    points[:, 0] = np.arange(levels)
    axis = encoder(points)[:, 0]
    assert axis[0] == 0.0
    assert axis[-1] == 1.0
    steps = np.diff(axis)
    assert np.all(steps > 0)
    assert steps.max() < 2.5 * steps.min()  # halvings are nearly even steps


def test_the_summaries_say_what_is_active():
    encoder = Encoder(autopeft_space(layers=5))
    point = np.array([[2, 0, 0, 0, 1, 0, 1, 0, 0]])  # one size; layers 1 and 3 are on
    cost, active, first, last = encoder(point)[0, -4:]
    assert (active, first, last) == (2 / 5, 1 / 4, 3 / 4)
    assert 0 < cost < 1
    cheapest, dearest = (encoder.space.encode(p) for p in (encoder.space.cheapest(), encoder.space.dearest()))
    assert encoder(np.array([[*cheapest, 0]]))[0, -4] == 0.0
    assert encoder(np.array([[*dearest, 0]]))[0, -4] == 1.0


def test_a_switch_whose_sizes_are_all_absent_is_no_active_layer():
    encoder = Encoder(switched_space())
    points = np.array([[1, 0, 0, 1, 1, 0, 0]])  # the switch of layer 1 is on, its size is absent
    assert encoder(encoder.canonical(points))[0, -3] == 1 / 3


def test_several_learning_rates_are_one_more_axis_on_a_log_scale():
    space = layerwise_space(2)
    one, three = Encoder(space, (1.0,), False), Encoder(space, (0.25, 1.0, 2.0), False)
    point = np.ones(5, dtype=np.int64)
    assert one(np.array([[*point[:4], 0]])).shape[1] + 1 == three(np.array([[*point[:4], 0]])).shape[1]
    axis = three(np.array([[*point[:4], k] for k in range(3)]))[:, -1]
    np.testing.assert_allclose(axis, [0.0, 2 / 3, 1.0])


def test_sites_outside_the_layers_and_two_stacks_are_encoded():
    encoder = Encoder(load_space("all", fake_sites("encoder_decoder")))
    rng = np.random.default_rng(0)
    points = encoder.canonical(np.column_stack([encoder.space.sample_vectors(50, rng), np.zeros(50, dtype=np.int64)]))
    X = encoder(points)
    assert np.all(np.isfinite(X))
    assert X.shape[1] == len(encoder.space.variables) + 4


@settings(max_examples=40)
@given(seed=st.integers(0, 100_000))
def test_costs_are_those_of_the_plans(seed):
    encoder = Encoder(SPACES["autopeft"])
    vectors = encoder.space.sample_vectors(3, np.random.default_rng(seed))
    points = np.column_stack([vectors, np.zeros(3, dtype=np.int64)])
    plans = [encoder.space.decode(v) for v in vectors]
    assert encoder.costs(points).tolist() == [p.cost(encoder.space.sites) for p in plans]


def test_the_settings_are_every_level_of_every_column(encoder):
    columns, levels = encoder.settings
    assert len(columns) == len(levels) == encoder.radix.sum()
    assert all(0 <= level < encoder.radix[column] for column, level in zip(columns, levels, strict=True))
