"""Tests the verb `audit`: from a folder to its page, lists and classifier; and the input that it refuses."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erat.data.types import ImageSet
from erat.export import load_program
from orchestration import cli
from orchestration.audit import execute as audit_verb
from orchestration.commands import console
from orchestration.tracking.store import _wait_until_healthy, stop_server
from tests.e2e.commands import Said

pytestmark = pytest.mark.filterwarnings("ignore:.*no readable image")
BRIEF = ("data.image_size=8", "train.epochs=6", "defense.epsilon_inf=0.05", "defense.epsilon_2=0.5", "data.flip=false")
WRONG = 6  # images of class 0 in the folder of class 1


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Said]]:
    workspace = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERAT_HOME", str(workspace))

        def run(*words: str) -> Said:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = console.guarded(lambda: cli.app(["audit", *words], standalone_mode=False))
            return Said(code, out.getvalue(), err.getvalue())

        yield run


def contents(root: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(make_images: Callable[..., ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three classes of 40 images with odd names.

    Six of them lie in the wrong folder; there are also copies, a broken file and a class with a single picture.
    """
    root = tmp_path_factory.mktemp("own") / "my images"
    images = make_images(120, classes=3, seed=1)
    for row, (picture, label) in enumerate(zip(images.images[:, 0], images.labels.tolist(), strict=True)):
        given = 1 if label == 0 and row < 3 * WRONG else label
        path = root / ("Käfer <b>", "wasp & bee", "日本")[given] / f"bild {row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(path)
    Image.open(root / "日本" / "bild 002.png").save(root / "Käfer <b>" / "copy.png")
    near = np.asarray(Image.open(root / "wasp & bee" / "bild 004.png")) // 2 + 50  # darker, with less contrast
    Image.fromarray(near).save(root / "日本" / "\x1b[31mnear.png")
    (root / "日本" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "lonely").mkdir()
    Image.new("L", (30, 1), 7).save(root / "lonely" / "one.png")
    (root / "日本" / "loop").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def said(folder: Path, command: Callable[..., Said]) -> Said:
    before = contents(folder)
    said = command(f"data.root={folder}", *BRIEF, "--folds", "2", "--json", "--name", "mine")
    assert said.code == 0, said.err
    assert contents(folder) == before, "the originals are never written to"
    return said


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(said: Said) -> Path:
    return Path(said.json["files"][0]).parent


def test_what_is_written_and_said(said: Said) -> None:
    assert all(Path(path).exists() for path in said.json["files"])
    assert {path.name for path in report(said).iterdir()} == {Path(path).name for path in said.json["files"]}
    assert said.json["images"] == 123
    assert [entry["name"] for entry in said.json["skipped"]] == ["日本/broken.png"]
    assert "labels are probably wrong" in said.err
    assert "Of one picture each, and so not judged: lonely." in said.err
    written = json.loads((report(said) / "audit.json").read_text())
    assert written == {key: value for key, value in said.json.items() if key != "mlflow_run_id"}


def test_it_is_a_run_in_mlflow(said: Said) -> None:
    from mlflow.tracking import MlflowClient

    workspace = report(said).parents[1]
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    run = client.get_run(said.json["mlflow_run_id"])
    assert (run.info.status, run.data.tags["kind"], run.data.tags["sweep"]) == ("FINISHED", "audit", "mine")
    assert run.data.params["train.epochs"] == "6"
    assert run.data.metrics["issues"] == said.json["issues"]
    assert run.data.metrics["noise_rate"] == pytest.approx(said.json["noise_rate"])
    assert run.data.metrics["accuracy_gap"] == pytest.approx(said.json["poisoning"]["gap"]["value"])
    (plain,) = [row["accuracy"] for row in said.json["robustness"] if row["kind"] == "none"]
    assert run.data.metrics["accuracy_robust_none_0"] == pytest.approx(plain["robust"])
    stored = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert stored == {path.name for path in report(said).iterdir()}


def test_the_misplaced_images_come_first(said: Said) -> None:
    lines = lines_of(report(said) / "labels.csv")
    assert len(lines) == 123
    misplaced = {f"wasp & bee/bild {row:03d}.png" for row in range(0, 3 * WRONG, 3)}
    worst = lines[: WRONG + 4]
    assert len(misplaced & {line["path"] for line in worst}) >= WRONG - 1
    found = [line for line in lines if line["path"] in misplaced and line["issue"] == "1"]
    assert len(found) >= WRONG - 1
    assert {line["suggested"] for line in found} == {"Käfer <b>"}
    quality = [float(line["quality"]) for line in lines if line["issue"] == "1"]
    assert quality == sorted(quality)
    (lonely,) = [line for line in lines if line["label"] == "lonely"]
    assert (lonely["judged"], lonely["issue"]) == ("0", "0")


def test_copies_under_two_labels_are_reported_and_share_a_fold(said: Said) -> None:
    assert said.json["conflicts"] == [["Käfer <b>/copy.png", "日本/bild 002.png"]]
    folds = {line["path"]: line["fold"] for line in lines_of(report(said) / "labels.csv")}
    assert folds["Käfer <b>/copy.png"] == folds["日本/bild 002.png"]


def test_copies_are_named_everywhere(said: Said) -> None:
    """A copy and a near-copy with other labels are named in the output, in the report, in the list and on the page."""
    groups = {tuple(copy["path"] for copy in group["copies"]): group for group in said.json["copies"]}
    same = groups["Käfer <b>/copy.png", "日本/bild 002.png"]
    assert (same["exact"], same["labels_differ"], same["parts_differ"]) == (True, True, False)
    near = groups["wasp & bee/bild 004.png", "日本/\x1b[31mnear.png"]
    assert (near["exact"], near["labels_differ"]) == (False, True)
    assert (
        "2 pictures are there more than once under different labels (1 as exact copies, 1 as near-copies)" in said.err
    )
    assert "'Käfer <b>/copy.png' ('Käfer <b>')" in " ".join(said.err.split())
    assert "\x1b" not in said.err
    lines = lines_of(report(said) / "copies.csv")
    assert [(line["group"], line["kind"], line["labels_differ"]) for line in lines] == [
        *[("1", "same", "1")] * 2,
        *[("2", "near", "1")] * 2,
    ]
    page = (report(said) / "index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="copies">') : page.index('<section id="skipped">')]
    assert "Käfer &lt;b&gt;/copy.png" in section and "nearly the same picture, under different labels" in section
    assert section.count("<img ") == 3


def test_time_left_is_said_from_the_first_epoch_on(said: Said) -> None:
    (first,) = [line for line in said.err.splitlines() if "fold 1 of 2, robust: epoch 1/6" in line]
    assert re.search(r"about \d+:\d\d left in all$", first)


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    folder: Path, command: Callable[..., Said], said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"data.root={folder}", *BRIEF, "--folds", "2", "--dry-run", "--json")
    monkeypatch.setenv("ERAT_HOME", str(tmp_path / "workspace"))
    before = contents(folder)
    ahead = command(*words, "--name", "mine")
    assert ahead.code == 0, ahead.err
    assert contents(folder) == before and list(tmp_path.iterdir()) == [], "not even the home"
    told = ahead.json
    assert (told["images"], told["folds"], told["folds_done"], told["trainings"]) == (123, 2, 0, 5)
    assert told["seconds"] > 10 and told["memory_mb"] > 1
    assert [Path(path).name for path in told["would_write"][1:]] == [Path(path).name for path in said.json["files"]]
    assert told["copies"] == said.json["copies"]
    for line in (
        "folds: 2, 0 of them done; 5 trainings to do",
        "time: about 0:",
        "memory: about ",
        "nothing was written",
    ):
        assert line in " ".join(ahead.err.split())


def test_dry_run_knows_what_is_kept(folder: Path, command: Callable[..., Said], said: Said) -> None:
    assert said.code == 0
    told = command(f"data.root={folder}", *BRIEF, "--folds", "2", "--dry-run", "--json", "--name", "mine").json
    assert (told["folds_done"], told["trainings"]) == (2, 0)


def test_the_page_is_one_file_and_escapes_names(said: Said) -> None:
    page = (report(said) / "index.html").read_text(encoding="utf-8")
    assert "K&auml;fer &lt;b&gt;" in page or "Käfer &lt;b&gt;" in page
    assert "Käfer <b>" not in page
    assert 'src="http' not in page and 'href="http' not in page
    assert page.count('class="card" data-given') == said.json["issues"]
    for words in ("Worst labels", "Perturbation", "APGD", "JPEG", "prefers-color-scheme: dark", "@media print"):
        assert words in page


def test_the_cleaned_list_is_a_data_set(said: Said, command: Callable[..., Said], folder: Path) -> None:
    cleaned = report(said) / "cleaned.csv"
    lines = lines_of(cleaned)
    issues = {line["path"] for line in lines_of(report(said) / "labels.csv") if line["issue"] == "1"}
    assert all(line["status"] == "relabelled" for line in lines if any(line["path"].endswith(name) for name in issues))
    assert 123 - len(issues) <= len(lines) <= 123
    collection, _ = audit_verb._read({"data.root": str(cleaned), "data.image_size": 8})
    assert len(collection) == len(lines)
    assert all(source.is_relative_to(folder) for source in collection.sources if isinstance(source, Path))


def test_the_classifier_is_exported_twice(said: Said) -> None:
    description = json.loads((report(said) / "model.json").read_text())
    assert description["classes"] == ["Käfer <b>", "lonely", "wasp & bee", "日本"]
    pictures = np.random.RandomState(0).rand(5, 1, 8, 8).astype(np.float32)
    probs = load_program(report(said) / "model.pt2")(torch.from_numpy(pictures)).numpy()
    assert probs.shape == (5, 4) and np.allclose(probs.sum(1), 1, atol=1e-5)
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(report(said) / "mlflow-model"))
    assert np.allclose(model.predict(pictures), probs, atol=1e-5)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    files = [path.name for path in (report(said) / "mlflow-model").rglob("*") if path.is_file()]
    assert "model.pt2" in files and not [name for name in files if name.endswith((".pkl", ".pth", ".pickle"))]
    weights = torch.load(report(said) / "weights.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


@pytest.mark.slow
def test_mlflow_serves_the_classifier(said: Said, tmp_path: Path) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = report(said) / "mlflow-model"
    options = ["-m", str(model), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    # The server starts `python`, which must be this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *options],
            env=os.environ | {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/ping", tmp_path / "log")
        example = (model / "serving_input_example.json").read_bytes()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", example)
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=300) as answer:
            predictions = json.loads(answer.read())["predictions"]
    finally:
        stop_server(server)
    pictures = torch.tensor(json.loads(example)["inputs"])
    assert np.allclose(predictions, load_program(report(said) / "model.pt2")(pictures).numpy(), atol=1e-5)


def test_it_goes_on_after_what_is_kept(
    said: Said, command: Callable[..., Said], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command, run again, trains nothing anew and comes to the same findings."""
    monkeypatch.setattr(audit_verb, "examine", None)
    again = command(f"data.root={folder}", *BRIEF, "--folds", "2", "--json", "--name", "mine")
    assert again.code == 0, again.err
    for key in ("issues", "noise_rate", "robustness", "agreement"):
        assert again.json[key] == said.json[key]


def test_search_and_trusted_arrays(
    command: Callable[..., Said], make_images: Callable[..., ImageSet], tmp_path: Path
) -> None:
    images, checked = make_images(80, seed=1), make_images(24, seed=2)
    pixels = {"images": images.images.numpy(), "trusted_images": checked.images.numpy()}
    labels = {"labels": images.labels.numpy(), "trusted_labels": checked.labels.numpy()}
    np.savez(tmp_path / "own.npz", **pixels, **labels)
    words = (f"data.root={tmp_path / 'own.npz'}", "train.epochs=2", "defense.policy=svhn")
    said = command(*words, "--folds", "2", "--search", "--json")
    assert said.code == 0, said.err
    reached = said.json["search"]
    assert list(reached) == ["0.25", "0.5", "1", "2"]
    best = max(reached, key=lambda scale: (reached[scale], float(scale)))
    assert said.json["config"]["defense.epsilon_inf"] == pytest.approx(8 / 255 * float(best))
    assert said.json["images"] == 80
    assert next(row for row in said.json["robustness"] if row["kind"] == "none")["images"] == 24
    arrays = np.load(report(said) / "cleaned.npz", allow_pickle=False)
    lines = lines_of(report(said) / "cleaned.csv")
    assert len(arrays["images"]) == len(arrays["labels"]) == len(lines) - 24
    assert len(arrays["trusted_images"]) == sum(line["status"] == "trusted" for line in lines) == 24


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("data.root=/nowhere",), "there is none at /nowhere"),
        ((), "needs data.root"),
        (
            ("data.root=.", "data.name=cifar10"),
            "audit is for images of one's own, data.root=PATH; got data.name=cifar10",
        ),
        (("data.root=.", "corruption.data=up"), "audit has no use for corruption.data; allowed: data.root"),
        (("data.root=.", "defense.name=ce"), "audit trains ERAT or a variant of it, got defense.name=ce"),
        (("data.root=.", "train.workers=2"), "audit needs train.workers=1, got 2"),
        (("data.root=.", "train.epoch=2"), "did you mean train.epochs"),
        (("data.root={two}", "--folds", "40"), "folds must be in"),
        (("data.root={two}", "train.batch_size=few"), "train.batch_size: input should be a valid integer"),
        (("data.root={two}", "train.epochs=0"), "train.epochs: input should be greater than or equal to 1, got 0"),
        (("data.root={two}", "data.limit=1"), "data.limit: input should be greater than or equal to 2, got 1"),
        (
            ("data.root={pairs}", "--folds", "2"),
            "an audit needs at least 2 classes with 2 pictures or more, got 0 of 2",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: tuple[str, ...], line: str, command: Callable[..., Said], tmp_path: Path
) -> None:
    for name, count in (("two", 3), ("pairs", 1)):
        for k in range(2):
            for i in range(count):
                path = tmp_path / name / f"class{k}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (9, 9), 100 * k + i).save(path)
    said = command(*(word.format(two=tmp_path / "two", pairs=tmp_path / "pairs") for word in words))
    assert said.code == 2, said.err
    assert line in said.err
    assert len(said.err.strip().splitlines()) == 1
