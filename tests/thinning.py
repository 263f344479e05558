"""How thorough the tests are that could go on for ever: drawn examples, and kills.

``make test`` takes few of them; ``make test-full`` sets ``PEFTSCOUT_TEST_FACTOR`` and takes ten times as many.
"""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("PEFTSCOUT_TEST_FACTOR", "1"))
