"""Crafts corrupted sets as jobs."""
