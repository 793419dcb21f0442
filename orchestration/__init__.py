"""Everything that is about many runs."""
