"""Writes the files that a study leaves when it ends: its tables, its figures and its specification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from erat.files import write_atomic
from orchestration.report.documents import grid_text, matrix_text, search_text
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial


def write_files(spec: StudySpec, trials: Sequence[Trial], folder: Path) -> list[str]:
    """Write tables and figures of a study into its report folder, and return the paths of those to look at."""
    columns = spec.space.columns
    documents = {f"summary.{form}": search_text(form, trials, columns, pareto=spec.pareto) for form in ("md", "csv")}
    if spec.kind == "matrix":
        documents |= {f"matrix.{form}": matrix_text(form, trials) for form in ("md", "csv")}
    elif spec.kind == "list":
        documents["grid.md"] = grid_text("md", trials, columns)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        write_atomic(folder / name, text.encode())
    write_atomic(folder / "spec.json", json.dumps(spec.content(), indent=2, default=str).encode())
    return [str(path) for path in [*(folder / name for name in documents), *_figures(spec, trials, folder)]]


def _figures(spec: StudySpec, trials: Sequence[Trial], folder: Path) -> list[Path]:
    # Imported here because plotting loads slowly, and only callers that draw need it.
    if spec.kind == "search":
        from orchestration.report.figures import sweep_figure

        listed = [trial for trial in trials if trial.source == "baseline"]
        searched = [trial for trial in trials if trial.source != "baseline"]
        paths = sweep_figure(spec.space.name, searched, listed, folder)
        if spec.pareto:
            from orchestration.report.pareto import pareto_figure

            paths += pareto_figure(trials, folder)
        return paths
    if spec.kind == "list":
        from orchestration.report.grid_figure import grid_figure

        return grid_figure(trials, folder)
    return []
