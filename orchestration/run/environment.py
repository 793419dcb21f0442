"""Versions, commit and machine: what one needs to repeat a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from erat.config import RunConfig
from erat.engine.trainer import choose_device
from erat.versions import versions

CPU = "cpu"


def device_kind(config: RunConfig) -> str:
    """Return what a run computes on here: "cpu", or the GPU's name. Raises as `choose_device`."""
    return torch.cuda.get_device_name() if choose_device(config).type == "cuda" else CPU


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what one needs to run this again."""
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
    """What git says of the folder that this code lies in; none without git or a repository."""
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
