"""Speed as ratios: `python -m tests.benchmarks`. Each figure is measured against a named reference in the same run."""
