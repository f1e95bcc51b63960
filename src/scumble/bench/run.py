"""The whole benchmark, in order -> one JSON object (see report.py for its tables).

Everything that is compared takes turns in one process: our fixed run, our autoregressive run, our prefill, the
instrumented run, and the peer's runs when a peer was asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch

from scumble.bench import counts, roofline, stages, workloads
from scumble.bench.events import Watched, fixed_config
from scumble.bench.machine import describe
from scumble.bench.memory import measure_memory
from scumble.bench.prompts import python_prompts
from scumble.bench.shapes import random_prompt
from scumble.bench.subject import Subject
from scumble.bench.timing import Figure, clock, figure, interleave
from scumble.errors import InvalidRequest, shown

SCHEMA = 1  # of the JSON object; counts up when a name changes its meaning
Mode = Literal["fixed", "adaptive", "both"]
Said = Callable[[str], None]

AMBITIOUS_PROMPTS, QUICK_PROMPTS = 6, 1


@dataclass(frozen=True)
class Options:
    """What to measure. threads None: torch's own choice. curves: also how the cost of a pass grows."""

    passes: int = 12
    mode: Mode = "both"
    prompt_tokens: int = 128
    new_tokens: int = 256
    repeats: int = 5
    threads: int | None = None
    against: str | None = None
    seed: int = 0
    quick: bool = False
    curves: bool = False
    memory: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("passes", 2, 10_000), ("prompt_tokens", 1, 2**20), ("new_tokens", 2, 2**20), ("repeats", 1, 1000),
            ("threads", 1, 1024), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidRequest(f"--{name.replace('_', '-')} must be in {low} … {high}, found {value}")
        if self.mode not in ("fixed", "adaptive", "both"):
            raise InvalidRequest(f"--mode must be fixed, adaptive or both, found {shown(self.mode)}")
        if self.against not in (None, "transformers"):
            raise InvalidRequest(f"--against must be transformers, found {shown(self.against)}")
        if self.against is not None and self.mode == "adaptive":
            raise InvalidRequest("--against compares runs of fixed length; use --mode fixed or both")


def run_bench(subject: Subject, options: Options, said: Said = lambda _: None) -> dict[str, Any]:
    """Measure a subject (not yet entered). `said` is told what is being done."""
    check(subject, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    said("looking at the machine")
    machine = describe(subject.where)
    said(f"preparing {subject.name}")
    with subject:
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "machine": machine,
            "model": model_facts(subject),
            "settings": asdict(options) | {"canvas_length": subject.config.canvas_length},
        }
        if options.mode != "adaptive":
            report |= fixed(subject, options, said)
        if options.mode != "fixed":
            report["adaptive"] = adaptive(subject, options, said)
        if options.curves:
            from scumble.bench.curves import measure_curves

            report["curves"] = measure_curves(subject, options.quick, options.seed, said)
        if options.memory and subject.where.type != "cuda":
            report["memory"] = memory(subject, options, said)
    if options.memory and subject.where.type == "cuda":  # there may be no room for the model twice
        gc.collect()
        torch.cuda.empty_cache()
        report["memory"] = memory(subject, options, said)
    return report


def check(subject: Subject, options: Options) -> None:
    """Refuse now what would fail after minutes."""
    room = subject.config.max_position_embeddings
    if options.prompt_tokens + options.new_tokens > room:
        raise InvalidRequest(
            f"--prompt-tokens + --new-tokens must be ≤ {room} (the model's context), found "
            f"{options.prompt_tokens + options.new_tokens}"
        )
    if options.mode == "adaptive" and subject.is_random:
        raise InvalidRequest(
            "--mode adaptive needs a trained model with a tokenizer: random weights never become confident; "
            "use --mode fixed"
        )


def model_facts(subject: Subject) -> dict[str, Any]:
    config = subject.config
    kinds = [layer.is_sliding for layer in config.layers]
    return {
        "name": subject.name,
        "random_weights": subject.is_random,
        "weights_seed": subject.seed if subject.is_random else None,
        "dtype": subject.number_format,
        "cache_dtype": subject.llm.model.cache_format,
        "parameters": sum(counts.parameters(config).values()),
        "weight_bytes": subject.weight_bytes,
        "hidden": config.hidden_size,
        "layers": {"sliding": sum(kinds), "full": len(kinds) - sum(kinds)},
        "sliding_window": config.sliding_window,
        "experts": [config.num_experts, config.top_k_experts, config.moe_intermediate_size],
        "vocabulary": config.vocab_size,
        "canvas_length": config.canvas_length,
    }


def fixed(subject: Subject, options: Options, said: Said) -> dict[str, Any]:
    """Fixed passes over a random prompt, one token at a time, prefill, stages; beside the peer when asked."""
    llm, config, o = subject.llm, subject.config, options
    now = clock(llm.model.device)
    prompt = random_prompt(config, o.prompt_tokens, o.seed)
    settings = fixed_config(o.passes, o.new_tokens, o.seed)
    actions: dict[str, Callable[[], Any]] = {
        "fixed": lambda: workloads.run_fixed(llm, prompt, o.passes, o.new_tokens, o.seed, now),
        "steps": lambda: workloads.run_steps(llm, prompt, o.new_tokens, o.seed, now),
        "prefill": lambda: workloads.run_prefill(llm, prompt, now),
        "stages": lambda: stages.watch_stages(llm, prompt, settings, now),
    }
    peer, found, peer_dtype = None, {}, torch.bfloat16
    if o.against is not None:
        from scumble.bench.peer import Peer

        said("loading transformers on the same weights")
        if subject.number_format == "float32":
            peer_dtype = torch.float32  # otherwise bfloat16: it has none of our integer formats
        canvases = -(-o.new_tokens // config.canvas_length) * config.canvas_length  # it writes whole canvases only
        peer = Peer.load(subject.folder(), peer_dtype, llm.model.device)
        found["check"] = peer.check(llm.model, prompt[:64], random_prompt(config, config.canvas_length, o.seed + 1))
        said("choosing its implementation of the experts")
        peer.choose_experts(prompt, now)
        turns = {"fixed": "peer fixed", "steps": "peer steps", "prefill": "peer prefill"}
        theirs: dict[str, Callable[[], Any]] = {
            "peer fixed": lambda: peer.generate(prompt, o.passes, canvases, now),
            "peer steps": lambda: peer.steps(prompt, o.new_tokens, now),
            "peer prefill": lambda: peer.prefill(prompt, now),
        }
        actions = {  # each of theirs right behind ours
            name: action
            for own in actions
            for name, action in ((own, actions[own]), *([(turns[own], theirs[turns[own]])] if own in turns else []))
        }
    results = interleave(actions, o.repeats, warmup=1, said=said)
    said("measuring this machine's limits")
    limits = roofline.measure(config, config.canvas_length, llm.model.device, o.quick)
    split = stages.split(results["stages"], results["fixed"])
    prefill = figure(results["prefill"])
    report: dict[str, Any] = {
        "fixed": workloads.diffusion_summary(results["fixed"]),
        "autoregressive": workloads.step_summary(results["steps"]),
        "prefill": prefill_json(prefill, o.prompt_tokens),
        "limits": limits.as_json(),
        "stages": stage_table(subject, options, split, limits),
        "floors": floors(subject, options, limits, results, prefill),
    }
    if peer is not None:
        report["peer"] = compare(peer, found["check"], results, o) | {"dtype": str(peer_dtype).removeprefix("torch.")}
    return report


def prefill_json(seconds: Figure, tokens: int) -> dict[str, Any]:
    return {"seconds": seconds.as_json(), "tokens_per_second": seconds.per(tokens).as_json(), "prompt_tokens": tokens}


def stage_table(subject: Subject, options: Options, split: stages.Split, limits: roofline.Limits) -> dict[str, Any]:
    """Every stage: seconds, share, arithmetic, floor, and how many times its floor it takes."""
    work = counts.pass_work(subject.config, subject.config.canvas_length, options.prompt_tokens)
    rows = {}
    for stage, seconds in split.stages.items():
        row: dict[str, Any] = {"seconds": seconds, "share": seconds / split.total, "means": stages.MEANING[stage]}
        if stage in work:
            least = roofline.floor(work[stage], subject.number_format, limits)
            row |= {
                "flops": work[stage].flops,
                "weights": work[stage].weights,
                "floor_seconds": least,
                "times_floor": seconds / least if seconds else None,
                "bound": roofline.bound(work[stage], subject.number_format, limits),
            }
        rows[stage] = row
    return {
        "rows": rows,
        "total_seconds": split.total,
        "passes_used": split.passes,
        "instrumentation_slowdown": split.slowdown,
        "not_separately_visible": list(split.unseen),
    }


def floors(
    subject: Subject, options: Options, limits: roofline.Limits, results: dict[str, list[Any]], prefill: Figure
) -> dict[str, Any]:
    """A whole pass, a prefill and an autoregressive step against the sum of their stages' floors."""
    config, dtype = subject.config, subject.number_format
    middle = options.prompt_tokens + options.new_tokens // 2
    work = {
        "pass": counts.pass_work(config, config.canvas_length, options.prompt_tokens),
        "prefill": counts.encode_work(config, options.prompt_tokens, 0),
        "autoregressive_step": counts.encode_work(config, 1, middle),
    }
    runs = cast(list[Watched], results["fixed"])
    steps = cast(list[Watched], results["steps"])
    measured = {
        "pass": figure([s for run in runs for s in run.between]).median,
        "prefill": prefill.median,
        "autoregressive_step": figure([s for run in steps for s in run.steps]).median,
    }
    out = {}
    for name, by_stage in work.items():
        least = sum(roofline.floor(one, dtype, limits) for one in by_stage.values())
        out[name] = {
            "flops": sum(one.flops for one in by_stage.values()),
            "floor_seconds": least,
            "seconds": measured[name],
            "times_floor": measured[name] / least,
        }
    return out


def compare(peer: Any, check: dict[str, float], results: dict[str, list[Any]], o: Options) -> dict[str, Any]:
    """The peer's figures, and ratios of medians: how many times quicker we are. Below 1: slower."""
    ours, theirs = results["fixed"], results["peer fixed"]
    pairs = {
        "pass": ([s for run in ours for s in run.between], [s for run in theirs for s in run.between]),
        "prefill": (results["prefill"], results["peer prefill"]),
        "autoregressive_step": (
            [s for run in results["steps"] for s in run.steps], [s for run in results["peer steps"] for s in run.steps],
        ),
        "generation": ([run.seconds / run.valid for run in ours], [run.seconds / run.valid for run in theirs]),
    }  # fmt: skip
    ratios = {}
    for name, (a, b) in pairs.items():
        one, two = figure(a), figure(b)
        ratios[name] = {"ours": one.as_json(), "theirs": two.as_json(), "ratio": two.median / one.median}
    return {
        "name": "transformers",
        "version": peer.version,
        "experts_implementation": peer.experts,
        "experts_tried_seconds": peer.tried,
        "autoregressive_model": "Gemma4ForCausalLM of the same sizes, sharing the encoder's weights",
        "same_weights_check": check,
        "seconds": ratios,
        "fixed": workloads.diffusion_summary(theirs),
        "autoregressive": workloads.step_summary(results["peer steps"]),
        "prefill": prefill_json(figure(results["peer prefill"]), o.prompt_tokens),
    }


def adaptive(subject: Subject, options: Options, said: Said) -> dict[str, Any]:
    """Real prompts until the model is done, both decoders in turn. Without a tokenizer: why not."""
    llm = subject.llm
    if subject.is_random:
        return {"skipped": "random weights never become confident; adaptive runs need a trained model"}
    if llm.tokenizer is None:
        return {"skipped": "the model has no tokenizer; adaptive runs need text"}
    now = clock(llm.model.device)
    texts = python_prompts()[: QUICK_PROMPTS if options.quick else AMBITIOUS_PROMPTS]
    prompts = [llm.encode_prompt(text) for text in texts]
    n, seed = options.new_tokens, options.seed
    results = interleave(
        {
            "adaptive": lambda: workloads.run_adaptive(llm, prompts, n, seed, now),
            "adaptive, autoregressive": lambda: workloads.run_adaptive_steps(llm, prompts, n, seed, now),
        },
        options.repeats, warmup=1, said=said,
    )  # fmt: skip
    diffusion = [run for repeat in results["adaptive"] for run in repeat]
    steps = [run for repeat in results["adaptive, autoregressive"] for run in repeat]
    return {
        "prompts": len(prompts),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "diffusion": workloads.diffusion_summary(diffusion),
        "autoregressive": workloads.step_summary(steps),
    }


def memory(subject: Subject, options: Options, said: Said) -> dict[str, Any]:
    """Peak resident memory of one fixed generation. over_weights: (peak - before) / weights."""
    said("peak memory, in a process of its own")
    found = measure_memory(
        {
            "subject": subject.memory_spec(),
            "threads": options.threads,
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "passes": min(options.passes, 3),  # a fourth pass needs no more memory than a third
            "seed": options.seed,
        }
    )
    return found | {"over_weights": (found["peak"] - found["before"]) / found["weights"]}
