"""Lists inputs that once failed, are examples in a document, or are what a person would do: one line each."""

from __future__ import annotations

import io
import json

import numpy as np

from tests.fuzz.commands import BOMB, BROKEN, GRID, SPACE, keys_of
from tests.fuzz.sandbox import EITHER, FINE, FOLDER, LINK, WRONG, Input
from tests.fuzz.stored import CRAFT, IMAGES, LABELS, LINES, PIXELS, TABLE, TOY, data_of, npz, png


def named() -> list[Input]:
    """Return all named inputs, in a fixed order."""
    return [*_named_commands(), *_named_data(), *_named_ledgers(), *_named_disks()]


def _named_commands() -> list[Input]:
    """Return inputs on the command line that once failed, or are examples in a document."""
    wrong = [
        "train.lr=1e308",
        "resources.cpu=100000",
        "x",
        "=",
        "=x",
        "train.epochs",
        "preset=demo",
        "eta=0.3",
        "lr=0.1",
    ]
    wrong += [
        "train.epochs=" + "9" * 5000,
        "train.epochs=" + "[" * 3000,
        f"train.epochs=[{BOMB[:-2]}]",
        "corruption.data=[up]",
    ]
    train = ("train", "--dry-run", "--json", "--")
    found = [Input("keys", (*train, word), allowed=WRONG) for word in wrong]
    found += [
        Input("keys", (*train, "train.lr=0.1", "train.lr=0.2"), allowed=WRONG),
        Input("keys", train, allowed=FINE),
    ]
    either = ["data.root=~nosuchuser/x", "storage.path=s3://", "storage.path=http://[::1", "storage.path=gs://x"]
    either += ["corruption.source_weights=/dev/zero", "corruption.labels_file=/dev/zero", "data.root={}", "data.root="]
    found += [keys_of([word]) for word in either]
    found += [keys_of([word], FINE) for word in ("data.limit=none", "data.root=photos #2", "data.root=2024")]
    # With a short crafting: it is about the profile, and 500 steps take too long on a busy machine.
    short = ("corruption.steps=20", "corruption.source_epochs=1")
    found.append(Input("keys", ("train", "--profile", "data.limit=300", "data.image_size=8", *short)))
    found += [
        Input("grids", ("matrix", "--grid", "../data/x.yaml", "--dry-run"), {"data/x.yaml": raw}, WRONG)
        for raw in BROKEN
    ]
    times = json.dumps({**GRID, "axes": {"a": {"b": {"times": "abc"}}}}).encode()
    found.append(Input("grids", ("matrix", "--grid", "../data/x.yaml", "--dry-run"), {"data/x.yaml": times}, WRONG))
    twice = ("--only", "defense=ce noise=symmetric", "--only", "corruption=up")
    found.append(Input("grids", ("matrix", "--dry-run", "--json", *twice), {}, FINE))
    for odd in (FOLDER, f"{LINK}/dev/zero", f"{LINK}x.yaml"):
        for verb, option in (("matrix", "--grid"), ("sweep", "--space")):
            group = "grids" if verb == "matrix" else "spaces"
            found.append(Input(group, (verb, option, "../data/x.yaml", "--dry-run"), {"data/x.yaml": odd}, WRONG))
    huge = json.dumps({**SPACE, "proposals": 10_000_000_000}).encode()
    space = ("sweep", "--space", "../data/x.yaml", "--dry-run")
    found += [Input("spaces", space, {"data/x.yaml": raw}, WRONG) for raw in (huge, *BROKEN)]
    found.append(Input("spaces", ("sweep", "--trials", "999999999", "--dry-run"), {}, WRONG))
    found.append(Input("spaces", (*space, "--json"), {"data/x.yaml": json.dumps(SPACE).encode()}, FINE))
    config = ("train", "--config", "../data/x.yaml", "--show-config")
    broken = [raw for raw in BROKEN if raw != b"{}"]  # no keys are no mistake
    found += [Input("keys", config, {"data/x.yaml": raw}, WRONG) for raw in (*broken, FOLDER, f"{LINK}/dev/zero")]
    found.append(Input("keys", config, {"data/x.yaml": b"train: {lr: 1e-3}\ndefense.eta: 0.3\n"}, FINE))
    found += [Input("verbs", words, {}, FINE) for words in (("--help",), ("status", "--json"), ("craft", "--dry-run"))]
    found += [
        Input("verbs", words, {}, WRONG) for words in (("",), ("nothing",), ("--nothing",), ("ui", "--host", "0.0.0.0"))
    ]
    return found


def _named_data() -> list[Input]:
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (40000000000000,), }".ljust(128)
    objects = np.array([{}] * 24, dtype=object)
    bad = [
        data_of("x.npz", {}),
        data_of("x.npz", {"x.npz": FOLDER}),
        data_of("x.npz", {"x.npz": f"{LINK}/dev/zero"}),
        data_of("x.npz", {"x.npz": f"{LINK}x.npz"}),
        data_of("x.npz", {"x.npz": b"PK\x03\x04" + b"\0" * 40}),
        data_of("x.npz", {"x.npz": TABLE.encode()}),
        data_of("x.npz", {"x.npz": npz(images=objects, labels=LABELS)}),
        data_of("x.npz", {"x.npz": npz(images=PIXELS, labels=LABELS * np.nan)}),
        data_of("x.npz", {"x.npz": npz(images=PIXELS)}),
        data_of("x.npz", {"x.npz": TOY[:200]}),
        data_of("x.npz", {"x.npz": _zip("images.npy", header)}),
        data_of("x.csv", {"x.csv": TABLE.encode("utf-16")}),
        data_of("x.csv", {"x.csv": f"{LINK}/dev/zero"}),
        data_of("x.parquet", {"x.parquet": TOY}),
        data_of("x.png", {"x.png": png()}),
        data_of(".", {"cat/0.png": png()}),
        data_of(".", {"cat/0.png": png(), "dog": FOLDER}),
    ]
    fine = [
        data_of("x.npz", {"x.npz": TOY}),
        data_of(".", {**IMAGES}),
        data_of("x.csv", {**IMAGES, "x.csv": TABLE.encode()}),
        data_of(".", {f"{name}{at[3:]}": raw for at, raw in IMAGES.items() for name in ("$x^$", "[up]")}),
    ]
    preview = {f"data/{name}{at[3:]}": raw for at, raw in IMAGES.items() for name in ("$x_{$", "a\\frac$b$")}
    words = ("craft", "--preview", "--json", "data.name=folder", "data.root=../data", "corruption.data=urp")
    return [
        *(Input("data", given.words, given.files, WRONG) for given in bad),
        *(Input("data", given.words, given.files, FINE) for given in fine),
        Input("data", words, preview, FINE),
    ]


def _zip(name: str, content: bytes) -> bytes:
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _named_ledgers() -> list[Input]:
    files = [("\n".join([line, ""])).encode(errors="surrogateescape") for line in LINES] + [b"\xff\xfe\n", b"\0" * 99]
    words = [("status", "--json"), ("status", "t", "--json"), ("report", "t")]
    lone = [Input("ledger", words[0], {"home/ledger.jsonl": raw}, EITHER) for raw in files]
    places: list[bytes | str] = [FOLDER, f"{LINK}ledger.jsonl", f"{LINK}/dev/zero"]
    lone += [Input("ledger", ("status",), {"home/ledger.jsonl": what}, WRONG) for what in places]
    lone.append(Input("ledger", ("status",), {"home": b"x"}, WRONG))
    lone += [Input("ledger", word, {}, FINE, base="swept") for word in words]
    return lone


def _named_disks() -> list[Input]:
    toy = {"data/toy.npz": TOY}
    words = (*CRAFT, "data.root=../data/toy.npz")
    full = [Input("disk", words, toy, WRONG, disk=size) for size in (4096, 8192)]
    shown = [("status", "--json"), ("status", "t", "--json")]
    return [*full, *(Input("disk", word, {}, FINE, base="swept", read_only=True) for word in shown)]
