"""Ends every trial in a process that stands for a bad GPU or node, as soon as it trains; for tests, by PYTHONPATH.

`BAD_GPU` in the environment is the number of the GPU on which this happens; "any": on every one, and without any.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def _end_what_trains(bad: str) -> None:
    while True:
        time.sleep(0.05)
        module = sys.modules.get("orchestration.run.preemption")
        training = getattr(module, "_training", None)
        if training is None or not training.is_set():
            continue
        if bad in ("any", os.environ.get("CUDA_VISIBLE_DEVICES")):
            os.kill(os.getpid(), signal.SIGKILL)


if found := os.environ.get("BAD_GPU"):
    threading.Thread(target=_end_what_trains, args=(found,), daemon=True).start()
