"""The software versions, git commit and machine of a run, which are needed to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from erat.versions import versions


def environment() -> dict[str, Any]:
    """Return package versions, git commit, platform, number of CPU cores, device and command line of this process."""
    return {
        "python": platform.python_version(),
        "versions": versions("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "mlxtend"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the folder of this file; None without git or outside a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
