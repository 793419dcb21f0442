"""Makes text from file names, classes and messages safe for a terminal, which would obey their control characters."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.text import Text

# C0 and C1 (ESC, CSI and the like) but not tabs and line ends, and characters that reverse the direction of writing.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("[\n\u2028\u2029]")


def program() -> str:
    """Return the command with which a user starts this program: that of a clone, or, where it is installed, `erat`."""
    return "erat" if Path(sys.argv[0]).stem == "erat" else "python orchestrate.py"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def harmless(text: str) -> str:
    r"""Return `text` with control characters escaped, such as ESC as \x1b; tabs and line ends are kept."""
    return _COMMANDS.sub(_escaped, text)


def one_line(text: object) -> str:
    r"""Return `text` as `harmless` does, with line ends escaped too, as \n."""
    return _LINE_ENDS.sub(_escaped, harmless(str(text)))


class Terminal(Console):
    """A console that escapes control characters in all that is printed, because rich lets most of them through.

    The sequences for colours and cursor movements come from rich itself; it adds them later or marks them as control.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Render as rich does, but take a text that only looks like markup, such as a name `[/x]`, literally."""
        try:
            return super().render_str(text, **options)
        except MarkupError:
            return super().render_str(text, **options | {"markup": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))
