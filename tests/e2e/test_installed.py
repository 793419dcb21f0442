"""Tests the package as `pip install .` installs it: it is complete, and the command works from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def copied(folder: Path) -> Path:
    """Copy what a wheel is built from: a build in the repository itself leaves files there, and uses those it finds."""
    for name in ("erat", "orchestration", "search_spaces"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
def test_an_installed_command_plans_a_sweep_from_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(copied(tmp_path / "tree"))], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        held = set(archive.namelist())
        assert {"erat/py.typed", "orchestration/py.typed", "orchestration/search_spaces/budgets.yaml"} <= held
        spaces = {f"orchestration/{file.relative_to(ROOT)}" for file in (ROOT / "search_spaces").rglob("*.yaml")}
        assert {name for name in held if name.endswith(".yaml")} == spaces
        tops = {name.split("/")[0] for name in held}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"erat", "orchestration"}
        assert b"erat = orchestration.cli:main" in archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        )
    code = "import orchestration.cli as cli; print(cli.__file__); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "sweep", "--space", "budgets", "--dry-run", "--json"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(installed), "ERAT_HOME": str(tmp_path / "workspace")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, *_, plan = done.stdout.splitlines()
    assert Path(place).is_relative_to(installed)
    assert json.loads(plan)["name"] == "budgets"
    assert not list(elsewhere.iterdir())
