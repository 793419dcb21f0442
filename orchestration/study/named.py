"""Find search spaces and grids by name among the project's YAML files, or by the path of any other file."""

from __future__ import annotations

from pathlib import Path

from erat.errors import UserError, unknown_name
from erat.paths import user_path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSIDE = _PACKAGE / "search_spaces"  # where an installed package has them; in a checkout they stand beside it
FOLDER = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent / "search_spaces"
GRIDS = FOLDER / "grids"


def names_in(folder: Path) -> list[str]:
    """Return the names of the YAML files in `folder` without their endings, sorted, and without base.yaml."""
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "base")


def named_file(name: str, folder: Path, what: str, option: str) -> Path:
    """Return the path of a YAML file, given the name of one of the project's files or a path.

    Args:
        name: name of a file in `folder`, or a path that ends in .yaml or .yml.
        folder: the project's folder of such files.
        what: what the file describes ("space" or "grid"), for error messages.
        option: the command line's option, for error messages.

    Raises:
        UserError: There is no such file.
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
