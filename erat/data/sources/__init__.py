"""The built-in data sets and the reading of a user's own images."""
