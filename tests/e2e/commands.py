"""Represents the exit status and the output of a command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Said:
    """The exit status and the output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """Return the last line of standard output, which must be its only line, as JSON."""
        (line,) = self.out.splitlines()
        content: dict[str, Any] = json.loads(line)
        return content


Command = Callable[..., Said]
