"""The settings of one request, in one table: name, type, allowed values, the release's default, decoder and help.

Each field of `GenerationConfig` is one row. From it come the checks, the command line's options (cli/options.py), what
a checkpoint's generation_config.json may hold (checkpoint/load.py) and the reference page (docs/make_reference.py). To
add a setting, add a field here, and read it where requests are made (decode/make.py).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from scumble.errors import InvalidRequest, shown

Decoder = Literal["diffusion", "autoregressive"]
CommitRule = Literal["argmax", "sample"]
StabilityRule = Literal["argmax_history", "argmax_is_canvas"]

COLDEST = 1e-4  # temperatures below would overflow float32 in places, and are argmax in all but name
MAX_CANDIDATES = 64
MAX_REVISIONS = 64
STRUCTURES = ("json_schema", "regex", "choices", "grammar")
MAX_PASSES = 10_000  # an absurd number of passes is a typing error, not a wish


# --- which values a setting takes --------------------------------------------------------------------------------


class Values(Protocol):
    """The allowed values of a setting."""

    @property
    def allowed(self) -> str:
        """For people: "a whole number in 1 … 10"."""
        ...

    def holds(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Whole:
    """Whole numbers low … high; the one other value `also`, if there is one; no_limit: numbers that mean unset."""

    low: int
    high: int
    also: str | None = None
    no_limit: tuple[int, ...] = ()

    @property
    def allowed(self) -> str:
        unlimited = f" ({' or '.join(map(str, self.no_limit))}: no limit)" if self.no_limit else ""
        return f"a whole number in {self.low} … {self.high}" + (f" or {self.also!r}" if self.also else "") + unlimited

    def holds(self, value: Any) -> bool:
        if isinstance(value, str):
            return self.also is not None and value == self.also
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high or value in self.no_limit


@dataclass(frozen=True)
class Real:
    """Finite numbers low … high; without `low` itself where `above`; with 0 as well where `zero` says what it means."""

    low: float
    high: float
    above: bool = False
    zero: str | None = None

    @property
    def allowed(self) -> str:
        span = f"> {self.low:g} and ≤ {self.high:g}" if self.above else f"in {self.low:g} … {self.high:g}"
        return f"a finite number {span}" + (f" (or 0: {self.zero})" if self.zero else "")

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.zero is not None and value == 0:
            return True
        return self.low <= value <= self.high and not (self.above and value == self.low)  # NaN fails both comparisons


@dataclass(frozen=True)
class OneOf:
    names: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.names)}"

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names


@dataclass(frozen=True)
class YesNo:
    @property
    def allowed(self) -> str:
        return "True or False"

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Texts:
    """A text, or a list of texts; none of them empty or with half a surrogate pair. Kept as a tuple."""

    @property
    def allowed(self) -> str:
        return "a string or a list of strings, none of them empty, all of them valid Unicode"

    def holds(self, value: Any) -> bool:
        texts = (value,) if isinstance(value, str) else value
        return isinstance(texts, (list, tuple)) and all(isinstance(text, str) and _is_text(text) for text in texts)


def _is_text(text: str) -> bool:
    return text != "" and not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class Text:
    """One text that is not empty. On the command line: the text itself, or, with `file`, the file that holds it."""

    what: str
    file: bool = False

    @property
    def allowed(self) -> str:
        return f"{self.what}, as a string that is not empty"

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value != ""


@dataclass(frozen=True)
class Schema:
    """A JSON Schema: a dict, JSON text, or a pydantic model's class. On the command line: JSON, or a file of it."""

    @property
    def allowed(self) -> str:
        return "a JSON Schema: a dict, a bool, JSON text, or the class of a pydantic model"

    def holds(self, value: Any) -> bool:
        return isinstance(value, dict | bool | str | bytes) or hasattr(value, "model_json_schema")


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    default: the release's value; None: it follows from the checkpoint, or there is none.
    help: one sentence. more: what else there is to know.
    decoder: the decoder that it concerns; None: both.
    option: its name on the command line.
    stored: its path in a checkpoint's generation_config.json; None: a checkpoint cannot choose it.
    """

    values: Values
    default: Any
    help: str
    more: str = ""
    decoder: Decoder | None = None
    option: tuple[str, ...] = ()
    stored: tuple[str, ...] | None = None
    name: str = ""


def _row(values: Values, default: Any, help: str, **rest: Any) -> Any:
    """A field of GenerationConfig (None: unset) that carries its row of the table."""
    return field(default=None, metadata={"setting": Setting(values, default, help, **rest)})


def _of_canvas(values: Values, default: Any, help: str, **rest: Any) -> Any:
    return _row(values, default, help, decoder="diffusion", **rest)


@dataclass(frozen=True, init=False)
class GenerationConfig:
    """Settings of one request. What is left None comes from the checkpoint, else from the release (see the table of
    settings in docs/reference.md). Unknown names and values out of range raise InvalidRequest."""

    max_new_tokens: int | None = _row(
        Whole(1, 2**31 - 1),
        256,
        "Tokens to write at most.",
        stored=("max_new_tokens",),
        option=("--max-new-tokens", "-n"),
        more="Cuts exactly, whatever the canvas length. The default is less where the context ends earlier.",
    )
    seed: int | None = _row(
        Whole(0, 2**64 - 1),
        0,
        "Same seed, same text.",
        more="The tokens are the same alone, in any batch, and on any device of equal arithmetic.",
    )
    temperature: float | None = _row(
        Real(COLDEST, 1000, zero="argmax"),
        1.0,
        "Scales the model's schedule; 1 leaves it, 0 takes the best token.",
        more="Diffusion: scales t_max → t_min; with 0 the proposals are the argmax, and the schedule still weighs "
        "confidence. Autoregressive: divides the logits; 0 is greedy.",
    )
    entropy_bound: float | None = _of_canvas(
        Real(0, 1e9, above=True),
        0.1,
        "Joint uncertainty that one pass may accept, in nats.",
        stored=("sampler_config", "entropy_bound"),
    )
    t_min: float | None = _of_canvas(
        Real(COLDEST, 1000), 0.4, "Temperature towards which the schedule falls.", stored=("t_min",)
    )
    t_max: float | None = _of_canvas(
        Real(COLDEST, 1000), 0.8, "Temperature of the first pass.", stored=("t_max",), more="At least t_min."
    )
    max_denoising_steps: int | None = _of_canvas(
        Whole(1, MAX_PASSES),
        48,
        "Denoising passes a canvas at most.",
        option=("--steps",),
        stored=("max_denoising_steps",),
    )
    stability_threshold: int | None = _of_canvas(
        Whole(0, MAX_PASSES), 1, "Passes over which the argmax must not change.", stored=("stability_threshold",)
    )
    confidence_threshold: float | None = _of_canvas(
        Real(0, 1e9),
        0.005,
        "A canvas is done below this mean entropy, in nats; 0: never early.",
        option=("--confidence",),
        stored=("confidence_threshold",),
    )
    canvas_length: int | Literal["auto"] | None = _of_canvas(
        Whole(1, 2**20, also="auto"),
        None,
        "Tokens a canvas, up to the model's own; auto: short first.",
        stored=("canvas_length",),
        more='"auto": 16 for the first canvas, then twice as long each time, so short answers are cheap and long ones '
        "get long canvases. Unset: the checkpoint's.",
    )
    json_schema: Any = _row(
        Schema(),
        None,
        "The answer is JSON that satisfies this schema, guaranteed.",
        more="Always valid and always ended, whatever the model, seed and temperature; see docs/structure.md. What a "
        "schema asks that cannot be guaranteed is refused. Generation.parsed has the value.",
    )
    regex: str | None = _row(
        Text("a regular expression"), None, "The answer matches this pattern as a whole, guaranteed."
    )
    choices: tuple[str, ...] | None = _row(
        Texts(), None, "The answer is one of these texts; give it several times.", option=("--choice",)
    )
    grammar: str | None = _row(
        Text("a grammar", file=True), None, "The answer is a text of this EBNF grammar, guaranteed."
    )
    stop: tuple[str, ...] | None = _row(Texts(), (), "End before this text; may be given several times.")
    ignore_eos: bool | None = _row(YesNo(), False, "Write on behind the end of the text.")
    decoder: Decoder | None = _row(
        OneOf(("diffusion", "autoregressive")), "diffusion", "diffusion, or autoregressive on the same weights."
    )
    best_of: int | None = _of_canvas(
        Whole(1, MAX_CANDIDATES),
        1,
        "Candidates a canvas, side by side; the likeliest is kept.",
        stored=("best_of",),
        more="The causal model reads them. Committed is the one with the highest mean log-probability a token, its end "
        "id included. A draft that was handed in is read with them.",
    )
    revisions: int | None = _of_canvas(
        Whole(0, MAX_REVISIONS),
        0,
        "Rounds in which the causal model corrects a canvas's text.",
        stored=("revisions",),
        more="Where a token surprises the causal model, its own is tried in its place and before it, and so is the "
        "text without it; what reads better goes on. Not where positions are pinned.",
    )
    top_k: int | None = _row(
        Whole(1, 2**31 - 1, no_limit=(0, -1)),
        None,
        "Autoregressive: only the k best tokens.",
        decoder="autoregressive",
    )
    top_p: float | None = _row(
        Real(0, 1, above=True), None, "Autoregressive: only the best tokens of this total.", decoder="autoregressive"
    )
    logprobs: int | None = _row(
        Whole(0, 20),
        None,
        "Log-probability of every token, and of so many others.",
        more="Under the causal model, at temperature 1.",
    )
    commit: CommitRule | None = _of_canvas(
        OneOf(("argmax", "sample")), "argmax", "What a finished canvas commits: argmax, or the last sample."
    )
    stability: StabilityRule | None = _of_canvas(
        OneOf(("argmax_history", "argmax_is_canvas")),
        "argmax_history",
        "What must be stable: argmax_history (earlier argmax), or argmax_is_canvas.",
    )

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in SETTINGS:
                close = difflib.get_close_matches(name, SETTINGS, 1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise InvalidRequest(f"unknown setting {name!r}{hint} Valid names: {', '.join(SETTINGS)}")
        for name, row in SETTINGS.items():
            value = settings.get(name)
            if value is not None and not row.values.holds(value):
                raise InvalidRequest(f"{name} must be {row.values.allowed}, found {shown(value)}")
            if isinstance(row.values, Texts) and value is not None:
                value = (value,) if isinstance(value, str) else tuple(value)
            if isinstance(row.values, Whole) and value in row.values.no_limit:
                value = None
            object.__setattr__(self, name, value)
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise InvalidRequest(f"t_min must be ≤ t_max ({self.t_max}), found {self.t_min}")
        structures = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(structures) > 1:
            raise InvalidRequest(f"{' and '.join(structures)} exclude each other; give one of them")

    @property
    def structure(self) -> str | None:
        """Which of json_schema, regex, choices and grammar is set."""
        return next((name for name in STRUCTURES if getattr(self, name) is not None), None)

    def merged(self, defaults: Mapping[str, Any]) -> GenerationConfig:
        """This config with every unset name taken from `defaults` (which may lack names)."""
        own = {name: getattr(self, name) for name in SETTINGS}
        return GenerationConfig(**{name: defaults.get(name) if value is None else value for name, value in own.items()})

    def without_effect(self) -> list[str]:
        """Names that are set, but concern only the decoder that is not the one named here."""
        if self.decoder is None:
            return []
        given = [row for name, row in SETTINGS.items() if getattr(self, name) is not None]
        return [row.name for row in given if row.decoder not in (None, self.decoder)]


def _table() -> dict[str, Setting]:
    rows = {}
    for one in dataclasses.fields(GenerationConfig):
        row: Setting = one.metadata["setting"]
        option = row.option or (f"--{one.name.replace('_', '-')}",)
        rows[one.name] = dataclasses.replace(row, name=one.name, option=option)
    return rows


SETTINGS: dict[str, Setting] = _table()
CANVAS_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.decoder == "diffusion")
RELEASE_DEFAULTS: dict[str, Any] = {name: row.default for name, row in SETTINGS.items() if row.default is not None}
