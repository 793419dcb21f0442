"""Compares the PGD loop with torchattacks' PGD and PGDL2, and APGD with its authors' code: same steps, same network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from erat.attacks.apgd import apgd
from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget, pgd
from erat.losses import label_loss
from erat.models import build_model
from tests.benchmarks.harness import Comparison, Work

STEPS, BATCH = 7, 128
EPSILON = {"linf": 0.1, "l2": 1.0}


def comparisons() -> Iterator[Comparison]:
    """Yield the comparisons, without torchattacks if it is not installed.

    It cannot be a dependency, because it requires a certain version of `requests`.
    """
    for norm in EPSILON:
        if find_spec("torchattacks"):
            yield Comparison(f"PGD {norm}", f"torchattacks {'PGD' if norm == 'linf' else 'PGDL2'}", 1.02, _pgd(norm))
        yield Comparison(f"APGD-CE {norm}", "pyautoattack APGD", 1.02, partial(_apgd, norm))


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """Return (a network whose passes take most of the time, a batch of images and labels for it)."""
    draw = torch.Generator().manual_seed(0)
    network = build_model("small", 10, 3, 32, [0.5] * 3, [0.25] * 3, seed=0).eval()
    return network, torch.rand(BATCH, 3, 32, 32, generator=draw), torch.arange(BATCH) % 10


def _pgd(norm: str) -> Callable[[], tuple[Work, Work]]:
    def prepare() -> tuple[Work, Work]:
        import torchattacks

        network, images, labels = setting()
        theirs = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
        attack = theirs(network, eps=EPSILON[norm], alpha=EPSILON[norm] / 5, steps=STEPS, random_start=False)
        return partial(ours, norm, network, images, labels), lambda: attack(images, labels)

    return prepare


def ours(norm: str, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    budget = Budget.of(norm, EPSILON[norm], images)
    with frozen(network):
        return pgd(network, images, partial(label_loss, labels), budget, steps=STEPS, step_size=budget.epsilon / 5)


def _apgd(norm: str) -> tuple[Work, Work]:
    from pyautoattack.autopgd_base import APGDAttack

    network, images, labels = setting()
    theirs = APGDAttack(
        network, n_iter=20, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPSILON[norm], seed=0, loss="ce", device="cpu"
    )
    theirs.init_hyperparam(images)

    def mine() -> None:
        budget = Budget.of(norm, EPSILON[norm], images)
        with frozen(network):
            apgd(network, images, partial(label_loss, labels), budget, steps=20)

    return mine, lambda: theirs.attack_single_run(images, labels, x_init=images)
