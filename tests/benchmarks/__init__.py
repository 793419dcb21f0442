"""Measures speed as ratios: `python -m tests.benchmarks`. Each figure has a named reference, timed in the same run."""
