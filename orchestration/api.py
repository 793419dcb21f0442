"""Provides studies in Python, on which the verbs sweep, matrix, resume, retry, status and report are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erat.errors import UserError, shown, unknown_name
from orchestration.storage.workspace import Workspace
from orchestration.study import MOST_TRIALS
from orchestration.study.entries import as_begun, check_name_is_free, reopened
from orchestration.study.grids import GridSpec, load_grid, parse_grid, specification
from orchestration.study.ledger import Ledger
from orchestration.study.results import results_of
from orchestration.study.settings import no_search, windows_of, with_settings
from orchestration.study.spaces import Confirmation, SearchSpace, load_space, parse_space
from orchestration.study.spec import StudySpec, in_generations
from orchestration.study.status import confirmations_of, not_begun, spec_of, trials_of
from orchestration.study.trial import Trial

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestration.search.launch import StudyEnd

Place = Workspace | str | Path | None
SETTINGS = ("sampler", "pruner", "window", "rungs", "confirm")
_CHOICE = ("seeds", "draws", "only", "skip")
ARGUMENTS = ("space", "grid", "name", "preset", "trials", *SETTINGS, *_CHOICE, "workspace", "overrides")


class Study:
    """A named list of runs, or a search for good ones: made by `Study.create`, found again by `load_study`.

    Args:
        trials: number of trials of the search in all; a study that has more keeps them.
        found: the ledger in which the study was found, with the images of that time; None if the study is new or was
            created again from its specification.

    Attributes:
        name: the name under which the same specification is continued or extended.
        spec: what is to run.
        search_trials: number of trials of the search; 0 for a list of runs.
        workspace: the folder that holds everything of the study.
        end: the files and the duration of the last `run` of this object; None before the first.
    """

    def __init__(
        self, name: str, spec: StudySpec, trials: int, workspace: Workspace, *, found: Ledger | None = None
    ) -> None:
        self.name, self.spec, self.workspace = check_name(name), spec, workspace
        self._records, self._found = found or Ledger(workspace.ledger), found is not None
        if not self._found:
            check_name_is_free(self._records, name, spec, trials)
            self.spec = as_begun(self._records, name, spec, trials)
        known = self._records.studies[name].trials if name in self._records.studies else 0
        self.asked, self.search_trials = trials, max(trials, known)
        self.end: StudyEnd | None = None

    @classmethod
    def create(
        cls,
        space: str | Path | Mapping[str, Any] | SearchSpace | None = None,
        *,
        grid: str | Path | Mapping[str, Any] | GridSpec | None = None,
        name: str | None = None,
        preset: str = "demo",
        trials: int | None = None,
        sampler: str | None = None,
        pruner: str | None = None,
        window: int | str | None = None,
        rungs: Sequence[int] | str | None = None,
        confirm: Confirmation | Mapping[str, int] | int | str | None = None,
        seeds: Sequence[int] = (0,),
        draws: Sequence[int] = (),
        only: Mapping[str, Sequence[str]] | None = None,
        skip: Mapping[str, Sequence[str]] | None = None,
        workspace: Place = None,
        overrides: Mapping[str, Any] | None = None,
        **more_overrides: Any,
    ) -> Study:
        """Create a study; nothing is written or trained before `run`.

        >>> from orchestration import Study
        >>> study = Study.create(space="budgets", trials=6, corruption__rate=0.4, overrides={"train.epochs": 5})

        Args:
            space: a name in search_spaces/, a YAML file, or the content of such a file. With parameters it is a search,
                without parameters a list of runs.
            grid: given instead of `space`, a grid by name, file or content: every combination of its points, once for
                each
                seed.
            name: the name of the study; None: that of the space or grid, followed by a digest if anything was changed.
            preset: values to start from: "demo", "medium", "paper" or "official".
            trials: number of trials of the search in all; a larger number than last time extends it; None: the number
                of
                the space.
            sampler, pruner: names of what proposes trials and of what stops them early; None, here and in the next
                three: as the space has it.
            window: a number of trials, or "auto", which is settled when the study begins and for each extension; see
                `SearchSpace`.
            rungs: epochs at which the pruner "halving" compares trials, or "auto".
            confirm: how the best trials are confirmed with further seeds: {"top": 3, "seeds": 5}, "3x5", "none" or
                "auto".
            seeds, draws, only, skip: for a grid: the seeds of training and those of the corruption, every one with
                every one (no draws: the configuration's one); the names to keep or to leave out, by axis or dotted key.
            workspace: folder for everything that is written; None: ERAT_HOME, or ./runs.
            overrides: dotted configuration keys on top of the preset.
            more_overrides: the same as keywords, with "__" for the dot: `defense__eta=0.3`.

        Raises:
            UserError: a name, key or value is not known, or the name belongs to another specification.
        """
        place, given = _workspace(workspace), _overrides(overrides, more_overrides)
        settings: dict[str, Any] = dict(zip(SETTINGS, (sampler, pruner, window, rungs, confirm), strict=True))
        if (space is None) == (grid is None):
            raise UserError("a study needs a space or a grid: give one of the two")
        fill = place.fingerprints()
        for words, numbers in (("seeds", seeds), ("draws", draws)):
            if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers) or len({*numbers}) < len(
                numbers
            ):
                raise UserError(f"{words} must be different whole numbers, got {shown(numbers)}")
        if grid is not None:
            for setting, value in {"trials": trials, **settings}.items():
                if value is not None:
                    raise no_search(setting, _grid(grid).name, value)
            spec = specification(_grid(grid), preset, given, seeds=seeds, draws=draws, only=only, skip=skip, fill=fill)
            plain = not (given or only or skip or draws) and tuple(seeds) == (0,)
            return cls(name or _default_name(spec, plain and preset == "demo"), spec, 0, place)
        if only or skip or draws or tuple(seeds) != (0,):
            raise UserError("seeds, draws, only and skip choose points of a grid; a space has none: set train.seed")
        _check_count("trials", trials)
        own = _space(space)
        asked = with_settings(own, **settings)
        spec = StudySpec(asked, preset, given, fill)
        if trials is not None and spec.search is None:
            raise no_search("trials", spec.space.name, trials)
        plain = not given and preset == "demo" and space == spec.space.name and asked == own
        return cls(name or _default_name(spec, plain), spec, spec.trials(trials), place)

    def run(self, address: str | None = None, *, at_most: int | None = None) -> Study:
        """Run what is left of the study, wait for the end, and write its tables and figures.

        A run that fails does not stop the others.

        Args:
            address: the Ray cluster to join: "HOST:PORT", "ray://HOST:PORT" or "auto"; None: Ray on this machine.
            at_most: the largest number of runs side by side; None: as many as fit.

        Returns:
            This study, with `end` set.

        Raises:
            UserError: the data, the tracking server or the cluster is not available, or another process runs this
                study.
            KeyboardInterrupt: the run was interrupted; finished trials are on record, and another `run` resumes the
                rest.
        """
        # Imported here because Ray loads slowly, and a caller who only looks at results does not need it.
        from orchestration.search.launch import run_study

        _check_count("at_most", at_most)
        ledger = self._reopen()
        check_name_is_free(ledger, self.name, self.spec, self.search_trials)
        self.end = run_study(
            self.name, self.spec, self.search_trials, self.workspace, ledger, address=address, at_most=at_most
        )
        self.spec = self.end.driver.spec
        return self

    def retry(self, address: str | None = None, *, at_most: int | None = None) -> Study:
        """Run the failed trials again, and those still to do; arguments, result and errors are those of `run`."""
        _check_count("at_most", at_most)
        ledger = self._reopen()
        proposals = ledger.studies[self.name].proposals.values() if self.begun else ()
        for proposal in list(proposals):
            outcome = ledger.outcome(proposal.cell, self.name)
            if outcome is not None and outcome.status == "failed":
                ledger.append("retry", cell=proposal.cell, sweep=self.name)
        return self.run(address, at_most=at_most)

    @property
    def begun(self) -> bool:
        """Return whether the study is on record in the workspace."""
        return self.name in self._ledger().studies

    @property
    def outdated(self) -> bool:
        """Return whether the study is a search that an earlier version began, so that it cannot go on."""
        return self.begun and in_generations(self._ledger().studies[self.name].spec)

    @property
    def parameters(self) -> list[str]:
        """Return the dotted keys that distinguish the trials: those searched, or those that the list of runs sets."""
        return self.spec.space.columns

    @property
    def windows(self) -> dict[int, int]:
        """Return number of trials -> window of a search, for each number that was asked for; see `SearchSpace.window`.

        A window counts for the trials that follow the number before. There is none before the study is on record.
        """
        record = self._ledger().studies.get(self.name)
        if record is None:
            return {}
        return windows_of(as_begun(self._records, self.name, self.spec), record.totals, record.windows)

    @property
    def trials(self) -> list[Trial]:
        """Return all known trials in the order of their numbers: ended, running, and planned but not begun."""
        ledger, begun = self._ledger(), self.begun_trials()
        known = ledger.studies[self.name].trials if self.name in ledger.studies else 0
        left = not_begun(self.spec, max(known, self.search_trials), begun)
        return sorted([*begun, *left], key=lambda trial: trial.number)

    def begun_trials(self) -> list[Trial]:
        """Return the trials on record, in the order of their numbers."""
        ledger = self._ledger()
        return trials_of(self.workspace, ledger, self.name, self.spec)[0] if self.name in ledger.studies else []

    @property
    def excluded(self) -> dict[str, str]:
        """Return which GPUs and nodes the study excludes -> why; after a new start it excludes none."""
        record = self._ledger().studies.get(self.name)
        return {} if record is None else dict(record.out)

    @property
    def total(self) -> int:
        """Return the number of trials of the whole study, with its confirmations as far as they are known."""
        begun = [] if self.spec.confirmation is None else self.begun_trials()
        return self.spec.size(self.search_trials) + confirmations_of(self.spec, self.search_trials, begun)

    @property
    def best(self) -> Trial | None:
        """Return the trial with the best mean of validation accuracy over seeds, if any was confirmed with several.

        Otherwise it is the finished trial with the best validation accuracy, or None. Test accuracy plays no part.
        """
        from orchestration.report.summary import best

        return best(self.begun_trials())

    def results(self) -> DataFrame:
        """Return a pandas table with a row per trial: figures, then a column for each configuration key.

        Accuracies are in [0, 1], times in seconds; `params` holds what was chosen for the trial, as a dictionary.
        `promoted` is the last rung from which a trial went on, 0 for none, and `confirms` the number of the trial that
        a confirmation repeats. A trial that was confirmed has mean and standard deviation over its seeds.
        """
        return results_of(self.trials)

    def report(self, path: str | Path | None = None, *, format: str = "html", what: str = "path") -> Path:
        """Write tables and figures of the study, finished or not, beside the paper's into one file; return the file.

        Args:
            path: the file to write, for figures the folder; None: one in `reports/NAME/` in the workspace.
            format: "html", "csv", "latex" or "md"; "svg" or "pdf" for a file of each figure of the page, in a folder.
            what: the option or argument that `path` came from, for messages.

        Raises:
            UserError: the study was never run, the format is not known, or the file cannot be written.
        """
        from orchestration.report.document import write_report

        return write_report(self.workspace, self.name, format, path, ledger=self._ledger(), what=what)

    def _ledger(self) -> Ledger:
        """Return the ledger with its present records."""
        self._records.refresh()
        return self._records

    def _reopen(self) -> Ledger:
        """Return the ledger for adding records; the images of a study that was loaded from it are looked up anew."""
        Workspace.from_environment(folder=self.workspace.root)  # refuses a workspace that cannot be written
        ledger = self._ledger()
        if self._found:
            self.spec = reopened(ledger, self.name, self.workspace.fingerprints())
        return ledger


def load_study(name: str, workspace: Place = None) -> Study:
    """Find a study that was run before, to look at it or to resume it.

    Args:
        workspace: as in `Study.create`; to look at a study, a workspace that cannot be written is enough.

    Raises:
        UserError: there is no such study; the message lists near matches.
    """
    place = _workspace(workspace, reading=True)
    ledger = Ledger(place.ledger)
    spec = spec_of(ledger, name)
    return Study(name, spec, ledger.studies[name].trials, place, found=ledger)


def study_names(workspace: Place = None) -> list[str]:
    """Return the names of all studies of a workspace, oldest first."""
    return list(Ledger(_workspace(workspace, reading=True).ledger).studies)


def check_name(name: str, what: str = "name") -> str:
    """Return the name of a study, which becomes a folder and a tag, after checking that it is allowed.

    Args:
        what: the option or argument that the name came from, for the message.

    Raises:
        UserError: the name has other characters, a wrong first character or more than 100 characters.
    """
    if not name or len(name) > 100 or not all(char.isalnum() or char in "-_." for char in name) or name[0] in ".-":
        raise UserError(f"{what} must be letters, digits, '-', '_' and '.', at most 100, got {shown(name)}")
    return name


def _check_count(name: str, value: int | None) -> None:
    """Raise a `UserError` if a number of trials that was given cannot be one."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TRIALS):
        raise UserError(f"{name} must be a whole number in [1, {MOST_TRIALS}], got {shown(value)}")


def _default_name(spec: StudySpec, plain: bool) -> str:
    """Return the name of the space, followed by a digest if anything was changed."""
    return spec.space.name if plain else f"{spec.space.name}-{spec.identity()[:6]}"


def _workspace(workspace: Place, *, reading: bool = False) -> Workspace:
    if isinstance(workspace, Workspace):
        return workspace
    return Workspace.from_environment(reading=reading, folder=workspace)


def _overrides(given: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys from both ways of writing them."""
    overrides = dict(given or {})
    for word, value in more.items():
        key = word.replace("__", ".", 1)
        if "." not in key:
            raise UserError(f"{unknown_name('argument', word, ARGUMENTS)}; a key is section__key, such as defense__eta")
        if key in overrides:
            raise UserError(f"{key} is given twice, as {word} and in overrides")
        overrides[key] = value
    return overrides


def _space(space: object) -> SearchSpace:
    if isinstance(space, SearchSpace):
        return space
    # A copy, so that the caller may go on to change what was given.
    return parse_space(deepcopy(dict(space)), "the space") if isinstance(space, Mapping) else load_space(str(space))


def _grid(grid: object) -> GridSpec:
    if isinstance(grid, GridSpec):
        return grid
    return parse_grid(grid, "the grid") if isinstance(grid, Mapping) else load_grid(str(grid))
