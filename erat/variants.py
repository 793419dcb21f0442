"""Name variants of defenses, which differ in a few settings only: ERAT's ablations, and combinations of parts.

`defense.name=erat_inf` means `defense.name=erat defense.norms=linf` and is the same run.
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
        title: the name in tables.
        defense: the name of the registered defense.
        options: the changed settings: keys without the prefix `defense.`, with their values.
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
    # Unpublished combinations of parts of several papers
    "at_dividemix": Variant("AT+DivideMix", "dividemix", {"adversarial": True}),
    "at_unicon": Variant("AT+UNICON", "unicon", {"adversarial": True}),
    "iss_dividemix": Variant("ISS+DivideMix", "dividemix", {"squeeze": "jpeg"}),
    "iss_erat": Variant("ISS+ERAT", "erat", {"squeeze": "jpeg"}),
    "erat_jsd": Variant("ERAT, UNICON's selection", "erat", {"selector": "jsd"}),
    # Single parts on plain training
    "ueraser": Variant("UEraser, AutoAugment", "ce", {"strong": True, "worst_of": 5}),
    # One view in place of five, and with JPEG after it
    "ueraser_lite": Variant("UEraser-lite", "ueraser_max", {"worst_of": 1, "view_jpeg": 0}),
    "augment_jpeg": Variant("Augment+JPEG", "ueraser_max", {"worst_of": 1, "view_jpeg": 10}),
    "elr": Variant("ELR", "ce", {"criterion": "elr"}),
}


_TITLES = {"dividemix": "DivideMix", "ueraser_max": "UEraser-max"}  # of others: names in capitals
_AT = {"linf": "AT∞", "l2": "AT2"}  # titles where a table sets the norm of adversarial training itself


def defense_names() -> list[str]:
    """Return all names that `defense.name` accepts."""
    return [*DEFENSES.names(), *VARIANTS]


def registered(name: str) -> str:
    """Return the name of the registered defense that a name stands for.

    Raises:
        UserError: the name is neither a defense nor a variant; the message lists near matches.
    """
    if name in DEFENSES:
        return name
    if name not in VARIANTS:
        raise unknown_name("defense", name, defense_names())
    return VARIANTS[name].defense


def expand(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides with a variant's name replaced by its defense and settings; given settings take precedence.

    Raises:
        UserError: as for `registered`.
    """
    name = str(overrides.get("defense.name", "erat"))
    if registered(name) == name:
        return dict(overrides)
    variant = VARIANTS[name]
    settings = {f"defense.{key}": value for key, value in variant.options.items()}
    return settings | dict(overrides) | {"defense.name": variant.defense}


def title_of(settings: Mapping[str, Any]) -> str | None:
    """Return the title in tables of the variant that a flat configuration is; None if it is not a variant."""
    found = [
        variant.title
        for variant in VARIANTS.values()
        if settings.get("defense.name", "erat") == variant.defense
        and all(settings.get(f"defense.{key}") == value for key, value in variant.options.items())
    ]
    return ", ".join(found) or None


def defense_name(settings: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> str:
    """Return the title in tables of a flat configuration's defense: "CE", "ERAT w/o AT", "AT+UNICON", …

    Args:
        settings: the flat configuration.
        chosen: the settings that were chosen for this run itself; the title names the norm of AT if it is among them,
            and not if AT takes it from the poison.
    """
    name = str(settings["defense.name"])
    plain = _TITLES.get(name, name.upper())
    if name == "at":
        plain = _AT.get(str((chosen or {}).get("defense.norms")), plain)
    return title_of(settings) or plain
