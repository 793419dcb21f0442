"""Tests a run that is paused after an epoch: what it leaves, and that it goes on to the bits of one that never was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from erat.config import RunConfig, load_config
from erat.data.types import CorruptedSet
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.underway import Interrupted
from erat.result import RunResult
from orchestration.run import execute
from orchestration.run.directory import RunDirectory, left_over
from orchestration.run.execute import execute_run
from orchestration.run.heartbeat import is_running
from orchestration.search.launch import run_train
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.trial import Trial
from tests.forks import prepared
from tests.same_runs import assert_same_run, figures
from tests.two_workers import Record, joined, on_two_workers, own_models_are_known

EPOCHS = 5
# A schedule that depends on the last epoch, so that a run whose configuration were cut short would learn otherwise.
TINY = {
    "data.limit": 120,
    "defense.steps": 1,
    "corruption.labels": "symmetric",
    "train.epochs": EPOCHS,
    "train.schedule": "cosine",
}


@pytest.fixture(scope="module")
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(TINY)


@pytest.fixture
def run(config: RunConfig, workspace: Workspace) -> RunDirectory:
    return RunDirectory(workspace, config.digest())


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Train without a pause, and return the directory of the run."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed"))
    assert execute_run(config, workspace).status == "done"
    return RunDirectory(workspace, config.digest())


class Listener:
    """A listener that never stops a run, and keeps the number of each epoch that it hears of."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, history: Sequence[EpochReport]) -> bool:
        self.heard.append(history[-1].epoch)
        return True


def killed_at_its_end(config: str, root: Path) -> None:
    """Train for two epochs in a process of its own, which is killed before it has said that it is paused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "_write_artifacts", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        execute.execute_run(RunConfig.model_validate_json(config), Workspace(root), pause_after=2)


class TestPausing:
    def test_it_says_so_and_keeps_its_checkpoint_and_what_a_stopped_run_leaves(
        self, config: RunConfig, workspace: Workspace, run: RunDirectory, undisturbed: RunDirectory
    ) -> None:
        result = execute_run(config, workspace, pause_after=2)
        assert (result.status, result.epochs, len(result.val_history)) == ("paused", 2, 2)
        assert run.read_result() == result
        assert figures(run) == figures(undisturbed)[:2]
        assert (run.path / "checkpoint.pt").exists()
        assert {file.name for file in run.artifacts.iterdir()} == {f.name for f in undisturbed.artifacts.iterdir()}
        assert not is_running(run)

    @pytest.mark.parametrize("pauses", [[4], [1, 2, 4]], ids=str)
    def test_it_goes_on_to_the_bits_of_a_run_that_never_paused(
        self, pauses: list[int], config: RunConfig, workspace: Workspace, run: RunDirectory, undisturbed: RunDirectory
    ) -> None:
        for epoch in pauses:
            assert execute_run(config, workspace, pause_after=epoch).status == "paused"
            torch.manual_seed(epoch)  # another process has another global random state
        assert execute_run(config, workspace).status == "done"
        assert_same_run(run, undisturbed)
        assert not (run.path / "previous-checkpoint.pt").exists()

    def test_where_it_is_beyond_that_epoch_already_it_trains_no_further(
        self, config: RunConfig, workspace: Workspace, run: RunDirectory, undisturbed: RunDirectory
    ) -> None:
        execute_run(config, workspace, pause_after=3)
        heard = Listener()
        result = execute_run(config, workspace, pause_after=2, on_epoch=heard)
        assert (result.status, result.epochs, heard.heard) == ("paused", 3, [3])
        assert execute_run(config, workspace).status == "done"
        assert_same_run(run, undisturbed)

    def test_one_that_is_done_stays_done(self, config: RunConfig, workspace: Workspace, run: RunDirectory) -> None:
        done = execute_run(config, workspace)
        assert execute_run(config, workspace, pause_after=2) == done
        (run.path / "result.json").unlink()  # its worker was killed before it had written that
        assert execute_run(config, workspace, pause_after=2).status == "done"

    def test_after_the_last_epoch_nothing_is_left_to_pause(self, config: RunConfig, workspace: Workspace) -> None:
        assert execute_run(config, workspace, pause_after=EPOCHS).status == "done"

    def test_killed_before_it_had_said_so_it_is_paused_without_training(
        self, config: RunConfig, workspace: Workspace, run: RunDirectory, undisturbed: RunDirectory
    ) -> None:
        ended = prepared().Process(target=killed_at_its_end, args=(config.model_dump_json(), workspace.root))
        ended.start()
        ended.join(300)
        assert ended.exitcode == -signal.SIGKILL
        assert run.read_result() is None
        heard = Listener()
        assert execute_run(config, workspace, pause_after=2, on_epoch=heard).status == "paused"
        assert heard.heard == [2]
        assert execute_run(config, workspace).status == "done"
        assert_same_run(run, undisturbed)

    def test_told_to_leave_between_two_pauses_it_goes_on(
        self,
        config: RunConfig,
        workspace: Workspace,
        run: RunDirectory,
        undisturbed: RunDirectory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        execute_run(config, workspace, pause_after=1)
        answers = chain(repeat(False, 2), repeat(True))
        with monkeypatch.context() as patch:
            patch.setattr("orchestration.run.execute.requested", partial(next, answers))
            with pytest.raises(Interrupted):
                execute_run(config, workspace, pause_after=3)
        assert run.read_result() is None, "it is not paused any more"
        assert "in epoch 2" in (run.read_departure() or "")
        assert execute_run(config, workspace, pause_after=3).status == "paused"
        assert run.read_departure() is None
        assert execute_run(config, workspace).status == "done"
        assert_same_run(run, undisturbed)

    def test_a_stop_counts_more_than_a_pause(self, config: RunConfig, workspace: Workspace) -> None:
        assert execute_run(config, workspace, pause_after=2, on_epoch=lambda h: len(h) < 2).status == "stopped"

    def test_without_its_checkpoint_it_begins_anew_and_ends_the_same(
        self, config: RunConfig, workspace: Workspace, run: RunDirectory, undisturbed: RunDirectory
    ) -> None:
        execute_run(config, workspace, pause_after=3)
        run.drop_checkpoints()
        heard = Listener()
        assert execute_run(config, workspace, on_epoch=heard).status == "done"
        assert heard.heard == [1, 2, 3, 4, 5]
        assert_same_run(run, undisturbed)


@pytest.mark.parametrize(
    ("status", "epochs", "pause_after", "is_one"),
    [
        ("paused", 2, None, True),
        ("paused", 2, 4, True),
        ("paused", 2, 2, False),
        ("paused", 4, 2, False),
        ("done", 2, None, False),
        ("stopped", 2, 4, False),
    ],
)
def test_a_left_over_result_is_of_an_earlier_pause(
    status: str, epochs: int, pause_after: int | None, is_one: bool
) -> None:
    assert left_over(RunResult("c", status, epochs), pause_after) == is_one


def test_another_node_goes_on_from_the_storage(
    make_config: Callable[..., RunConfig], undisturbed: RunDirectory, tmp_path: Path
) -> None:
    """What a paused run leaves is moved to the storage; nothing of it stays on the node."""
    place = str(tmp_path / "storage")
    config = make_config(TINY | {"storage.path": place})
    assert config.digest() == undisturbed.cell
    for node, pause_after, status in [("a", 2, "paused"), ("b", 3, "paused"), ("a", None, "done")]:
        workspace = Workspace(tmp_path / node).sharing(place)
        heard = Listener()
        assert execute_run(config, workspace, pause_after=pause_after, on_epoch=heard).status == status
        assert heard.heard == {2: [1, 2], 3: [2, 3], None: [3, 4, 5]}[pause_after]
        run = RunDirectory(workspace, config.digest())
        left = {file.name for file in run.path.rglob("*") if file.is_file()} - {".lock"}
        assert left == {"config.json"}
        there = {file.name for file in (tmp_path / "storage/cells" / run.cell).iterdir()}
        assert {"checkpoint.pt", "metrics.jsonl", "result.json"} <= there
        assert ("previous-checkpoint.pt" in there) == (status == "paused")
    run.fetch("metrics.jsonl", "result.json")
    run.fetch_artifacts()
    assert_same_run(run, undisturbed)


def test_trained_outside_its_study_it_goes_on_to_the_end(
    config: RunConfig,
    workspace: Workspace,
    run: RunDirectory,
    undisturbed: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command `train` knows nothing of the study in which the run waits at a rung."""
    tracker = Mock(**{"start_run.return_value": "a run", "flush.return_value": 0})
    monkeypatch.setattr("orchestration.search.launch.Tracker.open", lambda *_: tracker)
    ledger = Ledger(workspace.ledger)
    ledger.append("sweep", name="a", spec={}, trials=1)
    ledger.finish(execute_run(config, workspace, pause_after=2), sweep="a")
    trial = run_train(config, workspace, ledger, address=None, force=False)
    assert (trial.status, trial.epoch) == ("done", EPOCHS)
    logged = [call.args[2] for call in tracker.log_epoch.call_args_list]
    assert sorted(set(logged)) == [1, 2, 3, 4, 5]
    assert_same_run(run, undisturbed)
    waiting = Trial(0, run.cell, {})
    assert Ledger(workspace.ledger).with_outcome(waiting, "a").status == "done", "in its study, too"


# --- data-parallel workers --------------------------------------------------------------------------------------------


def work(rank: int, folder: Path) -> None:
    """Train without a pause; then pause twice and go on. All executions are collective."""
    with joined(rank, folder) as data, pytest.MonkeyPatch.context() as patch:
        patch.setattr("erat.training.corrupted_set", lambda *_: data)
        config, ends = load_config(folder / "run.json"), {}
        assert Ranks.current().workers == 2
        for name, pauses in {"whole": [None], "paused": [1, 1, 2, None]}.items():
            workspace, ends[name] = Workspace(folder / name), []
            for pause_after in pauses:
                result = execute_run(config, workspace, pause_after=pause_after)
                ends[name].append((result.status, result.epochs, result.val_history))
                torch.distributed.barrier()
        torch.save(ends, folder / f"{rank}.pt")


@pytest.mark.slow
def test_data_parallel_workers_pause_together_and_go_on_to_the_same_bits(
    make_data: Callable[..., CorruptedSet], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    options = {"train.epochs": 3, "train.workers": 2, "train.lr": 0.02, "train.schedule": "cosine"}
    with own_models_are_known():
        config = make_config(options | {"model.name": "smooth", "data.fingerprint": "0" * 16})
    data = replace(make_data(64), manifest={"labels": {}, "images": {}})
    both: list[Record] = on_two_workers(work, tmp_path, data, {"run": config})
    assert both[0] == both[1]
    assert [end[:2] for end in both[0]["paused"]] == [("paused", 1), ("paused", 1), ("paused", 2), ("done", 3)]
    assert both[0]["paused"][-1] == both[0]["whole"][-1]
    runs = [RunDirectory(Workspace(tmp_path / name), config.digest()) for name in ("paused", "whole")]
    assert_same_run(*runs)
