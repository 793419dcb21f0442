"""Register your own defenses, corruptions, data sets and backbones under names that a configuration can choose.

Each function is a decorator, `@register_defense("mine")`, or is called with the part, `register_defense("mine", Mine)`.
The part may also be given as "package.module:attribute"; it is then imported when a run first needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

from erat import plugins
from erat.errors import UserError, shown
from erat.keys import known_keys
from erat.options import DefenseOptions
from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES, BackboneBuilder, Registry
from erat.variants import VARIANTS

if TYPE_CHECKING:
    from erat.corruption.base import DataCorruption
    from erat.data.types import ImageSource
    from erat.defenses.base import Defense

P = TypeVar("P")
D = TypeVar("D", bound="type[Defense]")
C = TypeVar("C", bound="DataCorruption | type[DataCorruption]")
S = TypeVar("S", bound="ImageSource | type[ImageSource]")
B = TypeVar("B", bound=BackboneBuilder)

REGISTRIES: dict[str, Registry[Any]] = {one.kind: one for one in (DATASETS, CORRUPTIONS, DEFENSES, BACKBONES)}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,59}")


@overload
def register_defense(name: str, *, replace: bool = False) -> Callable[[D], D]: ...
@overload
def register_defense(name: str, part: D, *, replace: bool = False) -> D: ...
@overload
def register_defense(name: str, part: str, *, known: str | None = None, replace: bool = False) -> str: ...
def register_defense(name: str, part: Any = None, *, known: str | None = None, replace: bool = False) -> Any:
    """Register a subclass of `Defense` as `defense.name=NAME`; its `Options` are the keys `defense.*`.

    Args:
        name: the name: lower-case letters, digits, "_" and "-", beginning with a letter, at most 60 characters.
        part: the class, or "module:attribute"; None: a decorator is returned.
        known: for a part given as "module:attribute", the place of its `Options` in the same form, so that a program
            that only reads configurations need load neither the part nor torch.
        replace: replace a part of yours with this name, for instance when a notebook cell is run again.

    Returns:
        The part as it was given, or the decorator.

    Raises:
        UserError: the name is taken or malformed, or the class is not a defense of this name.
    """
    return register_part(DEFENSES, name, part, _check_defense, replace, known)


@overload
def register_corruption(name: str, *, replace: bool = False) -> Callable[[C], C]: ...
@overload
def register_corruption(name: str, part: C, *, replace: bool = False) -> C: ...
@overload
def register_corruption(name: str, part: str, *, known: str | None = None, replace: bool = False) -> str: ...
def register_corruption(name: str, part: Any = None, *, known: str | None = None, replace: bool = False) -> Any:
    """Register a `DataCorruption` as `corruption.data=NAME`: an object, or a class that is called without arguments.

    Its `kind` must be equal to the name, and is set to it if it has none. Arguments, result and errors are those of
    `register_defense`; `known` is the place of a `CorruptionKind`.
    """
    return register_part(CORRUPTIONS, name, part, _made_corruption, replace, known)


@overload
def register_dataset(name: str, *, replace: bool = False) -> Callable[[S], S]: ...
@overload
def register_dataset(name: str, part: S, *, replace: bool = False) -> S: ...
@overload
def register_dataset(name: str, part: str, *, known: str | None = None, replace: bool = False) -> str: ...
def register_dataset(name: str, part: Any = None, *, known: str | None = None, replace: bool = False) -> Any:
    """Register an `ImageSource` as `data.name=NAME`: an object, or a class that is called without arguments.

    It has `facts` (`SourceFacts`) and `load(config) -> (train, test)`, two `ImageSet`. Arguments, result and errors are
    those of `register_defense`; `known` is the place of the facts.
    """
    return register_part(DATASETS, name, part, _made_dataset, replace, known)


@overload
def register_backbone(name: str, *, replace: bool = False) -> Callable[[B], B]: ...
@overload
def register_backbone(name: str, part: B, *, replace: bool = False) -> B: ...
@overload
def register_backbone(name: str, part: str, *, replace: bool = False) -> str: ...
def register_backbone(name: str, part: Any = None, *, replace: bool = False) -> Any:
    """Register a function (num_classes, channels, image_size) -> `nn.Module` as `model.name=NAME`.

    The module maps normalised float images (B, C, H, W) to logits (B, K). Arguments, result and errors are those of
    `register_defense`.
    """
    return register_part(BACKBONES, name, part, _check_backbone, replace)


@contextmanager
def temporary_registrations(*more: Registry[Any]) -> Iterator[None]:
    """Undo, at the end of a `with` block, all registrations made in it; for tests.

    Args:
        more: registries besides those of `REGISTRIES` that this concerns.
    """
    plugins.load()  # plugins loaded inside the block would lose their parts at its end and never be loaded again
    tables = ("_targets", "_places", "_loaded", "_asides", "_added")
    before = {one: {table: dict(getattr(one, table)) for table in tables} for one in (*REGISTRIES.values(), *more)}
    try:
        yield
    finally:
        for one, kept in before.items():
            vars(one).update(kept)
        known_keys.cache_clear()


def register_part(
    registry: Registry[Any],
    name: str,
    part: Any,
    made: Callable[[str, Any], object],
    replace: bool,
    known: str | None = None,
) -> Any:
    """Register a part in any registry, or return the decorator that does so; the functions above build on it.

    Args:
        registry: the registry.
        name, part, replace, known: as for `register_defense`.
        made: name and part -> the object to register; it raises a `UserError` if the part is none of this registry.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or name == "none":
        raise UserError(
            f"the name of a {registry.kind} must be lower-case letters, digits, '_' and '-', beginning with a letter, "
            f"at most 60, and not none; got {shown(name)}"
        )

    def add(given: P) -> P:
        target = given if isinstance(given, str) else made(name, given)
        if replace and name in registry:
            if name in registry.own:  # its name is in the identity of runs: another part must not pass for it
                raise UserError(f"{registry.kind} {name!r} comes with erat and cannot be replaced; choose another name")
            registry.remove(name)
        registry.add(name, target, known)
        known_keys.cache_clear()
        return given

    if registry is DEFENSES and name in VARIANTS:
        raise UserError(f"defense {name!r} is registered twice: it is {VARIANTS[name].title} already")
    return add if part is None else add(part)


def _check_defense(name: str, part: Any) -> Any:
    from erat.defenses.base import Defense

    if not (isinstance(part, type) and issubclass(part, Defense)):
        raise UserError(f"defense {name!r} must be a subclass of erat.Defense, got {shown(part)}")
    options = getattr(part, "Options", None)
    if not (isinstance(options, type) and issubclass(options, DefenseOptions)):
        got = "none" if options is None else shown(options)
        raise UserError(f"defense {name!r} must have Options, a subclass of erat.DefenseOptions; got {got}")
    allowed = get_args(options.model_fields["name"].annotation)
    if allowed and name not in allowed:
        raise UserError(
            f'the Options of defense {name!r} must say name: Literal["{name}"] = "{name}" (or name: str), '
            f"got {' or '.join(map(str, allowed))}"
        )
    return part


def _made_corruption(name: str, part: Any) -> Any:
    from erat.corruption.base import DataCorruption

    kind = part if isinstance(part, type) else type(part)
    if not issubclass(kind, DataCorruption):
        raise UserError(f"data corruption {name!r} must be an erat.DataCorruption, got {shown(part)}")
    if not hasattr(kind, "kind"):
        kind.kind = name
    if kind.kind != name:
        raise UserError(f"the kind of data corruption {name!r} must be its name, got {kind.kind!r}")
    return part() if isinstance(part, type) else part


def _made_dataset(name: str, part: Any) -> Any:
    from erat.data.facts import SourceFacts

    source = part() if isinstance(part, type) else part
    if not (isinstance(getattr(source, "facts", None), SourceFacts) and callable(getattr(source, "load", None))):
        raise UserError(f"data set {name!r} must have facts (erat.SourceFacts) and a method load, got {shown(part)}")
    return source


def _check_backbone(name: str, part: Any) -> Any:
    if not callable(part):
        raise UserError(f"backbone {name!r} must be a function that returns a network, got {shown(part)}")
    return part
