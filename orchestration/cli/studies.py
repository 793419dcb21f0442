"""Defines the verbs of studies: they begin, continue, stop, show and report sweeps and matrices."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from erat.errors import UserError
from orchestration.cli.options import (
    Address,
    AsJson,
    AtMost,
    ConfigFile,
    Confirm,
    DryRun,
    Overrides,
    Preset,
    Pruner,
    Rungs,
    Sampler,
    ShowConfig,
    Slots,
    StudyName,
    Window,
    check_slots,
    checked_name,
    nonempty,
    print_config,
    read_asked,
    verb,
    whole_numbers,
)
from orchestration.cli.running import plan_or_run, run_and_show
from orchestration.commands import completion
from orchestration.commands.console import err
from orchestration.study import MOST_TRIALS
from orchestration.terminal import program

verbs = typer.Typer()


@verb(
    verbs,
    "sweep --space budgets",
    "sweep --space eta --trials 12 corruption.rate=0.4",
    "sweep --space joint --trials 24 --pruner halving --confirm 3x3",
    "sweep --space budgets --preset paper data.root=/data --address auto",
)
def sweep(
    overrides: Overrides = None,
    space: Annotated[
        str,
        typer.Option(
            help="a name in search_spaces/, or a YAML file",
            autocompletion=completion.spaces,
        ),
    ] = "budgets",
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TRIALS,
            help="search trials in all; a larger number than last time extends the search",
        ),
    ] = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    window: Window = None,
    rungs: Rungs = None,
    confirm: Confirm = None,
    preset: Preset = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    name: Annotated[str | None, typer.Option(help="name of the sweep; the same name continues or extends it")] = None,
    address: Address = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
    slots: Slots = None,
    as_json: AsJson = False,
) -> None:
    """Search a space by the sampler that it names, on Ray; the paper's own points come first."""
    from orchestration.api import Study
    from orchestration.storage.workspace import Workspace
    from orchestration.study.settings import with_settings
    from orchestration.study.spaces import load_space
    from orchestration.study.spec import StudySpec

    check_slots(slots, dry_run)
    given = read_asked(overrides, config, preset)
    settings: dict[str, Any] = {
        "sampler": sampler,
        "pruner": pruner,
        "window": window,
        "rungs": rungs,
        "confirm": confirm,
    }
    if show_config:
        asked = with_settings(load_space(space), **settings)
        print_config(StudySpec(asked, given.preset, given.overrides).base.flat(), as_json)
        return
    study = Study.create(
        space,
        name=checked_name(name),
        preset=given.preset,
        trials=trials,
        workspace=Workspace.from_environment(reading=dry_run),
        overrides=given.overrides,
        **settings,
    )
    plan_or_run(study, address, at_most, as_json, dry_run=dry_run, slots=slots)


@verb(
    verbs,
    "matrix --grid table3 --dry-run",
    "matrix --grid table3 --only 'defense=erat,ce corruption=up,uhp' --seeds 0,1,2",
    "matrix --grid fair3 --draws 0,1,2 --seeds 0,1",
    "matrix --grid table6 --preset paper data.root=/data resources.gpu=0.25 --address auto",
)
def matrix(
    overrides: Overrides = None,
    grid: Annotated[
        str,
        typer.Option(
            help="table1 to table6, figure2 to figure8, rq5, or a YAML file",
            autocompletion=completion.grids,
        ),
    ] = "table3",
    seeds: Annotated[str, typer.Option(help="seeds of training, with commas")] = "0",
    draws: Annotated[
        str | None,
        typer.Option(help="seeds of the corruption, with commas; each is run with all seeds of training"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="points to keep, by axis or dotted key: 'defense=erat,ce corruption.data=up'; "
            "given several times, it narrows each time"
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="points to leave out, written like --only")] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    name: Annotated[str | None, typer.Option(help="name of the matrix; the same name continues it")] = None,
    address: Address = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
    slots: Slots = None,
    as_json: AsJson = False,
) -> None:
    """Run a table or figure of the paper: every defense on every corruption. Finished runs are not repeated."""
    from orchestration.api import Study
    from orchestration.storage.workspace import Workspace
    from orchestration.study.grids import load_grid, parse_choice, specification

    check_slots(slots, dry_run)
    given = read_asked(overrides, config, preset)
    choice: dict[str, Any] = {
        "seeds": whole_numbers("--seeds", seeds),
        "draws": () if draws is None else whole_numbers("--draws", draws),
        "only": parse_choice("--only", only),
        "skip": parse_choice("--skip", skip),
    }
    if show_config:
        asked = specification(load_grid(grid), given.preset, given.overrides, **choice)
        print_config(asked.base.flat(), as_json)
        return
    study = Study.create(
        grid=grid,
        name=checked_name(name),
        preset=given.preset,
        workspace=Workspace.from_environment(reading=dry_run),
        overrides=given.overrides,
        **choice,
    )
    plan_or_run(study, address, at_most, as_json, dry_run=dry_run, slots=slots)


@verb(verbs, "resume budgets")
def resume(name: StudyName, address: Address = None, at_most: AtMost = None, as_json: AsJson = False) -> None:
    """Resume a sweep: unfinished trials from their last checkpoint, then those that have not begun."""
    from orchestration.api import load_study

    run_and_show(load_study(name), address, at_most, as_json)


@verb(verbs, "retry budgets")
def retry(name: StudyName, address: Address = None, at_most: AtMost = None, as_json: AsJson = False) -> None:
    """Run the failed trials of a sweep again, and those that are still to do; finished trials stay as they are."""
    from orchestration.api import load_study

    run_and_show(load_study(name), address, at_most, as_json, retry=True)


@verb(verbs, "cancel budgets")
def cancel(name: StudyName) -> None:
    """Ask a sweep or matrix that runs in another terminal to stop, as Ctrl-C there would."""
    from orchestration.api import load_study
    from orchestration.run.heartbeat import ask_to_stop
    from orchestration.storage.workspace import Workspace

    ask_to_stop(load_study(name, Workspace.from_environment()).workspace, name)
    err.print(f"asked to stop; nothing finished is lost. Go on with: {program()} resume {name}", markup=False)


@verb(verbs, "sync budgets", "sync table3 --json")
def sync(name: StudyName, as_json: AsJson = False) -> None:
    """Put right what MLflow has of a sweep, from the ledger and the runs' own files: runs, epochs, ends and tags.

    It can be repeated at any time, on any store. A sweep that runs is refused: what it does reaches MLflow by itself.
    """
    from orchestration.commands.syncing import sync_and_show
    from orchestration.storage.workspace import Workspace

    content = sync_and_show(name, Workspace.from_environment(), err)
    if as_json:
        print(json.dumps(content))


@verb(verbs, "status", "status budgets", "status table3 --watch")
def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="a sweep; none: all of them",
            autocompletion=completion.studies,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option(help="refresh every 2 seconds until nothing runs or Ctrl-C")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what has run, what is running and what is left to do."""
    from orchestration.commands import overview
    from orchestration.storage.workspace import Workspace

    workspace = Workspace.from_environment(reading=True)
    if watch:
        if name is None:
            raise UserError("--watch needs the name of a sweep or matrix")
        content: Any = overview.watch(workspace, name, err)
    else:
        content = overview.of_sweep(workspace, name, err) if name else overview.of_all(workspace, err)
    if as_json:
        print(json.dumps(content))


@verb(verbs, "report table3", "report budgets --out budgets.html", "report table3 --format latex --out tables.tex")
def report(
    name: Annotated[
        str,
        typer.Argument(
            help="a sweep or matrix, finished or not",
            autocompletion=completion.studies,
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help="html, csv, latex or md; svg or pdf: a file for each figure")
    ] = "html",
    out: Annotated[
        str | None,
        typer.Option(callback=nonempty, help="file to write (svg, pdf: folder); by default in ERAT_HOME/reports/NAME/"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write tables and figures beside the paper's into one file: a page to read, CSV, LaTeX or Markdown."""
    from orchestration.api import load_study

    path = load_study(name).report(out, format=form, what="--out")
    files = sorted(path.glob(f"*.{form}")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files) / 1e6
    err.print(f"{path} ({f'{len(files)} figures, ' if path.is_dir() else ''}{size:.2f} MB)", markup=False)
    if as_json:
        print(json.dumps({"name": name, "format": form, "files": list(map(str, files))}))


@verb(
    verbs,
    "leaderboard",
    "leaderboard table3 fair3 --out board.html",
    "leaderboard --json",
)
def leaderboard(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="sweeps and matrices to show; none: all of them, and the runs of train",
            show_default=False,
            autocompletion=completion.studies,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(callback=nonempty, help="file to write; by default ERAT_HOME/reports/leaderboard/index.html"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the defenses of all finished runs, by data set, network and corruption, on one page beside the paper's."""
    from orchestration.report.leaderboard import write_leaderboard
    from orchestration.storage.workspace import Workspace

    path, content = write_leaderboard(Workspace.from_environment(reading=out is not None), names or (), out)
    err.print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)", markup=False)
    if as_json:
        print(json.dumps(content))
