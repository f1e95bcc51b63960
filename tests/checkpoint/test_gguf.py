"""GGUF files that ggml's own package writes load as it reads them; damaged ones are refused in one line."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign import ggml_blocks, write_gguf
from scumble import LLM, CheckpointError, GenerationConfig, TokenizerError
from scumble.checkpoint import load_checkpoint, load_config, read_generation_config
from scumble.checkpoint.convert import convert
from scumble.checkpoint.gguf.blocks import BLOCKS, decode
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import chat_templates, token_names, tokenizer_backend
from scumble.cli.info import gather

NAMES = [block.name for block in BLOCKS.values()]


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_blocks_are_decoded_as_ggml_decodes_them(name, seed, rows):
    kind = gguf.GGMLQuantizationType[name]
    array = np.random.default_rng(seed).standard_normal((rows, 512)).astype(np.float32)
    data = np.ascontiguousarray(ggml_blocks(array, kind))
    ours = decode(name, torch.from_numpy(data.view(np.uint8).reshape(-1).copy()), (rows, 512))
    assert np.array_equal(ours.numpy(), gguf.quants.dequantize(data, kind).reshape(rows, 512))


@pytest.mark.parametrize("name", NAMES)
def test_files_load_as_ggml_reads_them(tmp_path, name):
    written = write_gguf(tmp_path / "tiny.gguf", name, stacked=name == "Q8_0")
    loaded = load_checkpoint(written.folder, torch.float32).state_dict()
    assert loaded.keys() == written.meant.keys()
    for weight, meant in written.meant.items():
        torch.testing.assert_close(loaded[weight], meant, rtol=0, atol=0, msg=weight)


def test_the_configuration_comes_from_the_metadata(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16").folder
    config = load_config(file)
    assert [layer.kind for layer in config.layers] == ["sliding_attention", "full_attention"]
    assert [layer.head_dim for layer in config.layers] == [16, 32]
    assert config.full_rope.partial_rotary_factor == 0.25
    assert config.canvas_length == 8
    assert read_generation_config(file) == {"entropy_bound": 0.2}


def test_answers_end_where_the_chat_format_ends_them(tmp_path):
    """The metadata has one end id; <turn|> and <|tool_response> end answers too."""
    assert load_config(write_gguf(tmp_path / "tiny.gguf", "F16").folder).eos_token_ids == (1, 73, 75)


def test_the_tokenizer_comes_from_the_metadata(tmp_path):
    file = read_gguf(write_gguf(tmp_path / "tiny.gguf", "F16").folder)
    backend = tokenizer_backend(file)
    tokens = backend.encode("<|turn>ab abC", add_special_tokens=False).tokens
    assert tokens == ["<|turn>", "ab", "▁ab", "<0x43>"]
    assert backend.decode(backend.encode("ab abC", add_special_tokens=False).ids) == "ab abC"
    assert token_names(file) == {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    assert chat_templates(file) == {"default": "{{ messages[0].content }}"}


def test_a_file_answers_as_a_folder_does(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16").folder
    llm, config = LLM.load(file), GenerationConfig(max_new_tokens=8, seed=1, max_denoising_steps=2)
    assert llm.encode_chat([{"role": "user", "content": "ab ab"}]) == [71, 72]
    assert isinstance(llm.chat([{"role": "user", "content": "ab ab"}], config).text, str)
    list(convert(file, tmp_path / "folder", "int8"))
    folder = LLM.load(tmp_path / "folder")
    assert folder.encode_prompt("ab ab") == llm.encode_prompt("ab ab") == [2, 71, 72]
    assert folder.chat_template.source == llm.chat_template.source
    assert folder.defaults == llm.defaults


def test_a_template_for_tools_may_be_a_second_one(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16", {"tokenizer.chat_template.tool_use": "tools"}).folder
    list(convert(file, tmp_path / "folder", "int8"))
    for path in (file, tmp_path / "folder"):
        assert LLM.load(path).chat_template.tool_source == "tools"


def test_a_file_without_a_tokenizer_works_on_ids(tmp_path):
    lacking = ("model", "tokens", "token_type", "merges")
    file = write_gguf(tmp_path / "tiny.gguf", "F16", {f"tokenizer.ggml.{name}": None for name in lacking}).folder
    llm = LLM.load(file)
    assert llm.generate_ids([2, 5], GenerationConfig(max_new_tokens=4, max_denoising_steps=1)).token_ids
    with pytest.raises(TokenizerError, match="has no tokenizer; text needs one"):
        llm.generate("a")


def test_a_tokenizer_of_another_kind_is_named(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16", {"tokenizer.ggml.model": "gpt2"}).folder
    with pytest.raises(TokenizerError, match=r"tokenizer.ggml.model must be 'gemma4', found 'gpt2'"):
        LLM.load(file)


def test_the_commands_take_a_file(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16").folder
    talk = [sys.executable, "-m", "scumble", "chat", "--model", str(file), "--max-new-tokens", "4", "--no-live"]
    done = subprocess.run(talk, input="ab\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = gather(file)
    assert facts["tokenizer_tokens"] == 97
    assert facts["chat_template"] == "own"


# --- what is refused ------------------------------------------------------------------------------------------------


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"diffusion.canvas_length": None}, "diffusion.canvas_length must be a whole number, found None"),
        ({"diffusion-gemma.block_count": 2**31}, "block_count must be a whole number > 0"),
        ({"diffusion-gemma.block_count": 1001}, "block_count must be in 1 … 1000"),
        ({"diffusion-gemma.attention.head_count_kv": [2]}, "must be a list of 2 values of type int, found [2]"),
        ({"diffusion-gemma.expert_count": 7}, "router.per_expert_scale has the wrong shape: expected [7]"),
        ({"general.alignment": 48}, "general.alignment must be a power of two"),
        ({"tokenizer.ggml.eos_token_id": "one"}, "tokenizer.ggml.eos_token_id must be a whole number"),
    ],
)
def test_metadata_out_of_range_is_named(tmp_path, metadata, message):
    assert message in refusal(write_gguf(tmp_path / "tiny.gguf", "F16", metadata).folder)


def test_another_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "general.architecture must be 'diffusion-gemma', found 'llama'" in refusal(tmp_path / "other.gguf")


def test_merges_that_make_no_token_are_refused(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "F16", {"tokenizer.ggml.merges": ["a c"]}).folder
    with pytest.raises(TokenizerError, match="must join two tokens to a third"):
        tokenizer_backend(read_gguf(file))


def header(*parts: object) -> bytes:
    """Whole numbers as u64, (number,) as u32, texts with their length before them, bytes as they are."""
    out = b"GGUF" + struct.pack("<I", 3)
    for part in parts:
        if isinstance(part, int):
            out += struct.pack("<Q", part)
        elif isinstance(part, tuple):
            out += struct.pack("<I", *part)
        else:
            out += part.encode() if isinstance(part, str) else bytes(part)  # type: ignore[call-overload]
    return out


HUGE = 2**64 - 1
TENSOR = (1, 0, 1, "w", (1,))  # one tensor called w, of one axis; its size, type and offset follow
BAD = {
    "not GGUF": (b"PK\3\4" + bytes(60), "does not begin with 'GGUF'"),
    "empty": (b"", "cannot be read as GGUF"),
    "old version": (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version must be 2 or 3, found 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "(big-endian?)"),
    "tensors beyond the file": (header(HUGE, 0) + bytes(64), f"says that it has {HUGE} tensors"),
    "entries beyond the file": (header(0, HUGE) + bytes(64), f"says that it has {HUGE} metadata entries"),
    "a key of 2⁶⁴ bytes": (header(0, 1, HUGE) + bytes(64), "a metadata key must have 1 … 4096 bytes"),
    "a text of 2⁶⁴ bytes": (header(0, 1, 1, "k", (8,), HUGE) + bytes(64), "bytes of a text in k"),
    "a list of 2⁶² numbers": (header(0, 1, 1, "k", (9,), (4,), 2**62) + bytes(64), "numbers in k, more than fit"),
    "a list of 2⁶⁰ texts": (header(0, 1, 1, "k", (9,), (8,), 2**60) + bytes(64), "texts in k, more than fit"),
    "lists of lists": (header(0, 1, 1, "k", (9,), (9,), 1) + bytes(64), "lists of lists are not read"),
    "an unknown type": (header(0, 1, 1, "k", (77,)) + bytes(64), "metadata 'k' has unknown type 77"),
    "not UTF-8": (header(0, 1, 1, b"\xff", (0,)) + bytes(64), "is not UTF-8"),
    "a key twice": (header(0, 2, 1, "k", (0,), b"\1", 1, "k", (0,), b"\1") + bytes(64), "'k' is there twice"),
    "no axes": (header(1, 0, 1, "w", (0,)) + bytes(64), "must have 1 … 4 axes, found 0"),
    "an axis of 2⁶⁴": (header(*TENSOR, HUGE, (0,), 0) + bytes(64), "has an absurd shape"),
    "sizes whose product overflows": (
        header(1, 0, 1, "w", (3,), 2**32, 2**31, 4, (0,), 0) + bytes(64), "has an absurd shape"
    ),
    "half a block": (header(*TENSOR, 48, (8,), 0) + bytes(256), "rows of 48 are not whole blocks of 32"),
    "an unknown format": (header(*TENSOR, 32, (99,), 0) + bytes(256), "has type 99, which is not read"),
    "an offset beyond the file": (header(*TENSOR, 32, (0,), 2**63) + bytes(256), "ends at byte"),
    "an offset that overflows": (header(*TENSOR, 32, (0,), HUGE - 31) + bytes(256), "ends at byte"),
    "an offset out of line": (header(*TENSOR, 32, (0,), 4) + bytes(256), "is not a multiple of 32"),
    "tensors that overlap": (
        header(2, 0, 1, "w", (1,), 32, (0,), 0, 1, "v", (1,), 32, (0,), 32) + bytes(512), "w and v overlap"
    ),
    "a tensor twice": (
        header(2, 0, 1, "w", (1,), 8, (0,), 0, 1, "w", (1,), 8, (0,), 32) + bytes(512), "tensor w is there twice"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD)
def test_damaged_headers_are_refused_in_one_line(tmp_path, damage):
    data, message = BAD[damage]
    (tmp_path / "bad.gguf").write_bytes(data)
    assert message in refusal(tmp_path / "bad.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", "Q4_0").folder
    data = file.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(data) - 32, len(data) // 40)]:
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        refusal(tmp_path / "cut.gguf")


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_flipped_bytes_of_a_header_never_escape_as_something_else(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.gguf"
    if not whole.exists():
        write_gguf(whole, "Q4_0")
    changed = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    (folder / "flipped.gguf").write_bytes(changed)
    with suppress(CheckpointError):
        load_checkpoint(folder / "flipped.gguf")
