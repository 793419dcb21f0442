"""What options are made of: the base of every section of a configuration, and numbers within bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

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

from erat.paths import user_path

Norm = Literal["linf", "l2"]
LabelKind = Literal[
    "none",
    "symmetric",
    "asymmetric",
    "instance",
    "human-aggregate",
    "human-random1",
    "human-random2",
    "human-random3",
    "human-worst",
    "human-fine",
]


_FRACTION = re.compile(r"\s*([-+]?[\d.]+)\s*/\s*(\d+)\s*")


def parse_fraction(value: object) -> object:
    """Read "8/255" as a number; leave everything else to the field's own type."""
    if isinstance(value, str) and (match := _FRACTION.fullmatch(value)):
        try:
            return float(match[1]) / int(match[2])
        except (ValueError, ArithmeticError):
            return value
    return value


MOST = 1e6  # no number of a configuration is larger; beyond it steps and weights leave what float32 can hold


MOST_WORKERS = 4096


MOST_EPOCHS = 100_000


SEEDS = 2**63


def _within_bounds(value: float) -> float:
    """Refuse what is finite and still beyond every use; "finite" is said first where a number is not."""
    if abs(value) > MOST:
        raise PydanticCustomError("out_of_bounds", f"Input should be between -{MOST:g} and {MOST:g}")
    return value


Number = Annotated[float, BeforeValidator(parse_fraction), Field(allow_inf_nan=False), AfterValidator(_within_bounds)]


Epoch = Annotated[int, Field(ge=0, le=MOST_EPOCHS)]


_FREE = "free"
T = TypeVar("T")
# An option that changes what a run learns and not what it costs: neither its time nor its memory depends on the value.
Free = Annotated[T, _FREE]


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Describe a field of which a subclass changes the default alone as its base does."""
        for name, field in cls.model_fields.items():
            fields = (getattr(base, "model_fields", {}) for base in cls.__mro__[1:])
            bases = (found[name] for found in fields if name in found)
            field.description = field.description or next((b.description for b in bases if b.description), None)


@cache
def fields_of(section: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return the fields of a section by their names: as `model_fields`, which takes its time at each look."""
    return section.model_fields


class DataConfig(Section):
    """Which images."""

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
        """Workers run in folders of their own."""
        return str(user_path(root, "data.root")) if root else None


# Options of the first kinds of data corruption. Every configuration names them, as none where its kind lacks them: runs
# are known by that.
EVERYWHERE = ("steps", "attack", "width", "lr")


class CorruptionOptions(Section):
    """What is done to the training images and labels before anyone trains; each kind of data corruption adds its keys.

    What a kind adds may be given as none, which stands for its default.
    """

    data: str = Field("none", description="perturbation of the training images (poison)")
    norm: Norm | None = Field(None, description="none: the norm in which the paper uses this corruption")
    epsilon: Number | None = Field(None, ge=0, description="budget in pixel units of 1.0; none: customary for the set")
    granularity: Literal["class", "sample"] | None = Field(None, description="one perturbation per class or per image")
    share: Number = Field(1.0, gt=0, le=1, description="share of the images that are poisoned, drawn by the seed")
    source: str | None = Field("resnet18", description="network that perturbations are crafted against")
    source_epochs: int | None = Field(
        30, ge=1, le=MOST_EPOCHS, description="epochs for which the source network is trained on clean data"
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

    @classmethod
    def own_keys(cls) -> list[str]:
        """Return the names of the fields that this kind of data corruption adds."""
        return [key for key in fields_of(cls) if key not in fields_of(CorruptionOptions)]

    def own(self) -> dict[str, Any]:
        """Return what these fields say."""
        return {key: getattr(self, key) for key in self.own_keys()}

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_own(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        own = set(cls.own_keys())
        return {key: value for key, value in raw.items() if value is not None or key not in own}

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the keys in the order in which they have always stood, those of `EVERYWHERE` with them."""
        values = handler(self)
        options = {key: values.pop(key, None) for key in EVERYWHERE}
        names = list(values)
        place = names.index("labels")
        return {key: values[key] for key in names[:place]} | options | {key: values[key] for key in names[place:]}


@dataclass(frozen=True)
class Setting:
    """What a defense's open keys are filled from.

    Attributes:
        data: name of the data set; epsilon, policy: customary for it.
        norm: of the data corruption, none without one.
        labels: kind of label corruption.
    """

    data: str
    epsilon: Mapping[str, float]
    policy: str
    norm: Norm | None
    labels: str


class DefenseOptions(Section):
    """What every defense is told; each defense adds its own keys."""

    name: str = Field(description="defense, or a variant of one")
    squeeze: Literal["none", "jpeg", "grayscale", "bits"] = Field(
        "none", description="image preparation, once before training: JPEG, grey, or few grey levels (ISS)"
    )
    jpeg_quality: Free[int] = Field(10, ge=1, le=100, description="squeeze=jpeg: quality, 1 (worst) to 100")
    bits: Free[int] = Field(2, ge=1, le=8, description="squeeze=bits: bits that are left of each channel")

    @classmethod
    def free(cls) -> set[str]:
        """Return the names of the options that cost nothing (`Free`); by all others a run's time may differ."""
        return {key for key, field in fields_of(cls).items() if _FREE in field.metadata}

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Values for the keys left open (none)."""
        return {}

    def check(self, workers: int) -> None:
        """Refuse what does not go together.

        Args:
            workers: data-parallel workers of the run.

        Raises:
            UserError: what, got, allowed.
        """
