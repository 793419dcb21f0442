"""Defines errors that a user can correct: each message is one line that says what, got and allowed."""

from __future__ import annotations

import errno
import math
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """The input is wrong. The command line prints only the message and exits with status 2."""


class TrainingFailedError(RuntimeError):
    """A run that started correctly cannot continue, for example because its loss is not finite."""


# The error numbers of storage that is full, read-only or closed.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class StorageError(OSError):
    """Storage that runs use cannot be written or read now. A run that meets this error has not failed."""


class StoreError(StorageError, UserError):
    """The store of crafted sets is full, read-only or closed, which a person must correct; no run has failed."""

    def __str__(self) -> str:
        return str(self.strerror)


def is_storage_fault(error: BaseException) -> bool:
    """Return whether the storage caused an error, so that the same work can go on once the storage is repaired."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _STORAGE)


def storage_words(error: OSError) -> str:
    """Return the storage that caused an error and what is wrong with it, as text."""
    return (
        str(error.strerror) if isinstance(error, StorageError) else f"{error.filename or 'storage'}: {error.strerror}"
    )


class _Brief(reprlib.Repr):
    """The standard `reprlib`, which reads only the start of a value, also for numbers too long for Python to write."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > _WRITABLE_BITS:
            return f"a whole number of about {int(x.bit_length() * math.log10(2)):,} digits"
        return super().repr_int(x, level)


_WRITABLE_BITS = 10_000  # Python refuses to write whole numbers of more than 4,300 digits


def shown(value: object, most: int = 80) -> str:
    """Return `value` as one line for a message: like `repr`, control characters escaped, at most `most` characters.

    Large, deep and self-referring values cost no more than small ones.
    """
    brief = _Brief()
    brief.maxstring = brief.maxother = brief.maxlong = most
    brief.maxlevel = 3
    text = brief.repr(value)
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= most else text[: most - 3] + "..."


def unknown_name(what: str, got: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is not among `allowed`; its message suggests near matches first."""
    names = sorted(allowed)
    near = get_close_matches(got[:_COMPARED], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {what} {shown(got)}: {hint}allowed: {listed(names)}")


_COMPARED = 100  # characters of a name that are compared to find near matches


def listed(names: Sequence[str], most: int = 40) -> str:
    """Join names with commas; of more than `most` names only the first are listed."""
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
