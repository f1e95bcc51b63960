"""Every exception that Scumble raises on purpose.

    ScumbleError
    ├── InvalidRequest      the caller asked for something impossible (also a ValueError); CLI exit code 2
    │   └── PromptTooLong   prompt plus answer do not fit the model's context
    ├── CheckpointError     a checkpoint folder or file is missing, damaged or of the wrong kind
    ├── TemplateError       a chat template failed, ran too long or tried to leave its sandbox
    ├── TokenizerError      a tokenizer file cannot be used
    ├── DataError           training data is missing, damaged or empty
    └── RequestsFailed      some of many requests failed; it has the answers to the others

A message says what is wrong, the value, the allowed range, and what to do next, in one line.
Anything else that escapes is a bug in Scumble.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class ScumbleError(Exception):
    """Root of all errors that Scumble raises on purpose."""

    exit_code = 1


class InvalidRequest(ScumbleError, ValueError):
    """The caller asked for something impossible: an unknown name, a value out of range, an empty prompt."""

    exit_code = 2


class PromptTooLong(InvalidRequest):
    """Prompt plus requested answer do not fit into the model's context."""


class CheckpointError(ScumbleError):
    """A checkpoint cannot be read or written: missing, truncated, wrong shapes, wrong kind."""


class TemplateError(ScumbleError):
    """A chat template failed, ran out of time or tried to do what its sandbox forbids."""


class TokenizerError(ScumbleError):
    """A tokenizer file is missing, damaged or lacks a token that is needed."""


class DataError(ScumbleError):
    """Training data is missing, damaged or empty."""


class RequestsFailed(ScumbleError):
    """Some of the requests of one call failed; the others were answered.

    generations: the answers, in order, None where there is none. errors: why, by the request's number from 0.
    """

    def __init__(self, generations: Sequence[Any], errors: Mapping[int, Exception]):
        number = min(errors)
        super().__init__(
            f"{len(errors)} of {len(generations)} requests failed; the answers to the others are in this error's "
            f"`generations`, the reasons in `errors`; number {number}: {errors[number]}"
        )
        self.generations, self.errors = list(generations), dict(errors)


def check_output(figure: float) -> None:
    """Refuses a figure taken from a model's output (an entropy, a logit, a loss) that is not a finite number."""
    if not math.isfinite(figure):
        raise not_finite(figure)


def not_finite(figure: float) -> ScumbleError:
    """The error of a model whose output holds this figure."""
    return ScumbleError(
        f"the model's output must be finite numbers, found {figure}; its weights may be damaged: "
        "get or save the checkpoint again, or try dtype float32"
    )


def shown(value: object) -> str:
    """A wrong value as a message shows it: its repr, on one short line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than some thousand digits
        return f"a {type(value).__name__} of too many digits to print"
    except RecursionError:
        return f"a {type(value).__name__} nested too deep to print"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}…"


def size(count: int) -> str:
    """Bytes as a message shows them, in powers of a thousand: 35,024,896 -> "35.0 MB"."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"
