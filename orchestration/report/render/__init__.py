"""Writes tables as Markdown, CSV, LaTeX, terminal text and HTML: one writer per format, each for any `Table`."""
