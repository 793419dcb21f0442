"""Implements the verbs of the command line."""
