"""Finds images that show the same picture: exact copies, and near-copies such as a picture saved at lower quality.

Two images are near-copies if what they show at 16 x 16 pixels is nearly the same, whatever its brightness and contrast.
Images without any detail are left out, since nothing distinguishes one from another. Every image is compared with every
other in large matrix products, so the time grows with the square of their number (`MOST_COMPARED` bounds it).

Shape suffixes: N images, C channels, H rows, W columns, D values of a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from erat.audit.settings import is_ink
from erat.data.types import ImageSet

SIDE = 16
PLAIN = 8.0  # standard deviation in levels of 255, below which a picture has no detail to compare
# Correlation from which two pictures count as one. Different scans and drawings of one kind of thing are more alike
# than different photographs, so they need the higher threshold.
ALIKE_INK, ALIKE = 0.995, 0.985
MOST_COMPARED = 100_000  # images; in a larger set only exact copies are found
CHUNK = 512  # images compared with all others at once
MOST_LINKS = 20  # earlier images that one image is linked to; more would add nothing to its group


@dataclass(frozen=True)
class Copies:
    """Images that show one picture.

    Attributes:
        rows: two or more rows of the set, ascending.
        exact: whether all have the same pixels.
    """

    rows: tuple[int, ...]
    exact: bool


def find_copies(images: ImageSet, exact: Sequence[Sequence[int]]) -> list[Copies]:
    """Return the groups of exact copies and near-copies, in the order of their first image; no image is in two groups.

    Args:
        exact: groups of rows that have the same pixels (`erat.data.sources.collection.same_pictures`).
    """
    first = torch.arange(len(images))
    for group in exact:
        first[list(group)] = min(group)
    distinct = (first == torch.arange(len(images))).nonzero().squeeze(1)
    links = _links(images.take(distinct)) if len(distinct) <= MOST_COMPARED else np.empty((0, 2), dtype=np.int64)
    count = len(distinct)
    ties = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    _, component = connected_components(ties, directed=False)
    place = torch.empty(len(images), dtype=torch.int64)
    place[distinct] = torch.from_numpy(component.astype(np.int64))
    members: dict[int, list[int]] = {}
    for row, group_number in enumerate(place[first].tolist()):
        members.setdefault(group_number, []).append(row)
    groups = [rows for rows in members.values() if len(rows) > 1]
    return [Copies(tuple(rows), len(set(first[rows].tolist())) == 1) for rows in groups]


def _links(images: ImageSet) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return pairs (later row, earlier row) of near-copies, int64 (P, 2), at most `MOST_LINKS` for each later row."""
    alike = ALIKE_INK if is_ink(images) else ALIKE
    grey_ND, coloured_ND, detailed = _descriptions(images)
    rows = detailed.nonzero().squeeze(1)
    grey_ND, coloured_ND = grey_ND[rows], coloured_ND[rows]
    found = [torch.empty(0, 2, dtype=torch.int64)]
    for start in range(0, len(rows), CHUNK):
        block = grey_ND[start : start + CHUNK]
        near = (block @ grey_ND[: start + len(block)].T > alike).tril_(start - 1)
        if int(near.sum()) > MOST_LINKS * len(block):
            near &= near.cumsum(1) <= MOST_LINKS
        pairs = near.nonzero()
        pairs[:, 0] += start
        if coloured_ND is not grey_ND:
            pairs = pairs[(coloured_ND[pairs[:, 0]] * coloured_ND[pairs[:, 1]]).sum(1) > alike]
        found.append(rows[pairs])
    links: np.ndarray[tuple[int, int], np.dtype[np.int64]] = torch.cat(found).numpy()
    return links


def _descriptions(images: ImageSet) -> tuple[Tensor, Tensor, Tensor]:
    """Describe each image by unit vectors.

    Returns:
        (of its grey values, float32 (N, D); of its colours, float32 (N, D); whether it has detail, bool (N,)).
    """
    grey, coloured, detailed = [], [], []
    for part in images.images.split(1000):
        pixels = part.float()
        if pixels.shape[-1] > SIDE:
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="area")
        shapes = _levelled(pixels.mean(1, keepdim=True))
        detailed.append(shapes.square().mean(1).sqrt() > PLAIN)
        grey.append(F.normalize(shapes, dim=1))
        if images.channels > 1:
            coloured.append(F.normalize(_levelled(pixels), dim=1))
    grey_ND = torch.cat(grey)
    return grey_ND, torch.cat(coloured) if coloured else grey_ND, torch.cat(detailed)


def _levelled(pixels_NCHW: Tensor) -> Tensor:
    """Return each channel without its mean and slope, which any two smooth skies share; float32 (N, C * H * W)."""
    side = pixels_NCHW.shape[-1]
    ramp = torch.linspace(-1, 1, side)
    planes = torch.stack([torch.ones(side, side), ramp.expand(side, side), ramp[:, None].expand(side, side)])
    basis = torch.linalg.qr(planes.flatten(1).T).Q
    values = pixels_NCHW.flatten(2)
    flat: Tensor = (values - (values @ basis) @ basis.T).flatten(1)
    return flat
