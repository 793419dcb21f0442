"""Describe the kinds of data corruption that come with the project, and the options of each.

This module holds everything that a configuration must know of a kind, without torch; the module named after a kind
crafts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from erat.errors import UserError
from erat.options import DECIDING, MOST_EPOCHS, CorruptionOptions, Number, Setting

MOST_STEPS = 10**7
BOUNDED = ("linf", "l2", "l1", "l0")  # the paper's norms, and two beyond it


def coupling_name(config: Mapping[str, Any]) -> str:
    """Return what names the coupling of a run beside its kinds of corruption, such as "overlap 0.5"; mostly "".

    Args:
        config: the flat configuration. Couplings that decide the labels are named by their kind.
    """
    coupling = config.get("corruption.coupling") or "independent"
    if coupling == "independent" or coupling in DECIDING:
        return ""
    return f"overlap {config['corruption.overlap']:g}" if coupling == "overlap" else str(coupling)


class CorruptionKind:
    """The description of a kind of data corruption, for everything but crafting it.

    Attributes:
        kind: the name of the kind in the registry.
        norm: the norm under which the paper uses the kind, or its authors do if the paper does not.
        norms: the norms under which it can be crafted.
        granularities: the granularities in which it can be crafted, the paper's first.
        uses: what it needs of the source network: "nothing", its "architecture", or a "trained network" (trained on
            clean images).
        towards: the number of classes after the label of an image of the class that it is drawn to, 0 for its own;
            None: it is drawn to no class.
        draws: the kind whose random draws it uses, where one optimisation yields two kinds; None: it has its own.
        Options: the class of its options, the keys of `corruption.*`; those that it adds are passed on as
            `Craft.options`.
        version: a number that is raised when a change of the code changes the crafted perturbations, so that a set
            from before the change is not used as a new one.
    """

    kind: ClassVar[str]
    norm: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    granularities: ClassVar[tuple[str, ...]] = ("class",)
    uses: ClassVar[Literal["nothing", "architecture", "trained network"]] = "nothing"
    towards: ClassVar[int | None] = 0
    draws: ClassVar[str | None] = None
    Options: ClassVar[type[CorruptionOptions]] = CorruptionOptions
    version: ClassVar[int] = 1

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that this kind does not support.

        Args:
            options: the `corruption.*` values as given; a key that is left open is absent or none.

        Raises:
            UserError: a norm or granularity that this kind lacks.
        """
        for key, allowed in (("norm", self.norms), ("granularity", self.granularities)):
            if options.get(key) is not None and options[key] not in allowed:
                raise UserError(
                    f"corruption.{key} must be {' or '.join(allowed)} for {self.kind}, got {options[key]!r}"
                )

    def budget(self, norm: str, customary: Mapping[str, float], values: int | None) -> float | None:
        """Return the budget of a set for which none is given, in pixel units of 1.0, of l_0 in pixels.

        Args:
            norm: one of `norms`.
            customary: the customary budget of the set for each norm.
            values: the number of values of an image, over all channels; None: it is not known yet.
        """
        return customary.get(norm)

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return values for those keys of its own that are filled from the data set where they are left open."""
        return {}


class URP(CorruptionKind):
    """Universal random perturbations."""

    kind = "urp"
    norm = "l2"
    norms = BOUNDED


class UniversalOptions(CorruptionOptions):
    """Keys of UHP and UAP."""

    added: ClassVar[dict[str, Any]] = {"images_per_class": 16}

    steps: int | None = Field(500, ge=1, le=MOST_STEPS, description="length of the crafting: batches")
    images_per_class: int | None = Field(16, ge=1, le=10**6, description="images of each class in a batch, on average")


class UHP(CorruptionKind):
    """Universal hypocritical perturbations."""

    kind = "uhp"
    norm = "l2"
    norms = BOUNDED
    uses = "trained network"
    Options = UniversalOptions


class UAP(UHP):
    """Universal adversarial perturbations, which the same optimisation yields as UHP."""

    kind = "uap"
    towards = 1
    draws = "uhp"


class UPOptions(CorruptionOptions):
    """Keys of UP."""

    steps: int | None = Field(100, ge=1, le=MOST_STEPS, description="length of the crafting: rounds at most")


class UP(CorruptionKind):
    """Unlearnable perturbations."""

    kind = "up"
    norm = "linf"
    norms = BOUNDED
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
    norms = BOUNDED
    towards = 1
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
    towards = None
    granularities = ("sample",)
    uses = "trained network"
    Options = AAOptions


class L2COptions(CorruptionOptions):
    """Keys of L2C."""

    added: ClassVar[dict[str, Any]] = {"unet": "plain", "victim": "small", "victim_epochs": 1}

    steps: int | None = Field(
        500, ge=1, le=MOST_STEPS, description="length of the crafting: trials, each with a new victim"
    )
    width: int | None = Field(64, ge=1, le=4096, description="channels of the generator at full resolution")
    lr: Number | None = Field(1e-4, gt=0, description="learning rate of the generator")
    unet: Literal["plain", "official"] | None = Field(
        "plain",
        description="generator: with maxima and nearest neighbours, or its authors' with means, bilinear "
        "interpolation and batch norm before the tanh",
    )
    victim: str | None = Field("small", description="network that the generator misleads")
    victim_epochs: int | None = Field(1, ge=1, le=MOST_EPOCHS, description="passes over the images in each trial")

    def networks(self) -> list[str]:
        """Return the names of the source network and of the victim."""
        return super().networks() + ([] if self.victim is None else [self.victim])


class L2C(CorruptionKind):
    """Learning to confuse."""

    kind = "l2c"
    norm = "linf"
    towards = None
    granularities = ("sample",)
    Options = L2COptions


# Poisons beyond the paper, which need no network.


class OPS(CorruptionKind):
    """One-pixel shortcuts."""

    kind = "ops"
    norm = "l0"
    norms = ("l0",)
    granularities = ("sample",)

    def budget(self, norm: str, customary: Mapping[str, float], values: int | None) -> float | None:
        """Return one pixel, as published."""
        return 1.0


class LSPOptions(CorruptionOptions):
    """Keys of LSP."""

    patches: int | None = Field(4, ge=1, le=64, description="patches a side of the image, each of one colour")

    def check_image(self, pixels: int) -> None:
        """Refuse patches that are smaller than a pixel."""
        super().check_image(pixels)
        if self.patches is not None and self.patches**2 > pixels:
            raise UserError(
                f"corruption.patches must be at most {math.isqrt(pixels)}, the side of an image, got {self.patches}"
            )


class LSP(CorruptionKind):
    """Linearly separable perturbations."""

    kind = "lsp"
    norm = "l2"
    granularities = ("sample",)
    Options = LSPOptions

    def budget(self, norm: str, customary: Mapping[str, float], values: int | None) -> float | None:
        """Return under l_2 the norm of an image of 6/255 everywhere, as published; under l_inf what is customary."""
        return 6 / 255 * math.sqrt(values) if norm == "l2" and values is not None else customary.get(norm)


class AR(CorruptionKind):
    """Autoregressive perturbations."""

    kind = "ar"
    norm = "l2"
    granularities = ("sample",)

    def budget(self, norm: str, customary: Mapping[str, float], values: int | None) -> float | None:
        """Return under l_2 the published 1 for CIFAR-10's 3 x 32 x 32 values, and for others the same mean square."""
        return math.sqrt(values / (3 * 32 * 32)) if norm == "l2" and values is not None else customary.get(norm)


class CUDAOptions(CorruptionOptions):
    """Keys of CUDA."""

    blur: Number | None = Field(0.3, gt=0, le=1, description="largest of the random entries of a kernel beside its 1")


class CUDA(CorruptionKind):
    """Convolutions that stand for classes, which change images without a bound."""

    kind = "cuda"
    norm = "unbounded"
    norms = ("unbounded",)
    granularities = ("sample",)
    Options = CUDAOptions


class TUEOptions(CorruptionOptions):
    """Keys of TUE."""

    steps: int | None = Field(200, ge=1, le=MOST_STEPS, description="length of the crafting: passes over the noise")


class TUE(CorruptionKind):
    """Transferable unlearnable examples."""

    kind = "tue"
    norm = "linf"
    granularities = ("sample",)
    Options = TUEOptions


class PILOptions(CorruptionOptions):
    """Keys of PIL."""

    steps: int | None = Field(30, ge=1, le=MOST_STEPS, description="length of the crafting: descent steps")
    linear_epochs: int | None = Field(
        30, ge=1, le=MOST_EPOCHS, description="passes in which the linear rule is trained on clean images"
    )


class PIL(CorruptionKind):
    """Perturbation-induced linearisation."""

    kind = "pil"
    norm = "linf"
    granularities = ("sample",)
    Options = PILOptions


# Poisons beyond the paper against a network that defends itself.


class RobustOptions(CorruptionOptions):
    """Keys of REM and the adaptive poisoner."""

    steps: int | None = Field(
        5000, ge=1, le=MOST_STEPS, description="length of the crafting: training steps of the network it is against"
    )
    descents: int | None = Field(10, ge=1, le=10_000, description="descent steps of a perturbation")
    draws: int | None = Field(5, ge=1, le=1000, description="draws of the defense that a descent step averages over")
    flip: bool | None = Field(None, description="the expected views mirror images; none: what suits the data set")


class REMOptions(RobustOptions):
    """Keys of REM."""

    attack_steps: int | None = Field(10, ge=1, le=10_000, description="steps of PGD in the expected defense")
    attack_share: Number | None = Field(
        0.5, ge=0, le=10, description="budget of the expected attack as a share of the poison's"
    )


class REM(CorruptionKind):
    """Robust error-minimising perturbations."""

    kind = "rem"
    norm = "linf"
    granularities = ("sample",)
    uses = "architecture"
    Options: ClassVar[type[CorruptionOptions]] = REMOptions

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return whether the expected views mirror images."""
        return {"flip": setting.flip}


class AdaptiveOptions(RobustOptions):
    """Keys of the adaptive poisoner, whose attack is ERAT's."""

    attack_steps: int | None = Field(7, ge=1, le=10_000, description="steps of PGD in the expected defense")
    epsilon_inf: Number | None = Field(
        None, ge=0, le=1, description="expected l_inf budget of ERAT; none: customary for the data set"
    )
    epsilon_2: Number | None = Field(
        None, ge=0, description="expected l_2 budget of ERAT; none: customary for the data set"
    )
    policy: Literal["cifar10", "svhn", "imagenet", "digits"] | None = Field(
        None, description="AutoAugment policy of the expected views; none: the one that suits the data set"
    )


class Adaptive(REM):
    """An adaptive poisoner, who expects ERAT."""

    kind = "adaptive"
    Options = AdaptiveOptions

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return what ERAT has on this data set: its budgets, its policy, and whether views are mirrored."""
        budgets = {"epsilon_inf": setting.epsilon["linf"], "epsilon_2": setting.epsilon["l2"]}
        return super().fill(setting) | budgets | {"policy": setting.policy}
