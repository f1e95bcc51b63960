"""Draw docs/images/canvas.svg: one canvas of a real generation, pass by pass, as an animated picture.

    python docs/make_picture.py                                  # the embedded model
    python docs/make_picture.py --model PATH --prompt "import os" --seed 3 --tokens 96

Every frame is what `scumble generate` draws for that pass: the same tokens, looks and line breaks. The animation is
CSS alone; where none is played (or wanted), the finished canvas stands still.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

from rich.cells import cell_len

from scumble import LLM, GenerationConfig
from scumble.cli.canvas_view import CanvasView, View
from scumble.cli.layout import Piece, Row, rows_of
from scumble.cli.terminal import visible
from scumble.events import Draft, Finished

OUT = Path(__file__).parent / "images" / "canvas.svg"
WIDTH = 84  # cells
CELL, LINE, MARGIN = 8.43, 20, 26  # pixels: width of a character at 14 px, height of a row, space around
PASS_SECONDS, HOLD_SECONDS = 0.32, 3.5
COLOURS = {
    "prompt": "#8b8f98", "committed": "#ece7db", "settled": "#ece7db", "fresh": "#e2925f",
    "leaning": "#8f8b83", "noise": "#504e4b", "end": "#504e4b",
}  # fmt: skip
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Frame:
    """One pass as rows; `told` stands at the end of its footer."""

    rows: list[Row]
    view: View
    told: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="checkpoint folder; the embedded model when left out")
    parser.add_argument("--prompt", default="def moving_average(values, window):")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96, help="length of the canvas")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    llm = LLM.load(options.model)
    tokens = min(options.tokens, llm.model.config.canvas_length)
    config = GenerationConfig(max_new_tokens=tokens, canvas_length=tokens, seed=options.seed, best_of=1, revisions=0)
    frames = record(llm, options.prompt, config, tokens)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(picture(frames), encoding="utf-8")
    print(f"{options.out}: {len(frames) - 1} passes, {options.out.stat().st_size / 1000:.0f} kB")


def record(llm: LLM, prompt: str, config: GenerationConfig, tokens: int) -> list[Frame]:
    view = CanvasView(llm.tokenizer, llm.model.config.eos_token_ids, tokens)
    frames = []
    for event in llm.stream(prompt, config):
        if isinstance(event, Draft):
            seen = view.take(event)
            rows = rows_of([Piece(prompt, "prompt"), *seen.pieces], WIDTH)
            frames.append(Frame(rows, seen, f"{seen.settled:.0%} settled"))
        elif isinstance(event, Finished):
            text = Piece(visible(event.generation.text), "committed")
            rows = rows_of([Piece(prompt, "prompt"), text], WIDTH)
            told = f"{len(event.generation.token_ids)} tokens committed"
            frames.append(Frame(rows, replace(frames[-1].view, settled=1.0), told))
    return frames


def picture(frames: list[Frame]) -> str:
    rows = max(len(frame.rows) for frame in frames)
    width, height = round(WIDTH * CELL + 2 * MARGIN), (rows + 2) * LINE + 2 * MARGIN - 8
    seconds = len(frames) * PASS_SECONDS + HOLD_SECONDS
    body = "\n".join(draw(frame, number, len(frames), rows) for number, frame in enumerate(frames))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="A canvas of tokens settles into text over {len(frames) - 1} passes">\n'
        f"<style>\n{style(len(frames), seconds)}</style>\n"
        f'<rect width="{width}" height="{height}" rx="10" fill="#1c1d20"/>\n{body}\n</svg>\n'
    )


def style(count: int, seconds: float) -> str:
    """One animation a frame: seen from its own moment to the next one's, the last one through the pause."""
    lines = [f"text{{font:14px {FONT};white-space:pre}}", ".f{visibility:hidden}", ".last{visibility:visible}"]
    lines += [f".{look}{{fill:{colour}}}" for look, colour in COLOURS.items()]
    lines.append("@media (prefers-reduced-motion:no-preference){")
    for number in range(count):
        begin = 100 * number * PASS_SECONDS / seconds
        end = 100 * (number + 1) * PASS_SECONDS / seconds
        hide = "" if number == count - 1 else f"{end:.3f}%{{visibility:hidden}}"
        lines.append(
            f"@keyframes k{number}{{0%{{visibility:{'hidden' if number else 'visible'}}}"
            f"{begin:.3f}%{{visibility:visible}}{hide}100%{{visibility:{'visible' if not hide else 'hidden'}}}}}"
        )
        lines.append(f"#p{number}{{animation:k{number} {seconds:.2f}s step-end infinite}}")
    return "\n".join([*lines, "}"]) + "\n"


def draw(frame: Frame, number: int, count: int, rows: int) -> str:
    last = " last" if number == count - 1 else ""
    parts = [f'<g id="p{number}" class="f{last}">']
    for index, row in enumerate(frame.rows):
        column = 0
        for piece in row:
            parts.append(label(piece.text, piece.look, column, index))
            column += cell_len(piece.text)
    parts += footer(frame, count - 1, rows + 1)
    return "".join([*parts, "</g>"])


def label(text: str, look: str, column: int, row: int) -> str:
    stripped = text.strip(" ")
    if not stripped:
        return ""
    column += len(text) - len(text.lstrip(" "))
    x, y = MARGIN + column * CELL, MARGIN + row * LINE + 14
    length = cell_len(stripped) * CELL
    return f'<text class="{look}" x="{x:.1f}" y="{y}" textLength="{length:.1f}">{escape(stripped)}</text>'


def footer(frame: Frame, passes: int, row: int) -> list[str]:
    told = f"pass {frame.view.pass_index + 1:>2}/{passes}"
    y, x = MARGIN + row * LINE + 9, MARGIN + (len(told) + 2) * CELL
    full = 26 * CELL
    return [
        label(told, "prompt", 0, row),
        f'<rect x="{x:.1f}" y="{y}" width="{full:.1f}" height="2" rx="1" fill="#3a3a3c"/>',
        f'<rect x="{x:.1f}" y="{y}" width="{full * frame.view.settled:.1f}" height="2" rx="1" fill="#e2925f"/>',
        label(frame.told, "prompt", len(told) + 30, row),
    ]


if __name__ == "__main__":
    main()
