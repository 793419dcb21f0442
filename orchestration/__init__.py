"""Everything that is about many runs."""

MOST_TRIALS = 100_000  # of one search
