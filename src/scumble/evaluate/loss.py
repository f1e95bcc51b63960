"""Held-out loss: how well the weights predict, without any decoding.

next-token: the causal model's cross entropy on every token of a function and its end id, given the tokens before.

denoise: a canvas begins at a random place of the function; each of its ids is replaced by a random one with probability
t, t uniform in 0 … 1; the cross entropy of the right ids is averaged over the canvas's tokens up to the end id,
replaced or not (pads, which are easy, do not count). It is the training objective without pads: not the likelihood of
the text, and not comparable with the next-token loss. A fill-in-the-middle prompt is not made; the canvas continues a
text.

denoise, self-conditioned: the same once more, with what the first look saw as soft embedding, tempered as the
checkpoint's sampler tempers it: t_min + (t_max - t_min)·t.

Noise is a function of (seed, function), so two checkpoints see the same one if they share vocabulary and canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scumble.errors import check_output
from scumble.evaluate.functions import Function
from scumble.evaluate.statistics import bootstrap
from scumble.evaluate.tasks import Skipped
from scumble.settings import RELEASE_DEFAULTS

if TYPE_CHECKING:
    from scumble.llm import LLM
    from scumble.model import Transformer

TITLE = "held-out loss"
PROMPT_SHARE = 0.7  # a canvas begins somewhere in this first part of a function, as in training
KINDS = ("next_token", "denoise", "denoise_self_conditioned")


@dataclass(frozen=True)
class Sums:
    """Of one function: nats, tokens and bytes that each loss is a sum over, by kind; noise level of the canvas."""

    nats: dict[str, float]
    tokens: dict[str, int]
    bytes: dict[str, int]
    level: float


def held_out_loss(
    llm: LLM, functions: Sequence[Function], seed: int, said: Callable[[int], None] = lambda place: None
) -> dict[str, Any]:
    """Nats a token and bits a byte of each kind of loss, with intervals; and the denoising loss by noise level."""
    results = []
    for place, function in enumerate(functions):
        sums = function_loss(llm, function.text, seed, place)
        if sums is not None:
            results.append(sums)
        said(place)
    if not results:
        raise Skipped("no function fits the model's context")
    return {
        "functions": len(results),
        "too_long": len(functions) - len(results),
        **{kind: _estimates(results, kind) for kind in KINDS},
        "denoise_by_level": by_level(results),
    }


def function_loss(llm: LLM, text: str, seed: int, place: int) -> Sums | None:
    """Losses of one function; None where it does not fit the model's context."""
    model, tokenizer = llm.model, llm.tokenizer
    assert tokenizer is not None
    config = model.config
    ids = tokenizer.encode(text)
    start = config.bos_token_id if config.bos_token_id is not None else tokenizer.bos_id
    if start is None or not config.eos_token_ids:
        raise Skipped("the model has no beginning-of-sequence or end-of-sequence id")
    row = torch.tensor([start, *ids, config.eos_token_ids[0]], device=model.device)
    length = config.canvas_length
    if len(row) + length > config.max_position_embeddings:
        return None
    rng = np.random.default_rng((seed, place))
    context = 1 + int(rng.integers(0, max(1, int(PROMPT_SHARE * len(row)))))
    pad = config.pad_token_id if config.pad_token_id is not None else config.eos_token_ids[0]
    own = row[context : context + length]
    clean = torch.full((length,), pad, device=model.device)
    clean[: len(own)] = own
    level = float(rng.random())
    noise = torch.from_numpy(rng.integers(0, config.vocab_size, length)).to(model.device)
    noised = torch.where(torch.from_numpy(rng.random(length) < level).to(model.device), noise, clean)

    cache = model.new_cache()
    hidden = model.encode(row[:context], cache)
    settings = {**RELEASE_DEFAULTS, **llm.defaults}
    temperature = settings["t_min"] + (settings["t_max"] - settings["t_min"]) * level
    first, second = denoise_losses(model, noised, cache, temperature, clean, len(own))
    rest = model.encode(row[context:-1], cache) if context < len(row) - 1 else hidden[:0]
    causal = _cross_entropy(_logits(model, torch.cat((hidden, rest))), row[1:])
    covered = len(tokenizer.decode(own.tolist()).encode())
    return Sums(
        nats=dict(zip(KINDS, (causal, first, second), strict=True)),
        tokens=dict(zip(KINDS, (len(row) - 1, len(own), len(own)), strict=True)),
        bytes=dict(zip(KINDS, (len(text.encode()), covered, covered), strict=True)),
        level=level,
    )


def denoise_losses(
    model: Transformer, noised: Tensor, cache: Any, temperature: float, clean: Tensor, tokens: int
) -> tuple[float, float]:
    """Summed cross entropy of the first `tokens` ids of a canvas [L]: at first sight, and self-conditioned."""
    logits = model.denoise_logits(noised, cache)
    again = model.denoise_logits(noised, cache, previous_logits=logits / temperature)
    return _cross_entropy(logits[:tokens], clean[:tokens]), _cross_entropy(again[:tokens], clean[:tokens])


def by_level(results: Sequence[Sums]) -> list[dict[str, Any]]:
    """Denoising loss of the quarters of the noise levels; None for a quarter without canvases."""
    out = []
    for quarter in range(4):
        inside = [sums for sums in results if int(min(sums.level, 0.999) * 4) == quarter]
        nats = _estimates(inside, "denoise")["nats_per_token"] if inside else None
        out.append({"from": quarter / 4, "to": (quarter + 1) / 4, "nats_per_token": nats})
    return out


def _estimates(results: Sequence[Sums], kind: str) -> dict[str, Any]:
    nats = [sums.nats[kind] for sums in results]
    return {
        "nats_per_token": asdict(bootstrap(nats, [sums.tokens[kind] for sums in results])),
        "bits_per_byte": _bits(nats, [sums.bytes[kind] for sums in results]),
    }


def _bits(nats: Sequence[float], sizes: Sequence[int]) -> dict[str, Any] | None:
    return asdict(bootstrap([one / math.log(2) for one in nats], sizes)) if sum(sizes) else None


def _logits(model: Transformer, hidden: Tensor) -> Tensor:
    return model.logits(hidden)


def _cross_entropy(logits: Tensor, ids: Tensor) -> float:
    nats = float(torch.nn.functional.cross_entropy(logits.float(), ids, reduction="sum"))
    check_output(nats)
    return nats
