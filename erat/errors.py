"""The errors that a person can mend: each message is one line that says what, got and allowed."""

from __future__ import annotations

import errno
import math
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """Wrong input. The command line prints the message alone and exits with status 2."""


class TrainingFailedError(RuntimeError):
    """A run that started well cannot go on (its loss left the finite numbers, say)."""


# What a full, read-only or closed place says of itself.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class StorageError(OSError):
    """A place that runs write to cannot be written or read now. A run that meets it has not failed."""


class StoreError(StorageError, UserError):
    """The store of crafted sets is full, read-only or closed: for a person to mend, and no failure of a run."""

    def __str__(self) -> str:
        return str(self.strerror)


def is_storage_fault(error: BaseException) -> bool:
    """Whether it is the place written to that is at fault, so that the same work may go on once that is mended."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _STORAGE)


def storage_words(error: OSError) -> str:
    """Which place, and what is wrong with it."""
    return (
        str(error.strerror) if isinstance(error, StorageError) else f"{error.filename or 'storage'}: {error.strerror}"
    )


class _Brief(reprlib.Repr):
    """Standard `reprlib`, which never walks deep or far into a value, and numbers too long for Python to write."""

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
    """An error for a name that is not among `allowed`, with the near matches first."""
    names = sorted(allowed)
    near = get_close_matches(got[:_COMPARED], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {what} {shown(got)}: {hint}allowed: {_listed(names)}")


_COMPARED = 100  # characters of a name in which near matches are looked for


def _listed(names: Sequence[str], most: int = 40) -> str:
    """Names with commas between them; of very many the first."""
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
