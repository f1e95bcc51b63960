"""A structure (structure/) as a constraint on answers: the law of its canvases, and the mask of its next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scumble.decode.constraint import Constraint, Look, Restriction
from scumble.diffusion import Proposal
from scumble.errors import InvalidRequest
from scumble.ops.classes import ClassStatistics, TokenClasses
from scumble.structure.automaton import DEAD, START
from scumble.structure.classes import END
from scumble.structure.compiled import Compiled
from scumble.structure.law import Graph, Masses, Solution, solve
from scumble.structure.tree import StructureError

FINISHED = -1
Solver = Callable[[Graph, Masses, int, int, np.ndarray | None], Solution]


@dataclass(frozen=True)
class Structured(Constraint):
    """An answer that is a text of a language, followed by an end id.

    Whatever the model says, every canvas can be completed within `max_new_tokens`: see structure/law.py.
    state: of the automaton, where the answer stands; FINISHED behind the end id. solve: Ops.canvas_law.
    filler: the id that stands behind the end id on a canvas.
    """

    compiled: Compiled
    filler: int
    solve: Solver = solve
    state: int = START

    def restrict(self, length: int, room: int, vocab: int) -> Restriction:
        if self.state == FINISHED:
            return Restriction()
        if length == 1:
            return Restriction(allowed={0: self.mask(room)})
        positions = min(length, room)
        return Restriction(law=StructureLaw(self, positions, room - positions))

    def mask(self, room: int) -> Tensor:
        """The ids [V] of which one may come next, of an answer that has `room` tokens left."""
        tokens = self.compiled.tokens
        after = tokens.step[self.state]
        fits = (after != DEAD) & (tokens.distance[after] < room)
        fits[END] = bool(tokens.ends[self.state])
        if not fits.any():
            raise StructureError(f"no text of the structure can end within the {room} tokens that are left")
        return torch.from_numpy(fits[tokens.of_token])

    def after(self, ids: Sequence[int]) -> Structured:
        tokens, state = self.compiled.tokens, self.state
        for id in ids:
            if state == FINISHED:
                break
            state = FINISHED if tokens.of_token[id] == END and tokens.ends[state] else tokens.after(state, id)
            if state == DEAD:
                raise StructureError(f"token {id} does not continue the structure; this is a bug in Scumble")
        return replace(self, state=state)

    def fits(self, ids: Sequence[int]) -> bool:
        try:
            return self.after(ids).state == FINISHED
        except StructureError:
            return False

    @property
    def is_movable(self) -> bool:
        return False

    def check(self, max_new_tokens: int) -> None:
        """Refuse a budget in which no text of the language can end."""
        least = int(self.compiled.tokens.distance[self.state])
        if max_new_tokens < least:
            raise InvalidRequest(
                f"max_new_tokens must be ≥ {least} for this structure (its shortest text, with the end), "
                f"found {max_new_tokens}"
            )


class StructureLaw:
    """The law of one canvas: its first `positions` ids, with `room` more tokens behind them.

    Positions beyond, and those behind the end id, hold a filler; nothing of them is committed.
    """

    def __init__(self, structure: Structured, positions: int, room: int) -> None:
        self.structure, self.positions, self.room = structure, positions, room
        self.classes: TokenClasses | None = token_classes(structure.compiled)

    def propose(self, look: Look) -> Proposal:
        found = look.classes
        assert found is not None
        pinned, ids = (values[0].cpu().numpy() for values in (look.canvas.pinned, look.canvas.ids))
        n = self.positions
        uniforms = None if look.uniforms is None else look.uniforms[:n].cpu().numpy()
        law = self.structure.solve(
            self.structure.compiled.graph,
            self.masses(look.logsumexp, found, pinned, ids),
            self.structure.state,
            self.room,
            uniforms,
        )
        if not np.isfinite(law.log_probability):
            raise StructureError(
                "the ids that are pinned or forbidden leave no canvas that the structure allows; pin or forbid fewer"
            )
        entropy = np.zeros(len(ids), np.float32)
        entropy[:n] = law.entropies
        argmax = self.filled(found.best_ids(np.arange(n), law.likely), ids, pinned)
        sample = argmax
        if uniforms is not None:
            sample = self.filled(found.draw(np.arange(n), law.drawn, law.rest), ids, pinned)
        rows = (torch.from_numpy(values)[None].to(look.canvas.ids.device) for values in (argmax, sample, entropy))
        return Proposal(*rows)

    def masses(self, logsumexp: Tensor, by_class: ClassStatistics, pinned: np.ndarray, ids: np.ndarray) -> Masses:
        """Of the canvas's first positions; a pinned one has its own id and nothing else.

        Log-probabilities, not sums of exp z: behind the end id a position weighs 1, so others must weigh 1 in all too.
        """
        n = self.positions
        whole = logsumexp[:n, None].double().cpu().numpy()
        found = Masses(by_class.mass[:n] - whole, by_class.entropy[:n].copy(), by_class.best[:n] - whole)
        of_token = self.structure.compiled.tokens.of_token
        for i in np.flatnonzero(pinned[:n]):
            for table, value in ((found.mass, -np.inf), (found.best, -np.inf), (found.entropy, 0.0)):
                table[i] = value
            found.mass[i, of_token[ids[i]]] = found.best[i, of_token[ids[i]]] = 0.0
        return found

    def filled(self, found: np.ndarray, ids: np.ndarray, pinned: np.ndarray) -> np.ndarray:
        """Ids [L]: those that are pinned, those that were found, the filler elsewhere."""
        out = np.full(len(ids), self.structure.filler)
        out[: len(found)] = np.where(found < 0, self.structure.filler, found)
        return np.where(pinned, ids, out)


@lru_cache(maxsize=64)
def token_classes(compiled: Compiled) -> TokenClasses:
    return TokenClasses(compiled.tokens.of_token, compiled.tokens.classes)
