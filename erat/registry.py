"""Names for the parts that a configuration chooses: data sets, corruptions, defenses, backbones.

An entry is a line `name -> "module:attribute"`. It is imported when it is asked for, so listing names costs nothing
and a part that nobody uses is never loaded. Other packages add theirs (`erat.registration`); their plugins are loaded
when all names are listed, or a name is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from erat import plugins
from erat.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from erat.corruption.base import DataCorruption
    from erat.data.types import ImageSource
    from erat.defenses.base import Defense

T = TypeVar("T")


class Registry(Generic[T]):
    """A typed table of named parts.

    Args:
        kind: what the parts are, for error messages ("defense").
        entries: name -> "module:attribute".
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._loaded: dict[str, T] = {}
        self._added: dict[str, str | T] = {}  # by the running program itself: a plugin is found by every process
        for name, target in entries.items():
            self._targets[name] = target

    def add(self, name: str, target: str | T) -> None:
        """Register one more part, by "module:attribute" or as the object itself.

        Raises:
            UserError: the name is taken.
        """
        if name in self._targets:
            raise UserError(f"{self.kind} {name!r} is registered twice: {self._targets[name]} and {_place(target)}")
        self._targets[name] = _place(target)
        if not isinstance(target, str):
            self._loaded[name] = target
        if not plugins.loading():
            self._added[name] = target

    def remove(self, name: str) -> None:
        """Take out a part that is there."""
        del self._targets[name]
        self._loaded.pop(name, None)
        self._added.pop(name, None)

    def added(self) -> dict[str, str | T]:
        """What the running program registered by itself, as it was given to `add`; other processes lack it."""
        return dict(self._added)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        plugins.load()
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        if name not in self._targets:
            plugins.load()
        return name in self._targets

    def __getitem__(self, name: str) -> T:
        """The part called `name`.

        Raises:
            UserError: no such name; the message lists near matches.
        """
        if name not in self:
            missing = unknown_name(self.kind, name, self._targets)
            raise UserError("; ".join([str(missing), *plugins.faults]))
        if name not in self._loaded:
            module, _, attribute = self._targets[name].partition(":")
            self._loaded[name] = getattr(import_module(module), attribute)
        return self._loaded[name]


def _place(target: object) -> str:
    """Return where a part comes from, as "module:attribute"."""
    if isinstance(target, str):
        return target
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{named.__qualname__}"  # type: ignore[attr-defined]


DATASETS: Registry[ImageSource] = Registry(
    "data set",
    {
        "mnist": "erat.data.sources.mnist:SOURCE",
        "cifar10": "erat.data.sources.cifar:CIFAR10",
        "cifar100": "erat.data.sources.cifar:CIFAR100",
        "tiny-imagenet": "erat.data.sources.folder:TINY_IMAGENET",
        "folder": "erat.data.sources.folder:FOLDER",
    },
)

CORRUPTIONS: Registry[DataCorruption] = Registry(
    "data corruption",
    {
        "l2c": "erat.corruption.l2c:L2C",
        "up": "erat.corruption.up:UP",
        "aa": "erat.corruption.aa:AA",
        "ap": "erat.corruption.ap:AP",
        "urp": "erat.corruption.urp:URP",
        "uhp": "erat.corruption.universal:UHP",
        "uap": "erat.corruption.universal:UAP",
    },
)

DEFENSES: Registry[type[Defense]] = Registry(
    "defense",
    {
        "ce": "erat.defenses.ce:CrossEntropy",
        "at": "erat.defenses.at:AdversarialTraining",
        "iss": "erat.defenses.iss:ImageShortcutSqueezing",
        "dat": "erat.defenses.dat:DAT",
        "dividemix": "erat.defenses.dividemix:DivideMix",
        "unicon": "erat.defenses.unicon:Unicon",
        "mspl": "erat.defenses.mspl:MSPL",
        "erat": "erat.defenses.erat:ERAT",
    },
)

BackboneBuilder = Callable[[int, int, int], "nn.Module"]  # (num_classes, channels, image_size) -> network to logits

BACKBONES: Registry[BackboneBuilder] = Registry(
    "backbone",
    {
        "small": "erat.models.small:small",
        "resnet18": "erat.models.resnet:resnet18",
        "resnet34": "erat.models.resnet:resnet34",
        "resnet50": "erat.models.resnet:resnet50",
        "preact_resnet18": "erat.models.preact:PreActResNet18",
        "vgg11": "erat.models.vgg:vgg11",
        "vgg16": "erat.models.vgg:vgg16",
        "wideresnet28_10": "erat.models.wideresnet:wideresnet28_10",
        "vit_b16": "erat.models.vit:vit_b16",
    },
)
