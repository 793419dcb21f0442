"""Runs a fork server: a process that has imported everything, of which each input gets a new copy in milliseconds.

`python -m tests.fuzz.server` reads one JSON object a line from standard input, {"folder": ..., "words": [...],
"disk": bytes or null, "read_only": bool}, runs the command `words` inside `folder` (see `tests/fuzz/sandbox.py`), and
answers with {"code": exit status or null, "signal": ..., "hung": bool, "seconds": ...}. Nothing reaches the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

# Seconds of processor that an input may take, and seconds by the clock: on a busy machine it waits for its turn, and a
# command that hangs either computes or waits for ever.
COMPUTING, WAITING = 20.0, 180.0
MEMORY = 6 * 2**30  # bytes of address space beyond those of the imports
FILE = 256 * 2**20  # largest size of a file in bytes
MODULES = (
    "orchestration.cli",
    *(
        f"orchestration.{name}"
        for name in [
            "audit.execute",
            "audit.files",
            "audit.outline",
            "commands.doctor",
            "commands.evaluate",
            "commands.overview",
            "commands.plan",
            "commands.preview",
            "commands.profile",
            "report.document",
            "report.leaderboard",
            "commands.verify",
            "crafting.jobs",
            "report.crafting",
            "report.results",
            "run.execute",
            "run.heartbeat",
            "search.launch",
            "study.config_files",
            "study.estimate",
            "study.grids",
            "study.ledger",
            "study.spec",
            "study.status",
            "tracking.tracker",
        ]
    ),
    *(
        "pyarrow.parquet",
        "matplotlib.figure",
        "scipy.stats",
        "sklearn.mixture",
        "mlflow",
        "torchvision",
        "mlxtend.data",
    ),
    *("rich._emoji_codes", "typer.rich_utils", "encodings.cp437", "PIL.BmpImagePlugin", "PIL.GifImagePlugin"),
    *("PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "mlxtend.data"),
)
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Import everything, report whether disks can be mounted, and answer until standard input ends."""
    private = _private_namespaces()
    _prepare()
    gc.collect()
    gc.freeze()  # a copy that looks through all that was imported writes to it, and so has to copy that memory too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"mounts": private}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


def _private_namespaces() -> bool:
    """Move to private network and mount namespaces, and return whether the system allows it."""
    kinds = _CLONE_NEWNS | _CLONE_NEWNET | (0 if os.geteuid() == 0 else _CLONE_NEWUSER)
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(kinds) != 0:
        return False
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:  # "ip link set lo up"
        import fcntl

        fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 1))
    return True


def _prepare() -> None:
    """Import, read and build what most commands need, with one thread, so that the copies need not."""
    import torch
    import typer.main

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:  # a module that was renamed: the first command that needs it imports it
            print(f"fork server: no module {name}", file=sys.stderr)
    from erat.data.sources import mnist
    from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES
    from orchestration.cli import app

    for registry in (BACKBONES, CORRUPTIONS, DATASETS, DEFENSES):
        for name in registry.names():
            registry[name]
    mnist._read()
    # Typer reads the signatures of all verbs each time when it is called.
    vars(typer.main)["get_command"] = functools.cache(typer.main.get_command)
    typer.main.get_command(app)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    if _LIBC.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a copy of this process, and return its outcome."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(order)
    hung = not _ends(child)
    if hung:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # processes that it left behind
        os.killpg(child, signal.SIGKILL)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) and not hung else None
    return {"code": code, "signal": number, "hung": hung, "seconds": round(time.monotonic() - began, 3)}


def _ends(child: int) -> bool:
    """Wait for a process and return whether it ended before it had computed, or waited, for too long."""
    given_up = time.monotonic() + WAITING
    with open(os.pidfd_open(child), "rb", closefd=True) as handle:
        while not select.select([handle], [], [], 1.0)[0]:
            if time.monotonic() > given_up or _computed(child) > COMPUTING:
                return False
    return True


def _computed(process: int) -> float:
    """Return the seconds of processor that a process has taken, with those of its children, whether ended or not."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for each in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(each.cpu_times()[:4])  # user, system, and those of ended children
    return total


def _become(order: dict[str, Any]) -> None:
    """Turn this process into the command; this never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        _LIBC.unshare(_CLONE_NEWNS)
        _enter(Path(order["folder"]), order.get("disk"), order.get("read_only", False))
        sys.argv = ["orchestrate.py", *order["words"]]
        from orchestration.cli import main as command

        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _enter(folder: Path, disk: int | None, read_only: bool) -> None:
    """Set the environment, folders, streams and limits of a command.

    Args:
        folder: the folder of the input.
        disk: size of the workspace's file system in bytes; none: no limit.
        read_only: whether the workspace is mounted read-only.
    """
    workspace = folder / "home"
    if disk is not None:
        _mount("tmpfs", str(workspace), "tmpfs", 0, f"size={disk}")
    if read_only:
        _mount(str(workspace), str(workspace), None, _MS_BIND)
        _mount("none", str(workspace), None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    places = {"HOME": "user", "TMPDIR": "tmp", "ERAT_HOME": "home"}
    os.environ.update({name: str(folder / place) for name, place in places.items()})
    os.environ.update({"OMP_NUM_THREADS": "1", "COLUMNS": "120", "MLFLOW_DISABLE_TELEMETRY": "true"})
    import tempfile

    tempfile.tempdir = None
    os.chdir(folder / "cwd")
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in ((resource.RLIMIT_AS, used + MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
