"""What Scumble promises to the outside: names, signatures, the exception tree, and a quick import."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch

import scumble
from scumble import LLM, Committed, Draft, Finished, Generation, GenerationConfig
from scumble.checkpoint import load_checkpoint
from scumble.diffusion import Noise
from tiny import prompt, save_folder, tiny_model


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_exported_names():
    assert set(scumble.__all__) == {
        "LLM", "GenerationConfig", "Generation", "TokenLogprobs", "ToolCall", "Draft", "Committed", "Finished",
        "ScumbleError", "InvalidRequest", "PromptTooLong", "CheckpointError", "TemplateError", "TokenizerError",
        "DataError", "RequestsFailed", "__version__",
    }  # fmt: skip
    for name in scumble.__all__:
        assert getattr(scumble, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = scumble.Llm


def test_import_loads_neither_torch_nor_anything_slow():
    code = "import sys, scumble; print(*[m for m in ('torch', 'numpy', 'tokenizers', 'jinja2') if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == []


def test_exception_tree():
    assert issubclass(scumble.InvalidRequest, (scumble.ScumbleError, ValueError))
    assert issubclass(scumble.PromptTooLong, scumble.InvalidRequest)
    for name in ("CheckpointError", "TemplateError", "TokenizerError", "DataError"):
        assert issubclass(getattr(scumble, name), scumble.ScumbleError)
    assert scumble.InvalidRequest.exit_code == 2
    assert scumble.CheckpointError.exit_code == 1


def test_signatures_that_others_rely_on():
    assert parameters(LLM.load)[:3] == ["path", "dtype", "device"]
    load = inspect.signature(LLM.load).parameters
    assert (load["path"].default, load["dtype"].default, load["device"].default) == (None, "auto", "auto")
    assert parameters(LLM.generate)[:3] == ["self", "prompt", "config"]
    assert parameters(LLM.stream)[:3] == ["self", "prompt", "config"]
    assert parameters(LLM.chat)[:3] == ["self", "messages", "config"]
    assert parameters(LLM.generate_ids)[:3] == ["self", "ids", "config"]
    assert inspect.signature(LLM.generate_ids).parameters["noise"].default is None
    assert parameters(load_checkpoint)[:2] == ["path", "dtype"]
    assert parameters(Noise.initial)[1:] == ["canvas_index", "length", "vocab"]
    assert parameters(Noise.uniform)[1:] == ["canvas_index", "pass_index", "length"]
    assert parameters(Noise.renoise)[1:] == ["canvas_index", "pass_index", "length", "vocab"]


def test_fields_that_others_rely_on():
    def fields(kind) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert fields(Generation) >= {
        "text", "token_ids", "finish_reason", "prompt_tokens", "passes", "seconds", "logprobs",
    }  # fmt: skip
    assert fields(GenerationConfig) >= {
        "max_new_tokens", "seed", "temperature", "entropy_bound", "t_min", "t_max", "max_denoising_steps",
        "stability_threshold", "confidence_threshold", "canvas_length", "stop", "ignore_eos", "decoder", "logprobs",
    }  # fmt: skip
    assert fields(Draft) >= {"token_ids", "text", "canvas", "pass_index"}
    assert fields(Committed) >= {"token_ids", "text"}
    assert fields(Finished) >= {"generation"}


def test_the_model_s_face(tmp_path):
    """load_checkpoint → config, new_cache, encode, denoise_logits: shapes, number formats, an unchanged cache."""
    model = load_checkpoint(save_folder(tmp_path / "m", tiny_model()), dtype=torch.float32)
    assert model.config.vocab_size == 97
    cache = model.new_cache()
    hidden = model.encode(torch.tensor(prompt(9)), cache)
    assert hidden.shape == (9, 32)
    canvas = torch.tensor(prompt(8, seed=1))
    logits = model.denoise_logits(canvas, cache)
    assert logits.shape == (8, 97)
    assert logits.dtype == torch.float32
    assert float(logits.abs().max()) <= 30
    again = model.denoise_logits(canvas, cache, previous_logits=logits / 0.8)
    assert not torch.equal(again, logits)
    assert torch.equal(model.denoise_logits(canvas, cache), logits)
    assert cache.length == 9
