"""Stores tensors and plain values in one safetensors file, which can be read without running code.

The plain values are JSON text in the header of the file, with a checksum of everything that the file holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from erat.errors import UserError
from erat.files import write_atomic

MOST_BYTES = 2**33  # bytes of a file that is read, because it is held in memory


def write_archive(path: Path, kind: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and JSON-like values atomically: a crash leaves the old file or the new one.

    Args:
        kind: a word for the kind of file, so that another kind is not mistaken for it.
        content: the plain values.
        tensors: name -> tensor, on any device.

    Raises:
        UserError: a value in `content` is not JSON-like.
    """
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        text = json.dumps(content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} can hold plain values only: {error}") from error
    header = {"kind": kind, "content": text, "sha256": _digest(text, held)}
    write_atomic(path, safetensors.torch.save(held, metadata=header))


def read_archive(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that `write_archive` wrote, without running code: (plain values, tensors on the CPU).

    Raises:
        UserError: the file is missing, too large or damaged, holds a name twice, or is of another kind.
    """
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise UserError(
                f"{path} must be a file of kind {kind}, got {'no regular' if path.exists() else 'no such'} file"
            )
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{path} must have at most {MOST_BYTES} bytes, got {size}")
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        header = _header(data)
        if header.get("kind") != kind:
            raise UserError(f"{path} must be a file of kind {kind}, got {str(header.get('kind'))[:40]!r}")
        if header["sha256"] != _digest(header["content"], tensors):
            raise UserError(f"{path} is damaged: its checksum does not fit")
        return json.loads(header["content"]), tensors
    except UserError:
        raise
    except Exception as error:  # the file is not trusted, and may make a reader raise anything
        raise UserError(f"{path} cannot be read as a file of kind {kind}: {_line(error)}") from error


def _header(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length], object_pairs_hook=_once)["__metadata__"]
    if not isinstance(header, dict) or not all(isinstance(value, str) for value in header.values()):
        raise ValueError("no metadata")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a mapping; refuse a repeated name, because two readers may choose different values for it.

    Raises:
        ValueError: a name is repeated.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
