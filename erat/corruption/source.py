"""Train, or read, the network on clean images against which perturbations are crafted."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from erat.config import RunConfig, build
from erat.corruption.base import Progress, silent
from erat.corruption.store import Arrays, Expected, Form, Store, versions
from erat.data.loading import split_validation
from erat.data.types import CorruptedSet, ImageSet
from erat.defaults import file_digest
from erat.engine import checkpoint
from erat.engine.assembly import channel_statistics, choose_device
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.models import build_model
from erat.seeding import derive

VAL_FRACTION = 0.1


class Traits(NamedTuple):
    """The traits of an image set, without its images, that identify whatever is made from it.

    Attributes:
        fingerprint: the fingerprint of the images, labels and class names.
        colour: whether the images have three channels.
        positions, rows: the digests of these two attributes of the set; None where the set lacks them.
    """

    fingerprint: str
    colour: bool
    positions: str | None = None
    rows: str | None = None

    @classmethod
    def of(cls, subject: ImageSet) -> Traits:
        """Return the traits of a set."""
        positions, rows = (
            None if part is None else hashlib.sha256(part.numpy().tobytes()).hexdigest()[:16]
            for part in (subject.positions, subject.rows)
        )
        return cls(subject.fingerprint, subject.channels == 3, positions, rows)

    def training(self, config: RunConfig) -> dict[str, Any]:
        """Return what decides a training on the set in addition to its fingerprint; nothing in the ordinary case.

        The held-out tenth of a user's own files is chosen by their positions, and mirrored views are customary only for
        colour images.
        """
        positions = {} if self.positions is None else {"positions": self.positions}
        return positions | ({} if config.data.flip == self.colour else {"flip": config.data.flip})


def source_network(
    subject: ImageSet, config: RunConfig, store: Store, progress: Progress = silent
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (the network in eval mode, its description for a manifest).

    The network is trained once per store, or read from a file that the user names. It is trained by SGD with learning
    rate 0.1, multiplied by 0.1 at 2/3 and 5/6 of the training, and batches of 128; the weights of the epoch that is
    best on a held-out tenth are used.

    Raises:
        UserError: the file `corruption.source_weights` is missing or belongs to another network.
    """
    network, options = untrained(subject, config), config.corruption
    if options.source_weights is not None:
        _read_weights(network, Path(options.source_weights), config)
        manifest = {"architecture": options.source, "file_digest": options.source_weights_digest}
    else:
        parameters = source_parameters(Traits.of(subject), config)
        weights = network.state_dict()
        forms = {name: Form(value.numpy().dtype.str, tuple(value.shape)) for name, value in weights.items()}
        entry = store.fetch(
            parameters,
            lambda: _train(subject, config, store.workspace(parameters), progress),
            Expected(forms, ("architecture", "val_accuracy")),
        )
        network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in entry.arrays.items()})
        kept = ("path", "checksum", "architecture", "val_accuracy")
        manifest = {key: entry.manifest[key] for key in kept}
    return network.to(choose_device(config)).eval(), manifest


def source_parameters(subject: Traits, config: RunConfig) -> dict[str, Any]:
    """Return everything that decides the trained network."""
    options = config.corruption
    return {
        "part": "source",
        "subject": subject.fingerprint,
        "architecture": options.source,
        "epochs": options.source_epochs,
        "seed": options.seed,
        **subject.training(config),
    }


def untrained(subject: ImageSet, config: RunConfig) -> nn.Module:
    """Return a newly initialised network of the source architecture."""
    mean, std = channel_statistics(subject.images)
    return build_model(
        str(config.corruption.source),
        num_classes=subject.num_classes,
        channels=subject.channels,
        image_size=subject.size,
        mean=mean,
        std=std,
        seed=derive(config.corruption.seed, "source weights"),
    )


def _train(subject: ImageSet, config: RunConfig, workspace: Path, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
    """Train the source network, or resume an interrupted training; return its weights and its manifest fields."""
    epochs = config.corruption.source_epochs or 1
    recipe = _recipe(config, epochs)
    kept, held_out = split_validation(subject, VAL_FRACTION, config.corruption.seed)
    part, val = subject.take(kept), subject.take(held_out)
    # The trainer also reports test accuracy; the held-out tenth stands in for the test set, so no test image is used.
    data = CorruptedSet(part, part.labels, val, val)
    trainer = Trainer(recipe, data, folder=workspace)
    best_file = workspace / "best.pt"
    best: dict[str, Any] = {"val_accuracy": -1.0}
    if trainer.history:
        best = checkpoint.load_newest(best_file, torch.device("cpu")) or best
        if best["val_accuracy"] < max((report.val_accuracy for report in trainer.history[:-1]), default=-1.0):
            # The best weights so far are lost, and any others in their place would make a different network.
            warnings.warn(f"{best_file} has lost the best weights: the source network is trained anew", stacklevel=2)
            shutil.rmtree(workspace)
            trainer, best = Trainer(recipe, data, folder=workspace), {"val_accuracy": -1.0}
    # After an interruption the last epoch is examined again, because its weights may not have been saved.
    for report in chain(trainer.history[-1:], trainer.run()):
        progress("source network", report.epoch, epochs)
        if report.val_accuracy > best["val_accuracy"]:
            weights = trainer.defense.networks["main"].state_dict()
            best = {"val_accuracy": report.val_accuracy, "weights": {k: v.cpu().clone() for k, v in weights.items()}}
            checkpoint.save(best_file, best)
    arrays = {name: tensor.numpy() for name, tensor in best["weights"].items()}
    fields = {"kind": "source", "architecture": recipe.model.name, "val_accuracy": best["val_accuracy"]}
    return arrays, fields | versions()


def _recipe(config: RunConfig, epochs: int) -> RunConfig:
    return build(
        "paper",
        {
            "data.name": config.data.name,
            "data.flip": config.data.flip,
            "data.fingerprint": config.data.fingerprint,
            "corruption.data": "none",
            "corruption.labels": "none",
            "defense.name": "ce",
            "model.name": config.corruption.source,
            "train.epochs": epochs,
            "train.lr": 0.1,
            "train.batch_size": 128,
            "train.milestones": (round(epochs * 2 / 3), round(epochs * 5 / 6)),
            "train.seed": derive(config.corruption.seed, "source") % 2**31,
            "resources.device": config.resources.device,
        },
    )


def _read_weights(network: nn.Module, path: Path, config: RunConfig) -> None:
    """Load weights from a file: a state dictionary of this network, or that of a run (`artifacts/model.pt`).

    Raises:
        UserError: the file cannot be read or its weights do not fit.
    """
    options, what = config.corruption, "corruption.source_weights"
    if file_digest(path, what) != options.source_weights_digest:
        raise UserError(f"{what}={path} is not the file that this run was planned with: its content has changed")
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        if all(name.startswith("main.") for name in state):
            state = {name.removeprefix("main."): tensor for name, tensor in state.items()}
        network.load_state_dict(state)
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("some of its numbers are not finite")
    except Exception as error:
        # A damaged file can raise any error. Where weights do not fit, the second line of torch's message says why.
        reason = " ".join(f"{type(error).__name__}: {error}".split("\n")[:2]).replace("\t", "")
        raise UserError(f"{what}={path} is no file of weights that fit {options.source}: {reason[:300]}") from error
