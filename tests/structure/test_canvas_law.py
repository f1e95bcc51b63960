"""What a canvas proposes, from hidden states to ids, against enumeration of every valid canvas."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from scumble.decode.constraint import Look
from scumble.decode.structured import Structured
from scumble.diffusion import Canvas, Proposal
from scumble.ops import VocabQuery, softcap
from scumble.ops.classes import Classified
from scumble.ops.tiled import vocab_head
from scumble.structure import Regex, Vocabulary, compiled
from structure.test_law import CASES, END, TOKENS, canvases, tokens_of


@pytest.mark.parametrize(("pattern", "length", "room"), CASES)
def test_proposals_follow_the_law(pattern: str, length: int, room: int, tmp_path) -> None:
    """Logits lie far above 0, so a law that forgot to normalise them would favour long texts."""
    generator, rng = torch.Generator().manual_seed(3), np.random.default_rng(4)
    hidden = torch.randn(length, 8, generator=generator)
    embedding = torch.randn(len(TOKENS), 8, generator=generator) * 0.5
    embedding[:, 0], hidden[:, 0] = 4.0, 4.0
    logits = (softcap(hidden @ embedding.T, 30.0) / 0.7).double().numpy()
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    every = canvases(pattern, tokens_of(pattern), logs, room)
    total = sum(every.values())

    structure = Structured(compiled(Regex(pattern), Vocabulary(TOKENS), (END,), folder=tmp_path), filler=END)
    law = structure.restrict(length, length + room, len(TOKENS)).law
    assert law is not None
    nothing = torch.zeros(1, length, dtype=torch.int64)
    assert law.classes is not None
    query = VocabQuery(0.7, classes=[Classified(law.classes, 0, length)])
    result = vocab_head(hidden, embedding, query, cap=30.0)
    counts: Counter = Counter()
    draws = 3000
    for _ in range(draws):
        look = Look(
            Canvas(nothing, nothing.bool()), Proposal(nothing, nothing, nothing.float()), 0.7,
            torch.from_numpy(rng.random(length)), result.logsumexp, result.classes[0],
        )  # fmt: skip
        proposal = law.propose(look)
        ids = proposal.sample[0].tolist()
        counts[tuple(ids[: ids.index(END) + 1] if END in ids else ids)] += 1
    best = proposal.argmax[0].tolist()
    cut = tuple(best[: best.index(END) + 1] if END in best else best)
    assert cut == max(every, key=lambda one: every[one])
    assert counts.keys() <= every.keys()
    frequent = [one for one in every if every[one] / total * draws >= 5]
    seen, expected = [counts[one] for one in frequent], [every[one] / total * draws for one in frequent]
    if draws - sum(expected) >= 5:
        seen, expected = [*seen, draws - sum(seen)], [*expected, draws - sum(expected)]
    if len(seen) > 1:
        assert chisquare(seen, np.array(expected) * sum(seen) / sum(expected)).pvalue > 1e-4
