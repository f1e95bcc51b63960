"""How many tokens a text has at least, without tokenizing it.

Tokenizing ten megabytes takes many seconds and gigabytes, only to learn that the prompt is far too long. Two facts give
a lower bound in a fraction of a second. Tokens are pieces of the text, each spelled in the vocabulary. So

1. where two neighbouring bytes stand side by side in no token of the vocabulary, a token ends between them: there are
   at least as many tokens as such borders, and one more;
2. a byte in a token of n > 1 bytes has a neighbour in the same token, so that pair occurs in a token of n bytes. Give
   every byte the weight 1 / (length of the longest token with one of its two pairs in it): the weights of one token's
   bytes sum to 1 at most, so there are at least as many tokens as the weights of all bytes sum to.

Both hold for the beginning of a text as well, so counting may stop as soon as enough is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scumble.text.byte_level import BYTE_OF, unspelled

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer as Backend

BLOCK = 2**20  # bytes looked at at a time


class FewestTokens:
    """The bound for one vocabulary.

    Args:
        tokens: what each token stands for, as text or bytes.
        space: a letter that stands for a blank in tokens and text alike ("▁"), if there is one.
    """

    def __init__(self, tokens: Iterable[str | bytes], space: str | None = None) -> None:
        self._space = space
        self._longest = longest_with_pair(one.encode() if isinstance(one, str) else one for one in tokens)

    def count(self, text: str, enough: int) -> int:
        """A number of tokens that the text has at least; where that exceeds `enough`, perhaps of its beginning only."""
        import numpy as np

        if self._space is not None:
            text = text.replace(self._space, " ")
        data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
        borders, weight = 0, 0.0
        for start in range(0, len(data), BLOCK):
            block = data[max(start - 1, 0) : start + BLOCK + 1].astype(np.uint16)  # with a neighbour on both sides
            pairs = self._longest[(block[:-1] << 8) | block[1:]]
            around = np.concatenate(([1], pairs, [1])).astype(np.uint16)
            lengths = np.maximum(np.maximum(around[:-1], around[1:]), 1)
            first, last = (1 if start else 0), (1 if start + BLOCK < len(data) else 0)
            weight += float((1.0 / lengths.astype(np.float64)[first : len(lengths) - last]).sum())
            borders += int((pairs[: len(pairs) - last] == 0).sum())
            if max(borders, weight) > enough:
                break
        return max(borders + (len(data) > 0), math.ceil(weight * (1 - 1e-9)))


def longest_with_pair(tokens: Iterable[bytes]) -> np.ndarray:
    """For each pair of bytes, 256 · first + second, how long the longest token is in which they are neighbours."""
    import numpy as np

    ordered = sorted(tokens, key=len)
    lengths = np.fromiter(map(len, ordered), np.uint16, len(ordered))
    data = np.frombuffer(b"".join(ordered), np.uint8).astype(np.uint16)
    owner = np.repeat(np.arange(len(ordered)), lengths)
    inside = owner[:-1] == owner[1:]
    pairs = ((data[:-1] << 8) | data[1:])[inside]
    longest = np.zeros(2**16, np.uint16)
    longest[pairs] = lengths[owner[:-1][inside]]  # ascending, so the longest is written last
    return longest


def bound_of(backend: Backend) -> FewestTokens | None:
    """The bound for a tokenizer, or None where one of its tokens may stand for more than its own text.

    Safe are BPE vocabularies that have a token for every byte, with pre-tokenizers that only cut, and no normalizer but
    the one that writes blanks as ▁.
    """
    model: Any = backend.model
    cutters = _parts(backend.pre_tokenizer)
    blanks = [_blank(part) for part in (*_parts(backend.normalizer), *cutters)]
    if (
        type(model).__name__ != "BPE"
        or any(getattr(model, name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        or any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        or "unsafe" in blanks
    ):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if any(part["type"] == "ByteLevel" for part in cutters):
        whole = all(letter in vocabulary for letter in BYTE_OF)
        return FewestTokens(map(unspelled, vocabulary)) if whole else None
    if not model.byte_fallback or not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return None
    space = "▁" if "▁" in blanks else None
    return FewestTokens((text.replace("▁", " ") if space else text for text in vocabulary), space)


def _parts(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as the file describes them."""
    if part is None:
        return []
    return _flat(json.loads(part.__getstate__()))


def _flat(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = part.get("pretokenizers") or part.get("normalizers")
    return [part] if inner is None else [one for item in inner for one in _flat(item)]


def _blank(part: Mapping[str, Any]) -> str | None:
    """How a normalizer or pre-tokenizer writes blanks, None: as they are; "unsafe": it may drop or join text."""
    kind = part["type"]
    if kind == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == "▁":
        return "▁"
    if kind == "Metaspace" and part.get("replacement") == "▁":
        return "▁"
    if kind in ("ByteLevel", "Digits", "Prepend") or (kind == "Split" and part.get("behavior") != "Removed"):
        return None
    return "unsafe"
