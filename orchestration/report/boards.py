"""Gathers the finished runs of a workspace into rankings, of which none mixes what cannot be compared.

A board has one data set (and its very images), network, schedule and edition of the presets. In it a ranking has one
data corruption and one label noise with all their settings, and a line of it one defense with all of its own. What is
left of a configuration are the seeds: the runs of a line.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from erat.config import RunConfig, content_digest
from erat.errors import UserError, unknown_name
from erat.presets import EDITION
from orchestration.report.grid import Score, column_name
from orchestration.report.notation import EPSILON_INF, baseline_name, finite, header, named, percent, value
from orchestration.report.summary import best
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from orchestration.study.given import command_of, keys_given
from orchestration.study.ledger import Ledger
from orchestration.study.recorded import RecordedResult
from orchestration.study.spec import StudySpec
from orchestration.study.status import spec_of
from orchestration.study.trial import Trial

_SEEDS = ("train.seed", "corruption.seed")
# What the titles say of a board and of a ranking anyway.
_OF_BOARD = ("data.name", "model.name", "train.epochs")
_OF_RANKING = ("corruption.data", "corruption.norm", "corruption.epsilon", "corruption.labels", "corruption.rate")
_IMAGES = ("none", "l2c", "up", "aa", "ap", "uap", "uhp", "urp")  # the order of the paper's tables
_LABELS = ("none", "instance", "symmetric", "asymmetric")


@dataclass(slots=True)
class Run:
    """One finished run.

    Attributes:
        config: its configuration.
        result: its result.
        editions: editions of the presets with which studies asked for it.
        studies: names of these studies; none for a run outside any study.
        chosen: those of them that are searches, in which validation chose this configuration.
    """

    config: RunConfig
    result: RecordedResult
    editions: set[int] = field(default_factory=set)
    studies: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> tuple[int, int]:
        """Return the seed of the corruption, which is its draw, and the seed of training."""
        return self.config.corruption.seed, self.config.train.seed


@dataclass
class Line:
    """One defense in a ranking.

    Attributes:
        name: the defense as tables write it, with its settings that are not those of its preset.
        plain: whether it has no such settings.
        config: the flat configuration of the first run.
        given: what makes that configuration from its preset; None if this version cannot make it.
        runs: the finished runs, by their seeds.
    """

    name: str
    plain: bool
    config: dict[str, Any]
    given: dict[str, Any] | None
    runs: list[Run]

    @property
    def score(self) -> Score:
        """Return the clean test accuracies of the last epoch, in percent."""
        return _score(run.result.final_test_accuracy for run in self.runs)

    @property
    def mean(self) -> float:
        """Return the mean over the runs, in percent; every run of a line has an accuracy."""
        return fmean(self.score.values)

    @property
    def seconds(self) -> float:
        """Return the mean training time of a run."""
        return fmean(run.result.train_seconds for run in self.runs)

    @property
    def devices(self) -> list[str]:
        """Return the devices that the runs were trained on, as far as they were recorded."""
        return sorted({run.result.device for run in self.runs if run.result.device})

    @property
    def chosen(self) -> list[str]:
        """Return the searches in which validation chose this line."""
        return list(dict.fromkeys(name for run in self.runs for name in run.chosen))

    def command(self, run: Run) -> str | None:
        """Return the shell command that makes a run again; None if this version cannot."""
        return None if self.given is None else command_of(self.config, self.given, run.seeds)


@dataclass
class Ranking:
    """The defenses on one data corruption and label noise, the best mean first.

    Attributes:
        images: the data corruption: "UP", "none", ...
        budget: its norm and budget: "linf 8/255"; empty without a data corruption.
        labels: the label noise: "symmetric 0.6", "none", ...
        more: settings of the corruption that are not those of the preset, in words.
    """

    images: str
    budget: str
    labels: str
    more: str
    lines: list[Line]

    @property
    def title(self) -> str:
        images = f"{self.images}, {self.budget}" if self.budget else "no data corruption"
        labels = "no label noise" if self.labels == "none" else f"{self.labels} label noise"
        return f"{images}; {labels}" + (f"; {self.more}" if self.more else "")

    def place(self, line: Line) -> int:
        """Return the place of a line, from 1; means that are equal as printed share a place."""
        return 1 + sum(round(other.mean, 1) > round(line.mean, 1) for other in self.lines)


@dataclass
class Board:
    """The rankings of one data set, network, schedule and edition of the presets.

    Attributes:
        edition: edition of the presets.
        more: settings that are not those of the preset, in words.
        rankings: one per data corruption and label noise.
        config: the flat configuration of one run.
    """

    edition: int
    more: str
    rankings: list[Ranking]
    config: dict[str, Any]

    @property
    def title(self) -> str:
        dataset, network, epochs = (self.config[key] for key in _OF_BOARD)
        words = [str(dataset), value("model.name", network), f"{epochs} epoch{'s' if epochs != 1 else ''}"]
        return ", ".join([*words, *([self.more] if self.more else [])])

    @property
    def preset(self) -> str:
        return str(self.config["preset"])

    @property
    def runs(self) -> list[Run]:
        return [run for ranking in self.rankings for line in ranking.lines for run in line.runs]


def boards_of(workspace: Workspace, ledger: Ledger, names: Sequence[str] = ()) -> tuple[list[Board], int]:
    """Return the boards by their titles, and the number of finished runs whose configuration cannot be read.

    Of a search only the listed runs and the configuration that validation chose are on a board, with its
    confirmations: the best of many trials by test accuracy would be chosen by the test images.

    Args:
        workspace: the workspace.
        ledger: its ledger.
        names: the studies to show; none: all studies, and the runs outside any study.

    Raises:
        UserError: there is no study of one of these names, or its specification is damaged.
    """
    for name in names:
        if name not in ledger.studies:
            raise unknown_name("sweep", name, ledger.studies or ["(none yet)"])
    runs: dict[str, Run] = {}
    left = set() if names else set(ledger.done())
    for name in names or ledger.studies:
        try:
            spec = spec_of(ledger, name)
        except UserError as error:
            if names:
                raise
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
        else:
            left -= _take_study(ledger, name, spec, runs)
    unread = 0
    for cell in sorted(left):
        config, result = RunDirectory(workspace, cell).read_config(), ledger.done()[cell]
        if config is None:
            unread += 1
        elif _counts(result):
            runs[cell] = Run(config, result, {EDITION})
    return _arranged(runs.values()), unread


def _counts(result: RecordedResult) -> bool:
    return result.status == "done" and finite(result.final_test_accuracy) is not None


def _take_study(ledger: Ledger, name: str, spec: StudySpec, runs: dict[str, Run]) -> set[str]:
    """Add the runs of a study that belong on a board to `runs`, and return the digests of all that it proposed."""
    proposed = spec.proposals(ledger.studies[name]).values()
    trials = [ledger.with_outcome(spec.completed(trial), name) for trial in proposed]
    winner = best(trials) if spec.kind == "search" else None
    for trial in trials:
        won = winner is not None and winner.number in (trial.number, trial.confirms)
        result = ledger.outcome(trial.cell, name)
        if result is None or not _counts(result) or not (won or spec.kind != "search" or trial.source == "baseline"):
            continue
        run = runs.setdefault(trial.cell, Run(spec.config(trial.params), result))
        run.editions.add(spec.edition)
        run.studies.append(name)
        if won:
            run.chosen.append(name)
    return {trial.cell for trial in trials}


def _arranged(runs: Iterable[Run]) -> list[Board]:
    found: dict[tuple[int, str], dict[str, dict[str, list[Run]]]] = {}
    for run in runs:
        parts: dict[str, dict[str, Any]] = {"": {}, "corruption": {}, "defense": {}}
        for key, setting in run.config.identity().items():
            section = key.partition(".")[0]
            if key not in _SEEDS:
                parts[section if section in parts else ""][key] = setting
        board, ranking, line = (content_digest(part) for part in parts.values())
        for edition in run.editions:
            place = found.setdefault((edition, board), {})
            place.setdefault(ranking, {}).setdefault(line, []).append(run)
    boards = [_board(edition, rankings.values()) for (edition, _), rankings in found.items()]
    for alike in _groups(boards, lambda board: (board.edition, board.preset, board.title)):
        told = _apart([board.config for board in alike], but=("corruption", "defense"))
        for board, words in zip(alike, told, strict=True):
            board.more = ", ".join(filter(None, [board.more, words]))
    return sorted(boards, key=lambda board: (board.title, -board.edition))


def _board(edition: int, found: Iterable[Mapping[str, list[Run]]]) -> Board:
    rankings = [_ranking(lines) for lines in found]
    for alike in _groups(rankings, lambda ranking: ranking.title):
        told = _apart([ranking.lines[0].config for ranking in alike], but=("defense",))
        for ranking, words in zip(alike, told, strict=True):
            ranking.more = ", ".join(filter(None, [ranking.more, words]))
    rankings.sort(key=_order)
    first = rankings[0].lines[0]
    others = _words(first.given or {}, but=("corruption", "defense", *_OF_BOARD))
    return Board(edition, others, rankings, first.config)


def _order(ranking: Ranking) -> tuple[int, str, int, str, str]:
    kind, images = ranking.labels.split(" ")[0], ranking.images.lower()
    return (
        _LABELS.index(kind) if kind in _LABELS else len(_LABELS),
        ranking.labels,
        _IMAGES.index(images) if images in _IMAGES else len(_IMAGES),
        ranking.images,
        ranking.title,
    )


def _ranking(found: Mapping[str, list[Run]]) -> Ranking:
    lines = [_line(sorted(runs, key=lambda run: run.seeds)) for runs in found.values()]
    for alike in _groups(lines, lambda line: line.name):
        for line, words in zip(alike, _apart([each.config for each in alike], but=("corruption",)), strict=True):
            line.name = ", ".join(filter(None, [line.name, words]))
    lines.sort(key=lambda line: (-line.mean, line.name))
    first = lines[0]
    settings = first.config
    kind, norm, epsilon = (settings[f"corruption.{key}"] for key in ("data", "norm", "epsilon"))
    size = value(EPSILON_INF if norm == "linf" else "corruption.epsilon", epsilon)
    only = {key: setting for key, setting in (first.given or {}).items() if key.startswith("corruption.")}
    return Ranking(
        images=str(kind) if kind == "none" else str(kind).upper(),
        budget="" if kind == "none" else f"{norm} {size}",
        labels=column_name(Trial(0, "", {}, config=settings)),
        more=_words(only, but=_OF_RANKING),
        lines=lines,
    )


def _line(runs: list[Run]) -> Line:
    config, given = runs[0].config.flat(), keys_given(runs[0].config)
    trial = Trial(0, runs[0].result.cell, given or {}, "train", config)
    others = {
        key: setting
        for key, setting in (given or {}).items()
        if key.startswith("defense.") and key != "defense.name" and not named(key, trial)
    }
    words = _words(others, but=())
    name = baseline_name(trial)
    return Line(f"{name}, {words}" if words else name, not words and given is not None, config, given, runs)


def _words(settings: Mapping[str, Any], but: Sequence[str]) -> str:
    """Return settings in words, without these keys and sections."""
    shown = (key for key in settings if key not in but and key.partition(".")[0] not in but)
    return ", ".join(f"{header(key).removeprefix('defense.')} {value(key, settings[key])}" for key in shown)


def _groups(items: Iterable[Any], key: Any) -> list[list[Any]]:
    """Return the items that share a key, where there are several."""
    found: dict[Any, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return [members for members in found.values() if len(members) > 1]


def _apart(configs: Sequence[Mapping[str, Any]], but: Sequence[str]) -> list[str]:
    """Return in words what tells these configurations apart, apart from seeds, paths and the sections `but`."""
    keys = dict.fromkeys(key for config in configs for key in config)
    ignored = (*_SEEDS, "data.root", "preset")
    telling = [
        key
        for key in keys
        if key not in ignored
        and key.partition(".")[0] not in (*but, "resources", "storage")
        and len({repr(config.get(key)) for config in configs}) > 1
    ]
    return [_words({key: config.get(key) for key in telling}, but=()) for config in configs]


def _score(shares: Iterable[float | None]) -> Score:
    reached = [percent(share) for share in shares]
    return Score(tuple(number for number in reached if number is not None), len(reached))
