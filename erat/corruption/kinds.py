"""The kinds of data corruption that come with the project, and what each may be told.

What a configuration must know of a kind stands here, without torch; the modules named like them craft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from erat.errors import UserError
from erat.options import CorruptionOptions, Number

MOST_STEPS = 10**7


class CorruptionKind:
    """What there is to know of a kind of data corruption without crafting.

    Attributes:
        kind: its name in the registry.
        norm: the norm that the paper uses it with.
        norms: the norms it can be crafted under.
        granularities: the ones it exists in, the paper's first.
        uses: what it needs of the source network: "nothing", its "architecture", or a clean-"trained network".
        draws: the kind whose random draws it uses, where two kinds come from one optimisation; none: its own.
        Options: what it may be told, as keys of `corruption.*`; those that it adds reach it as `Craft.options`.
        version: raised when a change of the code changes what is crafted, so that no old set is taken for a new one.
    """

    kind: ClassVar[str]
    norm: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    granularities: ClassVar[tuple[str, ...]] = ("class",)
    uses: ClassVar[Literal["nothing", "architecture", "trained network"]] = "nothing"
    draws: ClassVar[str | None] = None
    Options: ClassVar[type[CorruptionOptions]] = CorruptionOptions
    version: ClassVar[int] = 1

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse what this kind cannot do.

        Args:
            options: the `corruption.*` values as given, absent or none where left open.

        Raises:
            UserError: a norm or granularity that this kind lacks.
        """
        for key, allowed in (("norm", self.norms), ("granularity", self.granularities)):
            if options.get(key) is not None and options[key] not in allowed:
                raise UserError(
                    f"corruption.{key} must be {' or '.join(allowed)} for {self.kind}, got {options[key]!r}"
                )


class URP(CorruptionKind):
    """Universal random perturbations."""

    kind = "urp"
    norm = "l2"


class UniversalOptions(CorruptionOptions):
    """Keys of UHP and UAP."""

    steps: int | None = Field(500, ge=1, le=MOST_STEPS, description="length of the crafting: batches")


class UHP(CorruptionKind):
    """Universal hypocritical perturbations."""

    kind = "uhp"
    norm = "l2"
    uses = "trained network"
    Options = UniversalOptions


class UAP(CorruptionKind):
    """Universal adversarial perturbations, from the optimisation of UHP's."""

    kind = "uap"
    norm = "l2"
    uses = "trained network"
    Options = UniversalOptions
    draws = "uhp"


class UPOptions(CorruptionOptions):
    """Keys of UP."""

    steps: int | None = Field(100, ge=1, le=MOST_STEPS, description="length of the crafting: rounds at most")


class UP(CorruptionKind):
    """Unlearnable perturbations."""

    kind = "up"
    norm = "linf"
    uses = "architecture"
    granularities = ("class", "sample")
    Options = UPOptions


class APOptions(CorruptionOptions):
    """Keys of AP."""

    steps: int | None = Field(100, ge=1, le=MOST_STEPS, description="length of the crafting: PGD steps")


class AP(CorruptionKind):
    """Adversarial poisoning."""

    kind = "ap"
    norm = "l2"
    granularities = ("sample",)
    uses = "trained network"
    Options = APOptions


class AAOptions(APOptions):
    """Keys of AA."""

    attack: Literal["apgd-ce", "standard"] | None = Field("apgd-ce", description="APGD-CE alone, or the whole ensemble")


class AA(CorruptionKind):
    """AutoAttack as a poison."""

    kind = "aa"
    norm = "linf"
    granularities = ("sample",)
    uses = "trained network"
    Options = AAOptions


class L2COptions(CorruptionOptions):
    """Keys of L2C."""

    steps: int | None = Field(
        500, ge=1, le=MOST_STEPS, description="length of the crafting: trials, each with a pass over the images"
    )
    width: int | None = Field(64, ge=1, le=4096, description="channels of the generator at full resolution")
    lr: Number | None = Field(1e-4, gt=0, description="learning rate of the generator")


class L2C(CorruptionKind):
    """Learning to confuse."""

    kind = "l2c"
    norm = "linf"
    granularities = ("sample",)
    Options = L2COptions
