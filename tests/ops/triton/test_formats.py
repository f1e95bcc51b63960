"""Folders that other tools stored in few bits, loaded for a card: the same numbers, in the card's layouts, copied there
from the map; and whole generations with them as the reference writes them.

The loader is told that the kernels serve here: in Triton's interpreter, where there is no card.
"""

from __future__ import annotations

import pytest
import torch

from checkpoint.test_keep import EIGHT_BITS, FOUR_BITS, ROUNDED
from ops.triton.test_products import numbers_of
from scumble import GenerationConfig
from scumble.checkpoint import load_checkpoint
from scumble.errors import InvalidRequest
from scumble.formats.on_card import CardExperts, CardWeight
from scumble.model import Transformer
from scumble.ops import REFERENCE, ReferenceOps, triton
from scumble.ops.triton.activations import for_format_reference
from scumble.ops.triton.ops import TritonOps
from tiny import answer, prompt, save_folder, tiny_model

# All sizes are no multiples of tiles, and inputs of half a block.
REST = ("int8", "nvfp4")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}


@pytest.fixture(autouse=True)
def _kernels_serve_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unfit", lambda device, dtype, config: None)
    monkeypatch.setattr(triton, "make", lambda device, dtype, config: TritonOps(device=device))
    monkeypatch.setenv("SCUMBLE_OPS", "triton")


def card_weights(model: Transformer) -> dict[str, torch.Tensor]:
    """The numbers that products on the card see, by the names of a checkpoint's weights."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, CardWeight):
            out[f"{name}.weight"] = module.packed.matrix.dequantized().float()
        elif isinstance(module, CardExperts):
            out[f"{name}.gate_up_proj"] = module.packed.up.dequantized().float()
            out[f"{name}.down_proj"] = module.packed.down.dequantized().float()
    return out


@pytest.mark.parametrize("name", [*FOUR_BITS, *EIGHT_BITS, "fp8 tensor", "fp8 channel"])
def test_what_a_folder_stores_lies_on_the_card(name: str, tmp_path, device: torch.device) -> None:
    """Nothing is rounded but what every product rounds: four-bit numbers to bfloat16, with their scales."""
    written = ({**FOUR_BITS, **EIGHT_BITS, **ROUNDED})[name](tmp_path)
    model = load_checkpoint(written.folder, device=device)
    found = card_weights(model)
    assert len(found) >= 4
    prefix = "" if written.folder.suffix == ".gguf" else "model.decoder."
    exact = name in EIGHT_BITS or name.startswith("fp8")
    for key, numbers in found.items():
        wanted = written.meant.get(prefix + key)
        if wanted is not None and not (name == "Q4_K" and "o_proj" in key):  # too narrow for Q4_K, stored in Q5_0
            error = float((numbers.cpu() - wanted).norm() / wanted.norm())
            assert error < (1e-6 if exact else 3e-3), key
    assert any("the same numbers" in line for line in model.load_report.runs_as)


def test_what_no_product_takes_is_rounded_anew(tmp_path, device: torch.device) -> None:
    model = load_checkpoint(ROUNDED["fp8 block"](tmp_path).folder, device=device)
    assert {weight.format for _, _, weight in model.weights()} == {"fp8", "float"}  # some are stored in float
    assert all("→ fp8, rounded anew" in line for line in model.load_report.runs_as)


class RoundingOps(ReferenceOps):
    """Plain torch, which rounds activations on their way into products as a format on the card does."""

    def __init__(self, form: str):
        self.form = form

    def rounded(self, x: torch.Tensor, form: str) -> torch.Tensor:
        return x if form == "int4" else numbers_of(for_format_reference(x, form), form).to(x.dtype)

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return super().linear(self.rounded(x, "fp8" if self.form == "nvfp4" else self.form), weight)

    def experts(self, x, weights, chosen, gate_up, down) -> torch.Tensor:
        slots = torch.zeros(*chosen.shape, x.shape[1])
        for expert in range(len(down)):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (self.rounded(x[token], self.form) @ gate_up[expert].T).chunk(2, dim=-1)
            slots[token, place] = (self.rounded(self.geglu(gate, up), self.form) @ down[expert].T).float()
        return (slots * weights[:, :, None]).sum(1).to(x.dtype)


def plain(model: Transformer, form: str, dtype: torch.dtype) -> Transformer:
    """A model of the very numbers that the card's products see, for plain torch."""
    copy = Transformer(model.config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "_proj" not in name}
    weights |= card_weights(model)
    copy.load_state_dict({name: tensor.float().cpu() for name, tensor in weights.items()})
    copy = copy.to(dtype).eval().requires_grad_(False).use(RoundingOps(form))
    copy.embed_tokens.ops = REFERENCE  # the table is not in few bits
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return save_folder(tmp_path_factory.mktemp("model"), tiny_model(dtype=torch.bfloat16, **SIZES))


@pytest.mark.parametrize("form", ["int4", "fp8", *(pytest.param(form, marks=pytest.mark.slow) for form in REST)])
def test_passes_stay_within_the_roundings_of_bfloat16(form: str, folder, device: torch.device) -> None:
    """Beside plain torch on the same numbers in float32, the kernels are no further off than plain torch in bfloat16,
    by more than half."""
    model = load_checkpoint(folder, form, device)
    ids, canvas = torch.tensor(prompt(7, 5)), torch.tensor(prompt(8, 6))

    def logits(model: Transformer) -> torch.Tensor:
        cache = model.new_cache()
        model.encode(ids, cache)
        return model.denoise_logits(canvas, cache, model.denoise_logits(canvas, cache)).cpu()

    exact = logits(plain(model, form, torch.float32))
    ours, reference = logits(model), logits(plain(model, form, torch.bfloat16))
    assert float((ours - exact).norm()) < 1.5 * float((reference - exact).norm())


@pytest.mark.parametrize("form", ["int4", pytest.param("fp8", marks=pytest.mark.slow)])
def test_whole_generations_are_the_references(form: str, device: torch.device) -> None:
    """Token for token, with weights in a format and all else in float32."""
    model = tiny_model(**SIZES).to(device).use(TritonOps(device=device)).convert(form)
    config = GenerationConfig(max_new_tokens=8, canvas_length=4, seed=1, max_denoising_steps=2, ignore_eos=True)
    found, wanted = (answer(one, [prompt(5, 1)], config) for one in (model, plain(model, form, torch.float32)))
    assert found[0]["ids"] == wanted[0]["ids"]
    assert len(found[0]["ids"]) == 8


def test_formats_that_do_not_run_on_a_cpu_say_where_they_do(folder, monkeypatch) -> None:
    monkeypatch.setenv("SCUMBLE_OPS", "reference")
    with pytest.raises(InvalidRequest, match="dtype fp8 cannot run on cpu with the reference operations; there: "):
        load_checkpoint(folder, "fp8")
