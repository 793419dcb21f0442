"""What is to run and what ran: specification, spaces, grids, ledger, status."""

MOST_TRIALS = 100_000  # of one search
