"""Kernels for NVIDIA cards, in Triton: one operation a file, its plain torch reference below it.

Rules that every kernel keeps, so that a row's numbers are the same alone and in any batch:
  - the order of a sum is fixed by the weight's shape, never by how many rows there are: no atomics, no split by rows;
  - tile sizes come from a table (tiles.toml) by card and operation; nothing is tuned while it runs;
  - whatever differs from pass to pass (counts, bounds, lists) is read from device memory, so that a captured CUDA
    graph can be replayed, and no host code waits for the device;
  - statistics are float32 or better; results are rounded where the reference rounds.

docs/gpu.md says what has been proved about them, how, and what has not.
"""
