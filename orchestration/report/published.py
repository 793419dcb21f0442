"""Reads the accuracies that the paper prints in its Tables I-VI, as data.

Cells are as printed, including contradictions: UP with asymmetric noise is 75.16 in Table III and 75.31 in Table VI.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PublishedAccuracy:
    """One cell of one table.

    Attributes:
        table: "I" to "VI".
        dataset: "cifar10", "cifar100" or "tiny-imagenet".
        label_noise: "none", "symmetric", "asymmetric" or "instance".
        noise_rate: share of wrong labels in [0, 1].
        method: name of the method in the paper: "ERAT w/o AT", "AT_inf", …
        data_corruption: "none", "L2C", "UP", "AA", "AP", "UAP", "UHP" or "URP".
        norm: norm of the poison, "linf" or "l2"; None without poison.
        epsilon: budget of the poison in pixel units of 1.0; 0 without poison.
        test_accuracy: accuracy in percent, as printed.
    """

    table: str
    dataset: str
    label_noise: str
    noise_rate: float
    method: str
    data_corruption: str
    norm: str | None
    epsilon: float
    test_accuracy: float

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Return the key of the cell, which no two cells share."""
        return self.table, self.dataset, self.label_noise, self.method, self.data_corruption


@cache
def published() -> tuple[PublishedAccuracy, ...]:
    """Read all 729 cells, in the order of the file."""
    with resources.files(__package__).joinpath("published.csv").open(encoding="utf-8") as file:
        return tuple(_parse(record) for record in csv.DictReader(file))


def _parse(record: dict[str, str]) -> PublishedAccuracy:
    numerator, _, denominator = record["epsilon"].partition("/")
    return PublishedAccuracy(
        table=record["table"],
        dataset=record["dataset"],
        label_noise=record["label_noise"],
        noise_rate=float(record["noise_rate"]),
        method=record["method"],
        data_corruption=record["data_corruption"],
        norm=record["norm"] or None,
        epsilon=float(numerator) / float(denominator or 1),
        test_accuracy=float(record["test_accuracy"]),
    )
