"""Holds the templates, style sheets and scripts of the pages, and Vega and Vega-Lite, which draw their figures."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib import resources

from markupsafe import Markup


def asset(*names: str) -> Markup:
    """Return the text of style sheets or scripts, one after another, as it is."""
    folder = resources.files(__name__)
    return Markup("".join((folder / name).read_text(encoding="utf-8") for name in names))


@cache
def library() -> Markup:
    """Return Vega and Vega-Lite for a page: 770 KB of scripts, compressed, in Base64, which is 350 KB."""
    text = asset("vega.min.js", "vega-lite.min.js")
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())
