"""A byte-level BPE vocabulary for Python code.

Text is first cut into pieces that tokens may not cross; BPE then merges bytes inside pieces. The cut is made for code:

- line ends together with the indentation that follows are one piece (``\\n        ``), so a line's indentation is
  usually one token and the word after it is the same token at every depth;
- a word takes at most one character in front of it (a space, or punctuation as in ``.append`` and ``(self``) and the
  underscores that lead it, so ``snake_case`` is cut at its joints;
- digits stand alone, one token each (with a space before the first), so numbers are spelt, not memorized.

All 256 bytes are in the vocabulary: every string can be encoded, and decoding gives it back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from scumble.errors import DataError, TokenizerError
from scumble.train.atomic import atomic_file

SPECIAL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
    "<|repair|>", "<|file|>", "<|doc|>", *(f"<|reserved_{k}|>" for k in range(5)),
)  # fmt: skip
"""In id order: <pad> is 0, <eos> 1, <bos> 2."""

PIECES = "|".join(
    [
        r"[\r\n]+ *",  # line ends and the next line's indentation
        r" ?_*\p{L}[\p{L}\p{M}]*",  # a word, with its space and leading underscores
        r"[^\s\p{L}\p{N}_]_*\p{L}[\p{L}\p{M}]*",  # or with one punctuation mark: .append (self
        r" ?\p{N}",  # one digit
        r" ?[^\s\p{L}\p{N}]+",  # a run of punctuation
        r"[^\S\r\n]+(?![^\s])|[^\S\r\n]+",  # other white space, the last space left to the word after it
    ]
)


def train_bpe(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Train a tokenizer with `vocabulary` tokens, special ones included. Deterministic for a given text."""
    if vocabulary < len(SPECIAL_TOKENS) + 256:
        raise TokenizerError(f"a vocabulary of {vocabulary} is too small; at least {len(SPECIAL_TOKENS) + 256}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json, atomically."""
    with atomic_file(path, "w") as f:
        f.write(tokenizer.to_str(pretty=False))


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json so that text can never become a special token: "<eos>" in a prompt is five characters.

    The library does not store that switch (`encode_special_tokens`) in the file; it must be set after each load.
    Ask for a special token by id: `tokenizer.token_to_id("<eos>")`.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"cannot load {path}: {error}") from error
    for index, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != index:
            raise TokenizerError(f"{path}: {token} should have id {index}, not {tokenizer.token_to_id(token)}")
    tokenizer.encode_special_tokens = True
    return tokenizer


def sample_texts(path: Path, max_bytes: int, every: int = 1) -> Iterator[str]:
    """Texts of a JSON Lines file, each `every`-th, until `max_bytes` have been given. Raises DataError."""
    given = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as f:
            for number, line in enumerate(f):
                if number % every:
                    continue
                text = json.loads(line)["text"]
                given += len(text.encode())
                if given > max_bytes:
                    return
                yield text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}; build it with `python tools/corpus build`") from error


def spread(path: Path, max_bytes: int) -> int:
    """The step for `sample_texts` that spreads `max_bytes` over the whole file."""
    try:
        return max(1, round(path.stat().st_size / max_bytes))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; build it with `python tools/corpus build`") from error


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Compression on `texts`: UTF-8 bytes divided by tokens."""
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)
