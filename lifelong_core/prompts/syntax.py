"""ComfyUI's prompt language: weights in parentheses, escapes, and `embedding:<token>`.

`(words)` multiplies the weight by 1.1, `(words:1.3)` sets it, `\\(` and `\\)` are plain
parentheses, square brackets are plain text. `embedding:` counts at the start of a weighted piece
or after white space, and its name ends at white space, `<` or `[`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from ..errors import InputError

IDENTIFIER = "embedding:"
EMPHASIS = 1.1
_OPEN, _CLOSE = "\0\2", "\0\1"
_SPLIT = re.compile(rf"(?<=\s){re.escape(IDENTIFIER)}")


def weighted_pieces(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into (text, weight), outermost parentheses first, escapes resolved."""
    escaped = prompt.replace("\\)", _CLOSE).replace("\\(", _OPEN)
    pieces = _weigh(escaped, 1.0)
    return [(text.replace(_CLOSE, ")").replace(_OPEN, "("), weight) for text, weight in pieces]


def _weigh(text: str, weight: float) -> Iterator[tuple[str, float]]:
    for part in _outer_parentheses(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            yield part, weight
            continue
        inner, inside = part[1:-1], weight * EMPHASIS
        colon = inner.rfind(":")
        if colon > 0:
            try:
                inside = float(inner[colon + 1 :])
                inner = inner[:colon]
            except ValueError:
                pass
        yield from _weigh(inner, inside)


def _outer_parentheses(text: str) -> list[str]:
    """Cut `text` before each `(` and behind each `)` of the outermost level."""
    parts, current, depth = [], "", 0
    for character in text:
        if character == "(":
            if depth == 0 and current:
                parts.append(current)
                current = ""
            depth += 1
        current += character
        if character == ")":
            depth -= 1
            if depth == 0:
                parts.append(current)
                current = ""
    return [*parts, current] if current else parts


def words_and_tokens(piece: str, known: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Cut one weighted piece into (plain text, False) and (concept token, True), in order.

    Raises InputError for a name outside `known`: ComfyUI would only warn and leave the concept
    out of the prompt.
    """
    first, *others = _SPLIT.split(piece)
    for part in (first, *(IDENTIFIER + other for other in others)):
        if not part.startswith(IDENTIFIER):
            if part:
                yield part, False
            continue
        name, rest = _split_name(part[len(IDENTIFIER) :], known)
        yield name, True
        if rest:
            yield rest, False


def _split_name(text: str, known: Collection[str]) -> tuple[str, str]:
    """The concept token that `text` begins with, and what follows it."""
    words = text.split()
    name, rest = (words[0], " ".join(words[1:])) if words else ("", "")
    cut = re.search(r"[<\[]", name)
    if cut:
        rest = name[cut.start() :] + (" " + rest if rest else "")
        name = name[: cut.start()]
    if name in known:
        return name, rest
    bare = name.strip(",")
    if bare in known:
        return bare, f"{name[len(bare) :]} {rest}"
    listed = ", ".join(sorted(known)) or "none"
    meant = max((token for token in known if name.startswith(token)), key=len, default="")
    hint = f" Put a space behind the token '{meant}'." if meant else ""
    raise InputError(
        f"The prompt names embedding:{name}, which is not a known concept token "
        f"(known: {listed}).{hint}"
    )
