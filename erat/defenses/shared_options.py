"""Define the options that several defenses share, by their parts: perturbation, views, selection; without torch.

Budgets are in pixel units of 1.0.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from erat.errors import UserError
from erat.options import NORMS, DefenseOptions, Free, NormSet, Number, Setting, norms_in

BEYOND = NORMS[2:]  # the norms beyond the paper's
SSIM_WINDOW = 7  # the least side of an image of which there is a structural similarity, in pixels
PolicyName = Literal["cifar10", "svhn", "imagenet", "digits", "ueraser"]
SelectorName = Literal["rebalance", "mixture", "class_mixture", "jsd", "errors"]


class PerturbationOptions(DefenseOptions):
    """Keys of a defense that can train on perturbed images; budgets are in pixel units of 1.0."""

    added: ClassVar[dict[str, Any]] = {f"epsilon_{norm}": None for norm in BEYOND} | {"norm_draw": "uniform"}

    adversarial: bool = Field(False, description="whether images are perturbed at all")
    norms: NormSet | None = Field(
        None,
        description="the set that each image draws its norm from: both (linf and l2), or some of linf, l2, l1, l0, "
        "ssim, wasserstein, lpips; none: the poison's own norm, linf without one",
    )
    uniform: bool = Field(True, description="false: every image is attacked under every norm (w/o Uni)")
    norm_draw: Literal["uniform", "weighted"] = Field(
        "uniform",
        description="how an image draws its norm: Eq. 7, or in proportion to 1 - robust accuracy under each, measured "
        "once an epoch (beyond the paper)",
    )
    epsilon_inf: Free[Number | None] = Field(
        None, ge=0, le=1, description="l_inf budget; none: customary for the data set"
    )
    epsilon_2: Free[Number | None] = Field(None, ge=0, description="l_2 budget; none: customary for the data set")
    epsilon_l1: Free[Number | None] = Field(
        None, ge=0, description="norms with l1: its budget; none: customary for the data set"
    )
    epsilon_l0: Free[int | None] = Field(
        None, ge=1, le=10**6, description="norms with l0: its budget in pixels; none: customary for the data set"
    )
    epsilon_ssim: Free[Number | None] = Field(
        None, ge=0, le=2, description="norms with ssim: its budget, 1 - SSIM; none: customary for the data set"
    )
    epsilon_wasserstein: Free[Number | None] = Field(
        None,
        ge=0,
        description="norms with wasserstein: its budget, the mean distance in pixels that brightness moves; none: "
        "customary for the data set",
    )
    epsilon_lpips: Free[Number | None] = Field(
        None,
        ge=0,
        description="norms with lpips: its budget, the distance of the network's own feature maps; none: customary for "
        "the data set",
    )
    steps: int = Field(7, ge=1, le=10_000, description="steps of PGD, T in the paper")
    step_ratio: Free[Number] = Field(0.2, gt=0, description="step size as a share of the budget")
    random_start: bool = Field(True, description="PGD starts at a random point of the ball, not at the image")
    l2_update: Literal["ball", "literal"] = Field(
        "ball", description="l_2: normalised step, projection on the ball; literal: the paper's sign and clip"
    )
    consistency: bool = Field(False, description="whether Eq. 6's distance from p(x) is raised beside cross-entropy")
    # Beyond the paper: cheaper perturbations, with their speed and accuracy in docs/speed.md
    warm_start: bool = Field(False, description="beyond the paper: PGD starts from the last perturbation of the image")
    pgd_precision: Literal["fp32", "bf16"] = Field("fp32", description="beyond the paper: precision of PGD's passes")
    pgd_scale: Number = Field(1.0, gt=0, le=1, description="beyond the paper: PGD on images shrunk to this share")

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return the customary budgets of the data set, and the norm of the poison, for the keys that are left open."""
        open_keys: dict[str, Any] = {
            "epsilon_inf": setting.epsilon["linf"],
            "epsilon_2": setting.epsilon["l2"],
            "norms": setting.norm or "linf",
        }
        for norm in set(norms_in(self.norms or "")) & set(BEYOND):
            if setting.epsilon.get(norm) is None and getattr(self, f"epsilon_{norm}") is None:
                raise UserError(f"defense.epsilon_{norm} must be given: {setting.data} has no customary {norm} budget")
            open_keys[f"epsilon_{norm}"] = setting.epsilon.get(norm)
        return super().fill(setting) | {key: value for key, value in open_keys.items() if getattr(self, key) is None}

    def budget(self, norm: str) -> float:
        """Return the budget of a norm, in its unit: see `erat.attacks.threats`."""
        value = getattr(self, {"linf": "epsilon_inf", "l2": "epsilon_2"}.get(norm, f"epsilon_{norm}"))
        assert value is not None, "filled by the config"
        return float(value)

    def check_image(self, pixels: int) -> None:
        """Refuse an l0 budget of more pixels than an image has, and ssim for images smaller than its window."""
        super().check_image(pixels)
        if self.epsilon_l0 is not None and self.epsilon_l0 > pixels:
            raise UserError(
                f"defense.epsilon_l0 must be at most the {pixels} pixels of an image, got {self.epsilon_l0}"
            )
        if "ssim" in norms_in(self.norms or "") and pixels < SSIM_WINDOW**2:
            raise UserError(
                f"defense.norms with ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {pixels}"
            )

    def check(self, workers: int) -> None:
        """Refuse a warm start together with what leaves it no last perturbation of each image to go on from."""
        super().check(workers)
        norms = norms_in(self.norms or "")
        for norm in BEYOND:
            given = getattr(self, f"epsilon_{norm}")
            if given is not None and norm not in norms:
                raise UserError(f"defense.epsilon_{norm}={given:g} needs {norm} in defense.norms, got {self.norms}")
        if self.pgd_scale < 1 and not set(norms) <= {"linf", "l2"}:
            raise UserError(
                f"defense.pgd_scale={self.pgd_scale:g} needs defense.norms of linf and l2, got {self.norms}"
            )
        if self.norm_draw == "weighted":
            needed = {
                "adversarial=true": self.adversarial,
                "uniform=true": self.uniform,
                "several norms": len(norms) > 1,
            }
            if missing := [words for words, there in needed.items() if not there]:
                raise UserError(
                    f"defense.norm_draw=weighted needs {' and '.join(missing)} in defense, got {self.norms}"
                )
        if self.warm_start and workers > 1:
            raise UserError(f"defense.warm_start=true needs train.workers=1, got {workers}: each has seen other images")
        if self.warm_start and self.random_start:
            raise UserError("defense.warm_start=true needs defense.random_start=false, got true")
        if self.warm_start and not self.uniform:
            raise UserError("defense.warm_start=true needs defense.uniform=true, got false")


class ViewOptions(DefenseOptions):
    """Keys of a defense that trains on random views of its images."""

    weak: Literal["erase", "crop", "none"] = Field("crop", description="weak views: flip plus this")
    strong: bool = Field(False, description="AutoAugment where the defense trains")
    policy: PolicyName | None = Field(
        None,
        description="AutoAugment policy, or ueraser: that defense's views; none: the one that suits the data set",
    )
    worst_of: int = Field(
        1,
        ge=1,
        le=1000,
        description="number of strong views drawn; that with the highest loss is used (UEraser)",
    )

    def check(self, workers: int) -> None:
        """Refuse the worst of several draws where nothing is drawn."""
        super().check(workers)
        if self.worst_of > 1 and not self.strong:
            raise UserError(f"defense.worst_of={self.worst_of} needs defense.strong=true, got false")

    def fill(self, setting: Setting) -> dict[str, Any]:
        """Return the AutoAugment policy that suits the data set, where it is left open."""
        return super().fill(setting) | ({"policy": setting.policy} if self.policy is None else {})


class SelectorOptions(DefenseOptions):
    """Keys of a defense that selects the samples that keep their labels."""

    selector: SelectorName = Field(
        "rebalance",
        description="ERAT's class rebalancing, DivideMix's mixture of two Gaussians, UNICON's uniform one by "
        "Jensen-Shannon divergence, MSPL's global and class-wise error, or (beyond the papers) a mixture for "
        "each class",
    )
    # rebalance: Eqs. 1-5
    score: Literal["l2", "ce"] = Field("l2", description="rebalance: Eq. 1, or cross-entropy (w/ CE)")
    eta: Free[Number] = Field(0.1, ge=0, le=1, description="rebalance: 0 gives all classes equal shares")
    rebalance: bool = Field(True, description="rebalance: false keeps every score at or below the mean (w/o RB)")
    rate: Literal["shifted", "literal"] = Field("shifted", description="Eq. 4 with 1 - S/2, or with the paper's 1 - S")
    # mixture
    threshold: Number = Field(
        0.5, ge=0, lt=1, description="mixture, class_mixture: posterior above which a label is believed"
    )
    # jsd
    jsd_log: Literal["2", "e"] = Field("2", description="jsd: base of the logarithm; e in the published code")
    jsd_high: Number = Field(0.7, ge=0, description="jsd: mean divergence above which the cut-off is lowered")
    jsd_filter: Number = Field(5.0, gt=0, description="jsd: the cut-off is lowered by (mean - least) over this")
    quota: Literal["capped", "published"] = Field(
        "capped",
        description="jsd: a class smaller than its quota gives all it has; published: and sample 0 fills the gap, "
        "as the published code has it",
    )
