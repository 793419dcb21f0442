"""What a person gets to see of a sweep: tables, figures, and the paper's figures to hold them against."""
