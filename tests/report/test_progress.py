import io
import re

from rich.console import Console

from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.report.progress import Live, PlainLines, Silent, reporter_for

REQUEST = Evaluate(Plan.of({("layers.0.attention.q", "lora"): 2}), Fidelity(10), 0, 3.0, "uniform [LoRA] 2")
DONE = Record(0, "search", REQUEST, Outcome(State.DONE, 128, 0.75, seconds=1.5))
BROKEN = Record(1, "search", REQUEST, Outcome(State.DIVERGED, 128, message="the loss is nan [at] step 3"))


def play(reporter) -> None:
    with reporter:
        reporter.planned(3)
        reporter.note("36 rows [repeat]")
        reporter.started(0, "search", REQUEST, 128)
        reporter.step(5, 10)
        reporter.finished(DONE, 0.75, recalled=False)
        reporter.started(1, "search", REQUEST, 128)
        reporter.finished(BROKEN, 0.75, recalled=False)


def test_plain_lines_tell_the_trial_its_cost_score_best_and_time_left():
    lines: list[str] = []
    play(PlainLines(lines.append))
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    text = "\n".join(line[9:] for line in lines).splitlines()
    assert text[0] == "36 rows [repeat]"
    assert text[1] == "search 0: uniform [LoRA] 2, 128 parameters, lr x3"
    assert re.fullmatch(r"search 0: score 0.7500 in 1.5 s, best in budget 0.7500, about \d:\d\d:\d\d left", text[2])
    assert text[4].startswith("search 1: diverged: the loss is nan [at] step 3")


def test_plain_lines_tell_of_a_supernet_at_every_quarter_of_its_steps():
    lines: list[str] = []
    reporter = PlainLines(lines.append)
    reporter.searching(1200, 10)
    for done in range(1, 11):
        reporter.step(done, 10)
    reporter.started(0, "search", REQUEST, 128)
    reporter.step(10, 10)
    told = [f"supernet: step {done} of 10" for done in (3, 5, 8, 10)]
    assert [line[9:] for line in lines[:-1]] == ["supernet of 1,200 choices: at most 10 steps", *told]


def test_the_live_display_has_one_bar_for_a_supernet_and_the_trials_after_it():
    reporter = Live(Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None))
    with reporter:
        reporter.searching(1200, 10)
        reporter.step(4, 10)
        (bar,) = reporter._progress.tasks
        assert (bar.description, bar.completed, bar.total) == ("supernet of 1,200 choices", 4, 10)
        reporter.started(0, "search", REQUEST, 128)
        (bar,) = reporter._progress.tasks
        assert bar.description.startswith("search 0")


def test_what_comes_from_the_ledger_does_not_count_for_the_time_left():
    lines: list[str] = []
    reporter = PlainLines(lines.append)
    reporter.planned(2)
    reporter.finished(DONE, 0.75, recalled=True)
    assert lines[0].endswith("from the ledger")


def test_the_live_display_prints_finished_trials_and_takes_brackets_as_they_are():
    out = io.StringIO()
    play(Live(Console(file=out, force_terminal=True, width=140, color_system=None)))
    text = out.getvalue()
    assert "36 rows [repeat]" in text
    assert "uniform [LoRA] 2" in text
    assert "score 0.7500 in 1.5 s, best in budget 0.7500" in text
    assert "the loss is nan [at] step 3" in text


def test_a_terminal_gets_the_live_display_and_a_pipe_gets_lines():
    assert isinstance(reporter_for(Console(file=io.StringIO(), force_terminal=True)), Live)
    assert isinstance(reporter_for(Console(file=io.StringIO())), PlainLines)


def test_silence_prints_nothing(capsys):
    play(Silent())
    assert capsys.readouterr() == ("", "")


def test_the_bar_of_the_study_shows_best_front_and_course_of_what_has_finished():
    out = io.StringIO()
    reporter = Live(Console(file=out, force_terminal=True, width=160, color_system=None))
    cheaper = Evaluate(Plan.of({("layers.0.attention.q", "bias"): 1}), Fidelity(10), 0)
    final = Record(3, "final", REQUEST, Outcome(State.DONE, 128, 0.99))
    with reporter:
        reporter.planned(4)
        reporter.finished(Record(0, "search", cheaper, Outcome(State.DONE, 32, 0.5)), 0.5, recalled=False)
        reporter.finished(DONE, 0.75, recalled=False)
        reporter.finished(BROKEN, 0.75, recalled=False)
        reporter.finished(final, 0.75, recalled=False)
        (study,) = reporter._progress.tasks
        assert study.description == "study: best 0.7500, 2 on the front ▁█"
        assert study.completed == 4


def test_the_bar_claims_nothing_before_the_first_score():
    reporter = Live(Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None))
    with reporter:
        reporter.planned(4)
        reporter.finished(BROKEN, None, recalled=False)
        (study,) = reporter._progress.tasks
        assert study.description == "study"
