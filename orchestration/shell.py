"""How the command meets a person: standard error, exit statuses, warnings and errors of one line each."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from erat.errors import UserError, is_storage_fault, storage_words
from erat.records import read_words
from orchestration.terminal import Terminal, one_line

# Typer brings click's errors along, under its own roof in newer versions: what BadParameter derives from is one.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

err = Terminal(stderr=True, soft_wrap=True, highlight=False)


def stopped(how_to_go_on: str) -> typer.Exit:
    err.print(f"stopped; {how_to_go_on}", markup=False)
    return typer.Exit(EXIT_INTERRUPTED)


def show_failure(reason: str | None, log: Path) -> None:
    """Why a run failed: its reason, and the end of its traceback."""
    err.print(f"  {one_line(reason)}", markup=False)
    if (words := read_words(log)) is not None:
        for line in words.splitlines()[-6:]:
            err.print(f"    {line}", style="dim", markup=False)
        err.print(f"  all of it: {log}", markup=False)


def quiet() -> None:
    """Leave standard error to what a person asked for."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_show_own_warning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _show_own_warning(record: logging.LogRecord) -> bool:
    """Print a warning as one line, without the place in the code that a user has no use for."""
    text = record.getMessage().strip().splitlines()[0]
    place, _, message = text.partition("Warning: ")
    err.print(f"warning: {one_line(message or place)}", style="yellow", markup=False)
    return False


def guarded(run: Callable[[], Any]) -> int:
    """Exit status of `run`; what a user can mend becomes one line."""
    try:
        returned = run()
    except UserError as error:
        err.print(f"error: {one_line(error)}", style="red", markup=False)
        return EXIT_INPUT
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the command alone: its help is on the screen already
            return EXIT_INPUT
        words = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        err.print(f"error: {words}", style="red", markup=False)
        return EXIT_INPUT
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped")
        return EXIT_INTERRUPTED
    except OSError as error:
        if not is_storage_fault(error):
            raise
        err.print(f"error: {storage_words(error)}; what is finished is kept", style="red", markup=False)
        return EXIT_INPUT
    return returned if isinstance(returned, int) else EXIT_OK
