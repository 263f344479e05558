"""Makes the study of this version that tests/reliability/test_released_studies.py opens: once for every release.

``python tests/make_study_asset.py`` writes ``tests/assets/studies/VERSION.zip``: a finished study of a tiny model, the
model, and what the exported adapter has to say, so that later versions are held to it. Nothing of it is ever changed.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from safetensors.torch import save_file

from peftscout import __version__
from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.preparation import prepare
from peftscout.report.progress import Silent
from released_studies import PROBE, outputs_of
from tiny_task import save_tiny_model, write_task

ASSETS = Path(__file__).parent / "assets" / "studies"
MODEL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
SETTINGS = {
    "model": "model",
    "data": {"source": "data"},
    "budget": "12%",
    "space": "all",
    "strategy": "random",
    "trials": 4,
    "steps": 3,
    "final": {"seeds": 2, "lr_scales": [1.0]},
    "training": {"threads": 1, "batch_size": 8, "precision": "fp32", "cache_bytes": 0},
}


def make(folder: Path) -> None:
    """Write model, data, study and outputs into ``folder``, which becomes the working folder: paths are relative."""
    os.chdir(folder)
    save_tiny_model(Path("model"), **MODEL)
    write_task(Path("data"), train=30, validation=12)
    run_study(prepare(StudyConfig.from_mapping(SETTINGS)), Path("study"), Silent())
    shutil.rmtree("study/cache")
    Path("study/lock").unlink(missing_ok=True)
    save_file({"outputs": outputs_of(Path("study"))}, PROBE)


def main() -> None:
    target = ASSETS / f"{__version__}.zip"
    if target.exists():
        sys.exit(f"{target}: is there already, and is never changed; raise the version first")
    ASSETS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        make(Path(temporary))
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(temporary))
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB, {len(files)} files")


if __name__ == "__main__":
    main()
