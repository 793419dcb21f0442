"""Defines the command line: its verbs and their help."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erat.errors import UserError, shown
from orchestration.commands import completion
from orchestration.commands.console import EXIT_FAILED, OnceCommand, err, guarded, quiet, show_failure, stopped
from orchestration.study import MOST_TRIALS

if TYPE_CHECKING:
    from orchestration.api import Study

app = typer.Typer(
    help="Train image classifiers that hold up when images and labels are corrupted, and search how.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _given(value: str | None) -> str | None:
    """Refuse an option with an empty value, which would otherwise pass for an option that is not given."""
    if value == "":
        raise typer.BadParameter("it must not be empty")
    return value


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="dotted configuration keys, e.g. corruption.rate=0.4",
        show_default=False,
        autocompletion=completion.overrides,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        callback=_given,
        help="values to start from: demo (minutes on a laptop), paper or official",
        show_default="demo",
        autocompletion=completion.presets,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", callback=_given, help="YAML file of keys and preset; words given here win over it"
    ),
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="print the configuration as YAML that --config reads; run nothing")
]
Address = Annotated[
    str | None,
    typer.Option(callback=_given, help="Ray cluster to join: HOST:PORT, ray://HOST:PORT or auto"),
]
AtMost = Annotated[
    int | None,
    typer.Option("--max-concurrent", min=1, max=MOST_TRIALS, help="runs side by side at most; none: as many as fit"),
]
StudyName = Annotated[
    str,
    typer.Argument(
        help="a sweep or matrix",
        autocompletion=completion.studies,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of standard output")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would run and how long it takes; run nothing")]


def _verb(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers a verb whose help ends with these examples."""
    text = "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  python orchestrate.py {line}" for line in examples)
    return app.command(cls=OnceCommand, epilog=text)


def parse_overrides(words: list[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE words; the reader is loaded here because no help page needs `orchestration.study.overrides`."""
    from orchestration.study import overrides as reader

    return reader.parse_overrides(words)


def _asked(words: list[str] | None, file: str | None, preset: str | None, apart: tuple[str, ...] = ()) -> Any:
    """Read the configuration that words, a file and a preset ask for; see `orchestration.study.config_files`."""
    from orchestration.study import config_files

    return config_files.asked(words, file, preset, apart=apart)


def _print_config(flat: dict[str, Any], as_json: bool) -> None:
    from orchestration.study.config_files import as_yaml, nested

    print(json.dumps(nested(flat)) if as_json else as_yaml(flat), end="\n" if as_json else "")


@_verb(
    "sweep --space budgets",
    "sweep --space eta --trials 12 corruption.rate=0.4",
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
        int | None, typer.Option(min=1, max=MOST_TRIALS, help="search trials in all; more than last time extends")
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    name: Annotated[str | None, typer.Option(help="of the sweep; the same name continues or extends it")] = None,
    address: Address = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search a space with Optuna through Ray Tune; the paper's own points come first."""
    from orchestration.api import Study
    from orchestration.storage.workspace import Workspace
    from orchestration.study.spaces import load_space
    from orchestration.study.spec import StudySpec

    given = _asked(overrides, config, preset)
    if show_config:
        _print_config(StudySpec(load_space(space), given.preset, given.overrides).base.flat(), as_json)
        return
    study = Study.create(
        space,
        name=_checked(name),
        preset=given.preset,
        trials=trials,
        workspace=Workspace.from_environment(reading=dry_run),
        overrides=given.overrides,
    )
    _plan_study(study, as_json) if dry_run else _run_study(study, address, at_most, as_json)


@_verb(
    "matrix --grid table3 --dry-run",
    "matrix --grid table3 --only 'defense=erat,ce corruption=up,uhp' --seeds 0,1,2",
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
    seeds: Annotated[str, typer.Option(help="of training, with commas")] = "0",
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
    name: Annotated[str | None, typer.Option(help="the same name continues")] = None,
    address: Address = None,
    at_most: AtMost = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a table or figure of the paper: every defense on every corruption. Finished runs are not repeated."""
    from orchestration.api import Study
    from orchestration.storage.workspace import Workspace
    from orchestration.study.grids import load_grid, parse_choice, specification

    given = _asked(overrides, config, preset)
    numbers, kept, left_out = (
        _whole_numbers("--seeds", seeds),
        parse_choice("--only", only),
        parse_choice("--skip", skip),
    )
    if show_config:
        _print_config(
            specification(
                load_grid(grid), given.preset, given.overrides, seeds=numbers, only=kept, skip=left_out
            ).base.flat(),
            as_json,
        )
        return
    study = Study.create(
        grid=grid,
        name=_checked(name),
        preset=given.preset,
        workspace=Workspace.from_environment(reading=dry_run),
        overrides=given.overrides,
        seeds=numbers,
        only=kept,
        skip=left_out,
    )
    _plan_study(study, as_json) if dry_run else _run_study(study, address, at_most, as_json)


@_verb("resume budgets")
def resume(name: StudyName, address: Address = None, at_most: AtMost = None, as_json: AsJson = False) -> None:
    """Resume a sweep: unfinished trials from their last checkpoint, then those that have not begun."""
    from orchestration.api import load_study

    _run_study(load_study(name), address, at_most, as_json)


@_verb("retry budgets")
def retry(name: StudyName, address: Address = None, at_most: AtMost = None, as_json: AsJson = False) -> None:
    """Run the failed trials of a sweep again, and those that are still to do; finished trials stay as they are."""
    from orchestration.api import load_study

    _run_study(load_study(name), address, at_most, as_json, retry=True)


@_verb("cancel budgets")
def cancel(name: StudyName) -> None:
    """Ask a sweep or matrix that runs in another terminal to stop, as Ctrl-C there would."""
    from orchestration.api import load_study
    from orchestration.run.heartbeat import ask_to_stop
    from orchestration.storage.workspace import Workspace

    ask_to_stop(load_study(name, Workspace.from_environment()).workspace, name)
    err.print(f"asked to stop; nothing finished is lost. Go on with: python orchestrate.py resume {name}", markup=False)


@_verb("status", "status budgets", "status table3 --watch")
def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="a sweep; none: all of them",
            autocompletion=completion.studies,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option(help="show it anew every 2 seconds, until nothing runs or Ctrl-C")] = False,
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


@_verb("report table3", "report budgets --out budgets.html", "report table3 --format latex --out tables.tex")
def report(
    name: Annotated[
        str,
        typer.Argument(
            help="a sweep or matrix, finished or not",
            autocompletion=completion.studies,
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="html, csv, latex or md")] = "html",
    out: Annotated[
        str | None, typer.Option(callback=_given, help="file to write; by default in ERAT_HOME/reports/NAME/")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write tables and figures beside the paper's into one file: a page to read, CSV, LaTeX or Markdown."""
    from orchestration.api import load_study

    path = load_study(name).report(out, format=form, what="--out")
    err.print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)", markup=False)
    if as_json:
        print(json.dumps({"name": name, "format": form, "files": [str(path)]}))


@_verb(
    "train defense.name=ce",
    "train --profile",
    "train --preset paper data.root=/data resources.gpu=1",
    "train train.workers=2",
)
def train(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    address: Address = None,
    force: Annotated[bool, typer.Option(help="run again even if this configuration is finished")] = False,
    profile: Annotated[
        bool, typer.Option(help="make a few steps only, and show where their time goes: a table and a trace")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one configuration; after an interruption, the same command resumes after the last epoch."""
    from erat.config import build
    from orchestration.commands import overview
    from orchestration.run.directory import RunDirectory
    from orchestration.search.driver import result_json
    from orchestration.search.launch import run_train
    from orchestration.storage.workspace import Workspace
    from orchestration.study.ledger import Ledger

    if profile and (dry_run or force or address is not None):
        raise UserError("--profile goes without --dry-run, --force and --address: it makes a few steps, here")
    given = _asked(overrides, config, preset)
    configuration = build(given.preset, given.overrides)
    if show_config:
        _print_config(configuration.flat(), as_json)
        return
    workspace = Workspace.from_environment(reading=dry_run)
    configuration = workspace.fingerprints()(configuration)
    if dry_run:
        content = overview.plan([configuration], workspace, Ledger(workspace.ledger), err, slots=1)
        if as_json:
            print(json.dumps(content))
        return
    if profile:
        from orchestration.commands.profile import profile_table, run_profile
        from orchestration.report.render.terminal import terminal

        result = run_profile(configuration, workspace)
        err.print(terminal(profile_table(result), rules=False))
        for path in result.files:
            err.print(f"  {path}", markup=False)
        if as_json:
            parts = {name.strip(): value for name, value, _ in result.rows()}
            print(
                json.dumps({"step_ms": result.step, "parts_ms": parts, "files": [str(path) for path in result.files]})
            )
        return
    try:
        row = run_train(configuration, workspace, Ledger(workspace.ledger), address=address, force=force)
    except KeyboardInterrupt:
        raise stopped("the same command goes on from the last epoch") from None
    overview.show_run(row, workspace, err)
    if as_json:
        print(json.dumps(result_json(row)))
    if row.status == "failed":
        show_failure(row.error, RunDirectory(workspace, row.cell).log)
        raise typer.Exit(EXIT_FAILED)


@_verb(
    "craft corruption.data=urp corruption.epsilon=2",
    "craft --preset paper data.root=/data corruption.data=l2c",
    "craft --preview",
    "craft --verify --seeds 0,1,2 --labels none,symmetric:0.6",
)
def craft(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    preview: Annotated[
        bool, typer.Option(help="draw a sheet of every data corruption, or of those in corruption.data=up,uap")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="train CE on every data corruption (or those named), and show how far it falls")
    ] = False,
    labels: Annotated[str, typer.Option(help="with --verify: label noises, KIND:RATE or none, with commas")] = "none",
    seeds: Annotated[str, typer.Option(help="with --verify: seeds of corruption and training, with commas")] = "0",
    address: Address = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Craft a corrupted set into the store ahead of training; preview it; verify that its corruption has an effect."""
    from erat.config import build
    from orchestration.api import Study
    from orchestration.commands import overview
    from orchestration.commands import verify as verification
    from orchestration.commands.preview import preview as draw_preview
    from orchestration.crafting import jobs, sets
    from orchestration.report.crafting import craft_view
    from orchestration.storage.workspace import Workspace
    from orchestration.study.spec import unfilled

    asked = _asked(overrides, config, preset, apart=("corruption.data",) if preview or verify else ())
    given = asked.overrides
    if not verify and (labels, seeds) != ("none", "0"):
        raise UserError("--labels and --seeds go with --verify; without it: corruption.labels, corruption.seed")
    if preview and verify:
        raise UserError("--preview and --verify are two things to do; give one of them")
    workspace = Workspace.from_environment(reading=dry_run or show_config, make=not show_config)
    fill = unfilled if show_config else workspace.fingerprints()
    if verify:
        numbers = _whole_numbers("--seeds", seeds)
        spec = verification.specification(asked.preset, given, labels.split(","), numbers, fill)
        if show_config:
            _print_config(spec.base.flat(), as_json)
            return
        study = Study(f"verify-{spec.identity()[:6]}", spec, 0, workspace)
        _plan_study(study, as_json) if dry_run else _run_study(study, address, None, as_json)
        return
    kinds = verification.kinds_of(given) if preview else []
    configs = [
        fill(build(asked.preset, one)) for one in [{**given, "corruption.data": kind} for kind in kinds] or [given]
    ]
    if show_config:
        _print_config(configs[0].flat(), as_json)
        return
    if dry_run:
        content = overview.plan_sets(configs, sets.missing_sets(configs, workspace), err)
    else:
        with craft_view() as view:
            if address is not None:
                jobs.craft_on_cluster(configs, workspace, address, view.show)
            sheet = draw_preview(configs, workspace, view.show) if preview else None
            crafted = None if preview else jobs.craft_here(configs[0], workspace, view.show)
        if crafted is not None:
            content = overview.crafted(crafted.manifest, err)
        else:
            content = {"preview": str(sheet)}
            err.print(f"a sheet to look at: {sheet}", markup=False)
    if as_json:
        print(json.dumps(content))


@_verb(
    "audit data.root=photos",
    "audit data.root=photos --dry-run",
    "audit data.root=labels.csv data.image_size=64 --search",
    "audit data.root=scans.npz train.epochs=30 --folds 8 --name scans",
)
def audit(
    overrides: Overrides = None,
    folds: Annotated[
        int, typer.Option(min=2, max=100, help="each image is judged by networks trained without its fold")
    ] = 4,
    search: Annotated[bool, typer.Option(help="choose the defense budgets on validation data first")] = False,
    name: Annotated[str | None, typer.Option(help="of the report; none: after the folder")] = None,
    config: ConfigFile = None,
    show_config: ShowConfig = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say how long it takes and what it would write; write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on your own images, and find out which labels are wrong and whether the images are poisoned.

    data.root is a folder of class folders, a .csv (path, label), a .parquet or a .npz file. It is only read.
    """
    from orchestration.audit.execute import run_audit
    from orchestration.audit.files import track_audit, write_audit
    from orchestration.audit.gallery import sentences
    from orchestration.storage.workspace import Workspace
    from orchestration.tracking.tracker import Tracker

    given = parse_overrides(overrides)
    if config is not None:
        from orchestration.study.config_files import read_plain

        given = read_plain(config, "an audit") | given
    nothing = dry_run or show_config
    workspace = Workspace.from_environment(reading=nothing, make=not nothing)
    name = _checked(name)
    if show_config:
        from orchestration.audit.execute import audited_keys, prepare

        _print_config(audited_keys(prepare(given, workspace, folds=folds, search=search, name=name), given), as_json)
        return
    if dry_run:
        from orchestration.audit.execute import prepare
        from orchestration.audit.outline import outline, show_outline

        content = outline(prepare(given, workspace, folds=folds, search=search, name=name), workspace)
        show_outline(content, err)
        if as_json:
            print(json.dumps(content))
        return
    tracker = Tracker.open(workspace)
    try:
        findings = run_audit(given, workspace, folds=folds, search=search, name=name)
    except KeyboardInterrupt:
        raise stopped("the same command goes on after the last finished fold") from None
    page, content = write_audit(findings, workspace)
    content["mlflow_run_id"] = track_audit(findings, content, page.parent, tracker)
    for sentence in sentences(findings):
        err.print(sentence, markup=False)
    err.print(f"{page}", markup=False)
    if as_json:
        print(json.dumps(content))


def _checked(name: str | None) -> str | None:
    """Return the name that was asked for, if there is one, after checking that it is allowed."""
    from orchestration.api import check_name

    return None if name is None else check_name(name, "--name")


def _whole_numbers(what: str, words: str) -> list[int]:
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        raise UserError(f"{what} must be whole numbers with commas between them, got {shown(words)}") from None
    if not all(0 <= number < 2**32 for number in numbers):
        raise UserError(f"{what} must be whole numbers in [0, 2^32), got {shown(words)}")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{what} must name each seed once, got {shown(words)}")
    return numbers


@_verb("config corruption", "config defense.eta --preset paper", "config --defense dat", "config --format md")
def config(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY or PREFIX]...", help="none: all", show_default=False, autocompletion=completion.keys
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            callback=_given,
            help="only the keys of runs with this one",
            autocompletion=completion.defenses,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="whose defaults are shown: demo, paper or official",
            autocompletion=completion.presets,
        ),
    ] = "demo",
    form: Annotated[str, typer.Option("--format", help="text or md")] = "text",
    as_json: AsJson = False,
) -> None:
    """List every key of a configuration: type, default, allowed values and meaning."""
    from orchestration.commands.configuration import listing

    text, content = listing(keys or [], preset, defense, form)
    print(json.dumps(content) if as_json else text, end="\n" if as_json else "")


@_verb("ui", "ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="127.0.0.1 or localhost; MLflow asks nobody for a password")] = "127.0.0.1",
) -> None:
    """Serve MLflow's page on this project's store until Ctrl-C."""
    from orchestration.storage.workspace import Workspace
    from orchestration.tracking import tracker

    server = tracker.serve(Workspace.from_environment(reading=True), host, port)
    err.print(f"MLflow is at http://{host}:{port} (Ctrl-C ends it)")
    try:
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        tracker.stop_server(server)


@_verb("doctor", "doctor --address auto", "doctor --address auto --storage s3://bucket/runs")
def doctor(
    address: Address = None,
    storage: Annotated[
        str | None, typer.Option(callback=_given, help="that every node must see, as storage.path of a run")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what this machine and cluster can do, and what is missing: versions, devices, storage, tracking, disk."""
    from orchestration.commands import doctor
    from orchestration.storage.workspace import Workspace

    content = doctor.check(Workspace.from_environment(reading=True).sharing(storage), address, err)
    if as_json:
        print(json.dumps(content))
    if not content["ok"]:
        raise typer.Exit(EXIT_FAILED)


def _run_study(study: Study, address: str | None, at_most: int | None, as_json: bool, *, retry: bool = False) -> None:
    """Run what is left of a study, show its results, and exit with status 1 if a trial failed."""
    from orchestration.commands import overview
    from orchestration.run.directory import RunDirectory
    from orchestration.search.driver import best_json, result_json

    _say_if_fewer(study)
    try:
        (study.retry if retry else study.run)(address, at_most=at_most)
    except KeyboardInterrupt:
        again = f"python orchestrate.py resume {study.name}" if study.begun else "the same command"
        raise stopped(f"nothing finished is lost. Go on with: {again}") from None
    end = study.end
    assert end is not None, "it ran"
    rows = end.driver.trials
    overview.show_sweep(end, err)
    if as_json:
        content = {
            "name": study.name,
            "tracking_uri": end.driver.tracker.uri,
            "wall_seconds": end.wall_seconds,
            "best": best_json(rows),
            "runs": [result_json(row) for row in rows],
        }
        print(json.dumps(content))
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        err.print(f"trial {row.number} failed:", style="bold red")
        show_failure(row.error, RunDirectory(study.workspace, row.cell).log)
    if failed:
        err.print(f"try the failed ones again with: python orchestrate.py retry {study.name}")
        raise typer.Exit(EXIT_FAILED)


def _plan_study(study: Study, as_json: bool) -> None:
    """Show what a study would run."""
    from orchestration.commands import overview
    from orchestration.study.ledger import Ledger

    _say_if_fewer(study)
    ledger = Ledger(study.workspace.ledger)
    content = overview.plan_sweep(study.name, study.spec, study.search_trials, study.workspace, ledger, err)
    if as_json:
        print(json.dumps(content))


def _say_if_fewer(study: Study) -> None:
    if study.asked < study.search_trials:
        err.print(
            f"the sweep has {study.search_trials} search trials already; asking for {study.asked} takes none away"
        )


def main() -> None:
    """Run the command and exit with its status.

    0: done; 1: a run failed; 2: the input is wrong; 70: an unforeseen error; 130: interrupted; 141: the reader of
    standard output has closed it.
    """
    quiet()
    signal.signal(signal.SIGTERM, _as_interrupt)
    sys.exit(guarded(_run))


def _run() -> Any:
    code = app(standalone_mode=False)
    sys.stdout.flush()  # output that cannot be written is reported here, not when Python ends
    return code


def _as_interrupt(number: int, frame: Any) -> None:
    """Treat a request to end like Ctrl-C, so that servers are stopped and a sweep says how to resume it."""
    raise KeyboardInterrupt
