"""What becomes of each audited image: the cleaned list, and what a person needs to review it on the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erat.config import content_digest
from erat.data.sources.collection import Collection
from orchestration.report.table import Table

if TYPE_CHECKING:
    from orchestration.audit.execute import Findings

RELABEL = 0.9  # least probability at which the cleaned list takes a suggested label; less sure images are left out


@dataclass(frozen=True)
class Cleaned:
    """What the cleaned list says of an image.

    Attributes:
        row: its row among the audited images; None for a trusted one.
        path, label, part, status, given: as in cleaned.csv; `status` is "dropped" if the list leaves the image out.
    """

    row: int | None
    path: str
    label: str
    part: str
    status: str
    given: str


def kept_rows(findings: Findings) -> tuple[list[int], list[str], list[str]]:
    """Return (the rows that stay in the cleaned list, their labels, whether each was "kept" or "relabelled")."""
    audit, names = findings.audit, findings.plan.images.class_names
    relabel = audit.issue & (audit.probability >= RELABEL)
    rows = (~audit.issue | relabel).nonzero().squeeze(1).tolist()
    labels = [names[int(audit.believed_labels[row])] for row in rows]
    return rows, labels, ["relabelled" if relabel[row] else "kept" for row in rows]


def cleaned_list(findings: Findings) -> list[Cleaned]:
    """Return what becomes of each image: those that are kept or relabelled, the trusted ones, and those left out."""
    names = findings.plan.images.class_names

    def line(collection: Collection, row: int, label: str, status: str) -> Cleaned:
        source, given = collection.sources[row], names[int(collection.images.labels[row])]
        path = str(source.absolute()) if isinstance(source, Path) else collection.names[row]
        place = None if status == "trusted" else row
        return Cleaned(place, path, label, collection.parts[row], status, given)

    rows, labels, states = kept_rows(findings)
    lines = [line(findings.collection, *kept) for kept in zip(rows, labels, states, strict=True)]
    if findings.checked is not None:
        trusted = enumerate(findings.checked.images.labels.tolist())
        lines += [line(findings.checked, row, names[label], "trusted") for row, label in trusted]
    given = findings.plan.images.labels.tolist()
    left_out = sorted(set(range(len(given))) - set(rows))
    return lines + [line(findings.collection, row, names[given[row]], "dropped") for row in left_out]


def cleaned_table(cleaned: Sequence[Cleaned]) -> Table:
    """Return the lines of cleaned.csv."""
    kept = [one for one in cleaned if one.status != "dropped"]
    columns = ("path", "label", "part", "status", "given")
    return Table.of(columns, [[getattr(one, name) for name in columns] for one in kept])


def review_data(findings: Findings, cards: Sequence[int], cleaned: Sequence[Cleaned]) -> str:
    """Return what the page needs to write reviewed.csv, as JSON that is safe inside a script element.

    It is the cleaned list, whose words are kept once each, and the line of each card. It is empty where images have no
    files, since a list of paths cannot say which images these are.
    """
    if any(not isinstance(source, Path) for source in findings.collection.sources):
        return ""
    words: dict[str, int] = {}

    def place(word: str) -> int:
        return words.setdefault(word, len(words))

    lines = [
        [place(f"{folder}/") if folder else -1, name, *map(place, (one.label, one.part, one.status, one.given))]
        for one in cleaned
        for folder, _, name in [one.path.rpartition("/")]
    ]
    places = {one.row: number for number, one in enumerate(cleaned) if one.row is not None}
    content = {
        # Of another audit nothing may be remembered here, even if it has the same name.
        "key": f"erat-review-{content_digest([findings.name, findings.collection.fingerprint])}",
        "classes": list(findings.plan.images.class_names),
        "cards": [places[row] for row in cards],
        "words": list(words),
        "lines": lines,
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
