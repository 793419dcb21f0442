"""One sweep from its specification to its report: plans, launches, listens, records. Knows no Ray, no MLflow inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from erat.config import RunConfig, build, content_digest, known_keys
from erat.data.places import Recalled, place_of
from erat.errors import UserError
from erat.records import why
from orchestration.storage.forms import SPECIFICATION
from orchestration.study.ledger import Ledger, Proposal, StudyRecord
from orchestration.study.rows import FINISHED
from orchestration.study.spaces import SearchSpace, parse_space

BEFORE_IDENTITY = "made before the data were part of the identity"


def unfilled(config: RunConfig) -> RunConfig:
    """Return the configuration as it is: nobody has looked at its images yet."""
    return config


@dataclass(frozen=True)
class StudySpec:
    """What a sweep is. The number of trials is not part of it: a sweep can be extended.

    Attributes:
        overrides: dotted keys on top of the preset, alike for all trials.
        fill: fills the fingerprint of its images into a configuration, and checks a given one; see
            `Workspace.fingerprints`.
    """

    space: SearchSpace
    preset: str
    overrides: dict[str, Any]
    fill: Callable[[RunConfig], RunConfig] = field(default=unfilled, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key in self.space.parameters:
            if key in self.overrides:
                raise UserError(f"{key} is what the space {self.space.name} searches; it cannot be set as well")
            if key not in known_keys(self.base.defense.name):
                raise UserError(f"the space {self.space.name} searches {key}, which {self.base.defense.name} lacks")
        for overrides in [*self.space.baselines, *self.space.examples(self.base.data.name)]:
            self.config(overrides)

    @cached_property
    def base(self) -> RunConfig:
        """The configuration that every trial starts from."""
        return self.fill(build(self.preset, self.overrides))

    def config(self, trial_overrides: Mapping[str, Any]) -> RunConfig:
        """The configuration of one trial."""
        key = repr(sorted(trial_overrides.items()))
        if key not in self._configs:
            # A matrix has many seeds of each setting, whose configurations need not be made from the start.
            setting = {name: value for name, value in trial_overrides.items() if name != "train.seed"}
            if len(setting) < len(trial_overrides):
                self._configs[key] = self.config(setting).with_seed(trial_overrides["train.seed"])
            else:
                self._configs[key] = self.fill(build(self.preset, self.overrides_for(setting) | setting, quiet=True))
        return self._configs[key]

    @cached_property
    def _configs(self) -> dict[str, RunConfig]:
        """What was built already: a large matrix asks for each of its runs several times."""
        return {}

    def overrides_for(self, trial_overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides that concern a trial. One of another defense drops what was meant for this one."""
        name = str(trial_overrides.get("defense.name", self.base.defense.name))
        return {k: v for k, v in self.overrides.items() if not k.startswith("defense.") or k in known_keys(name)}

    def proposals(self, sweep: StudyRecord) -> dict[int, Proposal]:
        """The trials of a sweep in the ledger, by number; those that this specification cannot make are warned of."""
        known = {}
        for number, proposal in sorted(sweep.proposals.items()):
            try:
                self.config(proposal.params)
            except UserError as error:
                warnings.warn(f"trial {number} of {sweep.name} in the ledger is passed over: {error}", stacklevel=2)
            else:
                known[number] = proposal
        return known

    def planned(self, trials: int) -> tuple[list[RunConfig], list[RunConfig]]:
        """What is known before anything runs: (the baselines, the paper's points or, without any, what is searched)."""
        points = self.space.scaled_points(self.base.data.name)[:trials]
        searched = [self.config(overrides) for overrides in points] or [self.base] * (trials > 0)
        return [self.config(overrides) for overrides in self.space.baselines], searched

    def content(self) -> dict[str, Any]:
        """What the ledger keeps, JSON-like: what two sweeps of one name must share, and how it was asked for."""
        root = {"data.root": self.base.data.root} if "data.root" in self.overrides else {}
        return self._shared() | {"preset": self.preset, "overrides": self.overrides | root, "images": self.images}

    def identity(self) -> str:
        """A digest of what is searched, from where and on which images; how it was written does not count."""
        return content_digest(self._shared())

    def _shared(self) -> dict[str, Any]:
        """What two sweeps of one name must share."""
        others = sorted(set(self.images.values()) - {self.base.data.fingerprint})
        content = {"space": self.space.model_dump(mode="json"), "base": self.base.identity()}
        return content | ({"other_images": others} if others else {})

    @cached_property
    def images(self) -> dict[str, str]:
        """Fingerprints of the image sets of all that is planned, by where they were found."""
        runs = [self.base, *map(self.config, self.space.baselines)]
        return {place_of(data): data.fingerprint for data in {run.data for run in runs} if data.fingerprint is not None}

    @property
    def identified(self) -> bool:
        """Whether it is said of all that is planned on which images."""
        return self.base.identified and all(self.config(overrides).identified for overrides in self.space.baselines)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> StudySpec:
        """Read back from the ledger, with the fingerprints of then: the images need not be there.

        Raises:
            UserError: it is no specification, or one of keys that there are no more.
        """
        try:
            SPECIFICATION.validate_python(content)
        except ValidationError as error:
            raise UserError(f"what the ledger says of this sweep is damaged: {why(error)}") from None
        space, fill = parse_space(content["space"], "the ledger"), Recalled(content.get("images", {}))
        return cls(space, content["preset"], dict(content["overrides"]), fill)


def register(ledger: Ledger, name: str, spec: StudySpec, trials: int) -> None:
    """Enter a sweep into the ledger, or find it there. Raises as `check_name_is_free`."""
    check_name_is_free(ledger, name, spec)
    known = ledger.studies.get(name)
    content = spec.content()
    if known is None or known.trials < trials or known.spec.get("images", {}) != content["images"]:
        ledger.append("sweep", name=name, spec=content, trials=trials)


def check_name_is_free(ledger: Ledger, name: str, spec: StudySpec) -> None:
    """A name means one specification.

    Raises:
        UserError: the name belongs to another specification; what differs.
    """
    known = ledger.studies.get(name)
    shared = ("space", "base", "other_images")
    if known is None or content_digest({k: known.spec[k] for k in shared if k in known.spec}) == spec.identity():
        return
    other = StudySpec.of(known.spec)
    if not other.identified:
        raise UserError(f"sweep {name!r} was {BEFORE_IDENTITY}; choose another --name")
    if other.identity() != spec.identity():
        raise UserError(
            f"sweep {name!r} exists with another specification ({_difference(other, spec)}); "
            "choose another --name, or repeat the first command to continue it"
        )


def reopened(ledger: Ledger, name: str, fill: Callable[[RunConfig], RunConfig]) -> StudySpec:
    """The specification of a known sweep, to go on with: its images are looked up again, unless nothing is left to do.

    Raises:
        UserError: they are gone, or others; how to go on.
    """
    sweep = ledger.studies[name]
    old = StudySpec.of(sweep.spec)
    if not old.identified:
        raise UserError(
            f"sweep {name!r} was {BEFORE_IDENTITY}: status and report show it, but nothing can be added; "
            f"begin it anew with another --name"
        )
    outcomes = [ledger.outcome(proposal.cell, name) for proposal in sweep.proposals.values()]
    ended = [outcome for outcome in outcomes if outcome is not None and outcome.status in FINISHED]
    if len(ended) >= sweep.trials + len(old.space.baselines):
        return old
    try:
        new = replace(old, fill=fill)
        if new.identity() != old.identity():
            raise UserError(f"the images of sweep {name!r} are no longer those that it was begun with")
    except UserError as error:
        raise UserError(
            f"{error}; if the images lie elsewhere now, repeat the first command with --name {name} and their data.root"
        ) from error
    return new


def _difference(old: StudySpec, new: StudySpec) -> str:
    before, after = old.base.identity(), new.base.identity()
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if not changed:
        return "its search space differs"
    key = changed[0]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{key} was {before.get(key)}, is {after.get(key)}{more}"
