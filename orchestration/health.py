"""`doctor`: what this machine and cluster can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from typing import Any

import psutil
import torch
from rich.console import Console

from erat.config import build
from erat.data.sets import load
from erat.errors import UserError
from orchestration.home import Home
from orchestration.tracking import Tracker

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pydantic", "mlxtend")
LOW_DISK_GB, LOW_MEMORY_GB = 5, 4


def check(home: Home, address: str | None, console: Console) -> dict[str, Any]:
    """Look at everything a run needs; "ok" says whether all of it is there."""
    findings: dict[str, Any] = {"python": platform.python_version(), "ok": True}
    for name, probe in _probes(home, address).items():
        try:
            value, warning = probe()
        except UserError as error:
            value, warning = None, str(error)
            findings["ok"] = False
        findings[name] = value
        mark = "[yellow]![/yellow]" if warning else "[green]ok[/green]"
        console.print(f"{mark:>4} {name}: ", end="")
        console.print(f"{value if value is not None else ''} {warning}".strip(), markup=False)
    return findings


Probe = Callable[[], tuple[Any, str]]  # (what was found, a warning or "")


def _probes(home: Home, address: str | None) -> dict[str, Probe]:
    return {
        "packages": _packages,
        "cores": lambda: (os.cpu_count(), ""),
        "memory_gb": _memory,
        "disk_free_gb": lambda: _disk(home),
        "cuda": _cuda,
        "embedded_data": _embedded_data,
        "tracking": lambda: (Tracker.open(home).uri, ""),
        "ray": lambda: _ray(address),
    }


def _packages() -> tuple[Any, str]:
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    missing = [name for name in PACKAGES if name not in installed]
    return {name: installed.get(name) for name in PACKAGES}, f"missing: {', '.join(missing)}" if missing else ""


def _memory() -> tuple[float, str]:
    free = psutil.virtual_memory().available / 1e9
    return round(free, 1), f"less than {LOW_MEMORY_GB} GB free: run one trial at a time" if free < LOW_MEMORY_GB else ""


def _disk(home: Home) -> tuple[float, str]:
    free = shutil.disk_usage(home.root).free / 1e9
    return round(free, 1), f"less than {LOW_DISK_GB} GB free at {home.root}" if free < LOW_DISK_GB else ""


def _cuda() -> tuple[Any, str]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return names, "" if names else "no GPU: the demo preset needs none, the paper preset would take weeks"


def _embedded_data() -> tuple[str, str]:
    train, test = load(build("demo").data)
    return f"mnist, {len(train)} training and {len(test)} test images", ""


def _ray(address: str | None) -> tuple[Any, str]:
    from orchestration import cluster

    with cluster.connection(address):
        return cluster.description(), ""
