"""Corrupted sets ahead of training: crafted here, or as Ray tasks beside the runs that have theirs already."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from pathlib import Path

from erat.config import RunConfig, build, content_digest
from erat.corruption.pipeline import corrupted_set, stored_parts
from erat.corruption.store import Store
from erat.data.base import CorruptedSet
from erat.engine.memory import data_shape
from orchestration.crafting_view import CraftView, craft_view
from orchestration.home import Home
from orchestration.trial import threads

SMALL_SET = 5_000_000  # pixel values of all images: 25,000 digits of 14 x 14, 1,600 images of CIFAR-10


def distinct_sets(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One configuration per corrupted set that these need, of which each may take another share."""
    return list({_set_key(config): config for config in configs}.values())


def missing_sets(configs: Sequence[RunConfig], home: Home) -> list[RunConfig]:
    """Of the sets that these need, those that the store lacks or has damaged (of which it warns)."""
    sets = distinct_sets(configs)
    sound = cache(lambda path, part: json.loads(part) in home.sharing(path).store())  # what several share is read once
    return [
        config
        for config, parts in zip(sets, stored_parts(sets), strict=True)
        if not all(sound(config.storage.path, json.dumps(part)) for part in parts if part is not None)
    ]


def by_images(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Sets with the same poisoned images and other labels belong together: a second task would wait for the first."""
    groups: dict[object, list[RunConfig]] = {}
    for config, (images, _) in zip(configs, stored_parts(configs), strict=True):
        groups.setdefault(_set_key(config) if images is None else content_digest(images), []).append(config)
    return list(groups.values())


def placed(config: RunConfig) -> RunConfig:
    """The same set, to be crafted on the processor if it is small: the devices are then left to the runs."""
    shape = data_shape(config)
    if config.resources.gpu == 0 or (shape.train + shape.val) * prod(shape.image) > SMALL_SET:
        return config
    on_cpu = {"gpu": 0.0, "device": "cpu"}
    return config.model_copy(update={"resources": config.resources.model_copy(update=on_cpu)})


def _tasks(missing: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """What a cluster crafts: sets that belong together, each where it is to be crafted."""
    return [[placed(config) for config in group] for group in by_images(missing)]


def _store(config: RunConfig, home: Home) -> Store:
    return home.sharing(config.storage.path).store()


def craft_here(config: RunConfig, home: Home) -> CorruptedSet:
    """The corrupted set of a configuration, crafted in this process if the store lacks it."""
    with craft_view() as view, threads(config):
        return corrupted_set(config, _store(config, home), partial(view.show, set_name(config)))


def craft_on_cluster(configs: Sequence[RunConfig], home: Home, address: str) -> None:
    """Craft what these need and the store lacks on the cluster at `address`, side by side as far as its resources go.

    Raises:
        UserError: from a task, as it was raised there.
    """
    from orchestration import cluster

    groups = _tasks(missing_sets(configs, home))
    if not groups:
        return
    with cluster.connection(address), craft_view() as view:
        cluster.check_nodes(home.sharing(configs[0].storage.path))
        cluster.craft_sets(groups, home, lambda index, *progress: view.show(set_name(groups[index][0]), *progress))


class Crafting:
    """Sets that Ray crafts while the runs whose sets are there are trained.

    Args:
        missing: one configuration per set.
        home: whose store they are crafted into.
    """

    def __init__(self, missing: Sequence[RunConfig], home: Home) -> None:
        self._groups, self._home = _tasks(missing), home
        self._waiting = set(range(len(self._groups)))
        self._error: BaseException | None = None

    @contextmanager
    def running(self, view: CraftView) -> Iterator[None]:
        """Craft for the time of the block, on the cluster that is connected; what is not done at its end is left."""
        if not self._groups:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._craft, args=(view, over.is_set), name="crafting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _craft(self, view: CraftView, given_up: Callable[[], bool]) -> None:
        from orchestration import cluster

        def told(index: int, what: str, done: int, total: int) -> None:
            view.show(set_name(self._groups[index][0]), what, done, total)

        try:
            cluster.craft_sets(self._groups, self._home, told, self._waiting.discard, given_up)
        except BaseException as error:  # raised where the next run is asked for
            self._error = error

    def gate(self, baselines: Sequence[RunConfig], points: Sequence[RunConfig]) -> Callable[[int], bool]:
        """Whether the run of this number may begin: a baseline when its set is there, a search when its points' are.

        The gate raises what crafting raised.
        """
        groups = {_set_key(config): index for index, group in enumerate(self._groups) for config in group}
        own = [groups.get(_set_key(config)) for config in baselines]
        searched = {groups.get(_set_key(config)) for config in points}

        def ready(number: int) -> bool:
            if self._error is not None:
                raise self._error
            return own[number] not in self._waiting if number < len(own) else not searched & self._waiting

        return ready


def preview(configs: Sequence[RunConfig], home: Home) -> Path:
    """Craft these sets, of the same images, and draw a sheet of what was done to them; its path."""
    from orchestration.report.sheet import Band, preview_sheet

    shared = {k: v for k, v in configs[0].flat().items() if k.split(".")[0] in ("data", "val")}
    clean = build(configs[0].preset, shared | {"corruption.data": "none", "corruption.labels": "none"})
    images = craft_here(clean, home).train
    bands = [Band(set_name(config), images, craft_here(config, home)) for config in configs]
    digest = content_digest([config.identity() for config in configs])
    return preview_sheet(bands, home.report(f"preview-{digest[:6]}") / "preview.png")


def set_name(config: RunConfig) -> str:
    """What a person calls a corrupted set: "uhp l2 1.25", "up linf 0.1 seed 3"."""
    options = config.corruption
    if options.data == "none":
        return f"{options.labels} labels"
    seed = f" seed {options.seed}" if options.seed else ""
    return f"{options.data} {options.norm} {options.epsilon:.3g}{seed}"


def _set_key(config: RunConfig) -> tuple[object, ...]:
    """What two runs on one corrupted set share."""
    return config.data, config.val, config.corruption.model_copy(update={"share": 1.0})
