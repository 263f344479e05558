import pytest

from fake_sites import fake_sites
from peftscout.errors import PlanError
from peftscout.plan import Plan
from peftscout.strategies.autopeft_count import paper_count

SITES = fake_sites("encoder", 12, 768, 3072, 12, 12)
ALL = range(12)


def everywhere(layers=ALL, **sizes: int) -> Plan:
    """The same ops in every one of ``layers``: ``serial``, ``parallel``, ``prefix``, and ``lora`` on q and v."""
    places = {
        "serial": ("ffn",),
        "parallel": ("ffn",),
        "prefix": ("attention",),
        "lora": ("attention.q", "attention.v"),
    }
    return Plan.of(
        {(f"layers.{n}.{place}", op): size for op, size in sizes.items() for place in places[op] for n in layers}
    )


@pytest.mark.parametrize(
    ("plan", "parameters", "percent"),
    [
        (everywhere(prefix=10), 184_320, 0.168),
        (everywhere(lora=8), 294_912, 0.269),
        (everywhere(serial=48), 884_736, 0.808),
        (everywhere(parallel=384), 7_077_888, 6.46),
        (everywhere(prefix=30, parallel=384), 7_630_848, 6.97),  # MAM
        (everywhere(prefix=10, lora=8, serial=48), 1_363_968, 1.25),  # UniPELT, gates ignored
        (everywhere((3, 4, 8, 9, 10), serial=12, parallel=96, prefix=1), 837_120, 0.765),  # found on RTE
        (everywhere((0,), serial=1), 1_536, 0.0014),  # the cheapest plan
    ],
)
def test_the_counts_of_the_paper_are_reproduced(plan, parameters, percent):
    assert paper_count(plan, SITES) == parameters
    assert 100 * parameters / 109_482_240 == pytest.approx(percent, rel=0.02)


def test_the_count_is_the_papers_formula_on_its_space():
    plan = everywhere((0, 5, 7), serial=24, parallel=6, prefix=3)
    assert paper_count(plan, SITES) == 2 * 768 * 3 * (24 + 6 + 3)


def test_the_real_cost_has_the_biases_that_the_paper_leaves_out():
    plan = everywhere((2, 3), serial=12, prefix=6)
    assert plan.cost(SITES) - paper_count(plan, SITES) == 2 * (12 + 768)


def test_an_op_that_the_paper_does_not_know_is_refused_by_name():
    with pytest.raises(PlanError, match=r"layers\.0\.attention\.q: bias: the AutoPEFT paper counts no bias"):
        paper_count(Plan.of({("layers.0.attention.q", "bias"): 1}), SITES)


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="largest size"):
        paper_count(everywhere(serial=1000), SITES)
