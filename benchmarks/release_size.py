"""The release's real size through the whole path: made, converted to int4, loaded, asked, on this machine.

    python benchmarks/release_size.py --folder /somewhere/with/60/GB [--vocabulary ggml-vocab-gemma-4.gguf]

A random checkpoint of the release's exact shapes, keys and file layout (text model, vision tower, shards of 5 GB, an
index) is written; `convert` makes int4 of it, and each source file is deleted as soon as it has been used, so the disk
never holds more than the checkpoint and a shard. The result is loaded in a process of its own and answers a chat prompt
of 512 tokens with one canvas; then a few tokens are written one by one. Random weights never agree with themselves, so
a canvas takes all the passes that it may: --passes says how many.

Prints one JSON object. Peaks are what the system counts as resident, mapped file pages included.
--layers and --experts make a smaller one, to try the script. --calibrate TOKENS rounds by so many tokens of the
standard library, and tells the CPU seconds of each part; --layers 1 --convert-only measures one full layer.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import sysconfig
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import clone  # noqa: F401
import torch

from scumble import LLM, GenerationConfig
from scumble.checkpoint.calibrate.run import TOKENS
from scumble.checkpoint.convert import KEPT, convert, finish, ignored
from scumble.checkpoint.files import Stored
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import tokenizer_files
from scumble.checkpoint.load import Contents, read_contents
from scumble.checkpoint.names import checkpoint_key
from scumble.checkpoint.pack import packing
from scumble.checkpoint.pieces import plan_files
from scumble.checkpoint.schemes import Assembled, Entry
from scumble.checkpoint.stream import Slot, StreamedFile
from scumble.config import parse_model_config
from scumble.llm import embedded_path
from scumble.model import weight_shapes

SHARD = 5 * 10**9
POOL = 2**25  # random numbers; every tensor takes them from a place of its own


def config(layers: int, experts: int) -> dict[str, Any]:
    """config.json of google/diffusiongemma-26B-A4B-it, as far as the text model reads it."""
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    kinds[-1] = "full_attention"
    text = {
        "model_type": "diffusion_gemma_text", "vocab_size": 262_144, "hidden_size": 2816, "intermediate_size": 2112,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "global_head_dim": 512, "num_global_key_value_heads": 2, "layer_types": kinds, "num_experts": experts,
        "top_k_experts": min(8, experts), "moe_intermediate_size": 704, "sliding_window": 1024,
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "bos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
    }  # fmt: skip
    return {
        "model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"], "text_config": text,
        "canvas_length": 256, "eos_token_id": [1, 106, 50], "image_token_id": 258_880, "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }  # fmt: skip


def slots(raw: dict[str, Any]) -> list[Slot]:
    """Every tensor of the checkpoint, layer by layer, then the vision tower."""
    out = [Slot(checkpoint_key(name), "BF16", shape) for name, shape in weight_shapes(parse_model_config(raw)).items()]
    hidden, width = 1152, 4304
    shapes = {f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
    shapes |= {"mlp.gate_proj.weight": (width, hidden), "mlp.up_proj.weight": (width, hidden)}
    shapes |= {"mlp.down_proj.weight": (hidden, width), "input_layernorm.weight": (hidden,)}
    tower = "model.encoder.vision_tower.encoder.layers"
    out += [Slot(f"{tower}.{i}.{name}", "BF16", shape) for i in range(27) for name, shape in shapes.items()]
    return [*out, Slot("model.encoder.embed_vision.embedding_projection.weight", "BF16", (2816, hidden))]


def make(folder: Path, raw: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    shards: list[list[Slot]] = [[]]
    room = SHARD
    for slot in slots(raw):
        if slot.nbytes > room and shards[-1]:
            shards.append([])
            room = SHARD
        shards[-1].append(slot)
        room -= slot.nbytes
    random = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=random).bfloat16()
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        with StreamedFile(folder / name, shard) as file:
            for slot in shard:
                file.write(random_tensor(slot, pool, random))
                weight_map[slot.key] = name
    total = sum(slot.nbytes for shard in shards for slot in shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(raw))


def random_tensor(slot: Slot, pool: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Matrices keep the size of what goes through them; norms and scales are ones."""
    if len(slot.shape) < 2:
        return torch.ones(slot.shape, dtype=torch.bfloat16)
    out = torch.empty(slot.shape, dtype=torch.bfloat16)
    flat, at = out.view(-1), 0
    while at < flat.shape[0]:
        begin = int(torch.randint(POOL // 2, (1,), generator=random))
        count = min(POOL - begin, flat.shape[0] - at)
        flat[at : at + count] = pool[begin : begin + count]
        at += count
    return out.mul_(0.02 if "embed" in slot.key else slot.shape[-1] ** -0.5)


def make_converted(out: Path, raw: dict[str, Any]) -> None:
    """The folder that convert would make, straight from random numbers: for the second half without the first."""
    shapes, model = weight_shapes(parse_model_config(raw)), parse_model_config(raw)
    plan: dict[str, Entry] = {
        name: Stored(out / "none", checkpoint_key(name), shape, "BF16", 0, 2 * math.prod(shape))
        for name, shape in shapes.items()
    }
    found = Contents(model, {}, Assembled({}), shapes, plan, (), [])
    how = packing("int4", 32)
    parts, left = plan_files(found, how, KEPT)
    names = {part: f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i, part in enumerate(parts)}
    out.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=random).bfloat16()
    numbers = torch.randint(-(2**31), 2**31 - 1, (POOL,), generator=random).int()
    for part, pieces in parts.items():
        with StreamedFile(out / names[part], [slot for piece in pieces for slot in piece.slots]) as file:
            for piece in pieces:
                for slot in piece.slots:
                    file.write(random_part(slot, piece.slots, pool, numbers, random))
    finish(out, found, out, how.settings(ignored(KEPT, left)), parts, names)


def random_part(
    slot: Slot, slots: list[Slot], pool: torch.Tensor, numbers: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    columns = 8 * slots[0].shape[-1]
    if slot.key.endswith("weight_packed"):
        begin = int(torch.randint(POOL - math.prod(slot.shape), (1,), generator=random))
        return numbers[begin : begin + math.prod(slot.shape)].view(slot.shape)
    if slot.key.endswith("weight_scale"):  # nibbles are spread evenly over -8 … 7
        return torch.full(slot.shape, columns**-0.5 / 4.6, dtype=torch.bfloat16)
    if slot.key.endswith("weight_shape"):
        return torch.tensor([slots[0].shape[0], columns])
    return random_tensor(slot, pool, random)


def add_tokenizer(folder: Path, vocabulary: Path) -> None:
    """The release's tokenizer and template, from the metadata of a GGUF file."""
    for name, text in tokenizer_files(read_gguf(vocabulary)).items():
        (folder / name).write_text(text, encoding="utf-8")


def add_texts(source: Path) -> Path:
    """What to calibrate with; without a tokenizer of its own the folder gets the embedded model's."""
    if not (source / "tokenizer.json").exists():
        shutil.copyfile(embedded_path() / "tokenizer.json", source / "tokenizer.json")
    texts = source.with_name("texts.txt")
    texts.write_text((Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8"))
    return texts


def convert_and_delete(source: Path, out: Path, texts: Path | None, tokens: int, threads: int) -> dict[str, Any]:
    """convert; source files whose weights all are in finished files go at once. -> CPU seconds by part."""
    torch.set_num_threads(threads)
    found = read_contents(source)
    pending: dict[Path, set[str]] = {}
    for stored in found.tensors.values():
        name = stored.key.removeprefix("model.decoder.").removeprefix("model.encoder.language_model.")
        part = ".".join(name.split(".")[:2]) if name.startswith("layers.") else "the rest"
        part = "vision" if "vision" in stored.key else part
        pending.setdefault(stored.file, set()).add(part)
    seconds, begin = {}, time.process_time()
    for step in convert(source, out, "int4", calibrate=texts, tokens=tokens):
        seconds[step.part], begin = round(time.process_time() - begin, 1), time.process_time()
        for file, parts in list(pending.items()):
            parts.discard(step.part)
            if not parts:
                file.unlink()
                del pending[file]
    return {"cpu_seconds": seconds}


def status(name: str) -> float:
    """A figure of /proc/self/status in GB (10⁹ bytes)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e9


def in_process(queue: Any, work: Any, *arguments: Any) -> None:
    start = time.perf_counter()
    result = work(*arguments) or {}
    queue.put(result | {"seconds": round(time.perf_counter() - start, 1), "peak_gb": round(status("VmHWM"), 2)})


def apart(work: Any, *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own -> what it returns, its time and its peak of resident memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=in_process, args=(queue, work, *arguments))
    child.start()
    while True:
        try:
            result = queue.get(timeout=5)
            break
        except Exception:  # queue.Empty
            if not child.is_alive():
                raise SystemExit(f"the process ended with {child.exitcode}") from None
    child.join()
    return result


def answer(folder: Path, passes: int, tokens: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    llm = LLM.load(folder)
    loaded = time.perf_counter() - start
    after_load = {"load_seconds": round(loaded, 1), "resident_after_load_gb": round(status("VmRSS"), 2)}
    if llm.tokenizer is None:
        ids = [2, *range(1000, 1511)]
    else:
        text = "Explain to a painter how a canvas of words comes into being. "
        ids = llm.encode_chat([{"role": "user", "content": text * 60}])
        ids = [*ids[:500], *ids[-12:]]  # 512 tokens, the end of the turn among them
    canvas = GenerationConfig(max_new_tokens=256, max_denoising_steps=passes, seed=0, ignore_eos=True)
    times: list[float] = []
    begin = time.perf_counter()
    for _ in llm.stream_ids([ids], canvas):
        times.append(time.perf_counter() - begin)
    steps = [b - a for a, b in pairwise(times)][: passes - 1]
    stepwise = GenerationConfig(max_new_tokens=tokens, decoder="autoregressive", seed=0, ignore_eos=True)
    marks: list[float] = []
    for _ in llm.stream_ids([ids], stepwise):
        marks.append(time.perf_counter())
    return after_load | {
        "prompt_tokens": len(ids),
        "first_draft_seconds": round(times[0], 1),
        "canvas_seconds": round(times[-1], 1),
        "pass_ms": round(sorted(steps)[len(steps) // 2] * 1e3) if steps else None,
        "autoregressive_tokens_a_second": round((len(marks) - 2) / (marks[-2] - marks[0]), 2),
        "resident_gb": {name: round(status(name), 2) for name in ("VmRSS", "RssAnon", "RssFile")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make; needs 60 GB")
    parser.add_argument("--vocabulary", type=Path, help="a GGUF file with the release's tokenizer")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="to write one by one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--answer-only", action="store_true", help="make the int4 folder itself; needs 16 GB")
    parser.add_argument("--convert-only", action="store_true", help="ask the result nothing")
    parser.add_argument("--calibrate", type=int, metavar="TOKENS", help="round by what so many tokens give the layers")
    parser.add_argument("--keep", action="store_true", help="leave the converted folder there")
    arguments = parser.parse_args()
    source, out = arguments.folder / "bf16", arguments.folder / "int4"
    raw = config(arguments.layers, arguments.experts)
    report: dict[str, Any] = {"layers": arguments.layers, "experts": arguments.experts, "threads": arguments.threads}
    if arguments.answer_only and not out.exists():
        make_converted(out, raw)
        if arguments.vocabulary:
            add_tokenizer(out, arguments.vocabulary)
        report["converted"] = {"gb": round(sum(file.stat().st_size for file in out.iterdir()) / 1e9, 2)}
        print(json.dumps(report["converted"]), flush=True)
    if not out.exists():
        if not source.exists():
            start = time.perf_counter()
            make(source, raw)
            report["made"] = {
                "seconds": round(time.perf_counter() - start, 1),
                "gb": round(sum(file.stat().st_size for file in source.iterdir()) / 1e9, 2),
            }
            print(json.dumps(report["made"]), flush=True)
        if arguments.vocabulary:
            add_tokenizer(source, arguments.vocabulary)
        texts = add_texts(source) if arguments.calibrate else None
        count = arguments.calibrate or TOKENS
        report["converted"] = apart(convert_and_delete, source, out, texts, count, arguments.threads)
        report["converted"]["gb"] = round(sum(file.stat().st_size for file in out.iterdir()) / 1e9, 2)
        print(json.dumps(report["converted"]), flush=True)
    if not arguments.convert_only:
        report["answered"] = apart(answer, out, arguments.passes, arguments.tokens, arguments.threads)
    print(json.dumps(report))
    if not arguments.keep:
        for folder in (source, out):
            if folder.exists():
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()


if __name__ == "__main__":
    main()
