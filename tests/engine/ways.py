"""The ways in which rows run, and what both kinds of tests read of their events."""

import torch
import torch.nn.functional as F

from scumble.decode import TokensCommitted
from scumble.ops import ReferenceOps, tiled
from tiny import tiny_model

WAYS = ["forwards of their own", "a shared forward", "caches in int8", "a shared forward, caches in fp8"]


class ClaimsInvariance(ReferenceOps):
    """For counting and watching work; these products are not the same bits in every cut of a prompt."""

    batch_invariant = True


class Rounded(ReferenceOps):
    """Sums in float64, rounded to float32: a token's result is the same bits whatever stands beside it. (Nearly surely:
    another order of a sum is seen once in 10⁸ roundings. Tests are seeded, so they do not change from run to run.)"""

    name = "rounded"
    batch_invariant = True

    def linear(self, x, weight):
        return F.linear(x.double(), weight.double()).to(x.dtype)

    def attend_all(self, queries, keys, values, first=0):
        return super().attend_all(queries.double(), keys.double(), values.double()).to(queries.dtype)

    def attend_causal(self, queries, keys, values, window, first=0):
        return super().attend_causal(queries.double(), keys.double(), values.double(), window).to(queries.dtype)

    def router(self, h, scale, proj, per_expert, k, eps):
        normed = self.router_norm(h, scale.float() * h.shape[-1] ** -0.5, eps)
        probabilities = torch.softmax(normed.double() @ proj.double().T, dim=-1).float()
        weights, chosen = torch.topk(probabilities, k, dim=-1)
        return weights / weights.sum(-1, keepdim=True) * per_expert.float()[chosen], chosen, probabilities

    def experts(self, x, weights, chosen, gate_up, down):
        return super().experts(x.double(), weights, chosen, gate_up.double(), down.double()).to(x.dtype)

    def vocab_head(self, hidden, embedding, query, *, cap, head=None):
        return tiled.vocab_head(hidden.double(), embedding.double(), query, cap=cap)


def model_for(way, **shape):
    """A tiny model whose rows run that way."""
    model = tiny_model(**shape)
    model.cache_format = next((form for form in ("int8", "fp8") if form in way), None)
    return model.use(Rounded()) if way.startswith("a shared forward") else model


def ids(events):
    return [token for event in events if isinstance(event, TokensCommitted) for token in event.ids]
