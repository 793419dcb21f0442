"""How the command meets a person: standard error, exit statuses, warnings and errors of one line each."""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
import typer.core

from erat.errors import TrainingFailedError, UserError, is_storage_fault, shown, storage_words
from orchestration.terminal import Terminal, one_line

# Typer brings click's errors along, under its own roof in newer versions: what BadParameter derives from is one.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_UNFORESEEN, EXIT_INTERRUPTED, EXIT_PIPE = 0, 1, 2, 70, 130, 141
MOST_LINE = 1200  # characters of an error
MOST_LOG = 2**20

err = Terminal(stderr=True, soft_wrap=True, highlight=False)


def stopped(how_to_go_on: str) -> typer.Exit:
    err.print(f"stopped; {how_to_go_on}", markup=False)
    return typer.Exit(EXIT_INTERRUPTED)


def show_failure(reason: str | None, log: Path) -> None:
    """Why a run failed: its reason, and the end of its traceback."""
    from erat.records import read_words  # here: no help page needs what it loads

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


class OnceCommand(typer.core.TyperCommand):
    """A verb that refuses an option of one value which is given twice, where click would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's; the order in which it met the options tells which came twice."""
        met = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in met:
            single = option.param_type_name == "option" and not (option.multiple or option.is_flag)  # type: ignore[attr-defined]
            if single and met.count(option) > 1:
                raise typer.BadParameter("it is given twice; give it once", ctx=ctx, param=option)  # type: ignore[arg-type]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As click's, which would end with the status of a failed run where a pipe is closed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ClosedPipeError(str(error)) from error


class _ClosedPipeError(Exception):
    """A pipe or socket that was written to is closed at the other end."""


def guarded(run: Callable[[], Any]) -> int:
    """Return the exit status of `run`; whatever goes wrong becomes one line.

    What a person can mend says so in its own words. Anything else is a mistake of the program: its traceback goes into
    a file that the line names.
    """
    try:
        returned = run()
    except UserError as error:
        return _refused(str(error), EXIT_INPUT)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the command alone: its help is on the screen already
            return EXIT_INPUT
        words = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return _refused(words, EXIT_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped")
        return EXIT_INTERRUPTED
    except TrainingFailedError as error:
        return _refused(str(error), EXIT_FAILED)
    except Exception as error:
        if isinstance(error, _ClosedPipeError | BrokenPipeError) and _nobody_reads():
            _drop_output()
            return _refused("nobody reads what is written", EXIT_PIPE)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
        if isinstance(error, OSError) and is_storage_fault(error):
            return _refused(f"{storage_words(error)}; what is finished is kept", EXIT_INPUT)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return _refused(f"unforeseen {reason}; all of it, to be reported: {_log_file(error)}", EXIT_UNFORESEEN)
    return returned if isinstance(returned, int) else EXIT_OK


def _nobody_reads() -> bool:
    """Whether whoever read our output has enough, as `head` has."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return bool(watched.poll(0))  # nothing is waited for but an error or the other end's going
    except (OSError, ValueError):
        return False


def _drop_output() -> None:
    """Let what is left to be written go nowhere, or Python would fail over it once more when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(words: str, status: int) -> int:
    line = one_line(words)
    err.print(f"error: {line if len(line) <= MOST_LINE else line[:MOST_LINE] + '...'}", style="red", markup=False)
    return status


def _log_file(error: BaseException) -> Path | str:
    """Write what happened into `ERAT_HOME/logs`, or where that cannot be written among the temporary files."""
    command = " ".join(map(shown, sys.argv))
    trace = "".join(traceback.format_exception(error))
    content = f"{command}\nPython {sys.version}\n\n{trace[:MOST_LOG]}"
    for name in (f"{os.environ.get('ERAT_HOME') or 'runs'}/logs", tempfile.gettempdir()):
        try:
            folder = Path(name).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            path = (folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt").absolute()
            path.write_text(content, encoding="utf-8", errors="backslashreplace")
            return path
        except (OSError, ValueError, RuntimeError):
            continue
    return "nowhere (no folder can be written)"
