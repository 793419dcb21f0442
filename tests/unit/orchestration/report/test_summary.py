"""Tests the summary of a sweep: ranking, choice, table, exports, the command to paste."""

from __future__ import annotations

import csv
import io
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from rich.console import Console

from erat.config import build
from orchestration.report.documents import search_text
from orchestration.report.notation import baseline_name, duration, value
from orchestration.report.render.terminal import terminal
from orchestration.report.summary import best, paste_command, ranked, summary
from orchestration.study.overrides import parse_overrides
from orchestration.study.trial import Trial, confirmation
from tests.trials import make_trial

COLUMNS = ["defense.epsilon_inf", "defense.epsilon_2"]


def row(number: int, val: float | None, test: float | None = None, status: str = "done", **more: Any) -> Trial:
    more.setdefault("params", {"defense.epsilon_inf": 8 / 255, "defense.epsilon_2": 0.5})
    more.setdefault("epochs", 10)
    more.setdefault("epoch", 10)
    return make_trial(
        number, f"cell{number}", status=status, best_val_accuracy=val, final_test_accuracy=test, seconds=62, **more
    )


def printed(rows: list[Trial], columns: list[str], width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(terminal(summary(rows, columns)))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


class TestBest:
    def test_validation_accuracy_chooses_and_test_accuracy_does_not(self) -> None:
        assert best([row(0, 0.90, 0.99), row(1, 0.91, 0.10)]).number == 1  # type: ignore[union-attr]

    def test_a_tie_goes_to_the_lower_number(self) -> None:
        assert best([row(5, 0.9), row(2, 0.9), row(3, 0.9)]).number == 2  # type: ignore[union-attr]

    def test_a_stopped_trial_counts_only_where_none_is_done(self) -> None:
        stopped = row(0, 0.95, status="stopped")
        assert best([stopped, row(1, 0.5)]).number == 1  # type: ignore[union-attr]
        assert best([stopped, row(1, 0.99, status="running")]) is stopped

    @pytest.mark.parametrize("status", ["queued", "running", "failed"])
    def test_unfinished_trials_are_not_eligible(self, status: str) -> None:
        assert best([row(0, 0.9, status=status)]) is None

    def test_a_baseline_or_an_unmeasured_trial_is_no_setting_to_take(self) -> None:
        assert best([row(0, 0.99, source="baseline"), row(1, None), row(2, float("nan"))]) is None
        assert best([]) is None


class TestTable:
    def test_rows_are_ranked_by_validation_accuracy_with_the_best_marked(self) -> None:
        rows = [
            row(0, 0.9012, 0.88, source="paper", best_val_test_accuracy=0.89),
            row(1, None, status="failed", epoch=2, error="boom"),
            row(2, 0.9512, 0.70, params={"defense.epsilon_inf": 0.0345, "defense.epsilon_2": 0.123456}),
            row(3, 0.9999, status="stopped", epoch=4),
        ]
        lines = [" ".join(line.split()) for line in printed(rows, COLUMNS)]
        start = next(index for index, line in enumerate(lines) if line.startswith("─")) + 1
        assert lines[start : start + 4] == [
            "3 optuna 8/255 0.5 1.000 - - 4/10 stopped 1:02",
            "★ 2 optuna 0.0345 0.123 0.951 0.700 - 10/10 done 1:02",
            "0 paper 8/255 0.5 0.901 0.880 0.890 10/10 done 1:02",
            "1 optuna 8/255 0.5 - - - 2/10 failed 1:02",
        ]
        assert "ε∞" in " ".join(lines[:start])

    def test_the_caption_says_what_chose(self) -> None:
        text = " ".join(printed([row(0, 0.9)], COLUMNS))
        assert "chosen by validation accuracy" in text
        assert "test accuracy is for the record" in text

    @pytest.mark.parametrize(("trusted", "words"), [(True, "clean, a small checked set"), (False, "corrupted like")])
    def test_the_caption_says_whether_validation_was_trusted(self, trusted: bool, words: str) -> None:
        config = {"val.trusted": trusted, "val.objective": "perturbed"}
        text = " ".join(printed([row(0, 0.9, config=config)], COLUMNS))
        assert words in text
        assert "perturbed images" in text

    def test_four_searched_values_fit_into_80_characters(self) -> None:
        keys = [*COLUMNS, "defense.eta", "defense.lambda_u"]
        params = dict(zip(keys, (12 / 255, 0.523, 0.123, 12.3), strict=True))
        lines = printed([row(12, 0.9, 0.9, "stopped", params=params, best_val_test_accuracy=0.9)], keys, width=80)
        assert not any("…" in line for line in lines)
        assert any("12/255" in line and "12.3" in line and "stopped" in line for line in lines)

    def test_so_do_those_that_were_stopped_at_a_rung_or_repeat_another_trial(self) -> None:
        keys = [*COLUMNS, "defense.eta", "defense.lambda_u"]
        params = dict(zip(keys, (12 / 255, 0.523, 0.123, 12.3), strict=True))
        more: dict[str, Any] = {"params": params, "best_val_test_accuracy": 0.9, "epochs": 60}
        lost = replace(row(13, 0.8, 0.8, "stopped", epoch=30, **more), rungs=(10, 30), promoted=10)
        again = row(confirmation(12, 1), 0.8, 0.8, source="confirm", config={"train.seed": 4}, epoch=60, **more)
        lines = printed([row(12, 0.9, 0.9, epoch=60, **more), lost, again], keys, width=80)
        assert not any("…" in line for line in lines)
        assert any("13 optuna" in line and "stopped@30" in line for line in lines)
        assert any("12 seed 4" in line and "12/255" in line for line in lines)

    def test_a_baseline_goes_by_its_name(self) -> None:
        ce = row(0, 0.5, source="baseline", params={"defense.name": "ce"})
        assert any("0  CE" in line for line in printed([ce], COLUMNS))

    def test_a_title_that_looks_like_markup_is_printed_as_it_is(self) -> None:
        assert any("[red]" in line for line in printed([row(0, 0.9, params={"k": "[red]"})], ["k"]))


def test_markdown_is_one_table_and_escapes_pipes() -> None:
    rows = [row(0, 0.9, params={"k": "a|b"}), row(1, 0.95, params={"k": "c"})]
    lines = search_text("md", rows, ["k"]).splitlines()
    assert lines[0] == "| # | source | k | val (best) | test (last) | test (best val) | epochs | status | time |"
    assert lines[2] == "| ★ 1 | optuna | c | 0.950 | - | - | 10/10 | done | 1:02 |"
    assert lines[3] == r"| 0 | optuna | a\|b | 0.900 | - | - | 10/10 | done | 1:02 |"
    assert "chosen by validation accuracy" in lines[-1]


def test_csv_keeps_every_digit_and_leaves_the_unmeasured_empty() -> None:
    rows = [row(0, 1 / 3, error="line one\nline, two"), row(1, None)]
    records = list(csv.DictReader(io.StringIO(search_text("csv", rows, COLUMNS))))
    assert [record["number"] for record in records] == ["0", "1"]
    assert float(records[0]["best_val_accuracy"]) == 1 / 3
    assert float(records[0]["defense.epsilon_inf"]) == 8 / 255
    assert records[0]["error"] == "line one\nline, two"
    assert records[1]["best_val_accuracy"] == ""


def test_ranking_puts_the_unmeasured_last() -> None:
    assert [r.number for r in ranked([row(0, None), row(1, float("nan")), row(2, 0.1), row(3, 0.2)])] == [3, 2, 0, 1]


class TestPasteCommand:
    def test_it_round_trips_through_a_shell(self) -> None:
        overrides = {"data.root": "/a folder/it's", "train.milestones": (3, 4), "val.trusted": False, "preset": "paper"}
        words = shlex.split(paste_command(row(0, 0.9), "demo", overrides))
        assert words[:5] == ["python", "orchestrate.py", "train", "--preset", "demo"]
        assert dict(word.split("=", 1) for word in words[5:]) == {
            "data.root": "/a folder/it's",
            "train.milestones": "[3, 4]",
            "val.trusted": "false",
            "defense.epsilon_inf": repr(8 / 255),
            "defense.epsilon_2": "0.5",
        }

    @pytest.mark.parametrize("text", ["erat", "8/255", "yes", "1.0", "a: b", "[x", "", " x", "none", "null", "it's"])
    def test_text_comes_back_as_text_where_a_key_takes_text(self, text: str) -> None:
        word = shlex.split(paste_command(row(0, 0.9, params={"corruption.data": text}), "demo", {}))[-1]
        assert parse_overrides([word]) == {"corruption.data": text}

    def test_a_choice_that_looks_like_a_number_comes_back(self) -> None:
        word = shlex.split(paste_command(row(0, 0.9, params={"defense.jsd_log": "2"}), "demo", {}))[-1]
        assert build("demo", parse_overrides([word])).flat()["defense.jsd_log"] == "2"

    @pytest.mark.parametrize("plain", [None, True, [3, 4], 7])
    def test_what_is_not_text_comes_back_as_it_was(self, plain: Any) -> None:
        word = shlex.split(paste_command(row(0, 0.9, params={"k": plain}), "demo", {}))[-1]
        assert yaml.safe_load(word.removeprefix("k=")) == plain

    def test_floats_come_back_bit_for_bit(self) -> None:
        awkward = [8 / 255, 0.1 + 0.2, 1e-7, 1 / 3, 5e-324]
        for number in awkward:
            command = paste_command(row(0, 0.9, params={"k": number}), "demo", {})
            assert float(shlex.split(command)[-1].removeprefix("k=")) == number

    def test_a_searched_value_wins_over_the_override(self) -> None:
        command = paste_command(row(0, 0.9, params={"train.lr": 0.2}), "demo", {"train.lr": 0.1})
        assert command == "python orchestrate.py train --preset demo train.lr=0.2"


@pytest.mark.parametrize(
    ("key", "number", "text"),
    [
        ("defense.epsilon_inf", 8 / 255, "8/255"),
        ("defense.epsilon_inf", 8 / 255 + 9e-7, "8/255"),
        ("defense.epsilon_inf", 8 / 255 + 2e-6, "0.0314"),
        ("defense.epsilon_inf", 0.0125, "0.0125"),
        ("defense.epsilon_inf", 0.2, "0.2"),  # also 51/255
        ("defense.epsilon_inf", 0.0, "0"),
        ("defense.epsilon_inf", float("nan"), "nan"),
        ("defense.epsilon_2", 8 / 255, "0.0314"),
        ("defense.lambda_u", 25.0, "25"),
        ("defense.strong", False, "false"),
        ("train.epochs", 12345, "12345"),
        ("defense.eta", None, "-"),
    ],
)
def test_values_read_as_a_person_writes_them(key: str, number: Any, text: str) -> None:
    assert value(key, number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (float("nan"), "-"), (-3, "0:00"), (59.6, "1:00"), (42, "0:42"), (3725, "1:02:05")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"defense.name": "ce"}, "CE"),
        ({"defense.name": "dividemix"}, "DivideMix"),
        ({"defense.name": "erat", "defense.adversarial": False}, "ERAT w/o AT"),
        ({"defense.name": "erat", "defense.adversarial": True}, "ERAT"),
        ({}, "run cell0"),
    ],
)
def test_baselines_are_named_as_in_the_paper(config: dict[str, Any], name: str) -> None:
    assert baseline_name(row(0, 0.9, params={}, config=config)) == name
