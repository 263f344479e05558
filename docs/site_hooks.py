"""Links that are right in the repository stay right in the site, which has no folders above `docs/`.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages. Scripts go along as files, so that links to them hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SCRIPTS = ("examples", "notebooks")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what lies outside of `docs/` and is linked to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for script in [found for folder in SCRIPTS for found in sorted((ROOT / folder).glob("*.py"))]:
        files.append(File.generated(config, f"{script.parent.name}/{script.name}", abs_src_path=str(script)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links at where these files are in the site."""
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({page}", markdown)
    for folder in SCRIPTS:
        markdown = markdown.replace(f"](../{folder}/", f"]({folder}/")
    return markdown.replace("](docs/", "](")
