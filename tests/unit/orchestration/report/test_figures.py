"""Tests the figures: files, texts in the SVG, positions, shaded areas, and no figure if there is nothing to draw."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from orchestration.report.budgets import BudgetAxis, hurting, log_ticks
from orchestration.report.figures import budget_figure, joint_figure, line_figure, sweep_figure
from orchestration.study.trial import Trial
from tests.trials import make_trial, with_result

INF, TWO, ETA, LAMBDA = "defense.epsilon_inf", "defense.epsilon_2", "defense.eta", "defense.lambda_u"
PAIRS = [(1, 0.1), (2, 0.2), (4, 0.3), (6, 0.4), (8, 0.5), (12, 0.6), (16, 0.7), (24, 0.8)]
ARCH = [0.80, 0.88, 0.93, 0.95, 0.96, 0.955, 0.95, 0.90]


def row(number: int, params: dict[str, Any], test: float | None, source: str = "optuna", **more: Any) -> Trial:
    more.setdefault("status", "done")
    more.setdefault("best_val_accuracy", test)
    return make_trial(number, f"cell{number:02}", params, source=source, final_test_accuracy=test, **more)


def paper_rows(accuracies: list[float] = ARCH) -> list[Trial]:
    settings = [{INF: k / 255, TWO: eps_2} for k, eps_2 in PAIRS]
    return [row(n, params, test, "paper") for n, (params, test) in enumerate(zip(settings, accuracies, strict=True))]


def proposals() -> list[Trial]:
    return [
        row(8, {INF: 0.0345, TWO: 0.55}, 0.962),
        row(9, {INF: 0.01, TWO: 0.7}, 0.4, status="stopped"),
        row(10, {INF: 0.02, TWO: 0.7}, None, status="failed"),
    ]


def baselines() -> list[Trial]:
    return [
        row(20, {}, 0.517, "baseline", config={"defense.name": "ce"}),
        row(21, {}, 0.916, "baseline", config={"defense.name": "erat", "defense.adversarial": False}),
    ]


def text_of(paths: list[Path]) -> list[str]:
    """Return the strings that the SVG shows as text."""
    svg = next(path for path in paths if path.suffix == ".svg").read_text(encoding="utf-8")
    return [re.sub(r"<[^>]+>", "", found).strip() for found in re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL)]


class TestBudgetFigure:
    def test_both_files_with_their_text(self, tmp_path: Path) -> None:
        low = row(11, {INF: 1 / 255, TWO: 0.1}, 0.4, "paper", status="stopped")
        paths = budget_figure([*paper_rows(), *proposals(), low], baselines(), tmp_path / "new" / "folder")
        assert [path.name for path in paths] == ["budgets.png", "budgets.svg"]
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        words = text_of(paths)
        joined = "\n".join(words)
        assert "Paper, Fig. 5: too small and too large both hurt." in joined
        assert "Here: too small and too large cost more than 2 points (shaded)." in joined
        assert {"too small", "too large", "stopped early", "best by validation accuracy"} <= set(words)
        assert "ERAT w/o AT: 91.6" in joined
        assert "CE: 51.7 (below this axis)" in joined
        assert "1 trial below this axis" in joined  # the trial that was stopped at 40 %
        for piece in ("⅛×", "1×", "1.5×", "3×", "1/255", "12/255", "24/255", "0.8"):
            assert piece in words, piece

    def test_a_proposal_has_two_budgets_and_is_no_pair(self, tmp_path: Path) -> None:
        """It stood among the pairs by its l_inf budget alone, under "too small"."""
        drawn = [
            budget_figure(rows, [], tmp_path / str(len(rows))) for rows in (paper_rows(), paper_rows() + proposals())
        ]
        alone, beside = (text_of(paths) for paths in drawn)
        assert "Optuna's proposals: test, last epoch" not in beside
        assert "paper's settings: test, last epoch" in alone
        assert "stopped early" in beside, "in the plane of both budgets"

    @pytest.mark.parametrize(
        ("accuracies", "verdict", "absent"),
        [
            ([0.95] * 8, "Here: all pairs lie within 2 points of the best.", ("too small", "too large")),
            ([0.9, *[0.95] * 7], "Here: too small costs more than 2 points (shaded).", ("too large",)),
            ([*[0.95] * 6, 0.9, 0.9], "Here: too large costs more than 2 points (shaded).", ("too small",)),
        ],
    )
    def test_the_verdict_follows_the_data(
        self, tmp_path: Path, accuracies: list[float], verdict: str, absent: tuple[str, ...]
    ) -> None:
        words = text_of(budget_figure(paper_rows(accuracies), [], tmp_path))
        assert verdict in "\n".join(words)
        assert not set(absent) & set(words)

    def test_a_stopped_pair_is_no_evidence(self, tmp_path: Path) -> None:
        rows = paper_rows([0.3, *[0.95] * 7])
        rows[0] = with_result(rows[0], status="stopped")
        assert "Here: all pairs lie within 2 points of the best." in "\n".join(
            text_of(budget_figure(rows, [], tmp_path))
        )

    def test_the_same_data_give_the_same_svg(self, tmp_path: Path) -> None:
        first, second = (budget_figure(paper_rows(), baselines(), tmp_path / name)[1] for name in "ab")
        assert first.read_bytes() == second.read_bytes()

    def test_the_users_settings_stay_as_they_are(self, tmp_path: Path) -> None:
        before = dict(matplotlib.rcParams)
        budget_figure(paper_rows(), [], tmp_path)
        assert dict(matplotlib.rcParams) == before


class TestFewOrOddRows:
    @pytest.mark.parametrize("status", ["queued", "running", "failed"])
    def test_nothing_finished_writes_nothing(self, tmp_path: Path, status: str) -> None:
        rows = [with_result(found, status=status) for found in paper_rows()]
        out = tmp_path / "out"
        assert budget_figure(rows, baselines(), out) == []
        assert line_figure(rows, INF, baselines(), out) == []
        assert joint_figure(rows, [INF, TWO], out) == []
        assert sweep_figure("budgets", [], baselines(), out) == []
        assert not out.exists()

    @pytest.mark.parametrize(
        "rows",
        [
            paper_rows()[:1],
            paper_rows()[3:5],
            proposals()[:1],
            proposals()[1:2],
            [row(0, {INF: 0.0, TWO: 0.0}, 0.5), row(1, {INF: 0.1, TWO: 0.0}, 0.5)],
            [row(0, {INF: 0.1, TWO: 1.0}, None, best_val_accuracy=0.9)],
            [row(0, {INF: 0.1, TWO: 1.0}, 0.9, best_val_accuracy=None)],
            [row(0, {INF: 0.1, TWO: 1.0}, float("nan"), best_val_accuracy=0.9)],
            [row(0, {INF: None, TWO: 1.0}, 0.9)],
            [row(0, {INF: 0.1}, 0.9, "paper"), row(1, {INF: 0.1}, 0.8, "paper")],
            [row(0, {INF: 0.05, TWO: 0.1}, 0.9), row(1, {INF: 5.0, TWO: 9.0}, 0.0)],
        ],
    )
    def test_no_crash(self, tmp_path: Path, rows: list[Trial]) -> None:
        assert len(budget_figure(rows, baselines()[:1], tmp_path)) == 2
        assert len(joint_figure(rows, [INF, TWO], tmp_path)) == (0 if rows[0].best_val_accuracy is None else 2)
        assert len(line_figure(rows, INF, [], tmp_path)) == (0 if rows[0].params[INF] is None else 2)


class TestAxis:
    def test_the_papers_pairs_stand_at_whole_numbers_and_others_between_by_logarithm(self) -> None:
        axis = BudgetAxis.of(paper_rows())
        assert [axis.position(k / 255) for k, _ in PAIRS] == pytest.approx(range(8))
        assert axis.position((8 * 12) ** 0.5 / 255) == pytest.approx(4.5)
        assert axis.position(1e-6) == -0.7
        assert axis.position(1.0) == 7.7

    @pytest.mark.parametrize(("unit_inf", "unit_2"), [(8 / 255, 0.5), (0.1, 1.0)])
    def test_multiples_of_any_data_sets_reference(self, unit_inf: float, unit_2: float) -> None:
        by_inf, by_2 = unit_inf / (8 / 255), unit_2 / 0.5
        rows = [
            replace(found, params={INF: found.params[INF] * by_inf, TWO: found.params[TWO] * by_2})
            for found in paper_rows()
        ]
        axis = BudgetAxis.of(rows)
        assert axis.reference == pytest.approx(unit_inf)
        heads = [axis.label(index).split("\n")[0] for index in range(8)]
        assert heads == ["⅛×", "¼×", "½×", "¾×", "1×", "1.5×", "2×", "3×"]

    def test_pairs_that_are_not_the_papers_get_no_multiples(self) -> None:
        rows = [row(0, {INF: 0.01, TWO: 0.3}, 0.9, "paper"), row(1, {INF: 0.07, TWO: 0.5}, 0.9, "paper")]
        axis = BudgetAxis.of(rows)
        assert axis.reference is None
        assert axis.label(1) == "0.07\n0.5"

    def test_only_the_ends_hurt(self) -> None:
        assert hurting([80, 88, 93, 95, 96, 95, 94, 90]) == (3, 1)
        assert hurting([96, 90, 95, 93.9]) == (0, 1)  # a dent in the middle is not an end
        assert hurting([95, 94, 93]) == (0, 0)  # a difference of two points is not more than two points
        assert hurting([]) == (0, 0)

    def test_log_ticks_are_round_and_cover_the_values(self) -> None:
        assert log_ticks(INF, [0.005, 0.05]) == [n / 255 for n in (1, 2, 4, 8, 16)]
        assert log_ticks("train.lr", [0.003, 0.04]) == pytest.approx([0.002, 0.005, 0.01, 0.02, 0.05])
        assert log_ticks(INF, [0.0]) == []


class TestDispatch:
    def test_two_budgets(self, tmp_path: Path) -> None:
        paths = sweep_figure("budgets", paper_rows() + proposals() + baselines(), [], tmp_path)
        assert [path.name for path in paths] == ["budgets.png", "budgets.svg"]
        assert any(word.startswith("ERAT w/o AT") for word in text_of(paths))  # it is among the rows

    @pytest.mark.parametrize(("key", "finding"), [(ETA, "Paper, Fig. 6"), (LAMBDA, "Paper, Fig. 7")])
    def test_one_key_shows_the_papers_finding(self, tmp_path: Path, key: str, finding: str) -> None:
        rows = [row(n, {key: n / 4}, 0.9 + n / 100, "paper") for n in range(5)]
        paths = sweep_figure("spaces/mine.yaml", rows, baselines(), tmp_path)
        assert [path.name for path in paths] == ["mine.png", "mine.svg"]
        assert finding in "\n".join(text_of(paths))
        assert line_figure(rows, key, [], tmp_path)[0].name == f"{key.removeprefix('defense.')}.png"

    def test_names_instead_of_numbers(self, tmp_path: Path) -> None:
        names = ["step", "cosine", "onecycle"]
        rows = [row(n, {"train.schedule": name}, 0.9) for n, name in enumerate(names)]
        assert set(names) <= set(text_of(sweep_figure("s", rows, [], tmp_path)))

    def test_several_keys_get_a_panel_each(self, tmp_path: Path) -> None:
        rows = [row(n, {INF: (n + 1) / 255, TWO: n / 8, ETA: n / 8, LAMBDA: 5.0 * n}, 0.9 + n / 100) for n in range(8)]
        paths = sweep_figure("joint", rows, [], tmp_path)
        assert [path.name for path in paths] == ["joint.png", "joint.svg"]
        assert {"ε∞", "ε2", "η", "λ", "Optuna's proposals"} <= set(text_of(paths))

    def test_nothing_searched_draws_nothing(self, tmp_path: Path) -> None:
        assert sweep_figure("none", [row(0, {}, 0.9)], [], tmp_path) == []
