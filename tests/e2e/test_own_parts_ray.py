"""Tests user-defined parts in studies on a real Ray: from a script, from a package, and the examples of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from erat import temporary_registrations
from orchestration.report.drawings import FIGURES
from orchestration.study.registries import PRUNERS, SAMPLERS
from tests.public import OWN, PARTS, installed, run_examples

ROOT = Path(__file__).parents[2]
# The defense is defined in the script, which no worker can import; the other parts come from an installed package.
SCRIPT = """
import sys
import erat
from orchestration import Study

class HalvedOptions(erat.DefenseOptions):
    factor: float = 0.5

@erat.register_defense("halved")
class Halved(erat.DEFENSES["smoothed"]):
    Options = HalvedOptions
    def __init__(self, options, task):
        erat.Defense.__init__(self, options, task)
        import torch
        self.networks = torch.nn.ModuleDict({"main": task.build(0)})
    def loss(self, batch, clock):
        import torch
        terms = erat.LossTerms()
        logits = self.networks["main"](batch.images)
        terms.add("ce", torch.nn.functional.cross_entropy(logits, batch.labels), self.settings.factor)
        return terms

if __name__ == "__main__":
    space = {"name": "own", "about": "two runs", "proposals": 0,
             "baselines": [{"defense.name": "halved"}, {"defense.name": "smoothed", "defense.smoothing": 0.2}]}
    study = Study.create(space, name="own", workspace=sys.argv[1], overrides=eval(sys.argv[2])).run()
    table = study.results()
    print(table[["status", "defense.name", "error"]].to_dict("list"))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_script_s_and_a_package_s_parts_reach_the_workers(tmp_path: Path) -> None:
    site = installed(tmp_path / "site", "erat_test_parts", PARTS, "erat_test_parts")
    script = tmp_path / "own.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "workspace"), repr(OWN)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = eval(done.stdout.splitlines()[-1])
    assert said == {"status": ["done", "done"], "defense.name": ["halved", "smoothed"], "error": [None, None]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_s_studies_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERAT_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, object] = {"__name__": "__main__"}
    with temporary_registrations(SAMPLERS, PRUNERS, FIGURES):
        run_examples(names, None)
        run_examples(names, "with Ray")
    assert (tmp_path / "smoothing.png").stat().st_size > 1000
    assert 'alt="Clean test accuracy over label smoothing."' in (tmp_path / "smoothing.html").read_text()
    assert "['smoothing']" in capsys.readouterr().out
    assert list(names["table"]["status"]) == ["done", "done"]  # type: ignore[index]
