"""The embedding in int8 for both products of the vocabulary operator: logits, and soft embeddings.

    logits[n, v] = hidden[n] · embedding[v]        sums over D: the table as every linear layer has it
    soft[n, d]   = Σ_v weights[n, v] · embedding[v, d]   sums over ids: the table turned, in tiles of ids

An id's scale is a factor of the sum in the second product, so it is multiplied into the weights before those are
rounded, with one scale a position and tile. Both tables hold the same numbers; the second takes 1 more byte for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scumble.formats.int8 import Int8Matrix, quantize
from scumble.ops.cpu.vocab import TILE


class Int8Embedding(Int8Matrix):
    """An embedding [V, D]: as a weight, its product gives logits [n, V]; `soft` gives soft embeddings, tile by tile.

    turned: tiles [D, up to 1024 ids]; empty without native kernels, where the float embedding serves.
    """

    def __init__(self, embedding: Tensor, packed: bool | None = None):
        numbers, scale = quantize(embedding)
        super().__init__(numbers, scale, packed)
        ones = torch.ones(embedding.shape[1])
        tiles = () if self.lib is None else numbers.split(TILE)
        self.turned = [Int8Matrix(tile.T.contiguous(), ones, packed) for tile in tiles]

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(tile.nbytes for tile in self.turned)

    def soft(self, tile: int, weights: Tensor) -> Tensor:
        """weights [n, ids of the tile] bfloat16, with the ids' scales multiplied in -> [n, D] bfloat16."""
        matrix = self.turned[tile]
        return matrix.product(*matrix.rounded(weights))
