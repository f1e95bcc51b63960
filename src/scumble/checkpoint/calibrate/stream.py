"""Samples through a checkpoint whose layers are in memory one at a time.

Shapes: N tokens of all samples, one after another, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scumble.checkpoint.calibrate.samples import Sample
from scumble.checkpoint.keep import Keeper
from scumble.checkpoint.load import Contents, load_part, main_dtype
from scumble.checkpoint.schemes import Entry
from scumble.model import Transformer
from scumble.model.attention import Attend
from scumble.model.layers import rope_frequencies, rope_tables
from scumble.ops import REFERENCE, choose
from scumble.ops.query import VocabQuery
from scumble.ops.reference import attend_grouped, causal_mask

CPU = torch.device("cpu")
BATCH = 4096  # tokens that run together, in whole samples


class Stream:
    """A checkpoint, samples, and `x` [N, D]: the samples' hidden states before the next layer."""

    def __init__(self, found: Contents, samples: Sequence[Sample]):
        self.found, self.samples = found, samples
        self.dtype = main_dtype(found.plan)
        with torch.device("meta"):
            self.model = Transformer(found.config)
        self.model.use(choose(CPU, self.dtype, found.config).ops).eval().requires_grad_(False)
        self.batches = list(_batches(samples))
        self.x = torch.empty(0)

    @torch.no_grad()
    def begin(self, soft: Tensor | None = None) -> None:
        """x as it enters the first layer. soft [canvas tokens, D] float32: what a first look saw; canvases that are all
        noise do without."""
        out, at = [], 0
        with self._outer() as model:
            for sample in self.samples:
                out.append(model.embed(sample.context))
                for canvas, level in zip(sample.canvases, sample.levels, strict=True):
                    seen = None if soft is None or level == 1 else soft[at : at + len(canvas)]
                    out.append(model.condition(canvas, seen))
                    at += len(canvas)
        self.x = torch.cat(out)

    @torch.no_grad()
    def look(self, coolest: float, hottest: float) -> Tensor:
        """Behind the last layer: soft embeddings of all canvases [canvas tokens, D] float32, at the temperature that
        the sampler has at each one's noise level."""
        denoised = torch.cat([sample.denoised() for sample in self.samples])
        heat = torch.cat(
            [
                torch.tensor(sample.levels).repeat_interleave(sample.canvases.shape[1])
                for sample in self.samples
            ]
        ).mul_(hottest - coolest).add_(coolest)  # fmt: skip
        hidden, out = self.x[denoised], []
        with self._outer() as model:
            config = model.config
            for part, warm in zip(hidden.split(BATCH), heat.split(BATCH), strict=True):
                normed = model.ops.norm_for_products(part, model.norm.weight, config.rms_norm_eps)
                query = VocabQuery(temperature=warm, want_soft=True)
                cap = config.final_logit_softcapping
                found = REFERENCE.vocab_head(normed, model.embed_tokens.weight, query, cap=cap)
                assert found.soft is not None
                out.append(found.soft)
        return torch.cat(out)

    @contextmanager
    def layer(self, index: int, entries: Mapping[str, Entry] | None = None) -> Iterator[nn.Module]:
        """A layer in memory: of the checkpoint in float, or of other entries (by weight name) as they are stored."""
        prefix = f"layers.{index}"
        plan = self.found.plan if entries is None else entries
        own = {name: entry for name, entry in plan.items() if name.startswith(f"{prefix}.")}
        keeper = None if entries is None else Keeper(self.model.ops)
        load_part(self.model, prefix, own, self.dtype, keeper=keeper)
        try:
            yield self.model.layers[index]
        finally:
            with torch.device("meta"):
                self.model.layers[index] = type(self.model.layers[index])(
                    self.model.config, self.model.config.layers[index], self.model.ops
                )

    @torch.no_grad()
    def run(self, layer: nn.Module, index: int, keep: bool = True) -> None:
        """All samples through a layer; x becomes what leaves it, unless keep is False."""
        config = self.model.config.layers[index]
        frequencies = rope_frequencies(self.model.config.rope(config), config.head_dim)
        for begin, end, samples in self.batches:
            positions = torch.cat([sample.positions() for sample in samples])
            denoised = torch.cat([sample.denoised() for sample in samples])[:, None]
            attend = SampleAttention(samples, self.model.config.sliding_window if config.is_sliding else None)
            rope = rope_tables(positions, frequencies, self.dtype)
            out = layer(self.x[begin:end], index, rope, attend, denoised)
            if keep:
                self.x[begin:end] = out

    @contextmanager
    def _outer(self) -> Iterator[Transformer]:
        """The model with what is outside its layers in memory."""
        own = {name: entry for name, entry in self.found.plan.items() if not name.startswith("layers.")}
        load_part(self.model, "", own, self.dtype)
        try:
            yield self.model
        finally:
            for part in (self.model.embed_tokens, self.model.norm, self.model.self_conditioning):
                part.to("meta")


class SampleAttention(Attend):
    """Attend within each sample: the context causally, each canvas over the context's end and itself.

    window: of a sliding layer.
    """

    def __init__(self, samples: Sequence[Sample], window: int | None):
        self.samples, self.window = samples, window

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out, begin = [], 0
        for sample in self.samples:
            n, (count, length) = len(sample.context), sample.canvases.shape
            mine = slice(begin, begin + n)
            mask = causal_mask(n, n, self.window, queries.device)
            out.append(_attend(queries[mine], keys[mine], values[mine], mask))
            first = begin if self.window is None else max(begin, begin + n - self.window + 1)
            for _ in range(count):
                canvas = slice(mine.stop, mine.stop + length)
                seen = [torch.cat((one[first : begin + n], one[canvas])) for one in (keys, values)]
                out.append(_attend(queries[canvas], seen[0], seen[1], None))
                mine = canvas
            begin = mine.stop
        return torch.cat(out)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    return attend_grouped(queries, keys.transpose(0, 1), values.transpose(0, 1), mask)


def _batches(samples: Sequence[Sample]) -> Iterator[tuple[int, int, list[Sample]]]:
    begin = end = 0
    batch: list[Sample] = []
    for sample in samples:
        if batch and end - begin + sample.tokens > BATCH:
            yield begin, end, batch
            begin, batch = end, []
        batch.append(sample)
        end += sample.tokens
    yield begin, end, batch
