"""Runs a command on a card that is not there: python tools/stand_in_card [--compute] -- COMMAND …   (README.md)"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = "libcudart.so.13"


def packages() -> Path:
    """The folder that torch and its libraries lie in."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        sys.exit("torch is not installed; this needs its CUDA build (for CUDA 13)")
    return Path(found.origin).parent.parent


def wanted(folder: Path) -> set[str]:
    """Functions of CUDA's runtime that torch's libraries and their own want."""
    names = set()
    for path in (*folder.glob("torch/lib/*.so"), *folder.glob("nvidia/**/*.so*")):
        text = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True).stdout
        names |= {line.split()[-1].partition("@")[0] for line in text.splitlines() if line.endswith("@" + RUNTIME)}
    return names


def build(folder: Path) -> Path:
    """The library, made anew where its source or torch has changed."""
    wants = wanted(folder)
    if not wants:
        sys.exit(f"the torch in {folder} is not a build for CUDA 13; install one, as in: pip install torch==2.11.0")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        sys.exit("no C++ compiler (g++ or clang++) was found")
    source = (HERE / "runtime.cpp").read_bytes()
    digest = hashlib.sha256(source + " ".join(sorted(wants)).encode()).hexdigest()[:16]
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scumble" / "stand-in" / digest
    if not (place / RUNTIME).exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as draft:
            compile_into(Path(draft), place, compiler, folder, wants)
    return place


def compile_into(draft: Path, place: Path, compiler: str, folder: Path, wants: set[str]) -> None:
    headers = [path.parent for path in folder.glob("nvidia/*/include/cuda_runtime_api.h")]
    headers += [path.parent for path in folder.glob("triton/backends/nvidia/include/cuda_runtime_api.h")]
    if not headers:
        sys.exit(f"no header cuda_runtime_api.h was found in {folder}")
    (draft / "versions").write_text(f"{RUNTIME} {{ global: *; }};\n", encoding="utf-8")
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-ldl", f"-Wl,-soname,{RUNTIME}"]
    command += [f"-Wl,--version-script={draft / 'versions'}", *(f"-I{header}" for header in headers)]
    simulated = HERE / "runtime.cpp"
    first = draft / "first.so"
    subprocess.run([*command, simulated, "-o", first], check=True)
    there = subprocess.run(["nm", "-D", "--defined-only", first], capture_output=True, text=True, check=True).stdout
    missing = sorted(wants - {line.split()[-1].partition("@")[0] for line in there.splitlines()})
    rest = draft / "rest.cpp"
    functions = (f'int {name}() {{ return stand_in_unknown("{name}"); }}' for name in missing)
    rest.write_text('extern "C" {\nint stand_in_unknown(const char*);\n' + "\n".join(functions) + "\n}\n")
    subprocess.run([*command, simulated, rest, "-o", draft / RUNTIME], check=True)
    for name in ("libcuda.so.1", "libcuda.so"):  # the driver is in the same library
        if not (place / name).is_symlink():
            (place / name).symlink_to(RUNTIME)
    (draft / RUNTIME).replace(place / RUNTIME)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", action="store_true", help="kernels and torch compute, by way of the CPU: slow")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for instance: -- python benchmarks/gpu_day.py")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command; for instance: -- python benchmarks/gpu_day.py")
    if Path("/dev/nvidia0").exists():
        parser.error("a card is here: run the command on it")
    place = build(packages())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(place / RUNTIME),
            "LD_LIBRARY_PATH": str(place),
            "TRITON_LIBCUDA_PATH": str(place),
            "XDG_CACHE_HOME": folder,  # verdicts about this card are nobody else's
            "STAND_IN_LOG": str(log),
            "STAND_IN_LIBRARY": str(place / RUNTIME),
        }
        if options.compute:
            environment |= {"TRITON_INTERPRET": "1"}
            path = [str(HERE), str(HERE.parents[1] / "src"), str(HERE.parents[1] / "tests")]
            environment["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
        code = subprocess.run(command, env=environment).returncode
        said = log.read_text(encoding="utf-8") if log.exists() else ""
    print(f"{said.count('a capture of')} captures, {said.count('FAULT')} faults", file=sys.stderr)
    for block in said.split("FAULT ")[1:]:
        print("FAULT " + block.rstrip(), file=sys.stderr)
    return code or int("FAULT" in said)


if __name__ == "__main__":
    sys.exit(main())
