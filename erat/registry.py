"""Names for the parts that a configuration chooses: data sets, corruptions, defenses, backbones.

An entry is a line `name -> "module:attribute"`. It is imported when it is asked for, so listing names costs nothing
and a part that nobody uses is never loaded. What a configuration must know of a part (a defense's options, a data set's
facts, the kind of a corruption) may have a place of its own beside it, in a module without torch: whoever only reads
configurations then need not load the part, which takes seconds. Without such a place the part itself is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from erat.errors import unknown_name

if TYPE_CHECKING:
    from torch import nn

    from erat.corruption.base import DataCorruption
    from erat.corruption.kinds import CorruptionKind
    from erat.data.facts import SourceFacts
    from erat.data.types import ImageSource
    from erat.defenses.base import Defense
    from erat.options import DefenseOptions

T = TypeVar("T")


class Registry(Generic[T]):
    """A typed table of named parts.

    Args:
        kind: what the parts are, for error messages ("defense").
        entries: name -> "module:attribute", or that and the place of what a configuration must know of it.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | tuple[str, str]]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._places: dict[str, str] = {}  # of what may be known without loading the part
        self._loaded: dict[str, T] = {}
        self._asides: dict[str, Any] = {}  # what lay at these places
        for name, target in entries.items():
            self.add(name, *([target] if isinstance(target, str) else target))

    def add(self, name: str, target: str | T, known: str | None = None) -> None:
        """Register one more part, by "module:attribute" or as the object itself.

        Args:
            known: "module:attribute" of what a configuration must know of it; None: the part is asked.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._targets:
            raise ValueError(f"{self.kind} {name!r} is registered twice: {self._targets[name]} and {target}")
        if isinstance(target, str):
            self._targets[name] = target
        else:
            self._targets[name] = f"{type(target).__module__}:{name}"
            self._loaded[name] = target
        self._places.pop(name, None)
        self._asides.pop(name, None)
        if known is not None:
            self._places[name] = known

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __getitem__(self, name: str) -> T:
        """The part called `name`.

        Raises:
            UserError: no such name; the message lists near matches.
        """
        self.require(name)
        if name not in self._loaded:
            self._loaded[name] = _imported(self._targets[name])
        return self._loaded[name]

    def by_weight(self) -> list[str]:
        """All registered names, sorted; last those of parts that must be loaded for what is to be known of them."""
        return sorted(self.names(), key=lambda name: name not in self._places and name not in self._loaded)

    def require(self, name: str) -> None:
        """Check that there is such a part, without loading it. Raises as `__getitem__`."""
        if name not in self:
            raise unknown_name(self.kind, name, self._targets)

    def _known(self, name: str, ask: Callable[[Any], Any]) -> Any:
        """What a configuration must know of a part: from its own place or, without one, by asking the part."""
        self.require(name)
        if name not in self._places:
            return ask(self[name])
        if name not in self._asides:
            self._asides[name] = _imported(self._places[name])
        return self._asides[name]


def _imported(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class DataSets(Registry[T]):
    """Data sets by name."""

    def facts(self, name: str) -> SourceFacts:
        """What is known of a data set. Raises as `__getitem__`."""
        facts: SourceFacts = self._known(name, lambda source: source.facts)
        return facts


class Corruptions(Registry[T]):
    """Data corruptions by name."""

    def known(self, name: str) -> CorruptionKind:
        """What is known of a kind of data corruption, which need not be able to craft. Raises as `__getitem__`."""
        found = self._known(name, lambda corruption: corruption)
        kind: CorruptionKind = found() if isinstance(found, type) else found
        return kind


class Defenses(Registry[T]):
    """Defenses by name."""

    def options(self, name: str) -> type[DefenseOptions]:
        """What a defense may be told. Raises as `__getitem__`."""
        options: type[DefenseOptions] = self._known(name, lambda defense: defense.Options)
        return options


DATASETS: DataSets[ImageSource] = DataSets(
    "data set",
    {
        "mnist": ("erat.data.sources.mnist:SOURCE", "erat.data.facts:MNIST"),
        "cifar10": ("erat.data.sources.cifar:CIFAR10", "erat.data.facts:CIFAR10"),
        "cifar100": ("erat.data.sources.cifar:CIFAR100", "erat.data.facts:CIFAR100"),
        "tiny-imagenet": ("erat.data.sources.folder:TINY_IMAGENET", "erat.data.facts:TINY_IMAGENET"),
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
    },
)

DEFENSES: Defenses[type[Defense]] = Defenses(
    "defense",
    {
        "ce": ("erat.defenses.ce:CrossEntropy", "erat.defenses.options:CrossEntropyOptions"),
        "at": ("erat.defenses.at:AdversarialTraining", "erat.defenses.options:AdversarialTrainingOptions"),
        "iss": ("erat.defenses.iss:ImageShortcutSqueezing", "erat.defenses.options:SqueezingOptions"),
        "dat": ("erat.defenses.dat:DAT", "erat.defenses.options:DATOptions"),
        "dividemix": ("erat.defenses.dividemix:DivideMix", "erat.defenses.options:DivideMixOptions"),
        "unicon": ("erat.defenses.unicon:Unicon", "erat.defenses.options:UniconOptions"),
        "mspl": ("erat.defenses.mspl:MSPL", "erat.defenses.options:MSPLOptions"),
        "erat": ("erat.defenses.erat:ERAT", "erat.defenses.options:ERATOptions"),
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
