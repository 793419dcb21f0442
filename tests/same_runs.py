"""Compares two executions of one run: whatever happened between, they must leave the same but for the clock."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from erat.result import RunResult
from orchestration.run.directory import RunDirectory

CLOCK = ("epoch_seconds", "images_per_second")  # all of an epoch that may differ between two executions


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the metrics without those that depend on the clock."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in run.read_metrics()]


def assert_same_run(run: RunDirectory, reference: RunDirectory) -> None:
    """Check that two executions have the same metrics, the same result and the same model to the last bit."""
    assert figures(run) == figures(reference)
    mine, theirs = (torch.load(each.artifacts / "model.pt", weights_only=True) for each in (run, reference))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    results = [asdict(each.read_result() or RunResult("", "")) for each in (run, reference)]
    same = [{k: v for k, v in r.items() if k not in ("train_seconds", "peak_memory_mb")} for r in results]
    assert same[0] == same[1]
