"""Tests the pages in headless Chromium: a study followed to its end, a review by keyboard, and what axe-core says."""

from __future__ import annotations

import csv
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from orchestration.audit.execute import _read
from orchestration.audit.files import FILES
from orchestration.audit.gallery import audit_page
from orchestration.audit.review import cleaned_list, cleaned_table
from orchestration.commands.ui import Tracking, pages
from orchestration.report.document import write_report
from orchestration.report.following import Follower
from orchestration.report.leaderboard import write_leaderboard
from orchestration.report.render.spreadsheet import csv_text
from orchestration.storage.workspace import Workspace
from orchestration.study.grids import load_grid, specification
from tests.audited import CLASSES, audited
from tests.browser import SIDEWAYS, SMALLEST, chromium, open_page, serious, work_with
from tests.driven import Driven
from tests.servers import free_port
from tests.synthetic import write_workspace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a workspace of the test's own."""
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no server of MLflow start, which would take seconds."""
    monkeypatch.setattr(Tracking, "start", lambda self: setattr(self, "trouble", "MLflow is not started in this test"))


@contextmanager
def served(workspace: Workspace) -> Iterator[str]:
    """Serve the pages of a workspace in a thread during the block, and check that the server ends."""
    port = free_port()
    app = pages(workspace, Follower(workspace), Tracking(workspace, "127.0.0.1", port + 1, print), lambda: over())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))

    def over() -> bool:
        return server.should_exit

    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive(), "the server did not end while somebody looked on"


def text_of(page: Page, selector: str) -> str:
    return " ".join(page.inner_text(selector).split())


@pytest.mark.usefixtures("without_mlflow")
def test_a_study_is_followed_to_its_end_and_then_worked_with(browser: Browser, workspace: Workspace) -> None:
    driven = Driven(workspace, trials=3)
    with served(workspace) as address:
        page = open_page(browser, address)
        page.wait_for_selector("#link .live")
        assert page.locator("#nothing").is_visible(), "nothing runs yet"
        with driven.driver():
            for number in range(3):
                driven.begin(number)
            page.wait_for_selector('.study .slot[data-trial="1"]')
            assert "epoch 0/16" in text_of(page, '.slot[data-trial="0"]')
            for epoch in range(3):
                driven.epoch(0, 0.4 + 0.1 * epoch)
            page.locator('.slot[data-trial="0"]', has_text="epoch 3/16").wait_for()
            points = page.locator('.live-curves [data-trial="0"] polyline').get_attribute("points")
            assert len((points or "").split()) == 3
            assert "left" in text_of(page, ".study .now") and "not known" not in text_of(page, ".study .now")

            driven.end(1, "failed", "RuntimeError: the loss is <nan>")
            page.wait_for_selector('.failures [data-trial="1"]')
            assert "RuntimeError: the loss is <nan>" in text_of(page, ".failures summary")
            page.locator(".failures summary").click()
            assert "in training" in text_of(page, ".failures pre")
            driven.end(0)
            driven.epoch(2, 0.3)
            driven.end(2)
            page.locator(".slot").first.wait_for(state="detached")
        page.locator(".study .now", has_text="ended").wait_for()
        assert "best val 0.600 (trial 0)" in text_of(page, ".study .now")
        assert page.locator("#told").inner_text().endswith("budgets has ended")
        assert page.errors == []  # type: ignore[attr-defined]

        page.locator(".study .links a").first.click()
        assert page.inner_text("h1").startswith("budgets")
        work_with(page, "defense.epsilon_inf")
        page.goto(address)  # the server must end while this is connected
        page.wait_for_selector("#link .live")
    page.wait_for_selector("#link .lost")
    page.close()


@pytest.mark.usefixtures("without_mlflow")
def test_only_this_machine_is_answered_and_errors_are_a_line(workspace: Workspace) -> None:
    Driven(workspace)
    with served(workspace) as address:

        def ask(path: str, host: str = "") -> tuple[int, str]:
            request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        assert ask("/", host="elsewhere.example")[0] == 400
        assert ask("/reports/audit-x/index.html")[0] == 404, "no report was written yet"
        workspace.report("audit-x").mkdir(parents=True)
        (workspace.report("audit-x") / "index.html").write_text("an audit")
        assert ask("/reports/audit-x/index.html") == (200, "an audit")
        assert ask("/reports/../ledger.jsonl")[0] == 404
        code, words = ask("/studies/budgest")
        assert (code, words.count("\n")) == (404, 0) and "budgets" in words, "it names what is near"
        assert ask("/mlflow/budgets") == (404, "MLflow is not started in this test")
        code, words = ask("/")
        assert code == 200 and "/studies/budgets" in words and "/reports/audit-x/index.html" in words


# --- the review of an audit ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Write the page of an audit with four misfiled images, and return it with the lines of its cleaned list."""
    folder = tmp_path_factory.mktemp("own")
    findings = audited(folder / "images")
    cleaned = cleaned_list(findings)
    (folder / "index.html").write_text(audit_page(findings, list(FILES.items()), cleaned), encoding="utf-8")
    (folder / "cleaned.csv").write_text(csv_text(cleaned_table(cleaned)), encoding="utf-8")
    return folder / "index.html", [[str(value) for value in row.values] for row in cleaned_table(cleaned).rows]


def exported(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#export").click()
    download.value.save_as(folder / "reviewed.csv")
    return folder / "reviewed.csv"


def test_labels_are_reviewed_by_keyboard_and_the_list_is_a_data_set(
    browser: Browser, audit: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    address, cleaned = audit
    context = browser.new_context()  # what a page remembers belongs to it
    page = context.new_page()
    page.goto(address.as_uri())
    with exported(page, tmp_path).open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    unguarded = [[field.removeprefix("'") for field in line] for line in lines]
    assert unguarded[1:] == [[*line, "0"] for line in cleaned], "without a decision it is the cleaned list"

    cards = page.locator("#worst .card")
    names = [Path(name or "").name for name in cards.locator(".name").all_inner_texts()]
    cards.first.focus()
    page.keyboard.press("k")
    page.keyboard.press("d")
    page.keyboard.press("End")
    last = page.evaluate("[...document.querySelectorAll('#worst .card')].indexOf(document.activeElement)")
    assert last == len(names) - 1
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    cards.nth(2).locator("select").select_option(CLASSES[0])
    assert page.inner_text("#decided").startswith(f"3 of {len(names)} decided")

    page.reload()
    assert page.inner_text("#decided").startswith(f"3 of {len(names)} decided"), "the browser has kept them"
    assert cards.nth(1).locator('[data-how="drop"]').get_attribute("aria-pressed") == "true"
    page.locator("#undecided").check()
    assert page.locator("#worst .card:visible").count() == len(names) - 3
    file_of_list = exported(page, tmp_path)
    with file_of_list.open(encoding="utf-8", newline="") as file:
        found = {Path(line["path"]).name: line for line in csv.DictReader(file)}
    kept, relabelled = found[names[0]], found[names[2]]
    assert (kept["label"], kept["status"], kept["reviewed"]) == (kept["given"], "kept", "1")
    assert names[1] not in found
    assert (relabelled["label"], relabelled["reviewed"]) == (CLASSES[0], "1")
    collection, _ = _read({"data.root": str(file_of_list), "data.image_size": 12})
    assert len(collection) == len(found)
    assert set(collection.images.class_names) == set(CLASSES), "a name that looks like a formula comes back as it was"

    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#forget").click()
    page.reload()
    assert page.inner_text("#decided").startswith("0 of")
    context.close()


# --- what everybody can read and reach -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addresses(audit: tuple[Path, list[list[str]]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that returns the address of a page by its kind."""
    workspace = Workspace(tmp_path_factory.mktemp("pages"))

    def address(kind: str) -> str:
        if kind == "audit":
            return audit[0].as_uri()
        if kind == "study":
            driven = Driven(Workspace(tmp_path_factory.mktemp("study")), trials=4)
            with driven.driver():
                for number in range(4):
                    driven.begin(number, **{"defense.epsilon_2": 0.4 + 0.2 * (number % 3)})
                    for epoch in range(2 + number):
                        driven.epoch(number, 0.3 + 0.1 * epoch)
                    driven.end(number, *(["failed", "RuntimeError: nan"] if number == 3 else ["done"]))
            return write_report(driven.workspace, "budgets", "html", None).as_uri()
        choice = {"defense": ["ce", "erat"], "corruption": ["up", "uhp"], "noise": ["symmetric"]}
        spec = specification(load_grid("table3"), "demo", {}, only=choice)
        if not workspace.ledger.exists():
            states = ["done", "done", "failed", "done"]
            write_workspace(workspace, "mine", spec, list(zip(spec.runs, ["baseline"] * 4, states, strict=True)))
        made = write_report(workspace, "mine", "html", None) if kind == "matrix" else write_leaderboard(workspace)[0]
        return made.as_uri()

    return address


@pytest.mark.parametrize("kind", ["study", "matrix", "audit", "leaderboard"])
def test_a_written_page_can_be_read_and_reached(browser: Browser, addresses: Callable[[str], str], kind: str) -> None:
    address = addresses(kind)
    for width, dark in ((1280, False), (390, True)):
        check(open_page(browser, address, width=width, dark=dark))


@pytest.mark.usefixtures("without_mlflow")
def test_the_live_page_can_be_read_and_reached(browser: Browser, workspace: Workspace) -> None:
    driven = Driven(workspace, trials=3)
    with driven.driver(), served(workspace) as address:
        for number in range(3):
            driven.begin(number)
            driven.epoch(number, 0.4 + 0.1 * number)
        driven.end(1, "failed", "RuntimeError: nan")
        for width, dark in ((1280, False), (390, True)):
            page = open_page(browser, address, width=width, dark=dark)
            page.wait_for_selector(".live-curves svg")
            page.locator(".failures summary").click()
            check(page)


def check(page: Page) -> None:
    """Check that all of a page can be read and reached, and close it."""
    if page.locator("[data-figure]").count():
        page.locator("html[data-drawn]").wait_for()
    assert serious(page) == []
    assert page.evaluate(SIDEWAYS) <= 0, "the page scrolls sideways"
    assert page.evaluate(SMALLEST) >= 12
    assert page.errors == []  # type: ignore[attr-defined]
    page.close()
