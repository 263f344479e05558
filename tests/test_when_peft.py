import subprocess
import sys

import pytest

COMPOSITE = "from peft.utils import PeftType; assert 'PEFTSCOUT' in PeftType.__members__"


@pytest.mark.parametrize(
    "code",
    [
        f"import peftscout, peft; {COMPOSITE}",
        f"import peft, peftscout; {COMPOSITE}",
        f"import peftscout; from peft import PeftModel; {COMPOSITE}",
        f"import peftscout; import transformers; from transformers import AutoModel; import peft; {COMPOSITE}",
        f"import peftscout, importlib.util; importlib.util.find_spec('peft'); import peft; {COMPOSITE}",
        "import peftscout, sys; assert 'peft' not in sys.modules and 'torch' not in sys.modules",
        "import peft; from peft.utils import PeftType; assert 'PEFTSCOUT' not in PeftType.__members__",
    ],
)
def test_our_type_is_known_as_soon_as_both_are_imported_and_no_sooner(code):
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
