"""The page in a real browser: it loads without errors or requests, fits a phone, sorts and filters.

Chromium runs headless by itself (``--dump-dom``): a copy of the page with a driver in it clicks, types and writes down
what it sees. So nothing but the browser is needed; without one these tests are skipped.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from study_data import HOSTILE, LORA, MIXED, SMALL, study, summary, trial

from browser import BROWSER, WATCH, dump
from peftscout.report.page import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium"),
]

DRIVE = """<script>
addEventListener("load", () => {
  const rows = () => [...document.querySelectorAll("#evaluations tbody tr")].filter((r) => !r.hidden);
  const numbers = () => rows().map((r) => r.cells[0].textContent.trim());
  const heads = [...document.querySelectorAll("#evaluations th")];
  const column = (name) => heads.find((h) => h.textContent.trim() === name);
  const click = (name) => { column(name).querySelector("button").click(); return numbers(); };
  const type = (id, text) => {
    const field = document.getElementById(id);
    field.value = text;
    field.dispatchEvent(new Event(id === "state" ? "change" : "input"));
    return [numbers(), document.getElementById("count").textContent];
  };
  const out = {};
  out.first = numbers();
  out.ascending = click("accuracy");
  out.aria = column("accuracy").getAttribute("aria-sort");
  out.descending = click("accuracy");
  out.parameters = click("parameters");
  out.aria_after = column("accuracy").getAttribute("aria-sort");
  out.words = click("plan");
  out.numbers = click("trial");
  out.filtered = type("filter", "needle");
  out.nothing = type("filter", "nothing such");
  out.all = type("filter", "");
  out.state = type("state", "failed");
  out.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  out.resources = performance.getEntriesByType("resource").map((e) => e.name);
  out.seen = seen;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(out))));
  document.body.append(result);
});
</script>"""

ROWS = [
    trial(0, LORA, 0.70, label="b needle"),
    trial(1, MIXED, 0.9, label="c"),
    trial(2, SMALL, None, label="a needle"),
    trial(10, SMALL, 0.80, label=HOSTILE),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, Any]:
    """What the driver wrote down, in a window as narrow as a phone."""
    folder = tmp_path_factory.mktemp("browser")
    made = summary(ROWS, task=HOSTILE, verdict="A verdict. " + HOSTILE)
    page = write_report(study(folder / "s", made)).html.read_text(encoding="utf-8")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # or the driver could not run
    page = page.replace("<head>", f"<head>{WATCH}").replace("</body>", f"{DRIVE}</body>")
    (folder / "driven.html").write_text(page, encoding="utf-8")
    frame = '<iframe src="driven.html" style="border:0;width:360px;height:800px" name="phone"></iframe>'
    (folder / "frame.html").write_text(
        f"<body>{frame}<script>onload = () => document.body.append("
        "frames[0].document.getElementById('result'))</script></body>"
    )
    shown = dump((folder / "frame.html").as_uri(), folder / "profile")
    (result,) = re.findall(r'<pre id="result">([^<]*)</pre>', shown)
    return json.loads(base64.b64decode(result).decode())


def test_it_loads_without_errors_and_asks_for_nothing(seen):
    assert seen["seen"] == []
    assert seen["resources"] == []


def test_it_is_no_wider_than_a_phone(seen):
    width, window = seen["width"]
    assert window == 360
    assert width <= window


def test_the_table_sorts_numbers_as_numbers_and_puts_what_is_unknown_last(seen):
    assert seen["first"] == ["0", "1", "2", "10"]
    assert seen["ascending"] == ["0", "10", "1", "2"]
    assert seen["descending"] == ["1", "10", "0", "2"]
    assert seen["parameters"][:2] == ["2", "10"]
    assert seen["words"].index("2") < seen["words"].index("0") < seen["words"].index("1")
    assert seen["numbers"] == ["0", "1", "2", "10"]


def test_the_heading_says_how_it_is_sorted(seen):
    assert seen["aria"] == "ascending"
    assert seen["aria_after"] is None


def test_the_table_filters_by_words_and_by_state(seen):
    assert seen["filtered"] == [["0", "2"], "2 of 4"]
    assert seen["nothing"] == [[], "0 of 4"]
    assert seen["all"] == [["0", "1", "2", "10"], "4 of 4"]
    assert seen["state"] == [["2"], "1 of 4"]


def test_the_policy_of_the_page_lets_its_own_script_run(tmp_path):
    page = write_report(study(tmp_path / "s", summary(ROWS))).html
    assert dump(page.as_uri(), tmp_path / "profile").count('<button type="button">') == 13
