"""Augmentation: operations, policies, views."""
