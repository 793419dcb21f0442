"""Audits a user's own data set: plan, execution, files, gallery."""
