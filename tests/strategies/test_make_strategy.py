import pytest
from contract import problem

from peftscout.errors import ConfigError
from peftscout.strategies import STRATEGIES, check_strategy, make_strategy
from peftscout.strategies.autopeft import AutoPeft, AutoPeftOptions

WITHOUT_SUPERNET = sorted(set(STRATEGIES) - {"bipeft", "s3delta", "scout"})


@pytest.mark.parametrize("name", WITHOUT_SUPERNET)
def test_every_strategy_is_made_by_its_name_and_asks_for_something(name):
    p = problem(space="autopeft" if name == "autopeft" else "all", trials=None, budget=5000)
    strategy = make_strategy(name, p, {})
    assert hasattr(strategy, "ask")
    assert hasattr(strategy, "tell")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_defaults_of_every_strategy_are_accepted(name):
    _, kind = STRATEGIES[name]
    options = check_strategy(name, {})
    assert options is None if kind is None else isinstance(options, kind)


def test_options_reach_the_strategy():
    strategy = make_strategy("autopeft", problem(space="autopeft"), {"initial": 5, "surrogate": "saas"})
    assert isinstance(strategy, AutoPeft)
    assert strategy.options == AutoPeftOptions(initial=5, surrogate="saas")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("autopfet", {}, r"strategy 'autopfet': not known \(did you mean 'autopeft'\?\); there are auto, autopeft, "),
        ("", {}, "there are"),
        ("random", {"seed": 1}, r"strategy_options.seed: strategy 'random' does not know it; it has no options"),
        ("autopeft", {"intial": 4}, r"strategy_options.intial: .*did you mean 'initial'"),
        ("autopeft", {"surrogate": "forest"}, "strategy_options: surrogate 'forest'"),
        ("autopeft", {"initial": 1}, "strategy_options: initial 1"),
        ("design-spaces", {"alpha": 7}, "strategy_options: .*alpha"),
        ("design-spaces", {"design_space": "chen2023-s9"}, "chen2023-s"),
    ],
)
def test_a_wrong_name_or_option_is_named_before_anything_is_made(name, options, message):
    with pytest.raises(Exception, match=message) as error:
        check_strategy(name, options)
    assert isinstance(error.value, ConfigError) or "chen2023" in message
