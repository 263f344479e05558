"""The command line: parse, call, print. Everything it does can be done from Python with the same words."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from peftscout import __version__, disk
from peftscout.errors import ConfigError, NothingFeasibleError, PeftscoutError, nearest

app = typer.Typer(
    name="peftscout",
    help="Find which PEFT modules to put where in a model, and how large, within a budget of trainable parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130

PIPE_WIDTH = 120

Model = Annotated[str, typer.Argument(help="Hub id or folder of a pretrained model.")]
Data = Annotated[str | None, typer.Option(help="Hub id, recipe name, or folder with train.* and validation.*")]
Train = Annotated[Path | None, typer.Option(help="File of training rows (jsonl, csv, tsv, parquet).")]
Validation = Annotated[Path | None, typer.Option(help="File of validation rows.")]
Text = Annotated[str | None, typer.Option(help="Column of the text.")]
TextPair = Annotated[str | None, typer.Option(help="Column of the second text.")]
Kind = Annotated[str | None, typer.Option(help="What is predicted, and how: see docs/tasks.md.")]
Label = Annotated[str | None, typer.Option(help="Column of the label.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of an evaluation.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the search.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any configuration key: --set training.batch_size=16")
]
Config = Annotated[Path | None, typer.Option(help="YAML file with the configuration; options given here win.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")]
Roles = Annotated[list[str] | None, typer.Option("--role", help="Role of a module that is not recognised: REGEX=ROLE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
StudyFolder = Annotated[Path, typer.Argument(help="Folder of a study.")]
Format = Annotated[str, typer.Option(help="auto, lora, ln_tuning, ia3, composite or merged")]


@app.command()
def inspect(
    model: Model,
    space: Annotated[str | None, typer.Option(help="Preset or YAML file: shows what it offers in this model.")] = None,
    role: Roles = None,
    tree: Annotated[
        bool, typer.Option("--tree", help="A tree of stacks, layers and sites instead of a table.")
    ] = False,
    as_json: AsJson = False,
    trust_remote_code: Trust = False,
) -> None:
    """Show where ops can sit in a model, with shapes and prices. No weights are loaded."""
    from peftscout.api import map_model
    from peftscout.report.inspect import inspect_json, inspect_text, inspect_tree
    from peftscout.space import load_space

    model_map = map_model(model, roles=_roles(role), trust_remote_code=trust_remote_code)
    chosen = None if space is None else load_space(space, model_map.sites)
    if as_json:
        _print_json(inspect_json(model_map, chosen))
    else:
        _console().print((inspect_tree if tree else inspect_text)(model_map, chosen))


@app.command()
def search(
    model: Annotated[str | None, typer.Argument(help="Hub id or folder of a pretrained model.")] = None,
    budget: Annotated[str | None, typer.Option(help="200_000, 0.5%, 1.39‱ or 2MB of trainable parameters.")] = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    test: Annotated[Path | None, typer.Option(help="File of test rows.")] = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    max_train_rows: Annotated[int | None, typer.Option(help="Use only so many training rows.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Further data to judge plans by (design-spaces); may be given again.")
    ] = None,
    space: Annotated[str | None, typer.Option(help="Preset name or YAML file.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Search strategy.")] = None,
    trials: Annotated[int | None, typer.Option(help="Evaluations in all, the baseline among them.")] = None,
    steps: Steps = None,
    fidelity: Annotated[
        str | None, typer.Option(help="Training of plans: full, halving, early-stop or one-epoch.")
    ] = None,
    from_study: Annotated[Path | None, typer.Option(help="Begin with what this other study has found.")] = None,
    time: Annotated[str | None, typer.Option(help="Start no new evaluation after this time: 90s, 30m, 1h.")] = None,
    final_seeds: Annotated[int | None, typer.Option(help="Fresh seeds of the comparison at the end.")] = None,
    seed: Seed = None,
    precision: Annotated[str | None, typer.Option(help="auto: what is fastest here; fp32: exact; bf16.")] = None,
    study: Annotated[Path | None, typer.Option(help="Folder of the study; an existing one is continued.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL for the ledger.")] = None,
    workers: Annotated[int | None, typer.Option(help="Evaluations side by side, each in a process of its own.")] = None,
    isolate: Annotated[
        str | None, typer.Option(help="auto, none, or process: an evaluation may die without harm to the search.")
    ] = None,
    trial_timeout: Annotated[str | None, typer.Option(help="Most time of an evaluation: 90s, 30m, 1h.")] = None,
    executor: Annotated[str | None, typer.Option(help="local: this machine; ray: the machines of a cluster.")] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; auto: the one of this machine.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="Share of a GPU: 0.25 puts four on one.")] = None,
    role: Roles = None,
    config: Config = None,
    set_: SetOption = None,
    export: Annotated[
        str | None, typer.Option(help="any; or lora, ln_tuning, ia3: only what that stock adapter holds.")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Tracker that is told of every evaluation: tensorboard, trackio, wandb.")
    ] = None,
    trust_remote_code: Trust = False,
    accept_change: Annotated[
        bool, typer.Option("--accept-change", help="Go on with a study that was made with something else; recorded.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and how long it takes.")] = False,
) -> None:
    """Find, train and compare a configuration within the budget. The same command again continues a study."""
    from peftscout import api
    from peftscout.report import tables

    fields: dict[str, Any] = {"source": data, "train": train, "validation": validation, "test": test, "text": text}
    fields |= {"text_pair": text_pair, "label": label, "kind": kind, "max_train_rows": max_train_rows}
    options: dict[str, Any] = {"model": model, "budget": budget, "data": fields, "space": space, "strategy": strategy}
    options |= {
        "trials": trials,
        "steps": steps,
        "fidelity": fidelity,
        "from_study": from_study,
        "time": time,
        "final": {"seeds": final_seeds},
        "export": export,
        "also": [{"source": source} for source in also] if also else None,
    }
    on = {"kind": executor, "workers": workers, "isolate": isolate, "trial_timeout": trial_timeout}
    options |= {"executor": {**on, "address": address, "gpus_per_trial": gpus_per_trial}}
    options |= {
        "training": {"precision": precision},
        "roles": _roles(role),
        "seed": seed,
        "storage": storage,
        "trust_remote_code": trust_remote_code or None,
    }
    parsed = _config(config, options, set_)
    if dry_run:
        _console().print(tables.dry_run(api.dry_run_config(parsed)))
        return
    reporter = api.terminal_reporter()
    result = api.search_config(parsed, study, reporter, report_to=report_to or (), accept_change=accept_change)
    _console().print(tables.result(result.summary, result.folder))


@app.command()
def status(study: StudyFolder, as_json: AsJson = False) -> None:
    """Show how a running or finished study stands: best in budget, front, time left, and every evaluation."""
    from peftscout import api
    from peftscout.report import standing, tables

    rows = api.study_status(study)
    if as_json:
        _print_json(rows)
    else:
        _console().print(standing.shown(api.study_standing(study)), tables.status(rows))


@app.command()
def report(
    study: StudyFolder,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; by default the study's.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Finished study of the same task and budget to draw beside, such as random.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the result of a finished study, and write it as report.html, report.md and trials.csv.

    With --json the summary is printed and nothing is written.
    """
    from peftscout import api
    from peftscout.report import tables

    result = api.open_study(study)
    if as_json:
        _print_json(result.summary)
    else:
        written = result.report(out, reference)
        _console().print(tables.report(result))
        typer.echo(f"Wrote {written.html}, {written.markdown.name} and {written.csv.name}.")


@app.command()
def compare(
    places: Annotated[list[str], typer.Argument(help="Folders of finished studies, and files with a plan.")],
    as_json: AsJson = False,
) -> None:
    """Put studies and plans side by side: what they cost, what they scored, and where the plans differ."""
    from peftscout import api
    from peftscout.report import side_by_side

    found = api.compare(places)
    if as_json:
        _print_json(found.to_json())
    else:
        _console().print(side_by_side.shown(found))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and cache, and check that adapters work here; exits with 1 when something is wrong."""
    from peftscout.doctor import diagnose
    from peftscout.report import tables

    findings = list(diagnose())
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        _console().print(tables.findings(findings))
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


@app.command()
def export(
    study: StudyFolder,
    out: Annotated[Path, typer.Argument(help="New folder for the adapter.")],
    format: Format = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Write the trained adapter of the chosen plan, verified by loading it in a fresh process."""
    from peftscout import api

    typer.echo(str(api.open_study(study).export(out, _format(format), trust_remote_code=trust_remote_code)))


@app.command()
def apply(
    plan: Annotated[str, typer.Argument(help="plan.json of a trial, summary.json of a study, or s4-model.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    budget: Annotated[str | None, typer.Option(help="Bound on the plan's cost; a published plan needs one.")] = None,
    data: Data = None,
    train: Train = None,
    validation: Validation = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    steps: Steps = None,
    seed: Seed = None,
    config: Config = None,
    set_: SetOption = None,
    format: Format = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Train a found plan on other data, without a search, and export it."""
    from peftscout import api

    fields = {"source": data, "train": train, "validation": validation, "text": text, "text_pair": text_pair}
    options = {"model": model, "data": {**fields, "label": label, "kind": kind}, "steps": steps, "seed": seed}
    options |= {"trust_remote_code": trust_remote_code or None}
    laid = _laid(config, options, set_)
    _print_json(api.apply_options(plan, laid, budget, out, _format(format), api.terminal_reporter()))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Find which PEFT modules to put where in a model, and how large, within a budget of trainable parameters."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _config(file: Path | None, options: dict[str, Any], assignments: list[str] | None) -> Any:
    from peftscout.config import StudyConfig

    return StudyConfig.from_mapping(_laid(file, options, assignments))


def _laid(file: Path | None, options: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Lay options over the file, and ``--set`` over both; what was not given stays as it is."""
    from peftscout.config import merge, override, read_yaml

    return override(merge({} if file is None else read_yaml(file), _given(options)), assignments or [])


def _given(options: dict[str, Any]) -> dict[str, Any]:
    sections = {key: _given(value) if isinstance(value, dict) else value for key, value in options.items()}
    return {key: value for key, value in sections.items() if value is not None and value != {}}


def _roles(assignments: list[str] | None) -> dict[str, str]:
    pairs = [assignment.rpartition("=") for assignment in assignments or []]
    if wrong := next((pair for pair in pairs if not pair[0] or not pair[2]), None):
        raise ConfigError(f"--role {''.join(wrong)}: write it as REGEX=ROLE, such as 'mixer\\.out=attention.o'")
    return {pattern: role for pattern, _, role in pairs}


def _format(name: str) -> Any:
    from peftscout.export import FORMATS

    asked = name.replace("-", "_")
    if asked not in FORMATS:
        raise ConfigError(f"--format {name}: there are {', '.join(FORMATS)}{nearest(asked, FORMATS)}")
    return asked


def _console() -> Console:
    """Standard output; where it is no terminal, wide enough that tables are not folded."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PIPE_WIDTH)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 user error, 2 no feasible trial, 130 interrupted (state is safe)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = int(app(standalone_mode=False) or 0)
    except NothingFeasibleError as error:
        _fail(str(error), 2)
    except PeftscoutError as error:
        _fail(str(error), 1)
    except Exception as error:
        if (trouble := disk.trouble(error)) is not None:
            _fail(f"{trouble}: {error}", 1)
        if not hasattr(error, "format_message"):  # of click's usage errors
            raise
        _fail(error.format_message(), 1)
    if code == INTERRUPTED:
        _fail("interrupted; run the same command again to go on", INTERRUPTED)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Wind up at the first Ctrl-C; the next one ends the process at once, which loses nothing that finished either."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(f"peftscout: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
