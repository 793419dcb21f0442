"""Register samplers and pruners of one's own under names that a space and the command line can choose.

Like the functions of `erat.registration`, these are decorators, or are called with the part, which may also be given as
"package.module:attribute". Samplers and pruners work in the driver alone and do not travel to Ray's workers.
"""

from __future__ import annotations

from typing import Any

from erat.errors import UserError, shown
from erat.registration import register_part
from orchestration.study.abilities import PRUNING, Abilities
from orchestration.study.registries import PRUNERS, SAMPLERS


def register_sampler(name: str, part: Any = None, *, known: str | None = None, replace: bool = False) -> Any:
    """Register a sampler as `sampler: NAME` of a space.

    Args:
        name: the name: lower-case letters, digits, "_" and "-", beginning with a letter, at most 60 characters.
        part: a class that is called as `orchestration.search.samplers.OptunaSampler` and has the methods of `Sampler`,
            or "module:attribute"; None: a decorator is returned. Its attribute `abilities`, an `Abilities`, says which
            spaces it cannot search.
        known: for a part given as "module:attribute", the place of its abilities in the same form, so that commands
            which only read a space need not load the sampler.
        replace: replace a part of yours with this name, for instance when a notebook cell is run again.

    Returns:
        The part as it was given, or the decorator.

    Raises:
        UserError: the name is taken or malformed, or the part is no sampler.
    """
    return register_part(SAMPLERS, name, part, _check_sampler, replace, known)


def register_pruner(name: str, part: Any = None, *, replace: bool = False) -> Any:
    """Register a subclass of `Pruner` as `pruner: NAME` of a space.

    Arguments, result and errors are those of `register_sampler`.
    """
    return register_part(PRUNERS, name, part, _check_pruner, replace)


def _check_sampler(name: str, part: Any) -> Any:
    missing = [method for method in ("given", "propose", "tell") if not callable(getattr(part, method, None))]
    if not callable(part) or missing:
        raise UserError(f"sampler {name!r} must be a class with given, propose and tell, got {shown(part)}")
    if not isinstance(getattr(part, "abilities", Abilities()), Abilities):
        raise UserError(f"the abilities of sampler {name!r} must be an Abilities, got {shown(part.abilities)}")
    return part


def _check_pruner(name: str, part: Any) -> Any:
    from orchestration.search.pruners import Pruner  # loads NumPy, which whoever gives a class has loaded

    if not (isinstance(part, type) and issubclass(part, Pruner)):
        raise UserError(f"pruner {name!r} must be a subclass of orchestration.Pruner, got {shown(part)}")
    said = part.settings
    if said is not None and not (isinstance(said, tuple) and all(name in PRUNING for name in said)):
        raise UserError(f"the settings of pruner {name!r} must be names out of {', '.join(PRUNING)}, got {shown(said)}")
    return part
