"""Read the labels of human annotators: CIFAR-10N and CIFAR-100N.

Source: Wei et al., "Learning with Noisy Labels Revisited", ICLR 2022. The user provides the authors' file
(`CIFAR-10_human.pt` or `CIFAR-100_human.pt`), whose labels are in the order in which torchvision reads the training
set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from erat.corruption.labels import LabelNoise, noise_of
from erat.data.types import ImageSet
from erat.defaults import file_digest
from erat.errors import UserError

# Name in a configuration -> name in the authors' files.
COLUMNS = {
    "human-aggregate": "aggre_label",
    "human-random1": "random_label1",
    "human-random2": "random_label2",
    "human-random3": "random_label3",
    "human-worst": "worse_label",
    "human-fine": "noisy_label",
}


def human_labels(kind: str, images: ImageSet, path: Path, digest: str | None) -> LabelNoise:
    """Return the human labels of an image set.

    Args:
        kind: one of COLUMNS ("human-fine" is CIFAR-100N, the others are CIFAR-10N).
        images: the set with its true labels, either the whole training set or a part of it.
        path: the file of the labels.
        digest: the digest that the content of the file must have (`file_digest`).

    Raises:
        UserError: the file is missing, damaged or changed, has no such labels, or belongs to another set.
    """
    what = "corruption.labels_file"
    if file_digest(path, what) != digest:
        raise UserError(f"{what}={path} is not the file that this run was planned with: its content has changed")
    content = _read(path)
    column = COLUMNS[kind]
    if column not in content or "clean_label" not in content:
        held = ", ".join(name for name, ours in COLUMNS.items() if ours in content) or "none of them"
        raise UserError(f"{what}={path} has no {kind} labels; it has {held}")
    given, clean = (_classes(content[name], images.num_classes) for name in (column, "clean_label"))
    if given is None or clean is None:
        allowed = f"classes from 0 to {images.num_classes - 1}"
        raise UserError(f"{what}={path} must hold {allowed} as {kind} and as true labels; it has others")
    true = images.labels.cpu().numpy()
    rows = np.arange(len(true)) if images.rows is None else images.rows.cpu().numpy()
    if len(clean) != len(given) or rows.max() >= len(clean) or not np.array_equal(clean[rows], true):
        raise UserError(f"{what}={path} is of another data set, or in another order: its true labels are not these")
    return noise_of(images.labels, given[rows], images.num_classes)


def _classes(values: Any, num_classes: int) -> NDArray[np.int64] | None:
    """Return the values as whole numbers from 0 to K - 1, int64 (N,); None if any of them is not such a number."""
    try:
        numbers = np.asarray(values, dtype=np.float64).ravel()
    except (ValueError, TypeError):
        return None
    whole = (numbers >= 0) & (numbers < num_classes) & (numbers == np.floor(numbers))
    return numbers.astype(np.int64) if whole.all() else None


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the file by name. Only arrays are unpickled; no code in the file is run."""
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    kinds = [type(np.dtype(code)) for code in ("i8", "i4", "u1")]
    # The authors' files were written by numpy 1, which had another name for the same function.
    allowed = [np.ndarray, np.dtype, rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), *kinds]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any error, and torch's advice would mislead here
        reason = type(error).__name__
        raise UserError(f"corruption.labels_file={path} cannot be read as CIFAR-N's .pt file: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"corruption.labels_file={path} must hold named labels, got {type(content).__name__}")
    return content
