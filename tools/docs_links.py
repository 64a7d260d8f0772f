"""Hook of the documentation site: a link to a file outside docs/, which the site does not hold, becomes its name."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text without links that lead out of docs/."""
    return _OUTSIDE.sub(lambda match: f"`{match[1]}`" if "`" not in match[1] else match[1], markdown)
