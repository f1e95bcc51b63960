"""How long writing and verifying an audit log takes.

python benchmarks/audit_verify.py [lines]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import clone  # noqa: F401

from scumble.serve.audit import AuditLog
from scumble.serve.audit_review import verify


def main(lines: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder))
        start = time.perf_counter()
        for number in range(lines):
            log.append(
                "end", request=f"req_{number:032x}", key="ci", method="POST", route="/v1/chat/completions", status=200,
                outcome="ok", prompt_tokens=211, completion_tokens=64, ms=812.4,
            )  # fmt: skip
        log.close()
        written = time.perf_counter() - start
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            verdict = verify(Path(folder))
            seconds.append(time.perf_counter() - start)
            assert verdict.fault is None
        print(f"{lines} lines: {1e6 * written / lines:.0f} µs a line to write; verified in", end=" ")
        print(", ".join(f"{one:.2f}" for one in sorted(seconds)), "s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How long writing and verifying an audit log takes.")
    parser.add_argument("lines", type=int, nargs="?", default=100_000)
    main(parser.parse_args().lines)
