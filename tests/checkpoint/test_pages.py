"""Pages of a mapped file that are let go: less memory, the same numbers; other memory is left alone."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foreign import foreign_model
from scumble.checkpoint import load_checkpoint
from scumble.checkpoint.convert import convert
from scumble.checkpoint.files import read_header, read_mapped
from scumble.checkpoint.pages import let_go
from tiny import save_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident(tensor: torch.Tensor) -> int:
    """Kilobytes of the mapping that a tensor lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            first, last = (int(one, 16) for one in words[0].split("-"))
            inside = first <= tensor.data_ptr() < last
        elif inside and words[0] == "Rss:":
            return int(words[1])
    raise AssertionError("the tensor is nowhere")


def test_a_mapped_tensor_leaves_memory_and_reads_as_before(tmp_path):
    whole = torch.randn(1024, 1024)
    save_file({"w": whole}, tmp_path / "w.safetensors")
    (mapped,) = read_mapped(tmp_path / "w.safetensors", [read_header(tmp_path / "w.safetensors")["w"]])
    assert torch.equal(mapped, whole)
    assert resident(mapped) > 4000
    let_go(mapped)
    assert resident(mapped) < 100
    assert torch.equal(mapped, whole)


@pytest.mark.parametrize("shape", [(1024, 1024), (3,), (0,)])
def test_memory_of_another_kind_keeps_its_numbers(shape):
    tensor = torch.randn(shape)
    before = tensor.clone()
    let_go(tensor)
    assert torch.equal(tensor, before)


def test_the_table_of_a_folder_in_few_bits_is_not_held_beside_its_copies(tmp_path):
    source = save_folder(tmp_path / "source", foreign_model(vocab_size=20_000))
    list(convert(source, tmp_path / "few", "int4"))
    table = load_checkpoint(tmp_path / "few").embed_tokens
    assert table.head is not None
    assert resident(table.weight) < table.weight.nbytes / 1024 / 2
    assert torch.equal(table.weight[7], load_checkpoint(source).embed_tokens.weight[7].to(table.weight.dtype))
