"""Which key of a checkpoint is which weight of the model.

The text weights live under `model.decoder.`; tied copies of most of them may be stored under
`model.encoder.language_model.` as well, or instead. Only the encoder's `layer_scalar` is a weight of its own.
"""

from __future__ import annotations

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
HEAD = "lm_head.weight"  # tied to the embedding wherever it is stored


def candidates(weight: str) -> list[str]:
    """Checkpoint keys that may hold a weight of the model, best first."""
    if weight.endswith(".encode_layer_scalar"):
        return [ENCODER + weight.replace("encode_layer_scalar", "layer_scalar")]
    keys = [DECODER + weight]
    if not weight.endswith(".layer_scalar"):
        keys.append(ENCODER + weight)
    if weight == "embed_tokens.weight":
        keys.append(HEAD)
    return keys


def checkpoint_key(weight: str) -> str:
    """The key under which a weight is saved."""
    return candidates(weight)[0]
