"""Hook of the documentation site: a link to a file outside docs/, which the site does not hold, becomes its name."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_UP = re.compile(r"\[([^\]]+)\]\((\.\./[^)]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text without links that lead out of docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        if not posixpath.normpath(posixpath.join(folder, match[2])).startswith(".."):
            return match[0]
        return f"`{match[1]}`" if "`" not in match[1] else match[1]

    return _UP.sub(replaced, markdown)
