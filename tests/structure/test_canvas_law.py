"""What a canvas proposes, from hidden states to ids, against enumeration of every valid canvas."""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from scumble.decode import Forbidden, OneOf, Pins
from scumble.decode.constraint import Constraint, Look, together
from scumble.decode.structured import Structured
from scumble.diffusion import Canvas, Proposal
from scumble.ops import VocabQuery, softcap
from scumble.ops.classes import Classified
from scumble.ops.tiled import vocab_head
from scumble.structure import Regex, StructureError, Vocabulary, compiled
from scumble.structure.automaton import Budget
from structure.test_law import CASES, END, TOKENS

A, B, AB, BA, C, _, BC, AA = range(8)


@dataclass(frozen=True)
class Asked:
    """What stands beside the structure, for the library (`others`) and for the enumeration (`ids`, by position)."""

    others: tuple[Constraint, ...] = ()
    ids: dict[int, set[int]] = field(default_factory=dict)
    everywhere: frozenset[int] = frozenset(range(len(TOKENS)))

    def may(self, position: int, id: int) -> bool:
        return id in self.everywhere and id in self.ids.get(position, self.everywhere)


NOTHING = Asked()
MASKED = [
    (*CASES[0], Asked((Forbidden(frozenset({C, AB, BA})),), everywhere=frozenset({A, B, END, BC, AA}))),
    (*CASES[0], Asked((Pins({1: BA}),), {1: {BA}})),
    ("a*b*c", 3, 3, Asked((Pins({4: B}),), {4: {B}})),  # a later canvas's: this one may not come to c
    ("(a{4}|b{2}|ab*)c", 3, 2, Asked((OneOf((A, AB)), Forbidden(frozenset({AA}))), {0: {A, AB}}, frozenset(range(7)))),
    ("(a{6}|ab*)c", 2, 4, Asked((Forbidden(frozenset({AA, AB, BC})),), everywhere=frozenset({A, B, BA, C, END}))),
    ("(ab|c)+", 4, 1, Asked((Pins({3: C}), Forbidden(frozenset({B, AB}))), {3: {C}}, frozenset({A, BA, C, END, BC}))),
]


@pytest.mark.parametrize(("pattern", "length", "room", "asked"), [*((*case, NOTHING) for case in CASES), *MASKED])
def test_proposals_follow_the_law(pattern: str, length: int, room: int, asked: Asked, tmp_path) -> None:
    """Logits lie far above 0, so a law that forgot to normalise them would favour long texts."""
    generator, rng = torch.Generator().manual_seed(3), np.random.default_rng(4)
    hidden = torch.randn(length, 8, generator=generator)
    embedding = torch.randn(len(TOKENS), 8, generator=generator) * 0.5
    embedding[:, 0], hidden[:, 0] = 4.0, 4.0
    logits = (softcap(hidden @ embedding.T, 30.0) / 0.7).double().numpy()
    every = canvases(pattern, logits, room, asked)
    total = sum(every.values())

    structure = Structured(compiled(Regex(pattern), Vocabulary(TOKENS), (END,), folder=tmp_path))
    constraint = together([structure, *asked.others])
    constraint.check(length + room, len(TOKENS))
    restriction = constraint.restrict(length, length + room, len(TOKENS))
    law = restriction.law
    assert law is not None
    ids, pinned = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, length, dtype=torch.bool)
    for position, id in restriction.pinned.items():
        ids[0, position], pinned[0, position] = id, True
    free = torch.ones(len(TOKENS), dtype=torch.bool)
    allowed = torch.stack([restriction.allowed.get(i, free) for i in range(length)])
    assert law.classes is not None
    query = VocabQuery(0.7, allowed, classes=[Classified(law.classes, 0, length)])
    result = vocab_head(hidden, embedding, query, cap=30.0)
    counts: Counter = Counter()
    draws = 1500
    for _ in range(draws):
        look = Look(
            Canvas(ids, pinned), Proposal(ids, ids, ids.float()), 0.7,
            torch.from_numpy(rng.random(length)), result.logsumexp, result.classes[0],
        )  # fmt: skip
        proposal = law.propose(look)
        counts[cut(proposal.sample[0].tolist())] += 1
    assert cut(proposal.argmax[0].tolist()) == max(every, key=lambda one: every[one])
    assert counts.keys() <= every.keys()
    frequent = [one for one in every if every[one] / total * draws >= 5]
    seen, expected = [counts[one] for one in frequent], [every[one] / total * draws for one in frequent]
    if draws - sum(expected) >= 5:
        seen, expected = [*seen, draws - sum(seen)], [*expected, draws - sum(expected)]
    if len(seen) > 1:
        assert chisquare(seen, np.array(expected) * sum(seen) / sum(expected)).pvalue > 1e-4


def canvases(pattern: str, logits: np.ndarray, room: int, asked: Asked) -> dict[tuple[int, ...], float]:
    """Every canvas, cut behind its end id, that is a text or can become one within `room` more tokens, with its
    probability; not normalised. Each position's own probabilities are of the ids that it may have."""
    machine, length = Regex(pattern).automaton(Budget()), len(logits)
    open_ = np.array([[asked.may(i, id) for id in range(len(TOKENS))] for i in range(length)])
    logs = np.where(open_, logits, -np.inf)
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)

    def ends(text: bytes, at: int) -> bool:
        """Whether a text can go on from a position to its end."""
        if at == length + room or not machine.walk(text):
            return False
        here = [id for id in range(len(TOKENS)) if asked.may(at, id)]
        return any(machine.accepts(text) if id == END else ends(text + (TOKENS[id] or b""), at + 1) for id in here)

    found = {}
    for ids in itertools.product(*(np.flatnonzero(row).tolist() for row in open_)):
        kept = cut(ids)
        text = b"".join(TOKENS[id] or b"" for id in kept)
        if machine.accepts(text) if END in kept else ends(text, length):
            found[kept] = float(np.exp(sum(logs[i, id] for i, id in enumerate(kept))))
    return found


def cut(ids) -> tuple[int, ...]:
    return tuple(ids[: list(ids).index(END) + 1] if END in ids else ids)


def test_behind_the_end_positions_are_independent(tmp_path) -> None:
    """They have the ids that they would have without a structure, and are as uncertain. With pads there, the model
    would read in the next pass that the text is over, and keep the end where it is."""
    rng = np.random.default_rng(8)
    hidden, embedding = (torch.from_numpy(rng.normal(size=(n, 4))).float() for n in (5, len(TOKENS)))
    law = Structured(compiled(Regex("a"), Vocabulary(TOKENS), (END,), folder=tmp_path)).restrict(5, 5, 9).law
    assert law is not None
    assert law.classes is not None
    uniforms = torch.from_numpy(rng.random(5))
    query = VocabQuery(1.0, uniforms=uniforms, classes=[Classified(law.classes, 0, 5)])
    result = vocab_head(hidden, embedding, query, cap=30.0)
    assert result.sample is not None
    independent = Proposal(*(values[None] for values in (result.argmax, result.sample, result.entropy)))
    nothing = Canvas(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.bool))
    found = law.propose(Look(nothing, independent, 1.0, uniforms, result.logsumexp, result.classes[0]))
    for ours, theirs in ((found.argmax, independent.argmax), (found.sample, independent.sample)):
        assert ours[0, 1] == END
        assert torch.equal(ours[0, 2:], theirs[0, 2:])
    torch.testing.assert_close(found.entropy[0, 2:], independent.entropy[0, 2:])
    assert not found.entropy[0, :2].any()


@pytest.mark.parametrize(
    ("pattern", "others"),
    [
        ("abba", [Pins({5: C, 0: B})]),
        ("a{9}", [Forbidden(frozenset({AA}))]),
        ("c{6,9}", [Pins({6: B})]),
        ("ab+", [OneOf((B, BA))]),
    ],
)
def test_what_leaves_no_text_is_refused_before_anything_runs(pattern: str, others: list, tmp_path) -> None:
    structure = Structured(compiled(Regex(pattern), Vocabulary(TOKENS), (END,), folder=tmp_path))
    structure.check(8, len(TOKENS))
    with pytest.raises(StructureError, match=r"leave no text .* max_new_tokens=8; pin fewer"):
        together([structure, *others]).check(8, len(TOKENS))
