"""Training on the states that use visits: a first look at noised canvases, and what the sampler makes of it.

Noise that was drawn uniformly is easy to tell from text. In use most wrong tokens are not like that: they are the
model's own proposals, accepted in an earlier pass. A canvas that has been through one step of the sampler holds both.

This is for targets that the prompt determines: a greedy teacher's answers (train/distill.py), the undamaged text of a
repair row. Where many answers would do, an accepted proposal that differs from this one's target is no error, and a
model that is told so unlearns to build on what stands there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scumble.diffusion import Canvas, EntropyBound, Proposal
from scumble.kernels import softcap
from scumble.model import Transformer
from scumble.train.corrupt import Noised

ROWS = 1024  # positions whose distributions are held at a time


@dataclass(frozen=True)
class Look:
    """What a pass says, by position of all canvases: soft embeddings [N, D]; with proposals also samples [N] and
    entropies [N] in nats."""

    soft: Tensor
    sample: Tensor | None = None
    entropy: Tensor | None = None


def first_look(
    model: Transformer, hidden: Tensor, level: Tensor, generator: torch.Generator | None,
    t_min: float = 0.4, t_max: float = 0.8,
) -> Look:  # fmt: skip
    """From hidden states [N, D] of a pass without self-conditioning; each canvas at the temperature its noise level has
    in use, t_min … t_max. generator: for drawing proposals; None: soft embeddings alone.
    """
    length = hidden.shape[0] // level.numel()
    temperature = (t_min + (t_max - t_min) * level).flatten().repeat_interleave(length)[:, None]
    weight = model.embed_tokens.weight
    soft, sample, entropy = [], [], []
    for rows, heat in zip(hidden.split(ROWS), temperature.split(ROWS), strict=True):
        z = softcap((rows @ weight.T).float(), model.config.final_logit_softcapping) / heat
        logs = torch.log_softmax(z, dim=-1)
        shares = logs.exp()
        soft.append((shares.to(rows.dtype) @ weight).float())
        if generator is not None:
            uniform = torch.rand(rows.shape[0], 1, generator=generator).to(rows.device)
            sums = shares.cumsum(-1)
            sample.append(torch.searchsorted(sums, uniform * sums[:, -1:], right=True).clamp_max(z.shape[1] - 1)[:, 0])
            entropy.append(-(shares * logs).sum(-1))
    if generator is None:
        return Look(torch.cat(soft))
    return Look(torch.cat(soft), torch.cat(sample), torch.cat(entropy))


def sampler_step(noised: Noised, look: Look, bound: float, vocab: int, generator: torch.Generator) -> Noised:
    """Every canvas as EntropyBound(bound, "changed") leaves it: proposals where accepted, fresh noise elsewhere."""
    assert look.sample is not None
    assert look.entropy is not None
    rule = EntropyBound(bound, "changed")
    length = noised.ids.shape[-1]
    fresh = torch.randint(vocab, noised.ids.shape, generator=generator).to(noised.ids.device)
    free = torch.zeros(length, dtype=torch.bool, device=noised.ids.device)
    out = []
    for ids, sample, entropy, noise in zip(
        noised.ids.flatten(0, 1),
        look.sample.split(length),
        look.entropy.split(length),
        fresh.flatten(0, 1),
        strict=True,
    ):
        canvas, proposal = Canvas(ids, free, 0), Proposal(sample, sample, entropy)
        out.append(rule.renoise(canvas, proposal, rule.accept(canvas, proposal), noise).ids)
    return replace(noised, ids=torch.stack(out).view_as(noised.ids))
