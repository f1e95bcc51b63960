"""Compiles every kernel that a pass of the release's shape launches, for every architecture, without a card.

    python tests/ops/triton/gate.py                          # all architectures, all operations: a table
    python tests/ops/triton/gate.py --arch 90 --only up      # a part of it; --tiles FILE takes another table of tiles

What would not run as meant is named, and the exit code is 1:
  - it does not compile, or an operation of the table launches nothing here;
  - it wants more shared memory than a block may have on that card;
  - it spills registers to memory (STL and LDL in the machine code);
  - it multiplies matrices without the tensor-core instructions of that card.
What is compiled is what is launched: the host code runs on tensors without memory and its launches are recorded. That
it runs at all there also shows that nothing in it waits for the device: such a tensor has no values to wait for.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel's module is imported
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[3] / "src"))  # from a clone; last, since tests hand in other packages

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ops.triton.release import launches
from scumble.ops.triton.launch import ARCHITECTURES, TABLE, Launch, tile_table

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Shared memory that one block may ask for, bytes (CUDA C++ programming guide, technical specifications).
SHARED = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
TENSOR_CORE = {
    80: "HMMA",
    89: "HMMA|QMMA",
    90: "HGMMA|QGMMA|IGMMA",
    100: "UTC[A-Z]*MMA",
    120: "HMMA|QMMA|OMMA",
}
# Operations that multiply matrices, by the beginnings of their names.
PRODUCTS = "up", "down", "linear", "step", "attend", "router", "vocab", "pick", "again", "members", "soft"
# A few rows fill none of the wide instructions of Hopper and Blackwell: attention of single steps uses the older ones.
NARROW = "step attend", "router", "pick", "again", "members"
TYPES = {
    torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.float8_e4m3fn: "fp8e4nv",
    torch.uint8: "u8", torch.int8: "i8", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the machine code of one kernel on one architecture needs, and what is wrong with it."""

    registers: int
    shared: int
    spills: int
    tensor_core: int
    faults: tuple[str, ...]


def source(launch: Launch) -> ASTSource:
    """The kernel with its arguments' types, as a launch would specialize it."""
    names, params = launch.kernel.arg_names, launch.kernel.params
    constants = dict(launch.constants)
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if not params[index].do_not_specialize_on_alignment:
                aligned[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not params[index].do_not_specialize:
            constants[name] = 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not params[index].do_not_specialize:
                aligned[(index,)] = [["tt.divisibility", 16]]
    missing = [name for name in names if name not in signature and name not in constants]
    if missing:
        raise ValueError(f"{launch.name}: the launch gives no {', '.join(missing)}")
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: signature.get(name, "constexpr") for name in names}
    return ASTSource(launch.kernel, signature, constexprs=constants, attrs=aligned)


def check(launch: Launch, arch: int) -> Verdict:
    """Compile and look."""
    options = {"num_warps": launch.tiles.warps, "num_stages": launch.tiles.stages, "enable_fp_fusion": False}
    try:
        with silenced():
            compiled = triton.compile(source(launch), target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # whatever the compiler raises is a fault of the kernel
        return Verdict(0, 0, 0, 0, (f"does not compile: {str(error).strip().splitlines()[-1][:160]}",))
    code, registers = machine_code(compiled.asm["cubin"])
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    wanted = TENSOR_CORE[arch] + ("|HMMA" if launch.name.startswith(NARROW) else "")
    wanted += "|IMMA" if launch.name.endswith("int8") else ""  # Blackwell's own instructions have no int8 in Triton
    tensor_core = len(re.findall(rf"\b(?:{wanted})\b", code))
    shared = compiled.metadata.shared
    faults = []
    if shared > SHARED[arch]:
        faults.append(f"wants {shared} bytes of shared memory, sm_{arch} has {SHARED[arch]}")
    if spills:
        faults.append(f"spills: {spills} loads and stores")
    if launch.name.startswith(PRODUCTS) and not tensor_core:
        faults.append(f"no {wanted} in its code")
    return Verdict(registers, shared, spills, tensor_core, tuple(faults))


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, nothing reaches stderr: where a pass of the compiler fails it prints the whole program."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def machine_code(cubin: bytes) -> tuple[str, int]:
    """Disassembly, and registers a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
    found = re.search(r"REG:(\d+)", usage.stdout + usage.stderr)
    return code, int(found[1]) if found else 0


def distinct(launches: list[Launch]) -> list[Launch]:
    """Launches that compile to different code."""
    seen: dict[str, Launch] = {}
    for launch in launches:
        types = [
            value.dtype
            if isinstance(value, torch.Tensor)
            else (value >= 2**31, not param.do_not_specialize and (value == 1, value % 16 == 0))
            for value, param in zip(launch.arguments, launch.kernel.params, strict=False)
            if not isinstance(value, float)
        ]
        key = f"{launch.kernel.__name__} {types} {sorted(launch.constants.items())} {launch.tiles}"
        seen.setdefault(key, launch)
    return list(seen.values())


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile all kernels for all architectures and check their code.")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--brief", action="store_true", help="one kernel an operation, not one a shape")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of activations")
    parser.add_argument("--tiles", type=Path, default=TABLE, help="a table like tiles.toml")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    faults = compiled = 0
    start = time.perf_counter()
    for arch in arguments.arch or ARCHITECTURES:
        recorded = launches(arch, arguments.tiles, getattr(torch, arguments.dtype))
        wanted = [one for one in recorded if arguments.only in one.name]
        if arguments.brief:
            wanted = list({one.name: one for one in wanted}.values())
        for launch in distinct(wanted):
            verdict = check(launch, arch)
            compiled += 1
            faults += len(verdict.faults)
            print(
                f"sm_{arch:<4} {launch.name:24} {verdict.registers:4} registers {verdict.shared:7} shared "
                f"{verdict.tensor_core:4} tensor core  {'; '.join(verdict.faults) or 'ok'}",
                flush=True,
            )
        idle = sorted(set(tile_table(arguments.tiles)[arch]) - {launch.name for launch in recorded})
        if idle:
            faults += 1
            print(f"sm_{arch}: the table has operations that no pass launches: {', '.join(idle)}")
    print(f"{compiled} kernels in {time.perf_counter() - start:.0f} s, {faults} faults")
    return 1 if faults or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
