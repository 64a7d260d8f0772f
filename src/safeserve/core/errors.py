"""The errors a user can meet, each with the exit code that the command ends with.

Exit codes (a contract, see docs/quickstart.md): 0 done or gate passed, 1 gate failed, 2 the input is wrong,
3 the environment failed or we did, 4 not enough evidence for a verdict.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_USER = 2
EXIT_ENVIRONMENT = 3
EXIT_EVIDENCE = 4


class SafeserveError(Exception):
    """Base class: a message for a person, and the exit code of the command."""

    exit_code = EXIT_ENVIRONMENT


class UserError(SafeserveError):
    """The user's input is wrong: says where, what and the remedy. Exit code 2."""

    exit_code = EXIT_USER


class EnvironmentFault(SafeserveError):
    """Disk, network, permission, memory, another process. Exit code 3."""

    exit_code = EXIT_ENVIRONMENT


class EvidenceError(SafeserveError):
    """Too little was measured to decide. Exit code 4."""

    exit_code = EXIT_EVIDENCE


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put ``where`` (a file and its key) before the messages of user errors from code that does not know it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def harmless(text: str) -> str:
    """The text without the control characters that a terminal would obey; line breaks and tabs stay."""
    return "".join("\ufffd" if c not in "\n\t" and unicodedata.category(c) == "Cc" else c for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ``' Did you mean "beta"?'``, or the list of what is known when nothing is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(choices)}." if choices else ""
