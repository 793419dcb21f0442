"""Finds a run by its digest or folder, and loads what it has trained."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from erat.config import RunConfig, load_config
from erat.defenses.base import Defense
from erat.engine.assembly import choose_device, rebuild_defense
from erat.engine.checkpoint import ANEW, DamagedCheckpointError, load
from erat.errors import UserError, listed, shown
from erat.paths import user_path
from erat.result import RunResult
from orchestration.run.directory import CONFIG, RunDirectory
from orchestration.storage.workspace import Workspace

MODEL = "artifacts/model.pt"
LEAST_DIGITS = 4  # of a digest


@dataclass(frozen=True)
class TrainedRun:
    """A run that has left a trained model.

    Attributes:
        folder: the folder of the run.
        config: its configuration.
        weights: the file of the weights of its defense's networks.
        result: how it ended, as far as its folder tells.
    """

    folder: Path
    config: RunConfig
    weights: Path
    result: RunResult | None

    def weights_digest(self) -> str:
        """Return the SHA-256 of the file of the weights, in hex."""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def defense(self, num_classes: int, image_shape: tuple[int, ...]) -> Defense:
        """Load the trained defense, ready to predict, on the device that the configuration asks for.

        Args:
            num_classes: the number of classes K of its data set.
            image_shape: (C, H, W).

        Raises:
            UserError: the file of the weights is damaged or belongs to other networks, or there is no such device.
        """
        device = choose_device(self.config)
        try:
            weights = load(self.weights, device)
        except DamagedCheckpointError as error:
            raise UserError(f"{str(error).removesuffix(f': {ANEW}')}; `train --force` trains the run again") from error
        try:
            return rebuild_defense(self.config, num_classes, image_shape, weights).to(device)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.weights} must hold the weights of {self.config.defense.name} with {self.config.model.name} for "
                f"{num_classes} classes and images of {'x'.join(map(str, image_shape))}, got others"
            ) from error


def find_run(word: str, workspace: Workspace) -> TrainedRun:
    """Find a run that has been trained.

    Args:
        word: the digest of a run in the workspace, or at least its first `LEAST_DIGITS` digits; or the folder of a run,
            also of one of `erat.train`.
        workspace: the workspace; its configurations say on which storage their runs lie.

    Raises:
        UserError: there is no such run, there are several, or it has no trained model.
    """
    folder = _folder(word, workspace)
    config = load_config(folder / CONFIG)
    run: RunDirectory | None = None
    if folder == workspace.run_directory(folder.name):
        run = RunDirectory(workspace.sharing(config.storage.path), folder.name)
        if config.storage.path is not None and not (folder / MODEL).is_file():
            run.fetch(MODEL, "result.json")
    state = run.read_result() if run is not None else None
    found = [path for path in (folder / MODEL, folder / "model.pt") if path.is_file()]
    if not found:
        ended = "has not ended" if state is None else f"is {state.status}"
        raise UserError(f"run {folder.name} has no trained model ({MODEL}): it {ended}; `train` or `resume` goes on")
    return TrainedRun(folder, config, found[0], state)


def _folder(word: str, workspace: Workspace) -> Path:
    cells = workspace.run_directory("x").parent
    if re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},16}}", word):
        names = sorted(path.name for path in cells.glob(f"{word}*") if (path / CONFIG).is_file())
        if len(names) == 1:
            return cells / names[0]
        if names:
            raise UserError(f"RUN must name one run, got {word}, with which {len(names)} begin: {listed(names, 8)}")
    folder = user_path(word, "RUN")
    if word and (folder / CONFIG).is_file():
        return folder
    there = sorted(path.parent.name for path in cells.glob(f"*/{CONFIG}"))
    raise UserError(
        f"unknown run {shown(word)}: allowed: the first {LEAST_DIGITS} digits or more of a run in {cells} "
        f"({listed(there, 8) if there else 'there is none'}), or the folder of a run"
    )
