"""Search spaces and grids by name: the YAML files that come with the project, or a file of one's own."""

from __future__ import annotations

from pathlib import Path

from erat.errors import UserError, unknown_name
from erat.paths import user_path

FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
GRIDS = FOLDER / "grids"


def names_in(folder: Path) -> list[str]:
    """Names of the files that come with the project in `folder`, sorted."""
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "base")


def named_file(name: str, folder: Path, what: str, option: str) -> Path:
    """Return the YAML file that comes with the project under this name, or that lies at this path.

    Raises:
        UserError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        path = user_path(name, option)
        if not path.exists():
            raise UserError(f"{option}: the file {name} does not exist")
        return path
    known = names_in(folder)
    if name not in known:
        raise unknown_name(what, name, known)
    return folder / f"{name}.yaml"
