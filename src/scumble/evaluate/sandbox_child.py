"""The inside of the sandbox: a process that locks itself up, runs one program, and says how it went.

Run by sandbox.py as `python -I -S sandbox_child.py`; imports nothing but the standard library. The request comes as
JSON on stdin, the verdict leaves as one line of JSON on what was stdout and carries the request's nonce. A program that
ends the process before its last statement therefore leaves no verdict.
"""

import ctypes
import json
import os
import platform
import struct
import sys

# System calls that a program under test has no business with -> "Operation not permitted".
# name: (x86-64, arm64); -1 where an architecture lacks it.
_FORBIDDEN = {
    "clone": (56, 220), "fork": (57, -1), "vfork": (58, -1), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "socket": (41, 198), "kill": (62, 129), "tkill": (200, 130), "ptrace": (101, 117),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "io_uring_setup": (425, 425),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1
_NO_NEW_PRIVILEGES, _SECCOMP = 38, 22  # prctl(2)


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    verdict = os.dup(1)  # not inherited by other programs
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    guards = lock(request["memory_bytes"], request["seconds"])
    outcome, detail = run(request["program"])
    said = {"nonce": request["nonce"], "outcome": outcome, "detail": detail[:200], "guards": guards}
    os.write(verdict, json.dumps(said).encode() + b"\n")
    os._exit(0)  # no exit handlers of the program's


def run(program: str) -> tuple[str, str]:
    """ "passed" if the program reaches its end, "failed" if it raises, "crashed" if it is out of memory."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "program"})
    except MemoryError:
        return "crashed", "out of memory"
    except BaseException as error:  # SystemExit too: the tests have not been passed
        return "failed", type(error).__name__
    return "passed", ""


def lock(memory_bytes: int, seconds: float) -> list[str]:
    """Give up what can be given up -> the names of what held."""
    return [
        name
        for name, guard in (
            ("memory", lambda: limit_memory(memory_bytes)),
            ("time and files", lambda: limit_rest(seconds)),
            ("writing", forbid_writing),
            ("processes and network", forbid_calls),
        )
        if holds(guard)
    ]


def holds(guard) -> bool:  # type: ignore[no-untyped-def]  # typing costs 5 ms a start
    try:
        return guard() is not False
    except (OSError, ValueError, AttributeError, ImportError):
        return False


def limit_memory(size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def limit_rest(seconds: float) -> None:
    import resource

    cpu = int(seconds) + 2
    for what, most in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))  # NPROC does not bind root; forbid_calls does


def forbid_writing() -> bool:
    """Landlock (Linux 5.13): no file may be made, changed or removed outside the working directory."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, 0, 1)  # landlock_create_ruleset: asks for the version
    if version < 1:
        return False
    # write; remove directory, file; make char, dir, file, socket, fifo, block, link; from 2: refer; from 3: truncate
    rights = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    rights |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    ruleset = libc.syscall(444, ctypes.byref(ctypes.c_uint64(rights)), 8, 0)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    beneath = struct.pack("=Qi", rights, here)
    if ruleset < 0 or libc.syscall(445, ruleset, 1, beneath, 0) or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    locked = libc.syscall(446, ruleset, 0) == 0
    os.close(here)
    os.close(ruleset)
    return locked


def forbid_calls() -> bool:
    """Seccomp: no new processes or threads, no sockets, no signals to others. Holds for root as well."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    column, architecture = _ARCHITECTURES[platform.machine()]
    numbers = [row[column] for row in _FORBIDDEN.values() if row[column] >= 0]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    count = len(numbers)
    code = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, count + 3, architecture),  # any other: no
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, count + 1, 0, 0x40000000),  # the x32 numbers: no
        *((equal, count - place, 0, number) for place, number in enumerate(numbers)),
        (answer, 0, 0, _ALLOW),
        (answer, 0, 0, _EPERM),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) and not libc.prctl(_SECCOMP, 2, program, 0, 0)


if __name__ == "__main__":
    main()
