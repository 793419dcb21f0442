"""How many threads torch has in a test process: ERAT_TEST_THREADS, one unless it is set."""

from __future__ import annotations

import os

THREADS = int(os.environ.get("ERAT_TEST_THREADS", "1"))
