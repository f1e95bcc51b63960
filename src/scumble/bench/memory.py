"""Peak memory of one generation, in a process of its own, so that nothing else that was measured is in the figure.

    python -m scumble.bench.memory '{"shape": "small-315m", "dtype": "bfloat16", …}'

is that process; it prints one JSON object. Resident memory counts weights that are mapped from a file as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from scumble.bench.machine import peak_bytes, resident_bytes
from scumble.errors import ScumbleError


def measure_memory(spec: dict[str, Any], timeout: float = 1800) -> dict[str, Any]:
    """Run the child -> bytes: `before` (libraries only), `loaded` and `peak`; `weights` as counted."""
    command = [sys.executable, "-m", "scumble.bench.memory", json.dumps(spec)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if child.returncode:
        reason = child.stderr.strip().splitlines()
        raise ScumbleError(f"the memory run failed: {reason[-1] if reason else f'exit code {child.returncode}'}")
    return json.loads(child.stdout.splitlines()[-1])


def main(text: str) -> None:
    import torch

    from scumble.bench.events import fixed_config, watch
    from scumble.bench.shapes import random_prompt
    from scumble.bench.subject import Subject
    from scumble.bench.timing import clock

    spec = json.loads(text)
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    with Subject(shape="tiny", device=spec["subject"]["device"]) as first:  # libraries load on first use
        watch(first.llm, [5, 6, 7], fixed_config(2, 8, 0), clock(first.llm.model.device))
    before = resident_bytes()
    with Subject(**spec["subject"]) as subject:
        loaded = peak_bytes()
        config = subject.llm.model.config
        prompt = random_prompt(config, spec["prompt_tokens"], spec["seed"])
        settings = fixed_config(spec["passes"], spec["new_tokens"], spec["seed"])
        watch(subject.llm, prompt, settings, clock(subject.llm.model.device))
        weights = subject.weight_bytes
        where = subject.llm.model.device
        found = {"before": before, "loaded": loaded, "peak": peak_bytes(), "weights": weights}
        if where.type == "cuda":
            found["gpu_peak"] = torch.cuda.max_memory_allocated(where)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
