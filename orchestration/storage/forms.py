"""Schemas of every file and ledger line that a workspace keeps and reads back.

Content that matches no schema is damaged or was written by another program. Fields are optional where an earlier
version did not write them. Fields that no schema names were written by a later version and are left untouched.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

MOST_CELLS = 1_000_000  # runs in one study
_FAR = 1e11  # limit in seconds, both for points in time (since 1970) and for durations: no run takes 3,000 years

Strict = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
Open = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # keeps fields that the schema does not name

# Names of studies become folders, files and tags, hence no slash, no space and no dot or hyphen at the beginning.
Name = Annotated[str, Field(pattern=r"^[^-./\\\s\p{C}][^/\\\s\p{C}]{0,99}$")]
Cell = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=_FAR)]
Number = Annotated[int, Field(ge=0, le=10**10)]
AnyNumber = Annotated[float, Field(allow_inf_nan=True)] | None  # None and infinite or NaN values are ignored later


class Result(TypedDict, total=False):
    """How a run ended: the fields of `erat.result.RunResult`. Accuracies in [0, 1], times in seconds."""

    __pydantic_config__ = Open  # type: ignore[misc]
    cell: Cell
    status: Literal["done", "stopped", "failed", "paused"]
    epochs: Count
    val_accuracy: Share | None
    best_val_accuracy: Share | None
    final_test_accuracy: Share | None
    best_val_test_accuracy: Share | None
    train_seconds: Seconds
    peak_memory_mb: Annotated[float, Field(ge=0)]
    device: str | None
    noise_rate: Share | None
    checksum: str | None
    error: str | None
    val_history: list[Share]
    mlflow_run_id: str | None
    attempt: Count | None


class Specification(TypedDict):
    """What `StudySpec.content` writes. Its parts are validated by their own models when they are used."""

    __pydantic_config__ = Open  # type: ignore[misc]
    space: dict[str, Any]
    preset: str
    overrides: dict[str, Any]
    images: NotRequired[dict[str, str]]
    edition: NotRequired[int]


class StudyEvent(TypedDict):
    """Ledger event: a study was begun or extended."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["sweep"]
    name: Name
    spec: dict[str, Any]
    trials: Annotated[int, Field(ge=0, le=MOST_CELLS)]
    window: NotRequired[Annotated[int, Field(ge=1, le=MOST_CELLS)]]  # of the trials by which this extends the search
    time: NotRequired[Seconds | None]


class WithdrawnEvent(TypedDict):
    """Ledger event: a study in which nothing was tried was removed, and its name is free again."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["withdrawn"]
    sweep: Name


class ProposedEvent(TypedDict):
    """Ledger event: a trial was added to a study."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["proposed"]
    sweep: Name
    number: Number
    params: dict[str, Any]
    source: str
    cell: Cell


class EndEvent(TypedDict):
    """Ledger event: a run ended."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["done", "stopped", "failed"]
    cell: Cell
    result: Result
    sweep: NotRequired[Name | None]
    error: NotRequired[str | None]
    time: NotRequired[Seconds | None]


class PausedEvent(TypedDict):
    """Ledger event: a trial reached a rung, and waits there for the trials of its block."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["paused"]
    sweep: Name
    cell: Cell
    result: Result
    error: NotRequired[str | None]
    time: NotRequired[Seconds | None]


class PromotedEvent(TypedDict):
    """Ledger event: a trial was among the best of its block at a rung, and goes on from its checkpoint."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["promoted"]
    sweep: Name
    number: Number
    epoch: Annotated[int, Field(ge=1, le=10**9)]


class TrackedEvent(TypedDict):
    """Ledger event: a run of a study has its run in MLflow, which later sessions continue."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["tracked"]
    sweep: Name
    cell: Cell
    mlflow_run_id: Annotated[str, Field(min_length=1, max_length=200)]


class RetryEvent(TypedDict):
    """Ledger event: a failed run is to be repeated."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["retry"]
    cell: Cell


class PlaceEvent(TypedDict):
    """Ledger event: a study excludes a GPU or a node, in which workers died, or uses it again."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["place"]
    sweep: Name
    where: Annotated[str, Field(min_length=1, max_length=300)]
    out: Annotated[str, Field(max_length=1000)] | None
    time: NotRequired[Seconds | None]


class SnapshotHead(TypedDict):
    """First line of a ledger's snapshot: of which bytes of the ledger it is, and what follows."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    form: Literal[2]
    bytes: Annotated[int, Field(ge=0)]
    lines: Annotated[int, Field(ge=0)]
    foreign: Annotated[int, Field(ge=0)]
    first_foreign: str
    ledger: str  # SHA-256 of these bytes of the ledger
    body: str  # SHA-256 of all other lines of the snapshot


class SnapshotIndex(TypedDict):
    """Second line of a snapshot: which lines follow, in this order."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    studies: list[tuple[Name, Annotated[int, Field(ge=1)]]]  # each study and the number of its lines
    ended: list[list[Cell]]  # for each line of results outside the studies, whose they are


class StudyPart(TypedDict):
    """Line of a snapshot: a study, without its trials and results."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    part: Literal["study"]
    name: Name
    spec: dict[str, Any]
    trials: Annotated[int, Field(ge=0, le=MOST_CELLS)]
    began: Seconds | None
    promoted: list[tuple[Number, Count]]
    tracked: dict[Cell, str]
    totals: list[Annotated[int, Field(ge=0, le=MOST_CELLS)]]
    out: dict[str, str]
    windows: list[tuple[Count, Count]]


class TrialsPart(TypedDict):
    """Line of a snapshot: trials of a study, a list for each field."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    part: Literal["trials"]
    study: Name
    number: list[Number]
    cell: list[Cell]
    params: list[dict[str, Any] | None]  # None: those of the listed run with this number
    source: list[str]


class ResultsPart(TypedDict):
    """Line of a snapshot: results, a list for each field of `RecordedResult`; without a study, how runs ended."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    part: Literal["ended", "stopped", "paused"]
    study: Name | None
    cell: list[Cell]
    status: list[Literal["done", "stopped", "failed", "paused"]]
    epochs: list[Count]
    val_accuracy: list[Share | None]
    best_val_accuracy: list[Share | None]
    final_test_accuracy: list[Share | None]
    best_val_test_accuracy: list[Share | None]
    train_seconds: list[Seconds]
    peak_memory_mb: list[Annotated[float, Field(ge=0)]]
    noise_rate: list[Share | None]
    checksum: list[str | None]
    error: list[str | None]
    val_history: list[list[Share]]
    device: list[str | None]
    mlflow_run_id: list[str | None]
    time: list[Seconds | None]
    sweep: list[Name | None]


class EpochRow(TypedDict):
    """One line of metrics.jsonl: the fields of `EpochReport` for one epoch, counted from 1."""

    __pydantic_config__ = Open  # type: ignore[misc]
    epoch: Annotated[int, Field(ge=1, le=10**9)]
    val_accuracy: Share
    test_accuracy: Share
    epoch_seconds: Seconds
    train_loss: NotRequired[float]
    selection_precision: NotRequired[Share]
    selection_recall: NotRequired[Share]
    labelled_fraction: NotRequired[Share]
    images_per_second: NotRequired[float]
    learning_rate: NotRequired[float]
    noise_caught: NotRequired[Share | None]
    pseudo_label_accuracy: NotRequired[Share | None]
    loss_terms: NotRequired[dict[str, AnyNumber]]
    numbers: NotRequired[dict[str, AnyNumber]]


class LeaseRecord(TypedDict):
    """Content of a file `leases/RUN/NUMBER` on a storage: who holds the run, and whether it still does."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    attempt: Count
    token: str
    session: str
    host: str
    process: Count
    machine: str
    started: Seconds
    beats: Count
    over: bool


class Environment(TypedDict, total=False):
    """Content of artifacts/environment.json: the code and the machine of a finished run."""

    __pydantic_config__ = Open  # type: ignore[misc]
    python: str
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool
    platform: str
    cores: int | None
    device: str


class SelectedEpoch(TypedDict, total=False):
    """What the defense selected in one epoch: numbers of images, one per class."""

    __pydantic_config__ = Open  # type: ignore[misc]
    epoch: Count
    labelled_per_class: list[Count]
    correct_per_class: list[Count]
    wrong_per_class: list[Count]
    caught_per_class: list[Count]
    pseudo_label_accuracy: Share | None


class Selection(TypedDict):
    """Content of artifacts/selection.json: what the defense selected in each epoch."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    classes: list[str]
    epochs: list[SelectedEpoch]


class Confusion(TypedDict):
    """Content of artifacts/confusion.json: test image counts; rows are true classes, columns predicted classes."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    classes: list[str]
    counts: list[list[Count]]


EVENTS: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        StudyEvent
        | WithdrawnEvent
        | ProposedEvent
        | EndEvent
        | PausedEvent
        | PromotedEvent
        | TrackedEvent
        | RetryEvent
        | PlaceEvent,
        Field(discriminator="event"),
    ]
)
SNAPSHOT_HEAD = TypeAdapter(SnapshotHead)
SNAPSHOT_INDEX = TypeAdapter(SnapshotIndex)
SNAPSHOT_PART: TypeAdapter[Any] = TypeAdapter(
    Annotated[StudyPart | TrialsPart | ResultsPart, Field(discriminator="part")]
)
RESULT = TypeAdapter(Result)
LEASE = TypeAdapter(LeaseRecord)
SPECIFICATION = TypeAdapter(Specification)
EPOCH_ROW = TypeAdapter(EpochRow)
ENVIRONMENT, SELECTION, CONFUSION = TypeAdapter(Environment), TypeAdapter(Selection), TypeAdapter(Confusion)
# Progress of the crafting of a data set: a description, the number of steps done, the number of steps in all.
PROGRESS: TypeAdapter[tuple[str, int, int]] = TypeAdapter(
    tuple[str, Count, Annotated[int, Field(ge=1, le=10**9)]], config=ConfigDict(strict=True)
)
_DONE = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")


def lacks(result: Mapping[str, Any], status: str) -> str | None:
    """Return what is wrong with `result` as the result of a run that ended with `status`, or None if it is complete.

    A run that is "done" must have at least one epoch and all four accuracies; any result must not name another status.
    """
    if result.get("status", status) != status:
        return f"result.status must be {status}, got {result['status']}"
    missing = [key for key in _DONE if result.get(key) is None] if status == "done" else []
    if status == "done" and not result.get("epochs"):
        missing.insert(0, "epochs")
    return f"a finished result needs {missing[0]}" if missing else None


def warn_damaged(path: Path, reason: str, then: str) -> None:
    """Warn in one line that a stored file is damaged, for what reason, and what happens instead (`then`)."""
    warnings.warn(f"{path} is damaged ({reason}): {then}", stacklevel=3)
