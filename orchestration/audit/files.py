"""Writes the results of an audit to `ERAT_HOME/reports/NAME/`: lists, a page, figures, and the classifier."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erat.engine.checkpoint import save
from erat.export import export_program, exportable
from erat.files import write_atomic
from orchestration.audit.copies import copies_table
from orchestration.audit.execute import Findings
from orchestration.audit.gallery import audit_page, class_rows, poison_verdict, worst_first
from orchestration.audit.review import RELABEL, cleaned_list, cleaned_table, kept_rows
from orchestration.report.render.spreadsheet import csv_text
from orchestration.report.table import Table
from orchestration.storage.workspace import Workspace

if TYPE_CHECKING:
    from orchestration.tracking.tracker import Tracker

FILES = {
    "labels.csv": "every image with its quality, suggested label, fold, and whether its label is probably wrong",
    "cleaned.csv": f"a list to keep working with (data.root=cleaned.csv): labels that are probably wrong are replaced "
    f"where the suggestion is at least {RELABEL:.0%} sure, else their images are left out",
    "copies.csv": "every image that shows the same picture as another, or nearly the same, group by group",
    "audit.json": "all figures of this page",
    "model.pt2": "the classifier, trained on all images, as an exported program: float32 images (N, C, H, W) in [0, 1] "
    "to probabilities",
    "model.json": "its classes, image size and settings",
    "mlflow-model": "the same as an MLflow model: mlflow models serve -m mlflow-model --env-manager local",
    "weights.pt": "its weights alone",
}
ARRAYS = ("cleaned.npz", "the cleaned images and labels as arrays, since these images have no files")


def write_audit(findings: Findings, workspace: Workspace) -> tuple[Path, dict[str, Any]]:
    """Write all files of an audit.

    Returns:
        (the path of the page, what `--json` prints).
    """
    from orchestration.tracking.opening import save_model

    folder = workspace.report(findings.name)
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(FILES)
    _write_csv(folder / "labels.csv", _labels(findings))
    cleaned = cleaned_list(findings)
    _write_csv(folder / "cleaned.csv", cleaned_table(cleaned))
    _write_csv(folder / "copies.csv", copies_table(findings.copies))
    if any(isinstance(source, np.ndarray | bytes) for source in findings.collection.sources):
        files[ARRAYS[0]] = ARRAYS[1]
        _write_arrays(folder / ARRAYS[0], findings)
    images = findings.plan.images
    shape = tuple(images.images.shape[1:])
    export_program(findings.defense, shape, folder / "model.pt2")
    save(folder / "weights.pt", findings.defense.networks.state_dict())
    description = {
        "classes": images.class_names,
        "image": {"channels": shape[0], "height": shape[1], "width": shape[2], "range": [0, 1]},
        "config": findings.plan.robust.flat(),
    }
    write_atomic(folder / "model.json", json.dumps(description, indent=1).encode())
    shutil.rmtree(folder / "mlflow-model", ignore_errors=True)
    example = images.images[:2].float().div(255).numpy()
    save_model(exportable(findings.defense), example, images.class_names, folder / "mlflow-model")
    content = summary(findings) | {"files": [str(folder / name) for name in ("index.html", *files)]}
    write_atomic(folder / "audit.json", json.dumps(content, indent=1).encode())
    page = folder / "index.html"
    write_atomic(page, audit_page(findings, list(files.items()), cleaned).encode("utf-8", "replace"))
    return page, content


def track_audit(findings: Findings, content: Mapping[str, Any], folder: Path, tracker: Tracker) -> str:
    """Log an audit to MLflow as one run, with settings, figures and all files of its folder; return the run's id."""
    tags = {"root": content["root"], "defense": findings.plan.robust.defense.name}
    run = tracker.start_parent(findings.name, kind="audit", tags=tags, params=content["config"])
    poisoning = findings.audit.poisoning
    figures = {
        "images": content["images"],
        "issues": content["issues"],
        "copies": len(content["copies"]),
        "noise_rate": content["noise_rate"],
        "poisoned": float(poisoning.poisoned),
        "accuracy_gap": poisoning.gap.value,
        "separability": poisoning.separability.value,
        "wall_seconds": findings.seconds,
    }
    figures |= {f"believed_{way}": share for way, share in findings.audit.believed.items()}
    figures |= {
        f"accuracy_{way}_{hold.kind}_{hold.strength:.4g}": accuracy
        for hold in findings.holds
        for way, accuracy in hold.accuracy.items()
    }
    tracker.finish_parent(run, summary=figures, artifacts=folder, ok=True)
    tracker.flush()
    return run


def summary(findings: Findings) -> dict[str, Any]:
    """Return all findings as JSON-like values."""
    audit, images = findings.audit, findings.plan.images
    names = findings.collection.names
    return {
        "name": findings.name,
        "root": str(findings.collection.root),
        "images": len(images),
        "classes": class_rows(audit, findings.selected),
        "skipped": [entry._asdict() for entry in findings.collection.skipped],
        "issues": int(audit.issue.sum()),
        "noise_rate": audit.noise.rate,
        "transition": audit.noise.transition.tolist(),
        "conflicts": [[names[row] for row in group] for group in audit.conflicts],
        "copies": [group.as_json() for group in findings.copies],
        "poisoned": audit.poisoning.poisoned,
        "poisoning": {
            "verdict": poison_verdict(audit.poisoning),
            "gap": asdict(audit.poisoning.gap),
            "separability": asdict(audit.poisoning.separability),
            "images": audit.poisoning.images,
            "accuracy": audit.poisoning.accuracy,
        },
        "erat_alone": audit.alone,
        "agreement": audit.agreement,
        "believed": audit.believed,
        "robustness": [asdict(hold) for hold in findings.holds],
        "search": {f"{scale:g}": value for scale, value in findings.searched.items()},
        "config": findings.plan.robust.flat(),
        "folds": findings.plan.folds,
        "wall_seconds": findings.seconds,
    }


def _labels(findings: Findings) -> Table:
    """Return a table with one line per image, the worst labels first."""
    audit, plan, names = findings.audit, findings.plan, findings.plan.images.class_names
    head = ["path", "label", "quality", "issue", "suggested", "probability", "judged", "selected", "fold", "part"]
    worst = worst_first(audit)
    rest = torch.ones(len(plan.images), dtype=torch.bool)
    rest[worst] = False
    others = rest.nonzero().squeeze(1)
    order = torch.cat([worst, others[audit.quality[others].argsort(stable=True)]])
    lines: list[list[Any]] = []
    for row in order.tolist():
        lines.append(
            [
                findings.collection.names[row],
                names[int(plan.images.labels[row])],
                f"{float(audit.quality[row]):.4f}",
                int(audit.issue[row]),
                names[int(audit.suggested[row])],
                f"{float(audit.probability[row]):.4f}",
                int(plan.judged[row]),
                int(findings.selected[row]),
                int(plan.fold[row]),
                findings.collection.parts[row],
            ]
        )
    return Table.of(head, lines)


def _write_csv(path: Path, table: Table) -> None:
    write_atomic(path, csv_text(table, "\r\n").encode("utf-8", "surrogateescape"))  # file names may be any bytes


def _write_arrays(path: Path, findings: Findings) -> None:
    rows, labels, _ = kept_rows(findings)
    images = findings.plan.images.images[torch.tensor(rows, dtype=torch.int64)]
    parts = np.array([findings.collection.parts[row] for row in rows])
    content: dict[str, Any] = {}
    for prefix, chosen in (("", parts != "test"), ("test_", parts == "test")):
        if chosen.any():
            content |= {f"{prefix}images": images.numpy()[chosen], f"{prefix}labels": np.array(labels)[chosen]}
    if findings.checked is not None:
        trusted = findings.checked.images
        words = np.array([trusted.class_names[k] for k in trusted.labels.tolist()])
        content |= {"trusted_images": trusted.images.numpy(), "trusted_labels": words}
    file = io.BytesIO()
    np.savez_compressed(file, **content)
    write_atomic(path, file.getvalue())
