"""Studies: what is to run and what ran. Specification, search spaces, grids, ledger and status."""

MOST_TRIALS = 100_000  # in one search
