"""The report as files: whole, safe with any name, the same for the same study."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from study_data import HOSTILE, LORA, MIXED, contender, study, summary, trial

from peftscout.errors import StudyError
from peftscout.report.drawing import VARIABLES
from peftscout.report.page import FILES, csv_text, sections, write_report
from peftscout.report.rendering import escape_markdown
from peftscout.report.table import Table
from peftscout.report.view import View


class Tags(HTMLParser):
    """Every tag, attribute and text of a page; unclosed tags are counted."""

    VOID = frozenset({"meta", "input", "br", "path", "use", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def report(tmp_path, made=None, **changes):
    files = write_report(study(tmp_path / "s", made or summary(**changes)))
    return files, files.html.read_text(encoding="utf-8"), files.markdown.read_text(encoding="utf-8")


def test_three_files_lie_beside_the_study_and_the_verdict_comes_first(tmp_path):
    files, page, markdown = report(tmp_path)
    assert [p.name for p in (files.html, files.markdown, files.csv)] == list(FILES)
    assert files.html.parent == tmp_path / "s"
    assert page.index("11.0 points above") < page.index("<svg") < page.index('id="evaluations"')
    assert markdown.splitlines()[2].startswith("**A plan: accuracy 0.8200")


def test_the_page_loads_nothing_from_anywhere(tmp_path):
    _, page, _ = report(tmp_path)
    tags = Tags(page)
    for _, attributes in tags.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (name, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    (policy,) = [a["content"] for t, a in tags.tags if t == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)


def test_every_figure_has_words_and_a_table(tmp_path):
    parts = sections(study(tmp_path / "s", summary()), View(summary()))
    assert [part.name for part in parts] == ["front", "course", "map", "bill", "resources"]
    for part in parts:
        assert part.drawings
        assert part.tables
        assert all(drawing.words for drawing in part.drawings)
    _, page, markdown = report(tmp_path / "again")
    assert Tags(page).count("svg") == sum(len(part.drawings) for part in parts)
    for part in parts:
        assert f"## {part.title}" in markdown
        for drawing in part.drawings:
            assert escape_markdown(drawing.words) in markdown


def test_colours_follow_the_theme_and_every_variable_is_defined(tmp_path):
    _, page, _ = report(tmp_path)
    used = set(re.findall(r"var\(--([a-z]+)", page))
    assert {"ink", "grid", "blue", "orange", "green"} <= used
    themes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        assert used <= set(re.findall(r"--([a-z]+):", theme))
    for colour in VARIABLES:
        assert not re.search(rf"(?<!, ){colour}", page[page.index("<svg") : page.rindex("</svg>")], re.IGNORECASE)


def test_ids_are_there_once_and_references_hit_them(tmp_path):
    _, page, _ = report(tmp_path)
    ids = [a["id"] for _, a in Tags(page).tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(|href=")#([^)"]+)', page):
        assert target in ids


def test_hostile_names_are_shown_and_never_run(tmp_path):
    made = summary(
        [trial(0, LORA, 0.5, label=HOSTILE), trial(1, MIXED, None, label=HOSTILE, message=HOSTILE)],
        task=HOSTILE, model=HOSTILE, verdict=HOSTILE, metric=HOSTILE, space=HOSTILE,
        budget={"parameters": 800, "text": HOSTILE},
    )  # fmt: skip
    _, page, markdown = report(tmp_path, made)
    tags = Tags(page)
    assert tags.count("script") == 1
    assert "<script>alert('x')</script>" in tags.text
    assert "<script>alert" not in page
    assert "\u202e" not in page + markdown
    assert "<script" not in markdown
    assert {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("| 0 ")} == {
        5,
        14,
    }  # front, trials
    assert tags.open in ([], ["html"])


def test_csv_holds_numbers_in_full_and_no_formula():
    rows = list(
        csv.reader(io.StringIO(csv_text(Table.of(("a", "b", "c"), [("=1+1", 0.123456789, None), ('q"\n', -3, "@x")]))))
    )
    assert rows == [["a", "b", "c"], ["'=1+1", "0.123456789", ""], ['q" ', "-3", "'@x"]]


def test_the_csv_has_a_line_for_every_trial(tmp_path):
    files, _, _ = report(tmp_path)
    rows = list(csv.DictReader(files.csv.open(encoding="utf-8")))
    assert [row["trial"] for row in rows] == [str(n) for n in range(7)]
    assert rows[1]["accuracy"] == "0.8"
    assert rows[3]["state"] == "failed"


def test_the_same_study_gives_the_same_bytes(tmp_path):
    folder = study(tmp_path / "s", summary())
    texts = [
        [getattr(write_report(folder, tmp_path / name), kind).read_bytes() for kind in ("html", "markdown", "csv")]
        for name in "ab"
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "made",
    [
        summary(final=None),
        summary(
            [trial(0, LORA, 0.5), trial(1, MIXED, None), trial(2, MIXED, None)],
            best=contender(LORA, 0.5, 0),
            final=None,
        ),
        summary([trial(0, LORA, 0.5)], best=contender(LORA, 0.5, 0), final=None),
        summary([trial(0, LORA, None), trial(1, MIXED, 0.5)], baseline=contender(LORA, None, 0), final=None),
        summary([trial(0, LORA, 0.5, full=False), trial(1, LORA, None, state="running", cost=None, seconds=None)]),
        {key: value for key, value in summary().items() if key not in ("sites", "parameters")},
    ],
    ids=[
        "no final comparison",
        "all failed but the baseline",
        "one trial",
        "baseline failed",
        "no full trial",
        "older",
    ],
)
def test_studies_of_every_kind_have_a_report(tmp_path, made):
    _, page, markdown = report(tmp_path, made)
    assert made["verdict"].split(":")[0] in page
    assert f"{len(made['trials'])} of {len(made['trials'])}" in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().replace("tenance", "")
    assert "Every evaluation" in markdown


def test_a_reference_is_drawn_beside_and_must_be_comparable(tmp_path):
    folder = study(tmp_path / "s", summary(strategy="bipeft"))
    other = study(tmp_path / "r", summary())
    assert "reference: random" in write_report(folder, reference=other).html.read_text()
    wrong = study(tmp_path / "w", summary(task="cola"))
    with pytest.raises(StudyError, match="its task is cola, and here it is rte"):
        write_report(folder, reference=wrong)
    dearer = study(tmp_path / "d", summary(budget={"parameters": 900, "text": "900"}))
    with pytest.raises(StudyError, match="its budget is 900"):
        write_report(folder, reference=dearer)


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="name another folder with --out"):
        write_report(study(tmp_path / "s", summary()), tmp_path / "file")


def test_what_a_strategy_cannot_tell_is_said(tmp_path):
    made = summary(strategy="design-spaces", budget={"parameters": 1, "text": "1"})
    folder = study(tmp_path / "s", made)
    (folder / "ledger.journal").write_text("not a journal\n")
    _, page = None, write_report(folder).html.read_text()
    assert "This cannot be told" in page
