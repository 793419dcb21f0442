"""Inputs that are files: data sets, the ledger and the home, crafted sets, the files of a cell, disks."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.commands import BOMB, JUNK, changes
from tests.fuzz.sandbox import EITHER, FINE, FOLDER, LINK, Input, Sandbox

CRAFT = ("craft", "--json", "data.name=folder", "corruption.data=urp", "data.image_size=8")
TRAIN = (
    *("train", "--json", "data.name=folder", "data.root=../data/toy.npz", "data.image_size=8", "defense.name=ce"),
    *("corruption.data=none", "corruption.labels=none", "train.epochs=1", "train.batch_size=8"),
)
_RNG = np.random.default_rng(0)
PIXELS = _RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
LABELS = np.arange(24) % 3


def npz(**arrays: Any) -> bytes:
    """The bytes of a .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def png(side: int = 8) -> bytes:
    """The bytes of a grey image."""
    file = io.BytesIO()
    Image.fromarray(_RNG.integers(0, 256, (side, side), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


TOY = npz(images=PIXELS, labels=LABELS)
IMAGES = {f"{name}/{k}.png": png() for name in ("cat", "dog") for k in range(4)}
TABLE = "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in IMAGES)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file that ends early, has another byte somewhere, or is another file."""
    place = st.integers(0, max(0, len(whole) - 1))
    flipped = st.builds(lambda k, byte: whole[:k] + bytes([byte]) + whole[k + 1 :], place, st.integers(0, 255))
    return flipped | flipped | place.map(lambda k: whole[:k]) | st.binary(max_size=40) | st.just(whole + b"\0" * 9)


# --- data sets -------------------------------------------------------------------------------------------------------


def data_of(name: str, files: dict[str, bytes | str], allowed: tuple[int, ...] = EITHER) -> Input:
    return Input(
        "data", (*CRAFT, f"data.root=../data/{name}"), {f"data/{at}": what for at, what in files.items()}, allowed
    )


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    except (pyarrow.ArrowException, TypeError, ValueError):  # lists of mixed kinds
        return b"PAR1"
    return file.getvalue()


def data() -> st.SearchStrategy[Input]:
    """Arrays, tables, folders and images: as they should be, near it, and damaged."""
    kinds = st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_, np.complex64, np.int8, np.uint16])
    shapes = st.sampled_from(
        [(24, 8, 8), (24, 8, 8, 1), (24, 8, 8, 3), (24, 3, 8, 8), (24,), (0, 8, 8), (24, 0, 8), (24, 8, 8, 9)]
    )
    labels = st.sampled_from(
        [
            LABELS,
            LABELS.astype(float),
            LABELS * np.nan,
            LABELS[:5],
            LABELS * 0,
            LABELS - 9,
            LABELS.astype(str),
            LABELS[:, None],
            LABELS * 10**15,
            LABELS.astype(complex),
            LABELS.astype("S3"),
            LABELS > 0,
            np.array(3),
        ]
    )
    arrays = st.builds(
        lambda kind, shape, given: data_of("x.npz", {"x.npz": npz(images=np.ones(shape).astype(kind), labels=given)}),
        kinds,
        shapes,
        labels,
    )
    bent = damaged(TOY).map(lambda raw: data_of("x.npz", {"x.npz": raw}))
    cell = st.sampled_from(
        ["", "cat/0.png", "nowhere.png", "/etc/passwd", "..", "=1+1", "\x1b[31m", "é", '"', "a\0b", "x" * 300]
    )
    row = st.tuples(cell, cell, st.sampled_from(["", "train", "test", "trusted", "odd"])).map(",".join)
    table = st.lists(row, max_size=4).map(
        lambda rows: data_of("x.csv", {**IMAGES, "x.csv": (TABLE + "\n".join(rows)).encode()})
    )
    header = st.sampled_from(
        ["path,label,part", "path", "", "label,path", "path,path,label", "\ufeffpath,label", "path;label"]
    )
    headed = header.map(lambda first: data_of("x.csv", {**IMAGES, "x.csv": (first + "\n" + TABLE[11:]).encode()}))
    raw = damaged(TABLE.encode()).map(lambda content: data_of("x.csv", {**IMAGES, "x.csv": content}))
    value = JUNK | st.sampled_from([png(), b"", "cat/0.png"])
    columns = st.dictionaries(
        st.sampled_from(["image", "path", "label", "part"]), st.lists(value, min_size=4, max_size=4)
    )
    parquet = columns.map(lambda given: data_of("x.parquet", {**IMAGES, "x.parquet": _parquet(given)}))
    picture = damaged(png()).map(lambda content: data_of(".", {**IMAGES, "cat/0.png": content}))
    name = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=9)
    folder = name.filter(lambda word: word not in (".", "..")).map(
        lambda word: data_of(".", {**IMAGES, f"{word}/1.png": png(), f"{word}/2.png": png()})
    )
    fine = st.integers(4, 24).map(
        lambda count: data_of("x.npz", {"x.npz": npz(images=PIXELS[: 3 * count], labels=LABELS[: 3 * count])}, FINE)
    )
    return arrays | bent | table | headed | raw | parquet | picture | folder | fine


# --- what the project wrote ------------------------------------------------------------------------------------------


def make_bases(sandbox: Sandbox) -> None:
    """Homes that the other inputs damage: a sweep that never ran, a crafted set, a finished run."""
    from orchestration.storage.workspace import Workspace
    from orchestration.study.grids import load_grid, specification
    from tests.synthetic import write_workspace

    spec = specification(load_grid("table3"), "demo", {}, only={"corruption": ["up"], "noise": ["symmetric"]})
    states = ["done", "done", "failed", "interrupted", "proposed"]
    runs = [(params, "baseline", states[k % len(states)]) for k, params in enumerate(spec.runs)]
    sandbox.bases["swept"] = sandbox.folder / "swept"
    write_workspace(Workspace(sandbox.bases["swept"]), "t", spec, runs)
    for name, words in (("crafted", (*CRAFT, "data.root=../data/toy.npz")), ("trained", TRAIN)):
        sandbox.bases[name] = sandbox.folder / name
        outcome = sandbox.run(Input(name, words, {"data/toy.npz": TOY}), keep=sandbox.bases[name])
        assert outcome.code == 0, outcome.err


READ = st.sampled_from(
    [
        ("status",),
        ("status", "--json"),
        ("status", "t", "--json"),
        ("cancel", "t"),
        ("sync", "nothing"),
        ("report", "t", "--format", "csv"),
        ("report", "t", "--json"),
        ("report", "t", "--format", "md"),
        ("leaderboard", "--json"),
        ("resume", "nothing"),
        ("retry", "nothing"),
    ]
)
LINES = (
    "5",
    "null",
    "[]",
    "{}",
    '"x"',
    "nan",
    '{"event": "sweep"}',
    '{"event": 5}',
    '{"event": "done"}',
    "{",
    "\x1b[31m",
    "",
)
LINES = (*LINES, '{"event": "proposed", "sweep": "t"}', '{"event": "retry", "cell": []}', "9" * 5000, "[" * 9000, BOMB)


def ledgers(sandbox: Sandbox) -> st.SearchStrategy[Input]:
    """Lines that are foreign, torn or of other types; other things in the places of the home's files."""
    whole = (sandbox.bases["swept"] / "ledger.jsonl").read_text().splitlines()

    def given(words: tuple[str, ...], content: bytes) -> Input:
        return Input("ledger", words, {"home/ledger.jsonl": content}, base="swept")

    def put(k: int, line: object) -> bytes:
        return "\n".join(
            [*whole[:k], line if isinstance(line, str) else json.dumps(line), *whole[k + 1 :], ""]
        ).encode()

    number = st.integers(0, len(whole) - 1)
    changed = number.flatmap(lambda k: changes(json.loads(whole[k])).map(lambda event: put(k, event)))
    foreign = st.builds(put, number, st.sampled_from(LINES) | JUNK)
    names = st.sampled_from(
        ["ledger.jsonl", "ledger.jsonl.lock", "cells", "reports", "crafted", "mlflow.db", "running", "outbox"]
    )
    kinds = st.sampled_from([FOLDER, f"{LINK}/dev/null", f"{LINK}/nowhere/x", b"", b"x", f"{LINK}."])
    misplaced = st.builds(
        lambda words, name, kind: Input("ledger", words, {f"home/{name}": kind}, base="swept"), READ, names, kinds
    )
    text = changed | changed | foreign | foreign | damaged("\n".join(whole).encode())
    return st.builds(given, READ, text) | st.builds(given, READ, text) | misplaced


def _stored(sandbox: Sandbox, base: str, under: str, group: str, words: tuple[str, ...]) -> st.SearchStrategy[Input]:
    """One file of a base damaged, of another kind, or gone."""
    root = sandbox.bases[base]
    files = sorted(str(file.relative_to(root)) for file in (root / under).rglob("*") if file.is_file())

    def other(name: str) -> st.SearchStrategy[Input]:
        whole = (root / name).read_bytes()
        content: st.SearchStrategy[Any] = damaged(whole) | st.sampled_from(
            [FOLDER, f"{LINK}/dev/null", b"", b"5", b"null"]
        )
        if name.endswith((".json", ".jsonl")):
            lines = whole.decode().splitlines() if name.endswith("l") else [whole.decode()]
            content |= changes(json.loads(lines[0])).map(lambda it: json.dumps(it).encode() + b"\n")
        if name.endswith(".npy"):
            content |= st.sampled_from(
                [_npy(np.zeros(shape, kind)) for shape in ((), (3,), (24, 1, 8, 8)) for kind in "fdb?U"]
            )
        return content.map(lambda what: Input(group, words, {"data/toy.npz": TOY, f"home/{name}": what}, base=base))

    taken = st.sampled_from(files).map(
        lambda name: Input(group, words, {"data/toy.npz": TOY}, base=base, gone=(f"home/{name}",))
    )
    return st.sampled_from(files).flatmap(other) | st.sampled_from(files).flatmap(other) | taken


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def crafted(sandbox: Sandbox) -> st.SearchStrategy[Input]:
    """A crafted set's manifest and arrays."""
    return _stored(sandbox, "crafted", "crafted", "crafted", (*CRAFT, "data.root=../data/toy.npz"))


def cells(sandbox: Sandbox) -> st.SearchStrategy[Input]:
    """A cell's files: results that are shown, checkpoints that are gone on from, reports over both."""
    shown = _stored(sandbox, "trained", "cells", "cells", TRAIN)
    told = _stored(sandbox, "swept", "cells", "cells", ("report", "t", "--json"))
    state = _stored(sandbox, "swept", "cells", "cells", ("status", "t", "--json"))
    return shown | told | state


def disks(sandbox: Sandbox) -> st.SearchStrategy[Input]:
    """Homes with little room, or in which nothing can be written."""
    toy = {"data/toy.npz": TOY}
    write = st.sampled_from(
        [(*CRAFT, "data.root=../data/toy.npz"), TRAIN, ("status", "--json"), ("craft", "--dry-run")]
    )
    full = st.builds(
        lambda words, pages: Input("disk", words, toy, EITHER, disk=4096 * pages), write, st.integers(1, 200)
    )
    read = READ | write
    return full | read.map(lambda words: Input("disk", words, toy, EITHER, base="swept", read_only=True))
