"""The model under test: a checkpoint folder, the embedded model, or a named shape with random weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from scumble.bench.machine import available_bytes
from scumble.bench.shapes import EMBEDDED, random_model, shape, weight_bytes
from scumble.checkpoint import load_config, save_checkpoint
from scumble.config import ModelConfig
from scumble.errors import CheckpointError, InvalidRequest, shown
from scumble.formats import Format
from scumble.llm import LLM, embedded_path
from scumble.model import Transformer
from scumble.model.rounding import cache_format
from scumble.placement import DTYPES

PLAIN = ("float32", "bfloat16")


@dataclass
class Subject:
    """What to measure. path and shape: at most one; neither: the embedded model. Use as a context manager.

    Random weights in a plain dtype are made in memory. A quantized format is loaded the way users load it: the random
    bfloat16 weights are written to a temporary folder first, which is also what a peer reads.
    """

    path: str | None = None
    shape: str | None = None
    layers: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    cache_dtype: str | None = None
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)
    _llm: LLM | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise InvalidRequest(f"--dtype must be one of auto, {', '.join(DTYPES)}; found {shown(self.dtype)}")
        if self.path is not None and self.shape is not None:
            raise InvalidRequest("give a MODEL folder or --shape, not both")
        if self.shape == EMBEDDED:
            self.shape = None
        if self.layers is not None and self.shape is None:
            raise InvalidRequest("--layers cuts a named shape; it needs --shape")
        if self.shape is not None and self.dtype == "auto":
            self.dtype = "bfloat16"
        if self.shape is None and self.path is None and not embedded_path().is_dir():
            raise CheckpointError(
                "this installation has no embedded model; name a checkpoint folder, or a shape: --shape small-315m"
            )
        self.config: ModelConfig = self._read_config()
        self._check_room()

    @property
    def name(self) -> str:
        """How a report calls it; never a path."""
        if self.shape is None:
            return EMBEDDED if self.path is None else Path(self.path).name
        return self.shape if self.layers is None else f"{self.shape}, {self.layers} layers"

    @property
    def is_random(self) -> bool:
        return self.shape is not None

    @property
    def where(self) -> torch.device:
        """The device; "auto": the card, where there is one."""
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(auto if self.device == "auto" else self.device)

    @property
    def llm(self) -> LLM:
        assert self._llm is not None, "use as a context manager"
        return self._llm

    @property
    def number_format(self) -> str:
        """The weight format in which it runs."""
        return self.llm.model.number_format

    @property
    def weight_bytes(self) -> float:
        return weight_bytes(self.config, self.number_format, self.llm.model.device.type == "cuda")

    def __enter__(self) -> Subject:
        where = self.where
        if self.shape is not None and self.dtype in PLAIN:
            self._llm = self._wrapped(random_model(self.config, getattr(torch, self.dtype), self.seed, where))
        elif self.shape is not None and where.type == "cuda":  # its host need not have room for bfloat16
            form = cast(Format, self.dtype)
            self._llm = self._wrapped(random_model(self.config, torch.bfloat16, self.seed, where, form))
        elif self.shape is not None:
            self._llm = LLM.load(self.folder(), self.dtype, str(where), cache_dtype=self.cache_dtype)
        else:
            self._llm = LLM.load(self.path, self.dtype, str(where), cache_dtype=self.cache_dtype)
        return self

    def __exit__(self, *_: object) -> None:
        self._llm = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _wrapped(self, model: Transformer) -> LLM:
        model.cache_format = cache_format(self.cache_dtype, model.ops)
        return LLM(model)

    def folder(self) -> Path:
        """A checkpoint folder with these weights: its own, or a temporary one that lasts as long as this object."""
        if self.shape is None:
            return embedded_path() if self.path is None else Path(self.path)
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="scumble-bench-")
            if self._llm is not None and self.dtype in PLAIN:
                save_checkpoint(self._llm.model, self._temporary.name)
            else:
                model = random_model(self.config, torch.bfloat16, self.seed, torch.device("cpu"))
                save_checkpoint(model, self._temporary.name)
        return Path(self._temporary.name)

    def memory_spec(self) -> dict[str, Any]:
        """What a child process needs to build the same subject. It loads a quantized one from a folder, as users do; on
        a card it is made anew, as here: the release in bfloat16 would be 52 GB of host memory and as much of disk."""
        spec = {
            "path": self.path, "shape": self.shape, "layers": self.layers, "dtype": self.dtype,
            "device": self.device, "seed": self.seed, "cache_dtype": self.cache_dtype,
        }  # fmt: skip
        if self.shape is not None and self.dtype not in PLAIN and self.where.type != "cuda":
            spec |= {"path": str(self.folder()), "shape": None, "layers": None}
        return spec

    def _read_config(self) -> ModelConfig:
        if self.shape is not None:
            return shape(self.shape, self.layers)
        return load_config(embedded_path() if self.path is None else Path(self.path))

    def _check_room(self) -> None:
        """Refuse random weights that would not fit, before the machine begins to swap."""
        free = available_bytes()
        if self.shape is None or free is None or self.where.type == "cuda":
            return
        needed = weight_bytes(self.config, self.dtype if self.dtype in PLAIN else "bfloat16")
        if needed * 1.15 > free:
            fewer = "; --layers N cuts the shape to N layers" if len(self.config.layers) > 6 else ""
            raise InvalidRequest(
                f"{self.name} needs {needed / 1e9:.1f} GB for its weights, this machine has {free / 1e9:.1f} GB free"
                f"{fewer}"
            )
