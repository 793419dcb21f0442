"""How a command line ends and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Said:
    """How a command ended and what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, the only one there."""
        (line,) = self.out.splitlines()
        content: dict[str, Any] = json.loads(line)
        return content


Command = Callable[..., Said]
