"""Draw threats.png: a digit, and what ERAT's attack makes of it under each threat model; docs/threats.md shows it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.pgd import pgd
from erat.attacks.threats import Mixture
from erat.config import build
from erat.data.loading import load
from erat.data.types import to_float
from erat.losses import label_loss
from erat.models import build_model
from erat.options import NORMS

HERE = Path(__file__).parent
BUDGETS = {
    "linf": 0.1,
    "l2": 1.0,
    "l1": 10.0,
    "l0": 10.0,
    "ssim": 0.05,
    "wasserstein": 0.5,
    "lpips": 0.5,
}  # customary for digits of 28 x 28
TITLES = {
    "linf": "l∞ ≤ 0.1:\nevery value a little",
    "l2": "l2 ≤ 1:\nspread by slope",
    "l1": "l1 ≤ 10:\nfew values, far",
    "l0": "l0 ≤ 10 pixels,\nof any colour",
    "ssim": "1 - SSIM ≤ 0.05:\nwhere it shows least",
    "wasserstein": "Wasserstein ≤ 0.5:\nmoved to near pixels",
    "lpips": "LPIPS ≤ 0.5:\nits own feature maps",
}
DIGITS, STEPS = (3, 8), 20


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """Return the small network after three passes over the training digits."""
    torch.manual_seed(0)
    network = build_model("small", 10, 1, 28, [images.mean().item()], [images.std().item()], seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network


@matplotlib.rc_context({"font.size": 11, "text.color": "#1f2430"})
def main() -> None:
    """One row of perturbed digits and one of their perturbations for each of two digits."""
    train, _ = load(build("demo", {"data.image_size": 28, "data.limit": 2000}).data)
    network = trained(to_float(train.images), train.labels)
    with frozen(network), torch.no_grad():
        right = network(to_float(train.images)).argmax(1) == train.labels
    rows = [int(((train.labels == digit) & right).nonzero()[0]) for digit in DIGITS]
    clean, labels = to_float(train.images[rows]), train.labels[rows]
    figure = Figure(figsize=(14.7, 7.4), dpi=80, layout="constrained", facecolor="white")
    axes = figure.subplots(2 * len(DIGITS), 1 + len(NORMS))
    for place in axes.flat:
        place.set_axis_off()
    for column, name in enumerate(["clean", *NORMS]):
        moved = clean
        if name != "clean":
            which = torch.zeros(len(rows), dtype=torch.int64)
            budget = Mixture.of([name], [BUDGETS[name]], which, network=network)
            with frozen(network):
                moved = pgd(
                    network, clean, partial(label_loss, labels), budget, steps=STEPS, step_size=budget.epsilon / 5
                )
        with frozen(network):
            seen = network(moved).argmax(1)
        axes[0, column].set_title(TITLES.get(name, "clean"), fontsize=11)
        for row in range(len(rows)):
            picture, change = axes[2 * row, column], axes[2 * row + 1, column]
            picture.imshow(moved[row, 0], cmap="gray", vmin=0, vmax=1)
            picture.text(0.5, -0.09, f"seen as {int(seen[row])}", ha="center", transform=picture.transAxes, fontsize=10)
            if name != "clean":
                delta = (moved - clean)[row, 0]
                limit = float(delta.abs().max())
                change.imshow(delta, cmap="RdBu_r", vmin=-limit, vmax=limit)
                change.text(0.5, -0.09, f"± {limit:.2g}", ha="center", transform=change.transAxes, fontsize=10)
    figure.savefig(HERE / "threats.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
