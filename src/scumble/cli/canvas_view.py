"""A canvas while it is denoised, as pieces of text: what has settled, what was just accepted, what is still noise."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from scumble.cli.layout import Look, Piece
from scumble.cli.terminal import visible
from scumble.events import Draft
from scumble.text import StreamDetokenizer, Tokenizer

STEADY = 3  # passes without a change after which a position looks settled even when the sampler does not accept it


@dataclass(frozen=True)
class View:
    """One pass, ready to be drawn. settled: the share of shown positions that look settled, 0 … 1."""

    pieces: tuple[Piece, ...]
    settled: float
    settled_tokens: int
    canvas: int
    pass_index: int


class CanvasView:
    """Follows the drafts of one answer, pass by pass.

    A position is *settled* when its token is accepted and the same as one pass ago (or the same for STEADY passes),
    *fresh* when it was accepted with a new token, *leaning* when it kept its token without being accepted, else
    *noise*. Nothing behind the first end-of-sequence id is shown, nor behind the last position that the request has
    room for.

    Args:
        tokenizer: None shows ids instead of text.
        eos_ids: ids that end the answer; empty where the request ignores them.
        room: tokens the answer may have in all.
    """

    def __init__(self, tokenizer: Tokenizer | None, eos_ids: Collection[int], room: int) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._room = room
        self._canvas = -1
        self._previous: tuple[int, ...] = ()
        self._same: list[int] = []  # passes in a row in which a position's token did not change

    def commit(self, tokens: int) -> None:
        """So many more tokens of the answer are fixed."""
        self._room -= tokens

    def take(self, draft: Draft) -> View:
        if draft.canvas != self._canvas:
            self._canvas, self._previous, self._same = draft.canvas, (), [0] * len(draft.token_ids)
        if self._previous:
            self._same = [
                count + 1 if token == before else 0
                for count, token, before in zip(self._same, draft.token_ids, self._previous, strict=True)
            ]
        self._previous = draft.token_ids
        shown, ended = self._shown(draft.token_ids)
        looks: list[Look] = [self._look(draft.accepted[i], self._same[i]) for i in range(shown)]
        pieces = self._pieces(draft.token_ids[:shown], looks, draft.typed)
        if ended:
            at_start = not pieces or pieces[-1].text.endswith("\n")
            pieces.append(Piece("∎" if at_start else " ∎", "end"))
        settled = looks.count("settled")
        return View(tuple(pieces), settled / shown if shown else 1.0, settled, draft.canvas, draft.pass_index)

    def _shown(self, ids: tuple[int, ...]) -> tuple[int, bool]:
        """How many positions are shown, and whether an end-of-sequence id follows them."""
        room = min(len(ids), max(self._room, 0))
        end = next((i for i in range(room) if ids[i] in self._eos_ids), None)
        return (room, False) if end is None else (end, True)

    def _look(self, accepted: bool, same: int) -> Look:
        if same >= STEADY or (accepted and same):
            return "settled"
        if accepted:
            return "fresh"
        return "leaning" if same else "noise"

    def _pieces(self, ids: tuple[int, ...], looks: list[Look], typed: str) -> list[Piece]:
        """One piece a position. A character of several tokens appears with the last of them. The first one leaves out
        what was typed already."""
        if self._tokenizer is None:
            return [Piece(f"{token} ", look) for token, look in zip(ids, looks, strict=True)]
        stream = StreamDetokenizer(self._tokenizer)
        texts = [stream.feed([token]) for token in ids]
        texts[:1] = [text.removeprefix(typed) for text in texts[:1]]
        texts.append(stream.finish())
        looks = [*looks, looks[-1] if looks else "noise"]
        return [Piece(_calm(visible(text), look), look) for text, look in zip(texts, looks, strict=True) if text]


def _calm(text: str, look: Look) -> str:
    """Line breaks that are only guessed would make the whole screen jump; they are drawn as signs until they hold."""
    return text.replace("\n", "↵").replace("\t", " ") if look == "noise" else text
