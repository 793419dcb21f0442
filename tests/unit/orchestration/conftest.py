"""Provides what tests of the orchestration share."""

from tests.stores import stores_begin_as_copies

__all__ = ["stores_begin_as_copies"]
