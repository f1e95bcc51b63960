"""The canvas loop's rules, pure, over S canvases at a time: canvas, noise, schedule, sampler, stopping. No model."""

from scumble.diffusion.canvas import Canvas, Proposal, start_canvas
from scumble.diffusion.noise import Address, Noise, SeededNoise
from scumble.diffusion.sampler import EntropyBound, Sampler, renoise
from scumble.diffusion.schedule import LinearTemperature
from scumble.diffusion.stopping import StableAndConfident, Stopping, committed_ids, count_unchanged

__all__ = [
    "Address",
    "Canvas",
    "EntropyBound",
    "LinearTemperature",
    "Noise",
    "Proposal",
    "Sampler",
    "SeededNoise",
    "StableAndConfident",
    "Stopping",
    "committed_ids",
    "count_unchanged",
    "renoise",
    "start_canvas",
]
