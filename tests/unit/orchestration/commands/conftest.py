"""Lets the tests of commands use the fixtures of `tests.five_trials`."""

from tests.five_trials import console, ledger, workspace

__all__ = ["console", "ledger", "workspace"]
