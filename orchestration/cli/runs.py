"""Defines the verbs without a study: one run, a corrupted set, an audit of a user's own images."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from erat.errors import UserError
from orchestration.cli.options import (
    Address,
    AsJson,
    ConfigFile,
    DryRun,
    Overrides,
    Preset,
    ShowConfig,
    checked_name,
    nonempty,
    parse_overrides,
    print_config,
    read_asked,
    verb,
    whole_numbers,
)
from orchestration.cli.running import plan_or_run
from orchestration.commands import completion
from orchestration.commands.console import EXIT_FAILED, err, show_failure, stopped

verbs = typer.Typer()


@verb(
    verbs,
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
    from orchestration.commands import plan as planning
    from orchestration.report.results import result_json
    from orchestration.run.directory import RunDirectory
    from orchestration.search.launch import run_train
    from orchestration.storage.workspace import Workspace
    from orchestration.study.ledger import Ledger

    if profile and (dry_run or force or address is not None):
        raise UserError("--profile goes without --dry-run, --force and --address: it makes a few steps, here")
    given = read_asked(overrides, config, preset)
    configuration = build(given.preset, given.overrides)
    if show_config:
        print_config(configuration.flat(), as_json)
        return
    workspace = Workspace.from_environment(reading=dry_run)
    configuration = workspace.fingerprints()(configuration)
    if dry_run:
        if address is not None:
            planning.find_room(configuration, address, None, None)  # refuses a cluster on which the run does not fit
        on_ray = address is not None or configuration.train.workers > 1
        content = planning.plan([configuration], workspace, Ledger(workspace.ledger), err, on_ray=on_ray)
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


@verb(
    verbs,
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
    from orchestration.commands import plan as planning
    from orchestration.commands import verify as verification
    from orchestration.commands.preview import preview as draw_preview
    from orchestration.crafting import jobs, sets
    from orchestration.report.crafting import craft_view
    from orchestration.storage.workspace import Workspace
    from orchestration.study.spec import unfilled

    asked = read_asked(overrides, config, preset, apart=("corruption.data",) if preview or verify else ())
    given = asked.overrides
    if not verify and (labels, seeds) != ("none", "0"):
        raise UserError("--labels and --seeds go with --verify; without it: corruption.labels, corruption.seed")
    if preview and verify:
        raise UserError("--preview and --verify are two things to do; give one of them")
    workspace = Workspace.from_environment(reading=dry_run or show_config, make=not show_config)
    fill = unfilled if show_config else workspace.fingerprints()
    if verify:
        numbers = whole_numbers("--seeds", seeds)
        spec = verification.specification(asked.preset, given, labels.split(","), numbers, fill)
        if show_config:
            print_config(spec.base.flat(), as_json)
            return
        study = Study(f"verify-{spec.identity()[:6]}", spec, 0, workspace)
        plan_or_run(study, address, None, as_json, dry_run=dry_run)
        return
    kinds = verification.kinds_of(given) if preview else []
    configs = [
        fill(build(asked.preset, one)) for one in [{**given, "corruption.data": kind} for kind in kinds] or [given]
    ]
    if show_config:
        print_config(configs[0].flat(), as_json)
        return
    if dry_run:
        content = planning.plan_sets(configs, sets.missing_sets(configs, workspace), err)
        if address is not None:
            room = planning.find_room(configs[0], address, None, None, workers=1)
            err.print(f"  {room.slots} crafted at a time, {room.words}", markup=False)
            content["slots"] = room.slots
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


@verb(
    verbs,
    "evaluate 3f9c",
    "evaluate 3f9c --threats linf,l2 --samples 1000",
    "evaluate 3f9c --budgets linf=2/255,4/255,8/255 --budgets l0=1,5",
    "evaluate runs/cells/3f9c0a7d52e1b684 --attacks pgd,apgd,standard --samples 100 --json",
)
def evaluate(
    run: Annotated[
        str,
        typer.Argument(help="first digits of a run in ERAT_HOME/cells, or its folder", autocompletion=completion.runs),
    ],
    threats: Annotated[
        str | None,
        typer.Option(
            callback=nonempty,
            help="threat models with commas, of linf, l2, l1, l0, ssim, wasserstein; none: those of --budgets, or all "
            "with a customary budget",
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE,SIZE",
            help="budgets of a threat model; may be given for each. None: 1/4, 1/2, 1 and 2 times the customary one",
            show_default=False,
        ),
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            callback=nonempty,
            help="attacks with commas: pgd, apgd, and standard, AutoAttack's ensemble, which takes minutes for 100 "
            "images even of a small network on a CPU",
        ),
    ] = "pgd,apgd",
    samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="test images at most, evenly spaced")] = 500,
    force: Annotated[bool, typer.Option(help="evaluate again what has been evaluated")] = False,
    as_json: AsJson = False,
) -> None:
    """Attack a trained run's test images under every threat model: accuracy against budget, with a figure.

    Clean accuracy and that under common corruptions stand beside it. After an interruption, the same command goes on.
    """
    from orchestration.commands.evaluate import Asked
    from orchestration.commands.evaluate import evaluate as measured
    from orchestration.report.render.terminal import terminal
    from orchestration.report.robustness import attack_table, corruption_table
    from orchestration.storage.workspace import Workspace

    asked = Asked(threats, budgets or [], attacks, samples, force)
    try:
        found, files = measured(run, asked, Workspace.from_environment(reading=True, make=False))
    except KeyboardInterrupt:
        raise stopped("the same command goes on after the last finished attack") from None
    err.print(terminal(attack_table(found)), terminal(corruption_table(found)), sep="\n")
    for file in files:
        err.print(f"  {file}", markup=False)
    if as_json:
        print(json.dumps(found.model_dump() | {"files": [str(file) for file in files]}))


@verb(
    verbs,
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
    name: Annotated[str | None, typer.Option(help="name of the report; none: that of the folder")] = None,
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
    name = checked_name(name)
    if show_config:
        from orchestration.audit.execute import audited_keys, prepare

        print_config(audited_keys(prepare(given, workspace, folds=folds, search=search, name=name), given), as_json)
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
