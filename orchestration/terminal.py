"""What reaches a terminal: text of file names, classes and messages without the control characters that command it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.text import Text

# C0 and C1 (ESC, CSI and the like) but tabs and line ends, and what turns the direction of writing round.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("[\n\u2028\u2029]")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def harmless(text: str) -> str:
    r"""Return `text` with control characters written out, ESC as \x1b; tabs and line ends stay."""
    return _COMMANDS.sub(_escaped, text)


def one_line(text: object) -> str:
    r"""Return what `harmless` returns, with line ends written out, too: \n."""
    return _LINE_ENDS.sub(_escaped, harmless(str(text)))


class Terminal(Console):
    """A console that writes control characters out, whatever is printed: rich lets most of them through.

    The colours and the cursor's movements are rich's own and come later, or are marked as such.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's; a text that only looks like markup, such as a name `[/x]`, is taken as it is."""
        try:
            return super().render_str(text, **options)
        except MarkupError:
            return super().render_str(text, **options | {"markup": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))
