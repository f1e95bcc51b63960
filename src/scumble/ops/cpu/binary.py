"""The binary of the native CPU kernels: for which instruction set, and built from src/*.cpp where it is not yet.

One binary an instruction set, kept per user. Its name carries a hash of sources, flags and compiler, it is written
beside its place and moved there, and a lock of its own keeps processes that start together from compiling it twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scumble.errors import InvalidRequest, shown

log = logging.getLogger("scumble")

SOURCES = Path(__file__).parent / "src"
SWITCH = "SCUMBLE_INSTRUCTIONS"  # this environment variable names the instruction set; unset or "auto": the best one
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


@dataclass(frozen=True)
class InstructionSet:
    """needs: what a processor must have, by the names of /proc/cpuinfo; the compiler's are the same without "_"."""

    name: str
    needs: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        return (*FLAGS, *(f"-m{feature.replace('_', '')}" for feature in self.needs))

    def missing(self, features: frozenset[str]) -> str:
        """What a processor with these features lacks, in a few words; empty: nothing."""
        return ", ".join(feature for feature in self.needs if feature not in features)


# The best first. src/simd.h chooses its vectors by the same names.
INSTRUCTION_SETS = (
    InstructionSet("avx512", ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "fma")),
    InstructionSet("avx2", ("avx2", "fma", "f16c")),
)


def choose_instructions(features: frozenset[str]) -> InstructionSet | str:
    """The best set that a processor with these features has, or the one that SCUMBLE_INSTRUCTIONS names; a string says
    why there is none. Raises InvalidRequest for a name that is none of them."""
    asked, names = os.environ.get(SWITCH) or "auto", [known.name for known in INSTRUCTION_SETS]
    if asked not in ("auto", *names):
        raise InvalidRequest(f"{SWITCH} must be one of auto, {', '.join(names)}; found {shown(asked)}")
    for known in INSTRUCTION_SETS:
        if asked == known.name and (missing := known.missing(features)):
            return f"{SWITCH} is {asked}, and this processor lacks {missing}"
        if asked in ("auto", known.name) and not known.missing(features):
            return known
    return f"this processor lacks {INSTRUCTION_SETS[-1].missing(features)}"


def processor_features() -> frozenset[str]:
    """Instruction sets of this x86-64 processor by their names in /proc/cpuinfo. Where there is no such file (macOS),
    torch says whether there are AVX2 and FMA; every processor that has both has F16C. It does not say whether AVX-512
    comes with products of bfloat16 and bytes."""
    try:
        with open("/proc/cpuinfo") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        return frozenset(("avx2", "fma", "f16c") if has_avx2 else ())
    return frozenset(flags.partition(":")[2].split())


def build(compiler: str, instructions: InstructionSet) -> Path:
    """Compile what is not yet there; returns the binary's path."""
    digest = hashlib.sha256(" ".join((compiler, *instructions.flags)).encode())
    for file in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(file.read_bytes())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"kernels-{instructions.name}-{digest.hexdigest()[:20]}.so"
    if path.exists():
        return path
    with _locked(path.with_suffix(".lock")):
        if path.exists():  # another process was faster
            return path
        # A warning, so that it is seen without any set-up of logging: somebody waits and wonders.
        log.warning(
            "scumble: compiling the CPU kernels (%s) with %s, this once; it takes up to half a minute",
            instructions.name, compiler,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            os.replace(_compiled([compiler, *instructions.flags], Path(scratch)), path)
    return path


def _compiled(command: list[str], scratch: Path) -> Path:
    """The binary, linked from files that were compiled side by side, the largest first."""

    def run(*arguments: str | Path, to: str) -> Path:
        made = scratch / to
        subprocess.run([*command, *arguments, "-o", made], check=True, capture_output=True, text=True, timeout=600)
        return made

    sources = sorted(SOURCES.glob("*.cpp"), key=lambda file: -file.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: run("-c", source, to=f"{source.stem}.o"), sources))
    return run("-shared", *objects, to="kernels.so")


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scumble" / "native"


class _locked:
    """Hold an exclusive lock on a file; where the system has none, hold nothing (the rename is safe without)."""

    def __init__(self, path: Path):
        self.path = path
        self.file: Any = None

    def __enter__(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        self.file = open(self.path, "w")  # closed on exit, which lets go of the lock
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
