"""Kernels compiled before they are launched, many at once.

Triton compiles a kernel where it is launched for the first time, one after the other, a second each, and keeps it on
disk. What a program will launch is known before: its launches, recorded on tensors without memory. Here processes of
their own, each with a part of them, put them into Triton's cache. They go through the very code that a launch goes
through, up to the launch, so a launch finds them there; and they need no card, only its number.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from scumble.ops.triton.launch import Launch, Tiles

SECONDS = 120  # for all processes; what is left then is compiled at its launch


class Card:
    """All that Triton asks of a driver before it compiles. capability: 90 for 9.0."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Launch, capability: int) -> Any:
    """What Triton makes of a launch on such a card. From then on this process can launch nothing."""
    driver.set_active(Card(capability))  # type: ignore[arg-type]
    return launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.constants, **launch.tiles.options)


def described(launch: Launch) -> str:
    """All of a launch that decides what is compiled, as text; launches with the same text are the same kernel."""
    function = launch.kernel.fn
    arguments = []
    for value, parameter in zip(launch.arguments, launch.kernel.params, strict=False):
        if isinstance(value, torch.Tensor):
            unaligned = value.storage_offset() * value.element_size() % 16 != 0
            arguments.append({"dtype": str(value.dtype).removeprefix("torch."), "offset": int(unaligned)})
        elif isinstance(value, int) and not isinstance(value, bool) and parameter.do_not_specialize:
            arguments.append(2**40 if value >= 2**31 else 2)
        elif isinstance(value, int) and not isinstance(value, bool) and value != 1:
            arguments.append((2**40 if value >= 2**31 else 16) + (value % 16 != 0))
        else:
            arguments.append(0.5 if isinstance(value, float) else value)
    tiles = {"warps": launch.tiles.warps, "stages": launch.tiles.stages}
    constants = dict(sorted(launch.constants.items()))
    return json.dumps([function.__module__, function.__name__, arguments, constants, tiles])


def restored(text: str) -> Launch:
    """A launch that compiles as the one that was described."""
    module, name, arguments, constants, tiles = json.loads(text)
    kernel = getattr(importlib.import_module(module), name)
    values = tuple(_tensor(**value) if isinstance(value, dict) else value for value in arguments)
    return Launch(name, kernel, (1,), values, constants, Tiles(tiles["warps"], tiles["stages"]))


def _tensor(dtype: str, offset: int) -> torch.Tensor:
    return torch.empty(offset + 1, dtype=getattr(torch, dtype), device="meta")[offset:]


def compile_ahead(launches: Iterable[Launch], capability: int, processes: int = 0) -> int:
    """How many different kernels there were. processes: 0 takes one a core, up to 16, each with two kernels at least.
    Nothing that goes wrong here is an error: a launch compiles what it does not find."""
    texts = sorted({described(launch) for launch in launches})
    count = processes or min(16, os.cpu_count() or 1, -(-len(texts) // 2))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    command = [sys.executable, "-m", __name__, str(capability)]
    running = []
    with contextlib.suppress(OSError):  # no memory for another process, or one that has ended
        for first in range(count):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )
            running.append(process)
            assert process.stdin is not None
            process.stdin.write("\n".join(texts[first::count]).encode())
            process.stdin.close()
    end = time.monotonic() + SECONDS
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    return len(texts)


def main() -> None:
    """Compile the launches that are described on standard input, a line each."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            compiled(restored(line), int(sys.argv[1]))
        except Exception as error:  # the launch will say so
            print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
