"""Read the German Traffic Sign Recognition Benchmark: PPM files, and a table of the test labels.

Source: J. Stallkamp et al., "The German Traffic Sign Recognition Benchmark: A Multi-Class Classification Competition",
2011.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

from erat.data import facts
from erat.data.bounded import lines_of, within_rows
from erat.data.image_files import visible_files
from erat.data.sources.published import PublishedSet, decoded
from erat.data.types import ImageSet
from erat.errors import UserError, shown

SIDE = 32  # of the images as this source gives them: the files are 15 to 250 pixels wide


class Gtsrb(PublishedSet):
    """26,640 training and 12,630 test images of 43 signs, RGB, their centre squares resized to 32x32.

    The boxes around the signs that the tables also give are not cut out, as in torchvision.
    """

    facts = facts.GTSRB
    title = "GTSRB"
    folder = "gtsrb"
    names = ("GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv")

    def fetch(self, root: Path) -> None:
        """Download and unpack the three archives, checked by torchvision's checksums."""
        for split in ("train", "test"):
            datasets.GTSRB(str(root), split=split, download=True)

    def files(self, config: object) -> list[Path]:
        """Return all files of which the set consists; an empty list if a part is missing."""
        found = super().files(config)  # type: ignore[arg-type]
        return [file for path in found for file in (visible_files(path) if path.is_dir() else [path])]

    def read(self, paths: Sequence[Path]) -> tuple[ImageSet, ImageSet]:
        """Read (train, test)."""
        training, images, table = paths
        classes, base = self.facts.classes, table.parent
        train = [(path, k) for k in range(len(classes)) for path in _images_of(training / f"{k:05d}")]
        test = [(images / name, label) for name, label in _rows(table, len(classes))]
        return (
            decoded(self.title, train, classes, SIDE, base),
            decoded(self.title, test, classes, SIDE, base),
        )


def _images_of(folder: Path) -> list[Path]:
    found = [path for path in visible_files(folder) if path.suffix == ".ppm"] if folder.is_dir() else []
    if not found:
        raise UserError(f"GTSRB: no training image of class {folder.name}; its .ppm files belong into {folder}")
    return found


def _rows(table: Path, classes: int) -> list[tuple[str, int]]:
    """Return (file, label) of each test image, from the columns Filename and ClassId, separated by semicolons."""
    rows: list[tuple[str, int]] = []
    for row in csv.DictReader(lines_of(table), delimiter=";", skipinitialspace=True):
        word = str(row.get("ClassId"))
        if not word.isascii() or not word.isdigit() or not int(word[:9]) < classes or not row.get("Filename"):
            raise UserError(
                f"{table}, image {len(rows) + 1}: must have a Filename and a ClassId in 0..{classes - 1}, "
                f"got {shown(row.get('Filename'))} and {shown(row.get('ClassId'))}"
            )
        rows.append((row["Filename"], int(word)))
        within_rows(len(rows), table)
    return rows


SOURCE = Gtsrb()
