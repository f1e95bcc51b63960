"""Prompts that ask for the text between two texts, in the form of the training rows (train/infill.py):

<bos> <fim_prefix> before <fim_suffix> after <fim_middle>
<bos> <fim_prefix> before <fim_suffix> after <repair> damaged <fim_middle>        to put a damaged text right
"""

from __future__ import annotations

from scumble.errors import InvalidRequest, TokenizerError
from scumble.text.healing import take_back
from scumble.text.tokenizer import Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
REPAIR = "<|repair|>"


def can_infill(tokenizer: Tokenizer | None) -> bool:
    """Whether a tokenizer has the three markers; whether the weights learnt them, only an evaluation tells."""
    return tokenizer is not None and all(marker in tokenizer.special_tokens for marker in (PREFIX, SUFFIX, MIDDLE))


def can_repair(tokenizer: Tokenizer | None) -> bool:
    return tokenizer is not None and can_infill(tokenizer) and REPAIR in tokenizer.special_tokens


def encode_infill(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    damaged: str | None = None,
    context: int | None = None,
    *,
    heal: bool = True,
) -> tuple[list[int], str]:
    """Prompt ids, and what the first token of the answer must begin with (see text/healing.py).

    context: as for `Tokenizer.encode`, of each of the texts.
    heal: whether white space at the prefix's end may be left to the answer.

    Raises TokenizerError where a marker is missing, InvalidRequest where the damaged text is empty.
    """
    if not can_infill(tokenizer):
        raise TokenizerError(f"this model has no fill-in-the-middle markers ({PREFIX} …)")
    if damaged is not None and not can_repair(tokenizer):
        raise TokenizerError(f"this model has no repair marker ({REPAIR}); it can only fill in")
    if damaged == "":
        raise InvalidRequest("the damaged text is empty; give at least one character, or fill in without it")
    marker = tokenizer.special_tokens
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    hint = [] if damaged is None else [marker[REPAIR], *tokenizer.encode(damaged, context=context)]
    before, typed = [marker[PREFIX], *tokenizer.encode(prefix, context=context)], ""
    if damaged is None and heal:  # a text to repair begins where it begins
        before, typed = take_back(tokenizer, prefix, before)
    after = [marker[SUFFIX], *tokenizer.encode(suffix, context=context)]
    return [*start, *before, *after, *hint, marker[MIDDLE]], typed
