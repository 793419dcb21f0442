"""From a configuration to the corrupted set: images poisoned and labels corrupted, both from the store."""

from __future__ import annotations

import platform
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erat.config import RunConfig, build
from erat.corruption.base import Craft, Progress, norms_of, quantize, silent
from erat.corruption.labels import make_label_noise
from erat.corruption.store import Arrays, Entry, Store
from erat.data.base import CorruptedSet, ImageSet, to_float
from erat.data.sets import fingerprint, load, split_validation
from erat.engine.seeding import derive, generator
from erat.engine.trainer import Trainer, channel_statistics, choose_device
from erat.errors import UserError
from erat.models import build_model
from erat.registry import CORRUPTIONS, DATASETS

SOURCE_VAL_FRACTION = 0.1


def corrupted_set(config: RunConfig, store: Store, progress: Progress = silent) -> CorruptedSet:
    """What a run trains on and is judged by; crafted now if the store lacks it.

    The validation part is split off first. Trusted, it stays clean and nothing is crafted on it; else it is corrupted
    together with the training part.
    """
    train, test = load(config.data)
    kept, held_out = split_validation(train, config.val.fraction, config.val.seed)
    if len(held_out) == 0:
        raise UserError(f"val.fraction must hold out at least one of {len(train)} images, got {config.val.fraction}")
    subject = _subject(train, kept, config)
    poisoned, images_manifest = poison(subject, config, store, progress)
    labels, labels_manifest = mislabel(subject, config, store)
    corrupted = ImageSet(poisoned, labels, subject.class_names)
    manifest = {"images": images_manifest, "labels": labels_manifest, "val_trusted": config.val.trusted}
    if config.val.trusted:
        return CorruptedSet(corrupted, subject.labels, train.take(held_out), test, manifest)
    return CorruptedSet(corrupted.take(kept), train.labels[kept], corrupted.take(held_out), test, manifest)


def crafted_already(config: RunConfig, store: Store) -> bool:
    """Whether the store holds everything that `corrupted_set` would read."""
    train, _ = load(config.data)
    kept, _ = split_validation(train, config.val.fraction, config.val.seed)
    subject = _subject(train, kept, config)
    has_images = config.corruption.data == "none" or _image_parameters(subject, config) in store
    return has_images and _label_parameters(subject, config) in store


def _subject(train: ImageSet, kept: Tensor, config: RunConfig) -> ImageSet:
    """What is corrupted: the training part, and the validation part with it unless that is trusted."""
    return train.take(kept) if config.val.trusted else train


def poison(
    subject: ImageSet, config: RunConfig, store: Store, progress: Progress = silent
) -> tuple[Tensor, dict[str, Any]]:
    """(poisoned images, uint8 NCHW; manifest). `corruption.data=none` gives the images back."""
    if config.corruption.data == "none":
        return subject.images, {"kind": "none"}
    entry = store.fetch(_image_parameters(subject, config), lambda: _craft(subject, config, store, progress))
    return torch.from_numpy(np.array(entry.arrays["images"])), entry.manifest


def mislabel(subject: ImageSet, config: RunConfig, store: Store) -> tuple[Tensor, dict[str, Any]]:
    """(given labels, int64 (N,); manifest with the realised noise rate and transition matrix)."""
    options = config.corruption

    def make() -> tuple[Arrays, dict[str, Any]]:
        noise = make_label_noise(
            options.labels,
            subject,
            rate=options.rate,
            seed=options.seed,
            exact=options.exact,
            include_self=options.include_self,
            similar=DATASETS[config.data.name].facts.similar,
            generator=options.generator or "cores",
        )
        fields = {"kind": options.labels, "noise_rate": noise.rate, "transition": noise.transition.tolist()}
        return {"labels": noise.labels.numpy()}, fields | _versions()

    entry = store.fetch(_label_parameters(subject, config), make)
    return torch.from_numpy(np.array(entry.arrays["labels"])), entry.manifest


def _image_parameters(subject: ImageSet, config: RunConfig) -> dict[str, Any]:
    """What decides the poisoned images."""
    options = config.corruption
    return {
        "part": "images",
        "subject": fingerprint(subject),
        "kind": options.data,
        "version": CORRUPTIONS[options.data].version,
        "norm": options.norm,
        "epsilon": options.epsilon,
        "granularity": options.granularity,
        "source": options.source,
        "source_epochs": options.source_epochs,
        "seed": options.seed,
    }


def _label_parameters(subject: ImageSet, config: RunConfig) -> dict[str, Any]:
    """What decides the given labels."""
    options = config.corruption
    return {
        "part": "labels",
        "subject": fingerprint(subject),
        "kind": options.labels,
        "rate": options.rate,
        "generator": options.generator,
        "include_self": options.include_self,
        "exact": options.exact,
        "seed": options.seed,
    }


def _craft(subject: ImageSet, config: RunConfig, store: Store, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
    options = config.corruption
    assert options.norm and options.granularity and options.epsilon is not None, "filled by the config"
    device = choose_device(config)
    kind = CORRUPTIONS[options.data]
    craft = Craft(
        images=to_float(subject.images.to(device)),
        labels=subject.labels.to(device),
        num_classes=subject.num_classes,
        norm=options.norm,
        epsilon=options.epsilon,
        granularity=options.granularity,
        generator=generator(options.seed, "craft", kind.draws or kind.kind),
        build=partial(_network, subject, config),
        source=partial(source_network, subject, config, store, progress),
        progress=progress,
    )
    delta = kind.perturb(craft)
    poisoned = quantize(subject.images.to(device), delta, options.norm, options.epsilon).cpu()
    reached = norms_of(poisoned.to(torch.int16) - subject.images.to(torch.int16), options.norm)
    fields = {
        "kind": options.data,
        "norm": options.norm,
        "epsilon": options.epsilon,
        "granularity": options.granularity,
        "max_norm": float(reached.max()),
        "mean_norm": float(reached.mean()),
    }
    return {"images": poisoned.numpy()}, fields | _versions()


def source_network(subject: ImageSet, config: RunConfig, store: Store, progress: Progress = silent) -> nn.Module:
    """The clean-trained network that perturbations are crafted against; trained once per store, then read from it.

    SGD 0.1, batch 128, learning rate x 0.1 at 2/3 and 5/6 of the run; the epoch that is best on a held-out tenth.
    """
    options = config.corruption
    parameters = {
        "part": "source",
        "subject": fingerprint(subject),
        "architecture": options.source,
        "epochs": options.source_epochs,
        "seed": options.seed,
    }
    entry = store.fetch(parameters, lambda: _train_source(subject, config, progress))
    network = _network(subject, config)
    network.load_state_dict(_weights(entry))
    return network.to(choose_device(config)).eval()


def _train_source(subject: ImageSet, config: RunConfig, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
    epochs = config.corruption.source_epochs or 1
    recipe = build(
        "paper",
        {
            "data.name": config.data.name,
            "data.flip": config.data.flip,
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
    kept, held_out = split_validation(subject, SOURCE_VAL_FRACTION, config.corruption.seed)
    part, val = subject.take(kept), subject.take(held_out)
    # The trainer also reports test accuracy; the held-out tenth stands in, so that no test image is ever near this.
    trainer = Trainer(recipe, CorruptedSet(part, part.labels, val, val))
    best = -1.0
    weights: Arrays = {}
    for report in trainer.run():
        progress("source network", report.epoch, epochs)
        if not weights or report.val_accuracy > best:
            best = report.val_accuracy
            weights = {k: v.cpu().numpy().copy() for k, v in trainer.defense.networks["main"].state_dict().items()}
    return weights, {"kind": "source", "architecture": recipe.model.name, "val_accuracy": best} | _versions()


def _network(subject: ImageSet, config: RunConfig) -> nn.Module:
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


def _weights(entry: Entry) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in entry.arrays.items()}


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
