"""Which image set a configuration names, and the fingerprint that was found there. Reads nothing; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erat.config import RunConfig
    from erat.options import DataConfig

# What does not decide the content that a source has.
_NOT_CONTENT = {"fingerprint", "limit", "flip", "download"}


def place_of(config: DataConfig) -> str:
    """Return which set a configuration names, whatever its content: name, root and how it is read, as JSON."""
    return config.model_dump_json(exclude=_NOT_CONTENT)


class Recalled:
    """Fills in `data.fingerprint` from what was written down; a set that is not among it stays without.

    Args:
        known: `place_of` a set -> its fingerprint.
    """

    def __init__(self, known: dict[str, str]) -> None:
        self._known = known

    def __call__(self, config: RunConfig) -> RunConfig:
        """Return the configuration with the fingerprint that its image set had."""
        found = self._known.get(place_of(config.data))
        return config if found is None else with_fingerprint(config, found)


def with_fingerprint(config: RunConfig, fingerprint: str) -> RunConfig:
    """Return the configuration on the image set with this fingerprint."""
    return config.model_copy(update={"data": config.data.model_copy(update={"fingerprint": fingerprint})})
