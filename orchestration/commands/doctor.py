"""Implements `doctor`: reports what this machine and cluster can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

import psutil
import torch
from rich.console import Console

from erat.config import build
from erat.data.loading import load
from erat.errors import UserError
from erat.presets import PRESETS
from erat.versions import versions
from orchestration.cluster.nodes import Node, problem, token
from orchestration.run.busy import WHY, Meter, busy_cores
from orchestration.run.resources import needs
from orchestration.storage.workspace import Workspace
from orchestration.tracking.store import own_database, tracking_uri, without_password
from orchestration.tracking.tracker import Tracker

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pydantic", "mlxtend")
LOW_DISK_GB, LOW_MEMORY_GB = 5, 4
BUSY_SECONDS = 0.5  # how long is watched what other programs do


def check(workspace: Workspace, address: str | None, console: Console) -> dict[str, Any]:
    """Check everything that a run needs, on every node if an address is given, and print a line for each check.

    Returns:
        The findings; "ok" says whether everything is there.
    """
    findings: dict[str, Any] = {"python": platform.python_version(), "ok": True}
    for name, probe in _probes(workspace, address, console).items():
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


def _probes(workspace: Workspace, address: str | None, console: Console) -> dict[str, Probe]:
    return {
        "packages": _packages,
        "cores": _cores,
        "memory_gb": _memory,
        "disk_free_gb": lambda: _disk(workspace),
        "cuda": _cuda,
        "embedded_data": _embedded_data,
        "tracking": lambda: _tracking(workspace),
        "storage": lambda: _storage(workspace),
        "ray": lambda: _ray(workspace, address, console),
    }


def _packages() -> tuple[Any, str]:
    installed = {name: None if found == "absent" else found for name, found in versions(*PACKAGES).items()}
    missing = [name for name, found in installed.items() if found is None]
    return installed, f"missing: {', '.join(missing)}" if missing else ""


def _cores() -> tuple[int | None, str]:
    return os.cpu_count(), Meter().words(busy_cores(BUSY_SECONDS)) or ""


def _memory() -> tuple[float, str]:
    free = psutil.virtual_memory().available / 1e9
    return round(free, 1), f"less than {LOW_MEMORY_GB} GB free: run one trial at a time" if free < LOW_MEMORY_GB else ""


def _disk(workspace: Workspace) -> tuple[float, str]:
    free = shutil.disk_usage(workspace.root).free / 1e9
    return round(free, 1), f"less than {LOW_DISK_GB} GB free at {workspace.root}" if free < LOW_DISK_GB else ""


def _cuda() -> tuple[Any, str]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return names, "" if names else "no GPU: the presets demo and medium need none, the paper preset would take weeks"


def _embedded_data() -> tuple[str, str]:
    train, test = load(build("demo").data)
    return f"mnist, {len(train)} training and {len(test)} test images", ""


def _storage(workspace: Workspace) -> tuple[str, str]:
    """Test from this machine the storage through which nodes share runs and crafted sets."""
    with token(workspace):
        return workspace.place or str(workspace.root), ""


def _tracking(workspace: Workspace) -> tuple[str, str]:
    """Open the tracking store and return its URI; a store that cannot be written is only named, with a warning."""
    if own_database(workspace) is not None and not os.access(workspace.root, os.W_OK):
        return without_password(tracking_uri(workspace)), "is read-only: `ui` shows it, no run can be added"
    return Tracker.open(workspace).uri, ""


def _ray(workspace: Workspace, address: str | None, console: Console) -> tuple[Any, str]:
    from orchestration.cluster import session

    with session.connection(address):
        found = session.description() | {"trials": _trials(console)}
        if address is None:
            return found, ""
        nodes = session.survey(workspace)
    found["nodes"] = [_node(node, console) for node in nodes]
    problems = [said for said in map(problem, nodes) if said is not None]
    if problems:
        raise UserError("; ".join(problems))
    small = [node.name for node in nodes if node.sight and node.sight.disk_free_gb < LOW_DISK_GB]
    busy = [f"{node.name} ({node.sight.busy_cores:.1f} cores)" for node in nodes if node.sight and node.sight.busy]
    said = [f"less than {LOW_DISK_GB} GB free on {', '.join(small)}"] * bool(small)
    said += [f"other programs are at work on {', '.join(busy)}; {WHY}"] * bool(busy)
    return found, "; ".join(said)


def _trials(console: Console) -> dict[str, int]:
    """Print where the trials of each preset would run on the connected cluster; return how many at a time."""
    from orchestration.cluster import session

    found = {}
    for name in PRESETS:
        config = build(name)
        wanted = needs(config)
        found[name] = session.fitting(wanted, 1)
        where = f"{found[name]} trials at a time, {session.devices(wanted)}"
        if not found[name] and wanted["GPU"]:
            where = "asks for a GPU, of which there is none: resources.device=cpu trains without"
        console.print(f"   preset {name}: {where}", markup=False)
    return found


def _node(node: Node, console: Console) -> dict[str, Any]:
    """Print one line about a node, and return the same as a mapping."""
    if node.sight is None:
        return {"node": node.name, "silent": node.silent}
    shown = ", ".join(f"{name} {version}" for name, version in node.sight.versions.items())
    console.print(f"   node {node.name}: {node.devices}; {node.sight.disk_free_gb:g} GB free; {shown}", markup=False)
    return {"node": node.name, "devices": node.devices, "blind": node.sight.blind} | {
        "disk_free_gb": node.sight.disk_free_gb,
        "busy_cores": node.sight.busy_cores,
        "versions": node.sight.versions,
    }
