"""Shared by all tests: helper modules beside this file (`oracle`) can be imported from any test, and no test goes to
the network."""

import os
import sys
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no failure, and a red run must be red again for whoever repeats it.
hypothesis.settings.register_profile(
    "scumble", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("scumble")
