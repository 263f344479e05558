"""Chromium by itself: nothing but the browser is needed to see a page as it is after its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

WATCH = """<script>
window.seen = [];
addEventListener("error", (e) => seen.push("error: " + e.message), true);
addEventListener("unhandledrejection", (e) => seen.push("rejection: " + e.reason));
addEventListener("securitypolicyviolation", (e) => seen.push("policy: " + e.violatedDirective + " " + e.blockedURI));
</script>"""
"""What a page has to complain of, in ``seen``; to be put in front of everything else."""


def dump(url: str, profile: Path) -> str:
    """The document after it has loaded and its scripts have run; ``profile`` is a folder of the browser."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--allow-file-access-from-files", f"--user-data-dir={profile}",
            "--virtual-time-budget=5000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout
