"""Save and load checkpoints: everything from which a run resumes to bit-equal results.

A crash while a checkpoint is written leaves either the old file or the new one. A file holds a checksum of itself, as a
comment at the end of the zip archive that `torch.save` writes: one move puts both in place, and `torch.load` reads the
file like any other. The previous version of a state that is saved repeatedly is kept beside it, so that a damaged file
costs one epoch and not the run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from erat.errors import UserError
from erat.files import _replacing, previous

ANEW = "delete it to start this run anew"
FULL_BYTES = 2**20  # a disk with less free space than this counts as full

_MARK = b"BLAKE2b-256:"
_TRAILER = len(_MARK) + 32
_END, _END_BYTES = b"PK\x05\x06", 22  # the last record of an archive without a comment; its last two bytes are zero
_PIECE = 2**20


class DamagedCheckpointError(UserError):
    """The error for a checkpoint that is missing, or whose content is not what was written."""


def save(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write tensors and plain values together with their checksum; a single move puts the complete file in place.

    Args:
        path: the file.
        state: the tensors and plain values by name.
        keep_previous: rename the file that was at `path` to `previous(path)`, to which `load_newest` can fall back.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    try:
        with _replacing(path, keep_previous) as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)  # type: ignore[arg-type]  # torch only needs the file's `write`
            file.seek(-2, os.SEEK_END)  # to the field with the length of the comment
            file.write(_TRAILER.to_bytes(2, "little") + _MARK + hashing.digest())
    except RuntimeError as error:
        # Torch's error for a failed write does not say that the disk is full.
        if shutil.disk_usage(path.parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


class _Hashing:
    """A writer that hashes what it passes on to a file, so that the file need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.blake2b(digest_size=32)

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._hash.digest()


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a file that `save` wrote. Only tensors and plain values are loaded; no code in the file is run.

    Args:
        path: the file.
        device: the device on which the tensors are placed.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
        UserError: the file contains pickled code or is not a dictionary, or it cannot be read at present.
    """
    try:
        with path.open("rb") as file:
            if not _sound(file):
                raise DamagedCheckpointError(f"checkpoint {path} cannot be read (its checksum does not fit): {ANEW}")
            file.seek(0)
            try:
                state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            except pickle.UnpicklingError as error:
                if _is_pickle(file):
                    raise UserError(
                        f"checkpoint {path} cannot be read: it holds pickled code, which is not run; {ANEW}"
                    ) from error
                raise
    except (UserError, MemoryError, torch.OutOfMemoryError):  # too little memory does not mean that the file is damaged
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"checkpoint {path} is missing: {ANEW}") from error
    except OSError as error:  # possibly temporary, thus no sign of damage: too many open files, an unreachable server
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if path.is_file() and not zipfile.is_zipfile(path):
            reason = "it is cut off, or something else"
        raise DamagedCheckpointError(f"checkpoint {path} cannot be read ({reason}): {ANEW}") from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} cannot be read: it holds a {type(state).__name__}; {ANEW}")
    return state


def load_newest(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the newest sound version of a checkpoint.

    If the last version is damaged, a warning is given and the previous one is read. Returns None if neither is usable.

    Raises:
        UserError: as for `load`.
    """
    damages = []
    for file in (path, previous(path)):
        try:
            state = load(file, device)
        except DamagedCheckpointError as error:
            if file.exists():
                damages.append(_line(error))
            continue
        if file != path:
            reason = damages[0] if damages else f"checkpoint {path} is missing"
            warnings.warn(f"{reason}; going on from the one before it", stacklevel=2)
            with suppress(OSError):  # otherwise the next save would keep the damaged file as the previous version
                path.unlink(missing_ok=True)
        return state
    if damages:
        warnings.warn(f"{damages[0]}; there is no older intact one: starting anew", stacklevel=2)
    return None


def _line(error: DamagedCheckpointError) -> str:
    return str(error).removesuffix(f": {ANEW}")


def _sound(file: BinaryIO) -> bool:
    """Return whether the checksum matches; true if there is none, as in files of earlier versions."""
    size = file.seek(0, os.SEEK_END)
    if size < _END_BYTES + _TRAILER:
        return True
    file.seek(-_END_BYTES - _TRAILER, os.SEEK_END)
    tail = file.read()
    end, trailer = tail[:_END_BYTES], tail[_END_BYTES:]
    signs = (end[:4] == _END, end[-2:] == _TRAILER.to_bytes(2, "little"), trailer.startswith(_MARK))
    if sum(signs) < 2:  # two are enough, since one of the three may be damaged
        return True
    file.seek(0)
    digest, left = hashlib.blake2b(digest_size=32), size - _TRAILER - 2
    while left and (piece := file.read(min(_PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    digest.update(bytes(2))
    return all(signs) and digest.digest() == trailer[len(_MARK) :]


def _is_pickle(file: BinaryIO) -> bool:
    """Return whether a file that torch refused is nevertheless complete: a zip archive, or a bare pickle."""
    file.seek(0)
    first = file.read(2)
    return (first[:1] == b"\x80" and first[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")) or zipfile.is_zipfile(file)
