"""What lies in deploy/ against the server as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from serving import SHORT

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_every_metric_of_the_dashboard_is_given(http):
    http.post("/v1/completions", json={"prompt": "the canvas", "max_tokens": 2, **SHORT})
    http.post("/v1/completions", json={"prompt": "the canvas", "max_tokens": 10**8, "n": 10**8})  # refused
    given = set(re.findall(r"^# TYPE (\S+) \w+$", http.get("/metrics").text, re.M))
    given |= {f"{name}{ending}" for name in given for ending in ("_bucket", "_sum", "_count", "_total")}
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    asked = {
        name for panel in panels for target in panel.get("targets", ())
        for name in re.findall(r"(?:vllm|scumble):\w+", target["expr"])
    }  # fmt: skip
    assert len(asked) > 8
    assert asked <= given, asked - given
