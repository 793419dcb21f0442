"""Renders an audit as one HTML file: worst labels with their pictures, classes, transitions, poisoning, robustness."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from erat.audit.audit import Audit
from erat.audit.poisoning import BITS, FEW, Measure, PoisonTest, flat_residual
from erat.audit.robustness import Hold
from erat.data.image_files import Source, decode
from orchestration.audit.copies import copy_sentences
from orchestration.audit.review import Cleaned, review_data
from orchestration.report.notation import duration
from orchestration.report.render.html import asset, page
from orchestration.report.table import Cell, Part, Row, Table

if TYPE_CHECKING:
    from orchestration.audit.execute import Findings

MOST_CARDS = 120
THUMBNAIL = 96  # pixels a side
MOST_CLASSES = 24  # classes up to which the matrix and the residuals are drawn
MOST_PAIRS = 12
MOST_GROUPS, MOST_NAMES, MOST_PICTURES = 60, 8, 4  # groups of copies; names and pictures of each group
FLOOD = 1.5  # a class is flooded if more than this many times as many images have its label as seem to show it


def audit_page(findings: Findings, files: Sequence[tuple[str, str]], cleaned: Sequence[Cleaned]) -> str:
    """Return the whole HTML file.

    Args:
        files: (name, description) of each file in the folder of the page.
        cleaned: the lines of cleaned.csv, and those that it leaves out; a review begins with them.
    """
    audit, plan = findings.audit, findings.plan
    cards = _cards(findings)
    few = plan.images.num_classes <= MOST_CLASSES
    return page(
        "audit.html",
        name=findings.name,
        root=str(findings.collection.root),
        style=asset("page.css", "audit.css"),
        script=asset("audit.js"),
        sentences=sentences(findings),
        facts=_facts(findings),
        cards=cards,
        issues=int(audit.issue.sum()),
        review=Markup(review_data(findings, [card["row"] for card in cards], cleaned)),
        labels_shown=sorted({card["given"] for card in cards}),
        classes=_classes(class_rows(audit, findings.selected)),
        rate=audit.noise.rate,
        transitions=_transitions(audit) if few else None,
        pairs=_pairs(audit),
        poison=_poison(audit, few),
        holds=_holds(findings.holds),
        holds_on=_holds_on(findings),
        copies=_copies(findings),
        more_copies=max(0, len(findings.copies) - MOST_GROUPS),
        skipped=findings.collection.skipped,
        method=_method(findings),
        files=files,
    )


# --- text ------------------------------------------------------------------------------------------------------------


def sentences(findings: Findings) -> list[str]:
    """Return the findings as sentences, the most important first."""
    audit, total = findings.audit, len(findings.plan.images)
    flooded = [row["name"] for row in class_rows(audit, findings.selected) if row["flooded"]]
    found = [
        f"{int(audit.issue.sum())} of {total} labels are probably wrong ({audit.noise.rate:.1%}).",
        poison_verdict(audit.poisoning),
    ]
    if audit.disagree:
        found.append(
            f"ERAT has learnt the given labels far less than plain training has (of the images held out "
            f"{_both(audit.agreement)}). "
            + (
                "The perturbation may follow wrong labels, so what is said of labels here rests on ERAT alone."
                if audit.alone
                else "It may need more epochs or other budgets (--search)."
            )
        )
    if flooded:
        found.append(f"Flooded by images of other classes: {', '.join(flooded)}.")
    found += copy_sentences(findings.copies)
    alone = sorted(
        {findings.plan.images.class_names[int(k)] for k in findings.plan.images.labels[~findings.plan.judged]}
    )
    if alone:
        found.append(f"Of one picture each, and so not judged: {', '.join(alone)}.")
    if findings.collection.skipped:
        found.append(f"{len(findings.collection.skipped)} entries could not be used.")
    return found


def poison_verdict(test: PoisonTest) -> str:
    """Return the result of the tests for a perturbation as one sentence."""
    if test.images < FEW:
        return f"Whether the images carry a perturbation cannot be told from {test.images} images with sure labels."
    if test.poisoned:
        return "The images carry a perturbation that stands for their class: they are probably poisoned."
    return "No perturbation that stands for a class is found in the images."


def hold_words(hold: Hold) -> str:
    """Return the name of a condition in words, such as "APGD, l_inf 0.0314" or "noise, standard deviation 0.08"."""
    if hold.kind == "none":
        return "as they are"
    if hold.kind in ("linf", "l2"):
        return f"APGD, {'l_inf' if hold.kind == 'linf' else 'l_2'} {hold.strength:.3g}"
    unit = {"noise": "standard deviation", "blur": "sigma", "jpeg": "quality"}[hold.kind]
    return f"{'JPEG' if hold.kind == 'jpeg' else hold.kind}, {unit} {hold.strength:g}"


def _holds_on(findings: Findings) -> str:
    if findings.checked is not None:
        return "the trusted images"
    return "the first fold, which neither has seen, without the labels that are probably wrong"


def _facts(findings: Findings) -> list[tuple[str, str]]:
    audit, images = findings.audit, findings.plan.images
    config = findings.plan.robust.flat()
    facts = [
        ("images", f"{len(images)}, {images.size} x {images.size}, {'grey' if images.channels == 1 else 'RGB'}"),
        ("classes", str(images.num_classes)),
        ("folds", str(findings.plan.folds)),
        ("network", f"{config['model.name']}, {config['train.epochs']} epochs"),
        ("held-out images that get their given label", _both(audit.agreement)),
        ("... the label that the audit believes", _both(audit.believed)),
        ("budgets", f"l_inf {config.get('defense.epsilon_inf', 0):.3g}, l_2 {config.get('defense.epsilon_2', 0):.3g}"),
        ("time", duration(findings.seconds)),
    ]
    if findings.searched:
        reached = ", ".join(f"x {scale:g}: {value:.1%}" for scale, value in findings.searched.items())
        facts.append(("validation accuracy by scale of the budgets", reached))
    return facts


def _both(figures: dict[str, float]) -> str:
    return f"ERAT {figures['robust']:.1%}, CE {figures['plain']:.1%}"


def _method(findings: Findings) -> list[str]:
    return [
        f"The images were dealt into {findings.plan.folds} folds, copies of a picture into one. For each fold ERAT and "
        "plain cross-entropy were trained without it, and judged it in each epoch of the second half.",
        "The score of a label is the paper's (Eq. 1), of the mean of both predictions, made equally sure, averaged "
        "over those epochs. A label is probably wrong where another class is likelier and the score is clear.",
        "The original files were read and never written to.",
    ]


# --- tables ----------------------------------------------------------------------------------------------------------


def class_rows(audit: Audit, selected: Tensor) -> list[dict[str, Any]]:
    """Return one row per class: how many images have its label, seem to show it, are issues, and are believed."""
    images, noise = audit.plan.images, audit.noise
    issues = torch.bincount(images.labels[audit.issue], minlength=images.num_classes)
    kept = torch.bincount(images.labels[selected], minlength=images.num_classes)
    judged = set(images.labels[audit.plan.judged].tolist())
    rows = []
    for k, name in enumerate(images.class_names):
        given, estimated = int(noise.given[k]), int(noise.estimated[k])
        rows.append(
            {
                "name": name,
                "given": given,
                "estimated": estimated,
                "issues": int(issues[k]),
                "share": int(issues[k]) / max(given, 1),
                "selected": int(kept[k]),
                "judged": k in judged,
                "flooded": given > FLOOD * max(estimated, 1) and int(issues[k]) > 0.2 * given,
            }
        )
    return rows


def _classes(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what `class_rows` found, flooded classes in bold."""
    lines = []
    for row in rows:
        remarks = [Part(" flooded", "error")] if row["flooded"] else []
        remarks += [] if row["judged"] else [Part(" one picture: not judged", "n")]
        figures = (row["given"], row["estimated"], row["issues"], f"{100 * row['share']:.1f} %", row["selected"])
        lines.append(Row((Cell(row["name"], tail=tuple(remarks)), *figures), chosen=row["flooded"]))
    headings = ("class", "wear the label", "seem to show it", "issues", "share", "kept for training")
    return Table.of(headings, lines)


def _transitions(audit: Audit) -> Table:
    """Return the share of the images of each class that wear each label, in percent."""
    names = audit.plan.images.class_names
    lines = [
        [name, *(Cell(f"{100 * share:.0f}" if share >= 0.005 else "", shade=share) for share in row)]
        for name, row in zip(names, audit.noise.transition.tolist(), strict=True)
    ]
    return Table.of(["seems to show", *names], lines)


def _holds(holds: Sequence[Hold]) -> Table:
    """Return the accuracies of both networks under each condition, in percent."""
    lines = []
    for hold in holds:
        reached = [f"{100 * hold.accuracy[way]:.1f}" for way in ("robust", "plain")]
        lines.append([hold_words(hold), *reached, hold.images])
    return Table.of(["condition", "ERAT", "CE", "images"], lines)


def _pairs(audit: Audit) -> list[dict[str, Any]]:
    images = audit.plan.images
    names, believed = images.class_names, audit.believed_labels
    codes, counts = torch.unique((believed * images.num_classes + images.labels)[audit.issue], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_PAIRS]
    pairs = [(int(codes[i]) // images.num_classes, int(codes[i]) % images.num_classes, int(counts[i])) for i in order]
    return [{"shows": names[shows], "wears": names[wears], "count": count} for shows, wears, count in pairs]


# --- pictures --------------------------------------------------------------------------------------------------------


def worst_first(audit: Audit) -> Tensor:
    """Return the rows of the images with issues, those of least quality first; int64."""
    rows = audit.issue.nonzero().squeeze(1)
    return rows[audit.quality[rows].argsort(stable=True)]


def _cards(findings: Findings) -> list[dict[str, Any]]:
    audit, names = findings.audit, findings.plan.images.class_names
    cards = []
    for row in worst_first(audit)[:MOST_CARDS].tolist():
        cards.append(
            {
                "name": findings.collection.names[row].encode("utf-8", "replace").decode(),
                "given": names[int(findings.plan.images.labels[row])],
                "suggested": names[int(audit.suggested[row])],
                "probability": float(audit.probability[row]),
                "quality": float(audit.quality[row]),
                "picture": thumbnail(findings.collection.sources[row], findings.plan.images.images[row]),
                "row": row,
            }
        )
    return cards


def _copies(findings: Findings) -> list[dict[str, Any]]:
    """Return the groups of copies for the page, with large groups shortened."""
    count = len(findings.collection)

    def picture(place: int) -> str:
        own, row = (findings.collection, place) if place < count else (findings.checked, place - count)
        assert own is not None, "places from there on are those of the trusted images"
        return thumbnail(own.sources[row], own.images.images[row])

    return [
        {
            "words": group.words,
            "alarming": group.labels_differ or group.parts_differ,
            "copies": [
                {
                    "name": copy.name.encode("utf-8", "replace").decode(),
                    "label": copy.label,
                    "part": copy.part,
                    # Of the same pixels one picture is enough.
                    "picture": picture(copy.place) if number < (1 if group.exact else MOST_PICTURES) else None,
                }
                for number, copy in enumerate(group.copies[:MOST_NAMES])
            ],
            "more": max(0, len(group.copies) - MOST_NAMES),
        }
        for group in findings.copies[:MOST_GROUPS]
    ]


def thumbnail(source: Source, pixels: Tensor) -> str:
    """Return a data URI of the original, cut and shrunk, or of `pixels` if the original is an array or cannot be read.

    Args:
        source: the original.
        pixels: the image as it was read, uint8 (C, H, W).
    """
    if not isinstance(source, np.ndarray):
        decoded = decode(source, THUMBNAIL)
        if not isinstance(decoded, str):  # the file may have been deleted since
            return _uri(decoded.pixels)
    return _uri(_enlarged(pixels))


def _enlarged(pixels: Tensor) -> NDArray[np.uint8]:
    """Enlarge small pictures by a whole factor and return them as (H, W) or (H, W, 3)."""
    times = max(1, THUMBNAIL // pixels.shape[-1])
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy().repeat(times, 0).repeat(times, 1)
    return array[..., 0] if array.shape[-1] == 1 else array


def _uri(array: NDArray[np.uint8]) -> str:
    options: list[tuple[str, dict[str, Any]]] = [("PNG", {"optimize": True}), ("JPEG", {"quality": 85})]
    best = b""
    for form, settings in options:
        file = io.BytesIO()
        Image.fromarray(array).save(file, form, **settings)
        if not best or file.tell() < len(best):
            best, kind = file.getvalue(), form.lower()
    return f"data:image/{kind};base64,{base64.b64encode(best).decode()}"


def _result(test: PoisonTest, one: Measure) -> str:
    """Return the result of one of the tests as its verdict has it: of few images, neither tells anything."""
    return "cannot be told" if test.images < FEW else "found" if one.found else "not found"


def _poison(audit: Audit, few: bool) -> dict[str, Any]:
    test = audit.poisoning
    pictures, times = _residuals(audit) if few else ([], 0.0)
    plain, robust = test.accuracy["plain"], test.accuracy["robust"]
    return {
        "verdict": poison_verdict(test),
        "measures": Table.of(
            ["test", "figure", "counts above", "result"],
            [
                (one.name, f"{one.value:.3f}", f"{one.threshold:.2f}", _result(test, one))
                for one in (test.gap, test.separability)
            ],
        ),
        "accuracy": f"Washed to {BITS} bits a channel, plain training falls from {plain['as it is']:.1%} to "
        f"{plain['washed']:.1%} and ERAT from {robust['as it is']:.1%} to {robust['washed']:.1%} on held-out images, "
        f"{test.images} of them with sure labels.",
        "note": "Thresholds and how often they raise a false alarm: docs/audit.md.",
        "pictures": pictures,
        "times": f"{times:.3g}",
    }


def _residuals(audit: Audit) -> tuple[list[dict[str, str]], float]:
    """Draw for each class the mean of the fine residual in flat places, minus that of all classes; grey means none.

    Returns:
        (the pictures with their names, the factor by which the residuals are enlarged).
    """
    images, sure = audit.plan.images, audit.plan.judged & ~audit.issue
    means, names = [], []
    for k, name in enumerate(images.class_names):
        members = images.images[sure & (images.labels == k)]
        if len(members):
            means.append(flat_residual(members).mean(0))
            names.append(name)
    if not means:
        return [], 0.0
    stacked = torch.stack(means)
    stacked = stacked - stacked.mean(0)
    largest = float(stacked.abs().max())
    times = 0.5 / largest if largest > 0 else 1.0
    bytes_NCHW = ((0.5 + times * stacked) * 255).round().clamp(0, 255).to(torch.uint8)
    pictures = [{"name": name, "source": _uri(_enlarged(one))} for name, one in zip(names, bytes_NCHW, strict=True)]
    return pictures, times
