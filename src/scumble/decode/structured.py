"""A structure (structure/) as a constraint on answers: the law of its canvases, and the mask of its next token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scumble.decode.constraint import Joint, Look, Restriction
from scumble.diffusion import Proposal
from scumble.errors import InvalidRequest
from scumble.ops.classes import ClassStatistics, TokenClasses
from scumble.structure.automaton import DEAD, START
from scumble.structure.classes import END
from scumble.structure.compiled import Compiled
from scumble.structure.graph import Window
from scumble.structure.law import Masses, Solution, solve
from scumble.structure.tree import StructureError

FINISHED = -1
Solver = Callable[[Window, Masses, np.ndarray | None], Solution]


@dataclass(frozen=True)
class Structured(Joint):
    """An answer that is a text of a language, followed by an end id.

    Whatever the model says, every canvas can be completed within `max_new_tokens`, with what others ask of the ids that
    follow: see structure/law.py. Pins behind the end have no effect.
    state: of the automaton, where the answer stands; FINISHED behind the end id. solve: Ops.canvas_law.
    """

    compiled: Compiled
    solve: Solver = solve
    state: int = START

    def restrict_beside(self, length: int, room: int, vocab: int, others: Restriction) -> Restriction:
        if self.state == FINISHED:
            return Restriction()
        positions = min(length, room)
        ends = self.ends(positions, room, others)
        if length == 1:
            return Restriction(allowed={0: self.mask(ends)})
        return Restriction(law=StructureLaw(self, Window(self.compiled.graph, self.state, positions, ends)))

    def ends(self, position: int, room: int, others: Restriction) -> np.ndarray:
        """[S] bool: the states before `position` from which a text can end within `room` positions in all, where others
        restrict some of them."""
        last = max((place + 1 for place in (*others.pinned, *others.allowed)), default=0)
        graph = self.compiled.graph
        if last <= position:
            return graph.within(room - position)
        return graph.endings(graph.within(room - last), self.kinds(range(last - 1, position - 1, -1), others))

    def kinds(self, positions: Sequence[int], others: Restriction) -> Iterator[np.ndarray | None]:
        """The classes [C] bool that others allow at some positions; None: all."""
        tokens = self.compiled.tokens
        known: dict[int, np.ndarray] = {}
        for position in positions:
            mask = others.allowed.get(position)
            if position in others.pinned:
                yield np.arange(tokens.classes) == tokens.of_token[others.pinned[position]]
            elif mask is not None:
                if id(mask) not in known:
                    known[id(mask)] = np.bincount(tokens.of_token[mask.numpy()], minlength=tokens.classes) > 0
                yield known[id(mask)]
            else:
                yield None

    def mask(self, ends: np.ndarray) -> Tensor:
        """The ids [V] that lead to one of some states, or to the end."""
        tokens = self.compiled.tokens
        after = tokens.step[self.state]
        fits = (after != DEAD) & ends[after]
        fits[END] = bool(tokens.ends[self.state])
        if not fits.any():
            raise StructureError(
                "no text of the structure can end within the tokens that are left, with what else is asked of them"
            )
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

    def check_beside(self, max_new_tokens: int, others: Restriction) -> None:
        """Refuse a budget in which no text of the language can end, and what leaves no text."""
        least = int(self.compiled.tokens.distance[self.state])
        if max_new_tokens < least:
            raise InvalidRequest(
                f"max_new_tokens must be ≥ {least} for this structure (its shortest text, with the end), "
                f"found {max_new_tokens}"
            )
        if not self.ends(0, max_new_tokens, others)[self.state]:
            raise StructureError(
                f"the ids that are pinned, or asked for otherwise, leave no text that the structure allows and that "
                f"ends within max_new_tokens={max_new_tokens}; pin fewer or other ids, or raise max_new_tokens"
            )


class StructureLaw:
    """The law of one canvas, of which the window covers the first positions.

    Positions beyond, and those behind the end id, are as free as without a structure; nothing of them is committed.
    With pads there, the model would read in the next pass that the text is over, and keep the end where it is.
    """

    def __init__(self, structure: Structured, window: Window) -> None:
        self.structure, self.window = structure, window
        self.classes: TokenClasses | None = token_classes(structure.compiled)

    def propose(self, look: Look) -> Proposal:
        found = look.classes
        assert found is not None
        pinned, ids = (values[0].cpu().numpy() for values in (look.canvas.pinned, look.canvas.ids))
        n = self.window.length
        uniforms = None if look.uniforms is None else look.uniforms[:n].cpu().numpy()
        law = self.structure.solve(self.window, self.masses(look, found, pinned, ids), uniforms)
        if not np.isfinite(law.log_probability):
            raise StructureError(
                "the ids that are pinned or forbidden leave no canvas that the structure allows; pin or forbid fewer"
            )
        independent = look.proposal
        entropy = independent.entropy[0].float().cpu().numpy().copy()
        entropy[:n] = law.entropies
        argmax = filled(found.best_ids(np.arange(n), law.likely), independent.argmax)
        sample = argmax
        if uniforms is not None:
            sample = filled(found.draw(np.arange(n), law.drawn, law.rest), independent.sample)
        argmax, sample = (np.where(pinned, ids, values) for values in (argmax, sample))
        rows = (torch.from_numpy(values)[None].to(look.canvas.ids.device) for values in (argmax, sample, entropy))
        return Proposal(*rows)

    def masses(self, look: Look, by_class: ClassStatistics, pinned: np.ndarray, ids: np.ndarray) -> Masses:
        """Of the canvas's first positions; a pinned one has its own id and nothing else.

        Log-probabilities, not sums of exp z: behind the end id a position weighs 1, so others must weigh 1 in all too.
        """
        n = self.window.length
        whole = look.logsumexp[:n, None].double().cpu().numpy()
        found = Masses(by_class.mass[:n] - whole, by_class.entropy[:n].copy(), by_class.best[:n] - whole)
        add_the_rest(found, look.proposal.entropy[0, :n].double().cpu().numpy())
        of_token = self.structure.compiled.tokens.of_token
        for i in np.flatnonzero(pinned[:n]):
            for table, value in ((found.mass, -np.inf), (found.best, -np.inf), (found.entropy, 0.0)):
                table[i] = value
            found.mass[i, of_token[ids[i]]] = found.best[i, of_token[ids[i]]] = 0.0
        return found


def add_the_rest(masses: Masses, entropy: np.ndarray) -> None:
    """Class 0, which the vocabulary operator leaves out: what is missing from a sum of 1, and from the entropy [n] of
    all ids."""
    logs, shares = masses.mass[:, 1:], np.exp(masses.mass[:, 1:])
    known = (shares * (masses.entropy[:, 1:] - np.where(shares > 0, logs, 0.0))).sum(1)
    missing = np.clip(1.0 - shares.sum(1), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        masses.mass[:, 0] = np.log(missing)
        inside = (entropy - known) / missing + masses.mass[:, 0]
    masses.entropy[:, 0] = np.where(missing > 1e-6, np.maximum(inside, 0.0), 0.0)  # below, float32 has no digits left


def filled(found: np.ndarray, independent: Tensor) -> np.ndarray:
    """Ids [L]: those that were found at the first positions; where nothing was (-1), and beyond, those of independent
    positions [1, L]."""
    out = independent[0].cpu().numpy().copy()
    out[: len(found)] = np.where(found < 0, out[: len(found)], found)
    return out


@lru_cache(maxsize=64)
def token_classes(compiled: Compiled) -> TokenClasses:
    return TokenClasses(compiled.tokens.of_token, compiled.tokens.classes)
