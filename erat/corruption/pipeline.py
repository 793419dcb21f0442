"""Make the corrupted set of a configuration: poisoned images and corrupted labels, both from the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erat.config import RunConfig, content_digest
from erat.corruption.base import Craft, Progress, norms_of, quantize, silent
from erat.corruption.coupling import aimed_at, annotated, annotator_config, bound_labels, overlapping, realised
from erat.corruption.human import human_labels
from erat.corruption.labels import make_label_noise
from erat.corruption.source import Traits, source_network, source_parameters, untrained
from erat.corruption.store import Arrays, Expected, Form, Store, versions
from erat.data.loading import load_parts, split_validation
from erat.data.types import CorruptedSet, ImageSet, to_float
from erat.devices import arithmetic
from erat.engine.assembly import choose_device
from erat.errors import UserError
from erat.registry import CORRUPTIONS, DATASETS
from erat.seeding import generator

Parameters = dict[str, Any]


def corrupted_set(config: RunConfig, store: Store, progress: Progress = silent) -> CorruptedSet:
    """Return the set that a run trains on and is judged by; craft it now if it is not in the store.

    The validation part is split off first, unless the data set brings images whose labels are trusted. A trusted
    validation part stays clean and is not used in crafting; any other is corrupted together with the training part.
    """
    train, kept, val, test = _divided(config)
    if len(val) == 0:
        raise UserError(f"val.fraction must hold out at least one of {len(train)} images, got {config.val.fraction}")
    subject = _subject(train, kept, config)
    # Whatever the precision of the run that happens to come first: the set is that of all runs that name it.
    with arithmetic(choose_device(config).type, "fp32"):
        if config.corruption.coupling in ("labels_first", "overlap"):
            labels, labels_manifest = mislabel(subject, config, store, progress)
            poisoned, images_manifest = poison(subject, config, store, progress, labels)
        else:
            poisoned, images_manifest = poison(subject, config, store, progress)
            labels, labels_manifest = mislabel(subject, config, store, progress, poisoned)
    corrupted = ImageSet(poisoned, labels, subject.class_names)
    manifest = {"images": images_manifest, "labels": labels_manifest, "val_trusted": config.val.trusted}
    if config.corruption.data != "none" and config.corruption.labels != "none":
        used = coupled_share(config, subject, labels)
        found = realised(used, (labels != subject.labels).cpu())
        manifest["coupling"] = {"kind": config.corruption.coupling, "asked": config.corruption.overlap, **found}
    if config.val.trusted:
        return CorruptedSet(corrupted, subject.labels, val, test, manifest)
    rest = torch.ones(len(train), dtype=torch.bool).index_fill_(0, kept.cpu(), False).nonzero().squeeze(1)
    return CorruptedSet(corrupted.take(kept), train.labels[kept], corrupted.take(rest), test, manifest)


def stored_parts(configs: Sequence[RunConfig]) -> list[tuple[Parameters | None, Parameters]]:
    """Return, for each run, the parameters under which the store keeps its poisoned images and its given labels.

    The first of the two is None where a run has no poisoned images. Each image set is read once and not kept in memory.
    """
    subjects: dict[tuple[Any, ...], Traits] = {}
    parts = []
    for config in configs:
        key = (config.data, config.val)
        if key not in subjects:
            train, kept, _, _ = _divided(config)
            subjects[key] = Traits.of(_subject(train, kept, config))
        images = None if config.corruption.data == "none" else _image_parameters(subjects[key], config)
        parts.append((images, _label_parameters(subjects[key], config)))
    return parts


def _divided(config: RunConfig) -> tuple[ImageSet, Tensor, ImageSet, ImageSet]:
    """Return (training set, the indices in it that are trained on, validation part, test set)."""
    train, test, checked = load_parts(config.data)
    if checked is not None and config.val.trusted:
        return train, torch.arange(len(train)), checked, test
    kept, held_out = split_validation(train, config.val.fraction, config.val.seed)
    return train, kept, train.take(held_out), test


def _subject(train: ImageSet, kept: Tensor, config: RunConfig) -> ImageSet:
    """Return the images that are corrupted: the training part, with the validation part unless that is trusted."""
    return train.take(kept) if config.val.trusted else train


def poison(
    subject: ImageSet, config: RunConfig, store: Store, progress: Progress = silent, given: Tensor | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Return (poisoned images, uint8 (N, C, H, W); manifest). With `corruption.data=none`, the images are unchanged.

    The store keeps the whole set poisoned; `corruption.share` says what share of its images is used, and the manifest
    then also has the share of images that differ from the clean ones.

    Args:
        subject: the clean images with their true labels.
        config: the configuration, whose `corruption` says what is done.
        store: the store.
        progress: told how far the crafting is.
        given: the given labels, int64 (N,), for the couplings in which the images depend on them.
    """
    options = config.corruption
    if options.data == "none":
        return subject.images, {"kind": "none", "poisoned_share": 0.0}
    form = Form("|u1", tuple(subject.images.shape))
    entry = store.fetch(
        _image_parameters(Traits.of(subject), config),
        lambda: _craft(subject, config, store, progress, given),
        Expected({"images": form}, ("kind", "norm", "epsilon", "max_norm", "mean_norm")),
    )
    images = torch.from_numpy(np.array(entry.arrays["images"]))
    if options.share < 1:
        clean = ~coupled_share(config, subject, given)
        images[clean] = subject.images[clean]
    poisoned = (images != subject.images).flatten(1).any(1).double().mean()
    return images, entry.manifest | {"share": options.share, "poisoned_share": float(poisoned)}


def coupled_share(config: RunConfig, subject: ImageSet, given: Tensor | None) -> Tensor:
    """Return which images of the set are poisoned, bool (N,); the given labels matter to `coupling=overlap` alone."""
    options, draw = config.corruption, generator(config.corruption.seed, "share")
    if options.coupling == "overlap":
        assert given is not None and options.overlap is not None, "filled by the config"
        return overlapping((given != subject.labels).cpu(), options.share, options.overlap, draw)
    # One order for all shares: the images of a smaller share are among those of a larger one.
    chosen = torch.randperm(len(subject), generator=draw)[: round(options.share * len(subject))]
    return torch.zeros(len(subject), dtype=torch.bool).index_fill_(0, chosen, True)


def mislabel(
    subject: ImageSet, config: RunConfig, store: Store, progress: Progress = silent, seen: Tensor | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Return (given labels, int64 (N,); manifest with the realised noise rate and transition matrix).

    Args:
        subject, config, store, progress: as in `poison`.
        seen: the images as an annotator sees them, uint8 (N, C, H, W); None: the clean ones.
    """
    options = config.corruption
    images = subject.images if seen is None else seen

    def make() -> tuple[Arrays, dict[str, Any]]:
        more: dict[str, Any] = {}
        if options.labels_file is not None:
            noise = human_labels(options.labels, subject, Path(options.labels_file), options.labels_file_digest)
        elif options.labels == "annotator":
            assert options.rate is not None, "only human labels have none"
            network, annotator = source_network(subject, annotator_config(config), store, progress)
            noise, right = annotated(network, images, subject, options.rate)
            more = {"annotator": annotator, "annotator_accuracy": right}
        elif options.labels == "bound":
            assert options.rate is not None, "only human labels have none"
            noise = bound_labels(subject.labels, subject.num_classes, options.rate, options.seed, exact=options.exact)
        else:
            assert options.rate is not None, "only human labels have none"
            noise = make_label_noise(
                options.labels,
                subject,
                rate=options.rate,
                seed=options.seed,
                exact=options.exact,
                include_self=options.include_self,
                similar=DATASETS.facts(config.data.name).similar,
                generator=options.generator or "cores",
            )
        fields = {"kind": options.labels, "noise_rate": noise.rate, "transition": noise.transition.tolist()}
        return {"labels": noise.labels.numpy()}, fields | more | versions()

    form = Form("<i8", (len(subject),), below=subject.num_classes)
    expected = Expected({"labels": form}, ("kind", "noise_rate", "transition"))
    entry = store.fetch(_label_parameters(Traits.of(subject), config), make, expected)
    return torch.from_numpy(np.array(entry.arrays["labels"])), entry.manifest


def _image_parameters(subject: Traits, config: RunConfig) -> Parameters:
    """Return everything that decides the poisoned images made from a set with these traits."""
    options = config.corruption
    kind = CORRUPTIONS.known(options.data)
    trained = kind.uses == "trained network" and options.source_weights is None
    coupled: Parameters = {}
    if options.coupling == "labels_first":
        coupled = {"coupling": options.coupling, "labels": content_digest(_label_parameters(subject, config))}
    elif options.coupling == "bound":
        coupled = {"coupling": options.coupling}
    return {
        "part": "images",
        "subject": subject.fingerprint,
        "kind": options.data,
        "version": kind.version,
        "norm": options.norm,
        "epsilon": options.epsilon,
        "granularity": options.granularity,
        "source": None if kind.uses == "nothing" else options.source,
        "source_epochs": options.source_epochs if trained else None,
        "source_weights_digest": options.source_weights_digest,
        **{key: value for key, value in options.own().items() if options.added.get(key, ...) != value},
        "seed": options.seed,
        **(subject.training(config) if trained else {}),
        **coupled,
    }


def _shared_parameters(subject: Traits, config: RunConfig, name: str) -> Parameters:
    """Return everything that decides what crafted sets share: all that decides their images but kind and labels."""
    kind = CORRUPTIONS.known(config.corruption.data)
    images = _image_parameters(subject, config)
    rest = {key: value for key, value in images.items() if key not in ("coupling", "labels")}
    return rest | {"part": name, "kind": kind.draws or kind.kind}


def _label_parameters(subject: Traits, config: RunConfig) -> Parameters:
    """Return everything that decides the given labels of a set with these traits."""
    options, facts = config.corruption, DATASETS.facts(config.data.name)
    more: Parameters = {}
    if options.labels == "asymmetric" and facts.fingerprint is None:  # for a fixed set the map never varies
        more = {"similar": facts.similar and sorted(facts.similar.items())}
    elif options.labels_file is not None and subject.rows is not None:
        more = {"rows": subject.rows}
    elif options.labels == "annotator":
        network = source_parameters(subject, annotator_config(config))
        more = {"annotator": content_digest(network)}
        if options.data != "none":
            more |= {"images": content_digest(_image_parameters(subject, config)), "share": options.share}
    return {
        "part": "labels",
        "subject": subject.fingerprint,
        "kind": options.labels,
        "rate": options.rate,
        "labels_file_digest": options.labels_file_digest,
        "generator": options.generator,
        "include_self": options.include_self,
        "exact": options.exact,
        "seed": options.seed,
        **more,
    }


def _craft(
    subject: ImageSet, config: RunConfig, store: Store, progress: Progress, given: Tensor | None
) -> tuple[Arrays, dict[str, Any]]:
    options = config.corruption
    assert options.norm and options.granularity, "filled by the config"
    assert (options.epsilon is None) == (options.norm == "unbounded"), "filled by the config"
    options.check_image(subject.size**2)
    epsilon = math.inf if options.epsilon is None else options.epsilon
    device = choose_device(config)
    kind = CORRUPTIONS[options.data]
    sources: list[dict[str, Any]] = []
    labels = subject.labels
    if options.coupling == "labels_first":
        assert given is not None, "the labels come first"
        labels = given
    elif options.coupling == "bound":
        assert kind.towards is not None, "checked by the config"
        labels = aimed_at(labels, subject.num_classes, kind.towards)

    def source() -> nn.Module:
        network, manifest = source_network(subject, config, store, progress)
        sources.append(manifest)
        return network

    def once(name: str, make: Callable[[Craft], Tensor]) -> Tensor:
        parameters = _shared_parameters(Traits.of(subject), config, name)

        def made() -> tuple[Arrays, dict[str, Any]]:
            own = replace(craft, generator=draws(), scratch=store.scratch(parameters), once=None)
            arrays = {name: make(own).cpu().numpy()}
            return arrays, {"kind": name, "source": sources[0] if sources else None} | versions()

        entry = store.fetch(parameters, made, Expected(fields=("source",)))
        if not sources and entry.manifest["source"] is not None:
            sources.append(entry.manifest["source"])
        return torch.from_numpy(np.array(entry.arrays[name])).to(device)

    draws = partial(generator, options.seed, "craft", kind.draws or kind.kind)
    craft = Craft(
        images=to_float(subject.images.to(device)),
        labels=labels.to(device),
        num_classes=subject.num_classes,
        norm=options.norm,
        epsilon=epsilon,
        granularity=options.granularity,
        generator=draws(),
        build=partial(untrained, subject, config),
        source=source,
        options=options.own(),
        progress=progress,
        scratch=store.scratch(_image_parameters(Traits.of(subject), config)),
        once=once,
    )
    delta = kind.perturb(craft)
    poisoned = quantize(subject.images.to(device), delta, options.norm, epsilon).cpu()
    reached = norms_of(poisoned.to(torch.int16) - subject.images.to(torch.int16), options.norm)
    fields = {
        "kind": options.data,
        "norm": options.norm,
        "epsilon": options.epsilon,
        "granularity": options.granularity,
        "max_norm": float(reached.max()),
        "mean_norm": float(reached.mean()),
        "source": sources[0] if sources else None,
    }
    return {"images": poisoned.numpy()}, fields | versions()
