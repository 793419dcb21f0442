"""Tests and measures the science on a GPU: `python -m tests.gpu`; see docs/speed.md."""
