"""Tests figures of one's own: registered by a decorator or a package, they stand on the page; broken ones do not."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import pandas
import pytest

import erat
import orchestration
from erat import plugins
from orchestration.report import drawings
from orchestration.report.document import write_report
from orchestration.storage.workspace import Workspace
from orchestration.study.spaces import load_space, parse_space
from orchestration.study.spec import StudySpec
from tests.public import installed
from tests.synthetic import write_workspace

RUNS = [{"defense.name": "ce"}, {"defense.name": "erat", "defense.eta": 0.3}]
SPACE = {"name": "two", "about": "two runs", "proposals": 0, "baselines": RUNS}


@pytest.fixture(autouse=True)
def registered_here() -> Iterator[None]:
    with erat.temporary_registrations(drawings.FIGURES):
        yield


def page(folder: Path, spec: StudySpec | None = None) -> str:
    """Return the page of a study of two finished runs."""
    workspace = Workspace(folder)
    spec = spec or StudySpec(parse_space(SPACE, "a test"), "demo", {})
    write_workspace(workspace, "mine", spec, [(params, "baseline", "done") for params in RUNS])
    return write_report(workspace, "mine", "html", None).read_text()


def pictures(text: str) -> dict[str, str]:
    """Return caption -> SVG of the figures on a page that are pictures by themselves."""
    found = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)">', text)
    return {caption: base64.b64decode(data).decode() for data, caption in found}


def heights(results: pandas.DataFrame) -> matplotlib.figure.Figure:
    """Accuracy of each defense & nothing else.

    The rest is no caption.
    """
    figure = matplotlib.figure.Figure()
    axes = figure.add_subplot()
    axes.bar(results["defense.name"], results["final_test_accuracy"], gid="own-bar")
    results["final_test_accuracy"] = 0.0  # it is a copy: another figure sees nothing of this
    return figure


@pytest.mark.parametrize("searched", [False, True])
def test_a_registered_figure_stands_on_every_page(tmp_path: Path, searched: bool) -> None:
    orchestration.register_figure("heights", heights)
    spec = StudySpec(load_space("budgets"), "demo", {}) if searched else None
    (picture,) = pictures(text := page(tmp_path, spec)).items()
    assert picture[0] == "Accuracy of each defense &amp; nothing else."
    assert 'id="own-bar"' in picture[1]
    assert text.count("<h2>Your own figures</h2>") == 1


def test_each_figure_gets_the_results_as_they_are(tmp_path: Path) -> None:
    seen: list[pandas.DataFrame] = []
    orchestration.register_figure("heights", heights)

    @orchestration.register_figure("later")
    def later(results: pandas.DataFrame) -> None:
        seen.append(results)

    assert list(pictures(page(tmp_path))) == ["Accuracy of each defense &amp; nothing else."], "None draws nothing"
    expected = orchestration.load_study("mine", tmp_path).results()
    pandas.testing.assert_frame_equal(seen[0], expected)
    assert expected["final_test_accuracy"].gt(0).all() and list(expected["defense.eta"])[1] == 0.3


def test_one_that_fails_is_left_out_with_a_warning_of_one_line(tmp_path: Path) -> None:
    @orchestration.register_figure("broken")
    def broken(results: pandas.DataFrame) -> None:
        raise RuntimeError(f"two\nlines of {len(results)}")

    orchestration.register_figure("heights", heights)
    orchestration.register_figure("missing", "nowhere:at_all")
    with pytest.warns(UserWarning, match="left out") as told:
        text = page(tmp_path)
    assert list(pictures(text)) == ["Accuracy of each defense &amp; nothing else."]
    words = sorted(str(one.message) for one in told)
    assert words[0] == r"figure 'broken' cannot be drawn: RuntimeError: two\nlines of 2; it is left out"
    assert words[1].startswith("figure 'missing', registered as nowhere:at_all, cannot be loaded (ModuleNotFoundError")
    assert len(words) == 2 and not any("\n" in line for line in words)


def test_without_any_the_page_says_nothing_of_them(tmp_path: Path) -> None:
    assert "own figures" not in page(tmp_path)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(erat.UserError, match="figure 'mine' must be a function of a study's results, got 3"):
        orchestration.register_figure("mine", 3)
    orchestration.register_figure("heights", heights)
    with pytest.raises(erat.UserError, match="figure 'heights' is registered twice"):
        orchestration.register_figure("heights", heights)
    orchestration.register_figure("heights", heights, replace=True)


def test_a_package_brings_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
    import orchestration
    from matplotlib.figure import Figure

    def drawn(results):
        '''Brought along.'''
        return Figure()

    orchestration.register_figure("brought", "own_picture:drawn")
    """
    monkeypatch.syspath_prepend(installed(tmp_path / "site", "own_picture", code, "own_picture"))
    monkeypatch.setattr(plugins, "_found", False)
    assert list(pictures(page(tmp_path / "workspace"))) == ["Brought along."]
