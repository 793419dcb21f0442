"""Shows how robust a run is: what an evaluation has found, as tables, as CSV and as a figure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orchestration.report.notation import EPSILON_INF, accuracy, value
from orchestration.report.table import Table

Share = Annotated[float, Field(ge=0, le=1)]
_UNITS = {"linf": "l∞", "l2": "l2", "l1": "l1", "l0": "l0, pixels"}
_COLOURS = {"pgd": "#56B4E9", "apgd": "#0072B2", "standard": "#D55E00"}  # of Okabe and Ito, as in the other figures


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attacked(_Form):
    """The accuracy under one attack: the share of images that it, and those before it, do not fool."""

    threat: str
    budget: float
    attack: str
    accuracy: Share


class Corrupted(_Form):
    """The accuracy under one common corruption; `strength` is in the unit of the corruption."""

    corruption: str
    severity: int
    strength: float
    accuracy: Share


class Robustness(_Form):
    """What an evaluation has found, which is also the content of `robustness.json`.

    Attributes:
        cell: digest of the run.
        key: digest of `identity`.
        defense, network, data: their names.
        status, final_test_accuracy: of the run as it ended; None where its folder does not tell.
        test_images, images: number of test images, and of those that were evaluated.
        clean_accuracy: of these, as they are.
        attacked: one entry for each threat model, budget and attack.
        every_threat: the share of images that no attack fools within the customary budget of any threat model; None
            where one of these was not tried.
        customary: the customary budgets of the data set.
        corrupted: one entry for each corruption and severity.
        identity: what decides all figures: weights, images, settings, code.
        environment: the machine and the versions.
        seconds: how long it took, in this process.
    """

    cell: str
    key: str
    defense: str
    network: str
    data: str
    status: str | None
    final_test_accuracy: Share | None
    test_images: int
    images: int
    clean_accuracy: Share
    attacked: list[Attacked]
    every_threat: Share | None
    customary: dict[str, float]
    corrupted: list[Corrupted]
    identity: dict[str, Any]
    environment: dict[str, Any]
    seconds: float

    def attacks(self) -> list[str]:
        """Return the attacks in the order of their strength."""
        return list(dict.fromkeys(row.attack for row in self.attacked))

    def threats(self) -> list[str]:
        """Return the threat models."""
        return list(dict.fromkeys(row.threat for row in self.attacked))

    def of(self, threat: str, attack: str) -> dict[float, float]:
        """Return budget -> accuracy under one attack of a threat model."""
        return {row.budget: row.accuracy for row in self.attacked if (row.threat, row.attack) == (threat, attack)}


def attack_table(found: Robustness) -> Table:
    """Return the table of accuracies under attack, a row for each budget."""
    attacks, lines = found.attacks(), []
    for threat in found.threats():
        columns = [found.of(threat, attack) for attack in attacks]
        for budget in sorted({budget for column in columns for budget in column}):
            mark = " *" if _same(budget, found.customary.get(threat)) else ""
            lines.append(
                [threat, _written(threat, budget) + mark, *(accuracy(column.get(budget)) for column in columns)]
            )
    caption = "* is the customary budget. Each attack includes those before it, each budget the smaller ones."
    if found.every_threat is not None:
        caption += f" Under every threat model at its customary budget: {accuracy(found.every_threat)}."
    title = f"Accuracy under attack, {found.images} test images, clean {accuracy(found.clean_accuracy)}"
    return Table.of(["threat model", "budget", *attacks], lines, title=title, caption=caption)


def corruption_table(found: Robustness) -> Table:
    """Return the table of accuracies under common corruptions, a column for each severity."""
    severities = sorted({row.severity for row in found.corrupted})
    reached = {(row.corruption, row.severity): row.accuracy for row in found.corrupted}
    names = dict.fromkeys(row.corruption for row in found.corrupted)
    lines = [[name, *(accuracy(reached.get((name, severity))) for severity in severities)] for name in names]
    means = [[row.accuracy for row in found.corrupted if row.severity == severity] for severity in severities]
    lines.append(["mean", *(accuracy(sum(each) / len(each)) for each in means)])
    headings = ["corruption", *(f"severity {severity}" for severity in severities)]
    return Table.of(headings, lines, title="Accuracy under common corruptions")


def everything_table(found: Robustness) -> Table:
    """Return all accuracies with all their digits, one a row, for CSV."""
    rows: list[list[object]] = [["clean", "", "", "", found.images, found.clean_accuracy]]
    rows += [["threat", row.threat, row.budget, row.attack, found.images, row.accuracy] for row in found.attacked]
    rows += [
        ["corruption", row.corruption, row.strength, f"severity {row.severity}", found.images, row.accuracy]
        for row in found.corrupted
    ]
    return Table.of(["kind", "name", "strength", "attack", "images", "accuracy"], rows)


def robustness_figure(found: Robustness, out: Path) -> list[Path]:
    """Draw accuracy against budget, a panel for each threat model, and against the severity of corruptions.

    Returns:
        `robustness.png` and `robustness.svg` in the folder `out`.
    """
    import matplotlib  # here: plotting loads slowly
    from matplotlib.figure import Figure

    from orchestration.report import marks

    threats = found.threats()
    with matplotlib.rc_context(marks.STYLE):
        columns = min(3, len(threats) + 1)
        lines = -(-(len(threats) + 1) // columns)
        figure = Figure(figsize=(3.7 * columns, 3.1 * lines + 0.6), layout="constrained")
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, threat in zip(panels, threats, strict=False):
            _draw_threat(axes, found, threat)
        _draw_corruptions(panels[len(threats)], found)
        for axes in panels[len(threats) + 1 :]:
            axes.set_visible(False)
        for axes in panels:
            axes.set_ylim(0, 100)
        for axes in panels[::columns]:
            axes.set_ylabel("accuracy (%)")
        marks.legend(figure, 4)
        return marks.save(figure, out, "robustness")


def _draw_threat(axes: Any, found: Robustness, threat: str) -> None:
    for attack in found.attacks():
        reached = found.of(threat, attack)
        if reached:
            heights = [100 * share for share in (found.clean_accuracy, *reached.values())]
            axes.plot([0, *reached], heights, marker="o", ms=4, label=attack, color=_COLOURS.get(attack))
    customary = found.customary.get(threat)
    if customary is not None:
        axes.axvline(customary, color="#595959", lw=1, ls=":", zorder=0, label="customary budget")
    axes.set_title(f"under {_UNITS.get(threat, threat)}", loc="left")
    axes.set_xlabel("budget")


def _draw_corruptions(axes: Any, found: Robustness) -> None:
    names = list(dict.fromkeys(row.corruption for row in found.corrupted))
    for number, name in enumerate(names):
        rows = [row for row in found.corrupted if row.corruption == name]
        heights = [100 * share for share in (found.clean_accuracy, *(row.accuracy for row in rows))]
        style = {"color": f"C{number}", "ls": ("-", "--")[number % 2], "lw": 1.2}
        axes.plot([0, *(row.severity for row in rows)], heights, marker=".", label=name, **style)
    axes.set_xticks([0, *sorted({row.severity for row in found.corrupted})])
    axes.set_title("under common corruptions", loc="left")
    axes.set_xlabel("severity")


def _written(threat: str, budget: float) -> str:
    return value(EPSILON_INF, budget) if threat == "linf" else f"{budget:.4g}"


def _same(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) <= 1e-9 + 1e-6 * abs(other)


def the_customary(budgets: Iterable[float], customary: float | None) -> float | None:
    """Return which of the budgets is the customary one; None if none of them is."""
    return next((budget for budget in budgets if _same(budget, customary)), None)
