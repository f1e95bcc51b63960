"""The facade: text in, text out. Ties tokenizer, checkpoint and engine together; sync, streaming and async."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any, cast, overload

import torch

from scumble.checkpoint import load_checkpoint, load_config, read_generation_config
from scumble.diffusion import Noise
from scumble.engine import Answer, PassDone, Request, TokensCommitted, generate, make_request, run
from scumble.engine.request import Check, Settings
from scumble.errors import InvalidRequest, TemplateError, TokenizerError, shown
from scumble.events import Finished, Generation, StreamEvent
from scumble.model import Transformer
from scumble.placement import choose_device, choose_dtype
from scumble.reading import is_there
from scumble.row import Row
from scumble.settings import GenerationConfig
from scumble.text import ChatTemplate, Message, Tokenizer
from scumble.text.chat import find_sources
from scumble.text.healing import beginning_with, take_back
from scumble.text.infill import encode_infill
from scumble.text.python import python_check
from scumble.threads import in_threads, last_in_threads

Trace = Callable[[PassDone], None]
Ids = Sequence[int] | torch.Tensor


def embedded_path() -> Path:
    """The folder of the embedded model, inside the installed package."""
    return Path(str(resources.files("scumble") / "assets" / "embedded"))


@dataclass(frozen=True)
class TextRequest:
    """Prompt ids, settings, the ids that the canvas starts from (None: noise), and the text that the first token must
    begin with (see `LLM.generate`)."""

    prompt: tuple[int, ...]
    config: GenerationConfig
    draft: tuple[int, ...] | None
    typed: str = ""


class LLM:
    """A loaded model with its tokenizer. Safe to use from several threads; each call has a cache of its own.

    batch_invariant: rows of a batch never influence each other, bit for bit (see engine/scheduler.py).
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        folder: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
        batch_invariant: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder
        self.defaults = dict(defaults or {})
        self.batch_invariant = batch_invariant

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        *,
        ops: str | None = None,
        batch_invariant: bool = True,
    ) -> LLM:
        """Load a checkpoint folder in the released format; None loads the embedded model.

        dtype: "float32", "bfloat16", "int8" (weights and activations; quickest), "int4" (weights; smallest) or "auto"
            (as stored; float32 on a CPU without native bfloat16). int8 and int4 run on the CPU only.
        device: "cpu", "cuda", "cuda:1" …, or "auto" (the GPU when there is one).
        ops: which operations serve: "cpu" (native kernels), "reference" (plain torch) …; None: the quickest that
            can, or what the environment variable SCUMBLE_OPS names.
        A folder without tokenizer.json loads for work on ids. Raises CheckpointError or TokenizerError.
        """
        folder = embedded_path() if path is None else Path(path)
        where = choose_device(device)
        form = choose_dtype(dtype, where)
        tokenizer, defaults = _read_small_files(folder)  # a mistake there shows before minutes of reading weights
        model = load_checkpoint(folder, form, where, ops)
        return cls(model, tokenizer, folder=folder, defaults=defaults, batch_invariant=batch_invariant)

    # --- text ---------------------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str as well
        self, prompt: str, config: GenerationConfig | None = ..., **inputs: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[str], config: GenerationConfig | None = ..., **inputs: Any
    ) -> list[Generation]: ...
    def generate(
        self, prompt: str | Sequence[str], config: GenerationConfig | None = None, **inputs: Any
    ) -> Generation | list[Generation]:
        """Continue a text, or several in one batch. `inputs`: draft and pinned, as for generate_ids.

        Where the text ends in white space that tokens usually begin with (a line break, a blank), the token of it is
        left to the answer, whose first token then begins with it, and whose text leaves it out. Not so with drafts and
        pins, which count positions from the prompt's end.
        """
        if isinstance(prompt, str) or not isinstance(prompt, Sequence):
            return _last(self.stream(prompt, config, **inputs))[0]
        return _last(self._stream_texts(prompt, config, inputs))

    def stream(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Iterator[StreamEvent]:
        """Continue a text, event by event: a Draft after every pass, Committed text, and Finished at the end."""
        return self._stream_texts([prompt], config, _listed(inputs))

    def _stream_texts(
        self, prompts: Sequence[str], config: GenerationConfig | None, inputs: Mapping[str, Any]
    ) -> Iterator[StreamEvent]:
        if inputs.get("draft") is not None or inputs.get("pinned") is not None:
            return self.stream_ids([self.encode_prompt(one) for one in prompts], config, **inputs)
        rows = [self.text_request(one) for one in prompts]
        return self.stream_ids([row.prompt for row in rows], config, typed=[row.typed for row in rows], **inputs)

    def chat(self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any) -> Generation:
        """Answer a conversation, [{"role": "user", "content": "…"}, …]. `template`: tools, enable_thinking, ….

        Raises TemplateError where the model has no chat template.
        """
        return _last(self.stream_ids([self.encode_chat(messages, **template)], config))[0]

    def stream_chat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Iterator[StreamEvent]:
        """Like `chat`, event by event."""
        return self.stream_ids([self.encode_chat(messages, **template)], config)

    def infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """The text between prefix and suffix. For models trained to fill in the middle."""
        return _last(self.stream_infill(prefix, suffix, config))[0]

    def stream_infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Iterator[StreamEvent]:
        """Like `infill`, event by event."""
        return self.stream_request(self.fill_request(prefix, suffix, config))

    def repair(self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """What `damaged`, between prefix and suffix, should have been. For models trained to repair.

        The canvas starts from the damaged text instead of noise, so it is edited in place: what is right can stay.
        """
        return _last(self.stream_repair(prefix, damaged, suffix, config))[0]

    def stream_repair(
        self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None
    ) -> Iterator[StreamEvent]:
        """Like `repair`, event by event."""
        if damaged is None:
            raise InvalidRequest("there is no damaged text to repair; infill asks for a text without one")
        return self.stream_request(self.fill_request(prefix, suffix, config, damaged))

    def text_request(self, text: str, config: GenerationConfig | None = None) -> TextRequest:
        """What `generate` asks of the decoder, for those who want to see or change it."""
        ids, typed = take_back(self._need_tokenizer(), text, self.encode_prompt(text))
        return TextRequest(tuple(ids), config or GenerationConfig(), None, typed)

    def fill_request(
        self, prefix: str, suffix: str, config: GenerationConfig | None = None, damaged: str | None = None
    ) -> TextRequest:
        """What `infill` (or `repair`, with `damaged`) asks of the decoder, for those who want to see or change it.

        The answer will probably be short: where neither `config` nor the checkpoint chooses a canvas length, canvases
        grow from a short one ("auto"). Raises TokenizerError where the tokenizer lacks the markers.
        """
        tokenizer = self._need_tokenizer()
        try:
            prompt, typed = encode_infill(tokenizer, prefix, suffix, damaged, self._context)
        except TokenizerError as error:
            raise TokenizerError(f"{self.folder}: {error}") from None
        own = (config or GenerationConfig()).merged({"canvas_length": self.defaults.get("canvas_length", "auto")})
        has_canvas = own.merged(self.defaults).decoder != "autoregressive"
        draft = None if damaged is None or not has_canvas else self._draft(damaged)
        return TextRequest(tuple(prompt), own, draft, typed)

    def _draft(self, text: str) -> tuple[int, ...]:
        """A text, an end, and pads up to the end of any canvas."""
        shape, ids = self.model.config, self._need_tokenizer().encode(text)
        if not shape.eos_token_ids:
            return tuple(ids)
        end = shape.eos_token_ids[0]
        pad = end if shape.pad_token_id is None else shape.pad_token_id
        return (*ids, end, *[pad] * shape.canvas_length)

    def stream_request(self, request: TextRequest) -> Iterator[StreamEvent]:
        """Answer a request that `text_request` or `fill_request` made, event by event."""
        return self.stream_ids([request.prompt], request.config, draft=[request.draft], typed=[request.typed])

    def encode_prompt(self, text: str) -> list[int]:
        """Prompt ids of a text: the beginning-of-sequence id, where there is one, then the text as plain data."""
        tokenizer = self._need_tokenizer()
        if not isinstance(text, str):
            raise InvalidRequest(f"a prompt must be a text, found {shown(text)}; token ids go to generate_ids")
        if text == "":
            raise InvalidRequest("the prompt is empty; give at least one character")
        bos = tokenizer.bos_id
        return ([] if bos is None else [bos]) + tokenizer.encode(text, context=self._context)

    def encode_chat(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """Prompt ids of a conversation, by the checkpoint's chat template."""
        return self.chat_template.encode(messages, self._need_tokenizer(), **{"context": self._context, **template})

    @cached_property
    def chat_template(self) -> ChatTemplate:
        if self.folder is None:
            raise TemplateError("this LLM was made without a folder, so it has no chat template; use generate")
        return ChatTemplate.from_folder(self.folder, self._need_tokenizer())

    @property
    def _context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.model.config.max_position_embeddings

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(f"{self.folder}: has no tokenizer.json; text needs one, ids work with generate_ids")
        return self.tokenizer

    # --- async --------------------------------------------------------------------------------------------------

    async def agenerate(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Generation:
        """Like `generate`; the event loop stays free. Cancelling it ends the work after the present pass."""
        return await last_in_threads(lambda: self.stream(prompt, config, **inputs))

    async def achat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Generation:
        """Like `chat`, in the manner of `agenerate`."""
        return await last_in_threads(lambda: self.stream_chat(messages, config, **template))

    async def astream(
        self, prompt: str, config: GenerationConfig | None = None, **inputs: Any
    ) -> AsyncIterator[StreamEvent]:
        """Like `stream`; the event loop stays free while the model works. Closing it cancels the request."""
        async with aclosing(in_threads(lambda: self.stream(prompt, config, **inputs))) as events:
            async for event in events:
                yield event

    # --- ids ----------------------------------------------------------------------------------------------------

    def generate_ids(
        self,
        ids: Ids | Sequence[Ids],
        config: GenerationConfig | None = None,
        *,
        noise: Noise | Sequence[Noise] | None = None,
        draft: Any = None,
        pinned: Any = None,
        trace: Trace | None = None,
    ) -> Any:
        """Continue a list of ids -> Generation; or several lists in one batch -> a list of Generations.

        draft: ids the answer starts from, from its position 0, instead of noise. pinned: {answer position: id},
        which stay. For a batch, noise, draft and pinned are lists too, one entry a row.
        trace is called with a PassDone after every pass of every row.
        """
        single = not isinstance(ids, Sequence) or len(ids) == 0 or isinstance(ids[0], Integral | float)
        if single:
            events = self.stream_ids(
                [ids], config, noise=None if noise is None else [noise], draft=[draft], pinned=[pinned], trace=trace
            )  # fmt: skip
            return _last(events)[0]
        rows = cast(Sequence[Ids], ids)
        return _last(self.stream_ids(rows, config, noise=noise, draft=draft, pinned=pinned, trace=trace))

    def stream_ids(
        self,
        ids: Sequence[Any],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        noise: Any = None,
        draft: Any = None,
        pinned: Any = None,
        trace: Trace | None = None,
        typed: Sequence[str] | None = None,
    ) -> Iterator[StreamEvent]:
        """Continue several lists of ids side by side; events carry their row. Checks all requests before it starts.

        typed: by row, what the answer's first token must begin with, and its text leave out; "": nothing.
        """
        rows = len(ids)
        configs = _per_row("config", GenerationConfig() if config is None else config, rows, GenerationConfig)
        noises, drafts, pins = (
            [None] * rows if value is None else _per_row(name, value, rows)
            for name, value in (("noise", noise), ("draft", draft), ("pinned", pinned))
        )
        heads = [""] * rows if typed is None else _per_row("typed", typed, rows)
        firsts = [beginning_with(self._need_tokenizer(), head) if head else None for head in heads]
        requests = [
            make_request(
                ids[r], configs[r], self.defaults, self.model.config, noises[r], drafts[r], pins[r], firsts[r],
                partial(self._check, configs[r], ids[r]),
            )
            for r in range(rows)
        ]  # fmt: skip
        return self._events(requests, trace, heads)

    def _check(self, config: GenerationConfig, prompt: Ids, settings: Settings) -> Check | None:
        """What the settings prefer, as a check of the answer's ids; None: nothing. Raises TokenizerError."""
        if settings.prefer == "likely" or settings.best_of == 1:
            return None
        if self.tokenizer is None and config.prefer is None:  # the checkpoint's wish, not the caller's
            return None
        return python_check(self._need_tokenizer(), torch.as_tensor(prompt).tolist(), settings.stop)

    def _events(self, requests: Sequence[Request], trace: Trace | None, typed: Sequence[str]) -> Iterator[StreamEvent]:
        started = time.perf_counter()
        rows = [Row(self.tokenizer, request, i, started, typed[i]) for i, request in enumerate(requests)]
        programs = [generate(self.model, request) for request in requests]
        for number, event in run(self.model, programs, self.batch_invariant):
            row = rows[number]
            if isinstance(event, PassDone):
                if trace is not None:
                    trace(replace(event, row=number))
                yield row.draft(event)
            elif isinstance(event, TokensCommitted):
                yield row.commit(event)
                if row.answer.stopped:  # a stop string: the row's program ends here
                    programs[number].close()
                    yield from row.finish(Answer("stop", tuple(row.passes), row.evaluations))
            else:
                yield from row.finish(event)


def _read_small_files(folder: Path) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer and the generation settings of a folder. Raises for any file beside the weights that is damaged."""
    config, defaults = load_config(folder), read_generation_config(folder)
    if not is_there(folder / "tokenizer.json"):
        return None, defaults
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
        )
    find_sources(folder)
    return tokenizer, defaults


def _last(events: Iterator[StreamEvent]) -> list[Generation]:
    """Run a stream to its end and keep the generations, in row order."""
    done = {event.row: event.generation for event in events if isinstance(event, Finished)}
    return [done[row] for row in sorted(done)]


def _listed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of one request as inputs of a batch of one."""
    return {name: value if name == "trace" or value is None else [value] for name, value in inputs.items()}


def _per_row(name: str, value: Any, rows: int, scalar: type | None = None) -> Sequence[Any]:
    if scalar is not None and isinstance(value, scalar):
        return [value] * rows
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != rows:
        one = f"a {scalar.__name__} or " if scalar is not None else ""
        raise InvalidRequest(f"{name} must be {one}a list with one entry a row ({rows}), found {shown(value)}")
    for entry in value:
        if scalar is not None and not isinstance(entry, scalar):
            raise InvalidRequest(f"{name} must hold {scalar.__name__} objects, found {shown(entry)}")
    return value


__all__ = ["LLM", "embedded_path"]
