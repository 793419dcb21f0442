"""The settings of a search that are given beside its space, on the command line or in Python, and how they are read."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from erat.config import first_error
from erat.errors import UserError, shown
from erat.options import MOST_EPOCHS
from orchestration.study import MOST_TRIALS
from orchestration.study.entries import as_begun
from orchestration.study.ledger import Ledger
from orchestration.study.registries import SAMPLERS
from orchestration.study.spaces import Confirmation, SearchSpace
from orchestration.study.spec import StudySpec

STARTUP = 10  # results before a model is made of them, in a space with few points or none


def with_settings(
    space: SearchSpace,
    *,
    sampler: str | None = None,
    pruner: str | None = None,
    window: int | str | None = None,
    rungs: Sequence[int] | str | None = None,
    confirm: Confirmation | Mapping[str, int] | int | str | None = None,
) -> SearchSpace:
    """Return the space with these settings on top of its own; None leaves a setting as it is.

    Args:
        space: the search space.
        sampler: name of the sampler.
        pruner: name of the pruner. Rungs of the space are set back to "auto" if it makes no use of them.
        window: number of trials, or "auto".
        rungs: epochs, as whole numbers or as "30,60"; or "auto". They need a pruner that uses them.
        confirm: numbers of trials and seeds, as `{"top": 3, "seeds": 5}` or as "3x5"; 3 is "3x3"; or "none" or
            "auto".

    Raises:
        UserError: A value is not allowed, or the space is a list of runs, which has no search.
    """
    given = {"sampler": sampler, "pruner": pruner, "window": window, "rungs": rungs, "confirm": confirm}
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return _warned(space)
    if not space.parameters:
        raise no_search(next(iter(given)), space.name, next(iter(given.values())))
    update: dict[str, Any] = {key: _READERS[key](value) if key in _READERS else value for key, value in given.items()}
    try:
        changed = SearchSpace.model_validate(dict(space) | update)
    except ValidationError as error:
        raise UserError(first_error(error)) from error
    if changed.reads("rungs") is False and rungs is not None:
        raise UserError(f"rungs are of the pruner halving, the pruner is {changed.pruner}; got {shown(given['rungs'])}")
    if changed.reads("rungs") is False and pruner is not None:
        changed = changed.model_copy(update={"rungs": "auto"})
    return _warned(changed)


def _warned(space: SearchSpace) -> SearchSpace:
    """Return the space; warn of settings that its sampler and its pruner make no use of, unless they say the usual."""
    if not space.parameters:
        return space
    unused = [(f"pruner {space.pruner}", key) for key in ("grace", "block") if space.reads(key) is False]
    if not SAMPLERS.abilities(space.sampler).startup:
        unused.append((f"sampler {space.sampler}", "startup"))
    for who, key in unused:
        if (value := getattr(space, key)) != SearchSpace.model_fields[key].default:
            warnings.warn(f"the {who} makes no use of {key}, got {value}", stacklevel=3)
    return space


def no_search(what: str, name: str, got: object) -> UserError:
    """Return the error that a setting of a search was given to a list of runs."""
    return UserError(f"{what} can be given for a search only, and {name} is a list of runs; got {shown(got)}")


def begin_as(spec: StudySpec, slots: int, trials: int) -> StudySpec:
    """Return the specification of a search with the window and startup that "auto" stands for.

    Args:
        spec: the specification.
        slots: number of trials that run at a time.
        trials: number of trials of the search, without the listed runs.
    """
    if spec.search is None:
        return spec
    space, update = spec.space, dict[str, int]()
    if space.window == "auto":
        # A few proposals after many points are to see most of these, for which they wait where there are many slots.
        update["window"] = _window_for(slots, trials - len(space.points))
    if space.startup == "auto":
        update["startup"] = startup_of(space)
    return replace(spec, space=space.model_copy(update=update)) if update else spec


def settled(ledger: Ledger, name: str, spec: StudySpec, slots: int, trials: int) -> tuple[StudySpec, dict[int, int]]:
    """Return the specification that a study was begun with, or now begins with, and the windows of its trials.

    A search that is extended keeps the window of the trials that it has. With "auto", the further ones have a window of
    their own, which follows from their number and the cluster that they begin on.

    Args:
        ledger: the ledger.
        name: name of the study.
        spec: its specification as it was asked for.
        slots: number of trials that run at a time.
        trials: number of trials of the search, without the listed runs.

    Returns:
        The specification, and number of trials of the search -> window of those that follow the next smaller number.
    """
    begun = begin_as(as_begun(ledger, name, spec), slots, trials)
    if begun.search is None:
        return begun, {}
    record = ledger.studies.get(name)
    if record is None:
        return begun, windows_of(begun, [trials], {})
    extended = trials > record.trials
    own = {trials: _window_for(slots, trials - max(record.trials, len(spec.space.points)))}
    windows = record.windows | (own if extended and spec.space.window == "auto" else {})
    return begun, windows_of(begun, [*record.totals, *[trials] * extended], windows)


def windows_of(spec: StudySpec, totals: Iterable[int], own: Mapping[int, int]) -> dict[int, int]:
    """Return number of trials -> window, for the numbers that were asked for; see `settled`.

    Args:
        spec: the specification. Without a search there are no windows.
        totals: the numbers of trials that were asked for, ascending.
        own: those of them that have another window than the specification says -> their window.
    """
    window = spec.space.window
    return {} if spec.search is None or window == "auto" else {total: own.get(total, window) for total in totals}


def warn_if_narrow(spec: StudySpec, slots: int, windows: Mapping[int, int]) -> None:
    """Warn that a window, settled on a smaller cluster or given, leaves slots idle.

    Args:
        spec: the specification.
        slots: number of trials that run at a time.
        windows: as `settled` returns them.
    """
    if not windows:
        return
    *_, before, trials = [0, 0, *windows]
    window, proposals = windows[trials], trials - max(before, len(spec.space.points))
    if window + 1 < min(slots, proposals):
        warnings.warn(
            f"with the window {window}, at most {window + 1} proposals run at a time, and {slots} would fit; a study "
            "under another --name begins with a window of its own",
            stacklevel=2,
        )


def startup_of(space: SearchSpace) -> int:
    """Return the number of results before which a study of this space draws its proposals at random."""
    if space.startup != "auto":
        return space.startup
    enough = len(space.points) >= 2 * len(space.parameters)  # for a model of so many dimensions
    return len(space.points) if enough else STARTUP


def _window_for(slots: int, proposals: int) -> int:
    return max(1, min(2 * slots, proposals))


def setting_words(space: SearchSpace, windows: Mapping[int, int] | None = None) -> str:
    """Return the settings of a search as one line for a person, with the windows that extensions have, if any."""
    rungs = space.rungs if space.rungs == "auto" else ", ".join(map(str, space.rungs)) or "none"
    confirm = (
        f"top {space.confirm.top} with {space.confirm.seeds} seeds each"
        if isinstance(space.confirm, Confirmation)
        else space.confirm
    )
    parts = [f"sampler {space.sampler}", f"pruner {space.pruner}", f"window {space.window}{_further(windows or {})}"]
    parts += [f"rungs {rungs}"] * bool(space.reads("rungs"))
    return " · ".join([*parts, f"confirm {confirm}"])


def _further(windows: Mapping[int, int]) -> str:
    """Return the windows that differ from those before them, and the number of trials that each follows."""
    pairs = itertools.pairwise(windows.items())
    return "".join(f", {window} after {before} trials" for (before, last), (_, window) in pairs if window != last)


def setting_values(space: SearchSpace) -> dict[str, Any]:
    """Return the settings of a search as `--json` prints them."""
    kept = {"sampler", "pruner", "window", "startup", "grace", "rungs", "block", "confirm", "objective"}
    return space.model_dump(mode="json", include=kept)


def _window(value: Any) -> Any:
    allowed = f"a whole number in [1, {MOST_TRIALS}] or auto"
    return value if value == "auto" else _whole("window", value, value, allowed, MOST_TRIALS)


def _rungs(value: Any) -> Any:
    allowed = f"epochs in [1, {MOST_EPOCHS}], such as 30,60, or auto"
    if value == "auto":
        return value
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not parts:
        raise UserError(f"rungs must be {allowed}, got {shown(value)}")
    return [_whole("rungs", part, value, allowed, MOST_EPOCHS) for part in parts]


def _confirm(value: Any) -> Any:
    if value in ("none", "auto") or isinstance(value, Confirmation):
        return value
    if isinstance(value, Mapping):
        content = dict(value)
    else:
        top, times, seeds = str(value).partition("x")
        parts = {"top": top} | ({"seeds": seeds} if times else {})
        allowed = "TOPxSEEDS, such as 3x5, none or auto"
        content = {key: _whole("confirm", part, value, allowed) for key, part in parts.items()}
    try:
        return Confirmation.model_validate(content)
    except ValidationError as error:
        raise UserError(f"confirm.{first_error(error)}") from error


def _whole(key: str, part: Any, value: Any, allowed: str, most: int | None = None) -> int:
    """Return a part of the value of a setting as a whole number, from 1 to `most` if that is given."""
    number = part if isinstance(part, int) and not isinstance(part, bool) else None
    if isinstance(part, str) and len(part) <= 20 and part.strip().isascii() and part.strip().isdigit():
        number = int(part)
    if number is None or (most is not None and not 1 <= number <= most):
        raise UserError(f"{key} must be {allowed}, got {shown(value)}")
    return number


_READERS = {"window": _window, "rungs": _rungs, "confirm": _confirm}
