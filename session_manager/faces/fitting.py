"""Shortens a document for readers who pay for each word: it cuts long parts and lists them in the document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from session_manager.faces.runner import encode

BYTES = 100_000
# Entries of each list, and characters of each text: tried in this order, until the document is short enough.
STEPS = ((200, 2_000), (50, 1_000), (10, 500), (2, 200), (0, 200))
_DEEPEST = 12
SENTENCE = "this result was too long and is cut; narrow it by agent, type, label, age or limit"


def fitted(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document, or, if it is longer than BYTES, a copy with the beginnings of its lists and texts.

    A copy has ``"shortened"``: a sentence, and under ``"cut"``, by path, the shown and total length of each cut list
    (entries) or text (characters). It keeps all members of the document.
    """
    whole = dict(document)
    if len(encode(whole)) <= BYTES:
        return whole
    for entries, characters in STEPS:
        cut: dict[str, dict[str, int]] = {}
        copy = {name: _cut(value, name, (entries, characters), cut) for name, value in whole.items()}
        # Deeper cuts are like the ones already reported.
        told = sorted(cut.items(), key=lambda each: each[0].count("."))[: STEPS[0][0]]
        copy["shortened"] = {"why": SENTENCE, "cut": dict(told)}
        if len(encode(copy)) <= BYTES:
            break
    return copy


def _cut(value: Any, path: str, most: tuple[int, int], cut: dict[str, dict[str, int]]) -> Any:
    entries, characters = (0 if path.count(".") > _DEEPEST else most[0]), most[1]
    if not isinstance(value, str | list | dict):
        return value
    shown = characters if isinstance(value, str) else entries
    if len(value) > shown:
        cut[path] = {"shown": shown, "of": len(value)}
    if isinstance(value, str):
        return value[:shown]
    if isinstance(value, list):
        return [_cut(each, f"{path}.{n}", most, cut) for n, each in enumerate(value[:shown])]
    return {name: _cut(each, f"{path}.{name}", most, cut) for name, each in list(value.items())[:shown]}
