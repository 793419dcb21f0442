"""Tests a single run: the files that it leaves, and that an interruption leaves no trace in its result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from filelock import FileLock

from erat.config import RunConfig, build, load_config
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.errors import UserError
from erat.result import RunResult, summarise
from erat.training import threads
from orchestration.run.directory import RunDirectory
from orchestration.run.environment import environment
from orchestration.run.execute import execute_run
from orchestration.run.heartbeat import is_running
from orchestration.storage.workspace import Workspace
from tests.forks import prepared
from tests.same_runs import CLOCK, assert_same_run

EPOCHS = 4
TINY = {"data.limit": 120, "defense.steps": 1, "corruption.labels": "symmetric", "train.epochs": EPOCHS}
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(TINY)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without an interruption, and return the folder of the run."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed"))
    assert execute_run(config, workspace).status == "done"
    return workspace.run_directory(config.digest())


def at(folder: Path) -> RunDirectory:
    """Return the run directory at this folder."""
    return RunDirectory(Workspace(folder.parent.parent), folder.name)


def weights(folder: Path, name: str = "artifacts/model.pt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / name, weights_only=True)
    return state


def until(epoch: int) -> Callable[[Sequence[EpochReport]], bool]:
    """Return a listener that asks for a stop after this epoch."""
    return lambda history: history[-1].epoch < epoch


def killed_after_an_epoch(config: str, root: Path) -> None:
    """Train for an epoch in a process of its own, which is then killed."""

    def kill(_: Sequence[EpochReport]) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    execute_run(RunConfig.model_validate_json(config), Workspace(root), on_epoch=kill)


class TestWhatIsLeft:
    def test_the_result_is_what_the_epochs_amount_to(self, config: RunConfig, undisturbed: Path) -> None:
        result, rows = at(undisturbed).read_result(), at(undisturbed).read_metrics()
        assert result is not None
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert result.cell == config.digest()
        assert (result.status, result.epochs, result.error) == ("done", EPOCHS, None)
        assert result.val_history == [row["val_accuracy"] for row in rows]
        assert result.val_accuracy == rows[-1]["val_accuracy"]
        assert result.final_test_accuracy == rows[-1]["test_accuracy"]
        best = max(rows, key=lambda row: row["val_accuracy"])
        assert (result.best_val_accuracy, result.best_val_test_accuracy) == (
            best["val_accuracy"],
            best["test_accuracy"],
        )
        assert result.train_seconds == pytest.approx(sum(row["epoch_seconds"] for row in rows))
        assert result.noise_rate == pytest.approx(0.6, abs=0.01)

    def test_every_epoch_has_the_promised_figures(self, undisturbed: Path) -> None:
        promised = "test_accuracy val_accuracy train_loss selection_precision selection_recall labelled_fraction"
        for row in at(undisturbed).read_metrics():
            assert {*promised.split(), *CLOCK} <= row.keys()

    def test_the_configuration_reads_back(self, config: RunConfig, undisturbed: Path) -> None:
        assert load_config(undisturbed / "config.json") == config
        flat = yaml.safe_load((undisturbed / "artifacts/config.yaml").read_text())
        assert RunConfig.model_validate(flat).digest() == config.digest()

    def test_the_artifacts_are_all_there(self, undisturbed: Path) -> None:
        names = {file.name for file in (undisturbed / "artifacts").iterdir()}
        assert names == {
            "config.yaml",
            "environment.json",
            "selection.json",
            "confusion.json",
            "corruption.json",
            "model.pt",
        }
        assert not list(undisturbed.rglob("*.part"))

    def test_selection_per_class_adds_up(self, undisturbed: Path) -> None:
        selection = json.loads((undisturbed / "artifacts/selection.json").read_text())
        assert len(selection["classes"]) == 10
        for entry, row in zip(selection["epochs"], at(undisturbed).read_metrics(), strict=True):
            assert sum(entry["labelled_per_class"]) == round(row["labelled_fraction"] * 108)
            right = zip(entry["correct_per_class"], entry["labelled_per_class"], strict=True)
            assert all(correct <= labelled for correct, labelled in right)
        assert selection["epochs"][-1]["labelled_per_class"] != selection["epochs"][0]["labelled_per_class"]

    def test_the_confusion_is_that_of_the_stored_model_on_the_clean_test_set(
        self, config: RunConfig, undisturbed: Path
    ) -> None:
        confusion = json.loads((undisturbed / "artifacts/confusion.json").read_text())
        counts = torch.tensor(confusion["counts"])
        assert counts.sum() == 1000
        assert counts.sum(1).tolist() == [100] * 10
        accuracy = at(undisturbed).read_metrics()[-1]["test_accuracy"]
        assert float(counts.diag().sum()) / 1000 == pytest.approx(accuracy)
        store = Store(undisturbed.parents[1] / "crafted")
        data = corrupted_set(config, store)
        trainer = Trainer(config, data)
        trainer.defense.networks.load_state_dict(weights(undisturbed))
        predicted = trainer.predict_test()
        assert float((predicted == data.test.labels).float().mean()) == pytest.approx(accuracy)

    def test_the_environment_says_what_one_needs_to_run_it_again(self, undisturbed: Path) -> None:
        said = json.loads((undisturbed / "artifacts/environment.json").read_text())
        assert torch.__version__.startswith(said["versions"]["torch"])
        assert said["python"] == sys.version.split()[0]
        assert {"git_commit", "git_dirty", "platform", "cores", "device", "command"} <= said.keys()

    def test_a_package_that_is_absent_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib import metadata

        def absent(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", absent)
        monkeypatch.setenv("PATH", "/nowhere")  # and git is not found either
        said = environment()
        assert set(said["versions"].values()) == {"absent"}
        assert said["git_commit"] is None


class TestGoingOn:
    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_interrupted_it_ends_with_the_same_bits(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path, epoch: int
    ) -> None:
        def interrupt(history: Sequence[EpochReport]) -> bool:
            if history[-1].epoch == epoch:
                raise KeyboardInterrupt
            return True

        with pytest.raises(KeyboardInterrupt):
            execute_run(config, workspace, on_epoch=interrupt)
        folder = workspace.run_directory(config.digest())
        assert at(folder).read_result() is None
        assert len(at(folder).read_metrics()) == epoch
        assert not is_running(at(folder))
        assert execute_run(config, workspace).status == "done"
        assert_same_run(at(folder), at(undisturbed))

    def test_killed_it_ends_with_the_same_bits(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path
    ) -> None:
        ended = prepared().Process(target=killed_after_an_epoch, args=(config.model_dump_json(), workspace.root))
        ended.start()
        ended.join(300)
        assert ended.exitcode == -signal.SIGKILL
        folder = workspace.run_directory(config.digest())
        assert [row["epoch"] for row in at(folder).read_metrics()] == [1]
        assert at(folder).read_result() is None
        told: list[int] = []
        assert (
            execute_run(config, workspace, on_epoch=lambda h: bool(told.append(h[-1].epoch)) or True).status == "done"
        )
        assert told == [1, 2, 3, 4], "the last epoch once more: its listener may have died before it heard"
        assert_same_run(at(folder), at(undisturbed))

    @pytest.mark.parametrize("asks", [1, 2, 5])
    def test_told_to_leave_it_goes_on_from_where_it_was(
        self, asks: int, config: RunConfig, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = chain(repeat(False, asks), repeat(True))
        monkeypatch.setattr("orchestration.run.execute.requested", partial(next, answers))
        folder = workspace.run_directory(config.digest())
        with pytest.raises(Interrupted):
            execute_run(config, workspace)
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert checkpoint["underway"] is not None
        assert len(at(folder).read_metrics()) == len(checkpoint["history"])
        assert f"in epoch {len(checkpoint['history']) + 1}" in (at(folder).read_departure() or "")
        assert at(folder).read_result() is None
        assert not is_running(at(folder))
        monkeypatch.undo()
        assert execute_run(config, workspace).status == "done"
        assert at(folder).read_departure() is None
        assert_same_run(at(folder), at(undisturbed))

    def test_stopped_on_request_it_says_so_and_can_still_go_on(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path
    ) -> None:
        folder = workspace.run_directory(config.digest())
        result = execute_run(config, workspace, on_epoch=until(2))
        assert (result.status, result.epochs, len(result.val_history)) == ("stopped", 2, 2)
        assert result.final_test_accuracy == at(undisturbed).read_metrics()[1]["test_accuracy"]
        assert at(folder).read_result() == result
        assert (folder / "artifacts/model.pt").exists()
        assert execute_run(config, workspace, on_epoch=until(2)).status == "stopped", "and stays where it is"
        assert execute_run(config, workspace).status == "done"
        assert_same_run(at(folder), at(undisturbed))

    def test_a_finished_run_is_only_read(self, config: RunConfig, workspace: Workspace) -> None:
        first = execute_run(config, workspace)
        folder = workspace.run_directory(config.digest())
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"}
        told: list[int] = []
        again = execute_run(config, workspace, on_epoch=lambda h: bool(told.append(1)))
        assert again == first
        assert told == []
        assert {file: file.stat().st_mtime_ns for file in before} == before

    def test_a_finished_run_needs_no_data(
        self, config: RunConfig, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = execute_run(config, workspace)
        monkeypatch.setattr("erat.training.corrupted_set", lambda *_: pytest.fail("looked for data"))
        assert execute_run(config, workspace) == first

    def test_a_damaged_result_is_made_again(self, config: RunConfig, workspace: Workspace, undisturbed: Path) -> None:
        execute_run(config, workspace)
        folder = workspace.run_directory(config.digest())
        (folder / "result.json").write_text('{"cell": "x", "sta')
        assert execute_run(config, workspace).status == "done"
        assert_same_run(at(folder), at(undisturbed))

    def test_without_a_sound_checkpoint_it_starts_anew(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path
    ) -> None:
        execute_run(config, workspace, on_epoch=until(2))
        folder = workspace.run_directory(config.digest())
        for name in ("checkpoint.pt", "previous-checkpoint.pt"):
            (folder / name).write_bytes(b"\0" * 100)
        seen: list[int] = []
        with pytest.warns(UserWarning, match="starting anew"):
            execute_run(config, workspace, on_epoch=lambda h: bool(seen.append(len(at(folder).read_metrics()))) or True)
        assert seen == [1, 2, 3, 4], "rows of epochs that were lost do not stay"
        assert_same_run(at(folder), at(undisturbed))

    def test_the_one_before_is_gone_on_from_and_goes_in_the_end(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path
    ) -> None:
        execute_run(config, workspace, on_epoch=until(3))
        folder = workspace.run_directory(config.digest())
        content = (folder / "checkpoint.pt").read_bytes()
        (folder / "checkpoint.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        seen: list[int] = []
        with pytest.warns(UserWarning, match="its checksum does not fit.*going on from the one before"):
            execute_run(config, workspace, on_epoch=lambda h: bool(seen.append(len(at(folder).read_metrics()))) or True)
        assert seen == [2, 3, 4]
        assert_same_run(at(folder), at(undisturbed))
        assert not (folder / "previous-checkpoint.pt").exists()

    def test_a_pickled_checkpoint_is_refused_and_the_refusal_kept(
        self, config: RunConfig, workspace: Workspace
    ) -> None:
        execute_run(config, workspace, on_epoch=until(1))
        folder = workspace.run_directory(config.digest())
        torch.save({"digest": workspace}, folder / "checkpoint.pt")
        with pytest.raises(UserError, match="delete it to start this run anew"):
            execute_run(config, workspace)
        assert at(folder).read_result() is None
        assert "delete it" in str(at(folder).read_error())
        (folder / "checkpoint.pt").unlink()
        assert execute_run(config, workspace).status == "done"
        assert at(folder).read_error() is None


class TestOneAtATime:
    def test_a_second_one_waits_and_finds_it_done(self, config: RunConfig, workspace: Workspace) -> None:
        folder = workspace.run_directory(config.digest())
        ended: list[RunResult] = []
        first_is_in, go_on = threading.Event(), threading.Event()

        def hold(history: Sequence[EpochReport]) -> bool:
            first_is_in.set()
            return go_on.wait(300)

        told: list[int] = []
        first = threading.Thread(target=lambda: ended.append(execute_run(config, workspace, on_epoch=hold)))
        first.start()
        assert first_is_in.wait(300)
        assert is_running(at(folder))
        second = threading.Thread(
            target=lambda: ended.append(execute_run(config, workspace, on_epoch=lambda h: bool(told.append(1))))
        )
        second.start()
        second.join(0.3)
        assert second.is_alive(), "it waits"
        go_on.set()
        first.join(300)
        second.join(300)
        assert [result.status for result in ended] == ["done", "done"]
        assert told == [], "it trained nothing"
        assert not is_running(at(folder))

    def test_another_process_counts(self, workspace: Workspace) -> None:
        folder = workspace.run_directory("c")
        folder.mkdir(parents=True)
        script = (
            "import sys, time; from filelock import FileLock\n"
            "with FileLock(sys.argv[1]): print(1, flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", script, str(folder / ".lock")], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert is_running(at(folder))
            other.kill()
            other.wait()
        assert not is_running(at(folder)), "a lock dies with its holder"

    def test_looking_does_not_wait(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = workspace.run_directory("c")
        folder.mkdir(parents=True)
        with FileLock(folder / ".lock"):
            monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
            assert is_running(at(folder))


class TestFailing:
    @pytest.fixture
    def bursting(self, make_config: Callable[..., RunConfig]) -> RunConfig:
        return make_config(TINY | {"train.lr": 1e6})

    def test_a_loss_that_leaves_the_numbers_is_part_of_the_result(
        self, bursting: RunConfig, workspace: Workspace
    ) -> None:
        result = execute_run(bursting, workspace)
        folder = workspace.run_directory(bursting.digest())
        assert result.status == "failed"
        assert str(result.error).startswith("TrainingFailedError: the loss became ")
        assert "epoch 1" in str(result.error)
        assert "\n" not in str(result.error)
        assert at(folder).read_result() == result
        log = (folder / "error.txt").read_text()
        assert log.startswith("Traceback")
        assert "the loss became" in log.splitlines()[-1]

    def test_a_failed_run_is_tried_again(
        self, config: RunConfig, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = workspace.run_directory(config.digest())
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "predict_test", lambda self: 1 / 0)
            result = execute_run(config, workspace)
        assert (result.status, result.error) == ("failed", "ZeroDivisionError: division by zero")
        assert execute_run(config, workspace).status == "done"
        assert not (folder / "error.txt").exists()
        assert_same_run(at(folder), at(undisturbed))

    def test_a_failure_keeps_what_was_reached(self, config: RunConfig, workspace: Workspace) -> None:
        def burst(history: Sequence[EpochReport]) -> bool:
            if len(history) == 3:
                raise MemoryError("out of it")
            return True

        result = execute_run(config, workspace, on_epoch=burst)
        assert (result.status, result.epochs, len(result.val_history)) == ("failed", 3, 3)
        assert result.error == "out of memory: MemoryError: out of it"

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried 9e12 bytes"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore lines"),
        ],
    )
    def test_a_want_of_memory_is_named(self, error: Exception, config: RunConfig, workspace: Workspace) -> None:
        def fail(history: Sequence[EpochReport]) -> bool:
            raise error

        said = str(execute_run(config, workspace, on_epoch=fail).error)
        assert said.startswith(f"out of memory: {type(error).__name__}: ")
        assert "\n" not in said

    def test_a_gpu_that_fails_is_named(self, config: RunConfig, workspace: Workspace) -> None:
        def fail(history: Sequence[EpochReport]) -> bool:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nMore lines")

        said = str(execute_run(config, workspace, on_epoch=fail).error)
        assert said == "device fault: AcceleratorError: CUDA error: uncorrectable ECC error encountered"

    def test_data_that_cannot_be_had_are_no_result(self, workspace: Workspace, tmp_path: Path) -> None:
        missing = build("paper", {"data.root": str(tmp_path / "nowhere"), "data.fingerprint": "0" * 16})
        with pytest.raises(UserError, match="nowhere"):
            execute_run(missing, workspace)
        folder = workspace.run_directory(missing.digest())
        assert at(folder).read_result() is None
        assert "nowhere" in str(at(folder).read_error())


class TestSmallThings:
    @pytest.fixture
    def folder(self, workspace: Workspace) -> Path:
        folder = workspace.run_directory("mine")
        folder.mkdir(parents=True)
        return folder

    def test_the_first_of_equal_epochs_is_the_best(self) -> None:
        rows = [
            {"val_accuracy": v, "test_accuracy": t, "epoch_seconds": 1.0}
            for v, t in [(0.2, 0.1), (0.5, 0.2), (0.5, 0.3)]
        ]
        result = summarise("c", "done", rows)
        assert (result.best_val_accuracy, result.best_val_test_accuracy, result.final_test_accuracy) == (0.5, 0.2, 0.3)

    def test_no_epoch_amounts_to_no_figures(self) -> None:
        assert summarise("c", "failed", []) == RunResult("c", "failed")

    @pytest.mark.parametrize("text", ["", "[]", '{"status": "done"}', '{"cell": "c", "status": "done", "later": 1}'])
    def test_a_result_that_is_none(self, text: str, folder: Path) -> None:
        (folder / "result.json").write_text(text)
        assert at(folder).read_result() is None

    DONE: ClassVar[dict[str, Any]] = {"status": "done", "epochs": 2, "val_accuracy": 0.5, "best_val_accuracy": 0.5} | {
        "final_test_accuracy": 0.5,
        "best_val_test_accuracy": 0.5,
    }

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"cell": "other"}, "it is of another cell, other"),
            ({"status": "fine"}, "status: input should be 'done', 'stopped', 'failed' or 'paused', got 'fine'"),
            ({"epochs": 0}, "a finished result needs epochs"),
            ({"final_test_accuracy": None}, "a finished result needs final_test_accuracy"),
            ({"final_test_accuracy": 97.0}, "final_test_accuracy: input should be less than or equal to 1, got 97.0"),
            ({"final_test_accuracy": float("nan")}, "final_test_accuracy: input should be "),
            ({"val_history": {"0": 1}}, "val_history: input should be a valid array"),
            ({"train_seconds": "long"}, "train_seconds: input should be a valid number, got 'long'"),
            ({"epochs": True}, "epochs: input should be a valid integer"),
        ],
    )
    def test_a_damaged_result_is_none_and_said(self, change: dict[str, Any], reason: str, folder: Path) -> None:
        content = self.DONE | {"cell": folder.name}
        (folder / "result.json").write_text(json.dumps(content | {"field_of_a_later_version": 1}))
        assert at(folder).read_result() is not None
        (folder / "result.json").write_text(json.dumps(content | change))
        with pytest.warns(UserWarning, match=re.escape(f"is damaged ({reason}")) as said:
            assert at(folder).read_result() is None
        assert str(said[0].message).endswith(": the cell counts as not finished")

    def test_epochs_after_a_damage_do_not_count(self, folder: Path) -> None:
        row = {"val_accuracy": 0.5, "test_accuracy": 0.5, "epoch_seconds": 1.0}
        lines = [json.dumps({"epoch": epoch, **row}) for epoch in (1, 2, 3)]
        for content, damage in [
            ([*lines[:2], "5"], "line 3: "),
            ([lines[0], lines[1].replace("0.5", "NaN"), lines[2]], "line 2: val_accuracy: "),
            ([lines[0], lines[2]], "line 2: epoch must be 2, got 3"),
        ]:
            (folder / "metrics.jsonl").write_text("\n".join(content))
            with pytest.warns(UserWarning, match=re.escape(f"metrics.jsonl is damaged ({damage}")):
                rows = at(folder).read_metrics()
            assert [entry["epoch"] for entry in rows] == list(range(1, len(rows) + 1))
            assert len(rows) in (1, 2)

    def test_a_refusal_that_is_no_text(self, folder: Path) -> None:
        (folder / "error.txt").write_bytes(b"\xffboom")
        assert at(folder).read_error() == "\ufffdboom"
        (folder / "error.txt").unlink()
        (folder / "error.txt").mkdir()
        assert at(folder).read_error() is None

    def test_a_metrics_file_that_is_none(self, folder: Path) -> None:
        assert at(folder).read_metrics() == []
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
        assert at(folder).read_metrics() == []

    def test_threads_are_those_of_the_configuration_for_a_while(self, make_config: Callable[..., RunConfig]) -> None:
        before, inside = torch.get_num_threads(), []

        def fail() -> None:
            with threads(make_config({"resources.cpu": 2})):
                inside.append(torch.get_num_threads())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (inside, torch.get_num_threads()) == ([2], before)
