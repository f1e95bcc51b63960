"""Where the docstring ends in a function's token ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scumble.text import Tokenizer


def docstring_finder(tokenizer: Tokenizer) -> Callable[[NDArray], int]:
    """A function: document ids [n] -> how many ids there are up to and with the docstring's closing quotes, 0 without.

    It counts the ids whose text holds a triple quote, so a docstring of one id, or of other quotes, is not found.
    """
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    quotes = np.array(['"""' in text or "'''" in text for text in texts])

    def end(ids: NDArray) -> int:
        places = np.flatnonzero(quotes[ids])
        return int(places[1]) + 1 if len(places) >= 2 else 0

    return end
