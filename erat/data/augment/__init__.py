"""Augments images: operations, policies, views."""
