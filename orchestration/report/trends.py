"""Finds what a matrix varies beside defenses and corruptions, for accuracy over it as in the paper's Figures 3 to 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.report.grid import Score, score_of
from orchestration.report.notation import EPSILON_2, EPSILON_INF, baseline_name, header, value
from orchestration.study.trial import Trial

# A panel is a data set, a kind of label noise and a kind of data corruption; a line is a defense.
_PLACED = ("defense.name", "data.name", "corruption.data", "corruption.labels", "train.seed", "corruption.seed")
_COUPLED = ("corruption.coupling", "corruption.overlap")
_RATE = "corruption.rate"
Setting = tuple[object, ...]


@dataclass(frozen=True)
class Trend:
    """One panel of a figure.

    Attributes:
        title: the heading of the panel.
        axis: the name of what is varied, as the paper writes it.
        ticks: its settings, in ascending order if they are numbers; if several keys vary in step, a line for each key.
        ordered: whether the settings are numbers.
        lines: defense -> its score at each setting.
    """

    title: str
    axis: str
    ticks: list[str]
    ordered: bool
    lines: dict[str, list[Score]]


def trends_of(rows: Sequence[Trial]) -> list[Trend]:
    """Return the panels of a matrix that varies one more thing; none if it varies nothing or several things at once.

    Couplings are several things.
    """
    keys = varied(rows)
    if not keys or any(row.params.get(key) is not None for row in rows for key in _COUPLED):
        return []
    panels: dict[tuple[str, str, str], list[Trial]] = {}
    for row in rows:
        for kind in _kinds(row, rows, keys):
            place = (str(row.config.get("data.name")), kind, str(row.config.get("corruption.data")))
            panels.setdefault(place, []).append(row)
    return [_trend(place, members, keys) for place, members in panels.items()]


def varied(rows: Sequence[Trial]) -> list[str]:
    """Return the keys that vary within one defense on one kind of corruption, in step; empty if they do not."""
    lines: dict[tuple[str, ...], list[Trial]] = {}
    for row in rows:
        lines.setdefault((baseline_name(row), *(str(row.config.get(key)) for key in _PLACED[1:4])), []).append(row)
    given = list(dict.fromkeys(key for row in rows for key in row.params if key not in _PLACED))
    keys = [
        key for key in given if any(len({repr(row.config.get(key)) for row in line}) > 1 for line in lines.values())
    ]
    for line in lines.values():
        most = max((len({repr(row.config.get(key)) for row in line}) for key in keys), default=0)
        if len({repr(_setting(row, keys)) for row in line}) > most:
            return []
    return keys


def _kinds(row: Trial, rows: Sequence[Trial], keys: Sequence[str]) -> list[str]:
    """Return the kinds of label noise whose panels show a run; a run without noise is the start of each of them."""
    kind = str(row.config.get("corruption.labels"))
    if kind != "none" or _RATE not in keys:
        return [kind]
    others = [str(other.config.get("corruption.labels")) for other in rows]
    return list(dict.fromkeys(other for other in others if other != "none"))


def _setting(row: Trial, keys: Sequence[str]) -> Setting:
    return tuple(row.config.get(key) for key in keys)


def _trend(place: tuple[str, str, str], rows: Sequence[Trial], keys: Sequence[str]) -> Trend:
    dataset, noise, corruption = place
    settings = list(dict.fromkeys(_setting(row, keys) for row in rows))
    ordered = all(isinstance(part, int | float) for setting in settings for part in setting)
    if ordered:
        settings.sort(key=lambda setting: [float(str(part)) for part in setting])
    names = list(dict.fromkeys(map(baseline_name, rows)))
    cells: dict[tuple[str, Setting], list[Trial]] = {}
    for row in rows:
        cells.setdefault((baseline_name(row), _setting(row, keys)), []).append(row)
    lines = {name: [score_of(cells.get((name, setting), [])) for setting in settings] for name in names}
    words = ["\n".join(value(key, part) for key, part in zip(keys, setting, strict=True)) for setting in settings]
    rate = {row.config.get(_RATE) for row in rows} if _RATE not in keys else set()
    amount = f" {next(iter(rate)):g}" if len(rate) == 1 and noise != "none" else ""
    return Trend(_title(dataset, f"{noise}{amount}", corruption), _axis(keys), words, ordered, lines)


def _title(dataset: str, noise: str, corruption: str) -> str:
    labels = "no label noise" if noise.startswith("none") else f"{noise} label noise"
    return f"{dataset}, {labels}, {'clean images' if corruption == 'none' else corruption.upper()}"


def _axis(keys: Sequence[str]) -> str:
    if list(keys) == [_RATE]:
        return "noise rate"
    if list(keys) == ["corruption.epsilon"]:
        return "budget of the poison, ε'"
    if {EPSILON_INF, EPSILON_2} <= set(keys):
        return "defense budgets " + " and ".join(map(header, keys))
    return ", ".join(map(header, keys))


# --- which labels are believed (Fig. 2) and what an epoch takes (RQ5) ------------------------------------------------


@dataclass(frozen=True)
class Selected:
    """The samples of each class that two ways of selecting took after one epoch, rightly and wrongly labelled."""

    title: str
    classes: list[str]
    stacks: dict[str, list[tuple[float, float]]]


def selections_of(rows: Sequence[Trial], selection: Mapping[str, Mapping[str, Any]]) -> list[Selected]:
    """Return ERAT's selections without and with rebalancing, after the first epoch that selects and the last (Fig. 2).

    Args:
        rows: the trials.
        selection: run -> its `selection.json`.
    """
    pairs: dict[tuple[str, ...], dict[str, Trial]] = {}
    for row in rows:
        if row.cell in selection and baseline_name(row) in ("ERAT w/o RB", "ERAT"):
            place = tuple(
                str(row.config.get(key)) for key in ("data.name", "corruption.labels", _RATE, "corruption.data")
            )
            pairs.setdefault(place, {}).setdefault(baseline_name(row), row)
    found = []
    for (dataset, noise, rate, corruption), runs in pairs.items():
        if set(runs) != {"ERAT w/o RB", "ERAT"}:
            continue
        contents = {name: selection[runs[name].cell] for name in ("ERAT w/o RB", "ERAT")}
        for words, number in (("first selection", 0), ("last epoch", -1)):
            stacks = {name: _stack(content, number) for name, content in contents.items()}
            if all(stacks.values()):
                title = f"{_title(dataset, f'{noise} {rate}', corruption)}: {words}"
                found.append(Selected(title, [*contents["ERAT"]["classes"]], stacks))
    return found


def _stack(content: Mapping[str, Any], number: int) -> list[tuple[float, float]]:
    """Return (right, wrong) labelled samples per class, of the epochs after the warm-up, which takes all samples."""
    taken = [sum(epoch["labelled_per_class"]) for epoch in content["epochs"]]
    selecting = [epoch for epoch, count in zip(content["epochs"], taken, strict=True) if count < max(taken)]
    epochs = selecting or content["epochs"]
    if not epochs:
        return []
    labelled, right = epochs[number]["labelled_per_class"], epochs[number]["correct_per_class"]
    return [(float(good), float(count - good)) for count, good in zip(labelled, right, strict=True)]


def seconds_per_epoch(rows: Sequence[Trial]) -> dict[str, list[float]]:
    """Return for each defense the seconds per epoch in each of its finished runs."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.status == "done" and row.epoch and row.seconds:
            found.setdefault(baseline_name(row), []).append(row.seconds / row.epoch)
    return found
