"""Draws the figures of pages as Vega-Lite specifications: each is one description for the page, SVG and PDF."""
