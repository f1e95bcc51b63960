"""What happened when the weights of a model were read from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """What loading left out or made up. Bytes as stored.

    vision_tensors, vision_bytes: the vision tower, which a text model does not use.
    tied_copies: keys that repeat a weight that was loaded under another key; they were compared, and are equal.
    unknown: keys that this architecture does not have; ignored.
    assumed: weights that the file lacks and that were set from others (see the key's name).
    schemes: how the quantized weights are stored, and how many modules each.
    unused_scales: scales of activations; here each row of activations has its own.
    cache_scales: scales for a KV cache in few bits, one for all tokens; here each token has its own.
    runs_as: "number of modules × stored format → what it runs as" for weights that are stored in few bits.
    """

    weight_bytes: int
    vision_tensors: int = 0
    vision_bytes: int = 0
    tied_copies: int = 0
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    unused_scales: int = 0
    cache_scales: int = 0
    runs_as: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a person should know, one sentence a line; empty when there is nothing to say."""
        out = []
        if self.vision_tensors:
            out.append(
                f"text only: left out the vision tower ({self.vision_tensors} tensors, "
                f"{self.vision_bytes / 1e6:.1f} MB); images cannot be used"
            )
        if self.assumed:
            out.append(f"not in the file, set equal to their denoise counterparts: {', '.join(self.assumed[:4])} …")
        if self.tied_copies:
            out.append(f"left out {self.tied_copies} tied copies, which equal the weights that they repeat")
        if self.runs_as:
            out.append(f"weights in few bits: {'; '.join(self.runs_as)}")
        elif self.schemes:
            out.append(f"stored in few bits, dequantized: {'; '.join(self.schemes)}")
        if self.unused_scales:
            out.append(f"not needed: {self.unused_scales} scales of activations")
        if self.cache_scales:
            out.append(
                f"not needed: {self.cache_scales} scales of the KV cache; cache_dtype int8 or fp8 makes its own, "
                "token by token"
            )
        if self.unknown:
            out.append(f"ignored {len(self.unknown)} unknown tensors: {', '.join(self.unknown[:4])}")
        return out
