"""Text written by a model under test, made fit to stand inside a judge's prompt."""

from __future__ import annotations

import hashlib
import re

from safeserve.core.runs import readable

# What tokenizers take for control tokens: <|im_end|>, <｜User｜>, </s>, <start_of_turn>, <<SYS>>, [INST], [/INST],
# [gMASK], [UNUSED_TOKEN_145].
_ANGLED = re.compile(r"<(?=[|｜/<]?[\w▁|｜/-]{1,40}[|｜>]?>)|<(?=[|｜])|(?<=[|｜])>")
_BRACKETED = re.compile(r"\[(?=/?[a-z]?[A-Z_]{2}[A-Z0-9_]{0,38}\])")


def neutralise(text: str) -> str:
    """The text without anything a tokenizer takes for a control token; a reader sees what stood there.

    The angle bracket of ``<|im_end|>`` or ``<s>`` becomes ``‹`` and the square bracket of ``[INST]`` becomes ``⟦``, so
    the string is no token's name any more, and no normalisation of spaces or of zero-width characters restores it.
    Half characters, which cannot be sent, become U+FFFD.
    """
    return _BRACKETED.sub("⟦", _ANGLED.sub(lambda found: "‹" if found.group() == "<" else "›", readable(text)))


def fenced(**parts: str) -> str:
    """Neutralised parts, each between lines that it cannot forge.

    The lines carry a hash of all parts: a text would have to contain its own hash to close its fence early. The same
    parts give the same lines, so a question can be recognised as asked before.

    Args:
        parts: title (underscores become spaces) to text.
    """
    clean = {name.replace("_", " ").upper(): neutralise(text) for name, text in parts.items()}
    mark = hashlib.sha256("\x1f".join(clean.values()).encode()).hexdigest()[:12]
    blocks = [f"=== {title} {mark} ===\n{text}\n=== END OF {title} {mark} ===" for title, text in clean.items()]
    return "\n\n".join(blocks)
