"""Define the base classes of options: sections of a configuration, bounded numbers, and options shared by all parts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from erat.errors import UserError
from erat.paths import user_path

Norm = Literal["linf", "l2"]
# What bounds a poison; l0 counts pixels, and "unbounded" is for what is no small perturbation at all.
PoisonNorm = Literal["linf", "l2", "l1", "l0", "unbounded"]


# What a defense may perturb its images under; those after the paper's two have budgets of their own name.
NORMS = ("linf", "l2", "l1", "l0", "ssim", "wasserstein", "lpips")


def norms_in(text: str) -> tuple[str, ...]:
    """Return the norms of a set such as "both" (linf and l2) or "linf,l2,l1", in the order of `NORMS`."""
    names = [name.strip() for name in ("linf,l2" if text == "both" else text).split(",")]
    return tuple(name for name in NORMS if name in names)


def _joined(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _norm_set(text: str) -> str:
    """Return a set of norms in the one form in which it is part of a run's identity: ordered, linf and l2 as "both"."""
    names = [name.strip() for name in text.split(",")]
    if names != ["both"] and (not set(names) <= set(NORMS) or len(set(names)) < len(names)):
        raise PydanticCustomError("norms", f"Input should be both (linf and l2), or some of {', '.join(NORMS)}")
    found = norms_in(text)
    return "both" if found == ("linf", "l2") else ",".join(found)


# A set of norms: "both", "l2", "linf,l2,l1", or a list of them.
NormSet = Annotated[str, BeforeValidator(_joined), AfterValidator(_norm_set)]
# How the corruption of labels and that of images depend on each other: see `erat.corruption.coupling`.
Coupling = Literal["independent", "labels_first", "annotator", "bound", "overlap"]
DECIDING = ("annotator", "bound")  # couplings that decide the labels, and are the kind of label noise themselves
SOURCE_EPOCHS = 30
LabelKind = Literal[
    "none",
    "symmetric",
    "asymmetric",
    "instance",
    "annotator",
    "bound",
    "human-aggregate",
    "human-random1",
    "human-random2",
    "human-random3",
    "human-worst",
    "human-fine",
]


_FRACTION = re.compile(r"\s*([-+]?[\d.]+)\s*/\s*(\d+)\s*")


def parse_fraction(value: object) -> object:
    """Convert a fraction such as "8/255" to a number; return any other value unchanged for the field's own type."""
    if isinstance(value, str) and (match := _FRACTION.fullmatch(value)):
        try:
            return float(match[1]) / int(match[2])
        except (ValueError, ArithmeticError):
            return value
    return value


MOST = 1e6  # bound on the numbers of a configuration; beyond it steps and weights overflow float32


MOST_WORKERS = 4096


MOST_EPOCHS = 100_000


SEEDS = 2**63


def _within_bounds(value: float) -> float:
    """Return the value, or refuse it if its magnitude exceeds `MOST`; infinite values are refused before this check."""
    if abs(value) > MOST:
        raise PydanticCustomError("out_of_bounds", f"Input should be between -{MOST:g} and {MOST:g}")
    return value


Number = Annotated[float, BeforeValidator(parse_fraction), Field(allow_inf_nan=False), AfterValidator(_within_bounds)]


Epoch = Annotated[int, Field(ge=0, le=MOST_EPOCHS)]


_UNITS = {"s": 1, "min": 60, "h": 3600}
_INTERVAL = re.compile(r"(\d{1,9})\s*(s|min|h)?")


def interval(text: str) -> tuple[int | None, float]:
    """Return the number of epochs of an interval such as "5", and 0.0; or None and the seconds of one such as "10min".

    Raises:
        PydanticCustomError: it is no such interval.
    """
    match = _INTERVAL.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= (MOST_EPOCHS if match[2] is None else _LONGEST // _UNITS[match[2]]):
        raise PydanticCustomError("interval", _INTERVALS)
    return (int(match[1]), 0.0) if match[2] is None else (None, float(int(match[1]) * _UNITS[match[2]]))


_LONGEST = 7 * 86400  # seconds
_INTERVALS = f"Input should be 1 to {MOST_EPOCHS} epochs, or a time from 1s to 168h, such as 90s, 10min or 2h"


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked_interval(text: str) -> str:
    interval(text)
    return text.replace(" ", "")


# A number of epochs, or of seconds, minutes or hours.
Interval = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked_interval)]


_FREE = "free"
T = TypeVar("T")
# The type of an option that changes what a run learns but not its cost: neither time nor memory depends on its value.
Free = Annotated[T, _FREE]


class Section(BaseModel):
    """The base of every section of a configuration: immutable, and refusing unknown keys.

    Attributes:
        added: keys that were added later, with the values at which a run is the same as before they existed; with
            these values they are left out of the identity of a run and of a crafted set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    added: ClassVar[dict[str, Any]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give a subclass what its base classes say of `added`, and of a field of which it changes only the default."""
        cls.added = {key: value for base in reversed(cls.__mro__) for key, value in getattr(base, "added", {}).items()}
        for name, field in cls.model_fields.items():
            fields = (getattr(base, "model_fields", {}) for base in cls.__mro__[1:])
            bases = (found[name] for found in fields if name in found)
            field.description = field.description or next((b.description for b in bases if b.description), None)


@cache
def fields_of(section: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return the fields of a section by name, from a cache, because each access to `model_fields` is slow."""
    return section.model_fields


class DataConfig(Section):
    """The choice of the images."""

    name: str = Field("cifar10", description="data set; folder: images of one's own")
    root: str | None = Field(None, description="folder or file that holds the data set (not for mnist)")
    fingerprint: str | None = Field(None, description="digest of the images and labels; filled in")
    download: bool = Field(False, description="fetch a missing data set into data.root")
    image_size: int | None = Field(None, ge=8, le=512, description="side in pixels after resizing; none: as stored")
    limit: int | None = Field(None, ge=2, le=10**9, description="training images to keep, class-balanced; none: all")
    test_fraction: Number = Field(0.2, gt=0, lt=1, description="share held out where a folder has no test part")
    flip: bool | None = Field(None, description="mirror images in weak views; none: what suits the data set")

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str | None) -> str | None:
        """Make the path absolute, because workers run in other folders."""
        return str(user_path(root, "data.root")) if root else None


def too_little_overlap(least: float, share: float, rate: float, overlap: float) -> UserError:
    """Return the error that the poisoned and the mislabelled share of the images have more in common than is asked."""
    return UserError(
        f"corruption.overlap must be in [{math.ceil(least * 1000) / 1000:g}, 1] with corruption.share={share:g} and "
        f"{rate:.0%} wrong labels, got {overlap:g}"
    )


# Options of the first kinds of data corruption. Every configuration contains them, as none where its kind lacks them,
# because the digests of earlier runs include them.
EVERYWHERE = ("steps", "attack", "width", "lr")


class CorruptionOptions(Section):
    """The corruption of the training images and labels; each kind of data corruption adds its own keys.

    A key that a kind adds may be given as none, which means its default.
    """

    added: ClassVar[dict[str, Any]] = {"coupling": "independent", "overlap": None}

    data: str = Field("none", description="perturbation of the training images (poison)")
    norm: PoisonNorm | None = Field(None, description="none: the norm in which this corruption was published")
    epsilon: Number | None = Field(
        None, ge=0, description="budget in pixel units of 1.0, of l0 in pixels; none: customary for the set"
    )
    granularity: Literal["class", "sample"] | None = Field(None, description="one perturbation per class or per image")
    share: Number = Field(1.0, gt=0, le=1, description="share of the images that are poisoned, drawn by the seed")
    source: str | None = Field("resnet18", description="network that perturbations are crafted against")
    source_epochs: int | None = Field(
        SOURCE_EPOCHS, ge=1, le=MOST_EPOCHS, description="epochs for which the source network is trained on clean data"
    )
    source_weights: str | None = Field(
        None, description="file with the weights of the source network; none: it is trained here"
    )
    source_weights_digest: str | None = Field(None, description="digest of source_weights; filled in")
    labels: LabelKind = Field("none", description="kind of label noise in the training labels")
    labels_file: str | None = Field(None, description="CIFAR-N's file, for the human-* labels")
    labels_file_digest: str | None = Field(None, description="digest of labels_file; filled in")
    rate: Number | None = Field(
        0.6, ge=0, le=1, description="share of the labels that are wrong; none: human labels, which have their own"
    )
    generator: Literal["cores", "pdn"] | None = Field("cores", description="labels=instance: which published generator")
    include_self: bool = Field(False, description="symmetric noise may draw the true class again")
    exact: bool = Field(True, description="flip exactly rate * N labels, not each with probability rate")
    seed: int = Field(0, ge=0, lt=2**32, description="decides which images and labels are corrupted, and how")
    coupling: Coupling = Field(
        "independent",
        description="beyond the paper: poison for the given labels, labels by an annotator who sees the poison, both "
        "with one wrong class, or a given overlap",
    )
    overlap: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="coupling=overlap: images both poisoned and mislabelled, as a share of the smaller set; none: 1",
    )

    @classmethod
    def own_keys(cls) -> list[str]:
        """Return the names of the fields that this kind of data corruption adds."""
        return [key for key in fields_of(cls) if key not in fields_of(CorruptionOptions)]

    def own(self) -> dict[str, Any]:
        """Return the values of the fields that this kind of data corruption adds, by name."""
        return {key: getattr(self, key) for key in self.own_keys()}

    def networks(self) -> list[str]:
        """Return the names of the networks that the crafting needs."""
        return [] if self.source is None else [self.source]

    def check_image(self, pixels: int) -> None:
        """Refuse values that are not possible for images of so many pixels.

        Raises:
            UserError: the message says what is wrong, what was given and what is allowed.
        """
        if self.norm == "l0" and self.epsilon is not None and self.epsilon > pixels:
            raise UserError(
                f"corruption.epsilon must be at most the {pixels} pixels of an image for {self._sparse()}, got "
                f"{self.epsilon:g}"
            )

    @model_validator(mode="after")
    def _whole_pixels(self) -> CorruptionOptions:
        if self.norm == "l0" and self.epsilon is not None and (self.epsilon < 1 or self.epsilon % 1):
            raise UserError(
                f"corruption.epsilon must be a whole number of pixels, at least 1, for {self._sparse()}, got "
                f"{self.epsilon:g}"
            )
        return self

    def _sparse(self) -> str:
        """Return what an l0 budget is for, in words."""
        return self.data if self.data == "ops" else f"{self.data} under l0"

    def check_coupling(self) -> None:
        """Refuse an overlap of images that are all poisoned, or one that the two shares rule out.

        Of label noise whose realised rate is not known yet, the latter is found when the labels are there.

        Raises:
            UserError: the message says what is wrong, what was given and what is allowed.
        """
        if self.coupling != "overlap":
            return
        if self.share == 1:
            raise UserError("corruption.coupling=overlap needs corruption.share below 1, got 1: all are poisoned")
        if (
            self.labels == "symmetric"
            and self.exact
            and not self.include_self
            and self.rate
            and self.overlap is not None
        ):
            least = max(0.0, self.share + self.rate - 1) / min(self.share, self.rate)
            if self.overlap < least - 0.01:  # shares are rounded to whole images
                raise too_little_overlap(least, self.share, self.rate, self.overlap)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_own(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        own = set(cls.own_keys())
        return {key: value for key, value in raw.items() if value is not None or key not in own}

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the keys in their order of earlier versions, including all those of `EVERYWHERE`."""
        values = handler(self)
        options = {key: values.pop(key, None) for key in EVERYWHERE}
        names = list(values)
        place = names.index("labels")
        return {key: values[key] for key in names[:place]} | options | {key: values[key] for key in names[place:]}


@dataclass(frozen=True)
class Setting:
    """The values from which the open keys of a corruption and of a defense are filled.

    Attributes:
        data: the name of the data set.
        epsilon: the customary budget of the data set for each norm, in pixel units of 1.0.
        policy: the customary AutoAugment policy of the data set.
        norm: the norm of the data corruption; none: there is no data corruption, or it is of another kind.
        labels: the kind of label corruption.
        rate: the share of the labels that are wrong; none: human labels, which have their own.
        flip: whether a mirrored image keeps its class.
    """

    data: str
    epsilon: Mapping[str, float]
    policy: str
    norm: Norm | None = None
    labels: str = "none"
    rate: float | None = None
    flip: bool = False


class DefenseOptions(Section):
    """The options of every defense; each defense adds its own keys."""

    name: str = Field(description="defense, or a variant of one")
    squeeze: Literal["none", "jpeg", "grayscale", "bits"] = Field(
        "none", description="image preparation, once before training: JPEG, grey, or few grey levels (ISS)"
    )
    jpeg_quality: Free[int] = Field(10, ge=1, le=100, description="squeeze=jpeg: quality, 1 (worst) to 100")
    bits: Free[int] = Field(2, ge=1, le=8, description="squeeze=bits: bits that are left of each channel")

    @classmethod
    def free(cls) -> set[str]:
        """Return the names of the options that do not affect a run's cost (`Free`); all others may affect its time."""
        return {key for key, field in fields_of(cls).items() if _FREE in field.metadata}

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return values for the keys that are left open (none)."""
        return {}

    def check_image(self, pixels: int) -> None:
        """Refuse values that are not possible for images of so many pixels.

        Raises:
            UserError: as for `check`.
        """

    def check(self, workers: int) -> None:
        """Refuse combinations of values that are not possible.

        Args:
            workers: the number of shares into which a batch is divided: data-parallel workers times accumulated parts.

        Raises:
            UserError: a combination is not possible; the message says what is wrong, what was given and what is
                allowed.
        """
