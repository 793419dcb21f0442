"""Names for defenses that are another one with a few settings changed: ERAT's ablations, and combinations of parts.

`defense.name=erat_inf` reads as `defense.name=erat defense.norms=linf`, and is the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from erat.errors import unknown_name
from erat.registry import DEFENSES


@dataclass(frozen=True)
class Variant:
    """A named override.

    Attributes:
        title: as tables write it.
        defense: the registered defense.
        options: its keys without `defense.`.
    """

    title: str
    defense: str
    options: Mapping[str, Any]


VARIANTS: dict[str, Variant] = {
    # Table VI of the paper
    "erat_inf": Variant("ERAT∞", "erat", {"norms": "linf"}),
    "erat_2": Variant("ERAT2", "erat", {"norms": "l2"}),
    "erat_ce_score": Variant("ERAT w/ CE", "erat", {"score": "ce"}),
    "erat_no_rb": Variant("ERAT w/o RB", "erat", {"rebalance": False}),
    "erat_no_uni": Variant("ERAT w/o Uni", "erat", {"uniform": False}),
    "erat_no_aug": Variant("ERAT w/o Aug", "erat", {"strong": False}),
    "erat_no_at": Variant("ERAT w/o AT", "erat", {"adversarial": False}),
    "erat_no_ss": Variant("ERAT w/o SS", "erat", {"selection": False}),
    # Parts of several papers together; nobody published these
    "at_dividemix": Variant("AT+DivideMix", "dividemix", {"adversarial": True}),
    "at_unicon": Variant("AT+UNICON", "unicon", {"adversarial": True}),
    "iss_dividemix": Variant("ISS+DivideMix", "dividemix", {"squeeze": "jpeg"}),
    "iss_erat": Variant("ISS+ERAT", "erat", {"squeeze": "jpeg"}),
    "erat_jsd": Variant("ERAT, UNICON's selection", "erat", {"selector": "jsd"}),
    # Single parts on plain training
    "ueraser": Variant("UEraser", "ce", {"strong": True, "worst_of": 5}),
    "elr": Variant("ELR", "ce", {"criterion": "elr"}),
}


_TITLES = {"dividemix": "DivideMix"}  # all others in capitals
_AT = {"linf": "AT∞", "l2": "AT2"}  # where a table sets adversarial training's norm and does not leave it to the poison


def defense_names() -> list[str]:
    """All that `defense.name` takes."""
    return [*DEFENSES.names(), *VARIANTS]


def registered(name: str) -> str:
    """The defense that a name stands for.

    Raises:
        UserError: neither a defense nor a variant; the message lists near matches.
    """
    if name in DEFENSES:
        return name
    if name not in VARIANTS:
        raise unknown_name("defense", name, defense_names())
    return VARIANTS[name].defense


def expand(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which no variant is named: its settings stand in its place, behind those that were given.

    Raises:
        UserError: as `registered`.
    """
    name = str(overrides.get("defense.name", "erat"))
    if registered(name) == name:
        return dict(overrides)
    variant = VARIANTS[name]
    settings = {f"defense.{key}": value for key, value in variant.options.items()}
    return settings | dict(overrides) | {"defense.name": variant.defense}


def title_of(settings: Mapping[str, Any]) -> str | None:
    """What tables call a flat configuration; none where it is no variant."""
    found = [
        variant.title
        for variant in VARIANTS.values()
        if settings.get("defense.name", "erat") == variant.defense
        and all(settings.get(f"defense.{key}") == value for key, value in variant.options.items())
    ]
    return ", ".join(found) or None


def defense_name(settings: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> str:
    """Return what tables call the defense of a flat configuration: "CE", "ERAT w/o AT", "AT+UNICON", …

    Args:
        chosen: what was set for this run alone; a norm that AT was given, and did not take from the poison, is named.
    """
    name = str(settings["defense.name"])
    plain = _TITLES.get(name, name.upper())
    if name == "at":
        plain = _AT.get(str((chosen or {}).get("defense.norms")), plain)
    return title_of(settings) or plain
