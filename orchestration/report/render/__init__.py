"""One writer per format: Markdown, CSV, LaTeX, terminal, HTML. Each takes any `Table`."""
