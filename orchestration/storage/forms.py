"""The form of every file and line that a workspace keeps and reads back. What has another form is damaged, or foreign.

Fields that are missing here and there come of earlier versions; those that no model names, of later ones: they stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

MOST_CELLS = 1_000_000  # of one study
_FAR = 1e11  # seconds since 1970; and of work: no run takes 3,000 years

Strict = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
Open = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # fields without a model stay

# Names become folders, files and tags: no slash, nothing hidden.
Name = Annotated[str, Field(pattern=r"^[^-./\\\s\p{C}][^/\\\s\p{C}]{0,99}$")]
Cell = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=_FAR)]
Number = Annotated[int, Field(ge=0, le=2 * MOST_CELLS)]
AnyNumber = Annotated[float, Field(allow_inf_nan=True)] | None  # not finite, or none: it is passed over


class Result(TypedDict, total=False):
    """How a cell ended: the fields of `erat.result.RunResult`."""

    __pydantic_config__ = Open  # type: ignore[misc]
    cell: Cell
    status: Literal["done", "stopped", "failed"]
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


class Specification(TypedDict):
    """What `StudySpec.content` writes; the parts have models of their own, which look at them when they are used."""

    __pydantic_config__ = Open  # type: ignore[misc]
    space: dict[str, Any]
    preset: str
    overrides: dict[str, Any]
    images: NotRequired[dict[str, str]]


class StudyEvent(TypedDict):
    """A sweep was begun, or extended."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["sweep"]
    name: Name
    spec: dict[str, Any]
    trials: Annotated[int, Field(ge=0, le=MOST_CELLS)]
    time: NotRequired[Seconds | None]


class WithdrawnEvent(TypedDict):
    """A sweep's name was given back."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["withdrawn"]
    sweep: Name


class ProposedEvent(TypedDict):
    """A trial of a sweep was made."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["proposed"]
    sweep: Name
    number: Number
    params: dict[str, Any]
    source: str
    cell: Cell


class EndEvent(TypedDict):
    """A cell ended."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["done", "stopped", "failed"]
    cell: Cell
    result: Result
    sweep: NotRequired[Name | None]
    error: NotRequired[str | None]
    time: NotRequired[Seconds | None]


class RetryEvent(TypedDict):
    """A failed cell is to run again."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    event: Literal["retry"]
    cell: Cell


class EpochRow(TypedDict):
    """A line of metrics.jsonl: fields of `EpochReport`."""

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


class Environment(TypedDict, total=False):
    """artifacts/environment.json: code and machine of a finished cell."""

    __pydantic_config__ = Open  # type: ignore[misc]
    python: str
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool
    platform: str
    cores: int | None
    device: str


class SelectedEpoch(TypedDict, total=False):
    """What an epoch selected, a count per class."""

    __pydantic_config__ = Open  # type: ignore[misc]
    epoch: Count
    labelled_per_class: list[Count]
    correct_per_class: list[Count]
    wrong_per_class: list[Count]
    caught_per_class: list[Count]
    pseudo_label_accuracy: Share | None


class Selection(TypedDict):
    """artifacts/selection.json."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    classes: list[str]
    epochs: list[SelectedEpoch]


class Confusion(TypedDict):
    """artifacts/confusion.json: rows are true classes, columns predicted ones."""

    __pydantic_config__ = Strict  # type: ignore[misc]
    classes: list[str]
    counts: list[list[Count]]


EVENTS: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        StudyEvent | WithdrawnEvent | ProposedEvent | EndEvent | RetryEvent,
        Field(discriminator="event"),
    ]
)
RESULT = TypeAdapter(Result)
SPECIFICATION = TypeAdapter(Specification)
EPOCH_ROW = TypeAdapter(EpochRow)
ENVIRONMENT, SELECTION, CONFUSION = TypeAdapter(Environment), TypeAdapter(Selection), TypeAdapter(Confusion)
# How far a crafting is: what, done, total.
PROGRESS: TypeAdapter[tuple[str, int, int]] = TypeAdapter(
    tuple[str, Count, Annotated[int, Field(ge=1, le=10**9)]], config=ConfigDict(strict=True)
)
_DONE = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")


def lacks(result: Mapping[str, Any], status: str) -> str | None:
    """Return what a result lacks to count as one that ended so; none if it has everything."""
    if result.get("status", status) != status:
        return f"result.status must be {status}, got {result['status']}"
    missing = [key for key in _DONE if result.get(key) is None] if status == "done" else []
    if status == "done" and not result.get("epochs"):
        missing.insert(0, "epochs")
    return f"a finished result needs {missing[0]}" if missing else None


def warn_damaged(path: Path, reason: str, then: str) -> None:
    """Warn in one line of a stored file that cannot be used."""
    warnings.warn(f"{path} is damaged ({reason}): {then}", stacklevel=3)
