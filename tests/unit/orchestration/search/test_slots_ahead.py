"""Tests for how many slots a study is planned on a cluster that grows, before its nodes are there."""

from __future__ import annotations

import pytest

from orchestration.search.launch import slots_ahead


@pytest.mark.parametrize(
    ("slots", "at_most", "planned"),
    [(0, None, 24), (2, None, 24), (64, None, 64), (2, 8, 8), (8, 8, 8), (1, 128, 128)],
)
def test_few_nodes_at_first_make_no_narrow_window(slots: int, at_most: int | None, planned: int) -> None:
    assert slots_ahead(slots, at_most) == planned
