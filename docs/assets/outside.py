"""Put pages that lie outside docs/ on the site, and turn links between files of the repository into links of the site.

On the repository's own pages all links are paths of files. MkDocs knows docs/ alone, so this hook adds the three files
below, and rewrites links to and from them; a link to any other file outside docs/ becomes the name of that file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "docker/README.md": "containers.md"}
ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside to the site's files."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text with its links as the site needs them."""
    at = {name: source for source, name in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replaced(link: re.Match[str]) -> str:
        words, path, anchor = link[1], link[2], link[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(at), path))
        if target in PAGES:
            return f"[{words}]({PAGES[target]}{anchor})"
        if target.startswith("docs/"):
            return f"[{words}]({target.removeprefix('docs/')}{anchor})"
        return f"{words} (`{target}`)"

    return LINK.sub(replaced, markdown)
