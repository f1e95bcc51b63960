"""Which documents make up the batch of a step. A function of (seed, step) alone, so a resumed run sees the same data.

Documents are sorted by length into batches of equal padded length; the order of the batches is shuffled every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scumble.train.infill import InfillTokens, draw_kind, infill_rows

_Rows = tuple[list[NDArray], int, list[NDArray] | None]  # rows, length of the prompt, damaged middles


class Documents(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> NDArray: ...


@dataclass(frozen=True)
class Batch:
    """ids [B, T] int64: bos, document, eos, then pads; lengths [B]: tokens before the pads. prompt: tokens of every
    row that are context only; canvases of `canvas` tokens tile what follows. copies: how often each is noised.
    drafts: of repair rows [B, T - prompt], the damaged text as `LLM.repair` lays it on the canvases: with an end, then
    pads."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prompt: int
    canvas: int
    epoch: int
    copies: int = 1
    drafts: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Mix:
    """Shares of the batches, 0 … 1. infill: fill-in-the-middle rows; repair: of those with holes of whole lines, the
    ones that show the damaged lines too; body: of the others, the ones whose canvases begin where a docstring ends.

    copies: how many noised copies of an infill row's canvases share one encoding, at most.
    """

    infill: float = 0.0
    repair: float = 0.0
    body: float = 0.0
    copies: int = 1


PLAIN = Mix()


@dataclass(frozen=True)
class Specials:
    bos: int
    eos: int
    pad: int


class Batches:
    """Batches over documents: about `tokens` document tokens each, rows cut at `length` tokens.

    canvas: every row is padded so that whole canvases of that length follow the prompt.
    shortest_canvas: each batch draws its canvas length from canvas, canvas/2, canvas/4 … down to this; 0: canvas only.
    infill: markers for fill-in-the-middle batches; needed only when `batch` is asked for them.
    docstring_end: of a document's ids, how many there are up to its docstring's end; 0: it has none.
    """

    def __init__(
        self,
        documents: Documents,
        lengths: NDArray[np.int64],
        specials: Specials,
        *,
        tokens: int,
        length: int,
        canvas: int,
        shortest_canvas: int = 0,
        prompt_share: float,
        seed: int,
        infill: InfillTokens | None = None,
        docstring_end: Callable[[NDArray], int] = lambda ids: 0,
    ):
        self.length, self.infill, self.docstring_end = length, infill, docstring_end
        self.documents, self.specials = documents, specials
        self.prompt_share, self.seed = prompt_share, seed
        self.canvases = [canvas]
        while shortest_canvas and self.canvases[-1] // 2 >= shortest_canvas:
            self.canvases.append(self.canvases[-1] // 2)
        self.sizes = np.minimum(lengths + 2, length)  # with bos and eos
        order = np.argsort(self.sizes, kind="stable")
        totals = np.cumsum(self.sizes[order])
        # Cut where the running total passes a multiple of `tokens`: rows of one batch have nearly one length.
        self.groups: Sequence[NDArray] = [
            group for group in np.split(order, np.flatnonzero(np.diff(totals // tokens)) + 1) if len(group)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, step: int, mix: Mix = PLAIN) -> Batch:
        """The batch of a step, of a kind drawn from the mix."""
        epoch, index = divmod(step, len(self.groups))
        group = self.groups[np.random.default_rng((self.seed, epoch)).permutation(len(self.groups))[index]]
        rng = np.random.default_rng((self.seed, epoch, index))
        bodies = [np.asarray(self.documents[int(document)]) for document in group]
        infill = self.infill is not None and rng.random() < mix.infill and min(map(len, bodies)) >= 2
        rows, prompt, damaged = (self._infill_rows if infill else self._rows)(bodies, mix, rng)
        lengths = np.array([len(row) for row in rows])
        canvas = self.canvases[int(rng.integers(len(self.canvases)))]
        canvases = -(-max(1, int(lengths.max()) - prompt) // canvas)
        ids = np.full((len(rows), prompt + canvases * canvas), self.specials.pad, np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        # Encoding a long prompt for a short middle is dear: noise the middle again until both cost about the same.
        copies = max(1, min(mix.copies, prompt // (canvases * canvas))) if infill else 1
        return Batch(ids, lengths, prompt, canvas, epoch, copies, drafts=self._drafts(damaged, ids.shape[1] - prompt))

    def _drafts(self, damaged: list[NDArray] | None, width: int) -> NDArray[np.int64] | None:
        if damaged is None:
            return None
        drafts = np.full((len(damaged), width), self.specials.pad, np.int64)
        for draft, ids in zip(drafts, damaged, strict=True):
            text = np.append(ids, self.specials.eos)[:width]
            draft[: len(text)] = text
        return drafts

    def _infill_rows(self, bodies: list[NDArray], mix: Mix, rng: np.random.Generator) -> _Rows:
        assert self.infill is not None
        kind = draw_kind(rng)
        repair = kind != "span" and rng.random() < mix.repair
        rows, prompt, damaged = infill_rows(
            bodies, self.infill, self.specials.bos, self.specials.eos, self.length, kind, repair, rng
        )
        return rows, prompt, damaged if repair else None

    def _rows(self, bodies: list[NDArray], mix: Mix, rng: np.random.Generator) -> _Rows:
        """Whole documents; canvases begin anywhere, or where the docstring of one of them ends."""
        rows = [np.concatenate([[self.specials.bos], body, [self.specials.eos]])[: self.length] for body in bodies]
        shortest = min(map(len, rows))
        if rng.random() < mix.body:
            end = self.docstring_end(bodies[int(rng.integers(len(bodies)))])
            if 0 < end < shortest - 1:
                return rows, 1 + end, None
        return rows, 1 + int(rng.integers(0, max(1, int(self.prompt_share * shortest)))), None
