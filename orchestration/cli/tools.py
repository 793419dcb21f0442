"""Defines the verbs that explain and check: configuration keys, MLflow's page, this machine and a cluster."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from orchestration.cli.options import Address, AsJson, nonempty, verb
from orchestration.commands import completion
from orchestration.commands.console import EXIT_FAILED, err

verbs = typer.Typer()


@verb(verbs, "config corruption", "config defense.eta --preset paper", "config --defense dat", "config --format md")
def config(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY or PREFIX]...",
            help="none: all keys",
            show_default=False,
            autocompletion=completion.keys,
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            callback=nonempty,
            help="only the keys of runs with this defense",
            autocompletion=completion.defenses,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="preset whose defaults are shown: demo, medium, paper or official",
            autocompletion=completion.presets,
        ),
    ] = "demo",
    form: Annotated[str, typer.Option("--format", help="format of the list: text or md")] = "text",
    as_json: AsJson = False,
) -> None:
    """List every key of a configuration: type, default, allowed values and meaning."""
    from orchestration.commands.configuration import listing

    text, content = listing(keys or [], preset, defense, form)
    print(json.dumps(content) if as_json else text, end="\n" if as_json else "")


@verb(verbs, "ui", "ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    mlflow_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of MLflow's page; none: the first free one after --port")
    ] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 or localhost; nobody is asked for a password")] = "127.0.0.1",
) -> None:
    """Serve a page that shows studies as they run and afterwards, and MLflow on this project's store, until Ctrl-C."""
    from orchestration.commands.ui import serve_pages
    from orchestration.storage.workspace import Workspace

    workspace = Workspace.from_environment(reading=True)
    serve_pages(workspace, host, port, mlflow_port, lambda words: err.print(words, markup=False))


@verb(verbs, "doctor", "doctor --address auto", "doctor --address auto --storage s3://bucket/runs")
def doctor(
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(callback=nonempty, help="folder or URL that every node must see, as storage.path"),
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
