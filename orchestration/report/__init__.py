"""Shows what a study found: tables, figures, and the paper's figures for comparison."""
