"""Regenerates docker/lock/ from the environment in which the tests ran: `python docker/lock.py`.

It locks the project's dependencies and its `cluster` extra in the versions that are installed here, with the SHA-256 of
the wheel that pip would take for each on this kind of machine (CPython 3.11 on x86-64 Linux, as in the images).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEAD = "# Made by docker/lock.py from the versions that the tests ran with. "
CUDA = ("torch", "torchvision", "triton")  # and all packages that begin with these prefixes:
CUDA_PREFIXES = ("nvidia-", "cuda-")


def closure(requirements: list[str]) -> dict[str, str]:
    """Return the installed version of every package that these requirements need, directly or not, by name."""
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    versions = {}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        versions[name] = metadata.version(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return versions


def hashes(versions: dict[str, str]) -> dict[str, str]:
    """Return the SHA-256 of the wheel that pip would take for each package, by name."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        options = ("--quiet", "--no-deps", "--dry-run", "--ignore-installed", "--report", str(report))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "-r", str(wanted)], check=True)
        found = json.loads(report.read_text())["install"]
    return {
        canonicalize_name(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in found
    }


def write(versions: dict[str, str], digests: dict[str, str]) -> None:
    """Write the three files of docker/lock/."""

    def lines(names: list[str]) -> str:
        return "".join(f"{name}=={versions[name]} --hash=sha256:{digests[name]}\n" for name in names)

    cuda = [name for name in sorted(versions) if name in CUDA or name.startswith(CUDA_PREFIXES)]
    base = [name for name in sorted(versions) if name not in cuda]
    folder = ROOT / "docker" / "lock"
    folder.mkdir(exist_ok=True)
    (folder / "base.txt").write_text(f"{HEAD}Everything but torch.\n\n{lines(base)}")
    (folder / "torch-cuda.txt").write_text(f"{HEAD}torch, and CUDA's libraries.\n\n{lines(cuda)}")
    cpu = "".join(f"{name}=={versions[name]}\n" for name in ("torch", "torchvision"))
    note = "torch without CUDA,\n# from an index of its own, whose wheels have other hashes.\n\n"
    (folder / "torch-cpu.txt").write_text(f"{HEAD}{note}{cpu}")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = closure([*project["dependencies"], *project["optional-dependencies"]["cluster"]])
    write(versions, hashes(versions))


if __name__ == "__main__":
    main()
