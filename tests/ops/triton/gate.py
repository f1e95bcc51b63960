"""Compiles every kernel that a pass of the release's shape launches, for every architecture, without a card.

    python tests/ops/triton/gate.py                          # all architectures, all operations: a table
    python tests/ops/triton/gate.py --arch 90 --only up      # a part of it; --tiles FILE takes another table of tiles

What would not run as meant is named, and the exit code is 1:
  - it does not compile, or an operation of the table launches nothing here;
  - it wants more shared memory than a block may have on that card;
  - it spills registers to memory (STL and LDL in the machine code);
  - it stores nothing, as where the compiler makes an empty kernel of it;
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

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel's module is imported
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[3] / "src"))  # from a clone; last, since tests hand in other packages

import torch
import triton

from ops.triton.release import launches
from scumble.ops.triton.ahead import compiled, described
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


@dataclass(frozen=True)
class Verdict:
    """What the machine code of one kernel on one architecture needs, and what is wrong with it."""

    registers: int
    shared: int
    spills: int
    tensor_core: int
    faults: tuple[str, ...]


def check(launch: Launch, arch: int) -> Verdict:
    """Compile and look."""
    try:
        with silenced():
            code = compiled(launch, arch)
    except Exception as error:  # whatever the compiler raises is a fault of the kernel
        return Verdict(0, 0, 0, 0, (f"does not compile: {str(error).strip().splitlines()[-1][:160]}",))
    text, registers = machine_code(code.asm["cubin"])
    spills = len(re.findall(r"\b(?:STL|LDL)\b", text))
    wanted = TENSOR_CORE[arch] + ("|HMMA" if launch.name.startswith(NARROW) else "")
    wanted += "|IMMA" if launch.name.endswith("int8") else ""  # Blackwell's own instructions have no int8 in Triton
    tensor_core = len(re.findall(rf"\b(?:{wanted})\b", text))
    shared = code.metadata.shared
    faults = []
    if shared > SHARED[arch]:
        faults.append(f"wants {shared} bytes of shared memory, sm_{arch} has {SHARED[arch]}")
    if spills:
        faults.append(f"spills: {spills} loads and stores")
    if not re.search(r"\b(?:STG|UTMASTG|UBLKCP)\b", text):
        faults.append("stores nothing: its code is empty")
    elif launch.name.startswith(PRODUCTS) and not tensor_core:
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
    return list({f"{launch.name} {described(launch)}": launch for launch in reversed(launches)}.values())[::-1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile all kernels for all architectures and check their code.")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--brief", action="store_true", help="one kernel an operation, not one a shape")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of activations")
    parser.add_argument("--tiles", type=Path, default=TABLE, help="a table like tiles.toml")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    faults = count = 0
    start = time.perf_counter()
    for arch in arguments.arch or ARCHITECTURES:
        recorded = launches(arch, arguments.tiles, getattr(torch, arguments.dtype))
        wanted = [one for one in recorded if arguments.only in one.name]
        if arguments.brief:
            wanted = list({one.name: one for one in wanted}.values())
        for launch in distinct(wanted):
            verdict = check(launch, arch)
            count += 1
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
    print(f"{count} kernels in {time.perf_counter() - start:.0f} s, {faults} faults")
    return 1 if faults or not count else 0


if __name__ == "__main__":
    sys.exit(main())
