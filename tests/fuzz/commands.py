"""Generates inputs on the command line: KEY=VALUE, grids, search spaces, verbs and their options."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

from erat.keys import known_keys
from erat.registry import DEFENSES
from tests.fuzz.sandbox import EITHER, FINE, WRONG, Input

DRY = ("craft", "--dry-run", "--json")
BOMB = "{}".format(
    "".join(
        f"&{'abcdefghi'[k]} [{','.join('*' + 'abcdefghi'[k - 1] if k else 'x' for _ in range(9))}], " for k in range(9)
    )
)
ODD = (
    *(
        "",
        " ",
        "~",
        "null",
        "none",
        "yes",
        "true",
        "1",
        "-1",
        "0",
        "0.0",
        "-0",
        "1.5",
        "1e308",
        "-1e308",
        "1e400",
        "5e-324",
    ),
    *("nan", "inf", "-inf", ".nan", ".inf", "8/255", "8/0", "8/", "/", "0x1F", "0o17", "1_000", "1:30", "2024-13-45"),
    *(
        "2024-01-01",
        "9" * 5000,
        f"-{'9' * 400}",
        f"0.{'1' * 5000}",
        f"8/{'9' * 400}",
        f"{'9' * 400}/8",
        "1e" + "9" * 30,
    ),
    *(
        "[" * 3000,
        "{" * 3000,
        "[" * 50 + "]" * 50,
        f"[{BOMB[:-2]}]",
        "[up]",
        "[]",
        "{}",
        "{a: 1}",
        "{a: 1, a: 2}",
        "- -",
    ),
    *(
        "~nosuchuser/x",
        "~",
        "s3://",
        "s3:///",
        "gs://x",
        "http://[::1",
        "file://",
        "file:///nowhere",
        "://",
        "\\\\host\\x",
    ),
    *("/dev/zero", "/dev/null", "/proc/self/mem", "/", ".", "..", "../..", "x" * 5000, "x/" * 3000, "é" * 300, "a\nb"),
    *(
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "\t",
        "\r",
        "\u202etxt",
        "\ud83d\ude00",
        "\udcff\udcfe",
        "#",
        "photos #2",
        "a: b",
    ),
    *(
        "'",
        '"',
        "&a",
        "*a",
        "? x",
        "%YAML 9",
        "@x",
        "`x`",
        "!!python/object/apply:os.system [ls]",
        "!x",
        "|",
        ">",
        "$x",
        "[bold]",
    ),
)
WELL = {
    "train.epochs": st.integers(1, 500),
    "train.batch_size": st.sampled_from([16, 32, 64, 100]),
    "train.lr": st.floats(1e-5, 1.0, allow_subnormal=False),
    "train.momentum": st.floats(0, 0.99, allow_subnormal=False),
    "train.seed": st.integers(0, 2**31),
    "train.gamma": st.floats(0.01, 1),
    "train.milestones": st.sampled_from(["[1,2]", "[5]"]),
    "val.fraction": st.floats(0.05, 0.5),
    "corruption.rate": st.floats(0, 1, allow_subnormal=False),
    "corruption.epsilon": st.sampled_from(["8/255", "0.5", "0", "1", "16/255"]),
    "corruption.data": st.sampled_from(
        ["urp", "uhp", "up", "l2c", "ap", "aa", "uap", "ops", "lsp", "ar", "cuda", "tue", "pil", "rem", "adaptive"]
    ),
    "corruption.seed": st.integers(0, 2**32 - 1),
    "defense.name": st.sampled_from(["erat", "ce", "at", "iss", "dat", "dividemix", "unicon", "mspl", "ueraser_max"]),
    "data.limit": st.integers(400, 10**6),
    "resources.gpu": st.sampled_from(["0", "0.25", "1/4"]),
    "train.precision": st.sampled_from(["fp32", "tf32", "bf16"]),
}
ILL = {
    "train.epochs": ["0", "-1", "1.5", "abc", "nan", "inf", "", "[1]", "{}", "9" * 5000, "1e400"],
    "train.batch_size": ["0", "1", "-64", "63.5", "many", "[64]"],
    "train.lr": ["0", "-0.1", "nan", "inf", "abc", "", "1/0", "[0.1]", "{lr: 1}"],
    "train.momentum": ["1", "-0.1", "nan"],
    "train.seed": ["-1", "0.5", "x"],
    "val.fraction": ["0", "0.9", "1", "-1", "nan"],
    "corruption.rate": ["1.4", "-0.1", "nan", "x", "1e308", "[0.5]"],
    "corruption.epsilon": ["-1", "nan", "x", "{}"],
    "corruption.data": ["nothing", "[up]", "{}", "UP ", "5"],
    "corruption.seed": ["-1", str(2**32), "x"],
    "defense.name": ["erat2", "[ce]", "{}", "5", "x" * 3000],
    "data.limit": ["0", "1", "-5", "2.5", "x", "[5]"],
    "data.image_size": ["0", "7", "513", "x", "1e9"],
    "data.test_fraction": ["0", "1", "-1", "nan"],
    "train.precision": ["fp16", "1", "[fp32]"],
}
KEYS = sorted({key for name in DEFENSES.names() for key in known_keys(name)})
# Text that a command line can hold: without NUL; bytes that are not UTF-8 arrive as surrogates.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40) | st.binary(
    min_size=1, max_size=12
).map(lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape"))


def keys() -> st.SearchStrategy[Input]:
    """Generate words after a verb: right ones, wrong ones, and arbitrary ones."""
    right = st.dictionaries(st.sampled_from(sorted(WELL)), st.none(), min_size=1, max_size=3).flatmap(
        lambda chosen: st.tuples(*(WELL[key].map(lambda value, key=key: f"{key}={value}") for key in chosen))
    )
    wrong = st.sampled_from([f"{key}={value}" for key, values in ILL.items() for value in values])
    named = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(ODD) | TEXT)
    strange = st.builds("{}={}".format, TEXT.filter(lambda text: not text.startswith("-")), TEXT)
    return (
        right.map(lambda words: keys_of(words, FINE))
        | wrong.map(lambda word: keys_of([word], WRONG))
        | named.map(lambda word: keys_of([word]))
        | named.map(lambda word: keys_of([word]))
        | st.lists(named | strange, min_size=1, max_size=3).map(keys_of)
    )


def keys_of(words: Sequence[str], allowed: tuple[int, ...] = EITHER) -> Input:
    """Make an input of these words; `--` comes before them, so that a word with a hyphen in front is no option."""
    return Input("keys", (*DRY, "--", *words), allowed=allowed)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from(["x", "ce", "~", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "defense.name"]), inner, max_size=3)
    ),
    max_leaves=6,
)
BROKEN = (
    *(
        b"",
        b"\xff\xfe\x00x",
        b"\x00",
        b"name: \xe9t\xe9\n",
        b"[" * 3000,
        b"{" * 100_000,
        b"- " * 5000 + b"x",
        b"a: b: c",
    ),
    *(
        b"5",
        b"null",
        b"[]",
        b"{}",
        b"name: x",
        f"[{BOMB[:-2]}]".encode(),
        b"!!python/object/apply:os.system [ls]",
        b"\t",
    ),
    *(b"--- 1\n--- 2\n", b"? [a]\n: b\n", b"&a [*a]\n", b"{1: 2, null: 3}", b"x: " + b"9" * 5000, b"%YAML 9\n---\n"),
)
GRID = {
    "name": "mine",
    "about": "a test",
    "axes": {"noise": ["symmetric"], "corruption": ["urp"], "budget": {"a": {"times": 1}, "b": {"times": 2}}},
}
SPACE = {
    "name": "mine",
    "about": "a test",
    "parameters": {
        "defense.selector": {"choices": ["rebalance", "mixture"]},
        "defense.eta": {"low": 0, "high": 1, "when": {"defense.selector": "rebalance"}},
        "defense.steps": {"type": "int", "low": 1, "high": 9, "step": 2, "when": {"data.name": ["mnist"]}},
    },
    "points": [{"defense.selector": "rebalance", "defense.eta": 0.5, "defense.steps": 3}],
    "proposals": 1,
    "sampler": "tpe",
    "pruner": "halving",
    "window": 4,
    "startup": "auto",
    "grace": 0.5,
    "rungs": [5, 9],
    "block": 3,
    "confirm": {"top": 2, "seeds": 2},
    "objective": ["val_accuracy"],
}


def document(option: str, whole: dict[str, object], group: str, verb: str) -> st.SearchStrategy[Input]:
    """Generate YAML files with something else in one place, and files that are not YAML.

    Args:
        option: the option that names the file.
        whole: a valid content.
        group: the group of the inputs.
        verb: the verb of the command.
    """

    def given(content: bytes, allowed: tuple[int, ...] = EITHER) -> Input:
        words = (verb, option, "../data/x.yaml", "--dry-run", "--json", *(["--trials", "1"] if verb == "sweep" else []))
        return Input(group, words, {"data/x.yaml": content}, allowed)

    changed = changes(whole).map(lambda content: given(json.dumps(content, allow_nan=True).encode()))
    return changed | changed | st.sampled_from(BROKEN).map(given) | st.binary(max_size=60).map(given)


def changes(whole: object) -> st.SearchStrategy[object]:
    """Generate `whole` with one of its parts replaced, removed or added."""
    places = list(_places(whole))

    def change(place: tuple[object, ...], junk: object, how: str) -> object:
        copy: object = json.loads(json.dumps(whole))
        if not place:
            return junk
        holder = copy
        for step in place[:-1]:
            holder = holder[step]  # type: ignore[index]
        if how == "gone":
            del holder[place[-1]]  # type: ignore[attr-defined]
        elif how == "more" and isinstance(holder, dict):
            holder["strange"] = junk
        else:
            holder[place[-1]] = junk  # type: ignore[index]
        return copy

    return st.builds(change, st.sampled_from(places), JUNK, st.sampled_from(["other", "other", "gone", "more"]))


def _places(content: object, above: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [above, *(place for key, value in list(inside)[:12] for place in _places(value, (*above, key)))]


def grids() -> st.SearchStrategy[Input]:
    """Generate files for --grid, and words for --only, --skip and --seeds."""
    option = st.sampled_from(["--only", "--skip", "--seeds"])
    words = (
        st.sampled_from(["defense=ce corruption=up noise=symmetric", "defense", "defense=", "=ce", "x=y", "0,1", *ODD])
        | TEXT
    )
    refused = st.builds(
        lambda option, word: Input(
            "grids", ("matrix", "--dry-run", "--only", "defense=nothing", f"{option}={word}"), {}, WRONG
        ),
        option,
        words,
    )
    dotted = st.sampled_from(
        [
            *(
                "corruption.data=up",
                "corruption.data=up,nothing",
                "corruption.epsilon=./4",
                "corruption.epsilon=1.2.3/4",
            ),
            *("defense.name=ce", "defense.norms=linf", "defense.norms=", "train.lr=1", "corruption.rate=0.6", "a.b=c"),
        ]
    )
    chosen = st.builds(
        lambda option, word: Input(
            "grids", ("matrix", "--dry-run", "--grid", "table1", f"{option}={word}", "train.epochs=1"), {}, EITHER
        ),
        st.sampled_from(["--only", "--skip"]),
        dotted,
    )
    return document("--grid", GRID, "grids", "matrix") | refused | chosen


def spaces() -> st.SearchStrategy[Input]:
    """Generate files for --space."""
    return document("--space", SPACE, "spaces", "sweep")


def verbs() -> st.SearchStrategy[Input]:
    """Generate verbs with options that are wrong, doubled, or of another verb, none of which starts anything."""
    names = [
        "sweep",
        "matrix",
        "resume",
        "retry",
        "cancel",
        "sync",
        "status",
        "report",
        "leaderboard",
        "train",
        "craft",
        "audit",
        "evaluate",
        "ui",
        "doctor",
    ]
    options = [
        *("--nothing", "--json=1", "--preset", "--preset=x", "--trials=0", "--trials=x", "--trials=" + "9" * 400),
        *("--port=0", "--port=99999", "--folds=1", "--folds=x", "--name=../x", "--name=", "--format=exe", "--address"),
        *("-x", "--max-concurrent=0", "--seeds=", "--space=nothing", "--grid=nothing", "--labels=x", "--slots=0"),
        *("--sampler=", "--sampler=x", "--pruner=x", "--window=0", "--window=x", "--rungs=9,4", "--confirm=3x1"),
        *("--threats=", "--threats=x", "--budgets=x", "--attacks=", "--samples=0", "--samples=x"),
    ]
    # An unknown option is refused before the values of other options are read, so free text needs only this one.
    refused = st.builds(
        lambda verb, option: Input("verbs", (verb, option), {}, WRONG), st.sampled_from(names), st.sampled_from(options)
    )
    texts = st.builds(
        lambda verb, word, more: Input("verbs", (verb, word, *more, "--nothing"), {}, WRONG),
        st.sampled_from(names),
        TEXT,
        st.lists(TEXT, max_size=2),
    )
    wrong = refused | texts
    unknown = st.builds(
        lambda verb, name: Input("verbs", (verb, "--", name), {}, WRONG if name else EITHER),
        st.sampled_from(["resume", "retry", "cancel", "sync", "status", "report", "evaluate"]),
        TEXT | st.sampled_from(ODD),
    )
    help_of = st.sampled_from(names).map(lambda verb: Input("verbs", (verb, "--help"), {}, FINE))
    return wrong | unknown | unknown | help_of
