"""What `convert` writes, read by `transformers`: in bfloat16 as any checkpoint; int4 and fp8 as they are, too.

`transformers` 5.23 keeps the experts of this architecture in two stacked tensors and has no rule that makes them of
single experts, which is how every quantized folder holds them. With such a rule (`EXPERTS`) and `dequantize=True` its
own reader of compressed-tensors takes int4 and fp8. It cannot take experts in int8 (an error) or NVFP4 (their global
scale is left out, without a word): those go through `convert --format bfloat16`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CompressedTensorsConfig, DiffusionGemmaForBlockDiffusion
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from foreign import foreign_model, write_gguf
from scumble.checkpoint import load_checkpoint
from scumble.checkpoint.convert import FORMS, convert
from scumble.model import Transformer
from tiny import prompt, save_folder

EXPERTS = [
    WeightConverter(
        ["experts.*.gate_proj.weight", "experts.*.up_proj.weight"],
        "experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    WeightConverter(["experts.*.down_proj.weight"], "experts.down_proj", operations=[MergeModulelist(dim=0)]),
]
CLOSE = {"rtol": 0, "atol": 2e-4}  # logits of two float32 implementations with the same weights, spread over ± 30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("quantized") / "source", foreign_model(vocab_size=300))


def theirs(folder: Path, **options) -> DiffusionGemmaForBlockDiffusion:
    model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    missing = [key for key in report["missing_keys"] if "vision" not in key]  # the folder has no vision tower
    assert not missing
    assert not report["unexpected_keys"]
    return model.float().eval()  # it leaves experts that were in four bits in bfloat16


def assert_same_logits(model: DiffusionGemmaForBlockDiffusion, ours: Transformer) -> None:
    context, canvas = torch.tensor(prompt(12)), torch.tensor(prompt(8, seed=5))
    with torch.no_grad():
        expected = model(input_ids=context[None], decoder_input_ids=canvas[None]).logits[0]
    cache = ours.new_cache()
    ours.encode(context, cache)
    torch.testing.assert_close(ours.denoise_logits(canvas, cache), expected, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_any_folder_becomes_one_that_transformers_loads(source, tmp_path, form):
    list(convert(source, tmp_path / "few", form))
    list(convert(tmp_path / "few", tmp_path / "plain", "bfloat16"))
    plain = load_checkpoint(tmp_path / "plain", torch.float32)
    few = load_checkpoint(tmp_path / "few", torch.float32).state_dict()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, few[name].bfloat16().float()), name
    assert_same_logits(theirs(tmp_path / "plain"), plain)


def test_a_gguf_file_becomes_a_folder_that_transformers_loads(tmp_path):
    list(convert(write_gguf(tmp_path / "tiny.gguf", "Q4_K").folder, tmp_path / "plain", "bfloat16"))
    ours = load_checkpoint(tmp_path / "plain", torch.float32)
    model = theirs(tmp_path / "plain")
    context = torch.tensor(prompt(12))
    with torch.no_grad():
        expected = model(input_ids=context[None], decoder_input_ids=context[None, :8]).logits[0]
    cache = ours.new_cache()
    ours.encode(context, cache)
    torch.testing.assert_close(ours.denoise_logits(context[:8], cache), expected, **CLOSE)


@pytest.mark.parametrize("form", ["int4", "fp8"])
def test_transformers_dequantizes_what_we_write(source, tmp_path, form):
    """Its reader rounds what it dequantizes to the scales' bfloat16 (not experts in fp8); so do we here."""
    register_checkpoint_conversion_mapping("diffusion_gemma", EXPERTS, overwrite=True)
    list(convert(source, tmp_path / "few", form))
    model = theirs(tmp_path / "few", quantization_config=CompressedTensorsConfig(dequantize=True))
    own, read = load_checkpoint(tmp_path / "few", torch.float32), model.state_dict()
    rounded = {
        name: weight if form == "fp8" and ".experts." in name else weight.bfloat16().float()
        for name, weight in own.state_dict().items()
    }
    for name, weight in rounded.items():
        if "encode_layer_scalar" not in name:
            torch.testing.assert_close(read[f"model.decoder.{name}"].float(), weight, rtol=2e-7, atol=0)
    own.load_state_dict(rounded)
    assert_same_logits(model, own)
