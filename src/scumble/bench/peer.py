"""`transformers` beside us: its DiffusionGemma with the very same weights, in the same process, taking turns.

- Diffusion is `DiffusionGemmaForBlockDiffusion.generate`, as it comes, watched through the streamer it offers.
- Autoregressive is `Gemma4ForCausalLM` of the same sizes, which shares the diffusion model's tensors: the encoder of a
  DiffusionGemma is a Gemma 4. `check` proves that its logits are the encoder's.
- Of its implementations of the experts, each is tried and the quickest is used, for either model its own: a slow peer
  would flatter us.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.bench.events import Watched
from scumble.bench.timing import figure, timed
from scumble.checkpoint.names import DECODER, ENCODER
from scumble.errors import ScumbleError
from scumble.model import Transformer

# batched_mm copies an expert's weights for every token: gigabytes for a canvas, but a candidate for a single token.
EXPERTS = {"diffusion": ("eager", "grouped_mm"), "causal": ("eager", "grouped_mm", "batched_mm")}
TRIAL_TOKENS = 12
NEVER = 1e-30  # a mean entropy, in nats, that no canvas gets below; transformers refuses 0


@dataclass
class Peer:
    """diffusion and causal: the two models. experts: the implementation that each uses; tried: the seconds of a pass,
    or of a step, with each."""

    diffusion: Any
    causal: Any
    version: str
    experts: dict[str, str] = field(default_factory=dict)
    tried: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> Peer:
        """Read a checkpoint folder the way its users do. Raises ScumbleError without transformers."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import transformers
            from transformers import DiffusionGemmaForBlockDiffusion  # pyright: ignore[reportPrivateImportUsage]
            from transformers.utils import logging
        except ImportError:
            raise ScumbleError(
                "--against transformers needs transformers 5.23 with DiffusionGemma: pip install 'transformers>=5.23'"
            ) from None
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype)
            model = model.eval().requires_grad_(False).to(device)
            if model.config.image_token_id is None:
                model.config.image_token_id = -1  # generate compares it with the prompt, and stumbles over None
            causal = causal_model(model, dtype, device)
        return cls(model, causal, transformers.__version__)

    # --- what is timed ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], passes: int, new_tokens: int, now: Callable[[], float]) -> Watched:
        """Fixed passes: the stopping rule is computed but never true, no end of sequence."""
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

        listener = Listener(now)
        ids = torch.tensor([list(prompt)], device=self.diffusion.device)
        started = now()
        out = self.diffusion.generate(
            ids, max_new_tokens=new_tokens, max_denoising_steps=passes, confidence_threshold=NEVER,
            stability_threshold=1, t_min=0.4, t_max=0.8, sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
            eos_token_id=None, pad_token_id=0, streamer=listener,
        )  # fmt: skip
        seconds = now() - started
        new = tuple(out.sequences[0, len(prompt) :].tolist())[:new_tokens]
        return listener.watched(new, started, seconds)

    @torch.no_grad()
    def steps(self, prompt: Sequence[int], new_tokens: int, now: Callable[[], float]) -> Watched:
        """One token at a time, greedy, by its own `generate`."""
        listener = Listener(now)
        ids = torch.tensor([list(prompt)], device=self.causal.device)
        started = now()
        out = self.causal.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, eos_token_id=None, pad_token_id=0, streamer=listener,
        )  # fmt: skip
        seconds = now() - started
        return listener.watched(tuple(out[0, len(prompt) :].tolist()), started, seconds)

    @torch.no_grad()
    def prefill(self, prompt: Sequence[int], now: Callable[[], float]) -> float:
        """Seconds to encode the prompt into a cache and choose the token that it predicts."""
        ids = torch.tensor([list(prompt)], device=self.causal.device)

        def run() -> None:
            self.causal(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()

        return timed(run, now)

    # --- fairness -----------------------------------------------------------------------------------------------

    def choose_experts(self, prompt: Sequence[int], now: Callable[[], float]) -> None:
        """Try every implementation of the experts, and keep the quickest of a pass and the quickest of a step."""
        length = self.diffusion.config.canvas_length
        self._choose("diffusion", lambda: self.generate(prompt, 3, length, now).between)
        self._choose("causal", lambda: self.steps(prompt, TRIAL_TOKENS, now).steps)

    def _choose(self, which: str, attempt: Callable[[], Sequence[float]]) -> None:
        model = getattr(self, which)
        tried: dict[str, float] = {}
        failed: Exception | None = None
        for name in EXPERTS[which]:
            try:
                model.set_experts_implementation(name)
                tried[name] = figure(attempt()).median
            except Exception as error:  # an implementation that cannot run here is not a candidate, whatever its reason
                failed = error
        if not tried:
            raise ScumbleError(f"transformers' {which} model does not run here: {failed}") from failed
        self.experts[which], self.tried[which] = min(tried, key=lambda name: tried[name]), tried
        model.set_experts_implementation(self.experts[which])

    @torch.no_grad()
    def check(self, model: Transformer, prompt: Sequence[int], canvas: Sequence[int]) -> dict[str, float]:
        """Root mean square differences in logits on one prompt and canvas: ours and its, and its two models'.

        scale: the standard deviation of the logits, to hold the differences against. In bfloat16 the two sides round
        differently, and a token whose k-th and next expert are close may take another expert.
        same_argmax: share of canvas positions, 0 … 1.
        """
        from transformers import DynamicCache

        ids = torch.tensor([list(prompt)], device=self.diffusion.device)
        cache = DynamicCache(config=self.diffusion.config.text_config)
        hidden = self.diffusion.model.encoder(input_ids=ids, past_key_values=cache).last_hidden_state
        theirs = self.diffusion(
            decoder_input_ids=torch.tensor([list(canvas)], device=ids.device), past_key_values=cache
        ).logits[0]
        own = model.new_cache()
        model.encode(ids[0], own)
        ours = model.denoise_logits(torch.tensor(list(canvas)), own)
        cap = self.diffusion.final_logit_softcapping
        encoded = cap * torch.tanh(self.diffusion.lm_head(hidden[0]).float() / cap)
        causal = self.causal(ids).logits[0].float()
        return {
            "ours_and_theirs": _difference(ours, theirs),
            "encoder_and_causal": _difference(encoded, causal),
            "scale": float(theirs.std()),
            "same_argmax": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        }


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean().sqrt())


def causal_model(diffusion: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A Gemma 4 of the same sizes whose weights are the diffusion model's own tensors (encoder's layer scalars)."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig  # pyright: ignore[reportPrivateImportUsage]
    from transformers.initialization import no_init_weights

    text = diffusion.config.text_config.to_dict()
    for name in ("model_type", "architectures", "dtype", "_name_or_path", "transformers_version"):
        text.pop(name, None)
    config = Gemma4TextConfig(
        **text, enable_moe_block=True, attention_k_eq_v=True, hidden_size_per_layer_input=0, num_kv_shared_layers=0
    )
    config._attn_implementation = diffusion.config.text_config._attn_implementation
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model: Any = Gemma4ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    weights = diffusion.state_dict()
    shared = {"model." + key.removeprefix(DECODER): value for key, value in weights.items() if key.startswith(DECODER)}
    for key, value in weights.items():
        if key.startswith(ENCODER) and key.endswith("layer_scalar"):
            shared["model." + key.removeprefix(ENCODER)] = value
    shared["lm_head.weight"] = shared["model.embed_tokens.weight"]
    report = model.load_state_dict(shared, strict=False, assign=True)
    if report.missing_keys:
        missing = ", ".join(report.missing_keys[:3])
        raise ScumbleError(f"Gemma4ForCausalLM has weights that the encoder lacks: {missing}")
    return model.eval().requires_grad_(False).to(device)


class Listener:
    """A streamer in the sense of `generate`: notes when drafts and tokens come out."""

    def __init__(self, now: Callable[[], float]):
        self.now = now
        self.drafts: list[tuple[int, float]] = []  # canvas, time
        self.commits: list[float] = []
        self._puts = 0

    def put_draft(self, value: Tensor | None = None, **_: Any) -> None:
        self.drafts.append((len(self.commits), self.now()))

    def put(self, value: Tensor) -> None:
        self._puts += 1
        if self._puts > 1:  # the first is the prompt
            self.commits.append(self.now())

    def end(self) -> None:
        pass

    def watched(self, ids: tuple[int, ...], started: float, seconds: float) -> Watched:
        drafts = [(canvas, at - started) for canvas, at in self.drafts]
        commits = [at - started for at in self.commits]
        canvases = len({canvas for canvas, _ in drafts})
        return Watched(
            ids=ids,
            valid=len(ids),
            passes=tuple(sum(canvas == index for canvas, _ in drafts) for index in range(canvases)),
            seconds=seconds,
            first_draft=drafts[0][1] if drafts else None,
            first_text=commits[0] if commits else seconds,
            between=tuple(b - a for (one, a), (two, b) in pairwise(drafts) if one == two),
            steps=tuple(b - a for a, b in pairwise(commits)),
        )
