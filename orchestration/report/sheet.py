"""Draws the sheet of `craft --preview`: clean images, perturbations, corrupted images, and how classes are labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from erat.data.types import CorruptedSet, ImageSet
from orchestration.report import marks

MOST_CLASSES = 10
IMAGES_PER_CLASS = 2
ANNOTATED_CLASSES = 12  # the heat map shows its numbers for up to this many classes
CELL_INCHES, LABEL_INCHES = 0.42, 0.9


@dataclass(frozen=True)
class Band:
    """The part of a sheet for one corruption; `data` was made from `clean`, image by image."""

    name: str
    clean: ImageSet
    data: CorruptedSet


@matplotlib.rc_context(marks.STYLE)
def preview_sheet(bands: Sequence[Band], path: Path) -> Path:
    """Write the sheet as a PNG.

    Args:
        bands: at least one band, all of the same images; the heat map shows the label noise of the first.
        path: where to write it.

    Returns:
        `path`.
    """
    first = bands[0]
    columns = len(_chosen(first.clean))
    sizes = [3 * CELL_INCHES + 0.35] * len(bands) + [4.0]
    figure = Figure(figsize=(columns * CELL_INCHES + LABEL_INCHES, sum(sizes)), layout="constrained")
    axes = figure.subplots(len(sizes), 1, height_ratios=sizes)
    for place, band in zip(axes, bands, strict=False):
        _draw_band(place, band)
    _draw_transition(axes[-1], first.data.manifest["labels"], first.clean.class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _chosen(images: ImageSet) -> Tensor:
    """Return the indices of the first images of each class, or of evenly spread classes if there are many."""
    classes = np.unique(np.linspace(0, images.num_classes - 1, min(images.num_classes, MOST_CLASSES)).round())
    rows = [torch.nonzero(images.labels == int(k)).squeeze(1)[:IMAGES_PER_CLASS] for k in classes]
    return torch.cat(rows)


def _draw_band(axes: Axes, band: Band) -> None:
    rows = _chosen(band.clean)
    clean, corrupted = (part.images[rows].double() / 255 for part in (band.clean, band.data.train))
    delta = corrupted - clean
    largest = float(delta.abs().max())
    times = 0.5 / largest if largest else 1.0
    pictures = torch.cat([clean, 0.5 + times * delta, corrupted])
    axes.imshow(_mosaic(pictures, len(rows)), interpolation="nearest", **_grey(pictures))
    side = pictures.shape[-1] + 1
    axes.set_yticks([(line + 0.5) * side for line in range(3)], ["clean", f"perturbation ×{times:.3g}", "corrupted"])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    manifest: dict[str, Any] = band.data.manifest["images"]
    reached = f"norm reached {manifest['mean_norm']:.3g} mean, {manifest['max_norm']:.3g} max · "
    axes.set_title(f"{band.name} · {reached}{manifest['poisoned_share']:.1%} of the images poisoned", loc="left")


def _mosaic(pictures: Tensor, columns: int) -> NDArray[Any]:
    """Join images (3 * columns, C, H, W) to a picture of three lines, a white pixel apart; (H', W') or (H', W', 3)."""
    padded = torch.nn.functional.pad(pictures, (0, 1, 0, 1), value=1.0)
    lines = [torch.cat(list(line), dim=2) for line in padded.split(columns)]
    whole: NDArray[Any] = torch.cat(lines, dim=1).permute(1, 2, 0).clamp(0, 1).numpy()
    return whole[..., 0] if whole.shape[-1] == 1 else whole


def _grey(pictures: Tensor) -> dict[str, Any]:
    return {"cmap": "gray", "vmin": 0, "vmax": 1} if pictures.shape[1] == 1 else {}


def _draw_transition(axes: Axes, labels: dict[str, Any], names: Sequence[str]) -> None:
    """Draw the heat map of the labels: rows are true classes, columns given labels, shades the share of the class."""
    matrix = np.array(labels["transition"])
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= ANNOTATED_CLASSES:
        axes.set_xticks(range(len(names)), names, fontsize=8, rotation=0 if max(map(len, names)) < 4 else 45)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for (k, given), share in np.ndenumerate(matrix):
            if share:
                colour = "white" if share > 0.5 else "black"
                axes.annotate(f"{100 * share:.0f}", (given, k), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("given label (numbers: percent of the true class)")
    axes.set_ylabel("true class")
    axes.set_title(f"labels: {labels['kind']}, {labels['noise_rate']:.1%} of them wrong", loc="left")
