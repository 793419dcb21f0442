"""Draw problem.png from problem.csv; docs/defenses.md says where the numbers are from."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

HERE = Path(__file__).parent
NOISES = {
    "symmetric 0.6": "symmetric: 60 % of the labels,\nto any other class",
    "instance 0.6": "instance: 60 % of the labels,\nby what the image looks like",
    "asymmetric 0.4": "asymmetric: 40 % of five classes' labels,\nto a similar class",
}
INK, MUTED, PLAIN, ROBUST = "#1f2430", "#5b6270", "#9aa3b2", "#3f51b5"
STYLE = {"font.size": 11, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": MUTED}


@matplotlib.rc_context(STYLE)
def main() -> None:
    """One panel a label noise: plain training on clean, half and wholly corrupted data, then ERAT on the latter."""
    with (HERE / "problem.csv").open(newline="") as file:
        rows = {(row["labels"], row["images"], row["defense"]): row for row in csv.DictReader(file)}
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained", facecolor="white")
    for axes, (noise, title) in zip(figure.subplots(1, 3, sharey=True), NOISES.items(), strict=True):
        bars = [
            ("clean", rows["clean", "clean", "CE"], PLAIN),
            ("labels\nwrong", rows[noise, "clean", "CE"], PLAIN),
            ("images\npoisoned", rows["clean", "UP", "CE"], PLAIN),
            ("both", rows[noise, "UP", "CE"], PLAIN),
            ("both,\nERAT", rows[noise, "UP", "ERAT"], ROBUST),
        ]
        for place, (_, row, colour) in enumerate(bars):
            mean, deviation = float(row["mean"]), float(row["deviation"])
            axes.bar(place, mean, 0.72, color=colour, yerr=deviation, error_kw={"ecolor": INK, "lw": 1.2, "capsize": 3})
            axes.text(place, mean + deviation + 1.5, f"{mean:.0f}", ha="center", color=INK, fontweight="bold")
        axes.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=10)
        axes.set_title(title, fontsize=11)
        axes.set_ylim(0, 110)
        axes.set_yticks(range(0, 101, 25))
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color="#e6e8ec")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("clean test accuracy, %")
    figure.suptitle("Grey: plain training. Blue: ERAT, on the same corrupted data", fontsize=13, fontweight="bold")
    figure.savefig(HERE / "problem.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
