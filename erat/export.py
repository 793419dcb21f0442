"""A trained classifier as a program of its own: weights and a graph, no pickled code, no need of this package.

The program takes float32 images (N, C, H, W) in [0, 1], any N, and gives class probabilities (N, K).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erat.defenses.base import Defense
from erat.errors import UserError


class Probabilities(nn.Module):
    """What a defense answers, as probabilities; ensembles are inside."""

    def __init__(self, defense: Defense) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, H, W) in [0, 1] -> float32 (N, K)."""
        return self.defense.predict(images).float().softmax(1)


def exportable(defense: Defense) -> Probabilities:
    """The module to export, on the CPU, in eval mode, without gradients; a copy: `defense` stays as it is.

    Only the networks go along. What else a defense remembers, such as its last labelled set and perturbations, is of
    the training images, and nobody's business.
    """
    copy = deepcopy(defense)
    for name, _ in [*copy.named_children(), *copy.named_buffers(recurse=False)]:
        if name != "networks":
            delattr(copy, name)
    module = Probabilities(copy).cpu().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def export_program(defense: Defense, image_shape: Sequence[int], path: Path) -> None:
    """Write `path` (.pt2), which `torch.export.load` and `load_program` read.

    Args:
        image_shape: (C, H, W).
    """
    example = torch.zeros(2, *image_shape)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(exportable(defense), (example,), dynamic_shapes=({0: batch},))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def load_program(path: Path) -> nn.Module:
    """The exported classifier, ready to be called with float32 images (N, C, H, W) in [0, 1]. Runs no code of the file.

    Raises:
        UserError: the file is missing, is no exported program, or holds pickled code.
    """
    try:
        _refuse_pickled_code(path)
        loaded: nn.Module = torch.export.load(path).module()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read as an exported program: {_line(error)}") from error
    return loaded


def _refuse_pickled_code(path: Path) -> None:
    """torch itself unpickles what an archive asks it to: weights marked so, and inputs that are no plain tensors."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inside = name.partition("/")[2]
            if inside.endswith("_config.json") and _asks_for_pickle(json.loads(archive.read(name))):
                raise UserError(f"{path} holds pickled code ({inside}); only weights are loaded")
            if inside.endswith(".pt") and archive.getinfo(name).file_size:
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception as error:
                    raise UserError(f"{path} holds pickled code ({inside}); only weights are loaded") from error
            if inside.startswith("data/aotinductor/"):
                raise UserError(f"{path} holds compiled code ({inside}); only weights are loaded")


def _asks_for_pickle(content: Any) -> bool:
    if isinstance(content, Mapping):
        return bool(content.get("use_pickle")) or any(map(_asks_for_pickle, content.values()))
    return isinstance(content, list) and any(map(_asks_for_pickle, content))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
