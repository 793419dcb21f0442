"""Put the search spaces, which stand beside the packages in the repository, inside `orchestration` when it is built.

All else about the package stands in `pyproject.toml`, which has no word for this.
"""

from setuptools import find_packages, setup

SPACES = "orchestration.search_spaces"

setup(
    packages=[*find_packages(include=["erat*", "orchestration*"]), SPACES, f"{SPACES}.grids"],
    package_dir={SPACES: "search_spaces"},
)
