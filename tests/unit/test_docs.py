"""Tests the pages: what they name and link to exists, the README is short, and the site has the same content."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import __main__ as checks

ROOT = HERE = Path(__file__).parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
FILES = LISTED or [
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()
]  # no git: an archive
PAGES = sorted(name for name in FILES if name.endswith(".md") and (ROOT / name).is_file())

# Files that a page tells its reader to make, and files of the projects that comparison.md describes.
EXAMPLES = {
    "erat/corruption/regions.py",
    "erat/data/sources/npz.py",
    "erat/defenses/ce_smooth.py",
    "digits.py",
    "docker/secrets",
    "domainbed/scripts/sweep.py",
    "smooth.py",  # of the reader, in the tutorial
    "domainbed/scripts/train.py",
    "train.py",
}
TOPS = "erat|orchestration|tests|docs|docker|search_spaces"
PATH = re.compile(rf"(?<![\w/.*-])(?:{TOPS})/[\w./-]*\w")
PYTHON = re.compile(r"`([\w./-]+\.py)`")
MODULE = re.compile(r"(?<![\w./-])(?:erat|orchestration|tests)(?:\.[A-Za-z_]\w*)+(?![\w/-])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```+|~~~+).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def prose_of(page: str) -> str:
    return FENCE.sub("", text_of(page))


def slugs(page: str) -> set[str]:
    """Return the anchors of a page's headings that GitHub and the site name alike."""
    titles = re.findall(r"^#{1,6} +(.+?) *$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)) for title in titles]
    github = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain]
    ascii_only = [unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode() for title in plain]
    site = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in ascii_only]
    return set(github) & set(site)


def missing_paths(page: str) -> Iterator[str]:
    """Yield the files and folders of this project that a page names and that do not exist."""
    text = text_of(page)
    for name in {*PATH.findall(text), *(name for name in PYTHON.findall(text) if name not in EXAMPLES)}:
        path = name.rstrip(".")
        known = (ROOT / path).exists() or any(file.endswith(f"/{path}") for file in FILES)
        if not known and path not in EXAMPLES:
            yield path


def missing_modules(page: str) -> Iterator[str]:
    """Yield the modules, and names in them, that a page names and that do not exist."""
    for name in set(MODULE.findall(text_of(page))):
        if not name.endswith((".py", ".md", ".yaml")) and f"{name.replace('.', '/')}.py" not in EXAMPLES:
            module, rest = name, []
            while not any((HERE / module.replace(".", "/")).with_suffix(end).exists() for end in (".py", "")):
                module, _, last = module.rpartition(".")
                rest.insert(0, last)
            found: Any = import_module(module) if rest else ...
            for part in rest:
                found = getattr(found, part, None)
            if found is None:
                yield name


def broken_links(page: str) -> Iterator[str]:
    """Yield the relative links of a page whose file or anchor does not exist."""
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in slugs(file.resolve().relative_to(ROOT.resolve()).as_posix())):
            yield target


def test_what_a_page_names_is_there() -> None:
    missing = [f"{page}: {name}" for page in PAGES for name in sorted({*missing_paths(page), *missing_modules(page)})]
    assert not missing, "\n".join(missing)


def test_what_a_page_links_to_is_there() -> None:
    broken = [f"{page}: {target}" for page in PAGES for target in sorted(broken_links(page))]
    assert not broken, "\n".join(broken)


def test_a_wrong_name_or_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "# A title\n`erat/nothing.py`, `orchestration/nothing/`, `nothing.py`, `erat.nothing`, `erat.errors.nothing`,"
        " `erat.errors`, `erat.errors.UserError`, `setup.py`;"
        " [a](b.md) [c](#a-title) [d](#another) [e](https://example.org) `[f](g)`\n```\n[h](i.md)\n```\n"
    )
    (tmp_path / "page.md").write_text(words)
    (tmp_path / "erat").mkdir()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert sorted(missing_paths("page.md")) == ["erat/nothing.py", "nothing.py", "orchestration/nothing", "setup.py"]
    assert sorted(missing_modules("page.md")) == ["erat.errors.nothing", "erat.nothing"]
    assert sorted(broken_links("page.md")) == ["#another", "b.md", "g"]


def test_examples_are_told_of_and_are_not_there() -> None:
    told = "\n".join(map(text_of, PAGES))
    assert not [name for name in EXAMPLES if name not in told or (ROOT / name).exists()]


def test_the_readme_is_a_front_door() -> None:
    """It has about 900 words; everything else belongs in docs/."""
    words = re.sub(r"<!--.*?-->|\]\([^)]*\)", " ", text_of("README.md"))
    assert 800 < len(re.sub(r"[|:\-`]+", " ", words).split()) < 920


def test_the_readme_has_its_two_commands() -> None:
    text = text_of("README.md")
    run = "-m venv .venv && .venv/bin/pip install -e . && .venv/bin/python orchestrate.py sweep --space budgets\n```"
    test = "-m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m tests\n```"
    assert f"```bash\npython3 {run}" in text
    assert f"<!-- the test command -->\n```bash\npython3 {test}" in text


def test_the_readme_launches_on_a_cluster_as_the_cluster_page_does() -> None:
    """tests/e2e/test_launch_ray.py types the lines of the README."""
    readme, page = (text_of(name).split("<!-- the launch -->\n")[1] for name in ("README.md", "docs/cluster.md"))
    block = readme[: readme.index("```\n") + 4]
    assert block.count("\n") == 5 and page.startswith(block)


def test_the_architecture_page_has_every_room() -> None:
    text = text_of("docs/architecture.md")
    rooms = {"/".join(name.split("/")[:2]) for name in FILES if re.match(r"(erat|orchestration)/\w+/\w+", name)}
    assert len(rooms) > 15
    assert not [room for room in rooms if f"  {room.partition('/')[2]}/ " not in text]


def test_links_of_the_site_lead_where_those_of_the_repository_do() -> None:
    spec = util.spec_from_file_location("outside", ROOT / "docs/assets/outside.py")
    assert spec is not None and spec.loader is not None
    pytest.importorskip("mkdocs")
    hook = util.module_from_spec(spec)
    spec.loader.exec_module(hook)

    def seen(words: str, page: str) -> str:
        return str(hook.on_page_markdown(words, SimpleNamespace(file=SimpleNamespace(src_uri=page))))

    assert (
        seen("[a](scale.md#b) ![c](d.png) [e](https://f)", "index.md") == "[a](scale.md#b) ![c](d.png) [e](https://f)"
    )
    assert seen("[a](../CONTRIBUTING.md#b)", "cluster.md") == "[a](contributing.md#b)"
    assert seen("[a](../docs/cluster.md)", "containers.md") == "[a](cluster.md)"
    assert seen("[a](docs/cluster.md#b) [c](LICENSE)", "contributing.md") == "[a](cluster.md#b) c (`LICENSE`)"


@pytest.mark.parametrize("status", [0, 1])
def test_the_checks_build_the_site(status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built: list[list[str]] = []

    def fake(command: list[str], **_: Any) -> SimpleNamespace:
        site = "mkdocs" in command
        built.extend([command] if site else [])
        return SimpleNamespace(returncode=status if site else 0)

    monkeypatch.setattr(checks.subprocess, "run", fake)
    monkeypatch.setattr(checks, "TYPES", ["true"])
    monkeypatch.setattr(checks, "_tests", lambda *_: [0])
    assert max(checks._everything("", [], tmp_path)) == status
    assert [command[2:] for command in built] == [["mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]]


def test_a_warning_of_the_site_fails_the_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With --quiet it would not fail, because MkDocs counts only the warnings that it prints."""
    pytest.importorskip("material")
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs/index.md").write_text("[a](index.md)\n")
    assert checks._site(tmp_path) == [0]
    (tmp_path / "docs/index.md").write_text("[a](nothing.md)\n")
    assert checks._site(tmp_path) == [1]


def test_without_mkdocs_the_site_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert checks._site(tmp_path) == []
