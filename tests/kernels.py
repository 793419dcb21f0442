"""Finds out which arithmetic kernels torch uses on this processor, and makes it use those of an older processor.

How a sum is rounded depends on the order in which a kernel adds, so a test may pass on one processor and fail on
another.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

# Environment variables that keep torch's own loops (ATen), oneDNN's convolutions and MKL's matrix products from newer
# instructions. A variable for a library that is not there, such as oneDNN and MKL on Arm, has no effect.
SETS: dict[str, dict[str, str]] = {
    # SSE4.1 on x86-64, NEON without SVE on Arm: every machine on which torch runs has these.
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}

_PROBE = """
import torch
print("ATen:", torch.backends.cpu.get_cpu_capability())
torch.nn.functional.conv2d(torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3))
torch.ones(8, 8) @ torch.ones(8, 8)
"""


def limited_to(name: str) -> dict[str, str]:
    """Return this process's environment with the variables of the instruction set `name`, a key of `SETS`."""
    return os.environ | SETS[name]


def unlimited() -> dict[str, str]:
    """Return this process's environment without any variable that limits the instruction set."""
    return {key: value for key, value in os.environ.items() if key not in SETS["baseline"]}


def kernels(environment: Mapping[str, str]) -> str:
    """Return which kernels the libraries say they use in a process with this environment, in one line."""
    talkative = {**environment, "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=talkative, capture_output=True, text=True, check=True)
    patterns = {"ATen": r"^ATen: (.+)$", "oneDNN": r"info,cpu,isa:(.+)$", "MKL": r"\b(CNR:\w+)"}
    found = {library: re.search(pattern, done.stdout, re.MULTILINE) for library, pattern in patterns.items()}
    return ", ".join(f"{library} {match[1]}" for library, match in found.items() if match)
