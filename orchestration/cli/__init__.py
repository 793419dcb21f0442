"""Defines the command line: its verbs and their help."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer

from orchestration.cli import runs, studies, tools
from orchestration.cli.options import parse_overrides
from orchestration.commands.console import guarded, quiet

__all__ = ["app", "main", "parse_overrides"]

app = typer.Typer(
    help="Train image classifiers that hold up when images and labels are corrupted, and search how.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (studies.verbs, runs.verbs, tools.verbs):
    app.registered_commands += group.registered_commands


def main() -> None:
    """Run the command and exit with its status.

    0: done; 1: a run failed; 2: the input is wrong; 70: an unforeseen error; 130: interrupted; 141: the reader of
    standard output has closed it.
    """
    quiet()
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(guarded(_run))


def _run() -> Any:
    code = app(standalone_mode=False)
    sys.stdout.flush()  # output that cannot be written is reported here, not when Python ends
    return code


def _as_interrupt(number: int, frame: Any) -> None:
    """Treat a request to end like Ctrl-C, so that servers are stopped and a sweep says how to resume it."""
    raise KeyboardInterrupt
