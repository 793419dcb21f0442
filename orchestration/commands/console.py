"""Defines how the command line talks to a user: standard error, exit statuses, warnings and errors of one line each."""

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

# Typer includes click's errors, in newer versions under its own name; BadParameter derives from that class.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_UNFORESEEN, EXIT_INTERRUPTED, EXIT_PIPE = 0, 1, 2, 70, 130, 141
MOST_LINE = 1200  # characters of an error message
MOST_LOG = 2**20  # characters of a traceback in a log

err = Terminal(stderr=True, soft_wrap=True, highlight=False)


def stopped(how_to_go_on: str) -> typer.Exit:
    err.print(f"stopped; {how_to_go_on}", markup=False)
    return typer.Exit(EXIT_INTERRUPTED)


def show_failure(reason: str | None, log: Path) -> None:
    """Print why a run failed: the reason, and the end of its traceback from `log`."""
    from erat.records import read_words  # here: no help page needs what it loads

    err.print(f"  {one_line(reason)}", markup=False)
    if (words := read_words(log)) is not None:
        for line in words.splitlines()[-6:]:
            err.print(f"    {line}", style="dim", markup=False)
        err.print(f"  all of it: {log}", markup=False)


def quiet() -> None:
    """Keep messages of other libraries out of standard error, and print warnings as one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_show_own_warning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _show_own_warning(record: logging.LogRecord) -> bool:
    """Print a warning as one line, without its place in the code, which does not help a user."""
    text = record.getMessage().strip().splitlines()[0]
    place, _, message = text.partition("Warning: ")
    err.print(f"warning: {one_line(message or place)}", style="yellow", markup=False)
    return False


class OnceCommand(typer.core.TyperCommand):
    """A verb that refuses an option with one value that is given twice; click would silently use the last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as click does, but refuse an option that occurs twice in the order in which click found the options."""
        met = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in met:
            single = option.param_type_name == "option" and not (option.multiple or option.is_flag)  # type: ignore[attr-defined]
            if single and met.count(option) > 1:
                raise typer.BadParameter("it is given twice; give it once", ctx=ctx, param=option)  # type: ignore[arg-type]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Invoke as click does, but raise another error for a closed pipe, which click would report as a failed run."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ClosedPipeError(str(error)) from error


class _ClosedPipeError(Exception):
    """A pipe or socket was written to after its other end had been closed."""


def guarded(run: Callable[[], Any]) -> int:
    """Call `run` and return its exit status; print any error as one line.

    An error that a user can correct is printed with its own message. Any other error is a bug of the program: its
    traceback goes into a file that the line names.
    """
    try:
        returned = run()
    except UserError as error:
        return _refused(str(error), EXIT_INPUT)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the command without arguments, whose help has been printed
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
            return _refused("the reader of the output has closed it", EXIT_PIPE)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
        if isinstance(error, OSError) and is_storage_fault(error):
            return _refused(f"{storage_words(error)}; what is finished is kept", EXIT_INPUT)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return _refused(f"unforeseen {reason}; all of it, to be reported: {_log_file(error)}", EXIT_UNFORESEEN)
    return returned if isinstance(returned, int) else EXIT_OK


def _nobody_reads() -> bool:
    """Return whether the reader of standard output has closed it, as `head` does once it has enough."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return bool(watched.poll(0))  # with no events, poll reports only errors and a closed other end
    except (OSError, ValueError):
        return False


def _drop_output() -> None:
    """Discard the output that is left to be written, because Python would fail to write it once more when it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(words: str, status: int) -> int:
    line = one_line(words)
    err.print(f"error: {line if len(line) <= MOST_LINE else line[:MOST_LINE] + '...'}", style="red", markup=False)
    return status


def _log_file(error: BaseException) -> Path | str:
    """Write the error to a file in `ERAT_HOME/logs`, or in the folder for temporary files, and return its path."""
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
