"""The canvas loop's rules, pure: canvas, noise, schedule, sampler, stopping. No model in here."""

from scumble.diffusion.canvas import Canvas, Proposal, start_canvas
from scumble.diffusion.noise import Noise, SeededNoise
from scumble.diffusion.sampler import EntropyBound
from scumble.diffusion.schedule import LinearTemperature
from scumble.diffusion.stopping import StableAndConfident, committed_ids

__all__ = [
    "Canvas",
    "EntropyBound",
    "LinearTemperature",
    "Noise",
    "Proposal",
    "SeededNoise",
    "StableAndConfident",
    "committed_ids",
    "start_canvas",
]
