"""Options that several commands share, and the GenerationConfig they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scumble.settings import GenerationConfig

SAMPLING = "Sampling"
MODEL = "Model"
SCREEN = "Output"

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Checkpoint folder; the embedded model when left out.", rich_help_panel=MODEL),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, int8 or int4.", rich_help_panel=MODEL)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MODEL)]

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", help="Tokens to write at most.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text. 0 when left out.", rich_help_panel=SAMPLING)]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Scales the model's own schedule; 1 leaves it, 0 takes the best token.", rich_help_panel=SAMPLING
    ),
]
Steps = Annotated[int | None, typer.Option(help="Denoising passes a canvas at most.", rich_help_panel=SAMPLING)]
PositionsPerPass = Annotated[
    int | None,
    typer.Option(help="At most one pass for so many positions of a canvas.", rich_help_panel=SAMPLING),
]
EntropyBound = Annotated[
    float | None, typer.Option(help="Uncertainty that one pass may accept, in nats.", rich_help_panel=SAMPLING)
]
Confidence = Annotated[
    float | None,
    typer.Option(help="A canvas is done below this mean entropy, in nats; 0: never early.", rich_help_panel=SAMPLING),
]
CanvasLength = Annotated[
    str | None,
    typer.Option(
        metavar="<int>|auto",
        help="Tokens a canvas, up to the model's own; auto: short first.",
        rich_help_panel=SAMPLING,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(help="What the entropy bound limits: accepted, or changed alone.", rich_help_panel=SAMPLING),
]
BestOf = Annotated[
    int | None,
    typer.Option(help="Candidates a canvas, side by side; the likeliest is kept.", rich_help_panel=SAMPLING),
]
Revisions = Annotated[
    int | None,
    typer.Option(help="Rounds in which the causal model corrects a canvas's text.", rich_help_panel=SAMPLING),
]
Prefer = Annotated[
    str | None,
    typer.Option(help="Which candidates go first: likely, or python (those that parse).", rich_help_panel=SAMPLING),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be given several times.", rich_help_panel=SAMPLING)
]
Decoder = Annotated[
    str | None, typer.Option(help="diffusion, or autoregressive on the same weights.", rich_help_panel=SAMPLING)
]
TopK = Annotated[int | None, typer.Option(help="Autoregressive: only the k best tokens.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float | None, typer.Option(help="Autoregressive: only the best tokens of this total.", rich_help_panel=SAMPLING)
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Write on behind the end of the text.", rich_help_panel=SAMPLING)
]
NoLive = Annotated[bool, typer.Option("--no-live", help="Do not draw the canvas.", rich_help_panel=SCREEN)]
Delay = Annotated[
    float,
    typer.Option(help="Hold every drawn pass for so many seconds, to watch.", min=0, max=60, rich_help_panel=SCREEN),
]


def generation_config(
    *,
    steps: int | None = None,
    confidence: float | None = None,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    canvas_length: str | None = None,
    **settings: Any,
) -> GenerationConfig:
    """Options by their names on the command line -> a checked GenerationConfig; what was not given stays unset."""
    from scumble.errors import InvalidRequest
    from scumble.settings import GenerationConfig

    # Here and not in GenerationConfig: programs hand one configuration to both decoders, people do not.
    if settings.get("decoder") == "autoregressive":
        of_canvases = {
            "--steps": steps, "--confidence": confidence, "--canvas-length": canvas_length,
            "--entropy-bound": settings.get("entropy_bound"), "--budget": settings.get("budget"),
            "--positions-per-pass": settings.get("positions_per_pass"),
        }  # fmt: skip
        given = [name for name, value in of_canvases.items() if value is not None]
        if given:
            raise InvalidRequest(
                f"{', '.join(given)}: for canvases, without effect on --decoder autoregressive; leave one out"
            )
    return GenerationConfig(
        max_denoising_steps=steps,
        confidence_threshold=confidence,
        stop=tuple(stop) if stop else None,
        ignore_eos=ignore_eos or None,
        canvas_length=number_or_word(canvas_length),
        **settings,
    )


def number_or_word(text: str | None) -> Any:
    """A whole number where the text is one; GenerationConfig judges all else."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text
