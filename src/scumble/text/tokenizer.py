"""Text to token ids and back, over the `tokenizers` library.

Two kinds of text come in. A *rendered template* is ours: its `<|turn>` is the turn marker and must become one special
id. *Anything a user wrote* is data: the same six characters there are six characters, and must never become that id,
or a user could end his own turn and speak as the system. Hence `encode(text, special=False)`, the default, which
cannot yield a special id whatever the text says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from scumble.errors import InvalidRequest, PromptTooLong, TokenizerError
from scumble.reading import MOST_TOKENIZER, is_there, read_bytes, read_json_file
from scumble.text.fewest import FewestTokens, bound_of
from scumble.text.markers import CONTROL_TOKENS

LONG = 2  # a text of more characters than this times the context's tokens is not tokenized before its bound is known

# Names tried, in this order, where no tokenizer_config.json says which token begins a text.
_USUAL_BOS = ("<bos>", "<s>", "<|begin_of_text|>")


class Tokenizer:
    """A trained tokenizer with its special tokens. Holds no state between calls; safe to share between threads.

    Args:
        backend: the `tokenizers` object. Its truncation, padding and post-processor are not used: ids come out as the
            text has them, without an automatic BOS (templates write their own).
        token_names: what tokenizer_config.json calls its tokens: {"bos_token": "<bos>", "soc_token": "<|channel>", …}.
            Those that exist in the vocabulary are treated as special even where tokenizer.json does not mark them so,
            and so are the model family's control tokens (markers.py).
    """

    def __init__(self, backend: Backend, *, token_names: Mapping[str, str] | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        names = dict(token_names or {})
        reserved = (*names.values(), *CONTROL_TOKENS)
        backend.add_special_tokens([text for text in reserved if backend.token_to_id(text) is not None])
        if "bos_token" not in names:
            usual = next((text for text in _USUAL_BOS if backend.token_to_id(text) is not None), None)
            if usual is not None:
                names["bos_token"] = usual
        self._backend = backend
        self._literal: Backend | None = None  # the same tokenizer, blind to special tokens; built when first needed
        self._literal_lock = threading.Lock()
        self._bound: tuple[FewestTokens | None] | None = None  # made when first needed
        self.token_names: Mapping[str, str] = MappingProxyType(names)
        added = backend.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = MappingProxyType(
            {token.content: id for id, token in added.items() if token.special}
        )
        self.special_ids: frozenset[int] = frozenset(self.special_tokens.values())

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.json` and, where there is one, `tokenizer_config.json` from a checkpoint folder.

        Raises:
            TokenizerError: a file is missing or damaged, or the two files disagree about an added token's id.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not is_there(file):
            raise TokenizerError(f"no tokenizer.json in {folder}; text needs one, or work on token ids (generate_ids)")
        try:
            backend = Backend.from_buffer(read_bytes(file, MOST_TOKENIZER))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"{file} cannot be read as a tokenizer ({str(error)[:200]}); get it again") from error
        config = read_tokenizer_config(folder)
        _add_declared_tokens(backend, config, folder)
        return cls(backend, token_names=_named_tokens(config))

    def encode(self, text: str, *, special: bool = False, context: int | None = None) -> list[int]:
        """Token ids of a text, without an automatic BOS.

        Args:
            text: any Unicode text; the empty text has no ids.
            special: False: the text is data, and no special id can come out. True: the text is a rendered template,
                and the special tokens written in it become their ids.
            context: tokens that prompt and answer may have together: a text that leaves no room for an answer is
                refused, and one that is far too long without being tokenized.

        Raises:
            PromptTooLong: the text does not fit into `context`.
            InvalidRequest: the text holds a lone surrogate (not Unicode), or consists of a one-character special token.
        """
        require_unicode(text)
        if context is not None:
            self.refuse_if_far_too_long(text, context)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if not special and not self.special_ids.isdisjoint(ids):
            ids = self._encode_literally(text)
        if context is not None and len(ids) >= context:
            raise too_long(str(len(ids)), context)
        return ids

    def refuse_if_far_too_long(self, text: str, context: int) -> None:
        """Raises PromptTooLong where a glance at a long text shows that it has more tokens than the context holds."""
        if len(text) > LONG * context:
            count = self.fewest_tokens(text, context)
            if count >= context:
                raise too_long(f"at least {count}", context)

    def fewest_tokens(self, text: str, enough: int) -> int:
        """A number of tokens that a text has at least, found without tokenizing it (see fewest.py); 0 where nothing can
        be said. Counts no further than `enough`."""
        if self._bound is None:
            self._bound = (bound_of(self._backend),)
        return 0 if self._bound[0] is None else self._bound[0].count(text, enough)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids. Ids outside the vocabulary decode to nothing (a model may have padding rows past it).

        Args:
            ids: token ids, each at least 0.
            skip_special: leave out special tokens.
        """
        if skip_special:
            ids = [id for id in ids if id not in self.special_ids]
        try:
            return self._backend.decode(ids, skip_special_tokens=False)
        except OverflowError as error:
            raise InvalidRequest(f"token ids must be at least 0 and below {self.vocab_size}; got {min(ids)}") from error

    def token_id(self, token: str) -> int | None:
        """The id of one token as written in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def token(self, id: int) -> str | None:
        """The token with this id as written in the vocabulary (byte-level and ▁ spellings kept), or None."""
        return self._backend.id_to_token(id) if 0 <= id < 2**32 else None

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None where the tokenizer has no such token."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id that tokenizer_config.json names as a text's end. Which ids end generation is for the model to say."""
        return self._named_id("eos_token")

    @property
    def decoder_spec(self) -> dict[str, Any] | None:
        """The decoder's own description, e.g. {"type": "ByteLevel", …}; None where tokens are joined by spaces."""
        decoder = self._backend.decoder
        return None if decoder is None else json.loads(decoder.__getstate__())

    def _named_id(self, name: str) -> int | None:
        text = self.token_names.get(name)
        return None if text is None else self.token_id(text)

    def _encode_literally(self, text: str) -> list[int]:
        """Encode with special tokens switched off; cut what still becomes one (vocabularies with `ignore_merges`)."""
        with self._literal_lock:
            if self._literal is None:
                self._literal = Backend.from_str(self._backend.to_str())
                self._literal.encode_special_tokens = True
            literal = self._literal
        unknown = getattr(literal.model, "unk_token", None) or self.token_names.get("unk_token", "")
        forbidden = self.special_ids - {self.special_tokens.get(unknown, -1)}  # text may honestly be unknown
        ids: list[int] = []
        pieces = [text]  # a stack, first piece on top
        while pieces:
            piece = pieces.pop()
            encoding = literal.encode(piece, add_special_tokens=False)
            spans = [span for id, span in zip(encoding.ids, encoding.offsets, strict=True) if id in forbidden]
            if not spans:
                ids += encoding.ids
                continue
            if any(end - start < 2 for start, end in spans):
                raise InvalidRequest(f"the text {piece[:40]!r} can only be encoded as a special token; leave it out")
            borders = [0, *(start + 1 for start, _ in spans), len(piece)]
            pieces += [piece[a:b] for a, b in pairwise(borders)][::-1]
        return ids


def too_long(count: str, context: int) -> PromptTooLong:
    return PromptTooLong(
        f"the prompt has {count} tokens; the model's context holds {context}, and at least one is needed for the "
        "answer; shorten the prompt"
    )


def require_unicode(text: str, what: str = "the text") -> None:
    """Raise InvalidRequest where `text` is no str or holds lone surrogates (what undecodable input bytes turn into)."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{what} must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise InvalidRequest(f"{what} is not valid Unicode: lone surrogate {found}; send UTF-8") from None


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json as a dict; empty where there is none. Raises TokenizerError where it is damaged."""
    file = folder / "tokenizer_config.json"
    if not is_there(file):
        return {}
    try:
        config = read_json_file(file)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} is not readable JSON ({error}); fetch it again or remove it") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{file} must hold a JSON object, not {type(config).__name__}")
    return config


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """{"bos_token": "<bos>", …}: values are strings, or objects with `content`; extra lists get numbered names."""
    found = {name: value for name, value in config.items() if name.endswith("_token")}
    for group in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
        value = config.get(group)
        if isinstance(value, dict):
            found |= value
        elif isinstance(value, list):
            found |= {f"{group}_{index}": item for index, item in enumerate(value)}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    named = {name: text for name, text in texts.items() if isinstance(text, str) and text}
    for name, text in named.items():
        try:
            require_unicode(text, name)
        except InvalidRequest as error:
            raise TokenizerError(f"tokenizer_config.json: {error}") from None
    return named


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    options = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{name: bool(entry[name]) for name in options if name in entry})


def _add_declared_tokens(backend: Backend, config: Mapping[str, Any], folder: Path) -> None:
    """Add what `added_tokens_decoder` ({"105": {"content": "<|turn>", "special": true}}) declares beyond the file."""
    declared = config.get("added_tokens_decoder", {})
    try:
        by_id = {int(id): _added_token(entry) for id, entry in declared.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder}/tokenizer_config.json: added_tokens_decoder is damaged: {error}") from error
    for id, token in sorted(by_id.items()):
        if backend.token_to_id(token.content) is None or token.special:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        found = backend.token_to_id(token.content)
        if found != id:
            raise TokenizerError(
                f"{folder}: tokenizer_config.json gives {token.content!r} the id {id}, tokenizer.json {found}; "
                "the two files belong to different tokenizers"
            )
