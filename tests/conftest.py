"""Shared by all tests: helper modules beside this file (`oracle`) can be imported from any test, and no test goes to
the network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"
