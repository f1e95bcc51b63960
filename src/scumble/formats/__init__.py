"""Number formats for weights: a loaded model's linear layers and experts are swapped from outside, one at a time."""

from typing import Literal

Format = Literal["int8", "int4", "fp8", "nvfp4"]
