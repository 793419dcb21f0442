"""Draws what corruptions do to images, as one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erat.config import RunConfig, build, content_digest
from orchestration.crafting.jobs import Told, craft_here
from orchestration.crafting.sets import set_name
from orchestration.storage.workspace import Workspace


def preview(configs: Sequence[RunConfig], workspace: Workspace, told: Told) -> Path:
    """Craft these sets of the same images, and draw a sheet that shows what was done to the images.

    Returns:
        The path of the sheet (PNG).
    """
    from orchestration.report.sheet import Band, preview_sheet

    shared = {k: v for k, v in configs[0].flat().items() if k.split(".")[0] in ("data", "val")}
    clean = build(configs[0].preset, shared | {"corruption.data": "none", "corruption.labels": "none"})
    images = craft_here(clean, workspace, told).train
    bands = [Band(set_name(config), images, craft_here(config, workspace, told)) for config in configs]
    digest = content_digest([config.identity() for config in configs])
    return preview_sheet(bands, workspace.report(f"preview-{digest[:6]}") / "preview.png")
