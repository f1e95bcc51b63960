"""Memory: what a model needs, what control groups and the machine leave, and the refusal between the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foreign import foreign_model, write_gguf
from scumble import LLM, CheckpointError
from scumble.checkpoint import load_checkpoint, memory, read_contents
from scumble.checkpoint.convert import convert
from scumble.checkpoint.memory import Available, available_here, needed, needed_as_stored, weights_as_stored
from scumble.cli.main import main
from tiny import save_folder, tiny_model

GIB = 2**30


def machine(root: Path, files: dict[str, object]) -> Path:
    """A root folder with these files; MemAvailable is 16 GiB unless they say otherwise."""
    for name, content in {"proc/meminfo": f"MemFree: 5 kB\nMemAvailable: {16 * 2**20} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}")
    return root


def left(root: Path) -> int:
    room = available_here(root)
    assert room is not None
    return room.bytes


# --- what there is ----------------------------------------------------------------------------------------------------


def test_without_limits_it_is_what_the_machine_has_free(tmp_path):
    assert left(machine(tmp_path, {})) == 16 * GIB


def test_a_limit_of_version_2_counts_what_is_used_less_what_can_be_dropped(tmp_path):
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": 4 * GIB,
        "sys/fs/cgroup/memory.current": 3 * GIB,
        "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\nslab 7",
    }
    assert available_here(machine(tmp_path, files)) == Available(5 * GIB // 2, "left by this process's memory limit")


def test_a_limit_of_version_1(tmp_path):
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 9 * GIB,
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 8 * GIB,
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": 7 * GIB,
        "sys/fs/cgroup/memory/a/memory.stat": f"active_file 1\ntotal_active_file {GIB}",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": 8 * GIB,
        "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": GIB,
    }
    assert left(machine(tmp_path, files)) == 2 * GIB  # that of the group above is the tightest


def test_no_limit_in_words_and_a_limit_that_is_passed(tmp_path):
    files = {
        "proc/self/cgroup": "0::/a",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.current": GIB,
        "sys/fs/cgroup/a/memory.max": GIB,
        "sys/fs/cgroup/a/memory.current": 2 * GIB,
    }
    assert left(machine(tmp_path, files)) == 0


def test_in_a_container_the_path_is_not_there_and_its_own_group_is_the_top(tmp_path):
    files = {
        "proc/self/cgroup": "0::/system.slice/docker-1f.scope",
        "sys/fs/cgroup/memory.max": 3 * GIB,
        "sys/fs/cgroup/memory.current": GIB,
    }
    assert left(machine(tmp_path, files)) == 2 * GIB


def test_the_machine_may_have_less_than_the_limit_allows(tmp_path):
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": 64 * GIB,
        "sys/fs/cgroup/memory.current": GIB,
    }
    assert available_here(machine(tmp_path, files)) == Available(16 * GIB, "free on this machine")


def test_a_system_that_says_nothing(tmp_path):
    assert available_here(tmp_path) is None


# --- what is needed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_needed_are_the_weights_and_the_cache_of_1000_tokens(tmp_path, dtype):
    model = tiny_model()
    found = read_contents(save_folder(tmp_path / "m", model))
    numbers = sum(weight.numel() for weight in model.state_dict().values())
    cached = 2 * (5 * 2 * 8 + 5 * 2 * 8 + 1000 * 16)  # keys and values: two sliding layers of window 6, a full one
    assert needed(found.config, found.shapes, dtype) == (numbers + cached) * dtype.itemsize


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantizing_needs_one_layer_in_bfloat16_as_well(tmp_path, form):
    found = read_contents(save_folder(tmp_path / "m", tiny_model()))
    layer = max(
        sum(w.numel() for name, w in tiny_model().state_dict().items() if name.startswith(f"layers.{i}."))
        for i in range(3)
    )
    model = tiny_model(dtype=torch.bfloat16).convert(form)
    assert model.quantized == form
    smallest = needed(found.config, found.shapes, form)
    assert 2 * layer < smallest < needed(found.config, found.shapes, "bfloat16") + 2 * layer + 100_000


@pytest.mark.parametrize("form", ["int4", "int8", "fp8", "nvfp4", "Q4_0", "Q4_K", "Q8_0"])
def test_a_folder_in_few_bits_needs_what_it_takes_as_it_is_stored(tmp_path, form):
    if form.startswith("Q"):
        folder = write_gguf(tmp_path / "tiny.gguf", form).folder
    else:
        source = save_folder(tmp_path / "source", foreign_model(vocab_size=300))
        list(convert(source, folder := tmp_path / "out", form))
    found, model = read_contents(folder), load_checkpoint(folder)
    taken = model.nbytes
    assert taken <= weights_as_stored(found.plan) * 1.04  # rows of so small matrices are padded
    assert weights_as_stored(found.plan) < 1.12 * taken
    assert needed_as_stored(found.config, found.plan) > taken


def test_a_table_that_operations_pack_is_counted_twice(tmp_path):
    found = read_contents(save_folder(tmp_path / "m", tiny_model(dtype=torch.bfloat16)))
    once, twice = (needed(found.config, found.shapes, "bfloat16", packs=packs) for packs in (False, True))
    assert twice - once == 2 * 97 * 32


# --- the refusal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    shape = {"hidden_size": 128, "moe_intermediate_size": 256, "intermediate_size": 256, "num_experts": 8}
    return save_folder(tmp_path / "checkpoint", tiny_model(**shape))


def leave(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(memory, "available_here", lambda: Available(count, "free on this machine"))


def test_a_model_that_does_not_fit_is_refused_and_a_format_named_that_does(folder, monkeypatch):
    found = read_contents(folder)
    sizes = {form: needed(found.config, found.shapes, form) for form in ("float32", "int8", "int4")}
    assert sizes["int8"] < sizes["float32"]
    leave(monkeypatch, sizes["int8"])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, torch.float32)
    message = str(caught.value)
    assert message.startswith(f"{folder}: needs 1")
    assert " of memory in float32, and " in message
    assert "are available (free on this machine); would fit: dtype " in message
    assert "int8 (" in message
    assert "int4 (" in message
    assert "float32 (" not in message
    load_checkpoint(folder, "int8")


def test_where_nothing_fits_the_smallest_is_named(folder, monkeypatch):
    leave(monkeypatch, 1000)
    with pytest.raises(CheckpointError, match=r"1\.0 kB are available .* no format would fit: int4, the smallest"):
        load_checkpoint(folder)


def test_the_check_can_be_switched_off(folder, monkeypatch):
    leave(monkeypatch, 1000)
    monkeypatch.setenv("SCUMBLE_MEMORY_CHECK", "0")
    load_checkpoint(folder)


def test_a_system_that_says_nothing_refuses_nothing(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_here", lambda: None)
    load_checkpoint(folder)


def test_no_weight_is_read_before_the_small_files_are_checked(folder, monkeypatch):
    monkeypatch.setattr("scumble.llm.load_checkpoint", lambda *_: pytest.fail("weights were read"))
    (folder / "generation_config.json").write_text('{"t_min": -1}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        LLM.load(folder)
    leave(monkeypatch, 1000)


def test_info_says_which_formats_fit(folder, monkeypatch, capfd):
    found = read_contents(folder)
    leave(monkeypatch, needed(found.config, found.shapes, "int8"))
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["fits"] == {"float32": False, "bfloat16": facts["fits"]["bfloat16"], "int8": True, "int4": True}
    assert facts["memory_available"]["limit"] == "free on this machine"
    assert main(["info", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "does not fit here" in out
    assert "available here" in out


@pytest.mark.parametrize("dtype", [torch.float16, "int8"])
def test_memory_that_runs_out_while_loading_is_said_in_sizes(dtype, tmp_path, monkeypatch):
    """Somebody else took it after the check."""
    save_folder(tmp_path, tiny_model())

    def full(entry, dtype, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore for experts")

    monkeypatch.setattr("scumble.checkpoint.load.read_entry", full)
    with pytest.raises(CheckpointError, match=r"does not suffice: CUDA .* 2\.00 GiB\.; .* available .*dtype") as caught:
        load_checkpoint(tmp_path, dtype)
    assert "experts" not in str(caught.value)
