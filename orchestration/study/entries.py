"""The entry of a study in the ledger: it is made, found again and compared, for a study has one specification.

A study can only be continued under its name by the specification that it was begun with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from erat.config import RunConfig, content_digest
from erat.errors import UserError
from orchestration.study.confirmations import expected
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import Confirmation
from orchestration.study.spec import StudySpec, in_generations
from orchestration.study.trial import FINISHED

BEFORE_IDENTITY = "made before the data were part of the identity"
BEFORE_WINDOW = "begun by an earlier version, whose search made its proposals in generations"
ANEW = "to go on, repeat the first command with another --name: finished runs are not repeated"
SETTLED = ("window", "startup")  # settings of a search whose "auto" is settled when a study begins


def register(ledger: Ledger, name: str, spec: StudySpec, trials: int, windows: Mapping[int, int] | None = None) -> None:
    """Enter a study into the ledger, unless it is there already with as many trials and the same images.

    Args:
        ledger: the ledger.
        name: name of the study.
        spec: its specification.
        trials: number of trials of the search that are asked for.
        windows: number of trials -> window, as `settings.settled` returns it. None: the window does not change.

    Raises:
        UserError: As for `check_name_is_free`.
    """
    check_name_is_free(ledger, name, spec, trials)
    known = ledger.studies.get(name)
    content = spec.content()
    if known is None:
        ledger.append("sweep", name=name, spec=content, trials=trials)
        return
    if in_generations(known.spec):
        return  # it is finished
    before, now = known.spec.get("optuna"), content.get("optuna")
    if before is not None and before != now:
        warnings.warn(
            f"sweep {name} was begun with Optuna {before}, and Optuna {now} goes on: trials that were made stay, "
            "further proposals may differ from those that the old version would have made",
            stacklevel=2,
        )
    own = (windows or {}).get(trials)
    if known.trials < trials and own is not None:
        ledger.append("sweep", name=name, spec=content, trials=trials, window=own)
    elif known.trials < trials or before != now or known.spec.get("images", {}) != content["images"]:
        ledger.append("sweep", name=name, spec=content, trials=trials)


def as_begun(ledger: Ledger, name: str, spec: StudySpec, trials: int = 0) -> StudySpec:
    """Return the specification with what the ledger has of this study where it says "auto".

    These settings follow from the cluster that a study begins on. They are settled once, so that the study makes the
    same trials wherever it is continued.

    Args:
        ledger: the ledger.
        name: name of the study.
        spec: its specification.
        trials: number of trials of the search that are asked for. If the study has fewer, the window stays "auto": the
            further trials have their own; see `settings.settled`.
    """
    known = ledger.studies.get(name)
    if known is None or spec.search is None:
        return spec
    open_ones = SETTLED if trials <= known.trials else tuple(key for key in SETTLED if key != "window")
    recorded = {key: known.spec["space"].get(key, "auto") for key in open_ones if getattr(spec.space, key) == "auto"}
    update = {key: value for key, value in recorded.items() if value != "auto"}
    return replace(spec, space=spec.space.model_copy(update=update)) if update else spec


def check_name_is_free(ledger: Ledger, name: str, spec: StudySpec, trials: int = 0) -> None:
    """Check that the ledger has no study of this name with another specification.

    A setting that says "auto" is the same as what the study settled it to; see `as_begun`.

    Args:
        ledger: the ledger.
        name: name of the study.
        spec: its specification.
        trials: number of trials of the search that are asked for; a search by a version without windows has no more
            than before.

    Raises:
        UserError: The name belongs to another specification; the message says what differs.
    """
    known, spec = ledger.studies.get(name), as_begun(ledger, name, spec)
    shared = ("space", "base", "other_images")
    if known is None or content_digest({k: known.spec[k] for k in shared if k in known.spec}) == spec.identity():
        return
    other = StudySpec.of(known.spec)
    if in_generations(known.spec):
        same = trials <= known.trials and _unsettled(other).identity() == _unsettled(spec).identity()
        if same and _finished(ledger, name, other):
            return
        raise UserError(f"sweep {name!r} was {BEFORE_WINDOW}; {ANEW}")
    if not other.identified:
        raise UserError(f"sweep {name!r} was {BEFORE_IDENTITY}; choose another --name")
    if other.identity() != spec.identity():
        for key in SETTLED if other.search and spec.search else ():
            before, now = getattr(other.space, key), getattr(spec.space, key)
            if before != now and _with(other, key, now).identity() == spec.identity():
                raise UserError(
                    f"sweep {name!r} was begun with {key} {before}, which stays; got {now}: "
                    f"leave the {key} out, or choose another --name"
                )
        raise UserError(
            f"sweep {name!r} exists with another specification ({_difference(other, spec)}); "
            "choose another --name, or repeat the first command to continue it"
        )


def reopened(ledger: Ledger, name: str, fill: Callable[[RunConfig], RunConfig]) -> StudySpec:
    """Return the specification of a study in the ledger so that the study can be resumed.

    Unless nothing is left to run, the fingerprints of the images are computed again and compared.

    Args:
        ledger: the ledger, which must have the study.
        name: name of the study.
        fill: see `StudySpec`.

    Raises:
        UserError: The images are missing or changed, or the study is too old to be resumed; what to do about it.
    """
    sweep = ledger.studies[name]
    old = StudySpec.of(sweep.spec)
    if not old.identified:
        raise UserError(
            f"sweep {name!r} was {BEFORE_IDENTITY}: status and report show it, but nothing can be added; "
            f"begin it anew with another --name"
        )
    if _finished(ledger, name, old):
        return old
    if in_generations(sweep.spec):
        raise UserError(f"sweep {name!r} was {BEFORE_WINDOW}: status and report show it; {ANEW}")
    try:
        new = replace(old, fill=fill)
        if new.identity() != old.identity():
            raise UserError(f"the images of sweep {name!r} are no longer those that it was begun with")
    except UserError as error:
        raise UserError(
            f"{error}; if the images lie elsewhere now, repeat the first command with --name {name} and their data.root"
        ) from error
    return new


def _finished(ledger: Ledger, name: str, spec: StudySpec) -> bool:
    """Return whether all trials of a study are done or stopped, with those that confirm the best ones."""
    study, confirm = ledger.studies[name], spec.space.confirm
    rows = [ledger.with_outcome(trial, name) for trial in study.proposals.values()]
    ended = [row for row in rows if row.status in FINISHED]
    confirmed = sum(row.confirms is not None for row in ended)
    wanted = 0
    if spec.search and isinstance(confirm, Confirmation):
        wanted = expected(rows, study.trials, confirm.top, confirm.seeds)
    return len(ended) - confirmed >= spec.size(study.trials) and confirmed >= wanted


def _unsettled(spec: StudySpec) -> StudySpec:
    return replace(spec, space=spec.space.model_copy(update=dict.fromkeys(SETTLED, "auto")))


def _with(spec: StudySpec, key: str, value: Any) -> StudySpec:
    return replace(spec, space=spec.space.model_copy(update={key: value}))


def _difference(old: StudySpec, new: StudySpec) -> str:
    """Return the first key in which the base configurations differ, its values, and the number of other such keys."""
    before, after = old.base.identity(), new.base.identity()
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if not changed:
        return "its search space differs"
    key = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{key} was {before.get(key)}, is {after.get(key)}{more}"
