"""Which backend serves a model: chosen once, when it is loaded, and said once.

A backend is an entry of BACKENDS: the name of a module, imported only when it is looked at, with two functions:

    unfit(device, dtype, config) -> why it cannot serve such a model here, in a few words; None: it can
    make(device, dtype, config) -> its Ops

Quickest first; the first that is fit serves. `ops=` of the loaders, or the environment variable SCUMBLE_OPS, names one:
then it serves, or loading fails with its reason.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import import_module

import torch

from scumble.config import ModelConfig
from scumble.errors import InvalidRequest, shown
from scumble.ops.api import Ops

log = logging.getLogger("scumble")

BACKENDS = {"triton": "scumble.ops.triton", "cpu": "scumble.ops.cpu", "reference": "scumble.ops.reference"}
ONLY_ON = {"triton": ("cuda",)}  # on other devices it is not worth a word


@dataclass(frozen=True)
class Choice:
    """ops: what serves. forced: somebody asked for it by name. passed_over: quicker backends, and why not each."""

    ops: Ops
    forced: bool
    passed_over: dict[str, str]

    def line(self) -> str:
        """One line for people."""
        why = "asked for" if self.forced else "; ".join(f"not {name}: {why}" for name, why in self.passed_over.items())
        built = f", {self.ops.variant}" if self.ops.variant else ""
        return f"operations: {self.ops.name}{built}" + (f" ({why})" if why else "")


def choose(
    device: torch.device | str, dtype: torch.dtype, config: ModelConfig | None = None, name: str | None = None
) -> Choice:
    """The operations for a model whose activations have `dtype`. config None: of a shape that suits everybody.

    name: "reference", "cpu" …, or "auto"; None: what SCUMBLE_OPS says, else "auto".
    Raises InvalidRequest for an unknown name, and where the named backend cannot serve.
    """
    where = torch.device(device)
    asked, source = (name, "ops") if name is not None else (os.environ.get("SCUMBLE_OPS") or "auto", "SCUMBLE_OPS")
    if asked != "auto":
        if asked not in BACKENDS:
            raise InvalidRequest(f"{source} must be one of auto, {', '.join(BACKENDS)}; found {shown(asked)}")
        backend = import_module(BACKENDS[asked])
        why = backend.unfit(where, dtype, config)
        if why is not None:
            raise InvalidRequest(f"{source}: {asked} cannot serve this model here: {why}; use auto or reference")
        return Choice(backend.make(where, dtype, config), True, {})
    passed_over: dict[str, str] = {}
    for candidate, module in BACKENDS.items():
        if where.type not in ONLY_ON.get(candidate, (where.type,)):
            continue
        backend = import_module(module)
        why = backend.unfit(where, dtype, config)
        if why is None:
            return Choice(backend.make(where, dtype, config), False, passed_over)
        passed_over[candidate] = why
    raise AssertionError("the reference serves everything")
