"""The training objective of the released recipes, on a batch of rows.

A row is `prompt` tokens of context and then whole canvases. All of it is encoded once, causally. Every canvas draws a
noise level t ~ U(0, 1), or a power of that (`noise_power`); each of its tokens is replaced with probability t by a
uniform random id. The loss is

    cross entropy on all tokens of the canvases (not only the noised ones)
    + causal_weight · next-token cross entropy on the encoder's hidden states
    + balance_weight · load balance of the experts (Switch Transformers, 2101.03961, eq. 4).

With probability `self_conditioning`, a first pass without gradient supplies the soft embedding. What deviates from the
recipe, so that training sees what use will show: all canvases of a row can train at once (the recipe picks one), since
they share the encoding, and several times (`copies`); the noise of a canvas may be one span (`span_share`), and a
canvas of a repair row may hold the damaged text (`draft_share`); and that first pass is tempered as the sampler will
temper it, t_min + (t_max - t_min)·t.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.model import Transformer
from scumble.train.attention import DenoiseCanvases, EncodeRows
from scumble.train.config import Objective
from scumble.train.corrupt import Noised, corrupt
from scumble.train.loss import head_loss
from scumble.train.precision import training_ops
from scumble.train.soft import soft_embeddings


@dataclass(frozen=True)
class Losses:
    """total: what to differentiate. causal, denoise: mean nats a token, for people. tokens: real ones in the batch."""

    total: Tensor
    causal: float
    denoise: float
    tokens: int


def losses(
    model: Transformer,
    ids: Tensor,
    lengths: Tensor,
    prompt: int,
    canvas: int,
    objective: Objective,
    generator: torch.Generator,
    causal_only: bool = False,
    copies: int = 1,
    drafts: Tensor | None = None,
) -> Losses:
    """Losses of a batch: ids [B, prompt + C·canvas], lengths [B] (real tokens, the end id included).

    copies: how often each canvas is noised; all copies share the encoding. drafts [B, C·canvas]: what canvases may hold
    in place of the right text (objective.draft_share).
    """
    longest = int(lengths.max())  # what is encoded: canvases begin before it, and only pads lie behind it
    encoded = EncodeRows(model.config, ids.shape[0], training_ops(model))
    with _router_balance(model) as balance:
        positions = torch.arange(longest, device=ids.device).repeat(ids.shape[0])
        context = ids[:, :longest].flatten()
        hidden = model.body(model.embed(context), model.ropes(positions), _mode(context, False), encoded)
        causal = _causal_loss(model, hidden, ids[:, :longest], lengths)
        denoise = torch.zeros((), device=ids.device)
        if not causal_only:
            vocab = model.config.vocab_size
            noised = corrupt(
                ids, prompt, canvas, vocab, generator, objective, copies=copies, lengths=lengths, drafts=drafts
            )
            denoise = _canvas_loss(model, ids, lengths, noised, canvas, encoded, objective, generator, balance)
    weighted = objective.causal_weight * causal + objective.balance_weight * balance.loss(model.config.num_experts)
    return Losses(denoise + weighted, float(causal.detach()), float(denoise.detach()), int(lengths.sum()))


def _causal_loss(model: Transformer, hidden: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """Mean next-token loss: position i predicts i + 1, up to and including the end id; pads are not predicted."""
    rows, width = ids.shape
    real = torch.arange(1, width, device=ids.device) < lengths[:, None]
    before = hidden.unflatten(0, (rows, width))[:, :-1].flatten(0, 1)
    return _head_loss(model, before, ids[:, 1:].flatten(), real.flatten().float() / real.sum())


def _canvas_loss(
    model: Transformer,
    ids: Tensor,
    lengths: Tensor,
    noised: Noised,
    length: int,
    encoded: EncodeRows,
    objective: Objective,
    generator: torch.Generator,
    balance: _Balance,
) -> Tensor:
    """Mean loss over every canvas position, pads too: behind the end id the answer is "pad", and must be sure."""
    reader = DenoiseCanvases(model.config, encoded, noised.first, length)
    soft = None
    if float(torch.rand((), generator=generator)) < objective.self_conditioning:
        with torch.no_grad(), balance.paused():
            look = _denoise(model, noised, reader, None)
            soft = soft_embeddings(model, look, noised.level, objective.t_min, objective.t_max)
    hidden = _denoise(model, noised, reader, soft)
    clean = torch.stack([ids[:, first : first + length] for first in noised.first], dim=1).flatten()
    places = torch.cat([torch.arange(f, f + length, device=ids.device) for f in noised.first])
    weights = torch.where(places < lengths[:, None], 1.0, objective.pad_weight).flatten()
    return _head_loss(model, hidden, clean, weights / weights.sum())


def _head_loss(model: Transformer, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    weight = model.embed_tokens.weight
    compute = torch.bfloat16 if torch.is_autocast_enabled(hidden.device.type) else weight.dtype
    return head_loss(
        training_ops(model), hidden.to(compute), weight, targets, weights, model.config.final_logit_softcapping
    )


def _denoise(model: Transformer, noised: Noised, reader: DenoiseCanvases, soft: Tensor | None) -> Tensor:
    """Hidden states [B·C·L, D] of all canvases."""
    rows, _, length = noised.ids.shape
    flat = noised.ids.flatten()
    positions = torch.cat([torch.arange(f, f + length, device=flat.device) for f in noised.first]).repeat(rows)
    return model.body(model.condition(flat, soft), model.ropes(positions), _mode(flat, True), reader)


def _mode(tokens: Tensor, denoise: bool) -> Tensor:
    return torch.full((tokens.shape[0], 1), denoise, device=tokens.device)


class _Balance:
    """Collects every router's probabilities and choices to form the load-balance loss."""

    def __init__(self) -> None:
        self.terms: list[Tensor] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the routers' choices in here out of the loss."""
        kept = list(self.terms)
        yield
        self.terms = kept

    def watch(self, module: torch.nn.Module, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, experts, probabilities = output
        share = torch.zeros_like(probabilities[0]).index_add(
            0, experts.flatten(), torch.ones(experts.numel(), device=experts.device)
        )
        self.terms.append((share / experts.numel() * probabilities.mean(0)).sum())

    def loss(self, experts: int) -> Tensor:
        """1 when all experts are used evenly, up to `experts` when one takes all."""
        return torch.stack(self.terms).mean() * experts


@contextmanager
def _router_balance(model: Transformer) -> Iterator[_Balance]:
    balance = _Balance()
    handles = [layer.router.register_forward_hook(balance.watch) for layer in model.layers]  # type: ignore[union-attr,operator]
    try:
        yield balance
    finally:
        for handle in handles:
            handle.remove()
