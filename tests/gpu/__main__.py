"""Tests and measures the science on a GPU: `python -m tests.gpu [PART ...]`; prints a table and a JSON object.

Each part runs in a process of its own, which is ended when the time is over; what it has measured until then counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PARTS = ("correctness", "sync", "study", "throughput")  # the last one takes what time is left
NEEDED = ("torch", "torchvision", "numpy", "pydantic", "PIL")
PACKAGES = {"PIL": "pillow"}  # names under which a package index knows modules of another name
LEAST = 20.0  # seconds without which no part is begun
ROOT = Path(__file__).parents[2]


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if every bound is kept, 1 if one is not, 2 if nothing can be run here."""
    parser = _parser()
    arguments = parser.parse_args(words)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        return _refuse(_how_to_carry([PACKAGES.get(name, name) for name in lacking]))
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        return _refuse("torch sees no CUDA device here; --device cpu --quick tries the suite itself")
    if arguments.alone:
        return _alone(arguments.parts[0], arguments.device, arguments.quick, arguments.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part under way ends too
    began, until = time.monotonic(), time.monotonic() + 60 * arguments.minutes
    results: list[dict[str, Any]] = []
    for part in arguments.parts or PARTS:
        left = until - time.monotonic()
        if left < LEAST:
            results.append(_row(part, "all of it", "no time left", left_out=True))
            _print_row(results[-1])
            continue
        results += _in_a_process(part, arguments.device, arguments.quick, left)
    failed = [row for row in results if row["kept"] is False]
    seconds = time.monotonic() - began
    left_out = sum(row["left_out"] for row in results)
    print(f"{len(results) - left_out} tried, {len(failed)} failed, {left_out} left out, in {seconds:.0f} s")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"cpu ({platform.machine()})"
    machine = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": _cudnn()}
    print(json.dumps(machine | {"quick": arguments.quick, "seconds": round(seconds, 1), "rows": results}))
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        epilog="examples: python -m tests.gpu; python -m tests.gpu correctness sync; "
        "python -m tests.gpu --device cpu --quick",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which: {', '.join(PARTS)} (by default all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all that needs no CUDA")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which only show that the suite works")
    parser.add_argument("--minutes", type=float, default=10, help="when to end (default 10)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # the part in this process, as JSON
    return parser


def _refuse(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 2


def _how_to_carry(packages: Sequence[str]) -> str:
    """Return how to bring packages to a machine that reaches no package index."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"not installed here: {', '.join(packages)}; carry them: `pip install --target carried --only-binary :all: "
        f"--python-version {version} {' '.join(packages)}` where there is an index, copy the folder `carried`, and put "
        f"it at the end of PYTHONPATH"
    )


def _cudnn() -> int | None:
    import torch

    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


# --- a part ----------------------------------------------------------------------------------------------------------


def _alone(part: str, device: str, quick: bool, minutes: float) -> int:
    """Run one part in this process, and print each line as JSON as soon as it is measured."""
    from tests.gpu.setting import Setting

    setting = Setting(device, quick, time.monotonic() + 60 * minutes)
    for row in import_module(f"tests.gpu.{part}").rows(setting):
        print(json.dumps(_row(part, **asdict(row))), flush=True)
    return 0


def _in_a_process(part: str, device: str, quick: bool, seconds: float) -> list[dict[str, Any]]:
    """Run one part in a process of its own, print its lines, and return them."""
    command = [sys.executable, "-m", "tests.gpu", part, "--alone", "--device", device, "--minutes", str(seconds / 60)]
    process = subprocess.Popen(
        command + ["--quick"] * quick,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own processes end with it
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        _end_group(process.pid)

    timer = threading.Timer(seconds, end)
    timer.start()
    rows = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"part"'):
                rows.append(json.loads(line))
                _print_row(rows[-1])
            else:
                print(line, end="", file=sys.stderr)
        code = process.wait()
    finally:
        timer.cancel()
        _end_group(process.pid)
    if ended.is_set() and not rows:
        rows.append(_row(part, "all of it", f"gave nothing in {seconds:.0f} s, and was ended", False))
        _print_row(rows[-1])
    elif ended.is_set():
        rows.append(_row(part, "the rest", "no time left", left_out=True))
        _print_row(rows[-1])
    elif code:
        rows.append(_row(part, "the rest", f"ended with exit status {code}", False))
        _print_row(rows[-1])
    return rows


def _end_group(leader: int) -> None:
    """End a part and all processes that it has started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _row(
    part: str,
    name: str,
    value: str,
    kept: bool | None = None,
    numbers: dict[str, float] | None = None,
    left_out: bool = False,
) -> dict[str, Any]:
    return {"part": part, "name": name, "value": value, "kept": kept, "numbers": numbers or {}, "left_out": left_out}


def _print_row(row: dict[str, Any]) -> None:
    verdict = "left out" if row["left_out"] else {True: "ok", False: "FAILED", None: ""}[row["kept"]]
    print(f"{row['part']:<12} {row['name']:<52} {verdict:<9} {row['value']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
