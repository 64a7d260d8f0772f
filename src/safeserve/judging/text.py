"""Text helpers that the rule judges share: normalisation, sentences, what stands between quotation marks."""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′´`ʼ＇", "'"),
        **dict.fromkeys("“”„‟″«»＂", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
        "…": "...",
    }
)
_LIST_ITEM = re.compile(r"^\s*(?:\d{1,2}\s*[.):]|[*•+-])\s+\S|^\s*(?:\*\*)?step \d", re.IGNORECASE)
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|u\.s|no)\.$", re.IGNORECASE)
_BREAK = re.compile(r"(?<=[.!?])[\"')\]*]*\s+(?=[\"'(*]*[A-Z0-9])|\n+")


def normalise(text: str) -> str:
    """One spelling of quotes, apostrophes, dashes and spaces; no zero-width characters; line breaks kept."""
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.splitlines())
    return "\n".join(lines).strip()


def sentences(text: str) -> list[str]:
    """Sentences of a normalised text, in order; a line break ends a sentence, an abbreviation does not."""
    found: list[str] = []
    for piece in _BREAK.split(text):
        piece = piece.strip()
        if not piece:
            continue
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return found


def words(text: str) -> list[str]:
    """Lower-case words with their apostrophes."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def unquoted(text: str) -> str:
    """The text with everything between double quotation marks blanked out, at equal length.

    An answer that stands in quotation marks as a whole is not a quotation: its outer marks are dropped.
    """
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        return " " + text[1:-1] + " "
    return re.sub(r'"[^"\n]*"', lambda match: " " * len(match.group()), text)


def list_items(text: str) -> list[str]:
    """Lines of a normalised text that are numbered or bulleted."""
    return [line for line in text.splitlines() if _LIST_ITEM.match(line)]
