import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftscout import __version__, cli
from tiny_task import save_tiny_model, write_task


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("data"), train=80, validation=20)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peftscout", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def study(model, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "s"
    arguments = [
        "search",
        model,
        "--budget",
        "5%",
        "--data",
        data,
        "--trials",
        "2",
        "--steps",
        "3",
        "--final-seeds",
        "1",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "peftscout",
            *map(str, arguments),
            "--set",
            "final.lr_scales=[1.0]",
            "--study",
            str(folder),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    (folder.parent / "out.txt").write_text(done.stdout)
    (folder.parent / "err.txt").write_text(done.stderr)
    return folder


def test_a_search_prints_progress_as_plain_lines_and_ends_with_the_verdict(study):
    out, err = ((study.parent / name).read_text() for name in ("out.txt", "err.txt"))
    assert "search 0: uniform LoRA 4 on q, v, 1,024 parameters" in err
    assert "best in budget" in err
    assert "left" in err
    assert "\x1b[" not in out + err
    assert "chosen plan" in out
    assert f"peftscout export {study} OUT" in out


def test_status_lists_every_evaluation(study, run):
    code, out, _ = run("status", study)
    assert code == 0
    assert out.count("search") == 2
    assert "final" in out
    code, out, _ = run("status", study, "--json")
    assert [row["state"] for row in json.loads(out)] == ["done"] * len(json.loads(out))


def test_status_begins_with_how_the_study_stands(study, run):
    first, second, *_ = run("status", study)[1].splitlines()
    assert first.startswith("finished: ")
    assert second.startswith("best in budget 0.")


def test_report_writes_a_page_markdown_and_csv_beside_the_study_or_where_it_is_told(study, run, tmp_path):
    code, out, _ = run("report", study, "--out", tmp_path / "r", "--reference", study)
    assert code == 0
    assert f"Wrote {tmp_path}/r/report.html, report.md and trials.csv." in out.replace("\n", "")
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["report.html", "report.md", "trials.csv"]
    assert run("report", study)[0] == 0
    assert (study / "report.html").is_file()
    assert run("search", "--config", study / "nowhere.yaml")[0] == 1


def test_json_of_a_report_writes_nothing(study, run):
    for name in ("report.html", "report.md", "trials.csv"):
        (study / name).unlink(missing_ok=True)
    assert run("report", study, "--json")[0] == 0
    assert not (study / "report.html").exists()


def test_compare_puts_a_study_and_a_plan_side_by_side(study, run):
    plan = study / "trials" / "000" / "plan.json"
    code, out, _ = run("compare", study, plan)
    assert code == 0
    assert "uniform LoRA" in out
    code, out, _ = run("compare", study, plan, "--json")
    assert set(json.loads(out)) == {"facts", "differences", "caveats"}


def test_doctor_says_that_all_is_well_and_exits_with_1_when_it_is_not(run, monkeypatch):
    from peftscout import doctor

    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Finding("torch", "2.13")])
    code, out, _ = run("doctor")
    assert code == 0
    assert out.split() == ["ok", "torch", "2.13"]
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Finding("torch", "1.0", False)])
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert json.loads(out) == [{"name": "torch", "text": "1.0", "fine": False}]


def test_inspect_shows_a_tree(model, run):
    code, out, _ = run("inspect", model, "--tree")
    assert code == 0
    assert "└── " in out
    assert "layers 0-1" in out


def test_report_begins_with_the_verdict_and_shows_front_and_plan(study, run):
    code, out, _ = run("report", study)
    verdict = json.loads((study / "summary.json").read_text())["verdict"]
    assert code == 0
    assert out.split()[:4] == verdict.split()[:4]
    assert "Front" in out
    assert "Chosen plan" in out
    assert json.loads(run("report", study, "--json")[1])["verdict"] == verdict


def test_export_says_how_to_load_it_in_lines_that_can_be_copied(study, run, tmp_path):
    code, out, _ = run("export", study, tmp_path / "out")
    assert code == 0
    assert f"PeftModel.from_pretrained(base, '{tmp_path}/out')" in out
    code, _, err = run("export", study, tmp_path / "out")
    assert code == 1
    assert "out" in err


def test_inspect_shows_sites_and_prices_without_weights(model, run):
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "attention.q" in out.replace(" ", "") or "q" in out
    facts = json.loads(run("inspect", model, "--json")[1])
    assert facts["model_type"] == "bert"
    assert run("inspect", model, "--space", "lora")[0] == 0


def test_apply_trains_a_plan_and_exports_it(study, model, data, run, tmp_path):
    code, out, _ = run("apply", study / "summary.json", model, "--data", data, "--steps", 2, "--out", tmp_path / "a")
    assert code == 0
    assert set(json.loads(out)) == {"cost", "score", "metrics", "report"}
    assert (tmp_path / "a" / "README.md").is_file()


def test_a_dry_run_prints_the_plan_and_writes_nothing(model, data, run, tmp_path):
    code, out, _ = run(
        "search", model, "--budget", "5%", "--data", data, "--dry-run", "--steps", 5, "--study", tmp_path / "s"
    )
    assert code == 0
    assert "What this search would do" in out
    assert not (tmp_path / "s").exists()


def test_options_win_over_the_file_and_set_wins_over_both(model, data, run, tmp_path, monkeypatch):
    from peftscout import api

    seen = []
    monkeypatch.setattr(api, "dry_run_config", lambda config: seen.append(config) or {})
    monkeypatch.setattr("peftscout.report.tables.dry_run", lambda plan: "")
    (tmp_path / "c.yaml").write_text(f"model: {model}\nbudget: 1%\ntrials: 5\nseed: 3\ndata: {{source: {data}}}\n")
    run(
        "search",
        "--config",
        tmp_path / "c.yaml",
        "--trials",
        6,
        "--set",
        "training.clip=0.5",
        "--time",
        "1h",
        "--dry-run",
    )
    (config,) = seen
    assert (config.model, config.trials, config.seed, config.training.clip, config.time) == (
        str(model),
        6,
        3,
        0.5,
        3600,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "model: is needed"),
        (["search", "MODEL", "--data", "DATA"], "budget: is needed"),
        (["search", "MODEL", "--budget", "5%"], "data"),
        (["search", "MODEL", "--budget", "x", "--data", "DATA"], "budget 'x'"),
        (["search", "MODEL", "--budget", "5%", "--data", "DATA", "--set", "trials"], "write it as section.key=value"),
        (["search", "MODEL", "--budget", "5%", "--data", "DATA", "--set", "trails=3"], "did you mean 'trials'"),
        (["search", "MODEL", "--budget", "5%", "--data", "/nowhere"], "nowhere"),
        (["search", "/nowhere", "--budget", "5%", "--data", "DATA"], "no such folder"),
        (["inspect", "/nowhere"], "no such folder"),
        (["status", "/nowhere"], "is not a study"),
        (["compare", "/nowhere"], "no study, and no file with a plan"),
        (["report", "/nowhere"], "is not a study"),
        (["export", "/nowhere", "out", "--format", "gguf"], "nowhere|gguf"),
        (["apply", "/nowhere.json", "MODEL", "--data", "DATA", "--out", "o"], "no such file"),
        (["search", "--bogus"], "bogus"),
        (["bogus"], "bogus"),
    ],
)
def test_what_the_user_got_wrong_is_said_in_one_message_with_exit_code_1(run, model, data, arguments, message):
    import re

    places = {"MODEL": str(model), "DATA": str(data)}
    code, _, err = run(*[places.get(a, a) for a in arguments])
    assert code == 1
    assert re.search(message, err)
    assert "Traceback" not in err


def test_a_search_without_a_feasible_trial_exits_with_2(run, model, data, tmp_path):
    wild = ["--set", "training.learning_rates.lora=1e30", "--set", "training.clip=1e30", "--steps", 4, "--trials", 1]
    wild += ["--set", "training.learning_rates.head=1e30"]
    code, _, err = run("search", model, "--budget", "5%", "--data", data, "--study", tmp_path / "s", *wild)
    assert code == 2
    assert "diverged" in err


def test_the_executor_is_a_matter_of_options(run, monkeypatch):
    from peftscout import api
    from peftscout.config import ExecutorConfig

    seen = []
    monkeypatch.setattr(api, "dry_run_config", lambda config: seen.append(config.executor) or {})
    monkeypatch.setattr("peftscout.report.tables.dry_run", lambda plan: "")
    plain = ("search", "m", "--budget", "5%", "--data", "d", "--dry-run")
    on_ray = ("--executor", "ray", "--address", "auto", "--workers", "4", "--gpus-per-trial", "0.25")
    assert run(*plain)[0] == run(*plain, *on_ray, "--trial-timeout", "30m")[0] == 0
    assert run(*plain, "--isolate", "process")[0] == 0
    assert seen == [
        ExecutorConfig(),
        ExecutorConfig(kind="ray", address="auto", workers=4, gpus_per_trial=0.25, trial_timeout=1800),
        ExecutorConfig(isolate="process"),
    ]
    code, _, error = run(*plain, "--executor", "slurm")
    assert code == 1
    assert "executor.kind" in error


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(run, monkeypatch, model, data, tmp_path):
    from peftscout import api

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search_config", interrupt)
    code, _, err = run("search", model, "--budget", "5%", "--data", data, "--study", tmp_path / "s")
    assert code == cli.INTERRUPTED == 130
    assert "run the same command again" in err


def test_the_version_is_printed(run):
    assert run("--version")[:2] == (0, f"{__version__}\n")


def test_help_does_not_wait_for_torch():
    code = "import sys; import peftscout.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_role_can_be_given_to_what_is_not_recognised(model, run):
    code, out, _ = run("inspect", model, "--json", "--role", r".*attention\.self\.query=skip")
    assert code == 0
    assert "layers.0.attention.q" not in out
    code, _, err = run("inspect", model, "--role", "query")
    assert code == 1
    assert "write it as REGEX=ROLE" in err
