"""The snapshot of a ledger: what its first part says, in a form that is read several times as fast.

It is a file beside the ledger, `ledger.jsonl.snapshot`. The ledger alone counts: a snapshot names the SHA-256 of the
bytes that it stands for, and one that is missing, damaged, of another version or of other bytes is passed over, so that
the ledger is read from its beginning. It is written by whoever reads a long ledger, in one piece; a kill meanwhile
leaves the snapshot from before.

The first line is a head; each other one holds a study, or some thousand trials or results with a list for each field.
`orchestration.storage.forms` has the schemas.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from erat.files import write_atomic
from erat.records import DamagedError, open_regular
from orchestration.storage.forms import SNAPSHOT_HEAD, SNAPSHOT_PART
from orchestration.study.recorded import RecordedResult, StudyRecord
from orchestration.study.trial import NO_CONFIG, Trial

WORTH = 2**23  # bytes of a ledger that are read in a fifth of a second or more
SHARE = 8  # a snapshot is renewed when the ledger has grown by one part in so many, so that all writing stays linear
ROWS = 5_000  # trials or results in a line
_MOST_LINE = 2**27  # bytes; a study's line of the ledger, of at most half as many, becomes one of these
_CHUNK = 2**20
_FIELDS = tuple(entry.name for entry in fields(RecordedResult))


@dataclass(frozen=True)
class Snapshot:
    """What the first part of a ledger says.

    Attributes:
        studies: name of a study -> the study.
        outcomes: digest of a run -> how it ended.
        digest: the running SHA-256 of these bytes.
        place: number of the bytes, of their lines, and of those lines that are no events; what is wrong with the first.
    """

    studies: dict[str, StudyRecord]
    outcomes: dict[str, RecordedResult]
    digest: Any
    place: tuple[int, int, int, str]


def path_of(ledger: Path) -> Path:
    """Return the path of a ledger's snapshot."""
    return ledger.with_name(f"{ledger.name}.snapshot")


def is_there(ledger: Path) -> bool:
    """Return whether a ledger has a snapshot, whatever it is worth."""
    return os.path.lexists(path_of(ledger))


def is_due(before: int, now: int) -> bool:
    """Return whether a snapshot of `now` bytes is worth writing, where the last one has `before` bytes."""
    return now - before >= max(WORTH, before // SHARE)


def read(ledger: Path) -> Snapshot | None:
    """Return the snapshot of a ledger, or None if there is none that is whole and of the ledger's own bytes."""
    if not is_there(ledger):
        return None
    try:
        with open_regular(path_of(ledger)) as file:
            head = SNAPSHOT_HEAD.validate_json(file.readline(_CHUNK))
            digest = _digest_of(ledger, head["bytes"])
            if digest is None or digest.hexdigest() != head["ledger"]:
                return None
            place = (head["bytes"], head["lines"], head["foreign"], head["first_foreign"])
            made, body = Snapshot({}, {}, digest, place), hashlib.sha256()
            while line := file.readline(_MOST_LINE):
                body.update(line)
                _take_in(made, SNAPSHOT_PART.validate_json(line))
    except (OSError, DamagedError, ValidationError, KeyError, ValueError):
        return None
    return made if body.hexdigest() == head["body"] else None


def _digest_of(ledger: Path, count: int) -> Any:
    """Return the running SHA-256 of the first `count` bytes of a ledger, or None if it has fewer."""
    digest = hashlib.sha256()
    with open_regular(ledger) as file:
        while count and (chunk := file.read(min(count, _CHUNK))):
            digest.update(chunk)
            count -= len(chunk)
    return None if count else digest


def _take_in(made: Snapshot, part: dict[str, Any]) -> None:
    """Add a line of a snapshot.

    Raises:
        KeyError, ValueError: It belongs to no study before it, or its lists differ in length.
    """
    match part["part"]:
        case "study":
            known = {name: part[name] for name in ("name", "spec", "trials", "began", "tracked", "totals", "out")}
            known |= {name: dict(part[name]) for name in ("promoted", "windows")}
            made.studies[part["name"]] = StudyRecord(**known)
        case "trials":
            proposals = made.studies[part["study"]].proposals
            columns = (part[name] for name in ("number", "cell", "params", "source"))
            for number, cell, params, source in zip(*columns, strict=True):
                proposals[number] = Trial(number, cell, params, source, NO_CONFIG)
        case kind:
            study = None if part["study"] is None else made.studies[part["study"]]
            results = made.outcomes if study is None else study.stopped if kind == "stopped" else study.paused
            rows = zip(*(part[name] for name in _FIELDS), strict=True)
            results.update(zip(part["cell"], (RecordedResult(*row) for row in rows), strict=True))


def write(ledger: Path, made: Snapshot) -> None:
    """Write the snapshot of a ledger, in place of the one before. Do nothing if the folder cannot be written."""
    count, lines, foreign, first_foreign = made.place
    content = bytearray()
    for part in _parts(made):
        content += to_json(part, inf_nan_mode="constants") + b"\n"
    head = {
        "form": 1,
        "bytes": count,
        "lines": lines,
        "foreign": foreign,
        "first_foreign": first_foreign,
        "ledger": made.digest.hexdigest(),
        "body": hashlib.sha256(content).hexdigest(),
    }
    with suppress(OSError):
        write_atomic(path_of(ledger), to_json(head) + b"\n" + bytes(content))


def _parts(made: Snapshot) -> Iterator[dict[str, Any]]:
    for name, study in made.studies.items():
        pairs = {"promoted": list(study.promoted.items()), "windows": list(study.windows.items())}
        known = {"spec": study.spec, "trials": study.trials, "began": study.began, "tracked": study.tracked}
        yield {"part": "study", "name": name, "totals": study.totals, "out": study.out} | known | pairs
        for trials in _some(study.proposals.values()):
            yield {"part": "trials", "study": name} | _columns(trials, ("number", "cell", "params", "source"))
        for kind, results in (("stopped", study.stopped), ("paused", study.paused)):
            yield from _results(kind, name, results.values())
    yield from _results("ended", None, made.outcomes.values())


def _results(kind: str, study: str | None, results: Iterable[RecordedResult]) -> Iterator[dict[str, Any]]:
    for some in _some(results):
        yield {"part": kind, "study": study} | _columns(some, _FIELDS)


def _some(entries: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(entries)
    yield from (every[start : start + ROWS] for start in range(0, len(every), ROWS))


def _columns(entries: Sequence[Any], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [getattr(entry, name) for entry in entries] for name in names}
