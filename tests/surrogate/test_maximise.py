import numpy as np
import pytest

from fake_sites import fake_sites
from peftscout.space import load_space
from peftscout.surrogate.acquisition import Acquisition, Front
from peftscout.surrogate.features import Encoder
from peftscout.surrogate.fit import fit_dimension_scaled
from peftscout.surrogate.maximise import Candidates, Ranking, distinct, exchanges, local_search, scan
from peftscout.surrogate.staircase import Reference
from small_spaces import all_points, autopeft_space, layerwise_space, switched_space

NOTHING = Ranking(np.empty((0, 0), dtype=np.int64), np.empty(0), None)


def candidates(space, limit: int | None = None, chunk: int = 200, lr_scales=(1.0,)) -> Candidates:
    dearest = space.dearest().cost(space.sites)
    return Candidates(Encoder(space, lr_scales), limit or dearest, lambda c: np.log10(c.astype(float)), chunk)


def an_acquisition(c: Candidates, n: int = 25, seed: int = 0) -> Acquisition:
    rng = np.random.default_rng(seed)
    points = c.encoder.points_at(rng.choice(c.indices, n, replace=False).astype(np.int64))
    X, costs = c.inputs(points)
    y = 0.5 + 0.3 * np.tanh(X @ rng.random(X.shape[1]) / 2) - 0.1 * X[:, 0] ** 3 + 0.005 * rng.standard_normal(n)
    edge = float(c.axis(np.array([c.limit]))[0]) + 0.1
    nobody = (np.empty(0), np.empty(0))
    return Acquisition.of(fit_dimension_scaled(X, y), Front(costs, Reference(edge, 0.5), nobody))


SPACES = {"autopeft": autopeft_space(4), "layerwise": layerwise_space(2), "switched": switched_space()}


@pytest.fixture(params=SPACES)
def some(request) -> Candidates:
    return candidates(SPACES[request.param])


def test_the_candidates_are_every_plan_once(some):
    assert len(some.indices) == some.encoder.space.cardinality()
    plans = {some.encoder.space.decode(p[:-1]) for p in some.encoder.points_at(some.indices.astype(np.int64))}
    assert len(plans) == len(some.indices)


def test_candidates_within_a_limit_are_within_it():
    space = SPACES["autopeft"]
    limit = space.dearest().cost(space.sites) // 3
    c = candidates(space, limit)
    costs = c.encoder.costs(c.encoder.points_at(c.indices.astype(np.int64)))
    assert costs.min() > 0
    assert costs.max() <= limit
    points = all_points(c.encoder)
    assert len(c.indices) == c.feasible(points).sum() < space.cardinality()


def test_a_scan_finds_what_looking_at_everything_in_double_precision_finds(some):
    acquisition = an_acquisition(some)
    points = some.encoder.points_at(some.indices.astype(np.int64))
    values = some.evaluate(acquisition, points)
    ranking = scan(acquisition, some, NOTHING, keep=20)
    top = np.sort(values)[::-1][: len(ranking.values)]
    np.testing.assert_allclose(ranking.values[:10], top[:10], atol=2e-3)
    assert ranking.values[0] == pytest.approx(top[0], abs=1e-12)
    assert np.all(np.diff(ranking.values) <= 0)


def test_a_head_start_and_the_size_of_chunks_change_the_work_but_not_the_winner(some):
    acquisition = an_acquisition(some, seed=3)
    plain = scan(acquisition, some, NOTHING, keep=8)
    climbed = local_search(acquisition, some, some.encoder.points_at(some.indices[::7].astype(np.int64)))
    other = Candidates(some.encoder, some.limit, some.axis, chunk=57)
    for ranking in (scan(acquisition, some, climbed, keep=8), scan(acquisition, other, NOTHING, keep=8)):
        np.testing.assert_array_equal(ranking.points[0], plain.points[0])


def test_nothing_outside_a_scan_is_above_its_bound(some):
    acquisition = an_acquisition(some)
    ranking = scan(acquisition, some, NOTHING, keep=16)
    points = some.encoder.points_at(some.indices.astype(np.int64))
    inside = {p.tobytes() for p in ranking.points}
    outside = np.array([p.tobytes() not in inside for p in points])
    if outside.any():
        assert ranking.bound is not None
        assert some.evaluate(acquisition, points[outside]).max() <= ranking.bound + 2e-3


@pytest.mark.parametrize("seed", range(4))
def test_local_search_finds_the_maximum_of_a_scan_from_a_few_random_starts(seed):
    c = candidates(layerwise_space(3))
    acquisition = an_acquisition(c, 40, seed)
    rng = np.random.default_rng(seed)
    seeds = c.encoder.points_at(rng.choice(c.indices, 50, replace=False).astype(np.int64))
    assert local_search(acquisition, c, seeds).values[0] == pytest.approx(
        scan(acquisition, c, NOTHING).values[0], abs=2e-3
    )


def test_local_search_ends_where_no_exchange_is_better():
    c = candidates(layerwise_space(4))
    acquisition = an_acquisition(c, 40)
    seeds = c.encoder.points_at(np.random.default_rng(0).choice(c.indices, 10).astype(np.int64))
    ranking = local_search(acquisition, c, seeds, starts=3)
    around = c.evaluate(acquisition, exchanges(c.encoder, ranking.points[0]))
    assert around.max() <= ranking.values[0] + 2e-3


def test_local_search_returns_nothing_above_the_limit():
    space = layerwise_space(4)
    c = candidates(space, space.dearest().cost(space.sites) // 10)
    ranking = local_search(an_acquisition(c), c, c.encoder.points_at(c.indices[:40].astype(np.int64)))
    assert c.feasible(ranking.points).all()
    assert len({p.tobytes() for p in ranking.points}) == len(ranking.points)


def test_exchanges_are_all_points_that_differ_in_one_variable():
    encoder = Encoder(layerwise_space(2), (0.5, 1.0))
    point = np.array([0, 3, 1, 4, 1])
    around = exchanges(encoder, point)
    assert len(around) == (encoder.radix - 1).sum()
    assert np.all((around != point).sum(axis=1) == 1)
    assert len(np.unique(around, axis=0)) == len(around)


def test_every_plan_can_be_reached_by_exchanges_even_where_a_size_needs_its_switch():
    encoder = Encoder(switched_space())
    reached, frontier = set(), [np.array([1, 0, 0, 1, 0, 0, 0])]
    while frontier:
        for neighbour in exchanges(encoder, frontier.pop()):
            if neighbour.tobytes() not in reached and encoder.costs(neighbour[None])[0] > 0:
                reached.add(neighbour.tobytes())
                frontier.append(neighbour)
    assert len(reached) == encoder.space.cardinality()


def test_distinct_rows_are_found_with_the_row_that_each_equals():
    rows = np.array([[1, 2], [0, 5], [1, 2], [2, 1]])
    first, where = distinct(rows)
    assert len(first) == 3
    np.testing.assert_array_equal(rows[first][where], rows)


@pytest.mark.slow
def test_the_base_space_of_twelve_layers_has_5446350_plans():
    c = candidates(load_space("autopeft", fake_sites("encoder", 12, 768, 3072, 12, 12)))
    assert len(c.indices) == c.encoder.space.cardinality() == 5_446_350
