"""Which operations serve: the quickest that can, or the named one; and the reasons, for people."""

import subprocess
import sys

import pytest
import torch

from scumble import LLM
from scumble.errors import InvalidRequest
from scumble.ops import REFERENCE, choose
from scumble.ops.cpu import native
from tiny import save_folder, tiny_config, tiny_model

needs_kernels = pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX-512 BF16")


@pytest.fixture(autouse=True)
def nobody_names_one(monkeypatch):
    monkeypatch.delenv("SCUMBLE_OPS", raising=False)


@needs_kernels
def test_the_kernels_serve_bfloat16_on_a_cpu():
    choice = choose("cpu", torch.bfloat16, tiny_config())
    assert (choice.ops.name, choice.forced, choice.line()) == ("cpu", False, "operations: cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "changes", "reason"),
    [
        ("meta", torch.bfloat16, {}, "the device is meta"),
        ("cpu", torch.float32, {}, "the model is in float32"),
        ("cpu", torch.bfloat16, {"moe_intermediate_size": 11}, "moe_intermediate_size is 11"),
    ],
)
def test_what_they_cannot_serve_the_reference_does_and_says_why(device, dtype, changes, reason):
    choice = choose(device, dtype, tiny_config(**changes))
    assert choice.ops is REFERENCE
    assert choice.line().startswith(f"operations: reference (not cpu: {reason}")
    with pytest.raises(InvalidRequest, match=reason):
        choose(device, dtype, tiny_config(**changes), "cpu")


def test_one_can_be_named(monkeypatch, tmp_path):
    folder = save_folder(tmp_path / "model", tiny_model(dtype=torch.bfloat16))
    assert LLM.load(folder, ops="reference").model.ops is REFERENCE
    monkeypatch.setenv("SCUMBLE_OPS", "reference")
    assert LLM.load(folder).model.ops is REFERENCE
    assert choose("cpu", torch.bfloat16).line() == "operations: reference (asked for)"


def test_unknown_names_are_refused_with_those_there_are(monkeypatch):
    with pytest.raises(InvalidRequest, match=r"ops must be one of auto, .*reference; found 'gpu'"):
        choose("cpu", torch.bfloat16, name="gpu")
    monkeypatch.setenv("SCUMBLE_OPS", "fast")
    with pytest.raises(InvalidRequest, match="SCUMBLE_OPS must be one of"):
        choose("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("native.processor_features = lambda: frozenset()", "this processor lacks avx512f"),
        ("native.shutil.which = lambda name: None", "found no C++ compiler"),
        ("native.build = lambda compiler: native.Path('/nowhere.so')", "cannot be built or loaded"),
    ],
)
def test_without_kernels_torch_serves(change, word):
    code = (
        "from scumble.ops.cpu import native\n"
        "native.processor_features = lambda: frozenset(native.NEEDED)\n"
        f"{change}\n"
        "import torch; from scumble.ops import choose; print(choose('cpu', torch.bfloat16).line())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "operations: reference (not cpu: " in found.stdout
    assert word in found.stdout


def test_a_converted_model_gets_operations_that_fit():
    model = tiny_model(dtype=torch.bfloat16)
    model.use(choose("cpu", torch.bfloat16, model.config).ops)
    assert model.float().layers[0].mlp.ops is model.ops is REFERENCE
