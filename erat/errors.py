"""The errors that a person can mend: each message is one line that says what, got and allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Wrong input. The command line prints the message alone and exits with status 2."""


class TrainingFailedError(RuntimeError):
    """A run that started well cannot go on (its loss left the finite numbers, say)."""


def unknown_name(what: str, got: str, allowed: Iterable[str]) -> UserError:
    """An error for a name that is not among `allowed`, with the near matches first."""
    names = sorted(allowed)
    near = get_close_matches(got, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {what} {got!r}: {hint}allowed: {', '.join(names)}")
