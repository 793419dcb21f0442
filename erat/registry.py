"""Map names to the parts that a configuration chooses: data sets, corruptions, defenses, backbones.

An entry is a line `name -> "module:attribute"`. It is imported when it is first used, so listing names costs nothing
and an unused part is never loaded. The knowledge of a part that a configuration needs (the options of a defense, the
facts of a data set, the kind of a corruption) may be in a separate module without torch. A program that only reads
configurations then does not load the part, which takes seconds. Without such a module, the part itself is loaded.
Other packages can add their own parts (`erat.registration`); their plugins are loaded when all names are listed, or
when a name is unknown.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from erat import plugins
from erat.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from erat.corruption.base import DataCorruption
    from erat.corruption.kinds import CorruptionKind
    from erat.data.facts import SourceFacts
    from erat.data.types import ImageSource
    from erat.defenses.base import Defense
    from erat.options import DefenseOptions

T = TypeVar("T")
R = TypeVar("R")


class BrokenPartError(UserError):
    """A registered part, or the knowledge of it, cannot be imported or used."""


class Registry(Generic[T]):
    """A typed table of named parts.

    Args:
        kind: the word for a part in error messages ("defense").
        entries: name -> "module:attribute" of the part, or a pair of that and the "module:attribute" of the knowledge
            that a configuration needs of it.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | tuple[str, str]]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._places: dict[str, str] = {}  # the places of the knowledge for which no part is loaded
        self._loaded: dict[str, T] = {}
        self._asides: dict[str, Any] = {}  # the objects at these places
        # As given to `add`, without the parts of plugins, which every process finds by itself.
        self._added: dict[str, tuple[str | T, str | None]] = {}
        for name, target in entries.items():
            self.add(name, *([target] if isinstance(target, str) else target))
        self._added.clear()
        self.own = frozenset(self._targets)  # the names that come with the project

    def add(self, name: str, target: str | T, known: str | None = None) -> None:
        """Register a part.

        Args:
            name: the name of the part.
            target: the part as "module:attribute" or as the object itself.
            known: "module:attribute" of the knowledge that a configuration needs of the part; None: the part itself
                is asked.

        Raises:
            UserError: the name is taken.
        """
        if name in self._targets:
            raise UserError(f"{self.kind} {name!r} is registered twice: {self._targets[name]} and {_place(target)}")
        self._targets[name] = _place(target)
        if not isinstance(target, str):
            self._loaded[name] = target
        self._places.pop(name, None)
        self._asides.pop(name, None)
        if known is not None:
            self._places[name] = known
        if not plugins.loading():
            self._added[name] = target, known

    def remove(self, name: str) -> None:
        """Remove a registered part."""
        del self._targets[name]
        for table in (self._places, self._loaded, self._asides, self._added):
            table.pop(name, None)

    def added(self) -> dict[str, tuple[str | T, str | None]]:
        """Return target and known of the parts that this program registered itself; other processes lack them."""
        return dict(self._added)

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        plugins.load()
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        if name not in self._targets:
            plugins.load()
        return name in self._targets

    def __getitem__(self, name: str) -> T:
        """Return the part with this name.

        Raises:
            UserError: there is no such name; the message lists near matches.
            BrokenPartError: the part cannot be imported.
        """
        self.require(name)
        if name not in self._loaded:
            self._loaded[name] = self._imported(name, self._targets[name])
        return self._loaded[name]

    def by_weight(self) -> list[str]:
        """Return all registered names, sorted, with the parts that must be loaded for knowledge of them at the end."""
        return sorted(self.names(), key=lambda name: name not in self._places and name not in self._loaded)

    def each(self, read: Callable[[str], R]) -> Iterator[R]:
        """Yield what `read` makes of each name in the order of `by_weight`; skip broken parts, with a warning each."""
        for name in self.by_weight():
            try:
                found = read(name)
            except BrokenPartError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=2)
            else:
                yield found

    def require(self, name: str) -> None:
        """Check that there is a part with this name, without loading it. Raises as `__getitem__`."""
        if name not in self:
            missing = unknown_name(self.kind, name, self._targets)
            raise UserError("; ".join([str(missing), *plugins.faults]))

    def _known(self, name: str, ask: Callable[[Any], Any]) -> Any:
        """Return the knowledge that a configuration needs of a part.

        It is read from its separate place; if there is none, the part is loaded and `ask` takes it from the part.
        """
        self.require(name)
        if name not in self._places:
            return ask(self[name])
        if name not in self._asides:
            self._asides[name] = self._imported(name, self._places[name])
        return self._asides[name]

    def _imported(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # code of other packages may raise any error
            if name in self.own:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise BrokenPartError(
                f"{self.kind} {name!r}, registered as {target}, cannot be loaded ({reason})"
            ) from error


def _place(target: object) -> str:
    """Return where a part comes from, as "module:attribute"."""
    if isinstance(target, str):
        return target
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{named.__qualname__}"


class DataSets(Registry[T]):
    """Data sets by name."""

    def facts(self, name: str) -> SourceFacts:
        """Return the facts of a data set. Raises as `__getitem__`."""
        facts: SourceFacts = self._known(name, lambda source: source.facts)
        return facts


class Corruptions(Registry[T]):
    """Data corruptions by name."""

    def known(self, name: str) -> CorruptionKind:
        """Return the description of a kind of data corruption, which need not be able to craft.

        Raises as `__getitem__`.
        """
        found = self._known(name, lambda corruption: corruption)
        kind: CorruptionKind = found() if isinstance(found, type) else found
        return kind


class Defenses(Registry[T]):
    """Defenses by name."""

    def options(self, name: str) -> type[DefenseOptions]:
        """Return the class of a defense's options. Raises as `__getitem__`."""
        options: type[DefenseOptions] = self._known(name, lambda defense: defense.Options)
        return options


DATASETS: DataSets[ImageSource] = DataSets(
    "data set",
    {
        "mnist": ("erat.data.sources.mnist:SOURCE", "erat.data.facts:MNIST"),
        "cifar10": ("erat.data.sources.cifar:CIFAR10", "erat.data.facts:CIFAR10"),
        "cifar100": ("erat.data.sources.cifar:CIFAR100", "erat.data.facts:CIFAR100"),
        "tiny-imagenet": ("erat.data.sources.folder:TINY_IMAGENET", "erat.data.facts:TINY_IMAGENET"),
        "fashion-mnist": ("erat.data.sources.idx:FASHION_MNIST", "erat.data.facts:FASHION_MNIST"),
        "kmnist": ("erat.data.sources.idx:KMNIST", "erat.data.facts:KMNIST"),
        "svhn": ("erat.data.sources.svhn:SOURCE", "erat.data.facts:SVHN"),
        "stl10": ("erat.data.sources.stl10:SOURCE", "erat.data.facts:STL10"),
        "gtsrb": ("erat.data.sources.gtsrb:SOURCE", "erat.data.facts:GTSRB"),
        "medmnist": ("erat.data.sources.medmnist:SOURCE", "erat.data.facts:MEDMNIST"),
        "folder": ("erat.data.sources.folder:FOLDER", "erat.data.facts:FOLDER"),
    },
)

CORRUPTIONS: Corruptions[DataCorruption] = Corruptions(
    "data corruption",
    {
        "l2c": ("erat.corruption.l2c:L2C", "erat.corruption.kinds:L2C"),
        "up": ("erat.corruption.up:UP", "erat.corruption.kinds:UP"),
        "aa": ("erat.corruption.aa:AA", "erat.corruption.kinds:AA"),
        "ap": ("erat.corruption.ap:AP", "erat.corruption.kinds:AP"),
        "urp": ("erat.corruption.urp:URP", "erat.corruption.kinds:URP"),
        "uhp": ("erat.corruption.universal:UHP", "erat.corruption.kinds:UHP"),
        "uap": ("erat.corruption.universal:UAP", "erat.corruption.kinds:UAP"),
        "ops": ("erat.corruption.ops:OPS", "erat.corruption.kinds:OPS"),
        "lsp": ("erat.corruption.lsp:LSP", "erat.corruption.kinds:LSP"),
        "ar": ("erat.corruption.ar:AR", "erat.corruption.kinds:AR"),
        "cuda": ("erat.corruption.cuda:CUDA", "erat.corruption.kinds:CUDA"),
        "tue": ("erat.corruption.tue:TUE", "erat.corruption.kinds:TUE"),
        "pil": ("erat.corruption.pil:PIL", "erat.corruption.kinds:PIL"),
        "rem": ("erat.corruption.rem:REM", "erat.corruption.kinds:REM"),
        "adaptive": ("erat.corruption.adaptive:ADAPTIVE", "erat.corruption.kinds:Adaptive"),
    },
)

DEFENSES: Defenses[type[Defense]] = Defenses(
    "defense",
    {
        "ce": ("erat.defenses.ce:CrossEntropy", "erat.defenses.options:CrossEntropyOptions"),
        "at": ("erat.defenses.at:AdversarialTraining", "erat.defenses.options:AdversarialTrainingOptions"),
        "iss": ("erat.defenses.iss:ImageShortcutSqueezing", "erat.defenses.options:SqueezingOptions"),
        "ueraser_max": ("erat.defenses.ueraser:UEraser", "erat.defenses.options:UEraserOptions"),
        "dat": ("erat.defenses.dat:DAT", "erat.defenses.options:DATOptions"),
        "dividemix": ("erat.defenses.dividemix:DivideMix", "erat.defenses.options:DivideMixOptions"),
        "unicon": ("erat.defenses.unicon:Unicon", "erat.defenses.options:UniconOptions"),
        "mspl": ("erat.defenses.mspl:MSPL", "erat.defenses.options:MSPLOptions"),
        "erat": ("erat.defenses.erat:ERAT", "erat.defenses.options:ERATOptions"),
    },
)

BackboneBuilder = Callable[[int, int, int], "nn.Module"]  # (num_classes, channels, image_size) -> network with logits

BACKBONES: Registry[BackboneBuilder] = Registry(
    "backbone",
    {
        "small": "erat.models.small:small",
        "medium": "erat.models.small:medium",
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
