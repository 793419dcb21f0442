"""The snapshot of a ledger: what its first part says, by study, in a form that is read several times as fast.

It is a file beside the ledger, `ledger.jsonl.snapshot`. The ledger alone counts: a snapshot names the SHA-256 of the
bytes that it stands for, and one that is missing, damaged, of another version or of other bytes is passed over, so that
the ledger is read from its beginning. It is written by whoever reads a long ledger, in one piece; a kill meanwhile
leaves the snapshot from before.

The first line is a head, the second one says what follows. Each other line holds a study, or some thousand trials or
results with a list for each field. A study's lines follow each other, and a reader takes in those of a study that it
asks for, and those with the result of a run that it asks for; of the rest it knows the names. A parameter list that is
that of the study's specification is not repeated. `orchestration.storage.forms` has the schemas.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import to_json

from erat.files import write_atomic
from erat.records import DamagedError, open_regular
from orchestration.storage.forms import SNAPSHOT_HEAD, SNAPSHOT_INDEX, SNAPSHOT_PART
from orchestration.study.recorded import RecordedResult, StudyRecord
from orchestration.study.trial import NO_CONFIG, Trial

WORTH = 2**23  # bytes of a ledger that are read in a fifth of a second or more
SHARE = 8  # a snapshot is renewed when the ledger has grown by one part in so many, so that all writing stays linear
ROWS = 5_000  # trials or results in a line
_MOST_LINE = 2**27  # bytes; a study's line of the ledger, of at most half as many, becomes one of these
_CHUNK = 2**20
_FIELDS = tuple(entry.name for entry in fields(RecordedResult))


T = TypeVar("T")


class Records(MutableMapping[str, T]):
    """A mapping in the order in which its keys came, some of whose values are read when one of them is asked for.

    Args:
        known: key -> its value, or what reads it together with others.

    Attributes:
        anew: called if what is to be read turns out to be of another form; it puts all values into this mapping.
    """

    def __init__(self, known: Mapping[str, T | _Later[T]] | None = None) -> None:
        self._known: dict[str, T | _Later[T]] = dict(known or {})
        self.anew: Callable[[], None] | None = None

    def __getitem__(self, key: str) -> T:
        found = self._known[key]
        if not isinstance(found, _Later):
            return found
        try:
            loaded = found.load()
        except (OSError, DamagedError, ValidationError, KeyError, ValueError):
            if self.anew is None:
                raise
            self.anew()
            return self[key]
        for name, value in loaded.items():
            if self._known.get(name) is found:  # else, it has changed since
                self._known[name] = value
        return loaded[key]

    def __setitem__(self, key: str, value: T) -> None:
        self._known[key] = value

    def __delitem__(self, key: str) -> None:
        del self._known[key]

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))  # reading one may change the values

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:  # that of the base class would read every value
        self._known.clear()

    def load(self) -> None:
        """Read whatever has not been read."""
        for key in self:
            self[key]


@dataclass(frozen=True, eq=False)
class _Later(Generic[T]):
    """Values that are still in the file: how they are read, by their keys."""

    load: Callable[[], dict[str, T]]


@dataclass(frozen=True)
class Snapshot:
    """What the first part of a ledger says.

    Attributes:
        studies: name of a study -> the study.
        outcomes: digest of a run -> how it ended.
        digest: the running SHA-256 of these bytes.
        place: number of the bytes, of their lines, and of those lines that are no events; what is wrong with the first.
    """

    studies: Records[StudyRecord]
    outcomes: Records[RecordedResult]
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
            first, body = file.readline(_MOST_LINE), hashlib.sha256()
            body.update(first)
            lines = _Lines(os.dup(file.fileno()), [file.tell()])
            while line := file.readline(_MOST_LINE):
                body.update(line)
                lines.starts.append(file.tell())
        if body.hexdigest() != head["body"]:
            return None
        index = SNAPSHOT_INDEX.validate_json(first)
    except (OSError, DamagedError, ValidationError):
        return None
    numbers = iter(range(len(lines.starts) - 1))
    studies: dict[str, StudyRecord | _Later[StudyRecord]] = {}
    for name, count in index["studies"]:
        studies[name] = _Later(partial(_study, lines, name, list(islice(numbers, count))))
    outcomes: dict[str, RecordedResult | _Later[RecordedResult]] = {}
    for cells, number in zip(index["ended"], numbers, strict=False):
        outcomes |= dict.fromkeys(cells, _Later(partial(_ended, lines, cells, number)))
    place = (head["bytes"], head["lines"], head["foreign"], head["first_foreign"])
    return Snapshot(Records(studies), Records(outcomes), digest, place)


class _Lines:
    """The lines of a snapshot that is open, even if another one has taken its place since.

    Args:
        descriptor: the open file, which is closed together with this object.
        starts: where each line begins, and where the last one ends.
    """

    def __init__(self, descriptor: int, starts: list[int]) -> None:
        self.starts, self._descriptor = starts, descriptor
        weakref.finalize(self, os.close, descriptor)

    def part(self, number: int) -> dict[str, Any]:
        """Return a line, counted from 0 after the index."""
        start, end = self.starts[number], self.starts[number + 1]
        made: dict[str, Any] = SNAPSHOT_PART.validate_json(os.pread(self._descriptor, end - start, start))
        return made


def _study(lines: _Lines, name: str, numbers: Sequence[int]) -> dict[str, StudyRecord]:
    """Return a study, by its name, from its lines.

    Raises:
        KeyError, ValueError: They are of another study, or their lists differ in length.
    """
    first, *others = [lines.part(number) for number in numbers]
    known = {key: first[key] for key in ("name", "spec", "trials", "began", "tracked", "totals", "out")}
    known |= {key: dict(first[key]) for key in ("promoted", "windows")}
    made = StudyRecord(**known)
    listed = _listed(made)
    while others:
        part = others.pop(0)  # so that no more of it is held than what is made of it
        if part["study"] != name or made.name != name:
            raise ValueError(f"a line of {part['study']} stands among those of {name}")
        if part["part"] == "trials":
            columns = (part[key] for key in ("number", "cell", "params", "source"))
            for number, cell, params, source in zip(*columns, strict=True):
                own = listed[number] if params is None else params
                made.proposals[number] = Trial(number, cell, own, source, NO_CONFIG)
        else:
            (made.stopped if part["part"] == "stopped" else made.paused).update(_rows(part))
    return {name: made}


def _ended(lines: _Lines, cells: Sequence[str], number: int) -> dict[str, RecordedResult]:
    part = lines.part(number)
    if part["part"] != "ended" or part["cell"] != cells:
        raise ValueError("the results are not those of the index")
    return dict(_rows(part))


def _rows(part: Mapping[str, Any]) -> Iterator[tuple[str, RecordedResult]]:
    rows = zip(*(part[name] for name in _FIELDS), strict=True)
    return zip(part["cell"], (RecordedResult(*row) for row in rows), strict=True)


def _listed(study: StudyRecord) -> Sequence[dict[str, Any]]:
    """Return the listed runs of a study, as far as its specification has them where it should."""
    space = study.spec.get("space")
    listed = space.get("baselines") if isinstance(space, Mapping) else None
    return listed if isinstance(listed, list) and all(isinstance(run, dict) for run in listed) else ()


def _digest_of(ledger: Path, count: int) -> Any:
    """Return the running SHA-256 of the first `count` bytes of a ledger, or None if it has fewer."""
    digest = hashlib.sha256()
    with open_regular(ledger) as file:
        while count and (chunk := file.read(min(count, _CHUNK))):
            digest.update(chunk)
            count -= len(chunk)
    return None if count else digest


def write(ledger: Path, made: Snapshot) -> None:
    """Write the snapshot of a ledger, in place of the one before. Do nothing if the folder cannot be written."""
    count, lines, foreign, first_foreign = made.place
    studies = {name: [_line(part) for part in _parts(study)] for name, study in made.studies.items()}
    ended = list(_some(made.outcomes.values()))
    index = {
        "studies": [(name, len(parts)) for name, parts in studies.items()],
        "ended": [[result.cell for result in some] for some in ended],
    }
    content = [_line(index), *(line for parts in studies.values() for line in parts)]
    content += [_line(_results("ended", None, some)) for some in ended]
    body = hashlib.sha256()
    for line in content:
        body.update(line)
    head = {
        "form": 2,
        "bytes": count,
        "lines": lines,
        "foreign": foreign,
        "first_foreign": first_foreign,
        "ledger": made.digest.hexdigest(),
        "body": body.hexdigest(),
    }
    with suppress(OSError):
        write_atomic(path_of(ledger), b"".join([_line(head), *content]))


def _line(part: Mapping[str, Any]) -> bytes:
    return to_json(part, inf_nan_mode="constants") + b"\n"


def _parts(study: StudyRecord) -> Iterator[dict[str, Any]]:
    pairs = {"promoted": list(study.promoted.items()), "windows": list(study.windows.items())}
    known = {"spec": study.spec, "trials": study.trials, "began": study.began, "tracked": study.tracked}
    yield {"part": "study", "name": study.name, "totals": study.totals, "out": study.out} | known | pairs
    listed = _listed(study)
    for trials in _some(study.proposals.values()):
        columns = _columns(trials, ("number", "cell", "source"))
        params = [None if _is_listed(trial, listed) else trial.params for trial in trials]
        yield {"part": "trials", "study": study.name, "params": params} | columns
    for kind, results in (("stopped", study.stopped), ("paused", study.paused)):
        yield from (_results(kind, study.name, some) for some in _some(results.values()))


def _is_listed(trial: Trial, listed: Sequence[dict[str, Any]]) -> bool:
    """Return whether a trial's values are those of the listed run with its number, each of the same type."""
    known = listed[trial.number] if trial.number < len(listed) else None
    return trial.params == known and repr(trial.params) == repr(known)


def _results(kind: str, study: str | None, results: Sequence[RecordedResult]) -> dict[str, Any]:
    return {"part": kind, "study": study} | _columns(results, _FIELDS)


def _some(entries: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(entries)
    yield from (every[start : start + ROWS] for start in range(0, len(every), ROWS))


def _columns(entries: Sequence[Any], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [getattr(entry, name) for entry in entries] for name in names}
