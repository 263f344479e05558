"""The documentation as a site: it builds strictly, asks nothing of other machines, fits a phone, names everything."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import peftscout
from browser import BROWSER, WATCH, dump
from documents import ROOT

pytest.importorskip("mkdocs", reason="needs mkdocs: the extra docs")

pytestmark = pytest.mark.slow

LOOK = """<script>
addEventListener("load", () => {
  const out = {seen: seen, resources: performance.getEntriesByType("resource").map((e) => e.name)};
  out.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(out))));
  document.body.append(result);
});
</script>"""


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(out)
    assert built.returncode == 0, built.stderr
    return out


class Fetched(HTMLParser):
    """Everything that a page loads by itself: links that a reader may follow are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            self.places.append(values.get("href") or "")
        elif tag in {"script", "img", "iframe", "source", "video", "audio", "object"}:
            self.places.append(values.get("src") or "")


def fetched(html: str) -> list[str]:
    parser = Fetched()
    parser.feed(html)
    return parser.places


def test_pages_load_nothing_from_other_machines(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert [place for place in fetched(html) if re.match(r"(https?:)?//", place)] == [], page.name
        assert "fonts.g" not in html
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    assert [found for style in styles for found in re.findall(r"url\(\W?(?:https?:)?//[^)]*", style)] == []


def test_what_a_page_loads_is_found() -> None:
    html = '<a href="https://a.org">a</a><script src="https://b.org/x.js"></script><link rel="icon" href="//c.org">'
    assert fetched(html) == ["https://b.org/x.js", "//c.org"]


def test_every_document_is_a_page_and_examples_go_along(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog"}
    assert {page.stem for page in site.glob("*.html")} - {"404"} == names
    for folder in ("examples", "notebooks"):
        scripts = {path.name for path in (ROOT / folder).glob("*.py")}
        assert {path.name for path in (site / folder).iterdir()} >= scripts
    assert not list(site.rglob("site_hooks.py"))


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    documented = set(re.findall(r'id="(peftscout\.[\w.]+)"', page))
    for name in peftscout.__all__:
        assert any(found.rpartition(".")[2] == name for found in documented), name
    assert 'id="peftscout.errors.BudgetError"' in page


def test_a_broken_link_or_an_omitted_page_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[gone](gone.md)\n")
    settings = re.search(r"^validation:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert settings
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\n{settings[0]}nav: [index.md]\n")
    assert "gone.md" in (broken := build(tmp_path / "site", tmp_path / "mkdocs.yml")).stderr
    assert broken.returncode != 0
    (docs / "index.md").write_text("# A\n")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode == 0
    (docs / "omitted.md").write_text("# B\n")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode != 0


# --- in a browser ----------------------------------------------------------------------------------------------------


class _Served(SimpleHTTPRequestHandler):
    """The site, with what watches and looks in every page, and a frame as narrow as a phone."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if self.path.startswith("/phone?"):
            page = self.path.partition("?")[2]
            frame = f'<iframe src="{page}" style="border:0;width:360px;height:800px" name="phone"></iframe>'
            take = 'onload = () => document.body.append(frames[0].document.getElementById("result"))'
            self._send(f"<!doctype html><body>{frame}<script>{take}</script></body>")
        elif path.suffix == ".html" and path.is_file():
            html = path.read_text(encoding="utf-8")
            self._send(html.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{LOOK}</body>", 1))
        else:
            super().do_GET()

    def _send(self, html: str) -> None:
        data = html.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is for failures."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Served, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("page", ["index", "quickstart", "performance", "reference"])
def test_a_page_loads_without_errors_from_here_alone_and_is_no_wider_than_a_phone(address, page, tmp_path) -> None:
    shown = dump(f"{address}/phone?{page}.html", tmp_path)
    (result,) = re.findall(r'<pre id="result">([^<]*)</pre>', shown)
    seen = json.loads(base64.b64decode(result).decode())
    assert seen["seen"] == []
    assert seen["resources"], "a style sheet at least"
    assert [place for place in seen["resources"] if not place.startswith(address)] == []
    width, window = seen["width"]
    assert window == 360
    assert width <= window
