"""Define the options of each defense, the keys under `defense.`, without torch, so that reading them is fast.

Budgets are in pixel units of 1.0.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from erat.defenses.shared_options import PerturbationOptions, PolicyName, SelectorName, SelectorOptions, ViewOptions
from erat.errors import UserError
from erat.options import MOST_EPOCHS, Free, NormSet, Number, Setting


class CrossEntropyOptions(PerturbationOptions, ViewOptions):
    """Keys under `defense.` for `defense.name=ce`, and for `at` and `iss`, which differ only in their defaults."""

    name: Literal["ce"] = "ce"
    criterion: Literal["ce", "elr"] = Field(
        "ce", description="elr: early-learning regularisation, which keeps predictions close to earlier ones"
    )
    elr_weight: Free[Number] = Field(3.0, ge=0, description="elr: weight of the regularisation")
    elr_momentum: Free[Number] = Field(0.7, ge=0, lt=1, description="elr: decay of the running average of predictions")

    def check(self, workers: int) -> None:
        """Refuse ELR on several workers: it remembers predictions, which no worker has of all images."""
        super().check(workers)
        if self.criterion == "elr" and workers > 1:
            raise UserError(f"defense.criterion=elr needs train.workers=1, got {workers}: each has seen other images")


class AdversarialTrainingOptions(CrossEntropyOptions):
    """Keys under `defense.` for `defense.name=at`."""

    added: ClassVar[dict[str, Any]] = PerturbationOptions.added | {"warmup_epochs": 0, "epsilon_ramp": 0.0}

    name: Literal["at"] = "at"  # type: ignore[assignment]
    adversarial: bool = True
    warmup_epochs: int = Field(0, ge=0, le=MOST_EPOCHS, description="at: epochs on clean images before the attack")
    epsilon_ramp: Free[Number] = Field(
        0.0, ge=0, description="at: epochs after the warm-up in which the budget of the attack grows from 0"
    )


class SqueezingOptions(CrossEntropyOptions):
    """Keys under `defense.` for `defense.name=iss`."""

    name: Literal["iss"] = "iss"  # type: ignore[assignment]
    squeeze: Literal["none", "jpeg", "grayscale", "bits"] = "jpeg"


class UEraserOptions(ViewOptions):
    """Keys under `defense.` for `defense.name=ueraser_max`."""

    name: Literal["ueraser_max"] = "ueraser_max"
    strong: bool = True
    policy: PolicyName | None = "ueraser"
    worst_of: int = Field(
        5,
        ge=1,
        le=1000,
        description="number of strong views drawn; that with the highest loss is used",
    )
    worst_epochs: int | None = Field(
        None,
        ge=1,
        le=MOST_EPOCHS,
        description="number of first epochs that draw worst_of views; later ones draw one; none: all epochs",
    )
    view_jpeg: int = Field(
        0,
        ge=0,
        le=100,
        description="JPEG quality of every view, 1 (worst) to 100; 0: no compression",
    )

    def check(self, workers: int) -> None:
        """Refuse a number of epochs for several draws where there is one."""
        super().check(workers)
        if self.worst_epochs is not None and self.worst_of == 1:
            raise UserError(f"defense.worst_epochs={self.worst_epochs} needs defense.worst_of above 1, got 1")


class DATOptions(PerturbationOptions, ViewOptions):
    """Keys under `defense.` for `defense.name=dat`."""

    name: Literal["dat"] = "dat"
    alpha: Free[Number] = Field(0.005, ge=0, description="strength with which the rival head is driven away")
    beta: Free[Number] = Field(
        1.0,
        ge=0,
        description="strength with which the features bring the heads together; the authors' 30 was set for Adam, "
        "whose steps do not grow with the loss, and overwhelms SGD",
    )
    discrepancy: Literal["mean", "published"] = Field(
        "mean",
        description="published: as the published code, the softmax over the classes of a softmax over the batch, its "
        "divergence summed over the batch",
    )


class MixMatchOptions(SelectorOptions, PerturbationOptions, ViewOptions):
    """Keys of a defense that learns by MixMatch."""

    exchange: Literal["crossed", "joint"] = Field(
        description="crossed: each network learns from the other's split; joint: both from the split of their mean"
    )
    splits: Literal["together", "in_turn"] = Field(
        "together", description="in_turn: the second network's split is made after the first has trained"
    )
    temperature: Free[Number] = Field(0.5, gt=0, le=1, description="temperature by which pseudo-labels are sharpened")
    mixup_alpha: Free[Number] = Field(4.0, gt=0, description="parameter of the Beta distribution of mixup")
    lambda_u: Free[Number | None] = Field(
        None, ge=0, description="weight of the unlabelled loss; none: the paper's value"
    )
    ramp_epochs: Free[Number] = Field(16.0, ge=0, description="epochs after the warm-up in which lambda_u grows from 0")
    warmup_epochs: int = Field(10, ge=0, le=MOST_EPOCHS, description="epochs before the first selection of labels")
    confidence_penalty: bool | None = Field(
        None, description="add negative entropy to the cross-entropy of the warm-up; none: only under asymmetric noise"
    )

    def default_lambda_u(self, setting: Setting) -> float:
        """Return the value of `lambda_u` where it is left open."""
        raise NotImplementedError

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return the weight of the unlabelled loss and the confidence penalty, where they are left open."""
        open_keys = {
            "lambda_u": self.default_lambda_u(setting),
            "confidence_penalty": setting.labels == "asymmetric",
        }
        return super().fill(setting) | {key: value for key, value in open_keys.items() if getattr(self, key) is None}


LITTLE_NOISE = 0.2  # rate of label noise up to which DivideMix's authors trust unlabelled samples less


class DivideMixOptions(MixMatchOptions):
    """Keys under `defense.` for `defense.name=dividemix`."""

    name: Literal["dividemix"] = "dividemix"
    selector: SelectorName = "mixture"
    exchange: Literal["crossed", "joint"] = "crossed"

    def default_lambda_u(self, setting: Setting) -> float:
        """Return the weight by the number of classes, the kind of label noise and its rate, as its authors set it.

        Their settings are for rates of 0.2 and from 0.5 on; less noise than 0.2 has the weight of 0.2, and more has
        that of 0.5.
        """
        little = setting.rate is not None and setting.rate <= LITTLE_NOISE
        if setting.data == "cifar100":
            return 25.0 if little else 150.0
        if setting.data == "tiny-imagenet":
            return 150.0
        return 0.0 if little or setting.labels == "asymmetric" else 25.0


class UniconOptions(MixMatchOptions):
    """Keys under `defense.` for `defense.name=unicon`."""

    added: ClassVar[dict[str, Any]] = PerturbationOptions.added | {"projection": "mlp", "unlabelled_batch": "equal"}

    name: Literal["unicon"] = "unicon"
    selector: SelectorName = "jsd"
    exchange: Literal["crossed", "joint"] = "joint"
    strong: bool = True
    contrastive_weight: Number = Field(0.025, ge=0, description="weight of the contrastive loss")
    contrastive_temperature: Free[Number] = Field(0.05, gt=0, description="temperature of the contrastive loss")
    projection: Literal["mlp", "linear"] = Field(
        "mlp", description="head of the contrastive loss: two layers, or as published one with batch norm"
    )
    unlabelled_batch: Literal["equal", "published"] = Field(
        "equal",
        description="unlabelled images of a step: as many as labelled ones; published: over twice the selected share",
    )

    def default_lambda_u(self, setting: Setting) -> float:
        """Return the weight, which is the same for all sets."""
        return 30.0


class MSPLOptions(SelectorOptions, PerturbationOptions, ViewOptions):
    """Keys under `defense.` for `defense.name=mspl`."""

    name: Literal["mspl"] = "mspl"
    selector: SelectorName = "errors"
    adversarial: bool = Field(True, description="false: the pair's second view is another weak one")
    momentum: Free[Number] = Field(0.99, ge=0, lt=1, description="momentum of the running means, the prototypes")
    prototype_temperature: Free[Number] = Field(0.1, gt=0, description="temperature of the similarity to prototypes")
    contrastive_temperature: Free[Number] = Field(0.1, gt=0, description="temperature of the contrastive loss")
    contrastive_weight: Free[Number] = Field(0.1, ge=0, description="weight of the contrastive loss")
    temperature: Free[Number] = Field(0.5, gt=0, le=1, description="temperature by which pseudo-labels are sharpened")
    lambda_u: Free[Number] = Field(1.0, ge=0, description="weight of the pseudo-labels' loss")
    ramp_epochs: Free[Number] = Field(16.0, ge=0, description="epochs after the warm-up in which lambda_u grows from 0")
    warmup_epochs: int = Field(10, ge=0, le=MOST_EPOCHS, description="epochs before the first selection of labels")


class ERATOptions(SelectorOptions, PerturbationOptions, ViewOptions):
    """Keys under `defense.` for `defense.name=erat`; budgets are in pixel units of 1.0."""

    added: ClassVar[dict[str, Any]] = PerturbationOptions.added | {
        "strong_crop": False,
        "cluster_epochs": 0,
        "clusters": 8,
        "cluster_by": "pixels",
        "align": False,
        "teacher": 0.0,
        "confidence": 0.0,
    }

    name: Literal["erat"] = "erat"
    selection: bool = Field(True, description="false: all data stay labelled (w/o SS)")
    select_every: int = Field(
        1, ge=1, le=MOST_EPOCHS, description="beyond the paper: number of epochs for which a labelled set is kept"
    )
    # Perturbation, Eqs. 6, 7, 10
    adversarial: bool = Field(True, description="false: no perturbed views (w/o AT)")
    norms: NormSet = Field(
        "both",
        description="set of norms, of which each image draws one: both, or some of linf, l2, l1, l0, ssim, wasserstein",
    )
    random_start: bool = False
    consistency: bool = Field(True, description="beyond the paper: false leaves out Eq. 6's distance from p(x)")
    # Views
    weak: Literal["erase", "crop", "none"] = "erase"
    strong: bool = Field(True, description="false: weak views where the paper has strong ones (w/o Aug)")
    strong_crop: bool | None = Field(
        False,
        description="strong views: flip and crop beneath the policy, which alone are left without it; none: where a "
        "mirrored image keeps its class",
    )
    # Loss, Eqs. 8-9
    lambda_u: Free[Number] = Field(25.0, ge=0, description="weight of the unlabelled loss after its ramp (Eq. 9)")
    ramp_epochs: Free[Number] = Field(16.0, ge=0, description="epochs after the warm-up in which lambda_u grows from 0")
    reduction: Free[Literal["mean", "sum"]] = Field(
        "mean", description="squared errors over classes: mean, or Eq. 8's sum"
    )
    # Beyond the paper: what the labels are judged by, with its measurements in docs/defenses.md
    cluster_epochs: int = Field(
        0,
        ge=0,
        le=MOST_EPOCHS,
        description="beyond the paper: epochs after the warm-up in which labels are judged by clusters of similar "
        "images, named by their label counts, in place of the network",
    )
    clusters: Free[int] = Field(8, ge=1, le=1000, description="beyond the paper: clusters of images for each class")
    cluster_by: Literal["pixels", "neighbours"] = Field(
        "pixels",
        description="beyond the paper: what makes images similar: their pixels; or paths in the graph of nearest "
        "neighbours, with names averaged over four numbers of clusters up to that",
    )
    align: Free[bool] = Field(
        False, description="beyond the paper: scores and pseudo-labels as if all classes were equally frequent"
    )
    teacher: Number = Field(
        0.0,
        ge=0,
        lt=1,
        description="beyond the paper: decay of the averaged network that gives scores and pseudo-labels; 0: none",
    )
    confidence: Free[Number] = Field(
        0.0,
        ge=0,
        le=1,
        description="beyond the paper: smallest probability of a pseudo-label that is used",
    )
    warmup_epochs: int = Field(10, ge=0, le=MOST_EPOCHS, description="epochs before the first selection of labels")

    def check(self, workers: int) -> None:
        """Refuse ways to judge labels where no labels are selected, and a kind of clusters where none are made."""
        super().check(workers)
        for key in ("align", "cluster_epochs", "teacher"):
            if getattr(self, key) and not self.selection:
                raise UserError(f"defense.{key}={getattr(self, key)} needs defense.selection=true, got false")
        if self.cluster_by != "pixels" and not self.cluster_epochs:
            raise UserError(f"defense.cluster_by={self.cluster_by} needs defense.cluster_epochs above 0, got 0")

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return whether strong views are cropped and flipped, where that is left open."""
        return super().fill(setting) | ({"strong_crop": setting.flip} if self.strong_crop is None else {})
