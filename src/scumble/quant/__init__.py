"""Number formats for weights: a loaded model's linear layers and experts are swapped from outside, one at a time."""

from scumble.quant.swap import Format, quantize, quantize_part

__all__ = ["Format", "quantize", "quantize_part"]
