"""Checks whether this container can do its work: exit status 0 or 1, and one line. The health check of the image.

ERAT_HOME must be writable; with RAY_HEAD (HOST:PORT, set in the container of a Ray node) the head must answer; with
HEALTH_URL (set in the container of a server) that page must answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path


def main() -> str | None:
    """Return what is wrong, or None."""
    try:
        with tempfile.TemporaryFile(dir=os.environ.get("ERAT_HOME", "/data")) as file:
            file.write(b"x")
    except OSError as error:
        return f"ERAT_HOME cannot be written: {error.strerror}"
    if head := os.environ.get("RAY_HEAD"):
        ray = Path(sys.executable).parent / "ray"
        try:
            subprocess.run([ray, "health-check", "--address", head], capture_output=True, timeout=25, check=True)
        except (OSError, subprocess.SubprocessError):
            return f"no Ray head answers at {head}"
    if url := os.environ.get("HEALTH_URL"):
        try:
            # Without a proxy of the environment, because the page is this container's own.
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10).close()
        except OSError as error:
            return f"{url}: {error}"
    return None


if __name__ == "__main__":
    wrong = main()
    print(wrong or "healthy")
    sys.exit(wrong is not None)
