"""Defines what the verbs have in common: their decorator, the options of several verbs, and how these are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from erat.errors import UserError, shown
from erat.registry import Registry
from orchestration.commands import completion
from orchestration.commands.console import OnceCommand
from orchestration.study import MOST_TRIALS
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.terminal import program

Verb = Callable[..., None]


def nonempty(value: str | None) -> str | None:
    """Refuse an option with an empty value, which would otherwise pass for an option that is not given."""
    if value == "":
        raise typer.BadParameter("it must not be empty")
    return value


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="dotted configuration keys, e.g. corruption.rate=0.4",
        show_default=False,
        autocompletion=completion.overrides,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        callback=nonempty,
        help="values to start from: demo (minutes on a laptop), medium, paper or official",
        show_default="demo",
        autocompletion=completion.presets,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", callback=nonempty, help="YAML file of keys and preset; words given here win over it"
    ),
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="print the configuration as YAML that --config reads; run nothing")
]
Address = Annotated[
    str | None,
    typer.Option(callback=nonempty, help="Ray cluster to join: HOST:PORT, ray://HOST:PORT or auto"),
]
AtMost = Annotated[
    int | None,
    typer.Option("--max-concurrent", min=1, max=MOST_TRIALS, help="most runs at the same time; none: as many as fit"),
]
StudyName = Annotated[
    str,
    typer.Argument(
        help="a sweep or matrix",
        autocompletion=completion.studies,
    ),
]


def _names(registry: Registry[Any]) -> str:
    return ", ".join(sorted(registry.own))


def _setting(metavar: str, help: str, completed: Callable[..., Any]) -> Any:
    """Return the option of a setting of a search; without it, the space's own setting counts."""
    return typer.Option(metavar=metavar, callback=nonempty, help=help, autocompletion=completed)


Sampler = Annotated[
    str | None,
    _setting("NAME", f"what proposes trials, instead of the space's: {_names(SAMPLERS)}", completion.samplers),
]
Pruner = Annotated[
    str | None,
    _setting("NAME", f"what stops trials early, instead of the space's: {_names(PRUNERS)}", completion.pruners),
]
Window = Annotated[
    str | None,
    _setting(
        "N|auto",
        "trials that a proposal does not wait for; auto: twice as many as run at a time, or all if fewer",
        completion.automatic,
    ),
]
Rungs = Annotated[
    str | None,
    _setting(
        "EPOCHS|auto",
        "epochs at which halving compares trials, with commas; auto: they follow from the schedule",
        completion.automatic,
    ),
]
Confirm = Annotated[
    str | None,
    _setting(
        "TOPxSEEDS|none",
        "train the best TOP trials with so many seeds each, and choose by the mean; auto: 3x3 with --preset paper",
        completion.confirmations,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of standard output")]
Slots = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_TRIALS, help="with --dry-run: plan for so many runs side by side, whatever there is"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would run and how long it takes; run nothing")]


def verb(group: typer.Typer, *examples: str) -> Callable[[Verb], Verb]:
    """Return a decorator that adds a verb to `group`; its help ends with these examples."""
    text = "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  {program()} {line}" for line in examples)
    return group.command(cls=OnceCommand, epilog=text)


def parse_overrides(words: list[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE words; the reader is loaded here because no help page needs `orchestration.study.overrides`."""
    from orchestration.study import overrides as reader

    return reader.parse_overrides(words)


def read_asked(words: list[str] | None, file: str | None, preset: str | None, apart: tuple[str, ...] = ()) -> Any:
    """Read the configuration that words, a file and a preset ask for; see `orchestration.study.config_files`."""
    from orchestration.study import config_files

    return config_files.asked(words, file, preset, apart=apart)


def check_slots(slots: int | None, dry_run: bool) -> None:
    """Refuse a number of slots without a plan, which would be ignored."""
    if slots is not None and not dry_run:
        raise UserError("--slots goes with --dry-run: a run takes as many as fit, or --max-concurrent")


def print_config(flat: dict[str, Any], as_json: bool) -> None:
    """Print a configuration as YAML, or as JSON."""
    from orchestration.study.config_files import as_yaml, nested

    print(json.dumps(nested(flat)) if as_json else as_yaml(flat), end="\n" if as_json else "")


def checked_name(name: str | None) -> str | None:
    """Return the name that was asked for, if there is one, after checking that it is allowed."""
    from orchestration.api import check_name

    return None if name is None else check_name(name, "--name")


def whole_numbers(what: str, words: str) -> list[int]:
    """Return the different whole numbers in [0, 2^32) that the words of the option `what` list."""
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        raise UserError(f"{what} must be whole numbers with commas between them, got {shown(words)}") from None
    if not all(0 <= number < 2**32 for number in numbers):
        raise UserError(f"{what} must be whole numbers in [0, 2^32), got {shown(words)}")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{what} must name each seed once, got {shown(words)}")
    return numbers
