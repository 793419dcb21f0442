"""Describes copies and near-copies in a user's own images by file name, and whether their labels contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erat.audit.copies import find_copies
from erat.data.sources.collection import Collection, same_pictures
from erat.data.types import ImageSet
from erat.errors import shown
from orchestration.report.table import Table

FEW = 3  # names of a group that a sentence lists


@dataclass(frozen=True)
class Copy:
    """One of several images that show the same picture.

    Attributes:
        name: the name of the image for a person.
        label: its given label.
        part: "" (to be split), "train", "test" or "trusted".
        place: its row among all images, of which the trusted ones come last.
    """

    name: str
    label: str
    part: str
    place: int


@dataclass(frozen=True)
class CopyGroup:
    """Images that show the same picture; near-copies if not all have the same pixels."""

    exact: bool
    copies: tuple[Copy, ...]

    @property
    def labels_differ(self) -> bool:
        """Return whether the labels differ, so that at least one of them must be wrong."""
        return len({copy.label for copy in self.copies}) > 1

    @property
    def parts_differ(self) -> bool:
        """Return whether the copies are in different parts: a picture is both trained on and tested or trusted."""
        return len({copy.part or "train" for copy in self.copies}) > 1

    @property
    def words(self) -> str:
        """Return a description of the group for a reader."""
        kind = "the same pixels" if self.exact else "nearly the same picture"
        said = [kind, "under different labels" if self.labels_differ else f"labelled {self.copies[0].label}"]
        if self.parts_differ:
            said.append(f"in {' and '.join(sorted({copy.part or 'train' for copy in self.copies}))}")
        return ", ".join(said)

    def as_json(self) -> dict[str, Any]:
        """Return the group as plain values for JSON."""
        flags = {"exact": self.exact, "labels_differ": self.labels_differ, "parts_differ": self.parts_differ}
        return flags | {"copies": [{"path": copy.name, "label": copy.label, "part": copy.part} for copy in self.copies]}


def copy_groups(collection: Collection, checked: Collection | None) -> list[CopyGroup]:
    """Return the groups of copies among all images, trusted ones too.

    Groups with different labels come first, then those across parts, then the others.
    """
    collections = [collection] if checked is None else [collection, checked]
    pixels, labels = (torch.cat([getattr(one.images, name) for one in collections]) for name in ("images", "labels"))
    images = ImageSet(pixels, labels, collection.images.class_names)
    everything = [
        (name, one.images.class_names[label], part)
        for one in collections
        for name, label, part in zip(one.names, one.images.labels.tolist(), one.parts, strict=True)
    ]
    groups = [
        CopyGroup(found.exact, tuple(Copy(*everything[row], row) for row in found.rows))
        for found in find_copies(images, same_pictures(images))
    ]
    return sorted(groups, key=lambda group: (not group.labels_differ, not group.parts_differ, not group.exact))


def copies_table(groups: Sequence[CopyGroup]) -> Table:
    """Return a table with one line per image; the groups are numbered from 1."""
    lines: list[list[Any]] = []
    for number, group in enumerate(groups, start=1):
        kind, flags = "same" if group.exact else "near", [int(group.labels_differ), int(group.parts_differ)]
        lines += [[number, kind, copy.name, copy.label, copy.part, *flags] for copy in group.copies]
    return Table.of(["group", "kind", "path", "label", "part", "labels_differ", "parts_differ"], lines)


def copy_sentences(groups: Sequence[CopyGroup]) -> list[str]:
    """Return sentences about the groups, one for each sort of group, with the names in its first group."""
    sorts = [
        ("under different labels", [group for group in groups if group.labels_differ]),
        (
            "in parts that should have nothing in common",
            [group for group in groups if group.parts_differ and not group.labels_differ],
        ),
        (
            "under one label each",
            [group for group in groups if not group.parts_differ and not group.labels_differ],
        ),
    ]
    return [_sentence(where, found) for where, found in sorts if found]


def _sentence(where: str, groups: Sequence[CopyGroup]) -> str:
    exact = sum(group.exact for group in groups)
    kinds = [f"{exact} as exact copies"] if exact else []
    kinds += [f"{len(groups) - exact} as near-copies"] if exact < len(groups) else []
    first = groups[0].copies
    names = ", ".join(f"{shown(copy.name)} ({shown(copy.label, 40)})" for copy in first[:FEW])
    more = f" and {len(first) - FEW} more" if len(first) > FEW else ""
    what = "1 picture is" if len(groups) == 1 else f"{len(groups)} pictures are"
    return (
        f"{what} there more than once {where} ({', '.join(kinds)}): {names}{more}{'; ...' if len(groups) > 1 else '.'}"
    )
