"""A plugin of pytest: the kernels that serve are those for AVX-512, built so that another processor can run them."""

from dataclasses import dataclass
from pathlib import Path

from scumble.ops.cpu import native
from scumble.ops.cpu.binary import FLAGS, INSTRUCTION_SETS, InstructionSet

HEADER = Path(__file__).with_name("avx512.h")


@dataclass(frozen=True)
class Emulated(InstructionSet):
    @property
    def flags(self) -> tuple[str, ...]:
        quickly = ("-O1", "-DSIMDE_NO_INLINE", "-w", "-Wno-psabi", "-fpermissive")  # compiled
        return (*FLAGS, *quickly, "-mavx2", "-mfma", "-mf16c", "-include", str(HEADER))


native.choose_instructions = lambda features: Emulated("avx512-emulated", INSTRUCTION_SETS[0].needs)
assert native.instructions() == "avx512-emulated", native.why_not()
