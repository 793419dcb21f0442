"""Tests `evaluate`: what it finds and writes, that it is not done twice, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.config import RunConfig
from erat.data.types import ImageSet
from erat.errors import UserError
from erat.robustness.curve import Evaluation
from orchestration.commands import evaluate as command
from orchestration.commands.evaluate import UNDERWAY, Asked, evaluate
from orchestration.commands.protocol import read_protocol
from orchestration.report.robustness import Robustness, attack_table, corruption_table
from orchestration.run.execute import execute_run
from orchestration.run.trained import MODEL, find_run
from orchestration.storage.workspace import Workspace

QUICK = Asked(None, ["linf=0.05,0.1", "l0=1"], "pgd,apgd", 40)
CUSTOMARY = {"linf": 0.1, "l2": 1.0, "l0": 2}


@pytest.fixture(scope="module")
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config({"defense.name": "ce", "data.limit": 200, "train.epochs": 2})


@pytest.fixture(scope="module")
def trained(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    assert execute_run(config, workspace).status == "done"
    return workspace


@pytest.fixture(scope="module")
def made(trained: Workspace, config: RunConfig) -> tuple[Robustness, list[Path]]:
    return evaluate(config.digest()[:6], QUICK, trained)


class TestWhatIsFound:
    def test_figures_fall_and_are_those_of_the_run(
        self, made: tuple[Robustness, list[Path]], trained: Workspace, config: RunConfig
    ) -> None:
        found, _ = made
        assert (found.cell, found.defense, found.data, found.images, found.status) == (
            config.digest(), "ce", "mnist", 40, "done",
        )  # fmt: skip
        result = find_run(config.digest(), trained).result
        assert result is not None and found.final_test_accuracy == result.final_test_accuracy
        assert [(row.threat, row.budget, row.attack) for row in found.attacked] == [
            (threat, size, attack)
            for threat, size in (("linf", 0.05), ("linf", 0.1), ("l0", 1.0))
            for attack in ("pgd", "apgd")
        ]
        linf = [found.of("linf", "apgd")[size] for size in (0.05, 0.1)]
        assert found.clean_accuracy >= linf[0] >= linf[1]
        assert found.clean_accuracy > linf[1]
        assert found.every_threat is not None and found.every_threat <= linf[1], "0.1 and 1 pixel are customary"
        assert len(found.corrupted) == 24

    def test_files_hold_the_same(self, made: tuple[Robustness, list[Path]]) -> None:
        found, files = made
        folder = files[0].parent
        assert {path.name for path in folder.iterdir()} == {path.name for path in files}
        assert Robustness.model_validate_json(files[0].read_bytes()) == found
        rows = list(csv.DictReader(files[1].read_text().splitlines()))
        assert len(rows) == 1 + 6 + 24
        assert [float(row["accuracy"]) for row in rows[1:7]] == [row.accuracy for row in found.attacked]
        assert files[2].read_bytes().startswith(b"\x89PNG")
        assert "under common corruptions" in files[3].read_text()

    def test_tables(self, made: tuple[Robustness, list[Path]]) -> None:
        table = attack_table(made[0])
        assert [column.heading for column in table.columns] == ["threat model", "budget", "pgd", "apgd"]
        assert [row.values[1] for row in table.rows] == ["0.05", "0.1 *", "1 *"]
        assert [row.values[0] for row in corruption_table(made[0]).rows][-1] == "mean"

    def test_the_identity_says_weights_data_settings_and_code(
        self, made: tuple[Robustness, list[Path]], config: RunConfig
    ) -> None:
        identity = made[0].identity
        assert identity["data"] == config.data.fingerprint
        assert len(identity["weights"]) == len(identity["code"]["erat"]) == 64
        assert identity["settings"]["budgets"] == {"linf": [0.05, 0.1], "l0": [1.0]}


class TestRepeating:
    def test_the_same_is_read_and_not_done_again(
        self,
        made: tuple[Robustness, list[Path]],
        trained: Workspace,
        config: RunConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def never(self: Evaluation, wrong: Any) -> Any:
            raise AssertionError("attacked again")

        monkeypatch.setattr(Evaluation, "fooled", never)
        assert evaluate(str(trained.run_directory(config.digest())), QUICK, trained) == made
        for other in (
            Asked(None, QUICK.budgets, "pgd", 40),
            Asked(None, QUICK.budgets, "pgd,apgd", 30),
            Asked(None, QUICK.budgets, "pgd,apgd", 40, force=True),
        ):
            with pytest.raises(AssertionError, match="attacked again"):
                evaluate(config.digest(), other, trained)

    def test_it_goes_on_after_an_interruption(
        self, trained: Workspace, config: RunConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, save, met = Asked(None, ["l2=0.2,0.5,1"], "pgd", 20), command.save, list[int]()
        monkeypatch.setattr(command, "robustness_figure", lambda found, out: [])

        def interrupted(path: Path, masks: dict[str, torch.Tensor]) -> None:
            save(path, masks)
            met.append(len(masks))
            if met == [1, 2]:
                raise KeyboardInterrupt

        monkeypatch.setattr(command, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config.digest(), asked, trained)
        found, files = evaluate(config.digest(), asked, trained)
        assert met == [1, 2, 3]
        assert not (files[0].parent / UNDERWAY).exists()
        again, _ = evaluate(config.digest(), Asked(None, asked.budgets, "pgd", 20, force=True), trained)
        assert again.attacked == found.attacked

    def test_a_damaged_result_is_made_again(
        self,
        made: tuple[Robustness, list[Path]],
        trained: Workspace,
        config: RunConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(command, "robustness_figure", lambda found, out: [])
        made[1][0].write_text('{"key": 1}')
        found, _ = evaluate(config.digest(), QUICK, trained)
        assert found.attacked == made[0].attacked


class TestFindingARun:
    def test_by_digits_folder_and_as_train_leaves_it(
        self, trained: Workspace, config: RunConfig, tmp_path: Path
    ) -> None:
        folder = trained.run_directory(config.digest())
        assert find_run(config.digest()[:4], trained).folder == find_run(str(folder), trained).folder == folder
        shutil.copy(folder / "config.json", tmp_path)
        shutil.copy(folder / MODEL, tmp_path / "model.pt")
        alone = find_run(str(tmp_path), trained)
        assert (alone.weights, alone.result) == (tmp_path / "model.pt", None)
        assert alone.weights_digest() == find_run(str(folder), trained).weights_digest()

    def test_what_is_refused(self, trained: Workspace, config: RunConfig, tmp_path: Path) -> None:
        cell = config.digest()
        with pytest.raises(UserError, match=rf"unknown run 'zz': allowed: .*\({cell}\), or the folder of a run"):
            find_run("zz", trained)
        with pytest.raises(UserError, match=r"unknown run ''"):
            find_run("", trained)
        with pytest.raises(UserError, match="there is none"):
            find_run("abcd", Workspace(tmp_path / "empty"))
        two = Workspace(tmp_path / "two")
        for name in ("abcd01", "abcd02"):
            shutil.copytree(trained.run_directory(cell), two.run_directory(name))
        with pytest.raises(UserError, match="RUN must name one run, got abcd, with which 2 begin: abcd01, abcd02"):
            find_run("abcd", two)
        (two.run_directory("abcd01") / MODEL).unlink()
        with pytest.raises(UserError, match="run abcd01 has no trained model"):
            find_run("abcd01", two)
        run = find_run("abcd02", two)
        with pytest.raises(UserError, match=r"must hold the weights of ce with small for 7 classes .*, got others"):
            run.defense(7, (1, 8, 8))
        run.weights.write_bytes(b"\0" * 100)
        with pytest.raises(UserError, match=r"cannot be read .*`train --force` trains the run again"):
            run.defense(10, (1, 8, 8))


class TestProtocol:
    @pytest.fixture
    def images(self, make_images: Callable[..., ImageSet]) -> ImageSet:
        return make_images(12)

    def test_budgets_follow_from_the_customary_ones(self, images: ImageSet) -> None:
        protocol = read_protocol(None, [], "apgd,pgd", customary=CUSTOMARY, images=images)
        assert protocol.budgets == {"linf": (0.025, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0), "l0": (1.0, 2.0, 4.0)}
        assert protocol.attacks == ("pgd", "apgd"), "from the weakest"
        large = read_protocol("linf", [], "pgd", customary={"linf": 0.8}, images=images)
        assert large.budgets == {"linf": (0.2, 0.4, 0.8, 1.0)}

    def test_given_budgets_are_sorted_and_name_the_threat_models(self, images: ImageSet) -> None:
        protocol = read_protocol(None, ["l1=3,1", "linf=8/255,0.01"], "pgd", customary=CUSTOMARY, images=images)
        assert protocol.budgets == {"linf": (0.01, 8 / 255), "l1": (1.0, 3.0)}
        both = read_protocol("l2,l1", ["l1=3"], "pgd", customary=CUSTOMARY, images=images)
        assert both.budgets == {"l2": (0.25, 0.5, 1.0, 2.0), "l1": (3.0,)}

    @pytest.mark.parametrize(
        ("threats", "budgets", "attacks", "says"),
        [
            (
                "linf,x",
                [],
                "pgd",
                "--threats must list some of linf, l2, l1, l0, ssim, wasserstein, lpips with commas, got 'linf,x'",
            ),
            ("l2,l2", [], "pgd", "--threats must name each once, got 'l2,l2'"),
            ("l1", [], "pgd", "l1 has no customary budget on this data set: give it, --budgets l1=SIZE,SIZE"),
            ("l2", ["linf=0.1"], "pgd", "--budgets linf has no use: --threats must list it too, got 'l2'"),
            (
                None,
                ["linf"],
                "pgd",
                "--budgets must be NAME=SIZE,SIZE with a name of linf, l2, l1, l0, ssim, wasserstein, lpips, "
                "got 'linf'",
            ),
            (None, ["linf=2"], "pgd", "--budgets linf must be numbers in (0, 1], got '2'"),
            (None, ["l2=nan"], "pgd", "--budgets l2 must be numbers in (0, 1e+06], got 'nan'"),
            (None, ["l2=1,"], "pgd", "--budgets l2 must be numbers in (0, 1e+06], got ''"),
            (None, ["l0=65"], "pgd", "--budgets l0 must be whole numbers of pixels in [1, 64], got '65'"),
            (None, ["l0=1.5"], "pgd", "--budgets l0 must be whole numbers of pixels in [1, 64], got '1.5'"),
            (None, ["l2=1", "l2=2"], "pgd", "--budgets must name each threat model once, got 'l2=1 l2=2'"),
            (None, [], "fgsm", "--attacks must list some of pgd, apgd, standard with commas, got 'fgsm'"),
            ("l0", [], "standard", "--attacks standard has none for l0: allowed with it: pgd, apgd"),
        ],
    )
    def test_what_is_refused(
        self, images: ImageSet, threats: str | None, budgets: list[str], attacks: str, says: str
    ) -> None:
        with pytest.raises(UserError) as error:
            read_protocol(threats, budgets, attacks, customary=CUSTOMARY, images=images)
        assert str(error.value) == says

    def test_the_ensemble_needs_four_classes(self, make_images: Callable[..., ImageSet]) -> None:
        with pytest.raises(UserError, match="--attacks standard needs at least 4 classes, got 3"):
            read_protocol(None, [], "standard", customary=CUSTOMARY, images=make_images(12, classes=3))


def test_the_command_prints_one_object(
    made: tuple[Robustness, list[Path]],
    trained: Workspace,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from orchestration.cli import app

    monkeypatch.setenv("ERAT_HOME", str(trained.root))
    words = ["--budgets", "linf=0.05,0.1", "--budgets", "l0=1", "--samples", "40", "--json"]
    app(["evaluate", config.digest()[:8], *words], standalone_mode=False)
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert content["files"] == [str(path) for path in made[1]]
    assert content["clean_accuracy"] == made[0].clean_accuracy
    assert "Accuracy under attack, 40 test images" in said.err
