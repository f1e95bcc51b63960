"""Scumble: block-diffusion language models that write on a canvas.

>>> from scumble import LLM, GenerationConfig
>>> LLM.load().generate("def mean(values):", GenerationConfig(max_new_tokens=64, seed=0)).text  # doctest: +SKIP
"""

from __future__ import annotations

# Everything is loaded on first use, so that `import scumble` takes a millisecond: torch alone takes a second or two,
# and the command line wants to be in charge of Ctrl-C as early as possible (cli/entry.py).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scumble.errors import (
        CheckpointError,
        DataError,
        InvalidRequest,
        PromptTooLong,
        RequestsFailed,
        ScumbleError,
        TemplateError,
        TokenizerError,
    )
    from scumble.events import Committed, Draft, Finished, Generation, TokenLogprobs, ToolCall
    from scumble.llm import LLM
    from scumble.settings import GenerationConfig

    __version__: str

_LAZY = {
    "LLM": "scumble.llm",
    "CheckpointError": "scumble.errors",
    "Committed": "scumble.events",
    "DataError": "scumble.errors",
    "Draft": "scumble.events",
    "Finished": "scumble.events",
    "Generation": "scumble.events",
    "GenerationConfig": "scumble.settings",
    "InvalidRequest": "scumble.errors",
    "PromptTooLong": "scumble.errors",
    "RequestsFailed": "scumble.errors",
    "ScumbleError": "scumble.errors",
    "TemplateError": "scumble.errors",
    "TokenLogprobs": "scumble.events",
    "TokenizerError": "scumble.errors",
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
    "RequestsFailed",
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
