"""Tests the command line: bad input ends in one line and leaves nothing behind, results are one JSON object."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from erat.config import build
from erat.errors import TrainingFailedError, UserError
from erat.result import RunResult
from orchestration import cli
from orchestration.commands import console
from orchestration.run.heartbeat import driving
from orchestration.search import launch
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec

ROOT = Path(__file__).parents[3]
VERBS = sorted(command.callback.__name__ for command in cli.app.registered_commands if command.callback)
TINY = ["data.limit=120", "data.image_size=8", "train.epochs=2", "train.batch_size=16", "corruption.data=urp"]
ERAT = [*TINY, "defense.warmup_epochs=1", "defense.steps=1"]
CE = [*TINY, "defense.name=ce"]
FIGURES = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
DONE = {"status": "done", "epochs": 4} | dict.fromkeys(FIGURES, 0.5)
RUN_KEYS = {
    "cell",
    "status",
    "config",
    "final_test_accuracy",
    "best_val_test_accuracy",
    "val_accuracy",
    "train_seconds",
    "mlflow_run_id",
    "error",
}


class Said:
    """The exit status and the output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """Return the last line of standard output, which must be its only line, as JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def error(self) -> str:
        """Return the one line with which a command is refused."""
        assert self.code == 2, (self.code, self.err)
        (line,) = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert self.err.splitlines()[-1] == line
        assert "Traceback" not in self.err
        assert self.out == ""
        return line


Command = Callable[..., Said]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Provide a separate workspace for one test."""
    monkeypatch.setenv("ERAT_HOME", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Provide a workspace for tests that train, so that MLflow's store is made only once."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("shared") / "workspace"
        patch.setenv("ERAT_HOME", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Workspace(root)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command line in this process."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = console.guarded(lambda: cli.app(list(words), standalone_mode=False))
        return Said(code, *capsys.readouterr())

    return run


def events(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in workspace.ledger.read_text().splitlines()] if workspace.ledger.exists() else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TestHelp:
    def test_the_verbs_are_these(self) -> None:
        assert {"sweep", "train", "craft", "status", "resume", "retry", "ui", "doctor"} <= set(VERBS)

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_has_an_example(self, verb: str, command: Command) -> None:
        for option in ("--help", "-h"):
            said = command(verb, option)
            assert said.code == 0
            assert "Examples" in said.out
            assert f"python orchestrate.py {verb}" in said.out

    def test_the_command_alone_shows_its_help(self, command: Command) -> None:
        said = command()
        assert said.code == 2
        assert all(verb in said.out + said.err for verb in VERBS)
        assert "error:" not in said.err


class TestWrongInput:
    """Tests that wrong input gives exit status 2, one line on standard error, and nothing in the ledger."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["sweep", "--space", "budget"], "unknown space 'budget': did you mean budgets?"),
            (["sweep", "--space", "missing.yaml"], "missing.yaml does not exist"),
            (["sweep", "--trials", "0"], "--trials"),
            (["sweep", "--trials", "many"], "--trials"),
            (["sweep", "--name", "../up"], "--name must be letters"),
            (["sweep", "--name", "a b"], "--name must be letters"),
            (["sweep", "--sampler", "tpr"], "unknown sampler 'tpr': did you mean tpe?"),
            (["sweep", "--sampler", ""], "must not be empty"),
            (["sweep", "--pruner", "halfing"], "unknown pruner 'halfing': did you mean halving?"),
            (["sweep", "--window", "0"], "window must be a whole number"),
            (["sweep", "--rungs", "4"], "rungs are of the pruner halving, the pruner is median; got '4'"),
            (["sweep", "--pruner", "halving", "--rungs", "9,4"], "ascending epochs"),
            (["sweep", "--pruner", "halving", "--rungs", "99"], "rungs must be below the last epoch, 16, got 99"),
            (["sweep", "--confirm", "3x1"], "confirm.seeds: input should be greater than or equal to 2, got 1"),
            (["sweep", "--show-config", "--window", "x"], "window must be a whole number"),
            (["sweep", "--window", "3", "--window", "4"], "it is given twice"),
            (["sweep", "--slots", "4"], "--slots goes with --dry-run"),
            (["matrix", "--slots", "4"], "--slots goes with --dry-run"),
            (["matrix", "--sampler", "gp"], "--sampler"),
            (["sweep", "--slots", "4", "--dry-run", "--address", "auto"], "--slots plans for a cluster that is not"),
            (["sweep", "--dry-run", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
            (["train", "--dry-run", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
            (["craft", "--dry-run", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
            (["sweep", "--nope"], "--nope"),
            (["sweep", "defense.epsilon_2=1"], "what the space budgets searches"),
            (["sweep", "--space", "eta", "defense.name=ce"], "which ce lacks"),
            (["train", "--profile", "--force"], "--profile goes without --dry-run, --force and --address"),
            (["train", "--profile", "--dry-run"], "--profile goes without"),
            (["craft", "--preview", "--verify"], "give one of them"),
            (["frobnicate"], "frobnicate"),
            (["resume"], "name"),
            (["resume", "nothing"], "unknown sweep 'nothing'"),
            (["retry", "nothing"], "unknown sweep 'nothing'"),
            (["status", "nothing"], "unknown sweep 'nothing'"),
            (["leaderboard"], "a leaderboard needs a run that is done, got none"),
            (["leaderboard", "nothing"], "unknown sweep 'nothing'"),
            (["leaderboard", "--out", ""], "must not be empty"),
            (["ui", "--port", "70000"], "--port"),
            (["ui", "--host", "0.0.0.0"], "host must be 127.0.0.1"),
            (["doctor", "extra"], "extra"),
        ],
    )
    def test_of_one_verb(self, words: list[str], said: str, command: Command, workspace: Workspace) -> None:
        assert said in command(*words).error
        assert not workspace.ledger.exists()

    @pytest.mark.parametrize("verb", ["train", "sweep", "craft"])
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["defense.lamda_u=3"], "unknown key 'defense.lamda_u': did you mean defense.lambda_u"),
            (["corruption.rat=0.4"], "did you mean corruption.rate"),
            (["defense.name=erta"], "unknown defense 'erta': did you mean erat"),
            (["data.name=cifar11"], "unknown data set 'cifar11': did you mean cifar10"),
            (["model.name=resnet35"], "unknown backbone 'resnet35': did you mean resnet"),
            (["corruption.data=upp"], "unknown data corruption 'upp': did you mean up"),
            (["corruption.data=urp", "corruption.norm=l3"], "corruption.norm"),
            (["corruption.epsilon=-0.1"], "corruption.epsilon: input should be greater than or equal to 0, got -0.1"),
            (["corruption.epsilon=-8/255"], "corruption.epsilon"),
            (["corruption.rate=1.2"], "corruption.rate: input should be less than or equal to 1, got 1.2"),
            (["corruption.rate=much"], "corruption.rate"),
            (["train.epochs=2.5"], "train.epochs"),
            (["train.lr=.nan"], "train.lr"),
            (["train.workers=3"], "train.batch_size must be a multiple of train.workers (3), got 64"),
            (["train.epochs"], "expected KEY=VALUE, got 'train.epochs'"),
            (["=3"], "expected KEY=VALUE"),
            (["train.seed=1", "train.seed=2"], "'train.seed' is given twice"),
            (["train.milestones=[1,"], "train.milestones.0: input should be a valid integer"),
            (["train.milestones=1,x"], "train.milestones.1: input should be a valid integer"),
            (["eta=0.3"], "unknown key 'eta': did you mean defense.eta?"),
            (["lr=0.1"], "did you mean corruption.lr or train.lr?"),
            (["train.lr=1e308"], "train.lr: input should be between -1e+06 and 1e+06, got 1e+308"),
            ([f"data.limit={'9' * 5000}"], "data.limit must have at most 100 characters, got 5,000"),
            (
                ["data.root=~nosuchuser/x"],
                "data.root must be a path, got '~nosuchuser/x': there is no such user's home",
            ),
            (["data.root=a\0b"], "which holds a NUL character"),
            (["resources.cpu=100000"], "resources.cpu: input should be less than or equal to 1024"),
            (["storage.path=s3://"], "storage.path must name a bucket or host behind s3://"),
            (["storage.path=http://[::1"], "Invalid IPv6 URL"),
            (["corruption.source_weights=/dev/zero"], "got /dev/zero: it is not a regular file"),
            (["--preset", "demo", "--preset", "paper"], "'--preset': it is given twice"),
            (["preset=paper"], "--preset demo, medium, paper or official"),
            (["--preset", "papre"], "unknown preset 'papre': did you mean paper"),
        ],
    )
    def test_of_the_configuration(
        self, verb: str, words: list[str], said: str, command: Command, workspace: Workspace
    ) -> None:
        assert said in command(verb, *words).error
        assert not workspace.ledger.exists()

    @pytest.mark.parametrize(
        "word", ["defense.epsilon_inf=-1/255", "defense.epsilon_2=-0.5", "defense.eta=1.4", "defense.lambda_u=-1"]
    )
    def test_of_a_budget(self, word: str, command: Command, workspace: Workspace) -> None:
        key = word.partition("=")[0]
        assert f"{key}: input should be" in command("train", word).error

    @pytest.mark.parametrize("text", ["parameters: [", "", "- a"])
    def test_of_a_space_s_file(self, text: str, command: Command, workspace: Workspace, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        assert str(path) in command("sweep", "--space", str(path)).error

    def test_of_a_space_s_range(self, command: Command, workspace: Workspace, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("name: mine\nabout: a test\nparameters: {defense.epsilon_2: {low: -1, high: 1}}\n")
        assert "low must be 0 or more, got -1" in command("sweep", "--space", str(path)).error

    @pytest.mark.parametrize("verb", ["train", "sweep", "craft"])
    def test_missing_data_say_where_to_put_them(
        self, verb: str, command: Command, workspace: Workspace, tmp_path: Path
    ) -> None:
        said = command(verb, "--preset", "paper", f"data.root={tmp_path / 'nowhere'}").error
        assert "nowhere" in said
        assert not workspace.ledger.exists()

    @pytest.mark.parametrize("verb", ["train", "sweep"])
    def test_missing_data_are_found_by_a_dry_run_too(self, verb: str, command: Command, workspace: Workspace) -> None:
        assert "data.root" in command(verb, "--preset", "paper", "--dry-run").error

    @pytest.mark.parametrize("verb", ["train", "sweep"])
    @pytest.mark.parametrize(
        ("address", "said"), [("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"), ("here", "--address must be HOST:PORT")]
    )
    def test_an_unreachable_cluster_is_known_before_anything_is_crafted(
        self, verb: str, address: str, said: str, command: Command, workspace: Workspace
    ) -> None:
        words = CE if verb == "train" else TINY
        assert said in command(verb, "--address", address, *words).error
        assert list(workspace.root.iterdir()) == []

    @pytest.mark.parametrize("verb", ["train", "sweep"])
    def test_an_unreachable_tracking_server(
        self, verb: str, command: Command, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        begun = time.monotonic()
        said = command(verb, *(CE if verb == "train" else TINY)).error
        assert uri in said
        assert "refused" in said.lower()
        # It takes 6 seconds, or 42 with a dozen other programs on two cores; MLflow by itself would wait for 4 minutes.
        assert time.monotonic() - begun < 200
        assert not workspace.ledger.exists()
        assert not workspace.crafted.exists(), "crafting may take hours"

    def test_a_workspace_that_cannot_be_made(
        self, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("ERAT_HOME", str(tmp_path / "file"))
        assert f"ERAT_HOME={tmp_path / 'file'} cannot be made" in command("status").error
        monkeypatch.setenv("ERAT_HOME", str(tmp_path / "file" / "below"))
        assert "cannot be made" in command("status").error

    def test_a_name_that_means_another_sweep(self, command: Command, workspace: Workspace) -> None:
        given = {"train.epochs": 5, "defense.ramp_epochs": 2}  # which follows from the epochs unless it is given
        register(Ledger(workspace.ledger), "mine", StudySpec(load_space("eta"), "demo", given), 4)
        before = workspace.ledger.read_bytes()
        said = command("sweep", "--space", "eta", "--name", "mine", "train.epochs=6", "defense.ramp_epochs=2").error
        assert "'mine' exists with another specification (train.epochs was 5, is 6)" in said
        assert workspace.ledger.read_bytes() == before


def full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    @pytest.mark.parametrize("verb", ["train", "craft"])
    def test_in_the_store(
        self, verb: str, command: Command, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(np, "save", full)
        said = command(verb, *TINY).error
        assert str(workspace.crafted) in said
        assert "No space left" in said
        assert not workspace.ledger.exists()
        assert [file.name for file in workspace.crafted.iterdir() if not file.name.endswith(".lock")] == []

    @pytest.mark.apart
    def test_a_store_that_a_ray_task_cannot_write(self, command: Command, workspace: Workspace) -> None:
        """A sweep crafts in Ray's workers: their errors reach the user nevertheless, and nothing is begun."""
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.crafted.write_text("a file in the folder's place")
        said = command("sweep", *TINY).error
        assert f"the store {workspace.crafted} cannot be written: " in said
        events = [json.loads(line)["event"] for line in workspace.ledger.read_text().splitlines()]
        assert events == ["sweep", "withdrawn"], "nothing was tried, and the name is free again"

    def test_in_the_ledger(self, command: Command, shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("erat.records.os.fsync", full)
        assert "No space left" in command("train", *CE, "train.seed=91").error

    def test_while_training_the_run_has_not_failed_and_goes_on(
        self, command: Command, shared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("train", *CE, "train.seed=92")
        with monkeypatch.context() as patch:
            patch.setattr("erat.engine.checkpoint.torch.save", full)
            assert "No space left" in command(*words).error
        cell = build("demo", cli.parse_overrides(list(words[1:]))).digest()
        assert Ledger(shared.ledger).outcome(cell) is None
        assert not (shared.run_directory(cell) / "result.json").exists()
        assert command(*words).code == 0

    def test_other_faults_of_the_system_are_not_hidden(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail() -> None:
            raise FileNotFoundError(errno.ENOENT, "No such file", "x")

        assert console.guarded(fail) == console.EXIT_UNFORESEEN == 70
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: unforeseen FileNotFoundError: [Errno 2] No such file: 'x'; all of it, to be rep")
        (log,) = (workspace.root / "logs").iterdir()
        assert line.endswith(f": {log}")
        assert "Traceback" in log.read_text()

    def test_a_training_that_cannot_go_on_is_no_fault_of_the_program(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail() -> None:
            raise TrainingFailedError("the loss became nan")

        assert console.guarded(fail) == 1
        assert capsys.readouterr().err == "error: the loss became nan\n"
        assert not (workspace.root / "logs").exists()

    @pytest.mark.parametrize(("target", "status"), [("| true", 141), ("> /dev/full", 2)])
    def test_output_that_nobody_takes(self, target: str, status: int, workspace: Workspace) -> None:
        code = "import sys; from orchestration.cli import main; sys.argv = ['x', 'status', '--json']; main()"
        line = f'(sleep 1; "$PYTHON" -c "$CODE"; echo $? >&2) {target}'
        done = subprocess.run(
            ["bash", "-c", line],
            env=os.environ | {"CODE": code, "PYTHON": sys.executable, "ERAT_HOME": str(workspace.root)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr.splitlines()[-1] == str(status), done.stderr
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr

    def test_the_log_of_a_fault_lies_elsewhere_where_the_workspace_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("ERAT_HOME", str(tmp_path / "file"))
        monkeypatch.setattr(console.tempfile, "gettempdir", lambda: str(tmp_path / "other"))

        def recurse() -> None:
            recurse()

        assert console.guarded(recurse) == 70
        assert "RecursionError" in capsys.readouterr().err
        assert len(list((tmp_path / "other").iterdir())) == 1


@pytest.fixture(scope="module")
def first(shared: Workspace) -> dict[str, Any]:
    """Train one run in a separate process, as a user starts it."""
    done = subprocess.run(
        [sys.executable, "orchestrate.py", "train", *ERAT, "--json"],
        cwd=ROOT,
        env=os.environ | {"ERAT_HOME": str(shared.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "preset demo" in done.stderr
    assert "clean test accuracy" in done.stderr
    run: dict[str, Any] = json.loads(line)
    return run


class TestTrain:
    def test_it_prints_one_run(self, first: dict[str, Any], shared: Workspace) -> None:
        assert first.keys() == RUN_KEYS
        assert first["status"] == "done"
        assert first["cell"] == build("demo", cli.parse_overrides(ERAT)).digest()
        assert first["config"]["defense.steps"] == 1
        assert all(0 <= first[key] <= 1 for key in RUN_KEYS if key.endswith("accuracy"))
        assert first["train_seconds"] > 0
        assert first["error"] is None
        assert Ledger(shared.ledger).outcome(first["cell"]).status == "done"  # type: ignore[union-attr]

    def test_the_tracker_has_it(self, first: dict[str, Any], shared: Workspace) -> None:
        import mlflow

        run = mlflow.MlflowClient(f"sqlite:///{shared.mlflow_database}").get_run(first["mlflow_run_id"])
        assert (run.info.status, run.data.tags["cell"], run.data.tags["status"]) == ("FINISHED", first["cell"], "done")
        assert run.data.metrics["final_test_accuracy"] == first["final_test_accuracy"]

    def test_a_finished_run_is_shown_and_not_made_again(
        self, first: dict[str, Any], command: Command, shared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launch, "execute_run", lambda *_, **__: pytest.fail("trained again"))
        before = len(events(shared))
        assert command("train", *ERAT, "--json").json == first
        assert len(events(shared)) == before

    def test_force_makes_it_again_to_the_same_figures(self, command: Command, shared: Workspace) -> None:
        words = ("train", *ERAT, "train.seed=94", "--json")  # another run than `first`, with which other tests compare
        first = command(*words).json
        again = command(*words, "--force").json
        assert again["train_seconds"] != first["train_seconds"]
        same = RUN_KEYS - {"train_seconds"}
        assert {key: again[key] for key in same} == {key: first[key] for key in same}

    def test_force_forgets_nothing_before_all_is_there(
        self, first: dict[str, Any], command: Command, shared: Workspace
    ) -> None:
        before = sorted(shared.run_directory(first["cell"]).iterdir())
        assert "no Ray cluster" in command("train", *ERAT, "--force", "--address", "127.0.0.1:1").error
        assert sorted(shared.run_directory(first["cell"]).iterdir()) == before

    def test_a_failed_run_says_why_and_exits_1(self, command: Command, shared: Workspace) -> None:
        said = command("train", *CE, "train.lr=1e6", "--json")
        assert said.code == 1
        assert said.json["status"] == "failed"
        assert "the loss became" in said.json["error"]
        assert said.json["final_test_accuracy"] is None
        assert "the loss became" in said.err
        assert "error.txt" in said.err
        assert "Traceback" not in said.err, "its end is enough"

    def test_an_interrupted_run_says_how_to_go_on(
        self, command: Command, shared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*args: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(launch, "execute_run", interrupt)
        said = command("train", *CE, "train.seed=93", "--json")
        assert said.code == 130
        assert said.out == ""
        assert said.err.splitlines()[-1] == "stopped; the same command goes on from the last epoch"


class TestInterruption:
    @pytest.mark.parametrize("sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_a_signal_ends_a_run_that_then_goes_on(
        self, sign: signal.Signals, command: Command, shared: Workspace
    ) -> None:
        """The signals are Ctrl-C and the one that ends a container."""
        words = [word for word in CE if not word.startswith("train.epochs")]
        words += ["train.epochs=400", f"train.seed={sign.value}"]
        # A background job of a shell ignores SIGINT and passes that on to its children.
        process = subprocess.Popen(
            [sys.executable, "orchestrate.py", "train", *words],
            cwd=ROOT,
            env=os.environ | {"ERAT_HOME": str(shared.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("epoch 1/400" in line for line in lines)
        process.send_signal(sign)
        _, rest = process.communicate(timeout=600)
        assert process.returncode == 130
        assert rest.splitlines()[-1] == "stopped; the same command goes on from the last epoch"
        assert "Traceback" not in rest
        cell = build("demo", cli.parse_overrides(words)).digest()
        assert Ledger(shared.ledger).outcome(cell) is None
        done = len((shared.run_directory(cell) / "metrics.jsonl").read_text().splitlines())
        assert 0 < done < 400


class TestDryRun:
    def test_of_a_sweep(self, command: Command, workspace: Workspace) -> None:
        said = command("sweep", "--space", "eta", "--trials", "9", *TINY, "--dry-run", "--json")
        assert said.code == 0
        plan = said.json
        assert (plan["cells"], plan["done"], plan["to_do"], plan["to_be_proposed"]) == (10, 0, 10, 3)
        assert (plan["crafted_sets"], plan["crafted_sets_missing"]) == (1, 1)
        assert plan["device_hours"] > 0
        assert plan["wall_seconds"] > 0
        assert "10 to do" in said.err
        assert list(workspace.root.iterdir()) == []

    def test_of_a_run(self, command: Command, workspace: Workspace) -> None:
        plan = command("train", *TINY, "--dry-run", "--json").json
        assert (plan["cells"], plan["done"], plan["to_do"]) == (1, 0, 1)
        assert list(workspace.root.iterdir()) == []


class TestCraft:
    def test_it_prints_the_manifest(self, command: Command, shared: Workspace) -> None:
        manifest = command("craft", *TINY, "corruption.epsilon=2", "--json").json
        promised = {"path", "kind", "norm", "epsilon", "max_norm", "mean_norm", "noise_rate", "checksum"}
        assert promised <= manifest.keys()
        assert (manifest["kind"], manifest["norm"], manifest["epsilon"]) == ("urp", "l2", 2.0)
        assert 0 < manifest["mean_norm"] <= manifest["max_norm"] <= 2.0
        assert manifest["noise_rate"] == pytest.approx(0.6, abs=0.01)
        assert Path(manifest["path"]).is_dir()

    def test_again_it_is_only_read(self, command: Command, shared: Workspace) -> None:
        first = command("craft", *TINY, "corruption.epsilon=2", "--json").json
        before = (Path(first["path"]) / "images.npy").stat().st_mtime_ns
        assert command("craft", *TINY, "corruption.epsilon=2", "--json").json == first
        assert (Path(first["path"]) / "images.npy").stat().st_mtime_ns == before

    def test_without_corruption_there_is_nothing_to_say_of_images(self, command: Command, shared: Workspace) -> None:
        words = ["data.limit=120", "corruption.data=none", "corruption.labels=none", "--json"]
        manifest = command("craft", *words).json
        assert (manifest["kind"], manifest["path"], manifest["noise_rate"]) == ("none", None, 0.0)

    @pytest.mark.slow
    def test_a_damaged_set_is_made_again_with_a_warning(self, command: Command, shared: Workspace) -> None:
        words = [*CE, "corruption.epsilon=3"]
        manifest = command("craft", *words, "--json").json
        images = Path(manifest["path"]) / "images.npy"
        content = bytearray(images.read_bytes())
        content[-1] ^= 255
        images.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "orchestrate.py", "train", *words, "--json"],
            cwd=ROOT,
            env=os.environ | {"ERAT_HOME": str(shared.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
        assert "is damaged" in warning
        assert manifest["path"] in warning
        assert json.loads(done.stdout)["status"] == "done"
        assert command("craft", *words, "--json").json["checksum"] == manifest["checksum"]


class Called(BaseException):
    """Raised with the arguments of the call instead of running a sweep."""


class TestSweepVerbs:
    """Tests which sweep the verbs run; tests on a cluster show that it runs."""

    @pytest.fixture(autouse=True)
    def _no_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run_study(
            name: str, spec: StudySpec, trials: int, workspace: Workspace, ledger: Ledger, **options: Any
        ) -> None:
            raise Called(name, spec, trials, options["address"], options["at_most"])

        monkeypatch.setattr(launch, "run_study", run_study)

    def called(self, command: Command, *words: str) -> tuple[str, StudySpec, int, str | None]:
        with pytest.raises(Called) as caught:
            command(*words)
        name, spec, trials, address, _ = caught.value.args
        return name, spec, trials, address

    def test_a_matrix_is_called_as_its_grid(self, command: Command, workspace: Workspace) -> None:
        name, spec, trials, _ = self.called(command, "matrix", "--grid", "table1")
        assert (name, len(spec.runs), trials) == ("table1", 12, 0)
        other, spec, *_ = self.called(command, "matrix", "--grid", "table1", "--only", "defense=at_2", "--seeds", "0,1")
        assert other.startswith("table1-")
        assert [cell["train.seed"] for cell in spec.runs] == [0, 1] * 6

    def test_cancel_and_watch_know_what_runs(self, command: Command, known: StudySpec) -> None:
        assert command("cancel", "mine").err.splitlines()[-1] == (
            "error: nothing runs under 'mine'; status mine says how it stands"
        )
        assert command("cancel", "min").err.splitlines()[-1].startswith("error: unknown sweep 'min': did you mean mine")
        watched = command("status", "mine", "--watch", "--json")
        assert watched.code == 0, "it ends where nothing runs"
        assert watched.json["left"] == 8
        assert command("status", "--watch").code == 2

    def test_mlflow_is_put_right_of_a_study_that_nobody_drives(
        self, command: Command, known: StudySpec, workspace: Workspace
    ) -> None:
        assert "unknown sweep 'min': did you mean mine" in command("sync", "min").error
        with driving(workspace, "mine"):
            assert "mine is running already" in command("sync", "mine").error
        assert not workspace.mlflow_database.exists()

    @pytest.mark.parametrize("words", [["sweep", "--space", "eta"], ["matrix"], ["resume", "mine"], ["retry", "mine"]])
    def test_at_most_so_many_at_a_time(self, command: Command, known: StudySpec, words: list[str]) -> None:
        with pytest.raises(Called) as caught:
            command(*words, "--max-concurrent", "3")
        assert caught.value.args[4] == 3

    @pytest.fixture
    def known(self, workspace: Workspace) -> StudySpec:
        spec = StudySpec(load_space("eta"), "demo", {"train.epochs": 5})
        register(Ledger(workspace.ledger), "mine", spec, 7)
        return spec

    def test_a_plain_sweep_is_called_as_its_space(self, command: Command, workspace: Workspace) -> None:
        name, spec, trials, address = self.called(command, "sweep", "--space", "eta")
        assert (name, spec.preset, spec.overrides, trials, address) == ("eta", "demo", {}, 8, None)

    def test_any_other_gets_a_name_that_tells_it_apart(self, command: Command, workspace: Workspace) -> None:
        one, other, again = (
            self.called(command, "sweep", "--space", "eta", word)[0]
            for word in ("train.epochs=5", "train.epochs=6", "train.epochs=5")
        )
        assert one == again != other
        assert one.startswith("eta-")

    def test_settings_reach_the_specification_and_the_name(self, command: Command, workspace: Workspace) -> None:
        words = ["--sampler", "random", "--pruner", "halving", "--window", "9", "--rungs", "4,8", "--confirm", "2x4"]
        name, spec, *_ = self.called(command, "sweep", "--space", "eta", *words)
        space = spec.space
        assert (space.sampler, space.pruner, space.window, space.rungs) == ("random", "halving", 9, [4, 8])
        assert spec.content()["space"]["confirm"] == {"top": 2, "seeds": 4}
        other = self.called(command, "sweep", "--space", "eta", *words[:-1], "2x5")[0]
        assert name.startswith("eta-")
        assert name != other
        assert self.called(command, "sweep", "--space", "eta", "--pruner", "median")[0] == "eta", "as the space has it"

    def test_a_window_that_differs_from_the_recorded_one_is_refused(
        self, command: Command, workspace: Workspace
    ) -> None:
        spec = begin_as(StudySpec(load_space("eta"), "demo", {}), 2, 20)
        register(Ledger(workspace.ledger), "eta", spec, 20)
        assert self.called(command, "sweep", "--space", "eta")[1].space.window == 4
        assert self.called(command, "resume", "eta")[1].space.window == 4
        assert (
            "window 4, which stays; got 6" in command("sweep", "--name", "eta", "--space", "eta", "--window", "6").error
        )

    def test_values_are_read_as_their_key_wants_them(self, command: Command, workspace: Workspace) -> None:
        words = ["corruption.epsilon=1/4", "train.milestones=[3, 4]", "val.trusted=no", "data.limit=null"]
        spec = self.called(command, "sweep", "--space", "eta", *words)[1]
        base = spec.base
        assert (base.corruption.epsilon, base.train.milestones, base.val.trusted, base.data.limit) == (
            0.25,
            (3, 4),
            False,
            None,
        )

    def test_the_same_name_goes_on_and_more_trials_extend(
        self, command: Command, workspace: Workspace, known: StudySpec
    ) -> None:
        words = ["sweep", "--space", "eta", "--name", "mine", "train.epochs=5"]
        assert self.called(command, *words, "--trials", "9")[2] == 9
        assert self.called(command, *words, "--trials", "3")[2] == 7, "what was planned stays planned"

    def test_resume_knows_what_it_was(self, command: Command, workspace: Workspace, known: StudySpec) -> None:
        assert self.called(command, "resume", "mine", "--address", "127.0.0.1:1") == ("mine", known, 7, "127.0.0.1:1")

    @pytest.mark.parametrize("verb", ["resume", "retry"])
    def test_a_study_that_is_refused_says_nothing_of_its_settings(
        self, verb: str, command: Command, known: StudySpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise UserError("the images are gone")

        monkeypatch.setattr(launch, "run_study", refuse)
        assert command(verb, "mine").err.splitlines() == ["error: the images are gone"]

    def test_resume_of_a_name_close_by(self, command: Command, workspace: Workspace, known: StudySpec) -> None:
        assert "did you mean mine?" in command("resume", "min").error

    def test_retry_forgets_failures_alone(self, command: Command, workspace: Workspace, known: StudySpec) -> None:
        ledger = Ledger(workspace.ledger)
        ends = {0: "done", 1: "failed", 2: "stopped", 3: "failed"}
        for number in range(5):
            ledger.append("proposed", sweep="mine", number=number, params={}, source="paper", cell=f"c{number}")
        for number, status in ends.items():
            ledger.finish(RunResult.of(DONE | {"cell": f"c{number}", "status": status}), sweep="mine")
        ledger.finish(RunResult("other", "failed", error="boom"), sweep="other")
        assert self.called(command, "retry", "mine")[:3] == ("mine", known, 7)
        after = Ledger(workspace.ledger)
        outcomes = {number: after.outcome(f"c{number}", "mine") for number in range(5)}
        assert {number: outcome.status for number, outcome in outcomes.items() if outcome} == {0: "done", 2: "stopped"}
        assert after.outcome("other") is not None

    @pytest.mark.parametrize(("entered", "hint"), [(True, "python orchestrate.py resume eta"), (False, "same command")])
    def test_ctrl_c_says_how_to_go_on(
        self, entered: bool, hint: str, command: Command, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(
            name: str, spec: StudySpec, trials: int, workspace: Workspace, ledger: Ledger, **options: Any
        ) -> None:
            if entered:
                register(ledger, name, spec, trials)
            raise KeyboardInterrupt

        monkeypatch.setattr(launch, "run_study", interrupt)
        said = command("sweep", "--space", "eta", "--json")
        assert (said.code, said.out) == (130, "")
        assert said.err.startswith("stopped; nothing finished is lost.")
        assert hint in said.err


class TestStatus:
    def test_of_nothing(self, command: Command, workspace: Workspace) -> None:
        said = command("status")
        assert (said.code, said.out) == (0, "")
        assert "no sweep yet" in said.err

    def test_of_one(self, command: Command, workspace: Workspace) -> None:
        register(Ledger(workspace.ledger), "mine", StudySpec(load_space("eta"), "demo", {}), 7)
        content = command("status", "mine", "--json").json
        assert (content["name"], content["trials"], content["left"], content["runs"]) == ("mine", 8, 8, [])


class TestExits:
    def test_a_number_returned_is_the_status(self) -> None:
        assert [console.guarded(lambda code=code: code) for code in (0, 1, 130)] == [0, 1, 130]
        assert console.guarded(lambda: None) == 0

    def test_interrupted_anywhere(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        def abort() -> None:
            raise typer.Abort

        assert [console.guarded(interrupt), console.guarded(abort)] == [130, 130]

    def test_a_message_is_printed_as_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        def refuse() -> None:
            raise UserError("allowed: [bold] [/x] " + "y" * 300)

        assert console.guarded(refuse) == 2
        assert capsys.readouterr().err == "error: allowed: [bold] [/x] " + "y" * 300 + "\n"

    def test_faults_of_the_program_are_not_hidden(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert console.guarded(lambda: 1 / 0) == 70
        assert "unforeseen ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_without_json_standard_output_stays_empty(command: Command, workspace: Workspace) -> None:
    assert command("train", *TINY, "--dry-run").out == ""
