"""Reads from the command line what an evaluation consists of: threat models, their budgets, attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from erat.attacks.ensemble import LEAST_CLASSES
from erat.data.types import ImageSet
from erat.errors import UserError, listed, shown
from erat.options import NORMS, parse_fraction
from erat.robustness.curve import ATTACKS, SHARES, Protocol

MOST_BUDGETS = 50  # of one threat model
SEED = 0  # of the random starts; the same for all runs, so that they are compared under the same attacks


def read_protocol(
    threats: str | None,
    budgets: Sequence[str],
    attacks: str,
    *,
    customary: Mapping[str, float],
    images: ImageSet,
) -> Protocol:
    """Return the protocol that options ask for.

    Args:
        threats: names of threat models, with commas; None: those of `budgets`, or if there are none, all that have a
            customary budget.
        budgets: words such as "linf=4/255,8/255"; a threat model without one gets shares of its customary budget.
        attacks: names of attacks, with commas.
        customary: the customary budgets of the data set.
        images: the images that will be attacked.

    Raises:
        UserError: a name is unknown or there twice, a budget is out of range or missing, or there are too few classes
            for an attack.
    """
    pixels = images.size**2
    given = dict(_budgets(word, pixels) for word in budgets)
    if len(given) < len(budgets):
        raise UserError(f"--budgets must name each threat model once, got {shown(' '.join(budgets))}")
    known = [name for name in NORMS if name in customary]
    names = _names("--threats", threats, list(NORMS)) if threats is not None else list(given) or known
    if unused := [name for name in given if name not in names]:
        raise UserError(f"--budgets {unused[0]} has no use: --threats must list it too, got {shown(threats)}")
    chosen: dict[str, tuple[float, ...]] = {}
    for name in sorted(names, key=list(NORMS).index):
        if name not in given and name not in customary:
            raise UserError(f"{name} has no customary budget on this data set: give it, --budgets {name}=SIZE,SIZE")
        chosen[name] = given.get(name) or shares(name, customary[name], pixels)
    wanted = _names("--attacks", attacks, list(ATTACKS))
    if "standard" in wanted and images.num_classes < LEAST_CLASSES:
        raise UserError(f"--attacks standard needs at least {LEAST_CLASSES} classes, got {images.num_classes}")
    protocol = Protocol(chosen, tuple(attack for attack in ATTACKS if attack in wanted), SEED)
    if idle := [name for name in chosen if not protocol.of(name)]:
        raise UserError(f"--attacks {attacks} has none for {idle[0]}: allowed with it: pgd, apgd")
    return protocol


def shares(name: str, customary: float, pixels: int) -> tuple[float, ...]:
    """Return the budgets of a threat model if none are given: shares of its customary budget, within its range."""
    if name == "l0":
        return tuple(sorted({float(min(max(1, round(share * customary)), pixels)) for share in SHARES}))
    most = 1.0 if name == "linf" else math.inf
    return tuple(sorted({min(share * customary, most) for share in SHARES}))


def _names(option: str, words: str, allowed: Sequence[str]) -> list[str]:
    names = words.split(",")
    for name in names:
        if name not in allowed:
            raise UserError(f"{option} must list some of {listed(allowed)} with commas, got {shown(words)}")
    if len(set(names)) < len(names):
        raise UserError(f"{option} must name each once, got {shown(words)}")
    return names


def _budgets(word: str, pixels: int) -> tuple[str, tuple[float, ...]]:
    """Read a word such as "linf=4/255,8/255"; return the threat model and its budgets, ascending, each once."""
    name, equals, values = word.partition("=")
    if name not in NORMS or not equals:
        raise UserError(f"--budgets must be NAME=SIZE,SIZE with a name of {listed(list(NORMS))}, got {shown(word)}")
    sizes = {_size(name, value, pixels) for value in values.split(",")}
    if len(sizes) > MOST_BUDGETS:
        raise UserError(f"--budgets {name} must list at most {MOST_BUDGETS} sizes, got {len(sizes)}")
    return name, tuple(sorted(sizes))


def _size(name: str, text: str, pixels: int) -> float:
    try:
        size = float(parse_fraction(text))  # type: ignore[arg-type]
    except ValueError:
        size = math.nan
    if name == "l0" and not (size.is_integer() and 1 <= size <= pixels):
        raise UserError(f"--budgets l0 must be whole numbers of pixels in [1, {pixels}], got {shown(text)}")
    most = 1.0 if name == "linf" else 1e6
    if not 0 < size <= most:
        raise UserError(f"--budgets {name} must be numbers in (0, {most:g}], got {shown(text)}")
    return size
