"""The house rules: who may know whom, and what never happens. Read from the source, so no rule can be forgotten.

A rule takes a house (every module by its dotted name) and returns one line per breach. The first half of this file
states the rules and holds the real house against them; the second half proves that each rule can fail.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from house import House, Module, at, calls, is_true, keyword, knows, read_house

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
PURE_ROOMS = ("errors", "sites", "cost", "plan", "stock", "space", "spaces", "outcome", "gates", "surrogate")
UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")
PRINTING_ROOMS = ("cli", "__main__", "report", "demo")
COMMAND_STATEMENTS = 30
"""A command parses, calls and prints: what is longer holds logic."""

Rule = Callable[[House], list[str]]

# --- the rules -------------------------------------------------------------------------------------------------------


def pure_rooms_know_no_framework(house: House) -> list[str]:
    """Plans, spaces, costs, sites, outcomes and surrogates are plain data and numpy."""
    return knows(house, [m for m in house.values() if m.within(*PURE_ROOMS)], *HEAVY)


def strategies_know_neither_models_nor_the_engine(house: House) -> list[str]:
    """A strategy asks and is told; who builds and trains is not its concern."""
    rooms = ("architecture", "ops", "tuner", "tasks", "backbone", "training", "engine", "study", "export", "api", "cli")
    engine = [f"peftscout.{room}" for room in rooms]
    return knows(house, [m for m in house.values() if m.within("strategies")], "peft", "transformers", "torch", *engine)


def only_the_tuner_touches_peft_internals(house: House) -> list[str]:
    """`from peft import X` is public; anything below it changes between versions and stays in one folder."""
    return [
        at(module, found.line, f"imports {found.target}")
        for module in house.values()
        if not module.within("tuner")
        for found in module.imports
        if found.reaches("peft.tuners", "peft.utils", "peft.mapping", "peft.peft_model", "peft.import_utils")
    ]


def architecture_does_not_know_peft(house: House) -> list[str]:
    return knows(house, [m for m in house.values() if m.room.startswith("architecture")], "peft", "peftscout.tuner")


def only_the_tuner_builds_adapted_models(house: House) -> list[str]:
    """One builder. Loading what was built (`PeftModel.from_pretrained`) is free to all."""
    builders = {"get_peft_model", "inject_adapter_in_model", "PeftModel", "PeftMixedModel"}
    return [
        at(module, call.lineno, f"builds an adapted model with {name}")
        for module in house.values()
        if not module.within("tuner")
        for call, name in calls(module)
        if (last := name.rpartition(".")[2]) in builders or last.startswith("PeftModelFor")
    ]


def only_cost_prices(house: House) -> list[str]:
    """One cost formula: a price is made in cost.py and nowhere else."""
    return [
        at(module, call.lineno, "makes a Price")
        for module in house.values()
        if not module.within("cost")
        for call, name in calls(module)
        if name.rpartition(".")[2] == "Price"
    ]


def nothing_is_pickled(house: House) -> list[str]:
    """On disk there is safetensors and JSON: reading a study or an adapter never runs code."""
    breaches = [
        at(module, found.line, f"imports {found.target}")
        for module in house.values()
        for found in module.imports
        if found.reaches(*UNSAFE_MODULES) or found.target in {"torch.load", "torch.save"}
    ]
    for module in house.values():
        for call, name in calls(module):
            if name in {"torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"}:
                breaches.append(at(module, call.lineno, f"calls {name}"))
            if keyword(call, "allow_pickle") is not None and is_true(keyword(call, "allow_pickle")):
                breaches.append(at(module, call.lineno, "allow_pickle=True"))
    return breaches


def nothing_runs_what_it_reads(house: House) -> list[str]:
    """No eval or exec, no shell, no YAML that builds objects, no code from a model's repository unless asked."""
    breaches = []
    for module in house.values():
        for call, name in calls(module):
            last = name.rpartition(".")[2]
            if name in {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}:
                breaches.append(at(module, call.lineno, f"calls {name}"))
            if name.startswith("yaml.") and last in {"unsafe_load", "full_load", "unsafe_load_all", "full_load_all"}:
                breaches.append(at(module, call.lineno, f"calls {name}"))
            if name in {"yaml.load", "yaml.load_all"} and not _safe_loader(call):
                breaches.append(at(module, call.lineno, f"{name} without a SafeLoader"))
            breaches += [
                at(module, call.lineno, f"{flag}=True")
                for flag in ("shell", "trust_remote_code")
                if is_true(keyword(call, flag))
            ]
        breaches += [
            at(module, node.lineno, "a dict with trust_remote_code: True")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and is_true(value)
        ]
    return breaches


def _safe_loader(call: ast.Call) -> bool:
    """Whether the loader is a SafeLoader or a class of ours, whose bases the rule below looks at."""
    loader = keyword(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
    return loader is not None and not ast.unparse(loader).endswith(("UnsafeLoader", "FullLoader", "yaml.Loader"))


def own_yaml_loaders_are_safe(house: House) -> list[str]:
    return [
        at(module, node.lineno, f"{node.name} derives from {base}")
        for module in house.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for base in map(ast.unparse, node.bases)
        if base.endswith("Loader") and base.startswith(("yaml.", "Loader", "FullLoader", "UnsafeLoader"))
        if "SafeLoader" not in base
    ]


def the_command_line_holds_no_logic(house: House) -> list[str]:
    """cli parses, calls and prints: no framework, and no function of more than `COMMAND_STATEMENTS` statements."""
    command_line = [m for m in house.values() if m.within("cli")]
    breaches = [
        at(module, found.line, f"imports {found.target}")
        for module in command_line
        for found in module.imports
        if found.reaches(*HEAVY)
    ]
    for module in command_line:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
                if statements > COMMAND_STATEMENTS:
                    breaches.append(at(module, node.lineno, f"{node.name} has {statements} statements"))
    return breaches


def only_the_front_prints(house: House) -> list[str]:
    return [
        at(module, call.lineno, "print()")
        for module in house.values()
        if not module.within(*PRINTING_ROOMS)
        for call, name in calls(module)
        if name == "print"
    ]


def engine_rooms_do_not_look_up(house: House) -> list[str]:
    """Data flows one way: what builds, trains and reads data knows no strategy, study, report or command line."""
    upstairs = [f"peftscout.{room}" for room in ("strategies", "engine", "study", "report", "api", "cli", "demo")]
    engine = ("architecture", "ops", "tuner", "supernet", "tasks", "training", "backbone")
    return knows(house, [m for m in house.values() if m.within(*engine)], *upstairs)


def modules_import_from_rooms_not_from_the_front_door(house: House) -> list[str]:
    """The root package is lazy for users; inside the house it would hide who knows whom."""
    return [
        at(module, found.line, f"imports {found.target} from the front door")
        for module in house.values()
        if module.name != "peftscout" and not module.within("demo")
        for found in module.imports
        if found.target == "peftscout" or (found.target.startswith("peftscout.") and found.target.count(".") == 1)
        if found.target != "peftscout.__version__" and found.target not in house
    ]


def every_module_says_what_it_is(house: House) -> list[str]:
    return [
        f"{module.name}: no docstring"
        for module in house.values()
        if module.source.strip() and not ast.get_docstring(module.tree)
    ]


def files_are_rooms_not_halls(house: House) -> list[str]:
    """Median <= 200 lines, 90th percentile <= 450, none above 800."""
    breaches = [f"{m.name}: {m.lines} lines, more than 800" for m in house.values() if m.lines > 800]
    sizes = sorted(m.lines for m in house.values() if m.source.strip())
    if len(sizes) > 1:
        if (middle := statistics.median(sizes)) > 200:
            breaches.append(f"the median file has {middle:.0f} lines, more than 200")
        if (high := statistics.quantiles(sizes, n=10, method="inclusive")[-1]) > 450:
            breaches.append(f"the 90th percentile of files has {high:.0f} lines, more than 450")
    return breaches


RULES: tuple[Rule, ...] = (
    pure_rooms_know_no_framework,
    strategies_know_neither_models_nor_the_engine,
    only_the_tuner_touches_peft_internals,
    architecture_does_not_know_peft,
    only_the_tuner_builds_adapted_models,
    only_cost_prices,
    nothing_is_pickled,
    nothing_runs_what_it_reads,
    own_yaml_loaders_are_safe,
    the_command_line_holds_no_logic,
    only_the_front_prints,
    engine_rooms_do_not_look_up,
    modules_import_from_rooms_not_from_the_front_door,
    every_module_says_what_it_is,
    files_are_rooms_not_halls,
)


# --- the real house --------------------------------------------------------------------------------------------------


HOUSE = read_house(SOURCE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    breaches = rule(HOUSE)
    assert not breaches, f"{rule.__doc__ or rule.__name__}\n" + "\n".join(breaches)


def test_the_rules_look_at_every_source_file() -> None:
    assert len(HOUSE) == len(list(SOURCE.rglob("*.py"))) > 10
    assert {"peftscout", "peftscout.plan", "peftscout.strategies.base"} <= set(HOUSE)


def test_there_are_at_least_as_many_lines_of_tests_as_of_source() -> None:
    tests = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    assert tests >= sum(module.lines for module in HOUSE.values())


def _modules_loaded_by(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter that ran ``statement``."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_and_its_pure_rooms_loads_no_framework() -> None:
    pure = sorted(name for name, module in HOUSE.items() if module.within(*PURE_ROOMS))
    loaded = _modules_loaded_by("import peftscout, " + ", ".join(pure))
    assert "peftscout" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "peft"})


def test_importing_the_strategies_loads_no_framework() -> None:
    strategies = sorted(name for name, module in HOUSE.items() if module.within("strategies"))
    assert _modules_loaded_by("import " + ", ".join(strategies)).isdisjoint({"torch", "transformers", "peft"})


def test_a_fresh_interpreter_would_show_a_loaded_framework() -> None:
    assert "safetensors" in _modules_loaded_by("import safetensors")


def test_the_public_names_are_sorted_importable_and_documented() -> None:
    import peftscout

    names = list(peftscout.__all__)
    assert names == sorted(set(names))
    for name in names:
        public = getattr(peftscout, name)
        assert name == "__version__" or public.__doc__, f"peftscout.{name} has no docstring"
    assert set(names) <= set(dir(peftscout))


# --- each rule can fail ----------------------------------------------------------------------------------------------


def house_of(**sources: str) -> House:
    """A small house; ``tuner__layer`` stands for ``peftscout.tuner.layer``."""
    named = {"peftscout." + name.replace("__", "."): source for name, source in sources.items()}
    return {name: Module(name, source) for name, source in named.items()}


DOC = '"""A module."""\n'

BREACHES: list[tuple[Rule, dict[str, str]]] = [
    (pure_rooms_know_no_framework, {"plan": "import torch"}),
    (pure_rooms_know_no_framework, {"plan": "def f():\n    from transformers import AutoModel"}),
    (pure_rooms_know_no_framework, {"space": "from peftscout.tools import f", "tools": "import torch.nn as nn"}),
    (pure_rooms_know_no_framework, {"surrogate__gp": "from ..tools import f", "tools": "from torch import nn"}),
    (pure_rooms_know_no_framework, {"cost": "import importlib\nimportlib.import_module('torch')"}),
    (pure_rooms_know_no_framework, {"outcome": "from peftscout import tools", "tools": "import peft"}),
    (strategies_know_neither_models_nor_the_engine, {"strategies__random": "import peft"}),
    (strategies_know_neither_models_nor_the_engine, {"strategies__random": "from transformers import AutoModel"}),
    (strategies_know_neither_models_nor_the_engine, {"strategies__bipeft": "from peftscout.ops import lora"}),
    (strategies_know_neither_models_nor_the_engine, {"strategies__bipeft": "from ..training.loop import train"}),
    (strategies_know_neither_models_nor_the_engine, {"strategies__scout": "import peftscout.tuner.model"}),
    (only_the_tuner_touches_peft_internals, {"export": "from peft.tuners.lora import LoraLayer"}),
    (only_the_tuner_touches_peft_internals, {"study": "import peft.utils.save_and_load"}),
    (architecture_does_not_know_peft, {"architecture": "from peft import LoraConfig"}),
    (architecture_does_not_know_peft, {"architecture__roles": "import peft"}),
    (only_the_tuner_builds_adapted_models, {"training__loop": "peft.get_peft_model(model, config)"}),
    (only_the_tuner_builds_adapted_models, {"export": "PeftModel(model, config)"}),
    (only_the_tuner_builds_adapted_models, {"export": "PeftModelForSequenceClassification(model, config)"}),
    (only_cost_prices, {"ops__lora": "def price(site):\n    return Price(0, site.in_features)"}),
    (nothing_is_pickled, {"study": "import pickle"}),
    (nothing_is_pickled, {"study": "from joblib import dump"}),
    (nothing_is_pickled, {"study": "def f(x):\n    import torch\n    torch.save(x, 'x.pt')"}),
    (nothing_is_pickled, {"study": "from torch import load"}),
    (nothing_is_pickled, {"tasks__cache": "numpy.load(path, allow_pickle=True)"}),
    (nothing_runs_what_it_reads, {"config": "value = eval(text)"}),
    (nothing_runs_what_it_reads, {"config": "exec(text)"}),
    (nothing_runs_what_it_reads, {"config": "yaml.load(text)"}),
    (nothing_runs_what_it_reads, {"config": "yaml.load(text, Loader=yaml.UnsafeLoader)"}),
    (nothing_runs_what_it_reads, {"config": "yaml.full_load(text)"}),
    (nothing_runs_what_it_reads, {"export": "subprocess.run(command, shell=True)"}),
    (nothing_runs_what_it_reads, {"export": "os.system('ls')"}),
    (nothing_runs_what_it_reads, {"backbone": "AutoModel.from_pretrained(name, trust_remote_code=True)"}),
    (nothing_runs_what_it_reads, {"backbone": "options = {'trust_remote_code': True}"}),
    (own_yaml_loaders_are_safe, {"config": "class Strict(yaml.FullLoader): ..."}),
    (the_command_line_holds_no_logic, {"cli": "def search():\n    import torch"}),
    (the_command_line_holds_no_logic, {"cli": "def search():\n" + "    step()\n" * (COMMAND_STATEMENTS + 1)}),
    (the_command_line_holds_no_logic, {"cli": "def search():\n  if a:\n" + "    step()\n" * COMMAND_STATEMENTS}),
    (only_the_front_prints, {"training__loop": "print('step')"}),
    (engine_rooms_do_not_look_up, {"training__loop": "from peftscout.study import Study", "study": ""}),
    (engine_rooms_do_not_look_up, {"tasks__data": "from peftscout.strategies.base import Problem"}),
    (
        modules_import_from_rooms_not_from_the_front_door,
        {"study": "from peftscout import Plan", "plan": "class Plan: ..."},
    ),
    (every_module_says_what_it_is, {"plan": "x = 1"}),
    (files_are_rooms_not_halls, {"plan": "x = 1\n" * 801}),
    (files_are_rooms_not_halls, {"plan": "x = 1\n" * 201, "cost": "x = 1\n" * 202}),
    (files_are_rooms_not_halls, {f"m{n}": "x = 1\n" * (10 if n < 8 else 700) for n in range(10)}),
]


@pytest.mark.parametrize(("rule", "sources"), BREACHES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_breach_is_found(rule: Rule, sources: dict[str, str]) -> None:
    assert rule(house_of(**sources))


def test_every_rule_has_a_breach_that_it_finds() -> None:
    assert {rule for rule, _ in BREACHES} == set(RULES)


ALLOWED = {
    "plan": DOC + "import json\nfrom peftscout.cost import price",
    "cost": DOC + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nx = Price(0, 1)",
    "strategies__random": DOC + "import numpy\nfrom peftscout.plan import Plan\nfrom peftscout.cost import price",
    "tuner__model": DOC + "import peft.tuners.tuners_utils\nmodel = get_peft_model(base, config)",
    "export": DOC
    + "from peft import LoraConfig, PeftModel\nmodel = PeftModel.from_pretrained(base, folder)\nmodel.eval()",
    "config": DOC + "import yaml\nclass Strict(yaml.SafeLoader): ...\nyaml.load(t, Loader=Strict)\nyaml.safe_load(t)",
    "backbone": DOC + "AutoModel.from_pretrained(name, trust_remote_code=asked)\nsubprocess.run(['ls'], shell=False)",
    "cli": DOC + "def search():\n" + "    step()\n" * COMMAND_STATEMENTS + "print('done')",
    "tasks__cache": DOC + "numpy.load(path, allow_pickle=False)",
    "training__loop": DOC + "import torch\nfrom peftscout.tuner.model import build\nconsole.print('x')",
    "empty__init": "",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_is_no_breach(rule: Rule) -> None:
    assert rule(house_of(**ALLOWED)) == []


def test_a_breach_names_the_way_to_it() -> None:
    house = house_of(plan="from peftscout.tools import f", tools="\nimport torch")
    assert pure_rooms_know_no_framework(house) == ["peftscout.plan -> peftscout.tools:2: imports torch"]


def test_relative_imports_are_resolved_in_packages_and_modules() -> None:
    package = Module("peftscout.tuner", "from .layer import Layer\nfrom ..plan import Plan", is_package=True)
    module = Module("peftscout.tuner.layer", "from . import config\nfrom ..plan import Plan")
    assert [found.target for found in package.imports] == ["peftscout.tuner.layer.Layer", "peftscout.plan.Plan"]
    assert [found.target for found in module.imports] == ["peftscout.tuner.config", "peftscout.plan.Plan"]
