"""The specification of a study: its search space, preset and overrides, and the configuration of each of its trials.

The ledger keeps the specification; see `orchestration.study.entries`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import to_json

from erat.config import RunConfig, build, content_digest
from erat.data.places import Recalled, place_of
from erat.errors import UserError
from erat.keys import has_key, known_keys
from erat.presets import EDITION, values_before
from erat.records import why
from erat.variants import defense_name, expand
from orchestration.storage.forms import SPECIFICATION
from orchestration.study import sampling
from orchestration.study.recorded import StudyRecord
from orchestration.study.spaces import Confirmation, SearchSpace, parse_space
from orchestration.study.trial import Trial

Kind = Literal["search", "matrix", "list"]


def unfilled(config: RunConfig) -> RunConfig:
    """Return the configuration unchanged. This is the default of `StudySpec.fill`, which adds no fingerprint."""
    return config


@dataclass(frozen=True)
class StudySpec:
    """What a study consists of: listed runs, a search, or both.

    The number of trials is not part of the specification, because a search can be extended.

    Attributes:
        space: the listed runs, the parameters to search, or both, as in YAML files and in the ledger.
        preset: name of the preset, whose values are the starting point.
        overrides: dotted key -> value, applied on top of the preset in all trials.
        edition: the edition of the presets, `erat.presets.EDITION` when the study was begun.
        fill: function that adds the fingerprint of the images to a configuration, and checks one that is given; see
            `Workspace.fingerprints`.
    """

    space: SearchSpace
    preset: str
    overrides: dict[str, Any]
    fill: Callable[[RunConfig], RunConfig] = field(default=unfilled, compare=False, repr=False)
    edition: int = EDITION

    @classmethod
    def listing(
        cls,
        name: str,
        about: str,
        runs: list[dict[str, Any]],
        preset: str,
        overrides: dict[str, Any],
        fill: Callable[[RunConfig], RunConfig] = unfilled,
    ) -> StudySpec:
        """Return the specification of a list of runs, each given by its dotted keys, without a search."""
        return cls(SearchSpace(name=name, about=about, baselines=runs, proposals=0), preset, overrides, fill)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Return the listed runs, each given by its dotted keys and their values."""
        return self.space.baselines

    @property
    def search(self) -> SearchSpace | None:
        """Return the search space, or None if the study consists of listed runs only."""
        return self.space if self.space.parameters else None

    @cached_property
    def kind(self) -> Kind:
        """Return how the study is shown: as a search, a matrix (of several defenses) or a list (of one defense)."""
        if self.search is not None:
            return "search"
        names = (defense_name(self.config(run).flat() | expand(run), run) for run in self.runs)
        first = next(names, None)
        return "matrix" if any(name != first for name in names) else "list"

    @property
    def pareto(self) -> bool:
        """Return whether this is a search with two objectives, validation accuracy and cost."""
        return self.search is not None and "cost" in self.space.objective

    @property
    def confirmation(self) -> Confirmation | None:
        """Return how the best trials of the search are confirmed, or None if they are not."""
        confirm = self.space.confirm
        return confirm if self.search is not None and isinstance(confirm, Confirmation) else None

    @property
    def points(self) -> list[dict[str, float]]:
        """Return the paper's own settings of the searched keys, in the data set's units."""
        return self.space.scaled_points(self.base.data.name)

    @cached_property
    def most_trials(self) -> int | None:
        """Return the number of trials of a grid search, the points among them; None: there may be any number."""
        if self.space.sampler != "grid" or self.search is None:
            return None
        return sampling.grid_size(self.space, self.base.data.name)

    def trials(self, asked: int | None) -> int:
        """Return the number of trials of the search, without the listed runs.

        Args:
            asked: the number that was asked for. None: that of the space, or all of a grid.

        Raises:
            UserError: The grid has fewer.
        """
        if self.most_trials is None:
            return asked or len(self.space.points) + self.space.proposals
        if asked is not None and asked > self.most_trials:
            raise UserError(
                f"trials must be at most {self.most_trials}, all of the grid {self.space.name}, got {asked}"
            )
        return asked or self.most_trials

    def size(self, trials: int) -> int:
        """Return the number of listed runs plus `trials`, the number of trials of the search."""
        return len(self.runs) + trials

    def known_ahead(self, trials: int) -> list[tuple[str, dict[str, Any]]]:
        """Return (source, dotted keys) of the listed runs and up to `trials` points, in the order of their numbers."""
        return [("baseline", run) for run in self.runs] + [("paper", dict(point)) for point in self.points[:trials]]

    def __post_init__(self) -> None:
        if any(parameter.when for parameter in self.space.parameters.values()):
            object.__setattr__(self, "space", self.space.settled(self.base.flat()))
        if self.search is not None:
            object.__setattr__(self, "space", self.space.scheduled(self.base, self.preset))
            sampling.check(self.space)
            self.most_trials  # noqa: B018 - raises if a grid has too many
        for key in self.space.parameters:
            if key in self.overrides:
                raise UserError(f"{key} is what the space {self.space.name} searches; it cannot be set as well")
        examples = self.space.examples(self.base.data.name)
        for overrides in examples:
            defense = str(overrides.get("defense.name", self.base.defense.name))
            for key in overrides:
                if key not in known_keys(defense):
                    raise UserError(f"the space {self.space.name} searches {key}, which {defense} lacks")
        for overrides in [*self.runs, *examples]:
            self._check(overrides)

    def _check(self, trial_overrides: Mapping[str, Any]) -> None:
        """Raise `UserError` if a trial cannot be made. Each setting and each seed is checked once.

        A study of 100,000 listed runs has a few hundred settings, with as many seeds.
        """
        setting = dict(trial_overrides)
        seed = repr(setting.pop("train.seed", ...))
        key = to_json(setting, fallback=repr, inf_nan_mode="constants")  # four times as fast as `_key`
        if seed not in self._sound[1] or key not in self._sound[0]:
            self.config(trial_overrides)
            self._sound[0].add(key)
            self._sound[1].add(seed)

    @cached_property
    def _sound(self) -> tuple[set[bytes], set[str]]:
        """Return the settings and the seeds that were checked."""
        return set(), set()

    @cached_property
    def base(self) -> RunConfig:
        """Return the configuration that every trial starts from."""
        return self._built(self.overrides, quiet=False)

    def config(self, trial_overrides: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of one trial, given its dotted keys and their values."""
        # A matrix has many seeds of each setting. One configuration of a setting is built in full, and kept.
        setting = _setting(trial_overrides)
        if len(setting) < len(trial_overrides):
            return self.config(setting).with_seed(trial_overrides["train.seed"])
        key = _key(setting)
        if key not in self._configs:
            self._configs[key] = self._built(self.overrides_for(setting) | setting, quiet=True)
        return self._configs[key]

    def _built(self, given: Mapping[str, Any], *, quiet: bool) -> RunConfig:
        """Return the configuration of these overrides, with the values that the presets had in this edition."""
        if self.edition < EDITION:
            whole, quiet = expand(given), True
            name = str(whole.get("defense.name", "erat"))
            before = values_before(self.preset, whole)
            # AT had no warm-up: one that was set for all defenses was not meant for it.
            later = {"defense.warmup_epochs"} if name == "at" else set()
            kept = {key: value for key, value in given.items() if key not in later}
            given = {key: value for key, value in before.items() if has_key(key, name)} | kept
        return self.fill(build(self.preset, given, quiet=quiet))

    def _flat(self, trial_overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the dotted keys of the configuration of one trial, which are made once for all seeds of a setting."""
        setting, seed = _setting(trial_overrides), trial_overrides.get("train.seed")
        if type(seed) is not int:
            return self.config(trial_overrides).flat()
        key = _key(setting)
        if key not in self._flats:
            self._flats[key] = self.config(setting).flat()
        return self._flats[key] | {"train.seed": seed}

    def digest(self, trial_overrides: Mapping[str, Any]) -> str:
        """Return the digest of the run of one trial, given its dotted keys and their values; see `RunConfig.digest`.

        What identifies a run is made once for all seeds of a setting.
        """
        seed = trial_overrides.get("train.seed")
        if type(seed) is not int or repr(seed) not in self._sound[1]:
            return self.config(trial_overrides).digest()
        setting = _setting(trial_overrides)
        if (key := _key(setting)) not in self._identities:
            self._identities[key] = self.config(setting).identity()
        return content_digest(self._identities[key] | {"train.seed": seed})

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        """Return the cache of what identifies the runs of settings that have several seeds."""
        return {}

    @cached_property
    def _configs(self) -> dict[str, RunConfig]:
        """Return the cache of configurations: a large matrix asks for each of its settings several times."""
        return {}

    @cached_property
    def _flats(self) -> dict[str, dict[str, Any]]:
        """Return the cache of the dotted keys of settings that have several seeds."""
        return {}

    def overrides_for(self, trial_overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the study's overrides that apply to a trial.

        If the trial has another defense than the study, overrides of options that this defense lacks are left out.
        """
        name = str(trial_overrides.get("defense.name", self.base.defense.name))
        return {k: v for k, v in self.overrides.items() if not k.startswith("defense.") or k in known_keys(name)}

    def trial(self, number: int, source: str, params: dict[str, Any]) -> Trial:
        """Return a trial with these dotted keys, number and source that has not begun."""
        return self.completed(Trial(number, self.digest(params), params, source))

    def completed(self, trial: Trial) -> Trial:
        """Return a trial with what the specification says of it: its configuration, its rungs, its number of seeds."""
        config = self._flat(trial.params)
        if trial.source == "confirm" and self.confirmation is not None:
            return replace(trial, config=config, seeds=self.confirmation.seeds)
        rungs = self.space.rungs if trial.source == "optuna" and self.space.reads("rungs") is not False else "auto"
        return replace(trial, config=config, rungs=() if rungs == "auto" else tuple(rungs))

    def proposals(self, sweep: StudyRecord) -> dict[int, Trial]:
        """Return number -> trial for the trials that the ledger has of this study.

        Trials that this specification cannot make are left out with a warning.
        """
        known = {}
        for number, trial in sorted(sweep.proposals.items()):
            try:
                if trial.source == "optuna":  # a listed run may have a value that is not searched
                    self.space.check(trial.params)
                self._check(trial.params)
            except UserError as error:
                warnings.warn(f"trial {number} of {sweep.name} in the ledger is skipped: {error}", stacklevel=2)
            else:
                known[number] = trial
        return known

    def planned(self, trials: int) -> tuple[list[RunConfig], list[RunConfig]]:
        """Return the configurations that are known before anything runs: (listed runs, trials of the search).

        The latter are up to `trials` points; without points, the base configuration stands in for each trial.
        """
        searched = [self.config(point) for point in self.points[:trials]] or [self.base] * (trials > 0)
        return [self.config(run) for run in self.runs], searched

    def content(self) -> dict[str, Any]:
        """Return what the ledger keeps of the specification, as JSON values.

        These are the parts of `identity`, and the preset, overrides and places of images with which it was asked for;
        of a search also the version of Optuna, whose samplers may draw other values in another version.
        """
        root = {"data.root": self.base.data.root} if "data.root" in self.overrides else {}
        asked: dict[str, Any] = {"preset": self.preset, "overrides": self.overrides | root, "images": self.images}
        asked |= {"edition": self.edition} if self.edition > 1 else {}
        return self._shared() | asked | ({} if self.search is None else {"optuna": version("optuna")})

    def identity(self) -> str:
        """Return a digest of the search space, the base configuration and the fingerprints of the images.

        Specifications that were written differently but mean the same have the same digest.
        """
        return content_digest(self._shared())

    def _shared(self) -> dict[str, Any]:
        """Return the parts of the specification that must be equal for a study to be continued under its name."""
        others = sorted(set(self.images.values()) - {self.base.data.fingerprint})
        content = {"space": self.space.model_dump(mode="json"), "base": self.base.identity()}
        return content | ({"other_images": others} if others else {})

    @cached_property
    def images(self) -> dict[str, str]:
        """Return place -> fingerprint of the image sets that the base configuration and the listed runs use."""
        runs = [self.base, *map(self.config, self.runs)]
        return {place_of(data): data.fingerprint for data in {run.data for run in runs} if data.fingerprint is not None}

    @property
    def identified(self) -> bool:
        """Return whether the base configuration and all listed runs have the fingerprint of their images."""
        return self.base.identified and all(self.config(run).identified for run in self.runs)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> StudySpec:
        """Return the specification that the ledger keeps, with the recorded fingerprints: the images are not read.

        Args:
            content: what `content` returned when the study was begun.

        Raises:
            UserError: The content is damaged, or uses keys that no longer exist.
        """
        try:
            SPECIFICATION.validate_python(content)
        except ValidationError as error:
            raise UserError(f"what the ledger says of this sweep is damaged: {why(error)}") from None
        # Lists of runs still record the size of a generation. Searches of earlier versions had one, confirmed nothing
        # and had no rungs.
        before = {"confirm": "none", "pruner": "median"} if in_generations(content) else {}
        kept = before | {key: value for key, value in content["space"].items() if key != "generation"}
        space, fill = parse_space(kept, "the ledger"), Recalled(content.get("images", {}))
        return cls(space, content["preset"], dict(content["overrides"]), fill, content.get("edition", 1))


def _setting(trial_overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a trial without the seed of its training."""
    return {name: value for name, value in trial_overrides.items() if name != "train.seed"}


def _key(setting: Mapping[str, Any]) -> str:
    return repr(sorted(setting.items()))


def in_generations(content: Mapping[str, Any]) -> bool:
    """Return whether what the ledger keeps of a specification is of a search by a version without windows."""
    return bool(content["space"].get("parameters")) and "generation" in content["space"]
