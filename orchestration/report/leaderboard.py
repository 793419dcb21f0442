"""Writes the leaderboard: the finished runs of a workspace as rankings, and apart from them what the paper printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from erat.errors import UserError
from erat.paths import user_path
from orchestration.report.boards import Board, Line, Ranking, boards_of
from orchestration.report.document import save
from orchestration.report.draws import LEVEL, differences, interval
from orchestration.report.errata import RECONSTRUCTION, Footnotes
from orchestration.report.notation import duration
from orchestration.report.printed import printed, printed_cell, published_tables
from orchestration.report.render.html import asset, page
from orchestration.report.table import Cell, Column, Mark, Part, Row, Table
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger

_ERRORS = 3.0  # standard errors above chance that an accuracy must have to count as more than chance
_COLUMNS = (
    Column("defense", "left", "name"),
    Column("#"),
    Column("accuracy", kind="accuracy"),
    Column("runs"),
    Column("seeds", kind="aside"),
    Column("time", kind="time"),
)
_PAPER = Column("paper", kind="printed")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet"}


def write_leaderboard(
    workspace: Workspace, names: Sequence[str] = (), out: str | None = None, what: str = "--out"
) -> tuple[Path, dict[str, Any]]:
    """Write the page, and return its file and what `--json` prints.

    Args:
        workspace: the workspace.
        names: the studies to show; none: all that there is.
        out: the file to write; None: `reports/leaderboard/index.html` in the workspace.
        what: the option that `out` came from, for messages.

    Raises:
        UserError: there is no such study, nothing has finished, or the file cannot be written.
    """
    boards, unread = boards_of(workspace, Ledger(workspace.ledger), names)
    if not boards:
        where = f"of {', '.join(names)}" if names else f"in {workspace.root}"
        raise UserError(
            f"a leaderboard needs a run that is done, got none {where}; `matrix --grid table3` or `train` makes some"
        )
    path = user_path(out, what) if out else workspace.report("leaderboard") / "index.html"
    notes = Footnotes()
    drawn = [_Drawn(board, f"b{number}", workspace, notes) for number, board in enumerate(boards)]
    path = save(_html(drawn, names, unread, notes), path, what)
    return path, {"files": [str(path)], "unread": unread, "boards": [each.content() for each in drawn]}


class _Drawn:
    """A board with its rankings as tables.

    Args:
        board: the board.
        prefix: what the identifiers of its lines begin with.
        workspace: the workspace, from which the number of classes and of test images is read.
        notes: the footnotes of the page.
    """

    def __init__(self, board: Board, prefix: str, workspace: Workspace, notes: Footnotes) -> None:
        self.board, self.prefix, self.notes = board, prefix, notes
        self.chance, self.error = _chance(board, workspace)
        self.verdicts = [self._verdict(ranking) for ranking in board.rankings]

    def hopeless(self, ranking: Ranking) -> bool:
        """Return whether no defense is above chance."""
        return self.chance is not None and ranking.lines[0].mean < self.chance + _ERRORS * self.error

    def _verdict(self, ranking: Ranking) -> str:
        """Say in a sentence who leads, by how much, and how sure that is."""
        first = ranking.lines[0]
        if self.hopeless(ranking):
            return f"No defense is above chance, {self.chance:.1f} %."
        if len(ranking.lines) == 1:
            return "Alone in its ranking: nothing to compare it with yet."
        second = ranking.lines[1]
        lead = f"{first.name} is {first.mean - second.mean:.1f} points above {second.name}"
        found = differences(*([(run[0], "", run[1]) for run in _reached(line)] for line in (first, second)))
        if len(found) < 2:
            shared = "one draw" if found else "different draws"
            return f"{lead}, in {shared} of the corruption: how sure that is cannot be told."
        low, high = interval(found)
        words = (
            f"{lead}; over {len(found)} shared draws {mean(found):+.1f}, {LEVEL:.0%} interval {low:+.1f} to {high:+.1f}"
        )
        return f"{words}: within noise." if low <= 0 <= high else f"{words}."

    def table(self, number: int) -> Table:
        """Return a ranking as a table; the first column opens a line's runs, known by `identifier`."""
        ranking, notes = self.board.rankings[number], self.notes
        paper = [printed(self.board, ranking, line) for line in ranking.lines]
        has_paper = any(each is not None for each in paper)
        lines = []
        for place, (line, of) in enumerate(zip(ranking.lines, paper, strict=True)):
            rank, score = ranking.place(line), line.score
            leads = rank == 1 and len(ranking.lines) > 1 and not self.hopeless(ranking)
            rebuilt = (notes.mark(RECONSTRUCTION),) if line.name.split(",")[0] == "MSPL" else ()
            chosen = (Part("chosen by validation", "chosen"),) if line.chosen else ()
            values: list[object] = [
                Cell(line.name, beside=chosen, notes=rebuilt, runs=(self.identifier(number, place),)),
                rank,
                Cell(
                    f"{line.mean:.1f}",
                    Mark.BEST if leads else None,
                    (Part(score.deviation, "spread"),) if score.deviation else (),
                ),
                len(line.runs),
                seeds_words(line),
                Cell(duration(line.seconds)),
            ]
            lines.append(Row((*values, printed_cell(line, of, notes)) if has_paper else tuple(values)))
        return Table((*_COLUMNS, _PAPER) if has_paper else _COLUMNS, tuple(lines), title=ranking.title)

    def identifier(self, ranking: int, line: int) -> str:
        """Return what opens a line, by the number of its ranking and its own."""
        return f"{self.prefix}-{ranking}-{line}"

    def overall(self) -> Table | None:
        """Return the mean over the rankings that all defenses with the most rankings share; None if there are few."""
        reached: dict[str, dict[int, float]] = {}
        for number, ranking in enumerate(self.board.rankings):
            if not self.hopeless(ranking):
                for line in ranking.lines:
                    reached.setdefault(line.name, {})[number] = line.mean
        most = max(map(len, reached.values()), default=0)
        shown = {name: values for name, values in reached.items() if len(values) == most}
        shared = set.intersection(*(set(values) for values in shown.values())) if shown else set()
        if len(shown) < 2 or len(shared) < 2:
            return None
        tops = {number: max(round(values[number], 1) for values in shown.values()) for number in shared}
        order = sorted(shown, key=lambda name: (-mean(shown[name][number] for number in shared), name))
        lines = [
            (
                name,
                f"{mean(shown[name][number] for number in shared):.1f}",
                f"{min(shown[name][number] for number in shared):.1f}",
                sum(round(shown[name][number], 1) == tops[number] for number in shared),
            )
            for name in order
        ]
        caption = (
            f"Over the {len(shared)} rankings that these defenses have all finished; first places count ties. Means "
            "over rankings hide where a defense fails: see its worst one."
        )
        headings = (Column("defense", "left", "name"), Column("mean"), Column("worst"), Column("first places"))
        return Table.of(headings, lines, title="All rankings together", caption=caption)

    def details(self) -> dict[str, Any]:
        """Return what a line opens: id -> its runs, its command and its settings."""
        return {
            self.identifier(number, place): {
                "title": f"{line.name} on {ranking.title}",
                "board": self.board.title,
                "devices": line.devices,
                "chosen": line.chosen,
                "options": {key: setting for key, setting in line.config.items() if key.startswith("defense.")},
                "runs": [
                    [
                        *run.seeds,
                        _short(run.result.final_test_accuracy),
                        _short(run.result.best_val_test_accuracy),
                        round(run.result.train_seconds, 1),
                        round(run.result.peak_memory_mb),
                        run.result.cell,
                        ", ".join(run.studies) or "train",
                    ]
                    for run in line.runs
                ],
                "commands": [command for run in line.runs if (command := line.command(run)) is not None],
            }
            for number, ranking in enumerate(self.board.rankings)
            for place, line in enumerate(ranking.lines)
        }

    def content(self) -> dict[str, Any]:
        """Return the board as `--json` prints it; accuracies are in [0, 1]."""
        settings = self.board.config
        return {
            "data": settings["data.name"],
            "network": settings["model.name"],
            "epochs": settings["train.epochs"],
            "preset": self.board.preset,
            "edition": self.board.edition,
            "title": self.board.title,
            "chance": None if self.chance is None else self.chance / 100,
            "rankings": [
                {
                    "data_corruption": ranking.images,
                    "budget": ranking.budget,
                    "label_noise": ranking.labels,
                    "title": ranking.title,
                    "verdict": verdict,
                    "lines": [_line_content(self.board, ranking, line) for line in ranking.lines],
                }
                for ranking, verdict in zip(self.board.rankings, self.verdicts, strict=True)
            ],
        }


def _line_content(board: Board, ranking: Ranking, line: Line) -> dict[str, Any]:
    paper, spread = printed(board, ranking, line), line.score.spread
    return {
        "place": ranking.place(line),
        "defense": line.name,
        "mean": line.mean / 100,
        "spread": None if spread is None else spread / 100,
        "n": len(line.runs),
        "train_seconds": line.seconds,
        "devices": line.devices,
        "chosen_by_validation_in": line.chosen,
        "published": None if paper is None else {"table": paper.table, "test_accuracy": paper.test_accuracy / 100},
        "runs": [
            {
                "cell": run.result.cell,
                "draw": run.seeds[0],
                "seed": run.seeds[1],
                "final_test_accuracy": run.result.final_test_accuracy,
                "best_val_test_accuracy": run.result.best_val_test_accuracy,
                "train_seconds": run.result.train_seconds,
                "studies": run.studies,
                "command": line.command(run),
            }
            for run in line.runs
        ],
    }


def _chance(board: Board, workspace: Workspace) -> tuple[float | None, float]:
    """Return the accuracy of guessing among the classes, and its standard error on the test images, in percent.

    The former is None if no run has left a confusion matrix.
    """
    for run in board.runs[:10]:
        found = RunDirectory(workspace, run.result.cell).read_confusion()
        if found is not None and found["classes"] and (tests := sum(map(sum, found["counts"]))) > 0:
            share = 1 / len(found["classes"])
            return 100 * share, 100 * sqrt(share * (1 - share) / tests)
    return None, 0.0


def _reached(line: Line) -> list[tuple[int, float]]:
    """Return (draw, accuracy in percent) of the runs of a line."""
    return [(run.seeds[0], number) for run, number in zip(line.runs, line.score.values, strict=True)]


def seeds_words(line: Line) -> str:
    """Return the seeds of training, and of the corruption where it is not 0 alone: "0-2", "0, 1; draws 0-2"."""
    draws, seeds = (sorted({run.seeds[place] for run in line.runs}) for place in (0, 1))
    return _listed(seeds) + ("" if draws == [0] else f"; draw{'s' if len(draws) > 1 else ''} {_listed(draws)}")


def _listed(numbers: Sequence[int]) -> str:
    """Return whole numbers in words, three or more that follow each other as a range."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")


def _short(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


# --- the page --------------------------------------------------------------------------------------------------------


def _html(drawn: Sequence[_Drawn], names: Sequence[str], unread: int, notes: Footnotes) -> str:
    rankings = [ranking for each in drawn for ranking in each.board.rankings]
    details = {key: value for each in drawn for key, value in each.details().items()}
    text = json.dumps(details, separators=(",", ":"), default=str).replace("<", "\\u003c").replace("&", "\\u0026")
    general = list(notes.general())
    known = {str(each.board.config["data.name"]) for each in drawn}
    return page(
        "leaderboard.html",
        style=asset("page.css", "leaderboard.css"),
        script=asset("leaderboard.js"),
        data=Markup(text),
        drawn=[
            {
                "board": each.board,
                "overall": each.overall(),
                "facts": _facts(each.board),
                "rankings": [
                    {"of": ranking, "verdict": each.verdicts[place], "table": each.table(place)}
                    for place, ranking in enumerate(each.board.rankings)
                ],
            }
            for each in drawn
        ],
        editions=len({each.board.edition for each in drawn}) > 1,
        images=list(dict.fromkeys(ranking.images for ranking in rankings)),
        labels=list(dict.fromkeys(ranking.labels for ranking in rankings)),
        lines=sum(len(ranking.lines) for ranking in rankings),
        runs=len({run.result.cell for each in drawn for run in each.board.runs}),
        unread=unread,
        names=names,
        printed=[
            (_TITLES.get(dataset, dataset), dataset in known, tables)
            for dataset, tables in published_tables(notes).items()
        ],
        notes=notes.texts,
        general=general,
    )


def _facts(board: Board) -> list[tuple[str, str]]:
    """Return (name, words) of what all rankings of a board have in common."""
    settings = board.config
    clean = "clean" if settings["val.trusted"] else "corrupted like the rest"
    batch, rate, schedule = (settings[f"train.{key}"] for key in ("batch_size", "lr", "schedule"))
    shown = {
        "images": f"fingerprint {settings['data.fingerprint']}" if settings["data.fingerprint"] else "not recorded",
        "image size": settings["data.image_size"] or "as stored",
        "training images": settings["data.limit"] or "all",
        "validation": f"{settings['val.fraction']:.0%}, {clean}",
        "batch, learning rate": f"{batch}, {rate:g} ({schedule})",
        "preset": f"{board.preset}, edition {board.edition}",
        "devices": ", ".join(sorted({name for run in board.runs if (name := run.result.device)})),
    }
    return [(name, str(words)) for name, words in shown.items() if words]
