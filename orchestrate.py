#!/usr/bin/env python
"""The command: `python orchestrate.py --help`."""

from orchestration.cli import main

if __name__ == "__main__":
    main()
