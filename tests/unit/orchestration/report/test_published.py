"""Tests the paper's printed accuracies, which are stored as data."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

import orchestration.report
from orchestration.report.published import PublishedAccuracy, published

CSV = Path(orchestration.report.__file__).with_name("published.csv")


def find(*key: str) -> PublishedAccuracy | None:
    """Return the figure for this table, data set, label noise, method and data corruption."""
    return next((row for row in published() if row.key == key), None)


def test_every_cell_of_the_six_tables_is_there_once() -> None:
    rows = published()
    assert len(rows) == 729
    assert Counter(row.table for row in rows) == {"I": 12, "II": 24, "III": 168, "IV": 168, "V": 168, "VI": 189}
    assert len({row.key for row in rows}) == 729
    assert find(*rows[-1].key) == rows[-1]


def test_the_file_is_unchanged() -> None:
    assert (
        hashlib.sha256(CSV.read_bytes()).hexdigest()
        == "9c39ba1f5061d03384a151a79432539006a77375b249d8bc881a75194d9459df"
    )


@pytest.mark.parametrize(
    ("table", "dataset", "noise", "method", "corruption", "expected"),
    [
        ("III", "cifar10", "instance", "ERAT", "UP", 69.93),
        ("III", "cifar10", "symmetric", "ERAT", "URP", 86.44),
        ("III", "cifar10", "asymmetric", "ERAT", "UP", 75.16),
        # the paper contradicts itself here, and the file has both figures
        ("VI", "cifar10", "asymmetric", "ERAT", "UP", 75.31),
        ("II", "cifar10", "none", "CE", "none", 95.20),
        ("I", "cifar10", "none", "AT_inf", "UAP", 31.04),
    ],
)
def test_known_cells(table: str, dataset: str, noise: str, method: str, corruption: str, expected: float) -> None:
    cell = find(table, dataset, noise, method, corruption)
    assert cell is not None
    assert cell.test_accuracy == expected


def test_types_and_ranges() -> None:
    up, ap = find("III", "cifar10", "instance", "ERAT", "UP"), find("III", "cifar10", "instance", "ERAT", "AP")
    clean = find("II", "cifar100", "none", "ERAT", "none")
    assert up is not None
    assert ap is not None
    assert clean is not None
    assert (up.norm, up.epsilon, up.noise_rate) == ("linf", 8 / 255, 0.6)
    assert (ap.norm, ap.epsilon) == ("l2", 0.5)
    assert (clean.norm, clean.epsilon, clean.noise_rate) == (None, 0.0, 0.0)
    assert all(0 < row.test_accuracy <= 100 and 0 <= row.noise_rate <= 1 for row in published())


def test_a_cell_that_the_paper_lacks_is_none() -> None:
    assert find("III", "cifar100", "instance", "ERAT", "UP") is None
