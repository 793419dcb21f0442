"""Tests the page of an audit: its verdict and rows agree, and a review of labels begins with the cleaned list."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestration.audit.execute import Findings
from orchestration.audit.files import FILES
from orchestration.audit.gallery import audit_page, poison_verdict
from orchestration.audit.review import cleaned_list, cleaned_table
from tests.audited import audited


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return audited(tmp_path_factory.mktemp("own") / "images")


def page_of(findings: Findings) -> str:
    return audit_page(findings, list(FILES.items()), cleaned_list(findings))


def review_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    content: dict[str, Any] = json.loads(match[1])
    return content


def with_figures(findings: Findings, gap: float, separability: float, images: int) -> Findings:
    test = findings.audit.poisoning
    changed = replace(
        test,
        gap=replace(test.gap, value=gap),
        separability=replace(test.separability, value=separability),
        images=images,
    )
    return replace(findings, audit=replace(findings.audit, poisoning=changed))


@pytest.mark.parametrize(
    ("gap", "separability", "images", "words", "rows"),
    [
        (0.0, 0.9, 40, "cannot be told from 40 images", ["cannot be told", "cannot be told"]),
        (0.0, 0.9, 400, "The images carry a perturbation", ["not found", "found"]),
        (0.5, 0.0, 400, "The images carry a perturbation", ["found", "not found"]),
        (0.0, 0.0, 400, "No perturbation", ["not found", "not found"]),
    ],
)
def test_the_verdict_and_the_rows_say_the_same(
    findings: Findings, gap: float, separability: float, images: int, words: str, rows: list[str]
) -> None:
    told = with_figures(findings, gap, separability, images)
    section = page_of(told).partition('<section id="poison">')[2].partition("</section>")[0]
    assert words in poison_verdict(told.audit.poisoning) and words in section
    assert re.findall(r"<td>(found|not found|cannot be told)</td>", section) == rows


def test_a_review_begins_with_the_cleaned_list(findings: Findings) -> None:
    page = page_of(findings)
    review, table = review_of(page), cleaned_table(cleaned_list(findings))
    words = review["words"]
    lines = [["".join([words[at], name]), *(words[place] for place in rest)] for at, name, *rest in review["lines"]]
    assert [line for line in lines if line[3] != "dropped"] == [list(row.values) for row in table.rows]
    assert {Path(line[0]) for line in lines} == set(findings.collection.sources), "those that are left out come too"
    cards = re.findall(r'<li class="card" data-given="([^"]*)" data-suggested="([^"]*)"', page)
    assert len(cards) == len(review["cards"]) >= 4
    named = [Path(lines[line][0]).name for line in review["cards"]]
    assert named == re.findall(r'<p class="name" title="[^"]*/([^"/]*)">', page)
    assert review["classes"] == list(findings.plan.images.class_names)
    assert "<wasp>" not in page


def test_arrays_have_no_list_to_review(findings: Findings) -> None:
    pixels = [np.asarray(image[0]) for image in findings.collection.images.images]
    arrays = replace(findings, collection=replace(findings.collection, sources=pixels))
    page = page_of(arrays)
    assert review_of(page) == {}
    assert "cannot be reviewed here" in page


def test_each_copy_stands_beside_its_name(findings: Findings) -> None:
    section = page_of(findings).partition('<section id="copies">')[2].partition("</section>")[0]
    copies = re.findall(r"<li>(?:<img [^>]*alt=\"([^\"]*)\"[^>]*>)?<span>(\S+) \(<b>", section)
    assert len(copies) >= 2
    assert all(not picture or picture == name for picture, name in copies)
    assert any(picture for picture, _ in copies)
