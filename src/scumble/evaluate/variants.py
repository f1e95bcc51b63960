"""The ways to decode that are compared: two decoders, or one decoder with several settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scumble.errors import InvalidRequest, shown
from scumble.settings import CANVAS_SETTINGS, GenerationConfig

DECODERS = ("diffusion", "autoregressive")
Grid = Mapping[str, Sequence[Any]]
GRID: Grid = {
    "entropy_bound": (0.1, 0.3, 1.0, 3.0),
    "temperature": (0.25, 0.5, 1.0),
}
# What the diffusion decoder can be asked for; the tasks fix the rest.
SWEPT = ("temperature", *CANVAS_SETTINGS)


@dataclass(frozen=True)
class Variant:
    """A column of the report: a name, and what of the generation settings it fixes."""

    name: str
    settings: Mapping[str, Any]

    def config(self, max_new_tokens: int, seed: int) -> GenerationConfig:
        return GenerationConfig(max_new_tokens=max_new_tokens, seed=seed, **self.settings)


def decoder_variants(names: Sequence[str], overrides: Mapping[str, Any]) -> list[Variant]:
    """A variant a decoder. overrides: settings of the diffusion decoder. The autoregressive one is greedy: its best.

    Raises InvalidRequest.
    """
    for name in names:
        if name not in DECODERS:
            raise InvalidRequest(f"--decoder must be one of {', '.join(DECODERS)}, found {shown(name)}")
    if not names:
        raise InvalidRequest(f"--decoder must name at least one of {', '.join(DECODERS)}")
    own: Mapping[str, Mapping[str, Any]] = {"diffusion": overrides, "autoregressive": {"temperature": 0}}
    variants = [Variant(name, {"decoder": name, **own[name]}) for name in dict.fromkeys(names)]
    for variant in variants:
        variant.config(1, 0)  # refuses what is out of range
    return variants


def read_grid(texts: Sequence[str]) -> Grid:
    """["entropy_bound=0.1,0.3", "canvas_length=auto"] -> a grid of those settings. Raises InvalidRequest."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values or name in grid:
            raise InvalidRequest(f"--grid takes NAME=VALUE,VALUE once a setting, found {shown(text)}")
        if name not in SWEPT:
            raise InvalidRequest(f"--grid tries one of {', '.join(SWEPT)}, found {shown(name)}")
        grid[name] = [_value(one) for one in values.split(",")]
        for value in grid[name]:
            GenerationConfig(**{name: value})
    return grid


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def grid_variants(grid: Grid, overrides: Mapping[str, Any]) -> list[Variant]:
    """A diffusion variant for every point of a grid; a setting that `overrides` fixes takes that value alone.

    A value that is there twice counts once, also where it is written differently (0.5 and 0.50, 1 and 1.0).
    """
    values = {
        name: [overrides[name]] if name in overrides else list(dict.fromkeys(points)) for name, points in grid.items()
    }
    variants = []
    for point in product(*values.values()):
        settings = {**overrides, **dict(zip(values, point, strict=True))}
        name = " ".join(f"{_SHORT.get(key, key)}={settings[key]}" for key in values)
        variants.append(Variant(name, {"decoder": "diffusion", **settings}))
    return variants


_SHORT = {
    "entropy_bound": "bound", "confidence_threshold": "confidence", "max_denoising_steps": "steps",
    "canvas_length": "canvas", "best_of": "of",
}  # fmt: skip
