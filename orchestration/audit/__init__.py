"""The audit of a data set of one's own: plan, execution, files, gallery."""
