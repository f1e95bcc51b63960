"""`convert --calibrate`: samples run as generation runs the model, and what is written by them is nearer to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foreign import foreign_model
from scumble import InvalidRequest
from scumble.checkpoint import load_checkpoint, read_contents
from scumble.checkpoint.calibrate.samples import LEVELS, make_samples
from scumble.checkpoint.calibrate.stream import Stream
from scumble.checkpoint.calibrate.texts import read_texts
from scumble.checkpoint.convert import convert
from scumble.checkpoint.files import find_tensors
from scumble.evaluate.functions import read_functions
from scumble.llm import embedded_path
from scumble.model.segment import Segment
from scumble.text import Tokenizer
from tiny import prompt, save_folder

LINES = ["the canvas is painted thin, layer over layer", "der Malgrund bleibt sichtbar, layer over layer over layer"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "source", foreign_model(vocab_size=300), tokenizer=True, t_min=0.4, t_max=0.8)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES * 4))
    return file


def run(source: Path, out: Path, texts: Path | None, form: str = "int4", **options):
    return list(convert(source, out, form, calibrate=texts, **options))


# --- samples --------------------------------------------------------------------------------------------------------


def test_samples_run_layer_by_layer_as_the_model_runs_them(source, texts):
    """Windows, noise levels, soft embeddings and both layer scalars included."""
    found, model = read_contents(source), load_checkpoint(source, torch.float32)
    samples = make_samples(read_texts(texts, source), found.config, 600, texts)
    assert {level for sample in samples for level in sample.levels} == {level for pair in LEVELS for level in pair}
    stream = Stream(found, samples)
    soft = torch.randn(sum(sample.canvases.numel() for sample in samples), found.config.hidden_size)
    stream.dtype = torch.float32
    stream.model.use(model.ops)
    stream.begin(soft)
    for index in range(len(found.config.layers)):
        with stream.layer(index) as layer:
            stream.run(layer, index)
    ours = stream.model.ops.rms_norm(stream.x, model.norm.weight, found.config.rms_norm_eps)
    torch.testing.assert_close(ours, _as_generation_runs_them(model, samples, soft), rtol=1e-4, atol=1e-4)


def _as_generation_runs_them(model, samples, soft: Tensor) -> Tensor:
    out, at = [], 0
    for sample in samples:
        cache = model.new_cache()
        out.append(model.encode(sample.context, cache))
        for canvas, level in zip(sample.canvases, sample.levels, strict=True):
            own = soft[at : at + len(canvas)]
            at += len(canvas)
            out.append(model([Segment(canvas, cache, "denoise", None if level == 1 else own)]))
    return torch.cat(out)


def test_texts_may_be_plain_lines_or_conversations(source, tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text(LINES[0])
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"text": LINES[0]}) + "\n\n")
    assert list(read_texts(plain, source)) == list(read_texts(lines, source))
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }};{% endfor %}")
    lines.write_text(json.dumps({"messages": [{"role": "user", "content": "thin"}]}))
    assert list(read_texts(lines, source)) == [Tokenizer.from_folder(source).encode("thin;")]


def test_an_answer_that_ends_has_its_end_and_pads_behind_it(source):
    config = read_contents(source).config
    (sample,) = make_samples([prompt(10)], config, 100, Path("x"))
    assert sample.context.tolist() == prompt(10)[:5]
    assert sample.canvases.shape == (2, config.canvas_length)
    (sample,) = make_samples([prompt(10)], config, 100, Path("x"))
    clean = [*prompt(10)[5:], 1, 1, 1]
    kept = sample.canvases[1] == torch.tensor(clean)
    assert kept.float().mean() > 0.3  # level 0.4


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_the_layout_is_that_of_plain_rounding(source, texts, tmp_path, form):
    run(source, tmp_path / "plain", None, form)
    steps = run(source, tmp_path / "calibrated", texts, form)
    assert steps[-1].done == steps[-1].total
    plain, own = find_tensors(tmp_path / "plain"), find_tensors(tmp_path / "calibrated")
    assert {key: (one.dtype, one.shape) for key, one in plain.items()} == {
        key: (one.dtype, one.shape) for key, one in own.items()
    }
    names = [file.name for file in sorted((tmp_path / "plain").iterdir())]
    assert names == [file.name for file in sorted((tmp_path / "calibrated").iterdir())]
    before = load_checkpoint(source, torch.float32).state_dict()
    for name, weight in load_checkpoint(tmp_path / "calibrated", torch.float32).state_dict().items():
        apart = float((weight - before[name]).norm() / before[name].norm())
        assert apart < {"int4": 0.2, "int8": 0.03}[form], name


def test_int4_comes_nearer_to_the_embedded_model(tmp_path):
    functions = read_functions()
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": one.text}) + "\n" for one in functions[100:140]))
    run(embedded_path(), tmp_path / "plain", None)
    run(embedded_path(), tmp_path / "calibrated", texts, tokens=6000)
    tokenizer, model = Tokenizer.from_folder(embedded_path()), load_checkpoint(embedded_path())
    asked = [tokenizer.encode(one.text)[:100] for one in functions[:6]]
    plain, calibrated = (
        _divergence(model, load_checkpoint(tmp_path / name), asked) for name in ("plain", "calibrated")
    )
    assert calibrated < 0.7 * plain
    assert calibrated < 0.05


def _divergence(model, other, asked: list[list[int]]) -> float:
    """Mean KL of canvases' logits to the model's, nats a token: all noise, and a third of it."""
    found = []
    for seed, ids in enumerate(asked):
        canvas = torch.tensor(ids[-48:])
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(model.config.vocab_size, canvas.shape, generator=generator)
        thin = torch.where(torch.rand(canvas.shape, generator=generator) < 0.3, noise, canvas)
        for noised in (noise, thin):
            logits = []
            for one in (model, other):
                cache = one.new_cache()
                one.encode(torch.tensor(ids[:-48]), cache)
                logits.append(one.denoise_logits(noised, cache).log_softmax(-1))
            found.append((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())
    return float(torch.stack(found).mean())


def test_experts_that_were_never_reached_are_rounded_to_the_nearest_and_named(tmp_path, texts):
    source = save_folder(
        tmp_path / "source", foreign_model(vocab_size=300, num_experts=64, top_k_experts=1), tokenizer=True
    )
    steps = run(source, tmp_path / "out", texts, tokens=256)
    run(source, tmp_path / "plain", None)
    layers = {step.part: step.unreached for step in steps if step.part.startswith("layers.")}
    assert all(0 < len(unreached) < 64 for unreached in layers.values())
    own, plain = (load_checkpoint(tmp_path / name, torch.float32).state_dict() for name in ("out", "plain"))
    for part, unreached in layers.items():
        for name in (f"{part}.experts.gate_up_proj", f"{part}.experts.down_proj"):
            same = [bool(torch.equal(one, other)) for one, other in zip(own[name], plain[name], strict=True)]
            assert [index for index, equal in enumerate(same) if equal] == list(unreached)


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_an_interrupted_calibration_goes_on_to_the_same_bytes(source, texts, tmp_path, files):
    """files: written before it is stopped; 0: in the first look; 3: all layers are done."""
    run(source, tmp_path / "whole", texts)
    steps = convert(source, tmp_path / "out", "int4", calibrate=texts)
    written = 0
    while True:
        written += "look" not in next(steps).part
        if written == files:
            break
    steps.close()
    again = run(source, tmp_path / "out", texts)
    assert [step.resumed for step in again if "look" not in step.part] == [i < files for i in range(3)]
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


def test_another_calibration_file_is_not_mixed_in(source, texts, tmp_path):
    steps = convert(source, tmp_path / "out", "int4", calibrate=texts)
    next(steps)
    steps.close()
    texts.write_text(texts.read_text() + json.dumps({"text": LINES[0]}))
    with pytest.raises(InvalidRequest, match="holds another unfinished conversion"):
        run(source, tmp_path / "out", texts)


# --- files that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the calibration file is empty"),
        (b"\n \n", "the calibration file is empty"),
        (b'{"text": "a"}\nplain', "line 2: not JSON"),
        (b'{"text": 3}', r'line 1: must be {"text": "…"} or {"messages": \[…\]}, found'),
        (b"[1, 2]", "line 1: must be"),
        (b'{"messages": [{"role": "user"}]}', "line 1: "),
        (b'{"text": "\\ud800"}', "line 1: the text is not valid Unicode"),
        (b'{"text": "a"}\n\xff', "line 2: not UTF-8"),
        (b'{"text": "a"}', "no text of the calibration file has 8 tokens"),
    ],
)
def test_files_without_texts_are_refused_by_line(source, tmp_path, content, message):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        run(source, tmp_path / "out", file)
    assert not (tmp_path / "out.converting").exists()


def test_what_makes_no_sense_is_refused(source, texts, tmp_path):
    with pytest.raises(InvalidRequest, match="the calibration file cannot be read: No such file"):
        run(source, tmp_path / "out", tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidRequest, match="the calibration file cannot be read"):
        run(source, tmp_path / "out", tmp_path)
    with pytest.raises(InvalidRequest, match="calibration serves int4 and int8; for fp8 leave it out"):
        run(source, tmp_path / "out", texts, "fp8")
    with pytest.raises(InvalidRequest, match="calibration tokens must lie in 256 … 4194304, found 3"):
        run(source, tmp_path / "out", texts, tokens=3)
    (source / "tokenizer.json").unlink()
    with pytest.raises(InvalidRequest, match="has no tokenizer, which calibration needs"):
        run(source, tmp_path / "out", texts)
