"""What one denoise pass, one prefill and one autoregressive step cost, beside transformers, on random weights.

    OMP_NUM_THREADS=1 python benchmarks/cpu_pass.py                      # bf16, ours and transformers, interleaved
    OMP_NUM_THREADS=1 python benchmarks/cpu_pass.py --dtype int8
    OMP_NUM_THREADS=1 python benchmarks/cpu_pass.py --dtype int4 --beside int8   # one of our formats beside another
    OMP_NUM_THREADS=1 python benchmarks/cpu_pass.py --ours --profile     # ours alone, with a table of operators

The shape is "small-315m": hidden 768, 12 layers (five sliding, then one full), 8 heads, kv 4 x 128 and 2 x 256, MLP
1024, 32 experts of width 256 of which 4 run, vocabulary 32,768, canvas 256, context 128. A pass is everything between
two canvases but the sampler's bookkeeping: soft embedding of the pass before, layers, head, entropy, argmax, sample.
The peer's pass is written as its own `generate` writes it. Runs of both sides alternate; what counts is the median of
the ratios of neighbouring runs, because a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import clone  # noqa: F401
import torch
from torch import Tensor

from scumble.config import LayerConfig, ModelConfig
from scumble.model import Segment, Transformer
from scumble.ops import VocabQuery, choose, softcap

SLIDING, FULL = LayerConfig("sliding_attention", 128, 4), LayerConfig("full_attention", 256, 2)
CONFIG = ModelConfig(
    vocab_size=32_768, hidden_size=768, intermediate_size=1024, num_attention_heads=8, num_experts=32,
    top_k_experts=4, moe_intermediate_size=256, layers=(*[SLIDING] * 5, FULL) * 2, sliding_window=1024,
    canvas_length=256, image_token_id=None,
)  # fmt: skip
CONTEXT, TEMPERATURE = 128, 0.6
Task = Callable[[], object]


@torch.no_grad()
def random_model(dtype: torch.dtype, seed: int = 0) -> Transformer:
    """Weights that keep the residual stream near length one a number, so that routing spreads over all experts."""
    with torch.device("meta"):
        model = Transformer(CONFIG, choose("cpu", dtype, CONFIG).ops)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, meta in model.state_dict().items():
        plain = "norm" in name or name.endswith(("scale", "scalar"))
        weight = torch.ones(meta.shape) if plain else torch.randn(meta.shape, generator=generator) * 0.02
        weights[name] = weight.to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def ours(dtype: str) -> dict[str, Task]:
    model = random_model(torch.float32 if dtype == "float32" else torch.bfloat16)
    if model.ops.packs:
        model.convert(dtype if dtype in ("int8", "int4") else None)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, CONFIG.vocab_size, (CONTEXT,), generator=generator)
    canvas = torch.randint(0, CONFIG.vocab_size, (CONFIG.canvas_length,), generator=generator)
    uniforms = torch.rand(CONFIG.canvas_length, dtype=torch.float64, generator=generator)
    cache = model.new_cache()
    model.encode(prompt, cache)
    soft: list[Tensor | None] = [None]

    @torch.no_grad()
    def denoise() -> object:
        hidden = model([Segment(canvas, cache, "denoise", soft[0])])
        result = model.vocab_head(hidden, VocabQuery(TEMPERATURE, uniforms=uniforms, want_soft=True))
        soft[0] = result.soft
        return result

    growing = model.new_cache()
    model.encode(prompt, growing)

    @torch.no_grad()
    def step() -> object:
        hidden = model.encode(prompt[:1], growing)
        return int(model.logits(hidden)[0].argmax())

    return {"pass": denoise, "prefill": lambda: model.encode(prompt, model.new_cache()), "step": step}


def peer(dtype: torch.dtype) -> dict[str, Task]:
    """transformers' DiffusionGemma of the same shape, with its own initial weights."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
    from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaTextConfig
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    }
    text = DiffusionGemmaTextConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.hidden_size, intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=len(CONFIG.layers), layer_types=[layer.kind for layer in CONFIG.layers],
        num_attention_heads=CONFIG.num_attention_heads, num_key_value_heads=4, head_dim=128,
        num_global_key_value_heads=2, global_head_dim=256, num_experts=CONFIG.num_experts,
        top_k_experts=CONFIG.top_k_experts, moe_intermediate_size=CONFIG.moe_intermediate_size,
        sliding_window=CONFIG.sliding_window, max_position_embeddings=4096, rope_parameters=rope,
    )  # fmt: skip
    vision = Gemma4VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, patch_size=4, position_embedding_size=16,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CONFIG.canvas_length)
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    torch.set_default_dtype(before)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not ("norm" in name or name.endswith(("scale", "scalar"))):
                weight.normal_(0, 0.02)
    prompt = torch.randint(0, CONFIG.vocab_size, (1, CONTEXT))
    canvas = torch.randint(0, CONFIG.vocab_size, (1, CONFIG.canvas_length))

    @torch.no_grad()
    def encode(ids: Tensor, cache: DynamicCache) -> Tensor:
        return model.model.encoder(input_ids=ids, past_key_values=cache).last_hidden_state

    cache, growing = DynamicCache(config=text), DynamicCache(config=text)
    encode(prompt, cache)
    encode(prompt, growing)
    previous: list[Tensor | None] = [None]

    @torch.no_grad()
    def denoise() -> object:
        out = model(decoder_input_ids=canvas, past_key_values=cache, self_conditioning_logits=previous[0])
        logits = out.logits / TEMPERATURE
        previous[0] = logits.to(dtype)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        sample = torch.multinomial(probabilities.view(-1, CONFIG.vocab_size), num_samples=1)
        return sample, logits.argmax(-1), torch.distributions.Categorical(logits=logits).entropy()

    @torch.no_grad()
    def step() -> object:
        return int(softcap(model.lm_head(encode(prompt[:, :1], growing)).float(), 30.0)[0, -1].argmax())

    return {"pass": denoise, "prefill": lambda: encode(prompt, DynamicCache(config=text)), "step": step}


def seconds(task: Task, repeats: int) -> float:
    """Processor time with one thread, so that other programs on the machine count less; wall time with several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(repeats):
        task()
    return (clock() - started) / repeats


def compare(sides: dict[str, dict[str, Task]], names: list[str], runs: int) -> dict[str, dict[str, object]]:
    """Every task of every side, `runs` times, sides alternating -> medians, quartiles in ms, and the ratio."""
    report: dict[str, dict[str, object]] = {}
    for name in names:
        repeats = 4 if name == "step" else 1
        times: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides.values():
            seconds(side[name], 1)
        for _ in range(runs):
            for side, tasks in sides.items():
                times[side].append(1e3 * seconds(tasks[name], repeats))
        row: dict[str, object] = {}
        for side, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            row[side] = {"median_ms": middle, "quartiles_ms": [low, high], "best_ms": min(values)}
        if len(times) == 2:
            mine, theirs = times.values()
            row["ratio"] = statistics.median(other / own for own, other in zip(mine, theirs, strict=True))
            row["ratio_of_best"] = min(theirs) / min(mine)
        report[name] = row
    return report


def show(report: dict[str, dict[str, object]]) -> None:
    for name, row in report.items():
        for side, figures in row.items():
            if isinstance(figures, dict):
                low, high = figures["quartiles_ms"]
                print(f"{name:8} {side:13} {figures['median_ms']:8.1f} ms  ({low:.1f} … {high:.1f})", end="")
                print(f"  best {figures['best_ms']:.1f}")
        if "ratio" in row:
            print(f"{name:8} ratio         {row['ratio']:8.2f}     of best runs {row['ratio_of_best']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8", "int4"), default="bfloat16")
    parser.add_argument("--tasks", nargs="+", default=["pass", "prefill", "step"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", action="store_true", help="without transformers")
    parser.add_argument(
        "--beside", choices=("float32", "bfloat16", "int8", "int4"), help="our own in another format, as the peer"
    )
    parser.add_argument("--profile", action="store_true", help="operators of one run of each task")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = {"ours": ours(args.dtype)}
    if args.beside:
        sides[args.beside] = ours(args.beside)
    elif not args.ours:
        sides["transformers"] = peer(torch.float32 if args.dtype == "float32" else torch.bfloat16)
    report = compare(sides, args.tasks, args.runs)
    print(json.dumps(report)) if args.json else show(report)
    if args.profile:
        for name in args.tasks:
            with torch.profiler.profile() as profile:
                sides["ours"][name]()
            print(f"\n{name}")
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=40))


if __name__ == "__main__":
    main()
