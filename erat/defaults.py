"""Fill in the open values of a configuration that the data set or the corruption decides, and drop unused ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from erat.errors import UserError, shown
from erat.options import DECIDING, CorruptionOptions, Coupling, LabelKind, Setting, fields_of
from erat.paths import user_path
from erat.records import DamagedError, open_regular
from erat.registry import CORRUPTIONS


def fill_coupling(corruption: dict[str, Any]) -> None:
    """Fill in, in place, what follows from the coupling of the two corruptions, before the values of either.

    Without wrong labels nothing is coupled; without a poison only the couplings that decide the labels are of use.

    Raises:
        UserError: the coupling and the kind of label noise contradict each other, or the kind of poison has no such
            coupling.
    """
    data, labels = (str(corruption.get(key, "none")) for key in ("data", "labels"))
    coupling = corruption.get("coupling") or "independent"
    if labels == "none":
        coupling = "independent"
    elif labels in DECIDING:
        if coupling not in ("independent", labels):
            raise UserError(f"corruption.labels must not be {labels} with corruption.coupling={shown(coupling)}")
        coupling = labels
    elif coupling in DECIDING:
        corruption["labels"] = coupling
    elif data == "none" and coupling in get_args(Coupling):
        coupling = "independent"
    if coupling == "bound" and data != "none" and CORRUPTIONS.known(data).towards is None:
        raise UserError(f"corruption.data={data} has no corruption.coupling=bound: it draws images to no class")
    if corruption.get("coupling") is not None or coupling != "independent":
        corruption["coupling"] = coupling
    if coupling == "overlap" and corruption.get("overlap") is None:
        corruption["overlap"] = 1.0
    elif coupling != "overlap":
        corruption["overlap"] = None


def fill_images(corruption: dict[str, Any], setting: Setting, values: int | None = None) -> None:
    """Fill in, in place, the values that follow from the kind of data corruption.

    Keys that the kind does not use are dropped or set to none, so that they do not make two crafted sets out of one.

    Args:
        corruption: the values of the `corruption` section.
        setting: what is customary for the data set.
        values: the number of values of an image, over all channels; None: it is not known yet.

    Raises:
        UserError: the kind is unknown, or does not support a value.
    """
    name = str(corruption.get("data", "none"))
    options = corruption_options(name)
    # Drops options of other kinds only; a key that no kind knows stays and is refused later.
    for key in [key for key in corruption if key not in fields_of(options) and corruption_field(key) is not None]:
        del corruption[key]
    annotator = corruption.get("labels") == "annotator"  # another network of the source's architecture and training
    if name == "none":
        unused = ("norm", "epsilon", "granularity", "source_weights")
        corruption |= dict.fromkeys(unused if annotator else (*unused, "source", "source_epochs")) | {"share": 1.0}
    else:
        kind = CORRUPTIONS.known(name)
        kind.check(corruption)
        if kind.uses == "nothing" and not annotator:
            corruption["source"] = None
        if kind.uses != "trained network":
            corruption["source_weights"] = None
        if not annotator and (kind.uses != "trained network" or corruption.get("source_weights")):
            corruption["source_epochs"] = None
        corruption["norm"] = corruption.get("norm") or kind.norm
        corruption["granularity"] = corruption.get("granularity") or kind.granularities[0]
        if corruption["norm"] == "unbounded":
            corruption["epsilon"] = None
        elif corruption.get("epsilon") is None:
            corruption["epsilon"] = kind.budget(str(corruption["norm"]), setting.epsilon, values)
        corruption |= {key: value for key, value in kind.fill(setting).items() if corruption.get(key) is None}
    _fill_digest(corruption, "source_weights")


def corruption_options(kind: str) -> type[CorruptionOptions]:
    """Return the class of the options of a kind of data corruption, or of "none".

    Raises:
        UserError: there is no such kind.
    """
    return CorruptionOptions if kind == "none" else CORRUPTIONS.known(kind).Options


def corruption_field(key: str, kind: str = "none") -> FieldInfo | None:
    """Return the field `corruption.KEY` of this kind or, if it has no such key, of the first kind that has it.

    Returns None if no kind has such a key. Kinds that must be loaded for their options are asked last.
    """
    mine = fields_of(CORRUPTIONS.known(kind).Options if kind in CORRUPTIONS else CorruptionOptions).get(key)
    if mine is not None:
        return mine
    others = CORRUPTIONS.each(lambda one: fields_of(CORRUPTIONS.known(one).Options).get(key))
    return next((field for field in others if field is not None), None)


def fill_labels(corruption: dict[str, Any]) -> None:
    """Fill in, in place, the values of the `corruption` section that follow from the kind of label corruption.

    Raises:
        UserError: the kind needs a file or a rate that is not given.
    """
    name = str(corruption.get("labels", "none"))
    human = name.startswith("human-") and name in get_args(LabelKind)
    if human and not corruption.get("labels_file"):
        raise UserError(f"corruption.labels={name} needs corruption.labels_file, the .pt file of CIFAR-N's authors")
    if human:
        corruption["rate"] = None
    else:
        corruption["labels_file"] = None
        if name == "none":
            corruption["rate"] = 0.0
        elif corruption.get("rate", 0.6) is None:
            raise UserError(f"corruption.rate must be in [0, 1] for {name} labels, got none")
    if name != "instance":
        corruption["generator"] = None
    _fill_digest(corruption, "labels_file")


def _fill_digest(corruption: dict[str, Any], key: str) -> None:
    """Add the digest of a file next to its path; a digest that is already given (in a stored configuration) is kept."""
    path = corruption.get(key)
    if path is None:
        corruption[f"{key}_digest"] = None
        return
    if corruption.get(f"{key}_digest") is None:
        corruption[f"{key}_digest"] = file_digest(Path(str(path)), f"corruption.{key}")
    # The path is made absolute because workers run in other folders.
    corruption[key] = str(user_path(str(path), f"corruption.{key}"))


def file_digest(path: Path, what: str) -> str:
    """Return 16 hex digits of the SHA-256 of a file's content.

    Args:
        path: the file.
        what: the key that names the file, for the error message.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_regular(user_path(path, what)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"{what} must be a readable file, got {_plain(path)}: {error.strerror}") from error
    except DamagedError as error:
        raise UserError(f"{what} must be a readable file, got {_plain(path)}: {error}") from error


def _plain(path: Path) -> str:
    """Return a path for a one-line message, with control characters escaped."""
    return shown(str(path), 300)[1:-1]
