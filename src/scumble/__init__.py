"""Scumble: block-diffusion language models that write on a canvas.

>>> from scumble import LLM, GenerationConfig
>>> LLM.load().generate("def mean(values):", GenerationConfig(max_new_tokens=64, seed=0)).text  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scumble.errors import (
    CheckpointError,
    DataError,
    InvalidRequest,
    PromptTooLong,
    ScumbleError,
    TemplateError,
    TokenizerError,
)

if TYPE_CHECKING:
    from scumble.events import Committed, Draft, Finished, Generation, TokenLogprobs, ToolCall
    from scumble.llm import LLM

    __version__: str
    from scumble.settings import GenerationConfig

# Loaded on first use, so that `import scumble` stays quick: torch alone takes a second or two.
_LAZY = {
    "LLM": "scumble.llm",
    "Committed": "scumble.events",
    "Draft": "scumble.events",
    "Finished": "scumble.events",
    "Generation": "scumble.events",
    "GenerationConfig": "scumble.settings",
    "TokenLogprobs": "scumble.events",
    "ToolCall": "scumble.events",
}

__all__ = [
    "LLM",
    "CheckpointError",
    "Committed",
    "DataError",
    "Draft",
    "Finished",
    "Generation",
    "GenerationConfig",
    "InvalidRequest",
    "PromptTooLong",
    "ScumbleError",
    "TemplateError",
    "TokenLogprobs",
    "TokenizerError",
    "ToolCall",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'scumble' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scumble")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
