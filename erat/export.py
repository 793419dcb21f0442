"""Exports a trained classifier as a stand-alone program, in one file that can be loaded without pickle or foreign code.

The file is what `torch.export.save` writes (a graph, for `torch.export.load` and other programs) with two further
entries of this package: a description of the network, and its weights as plain bytes. `load_program` reads only these
two.

The program takes float32 images (N, C, H, W) in [0, 1], any N, and returns class probabilities (N, K).
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from erat.defenses.base import Defense, Task
from erat.errors import UserError
from erat.files import write_atomic
from erat.models import build_model
from erat.registry import BACKBONES, DEFENSES
from erat.seeding import seeded

DESCRIPTION, WEIGHTS = "classifier.json", "classifier.bin"
# The entries that an export may hold below its one folder. Any other is refused, even if it would not be read.
ENTRIES = re.compile(
    rf"{re.escape(DESCRIPTION)}|{re.escape(WEIGHTS)}|archive_format|archive_version|byteorder|version"
    r"|\.data/version|\.data/serialization_id|\.format_version|\.storage_alignment|models/model\.json"
    r"|data/weights/(weight_\d{1,6}|model_weights_config\.json)|data/constants/(tensor_\d{1,6}|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
MOST_BYTES, MOST_ENTRIES, MOST_DESCRIPTION = 2**32, 20_000, 2**20


class Description(BaseModel):
    """A description of the classifier that `load_program` builds before it fills in the weights.

    Attributes:
        options: the options of the defense, with its name.
        backbone: name of the network.
        classes: K.
        channels: C.
        size: height and width of the images in pixels.
        tensors: name, type and shape of each tensor, in the order of their bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    options: dict[str, Any]
    backbone: str
    classes: int = Field(ge=1, le=2**16)
    channels: int = Field(ge=1, le=64)
    size: int = Field(ge=1, le=4096)
    tensors: list[tuple[str, str, list[int]]]


class Probabilities(nn.Module):
    """A module that returns the predictions of a defense, which may be an ensemble, as probabilities."""

    def __init__(self, defense: Defense) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float32 (N, C, H, W) in [0, 1], to class probabilities, float32 (N, K)."""
        return self.defense.predict(images).float().softmax(1)


def exportable(defense: Defense) -> Probabilities:
    """Return the module to export, on the CPU, in eval mode, without gradients; `defense` itself is not changed.

    The module has only the networks. Everything else that a defense stores, such as its last labelled set and
    perturbations, is about the training images and must not be given away.
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
    """Write a trained defense to `path` (.pt2), which `torch.export.load` and `load_program` can read.

    Args:
        image_shape: (C, H, W).
        path: the file to write; a crash leaves the old file or the new one.
    """
    module, example = exportable(defense), torch.zeros(2, *image_shape)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # torch would pickle them
    file = io.BytesIO()
    torch.export.save(program, file)
    state = _state(module)
    description = Description(
        options=defense.settings.model_dump(mode="json"),
        backbone=defense.task.backbone,
        classes=defense.task.num_classes,
        channels=image_shape[0],
        size=image_shape[1],
        tensors=_table(state),
    )
    with zipfile.ZipFile(file, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{DESCRIPTION}", description.model_dump_json(indent=1))
        with archive.open(f"{root}/{WEIGHTS}", "w", force_zip64=True) as entry:
            for tensor in state.values():
                entry.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    write_atomic(path, file.getbuffer())


def load_program(path: Path) -> nn.Module:
    """Load an exported classifier, ready to be called with float32 images (N, C, H, W) in [0, 1].

    No code in the file is run: this package builds the network from the description in the file and loads the weights
    into it. The graph in the file is for `torch.export.load`, which trusts what it reads.

    Raises:
        UserError: the file is missing, was not written by `export_program`, or holds pickled or compiled code.
    """
    try:
        entries = _entries(path)
        return _rebuilt(Description.model_validate_json(entries[DESCRIPTION]), entries[WEIGHTS])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read as an exported program: {_line(error)}") from error


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _table(state: Mapping[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    return [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state.items()]


def _rebuilt(description: Description, weights: bytes) -> nn.Module:
    """Build the described classifier and load these weights into it.

    Raises:
        UserError: there is no such defense or backbone, or the weights do not fit it.
    """
    shape = (description.channels, description.size, description.size)
    normal = [0.5] * description.channels, [0.5] * description.channels  # replaced by the loaded weights
    backbone, classes = description.backbone, description.classes

    def build(offset: int) -> nn.Module:
        return build_model(backbone, classes, shape[0], shape[1], *normal, seed=offset)

    _ = BACKBONES[backbone]
    kind = DEFENSES[str(description.options.get("name"))]
    with seeded(0):  # some parts draw from torch's global generator, whose state is kept
        defense = kind(
            kind.Options.model_validate(description.options), Task(1, classes, False, build, shape, backbone)
        )
    module = exportable(defense)
    state = _state(module)
    size = sum(tensor.nbytes for tensor in state.values())
    if description.tensors != _table(state) or len(weights) != size:
        raise UserError(
            f"the weights are not those of {backbone} with {classes} classes: got {len(weights)} bytes, "
            f"{len(description.tensors)} tensors, allowed {size} bytes, {len(state)} tensors"
        )
    at = 0
    for tensor in state.values():
        raw = torch.frombuffer(bytearray(weights[at : at + tensor.nbytes]), dtype=torch.uint8)
        tensor.reshape(-1).view(torch.uint8).copy_(raw)
        at += tensor.nbytes
    module.load_state_dict(state)

    def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if tuple(inputs[0].shape[1:]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"images must be of shape (N, {wanted}), got {tuple(inputs[0].shape)}")

    module.register_forward_pre_hook(check)
    return module


def _entries(path: Path) -> dict[str, bytes]:
    """Return the two entries that define a classifier, of an archive that holds nothing but the entries of an export.

    The file is read once, so that the content that is checked is the content that is used.

    Raises:
        UserError: the archive holds anything else, or lacks one of the two.
    """
    content = _content(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inside = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        roots = {info.filename.partition("/")[0] for info in archive.infolist()}
        if len(inside) < len(archive.infolist()) or len(roots) != 1:
            raise UserError(f"{path} holds entries of one name twice, or more than one folder; only exports are loaded")
        for name, info in inside.items():
            if name.startswith("data/aotinductor/"):
                raise UserError(f"{path} holds compiled code ({name}); only weights are loaded")
            if re.fullmatch(r"data/constants/(opaque|custom)_obj_.*", name) or (
                name.endswith((".pt", ".pkl")) and info.file_size
            ):
                raise UserError(f"{path} holds pickled code ({name}); only weights are loaded")
            if not ENTRIES.fullmatch(name):
                raise UserError(f"{path} holds {info.filename[:80]!r}, which no export does; only exports are loaded")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UserError(f"{path} holds {name} compressed or encrypted; only exports are loaded")
            if name.endswith("_config.json") and _asks_for_pickle(json.loads(archive.read(info))):
                raise UserError(f"{path} holds pickled code ({name}); only weights are loaded")
        missing = [name for name in (DESCRIPTION, WEIGHTS) if name not in inside]
        if missing:
            raise UserError(
                f"{path} has no {missing[0]}: it was not written by export_program, or by an older version; "
                "torch.export.load reads it, which may run code of the file"
            )
        if inside[DESCRIPTION].file_size > MOST_DESCRIPTION:
            raise UserError(f"{path}: {DESCRIPTION} must be at most {MOST_DESCRIPTION} bytes")
        return {name: archive.read(inside[name]) for name in (DESCRIPTION, WEIGHTS)}


def _content(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # opening a pipe would block
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise UserError(f"{path} cannot be read as an exported program: no file of at most {MOST_BYTES} bytes")
        content = file.read(status.st_size)
    # Counted before `zipfile` makes a list of them in memory.
    if content.count(b"PK\x01\x02") > MOST_ENTRIES:
        raise UserError(f"{path} must hold at most {MOST_ENTRIES} entries to be read as an exported program")
    return content


def _asks_for_pickle(content: Any) -> bool:
    """Return whether a list of weights or constants names anything but tensors of plain bytes."""
    if isinstance(content, Mapping):
        name = content.get("path_name", "tensor_0")
        plain = isinstance(name, str) and re.fullmatch(r"(weight|tensor)_\d{1,6}", name)
        return not plain or bool(content.get("use_pickle")) or any(map(_asks_for_pickle, content.values()))
    return isinstance(content, list) and any(map(_asks_for_pickle, content))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
