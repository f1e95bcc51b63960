"""What a cache in eight bits costs and saves: memory a token, divergence of logits, time of a pass and of a step.

    python benchmarks/cache_quality.py                         # the embedded model; a Markdown table
    python benchmarks/cache_quality.py --lengths 512 --texts 2 --json
    python benchmarks/cache_quality.py --model path/to/checkpoint --dtype int4

Contexts are the beginnings of modules of the standard library of the Python that runs this. Behind each, the text that
follows is denoised twice, a half of its tokens replaced: at the first look, and with the soft embeddings of that; and
it is read causally. KL(full cache ‖ eight bits) in nats a token, largest and mean, and how often the most probable id
is the same; all from the same weights and operations. Times: of a denoising pass and an autoregressive step behind the
same contexts, formats in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import torch
from torch import Tensor

from scumble import LLM
from scumble.bench.shapes import shape
from scumble.config import ModelConfig
from scumble.model import Cache, Segment, Transformer
from scumble.model.rounding import CacheFormat, token_bytes

FORMS: tuple[CacheFormat, ...] = ("int8", "fp8")
READ = 64  # tokens that are read causally


def contexts(llm: LLM, length: int, count: int) -> list[Tensor]:
    """Ids of beginnings with what follows: [length + canvas]."""
    wanted, out = length + llm.model.config.canvas_length, []
    assert llm.tokenizer is not None
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda file: -file.stat().st_size):
        text = source.read_text(encoding="utf-8", errors="ignore")[: 12 * wanted]
        ids = llm.tokenizer.encode(text)[:wanted]
        if len(ids) == wanted:
            out.append(torch.tensor(ids))
        if len(out) == count:
            return out
    raise SystemExit(f"only {len(out)} modules have {wanted} tokens; ask for shorter --lengths or fewer --texts")


def filled(model: Transformer, ids: Tensor, form: CacheFormat | None) -> Cache:
    model.cache_format = form
    cache = model.new_cache()
    for chunk in ids.split(512):
        model([Segment(chunk, cache, "encode", quiet=True)])
    return cache


@torch.no_grad()
def looks(model: Transformer, ids: Tensor, length: int, form: CacheFormat | None) -> dict[str, Tensor]:
    """Logits [n, V] of each look."""
    cache, following = filled(model, ids[:length], form), ids[length:]
    generator = torch.Generator().manual_seed(length)
    noise = torch.randint(model.config.vocab_size, following.shape, generator=generator)
    canvas = torch.where(torch.rand(following.shape, generator=generator) < 0.5, noise, following)
    first = model.denoise_logits(canvas, cache)
    second = model.denoise_logits(canvas, cache, first / 0.5)
    read = model.logits(model([Segment(following[:READ], cache, "read")]))
    return {"first look": first, "self-conditioned": second, "read": read}


def divergence(model: Transformer, texts: Sequence[Tensor], length: int) -> dict[str, dict[str, dict[str, float]]]:
    """By format and look: mean and largest KL, share of equal most probable ids."""
    found: dict[str, dict[str, list[Tensor]]] = {form: {} for form in FORMS}
    for ids in texts:
        base = looks(model, ids, length, None)
        for form in FORMS:
            for name, theirs in looks(model, ids, length, form).items():
                ours = base[name].log_softmax(-1)
                kl = (ours.exp() * (ours - theirs.log_softmax(-1))).sum(-1)
                same = (base[name].argmax(-1) == theirs.argmax(-1)).float()
                found[form].setdefault(name, []).append(torch.stack((kl, same)))
    out: dict[str, dict[str, dict[str, float]]] = {form: {} for form in FORMS}
    for form, by_look in found.items():
        for name, parts in by_look.items():
            kl, same = torch.cat(parts, dim=1)
            out[form][name] = {"kl": float(kl.mean()), "most": float(kl.max()), "same": float(same.mean())}
    return out


@torch.no_grad()
def times(model: Transformer, ids: Tensor, length: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass and of a step, by format."""
    canvas, token = ids[length:], ids[:1]
    actions: dict[tuple[str, str], Callable[[], Any]] = {}
    for form in (None, *FORMS):
        cache = filled(model, ids[:length], form)
        actions[form or "none", "pass"] = lambda cache=cache: model([Segment(canvas, cache, "denoise")])
        actions[form or "none", "step"] = lambda cache=cache: model([Segment(token, cache, "encode")])
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in actions}
    for turn in range(rounds + 1):
        for key, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:  # the first one warms up
                taken[key].append((time.perf_counter() - began) * 1e3)
    out: dict[str, dict[str, float]] = {}
    for (form, what), each in taken.items():
        out.setdefault(form, {})[what] = statistics.median(each)
    return out


def memory(config: ModelConfig, number: int) -> dict[str, dict[str, int]]:
    """Bytes of a token in full and in sliding layers, by format; number: bytes of a number of the model's dtype."""
    return {
        form or "none": {
            kind: sum(token_bytes(layer, number, form) for layer in config.layers if layer.is_sliding == is_sliding)
            for kind, is_sliding in (("full", False), ("sliding", True))
        }
        for form in (None, *FORMS)
    }


def run(llm: LLM, lengths: Sequence[int], count: int, rounds: int) -> dict[str, Any]:
    model = llm.model
    rows = {}
    for length in lengths:
        texts = contexts(llm, length, count)
        rows[length] = {
            "divergence": divergence(model, texts, length),
            "ms": times(model, texts[0], length, rounds) if rounds else {},
            "bytes": {form or "none": filled(model, texts[0][:length], form).nbytes() for form in (None, *FORMS)},
        }
    number = model.dtype.itemsize
    return {
        "dtype": model.number_format, "operations": model.ops.name, "texts": count, "rounds": rounds, "lengths": rows,
        "a_token": memory(model.config, number), "a_token_release": memory(shape("release"), 2),
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['dtype']}, operations {report['operations']}; {report['texts']} contexts a length",
        "",
        "| context | cache | KL first look | self-conditioned | read | largest | same most probable id | pass, ms | "
        "step, ms | bytes held |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for length, row in report["lengths"].items():
        for form in ("none", *FORMS):
            ms, looked = row["ms"].get(form, {}), row["divergence"].get(form)
            kl = ["–"] * 5
            if looked:
                means = [f"{looked[name]['kl']:.5f}" for name in ("first look", "self-conditioned", "read")]
                same = min(one["same"] for one in looked.values())
                kl = [*means, f"{max(one['most'] for one in looked.values()):.3f}", f"{same:.1%}"]
            spent = [f"{ms[what]:.1f}" if what in ms else "–" for what in ("pass", "step")]
            lines.append(f"| {length} | {form} | {' | '.join(kl)} | {' | '.join(spent)} | {row['bytes'][form]:,} |")
    lines += ["", "| bytes a token | full layers | sliding layers, in the window |", "|---|--:|--:|"]
    for title, key in (("this model", "a_token"), ("the release, bfloat16", "a_token_release")):
        for form, each in report[key].items():
            lines.append(f"| {title}, {form} | {each['full']:,} | {each['sliding']:,} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder; nothing: the embedded model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 960])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="of timing; 0: none")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = run(LLM.load(given.model, given.dtype), given.lengths, given.texts, given.rounds)
    print(json.dumps(report) if given.json else table(report))


if __name__ == "__main__":
    main()
