"""What a caller asks for: the settings of one request."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scumble.diffusion.sampler import BudgetRule
from scumble.diffusion.stopping import CommitRule, StabilityRule
from scumble.errors import InvalidRequest, shown

Decoder = Literal["diffusion", "autoregressive"]
Preference = Literal["likely", "python"]

COLDEST = 1e-4  # temperatures below would overflow float32 in places, and are argmax in all but name
MAX_CANDIDATES = 64
MAX_REVISIONS = 64
MAX_PASSES = 10_000  # an absurd number of passes is a typing error, not a wish


@dataclass(frozen=True, init=False)
class GenerationConfig:
    """Settings of one request. Everything left None comes from the checkpoint, else from the release's values.

    max_new_tokens: whole number ≥ 1; cuts exactly, whatever the canvas length. Default 256, less if the context ends.
    seed: 0 … 2⁶⁴-1. Same seed, same tokens: alone, in any batch, on any device of equal arithmetic. Default 0.
    temperature: 0, or 0.0001 … 1000. Diffusion: scales the schedule t_max → t_min; 1 is the checkpoint's own, 0
        proposes the argmax (the schedule then still weighs confidence). Autoregressive: divides the logits; 0 is
        greedy.
    entropy_bound: nats; how much joint uncertainty one pass may accept. > 0. Release: 0.1.
    t_min, t_max: the temperature schedule, 0.0001 ≤ t_min ≤ t_max ≤ 1000. Release: 0.4 and 0.8.
    max_denoising_steps: passes a canvas at most, 1 … 10000. Release: 48.
    positions_per_pass: a canvas of L positions takes ⌈L / positions_per_pass⌉ passes at most, so short canvases take
        fewer; ≥ 1. None (release): max_denoising_steps alone counts, as it does for a caller who gives only that.
    stability_threshold: passes over which the argmax must not change, ≥ 0. Release: 1.
    confidence_threshold: mean entropy in nats below which a canvas may stop, ≥ 0; 0 never stops early. Release: 0.005.
    canvas_length: tokens a canvas, 1 … the checkpoint's; "auto": 16 for the first, then twice as long each time, up to
        the checkpoint's: short answers are cheap, long ones get long canvases.
    stop: strings that end the answer; the answer ends before them.
    ignore_eos: go on behind the end-of-sequence id.
    decoder: "diffusion", or "autoregressive" on the same weights.
    best_of: candidates a canvas, 1 … 64, denoised side by side and then read by the causal model. Committed is the one
        with the highest mean log-probability a token; those that came to their end go before those that did not. A
        draft that was handed in is read with them, as it stands. Diffusion only. Default 1.
    revisions: rounds, 0 … 64, in which the causal model corrects what it has read of a canvas before one text is
        committed: where a token surprises it, its own is tried in its place and before it, and so is the text without
        it; what reads better goes on to the next round. Not where positions are pinned. Diffusion only. Default 0.
    prefer: which candidates go before all others: "python", those with which the text so far is Python or the beginning
        of it (the text before and behind a hole included), or "likely" (default): none.
    top_k (≥ 1), top_p (0 < p ≤ 1): autoregressive only.
    logprobs: return the log-probability of every token under the causal model, and of that many alternatives (0 … 20).
    budget: what entropy_bound limits: the entropies of all positions that a pass accepts, "accepted" (release), or of
        those that it changes, "changed", which needs fewer passes.
    commit: "argmax" (release) or "sample". stability: "argmax_history" (release) or "argmax_is_canvas".
    """

    max_new_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None
    entropy_bound: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    max_denoising_steps: int | None = None
    positions_per_pass: int | None = None
    stability_threshold: int | None = None
    confidence_threshold: float | None = None
    canvas_length: int | Literal["auto"] | None = None
    stop: tuple[str, ...] | None = None
    ignore_eos: bool | None = None
    decoder: Decoder | None = None
    best_of: int | None = None
    revisions: int | None = None
    prefer: Preference | None = None
    top_k: int | None = None
    top_p: float | None = None
    logprobs: int | None = None
    budget: BudgetRule | None = None
    commit: CommitRule | None = None
    stability: StabilityRule | None = None

    def __init__(self, **settings: Any) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        for name in settings:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise InvalidRequest(f"unknown setting {name!r}{hint} Valid names: {', '.join(names)}")
        for name in names:
            object.__setattr__(self, name, settings.get(name))
        self._validate()

    def merged(self, defaults: Mapping[str, Any]) -> GenerationConfig:
        """This config with every unset name taken from `defaults` (which may lack names)."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return GenerationConfig(**{name: defaults.get(name) if value is None else value for name, value in own.items()})

    def _validate(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _whole("seed", self.seed, 0, 2**64 - 1)
        if self.temperature != 0 or isinstance(self.temperature, bool):
            _real("temperature", self.temperature, COLDEST, 1000, " (or 0: argmax)")
        _real("entropy_bound", self.entropy_bound, 0, 1e9, open_low=True)
        _real("t_min", self.t_min, COLDEST, 1000)
        _real("t_max", self.t_max, COLDEST, 1000)
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise InvalidRequest(f"t_min must be ≤ t_max ({self.t_max}), found {self.t_min}")
        _whole("max_denoising_steps", self.max_denoising_steps, 1, MAX_PASSES)
        _whole("positions_per_pass", self.positions_per_pass, 1, 2**20)
        _whole("stability_threshold", self.stability_threshold, 0, MAX_PASSES)
        _real("confidence_threshold", self.confidence_threshold, 0, 1e9)
        if self.canvas_length != "auto":
            _whole("canvas_length", self.canvas_length, 1, 2**20, " or 'auto'")
        _whole("best_of", self.best_of, 1, MAX_CANDIDATES)
        _whole("revisions", self.revisions, 0, MAX_REVISIONS)
        _whole("top_k", self.top_k, 1, 2**31 - 1)
        _real("top_p", self.top_p, 0, 1, open_low=True)
        _whole("logprobs", self.logprobs, 0, 20)
        _choice("decoder", self.decoder, ("diffusion", "autoregressive"))
        _choice("prefer", self.prefer, ("likely", "python"))
        _choice("budget", self.budget, ("accepted", "changed"))
        _choice("commit", self.commit, ("argmax", "sample"))
        _choice("stability", self.stability, ("argmax_history", "argmax_is_canvas"))
        if self.ignore_eos is not None and not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos must be True or False, found {shown(self.ignore_eos)}")
        if self.stop is not None:
            stops = (self.stop,) if isinstance(self.stop, str) else self.stop
            if not isinstance(stops, (list, tuple)):
                raise InvalidRequest(f"stop must be a string or a list of strings, found {shown(self.stop)}")
            for stop in stops:
                if not isinstance(stop, str) or not stop:
                    raise InvalidRequest(f"stop must hold non-empty strings, found {shown(stop)}")
            object.__setattr__(self, "stop", tuple(stops))


def _whole(name: str, value: Any, low: int, high: int, also: str = "") -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number in {low} … {high}{also}, found {shown(value)}")


def _real(name: str, value: Any, low: float, high: float, also: str = "", open_low: bool = False) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)  # NaN fails every comparison below
    if not number or not low <= value <= high or (open_low and value == low):
        bounds = f"> {low:g} and ≤ {high:g}" if open_low else f"in {low:g} … {high:g}"
        raise InvalidRequest(f"{name} must be a finite number {bounds}{also}, found {shown(value)}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, found {shown(value)}")


RELEASE_DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 256,
    "seed": 0,
    "temperature": 1.0,
    "entropy_bound": 0.1,
    "t_min": 0.4,
    "t_max": 0.8,
    "max_denoising_steps": 48,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "stop": (),
    "ignore_eos": False,
    "decoder": "diffusion",
    "best_of": 1,
    "revisions": 0,
    "prefer": "likely",
    "budget": "accepted",
    "commit": "argmax",
    "stability": "argmax_history",
}
