"""Sets how many threads torch has in a test process: ERAT_TEST_THREADS, or one if that is not set."""

from __future__ import annotations

import os

THREADS = int(os.environ.get("ERAT_TEST_THREADS", "1"))
