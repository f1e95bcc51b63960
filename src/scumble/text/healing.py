"""Prompts that end in white space which the tokenizer would have joined with what follows.

Tokens begin with white space: " return", "\\n    ". A prompt that ends in a bare " " or "\\n" therefore ends in a token
that training text hardly ever has before a word, and the model answers with nothing or with nonsense. So that token is
taken back, and the answer's first token must begin with its text; the answer then leaves that text out.

Indentation that was typed stays: it says how deep the next line is to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from scumble.text.tokenizer import Tokenizer

_texts: WeakKeyDictionary[Tokenizer, list[str]] = WeakKeyDictionary()


def take_back(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> tuple[list[int], str]:
    """A prompt's text and ids -> the ids to use, and the text that the answer's first token must begin with ("": any).

    At least one id stays.
    """
    tail = text[len(text.rstrip()) :]
    if len(ids) < 2 or not tail or ("\n" in tail and not tail.endswith("\n")):
        return list(ids), ""
    typed = tokenizer.decode(ids[-1:])
    joined = any(len(one) > len(typed) and one.startswith(typed) for one in _vocabulary(tokenizer))
    if not typed or not tail.endswith(typed) or not joined:
        return list(ids), ""
    return list(ids[:-1]), typed


def beginning_with(tokenizer: Tokenizer, typed: str) -> list[int]:
    """The ids whose text begins with `typed`, ascending."""
    return [id for id, text in enumerate(_vocabulary(tokenizer)) if text.startswith(typed)]


def _vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Every id's text, by itself; "" of special ones."""
    if tokenizer not in _texts:
        _texts[tokenizer] = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
    return _texts[tokenizer]
