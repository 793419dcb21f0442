"""Runs inputs of the fuzz suite: the folder of an input, the outcome of the command, and the faults of an outcome."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = ("home", "data", "cwd", "user", "tmp")  # ERAT_HOME, the user's data, working folder, HOME, TMPDIR
FINE, WRONG, EITHER = (0,), (2,), (0, 2)
LONGEST = 900  # characters of the line of an error: the names of all keys of a defense take 800
FOLDER, LINK = "folder", "link:"  # what may be at the path of a file instead of bytes


@dataclass(frozen=True)
class Input:
    """A command line and the files that it finds.

    Attributes:
        group: the group of the input in the tables.
        words: the command line; it runs in `cwd`, next to `data`, so that `../data/x.npz` is a user's file.
        files: path below the sandbox's folder -> content, or FOLDER, or LINK and the target of the link.
        allowed: the exit statuses that are right for it.
        base: the initial content of the workspace; see `make_bases` in `tests/fuzz/stored.py`.
        gone: paths of the base that are removed.
        disk: bytes of the file system of the workspace; none: no limit.
        read_only: whether the workspace is mounted read-only.
    """

    group: str
    words: tuple[str, ...]
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    allowed: tuple[int, ...] = EITHER
    base: str = "empty"
    gone: tuple[str, ...] = ()
    disk: int | None = None
    read_only: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the input as JSON-like values, which `from_json` reads."""
        files = {
            name: content if isinstance(content, str) else {"base64": base64.b64encode(content).decode()}
            for name, content in self.files.items()
        }
        return {**vars(self), "files": files}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Input:
        """Return the input that `as_json` wrote."""
        files = {
            name: content if isinstance(content, str) else base64.b64decode(content["base64"])
            for name, content in kept["files"].items()
        }
        lists = {name: tuple(kept[name]) for name in ("words", "allowed", "gone")}
        return cls(**{**kept, **lists, "files": files})

    def __repr__(self) -> str:
        """Return the command line and what is special about the files, enough to see what failed."""
        files = [f"{name}={content if len(content) < 60 else content[:50]!r}" for name, content in self.files.items()]
        words = shlex.join(
            word if len(word) < 200 else f"{word[:60]}...({len(word)} characters)" for word in self.words
        )
        more = {"disk": self.disk, "read_only": self.read_only, "gone": self.gone, "base": self.base}
        told = ", ".join(f"{name}={value!r}" for name, value in more.items() if value and value != "empty")
        return f"<{self.group}: orchestrate.py {words} | {told} {' '.join(files)[:400]}>"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command on an input.

    Attributes:
        code: exit status; none if a signal ended the command.
        signal: number of the signal that ended it, or none.
        hung: whether it did not end in time.
        seconds: how long it took.
        out, err: what it wrote to standard output and standard error.
        written: paths that changed outside the workspace.
    """

    code: int | None
    signal: int | None
    hung: bool
    seconds: float
    out: str
    err: str
    written: tuple[str, ...]

    def faults(self, given: Input) -> dict[str, str]:
        """Return the faults by kind (traceback, hang, signal, status, text, json, outside); empty if there are none."""
        lines = self.err.splitlines()
        last = lines[-1] if lines else "(nothing on standard error)"
        faults = {}
        if self.hung:
            return {"hang": f"no end after {self.seconds:.0f} s"}
        if self.signal is not None:
            return {"signal": f"ended by signal {self.signal}: {last}"}
        if "Traceback (most recent call last)" in self.out + self.err or self.code == 70:
            faults["traceback"] = last
        elif self.code not in given.allowed:
            faults["status"] = f"exit {self.code}, allowed {given.allowed}: {last}"
        elif self.code == 2 and (fault := _refusal_fault(lines)):
            faults["text"] = fault
        if self.code == 0 and "--json" in given.words and (fault := _json_fault(self.out)):
            faults["json"] = fault
        if self.written:
            faults["outside"] = f"written outside ERAT_HOME: {', '.join(self.written)[:300]}"
        return faults


def _refusal_fault(lines: Sequence[str]) -> str | None:
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        return f"{len(errors)} lines with an error, {len(lines)} in all, the last: {lines[-1:]}"
    if len(errors[0]) > LONGEST:
        return f"{len(errors[0])} characters: {errors[0][:160]}"
    odd = sorted({char for line in lines for char in line if ord(char) < 32 or 127 <= ord(char) < 160})
    return f"control characters {odd}" if odd else None


def _json_fault(out: str) -> str | None:
    lines = out.splitlines()
    try:
        content = json.loads(lines[0]) if len(lines) == 1 else None
    except ValueError:
        content = None
    return None if isinstance(content, dict | list) else f"not one JSON object: {out[:160]!r}"


class Sandbox:
    """Runs inputs, each in its own folder and in a copy of one process. Create it once, and close it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.mounts: bool = self._answer()["mounts"]
        self.bases: dict[str, Path] = {}
        self._number = 0

    def close(self) -> None:
        """End the server, and remove all folders."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout
        line = self._server.stdout.readline()
        assert line, "the fork server has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, given: Input, *, keep: Path | None = None) -> Outcome:
        """Write the files of an input, run it, and clean up.

        Args:
            keep: where to move the workspace afterwards, so that it becomes a base of other inputs.
        """
        self._number += 1
        place = self.folder / str(self._number)
        self._lay_out(given, place)
        before = dict(_snapshot(place))
        order = {"folder": str(place), "words": given.words, "disk": given.disk, "read_only": given.read_only}
        assert self._server.stdin
        print(json.dumps(order), file=self._server.stdin, flush=True)
        answer = self._answer()
        after = dict(_snapshot(place))
        changed = (name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        out, err = ((place / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        if keep is not None:
            shutil.move(place / "home", keep)
        shutil.rmtree(place, ignore_errors=True)
        return Outcome(**answer, out=out, err=err, written=tuple(sorted(changed)))

    def _lay_out(self, given: Input, place: Path) -> None:
        for part in PARTS:
            (place / part).mkdir(parents=True)
        if given.base != "empty":
            shutil.copytree(self.bases[given.base], place / "home", dirs_exist_ok=True, symlinks=True)
        for name in given.gone:
            _remove(place / name)
        for name, content in given.files.items():
            file = place / name
            _remove(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            if content == FOLDER:
                file.mkdir()
            elif isinstance(content, str):
                file.symlink_to(content.removeprefix(LINK))
            else:
                file.write_bytes(content)


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _snapshot(place: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path, size and time of every file outside the workspace."""
    for part in PARTS[1:]:
        for folder, _, names in os.walk(place / part):
            for name in (*names, "."):
                known = os.lstat(os.path.join(folder, name))
                kept = (0, 0) if name == "." else (known.st_size, known.st_mtime_ns)
                yield os.path.relpath(os.path.join(folder, name), place), kept
