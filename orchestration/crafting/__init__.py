"""Corrupted sets as jobs."""
