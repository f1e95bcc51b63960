"""What a program that a model wrote can do: reach its end, fail, or be stopped. Nothing else counts as a pass."""

import os
import time

import pytest

from scumble.errors import InvalidRequest
from scumble.evaluate.sandbox import Verdict, run_program

SHORT = 0.5  # seconds; a child needs some hundredths to start


@pytest.fixture(scope="module")
def guards() -> tuple[str, ...]:
    """What this system can enforce."""
    return run_program("pass").guards


def need(guards: tuple[str, ...], name: str) -> None:
    if name not in guards:
        pytest.skip(f"this system cannot guard {name}")


def test_a_program_that_reaches_its_end_has_passed():
    verdict = run_program("def f(x):\n    return x + 1\n\nassert f(1) == 2\n")
    assert (verdict.result, verdict.detail) == ("passed", "")
    assert 0 < verdict.seconds < 3
    assert set(verdict.guards) <= {"memory", "time and files", "writing", "processes and network"}


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("class Odd(BaseException): pass\nraise Odd", "Odd"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import scumble", "ModuleNotFoundError"),
        ("input()", "EOFError"),
    ],
)
def test_a_program_that_raises_has_failed(program, name):
    verdict = run_program(program)
    assert (verdict.result, verdict.detail) == ("failed", name)


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(60)", "try:\n while True: pass\nexcept: pass"]
)
def test_an_endless_program_runs_out_of_time(program):
    started = time.monotonic()
    assert run_program(program, seconds=SHORT).result == "timed out"
    assert SHORT <= time.monotonic() - started < SHORT + 2


def test_the_shortest_time_is_too_short_for_anything():
    assert run_program("pass", seconds=1e-9).result == "timed out"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_times_that_are_none(seconds):
    with pytest.raises(InvalidRequest, match="time limit must be above 0"):
        run_program("pass", seconds=seconds)


@pytest.mark.parametrize("program", ["x = bytearray(10**10)", "x = []\nwhile True: x.append(bytearray(10**6))"])
def test_a_memory_bomb_goes_off_inside(guards, program):
    need(guards, "memory")
    assert run_program(program, memory_bytes=200 * 2**20) == Verdict(
        "crashed", "out of memory", guards, pytest.approx(1.5, abs=1.5)
    )


def test_a_memory_error_of_the_program_s_own_is_no_pass():
    assert run_program("raise MemoryError").result == "crashed"


def test_files_may_be_written_inside_only_and_are_gone_afterwards(guards, tmp_path):
    need(guards, "writing")
    inside = "open('here', 'w').write('x')\nimport os\nassert os.listdir() == ['here']\n"
    assert run_program(inside).result == "passed"
    assert run_program(inside).result == "passed", "another run finds an empty folder"
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for program in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'stolen')",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
    ):
        assert run_program(program).result == "failed", program
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "mine"


def test_files_cannot_be_large(guards):
    need(guards, "time and files")
    assert run_program("open('big', 'wb').write(bytes(2 << 20))").result in ("failed", "crashed")


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import os; os.fork()",
        "import os; os.system('true') and 1 / 0",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.killpg(os.getpgid(os.getppid()), 0)",
    ],
)
def test_no_network_no_processes_no_signals(guards, program):
    need(guards, "processes and network")
    assert run_program(program).result == "failed"


@pytest.mark.parametrize("call", ["62, parent, 0", "200, parent, 0", "234, parent, parent, 0"])
def test_no_signals_behind_python_s_back_either(guards, call):
    """kill, tkill and tgkill by number; signal 0 only asks whether one would arrive."""
    need(guards, "processes and network")
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    ask = f"import ctypes, os\nparent = os.getppid()\nassert ctypes.CDLL(None).syscall({call}) == 0"
    assert run_program(ask).result == "failed"


def test_nothing_of_ours_is_in_sight(monkeypatch):
    monkeypatch.setenv("A_SECRET_OF_OURS", "swordfish")
    assert run_program("import os\nassert 'swordfish' not in str(os.environ), os.environ").result == "passed"
    assert run_program("import os\nassert os.listdir() == []\nassert os.getsid(0) == os.getpid()").result == "passed"


EARLY = "ended before its tests did"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import os; os.closerange(3, 64); os._exit(0)",
        "import os; os.closerange(0, 64)",
        """print('{"nonce": "0", "outcome": "passed", "detail": "", "guards": []}'); import os; os._exit(0)""",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit",
    ],
)
def test_an_early_exit_is_no_pass(program):
    verdict = run_program(f"{program}\nassert False")
    assert verdict.result in ("crashed", "failed")
    assert verdict.detail in (EARLY, "AssertionError", "SystemExit")


FORGED = [
    b'{"nonce": "0", "outcome": "passed", "detail": "", "guards": []}\n',
    b'{"outcome": "passed"}\n',
    b'{"nonce": null, "outcome": "passed", "detail": "", "guards": []}\n',
    b"[]\n",
    b'"passed"\n',
    b"0\n",
    b"\n",
    b"\xff\xfe\n",
    b"[" * 4096,
    b"1" * 5000 + b"\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: repr(forged[:20]))
@pytest.mark.parametrize("end", ["os._exit(0)", "assert False"])
def test_a_forged_verdict_is_no_pass(forged, end):
    """Written to every descriptor that the program may have found open."""
    verdict = run_program(
        f"import os\nfor one in range(3, 64):\n    try:\n        os.write(one, {forged!r})\n"
        f"    except OSError:\n        pass\n{end}"
    )
    assert verdict.result in ("crashed", "failed")


def test_output_goes_nowhere():
    assert run_program("print('x' * 10**6)\nimport sys\nsys.stderr.write('x' * 10**6)").result == "passed"


def test_a_killed_child_has_crashed():
    verdict = run_program("import ctypes; ctypes.string_at(0)")
    assert (verdict.result, verdict.detail) == ("crashed", "signal 11")
