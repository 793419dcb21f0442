"""All checks in one go: style, types, tests. `python -m tests` from the repository's root; `--slow` adds slow tests."""

from __future__ import annotations

import subprocess
import sys

CHECKS = (
    [sys.executable, "-m", "ruff", "check", "."],
    [sys.executable, "-m", "ruff", "format", "--check", "."],
    [sys.executable, "-m", "mypy"],
)


def main(arguments: list[str]) -> int:
    """Run every check, even after one failed, so that a person sees all there is to mend."""
    wanted = [word for word in arguments if word != "--slow"]
    marks = [] if "--slow" in arguments else ["-m", "not slow"]
    codes = [subprocess.run(command, check=False).returncode for command in CHECKS]
    codes.append(subprocess.run([sys.executable, "-m", "pytest", *marks, *wanted], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
