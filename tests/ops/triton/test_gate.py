"""The compile check of all kernels (gate.py), and that it can fail. It runs in a process of its own: kernels that have
been imported for the interpreter cannot be compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scumble
from scumble.ops.triton.launch import ARCHITECTURES, TABLE, Tiles, tile_table

GATE = Path(__file__).with_name("gate.py")


SOURCE = Path(scumble.__file__).parent


def gate(*arguments: str, source: Path = SOURCE) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(source.parent)
    run = subprocess.run(
        [sys.executable, GATE, *arguments], capture_output=True, text=True, env=environment, timeout=1200
    )
    return run.returncode, run.stdout + run.stderr


def test_an_architecture_has_its_own_line_of_the_table_wherever_it_stands(tmp_path: Path) -> None:
    own, rest = "90 = { BM = 128, warps = 8, stages = 3 }", "all = { BM = 64, warps = 4, stages = 3 }"
    for place, lines in enumerate(((own, rest), (rest, own))):
        path = tmp_path / f"{place}.toml"
        path.write_text("\n".join(('[operations."soft"]', *lines)), encoding="utf-8")
        table = tile_table(path)
        assert table[90]["soft"] == Tiles(8, 3, {"BM": 128})
        assert all(table[arch]["soft"] == Tiles(4, 3, {"BM": 64}) for arch in ARCHITECTURES if arch != 90)


def test_every_operation_compiles_for_hopper_and_fits() -> None:
    code, report = gate("--arch", "90", "--brief")
    assert code == 0, report


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "89", "90", "100", "120"])
def test_every_kernel_of_a_pass_compiles_for_every_architecture(arch: str) -> None:
    code, report = gate("--arch", arch)
    assert code == 0, report


MUTATIONS = {
    "too much shared memory": (
        ("[operations.\"up plain\"]", "BM = 32, BN = 64, BK = 64, warps = 4, stages = 4"),
        "BM = 32, BN = 64, BK = 128, warps = 4, stages = 8",
        ("--arch", "120", "--only", "up plain"),
        "of shared memory",
    ),
    "a tile that no registers hold": (
        ("[operations.\"linear plain\"]", "BM = 64, BN = 64, BK = 64, warps = 4, stages = 4"),
        "BM = 256, BN = 256, BK = 32, warps = 4, stages = 2",
        ("--arch", "80", "--only", "linear plain"),
        "spills",
    ),
    "an operation of the table that nothing launches": (
        ("[operations]", "[operations]"),
        "[operations]\n\"fictitious\".all = { warps = 4, stages = 1 }",
        ("--arch", "90", "--brief", "--only", "norm"),
        "no pass launches: fictitious",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_check_can_fail(mutation: str, tmp_path: Path) -> None:
    (section, line), wrong, arguments, message = MUTATIONS[mutation]
    text = TABLE.read_text(encoding="utf-8")
    place = text.index(line, text.index(section))
    table = tmp_path / "tiles.toml"
    table.write_text(text[:place] + wrong + text[place + len(line) :], encoding="utf-8")
    code, report = gate(*arguments, "--tiles", str(table))
    assert code == 1
    assert message in report


def test_products_without_the_tensor_core_are_found() -> None:
    """float32 numbers are multiplied exactly, by ordinary instructions: right for tests, a fault in a pass."""
    code, report = gate("--arch", "90", "--only", "linear plain", "--brief", "--dtype", "float32")
    assert code == 1
    assert "no HGMMA" in report


def mutated(folder: Path, file: str, right: str, wrong: str) -> Path:
    """The package with one line of its kernels changed."""
    kernels = folder / "scumble" / "ops" / "triton"
    kernels.parent.mkdir(parents=True)
    for place, apart in ((SOURCE, "ops"), (SOURCE / "ops", "triton")):
        for path in place.iterdir():
            if path.name != apart:
                (folder / "scumble" / path.relative_to(SOURCE)).symlink_to(path)
    shutil.copytree(SOURCE / "ops" / "triton", kernels)
    text = (kernels / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (kernels / file).write_text(text.replace(right, wrong), encoding="utf-8")
    return folder / "scumble"


DOT = 'total = tl.dot(w, t, total, input_precision="ieee")\n    return total.to(tl.float32)'
WRONG_KERNELS = {
    "products in float32": DOT.replace("w, t,", "w.to(tl.float32), t.to(tl.float32),"),
    "no products": DOT.replace(
        'tl.dot(w, t, total, input_precision="ieee")', "total + tl.sum(w.to(tl.float32), 1)[:, None]"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", WRONG_KERNELS)
def test_kernels_that_lose_the_tensor_core_are_found(mutation: str, tmp_path: Path) -> None:
    source = mutated(tmp_path, "products.py", DOT, WRONG_KERNELS[mutation])
    code, report = gate("--arch", "90", "--brief", "--only", "step plain", source=source)
    assert code == 1
    assert "no HGMMA" in report


@pytest.mark.slow
def test_a_kernel_that_keeps_too_much_in_registers_is_found(tmp_path: Path) -> None:
    """The vocabulary's sweep, with the logits that it keeps stored last instead of first."""
    text = (SOURCE / "ops" / "triton" / "vocab.py").read_text(encoding="utf-8")
    first, used = text.index("    if KEPT:\n"), text.index("    peak = tl.max(z, 0)\n")
    kept, between = text[first:used], text[used : text.index("\n\n@triton.jit\ndef _summary(")]
    source = mutated(tmp_path, "vocab.py", kept + between, between + kept)
    code, report = gate("--arch", "90", "--only", "vocab", source=source)
    assert code == 1
    assert "spills" in report
