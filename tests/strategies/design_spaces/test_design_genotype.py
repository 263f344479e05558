from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from fake_sites import fake_sites
from peftscout.strategies.design_spaces.axes import ALLOCATIONS, Tunable
from peftscout.strategies.design_spaces.compositions import Compositions, pattern
from peftscout.strategies.design_spaces.genotype import (
    InfeasibleDesignError,
    LearningRates,
    canonical_genotype,
    draw_design,
    draw_latent,
    realise,
)
from peftscout.strategies.design_spaces.layout import layout
from peftscout.strategies.design_spaces.yaml import load_design_space

SPACE = load_design_space("chen2023-s0")
BERT = layout(fake_sites("encoder", layers=12), SPACE.methods_defined)
T5 = layout(fake_sites("encoder_decoder", layers=12), SPACE.methods_defined, "per_stack")


def genotypes(n: int, space=SPACE, there=BERT, rates=LearningRates(), seed: int = 0):  # noqa: B008
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield realise(draw_design(rng, space), draw_latent(rng, there, rates), there)


def test_every_genotype_satisfies_the_pattern_of_its_grouping_and_allocation():
    for genotype in genotypes(300):
        (sizes,) = genotype.sizes
        assert sum(sizes) == 12
        assert genotype.design.grouping.admits(sizes)
        steps = np.diff(genotype.weights)
        match genotype.design.allocation.label:
            case "increasing":
                assert (steps > 0).all()
            case "uniform":
                assert (steps == 0).all()
            case "decreasing":
                assert (steps < 0).all()
        assert (genotype.weights > 0).all()
        assert genotype.weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("name", ["spindle", "bottleneck", "increasing"])
def test_structures_are_drawn_uniformly_within_a_pattern(name):
    space = SPACE.keep("grouping", [name])
    structures = list(Compositions(pattern(name, 4), 12))
    draws = Counter(genotype.sizes[0] for genotype in genotypes(400 * len(structures), space))
    assert chisquare([draws[sizes] for sizes in structures]).pvalue > 0.01


def test_every_option_of_an_axis_is_drawn_as_often_as_the_others():
    drawn = list(genotypes(1500))
    for options, counts in (
        (SPACE.grouping, Counter(g.design.grouping for g in drawn)),
        (SPACE.tunable, Counter(g.design.tunable for g in drawn)),
        (SPACE.methods[2], Counter(g.design.methods[2] for g in drawn)),
    ):
        assert chisquare([counts[option] for option in options]).pvalue > 0.01


def test_axes_are_drawn_independently():
    pairs = Counter((g.design.grouping.label, g.design.allocation.label) for g in genotypes(1500))
    assert chisquare(list(pairs.values())).pvalue > 0.01
    assert len(pairs) == 15


def test_the_same_random_part_gives_the_same_model_but_for_the_option():
    rng = np.random.default_rng(0)
    for _ in range(50):
        design, latent = draw_design(rng, SPACE), draw_latent(rng, BERT, LearningRates((0.3, 1.0, 3.0)))
        one, other = (
            realise(design.with_option("allocation", ALLOCATIONS[a]), latent, BERT)
            for a in ("increasing", "decreasing")
        )
        assert one.sizes == other.sizes
        assert one.slope == -other.slope
        assert one.rates == other.rates
        assert [one.methods(layer) for layer in range(12)] == [other.methods(layer) for layer in range(12)]


def test_layers_belong_to_consecutive_groups_and_frozen_ones_get_nothing():
    design = canonical_genotype(SPACE.first, BERT).design
    design = design.with_option("grouping", pattern("spindle", 4)).with_option("tunable", Tunable((1, 3), 4))
    genotype = canonical_genotype(design, BERT)
    assert genotype.groups == (0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3)
    assert [bool(genotype.methods(layer)) for layer in range(12)] == [g in (1, 3) for g in genotype.groups]


def test_per_stack_grouping_draws_a_structure_and_a_ramp_for_each_stack():
    space = SPACE.keep("grouping", ["bottleneck"]).keep("allocation", ["increasing"])
    drawn = list(genotypes(40, space, T5))
    assert all(len(g.sizes) == 2 and all(sum(sizes) == 12 for sizes in g.sizes) for g in drawn)
    assert any(g.sizes[0] != g.sizes[1] for g in drawn)
    for genotype in drawn:
        encoder, decoder = genotype.weights[:12], genotype.weights[12:]
        assert (np.diff(encoder) > 0).all()
        assert encoder.tolist() == decoder.tolist()
    assert set(drawn[0].groups[:12]) == set(drawn[0].groups[12:]) == {0, 1, 2, 3}


def test_learning_rates_are_one_of_the_factors_or_log_uniform_in_the_range():
    listed = [g.rates.lr_scale for g in genotypes(600, rates=LearningRates((0.3, 1.0, 3.0)))]
    counts = Counter(listed)
    assert set(counts) == {0.3, 1.0, 3.0}
    assert chisquare(list(counts.values())).pvalue > 0.01
    ranged = [g.rates.lr_scale for g in genotypes(600, rates=LearningRates(between=(0.1, 10.0)))]
    assert kstest((np.log10(ranged) + 1) / 2, "uniform").pvalue > 0.01
    assert all(rate == float(f"{rate:.3g}") for rate in ranged)


def test_a_range_of_learning_rates_is_stood_for_by_its_ends_and_its_middle():
    assert LearningRates(between=(0.1, 10.0)).spread == (0.1, 1.0, 10.0)
    assert LearningRates((1.0, 3.0)).spread == (1.0, 3.0)


def test_slopes_lie_in_the_range_of_the_allocation():
    slopes = [g.slope for g in genotypes(400, SPACE.keep("allocation", ["decreasing"]))]
    assert -0.75 <= min(slopes) < -0.7
    assert -0.3 < max(slopes) <= -0.25


def test_a_grouping_without_a_structure_at_this_depth_is_infeasible():
    shallow = layout(fake_sites("encoder", layers=7), SPACE.methods_defined)
    with pytest.raises(InfeasibleDesignError, match="7 layers cannot be cut into 4 groups"):
        list(genotypes(1, SPACE.keep("grouping", ["spindle"]), shallow))


def test_a_genotype_as_plain_data_says_what_it_is():
    genotype = canonical_genotype(SPACE.first.with_option("tunable", Tunable((0,), 4)), BERT, lr_scale=3.0)
    assert genotype.to_json() == {
        "grouping": "uniform",
        "sizes": [[3, 3, 3, 3]],
        "allocation": "uniform",
        "slope": 0.0,
        "tunable": ["G1"],
        "methods": {"G1": ["lora"]},
        "lr_scale": 3.0,
        "op_lr_scales": {},
    }


def test_each_method_may_have_a_learning_rate_of_its_own_drawn_over_the_whole_range():
    found = list(genotypes(400, rates=LearningRates(between=(0.1, 10.0), of_each="method")))
    by_op = [dict(g.rates.by_op) for g in found]
    assert {g.rates.lr_scale for g in found} == {1.0}
    assert {tuple(factors) for factors in by_op} == {("bias", "lora", "prefix", "serial")}
    for op in ("bias", "lora"):
        factors = np.array([factors[op] for factors in by_op])
        assert factors.min() < 0.13
        assert factors.max() > 7.7
        assert abs(np.log10(factors).mean()) < 0.1
    logs = np.log([[factors["bias"], factors["lora"]] for factors in by_op])
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.15
