"""Runs a study of four trials that share a device through Ray and MLflow, where both are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.gpu.setting import Row, Rows, Setting, tried

TITLE = "a study of four trials on one device"
NEEDED = ("ray", "mlflow", "optuna", "mlxtend")
SECONDS = 200  # within which the study must end
ROOT = Path(__file__).parents[2]


def rows(setting: Setting) -> Rows:
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        yield Row(TITLE, f"{', '.join(lacking)}: not installed", left_out=True)
    else:
        yield tried(setting, TITLE, partial(_study, setting))


def _study(setting: Setting) -> Row:
    cells = ["--grid", "table2", "--only", "defense=ce,erat", "--seeds", "0,1"]
    sizes = ["data.limit=200", "train.epochs=1"]
    device = ["resources.device=cuda", "resources.gpu=0.25"] if setting.cuda else ["resources.device=cpu"]
    with TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "orchestrate.py", "matrix", *cells, "--json", *sizes, *device],
            cwd=ROOT,
            env=os.environ | {"ERAT_HOME": home},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    if done.returncode:
        return Row(TITLE, f"exit status {done.returncode}: {' '.join(done.stderr.split()[-40:])}", False)
    summary = json.loads(done.stdout.splitlines()[-1])
    ends = [run["status"] for run in summary["runs"]]
    kept = len(ends) == 4 and set(ends) == {"done"}
    return Row(TITLE, f"{', '.join(ends)} in {summary['wall_seconds']:.0f} s", kept, {"s": summary["wall_seconds"]})
