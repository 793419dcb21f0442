"""Tests that control characters in names and messages are written out wherever these are printed."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from erat.errors import UserError
from orchestration.commands import console
from orchestration.report.crafting import CraftLines
from orchestration.report.live import LiveView
from orchestration.report.summary import paste_command
from orchestration.terminal import Terminal, harmless, one_line, program
from tests.trials import make_trial

TITLE = "\x1b]0;owned\x1b\\"  # this sequence sets the title of a window
EVIL = f"a{TITLE}\x9b31m\x1b[2Jb\u202egnp.exe"
WRITTEN = r"a\x1b]0;owned\x1b\\x9b31m\x1b[2Jb\u202egnp.exe"


def test_control_characters_are_written_out() -> None:
    assert harmless(EVIL) == WRITTEN
    assert harmless("Käfer\t日本 ∞ ±\n") == "Käfer\t日本 ∞ ±\n"
    assert one_line("a\nb\u2028c\rd") == r"a\nb\u2028c\rd"
    assert harmless("\udce4") == "\udce4", "a byte that is no character is for the stream to write"


@pytest.mark.parametrize("colours", [True, False])
def test_whatever_is_printed(colours: bool) -> None:
    stream = io.StringIO()
    console = Terminal(
        highlight=False, file=stream, force_terminal=colours, color_system="standard" if colours else None, width=200
    )
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL, style="red"))
    for thing in (EVIL, Text(EVIL), "[/x]", table):
        console.print(thing, style="bold")
        console.print(thing, end="", soft_wrap=True)
    written = stream.getvalue()
    assert TITLE not in written and "\x9b" not in written and "\x1b[2J" not in written
    assert written.count(WRITTEN) >= 4
    assert "[/x]" in written
    assert ("\x1b[" in written) == colours, "its own colours stay"


def test_errors_and_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", Terminal(file=stream, soft_wrap=True, highlight=False))

    def fail() -> None:
        raise UserError(f"no such class {EVIL}\nerror: forged")

    assert console.guarded(fail) == 2
    record = logging.LogRecord("", 0, "", 0, f"x.py:1: UserWarning: skipped {EVIL}\n  code\n", (), None)
    console._show_own_warning(record)
    console.show_failure(f"[bold]{EVIL}", Path("/none"))
    assert stream.getvalue().splitlines() == [
        rf"error: no such class {WRITTEN}\nerror: forged",
        f"warning: skipped {WRITTEN}",
        f"  [bold]{WRITTEN}",
    ]


def test_lines_and_live_tables() -> None:
    lines = io.StringIO()
    CraftLines(lines).show(EVIL, EVIL, 1, 2)
    row = make_trial(1, "c", {"defense.name": EVIL}, source="search", epochs=2, status="failed", error=f"Error: {EVIL}")
    with LiveView(EVIL, ["defense.name"], 1, stream=lines) as view:
        view.note(EVIL)
        view.update([row])
    assert TITLE not in lines.getvalue() and "\x9b" not in lines.getvalue()
    assert lines.getvalue().count(WRITTEN) >= 4


@pytest.mark.parametrize(
    ("started", "words"),
    [
        ("/opt/site/bin/erat", "erat"),
        ("C:/site/Scripts/erat.exe", "erat"),
        ("orchestrate.py", "python orchestrate.py"),
        ("", "python orchestrate.py"),
    ],
)
def test_commands_are_told_as_the_program_was_started(
    started: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [started, "status"])
    assert program() == words
    again = f"{words} train --preset demo defense.eta=0.3"
    assert paste_command(make_trial(0, params={"defense.eta": 0.3}), "demo", {}) == again
