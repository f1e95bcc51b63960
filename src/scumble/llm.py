"""The facade: text in, text out. Ties tokenizer, checkpoint and engine together; sync, streaming and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any, cast, overload

import torch

from scumble import editing, filling, reads
from scumble.answers import Trace
from scumble.asking import Asking, Progress, last
from scumble.checkpoint import load_checkpoint, load_config, read_generation_config
from scumble.checkpoint.files import as_folder
from scumble.checkpoint.text import read_tokenizer
from scumble.decode import Request
from scumble.diffusion import Noise
from scumble.editing import Edit
from scumble.errors import InvalidRequest, TokenizerError, shown
from scumble.events import Finished, Generation, StreamEvent
from scumble.filling import Fill
from scumble.placement import choose_device, choose_dtype
from scumble.reads import Score
from scumble.requests import TEXT_INPUTS, Ids, check_inputs
from scumble.settings import GenerationConfig
from scumble.structuring import with_schema
from scumble.text import Message, Tokenizer
from scumble.text.chat import find_sources


def embedded_path() -> Path:
    """The folder of the embedded model, inside the installed package."""
    return Path(str(resources.files("scumble") / "assets" / "embedded"))


class LLM(Asking):
    """A loaded model with its tokenizer. Safe to use from several threads and event loops: all share one engine."""

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        *,
        ops: str | None = None,
        cache_dtype: str | None = None,
    ) -> LLM:
        """Load a checkpoint folder in the released format, or a GGUF file; None loads the embedded model.

        dtype: "float32", "bfloat16", "int8" (weights and activations; quickest), "int4" (weights; smallest) or "auto"
            (as stored; float32 on a CPU where bfloat16 is slow). On graphics cards "fp8" and "nvfp4" too.
        device: "cpu", "cuda", "cuda:1" …, or "auto" (the GPU when there is one).
        ops: which operations serve: "cpu" (native kernels), "reference" (plain torch) …; None: the quickest that
            can, or what the environment variable SCUMBLE_OPS names.
        cache_dtype: "int8" or "fp8" keep keys and values in eight bits, half of bfloat16's memory; None: the model's.
        A checkpoint without tokenizer loads for work on ids. Raises CheckpointError or TokenizerError.
        """
        folder = embedded_path() if path is None else as_folder(path)
        where = choose_device(device)
        form = choose_dtype(dtype, where, ops)
        tokenizer, defaults = _read_small_files(folder)  # a mistake there shows before minutes of reading weights
        model = load_checkpoint(folder, form, where, ops, cache_dtype)
        return cls(model, tokenizer, folder=folder, defaults=defaults)

    # --- text ---------------------------------------------------------------------------------------------------

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is an iterable of str as well
        self, prompt: str, config: GenerationConfig | None = ..., **inputs: Any
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str],
        config: GenerationConfig | None = ...,
        *,
        progress: Progress | None = ...,
        **inputs: Any,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        config: GenerationConfig | None = None,
        *,
        progress: Progress | None = None,
        trace: Trace | None = None,
        **inputs: Any,
    ) -> Generation | list[Generation]:
        """Continue a text; or any number of texts, in order. `inputs`: draft and pinned, as for generate_ids;
        prediction, a text that the answer will probably be like, from which the canvas starts instead of from noise;
        schema, a JSON Schema or the class of a pydantic model, for config's json_schema.

        progress: called with how many of how many are done, whenever one is. trace: with a PassDone after every pass.
        Where a text ends in white space that tokens usually begin with (a line break, a blank), the token of it is
        left to the answer, whose first token then begins with it, and whose text leaves it out. Not so with drafts and
        pins, which count positions from the prompt's end.
        Of several texts all are checked before the first is answered. One that fails later ends no other; at the end
        RequestsFailed is raised, which holds the answers to the others.
        """
        config = with_schema(config, inputs.pop("schema", None))
        if isinstance(prompt, (str, bytes, bytearray)) or not isinstance(prompt, Sequence):
            return last(self.stream_request(self.text_request(prompt, config, **inputs), drafts=False, trace=trace))
        check_inputs(inputs, TEXT_INPUTS)
        each = _per_row(inputs, len(prompt))
        requests = [self.text_request(one, config, **own) for one, own in zip(prompt, each, strict=True)]
        return self.answer_all(requests, progress, trace)

    def stream(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Iterator[StreamEvent]:
        """Continue a text, event by event: a Draft after every pass, Committed text, and Finished at the end."""
        return self.stream_request(self.text_request(prompt, config, **inputs))

    def chat(self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any) -> Generation:
        """Answer a conversation, [{"role": "user", "content": "…"}, …]. `template`: tools, tool_choice,
        enable_thinking, …; see docs/structure.md for calls that are guaranteed.

        Raises TemplateError where the model has no chat template.
        """
        return last(self.stream_request(self.chat_request(messages, config, **template), drafts=False))

    def stream_chat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Iterator[StreamEvent]:
        """Like `chat`, event by event."""
        return self.stream_request(self.chat_request(messages, config, **template))

    def infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """The text between prefix and suffix. For models trained to fill in the middle."""
        return last(self.stream_request(self.fill_request(prefix, suffix, config), drafts=False))

    def stream_infill(self, prefix: str, suffix: str, config: GenerationConfig | None = None) -> Iterator[StreamEvent]:
        """Like `infill`, event by event."""
        return self.stream_request(self.fill_request(prefix, suffix, config))

    def repair(self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None) -> Generation:
        """What `damaged`, between prefix and suffix, should have been. For models trained to repair.

        The canvas starts from the damaged text instead of noise, so it is edited in place: what is right can stay.
        """
        return last(self.stream_repair(prefix, damaged, suffix, config))

    def stream_repair(
        self, prefix: str, damaged: str, suffix: str, config: GenerationConfig | None = None
    ) -> Iterator[StreamEvent]:
        """Like `repair`, event by event."""
        if damaged is None:
            raise InvalidRequest("there is no damaged text to repair; infill asks for a text without one")
        return self.stream_request(self.fill_request(prefix, suffix, config, damaged))

    # --- on a text, rather than behind it (filling.py, reads.py) ------------------------------------------------

    def fill(self, template: str, config: GenerationConfig | None = None) -> Fill:
        """Fill the holes of a text: "a {{hole}} b {{hole:name max=12 regex=[a-z]+}}". See `filling.parse_template`."""
        return filling.fill(self, template, config)

    def edit(
        self,
        text: str,
        instruction: str | None = None,
        *,
        region: tuple[int, int] | None = None,
        strength: float = 0.5,
        config: GenerationConfig | None = None,
    ) -> Edit:
        """Write a region of a text anew, starting from what stands there. See `editing.edit`."""
        return editing.edit(self, text, instruction, region=region, strength=strength, config=config)

    def read(self, template: str | Sequence[str], slots: Mapping[str, Sequence[str]], **options: Any) -> Any:
        """Probabilities of labels at the slots of a text, {{name}} -> a Read; of several texts -> a list of them. See
        `reads.read`."""
        if isinstance(template, str):
            return reads.read(self, [template], slots, **options)[0]
        return reads.read(self, template, slots, **options)

    def score(self, text: str) -> Score:
        """How probable the causal model finds a text, token by token."""
        return reads.score(self, text)

    # --- async --------------------------------------------------------------------------------------------------

    async def agenerate(self, prompt: str, config: GenerationConfig | None = None, **inputs: Any) -> Generation:
        """Like `generate`; the event loop stays free. Cancelling it ends the work after the present pass."""
        return await self._answer(lambda: self.text_request(prompt, config, **inputs))

    async def achat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, **template: Any
    ) -> Generation:
        """Like `chat`, in the manner of `agenerate`."""
        return await self._answer(lambda: self.chat_request(messages, config, **template))

    def astream(
        self, prompt: str, config: GenerationConfig | None = None, *, drafts: bool = True, **inputs: Any
    ) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream`; the event loop stays free while the model works. Closing it cancels the request."""
        return self._astream(lambda: self.text_request(prompt, config, **inputs), drafts)

    def astream_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig | None = None,
        *,
        drafts: bool = True,
        **template: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Like `stream_chat`, in the manner of `astream`."""
        return self._astream(lambda: self.chat_request(messages, config, **template), drafts)

    async def _astream(self, make: Callable[[], Request], drafts: bool) -> AsyncGenerator[StreamEvent, None]:
        request = await asyncio.to_thread(make)  # a long prompt takes its time to encode
        async with aclosing(self.astream_request(request, drafts=drafts)) as events:
            async for event in events:
                yield event

    async def _answer(self, make: Callable[[], Request]) -> Generation:
        async with aclosing(self._astream(make, drafts=False)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.generation
        raise AssertionError("a stream ends with Finished")

    # --- ids ----------------------------------------------------------------------------------------------------

    def generate_ids(
        self,
        ids: Ids | Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        noise: Noise | Sequence[Noise] | None = None,
        draft: Any = None,
        pinned: Any = None,
        trace: Trace | None = None,
    ) -> Any:
        """Continue a list of ids -> Generation; or several lists in one batch -> a list of Generations.

        draft: ids the answer starts from, from its position 0, instead of noise. pinned: {answer position: id},
        which stay. For a batch noise, draft and pinned are lists, one entry a row, and config may be one too.
        trace is called with a PassDone after every pass of every row.
        """
        inputs = {"noise": noise, "draft": draft, "pinned": pinned}
        if not isinstance(ids, Sequence) or len(ids) == 0 or isinstance(ids[0], Integral | float):
            return self.answer_all([self.request(cast(Ids, ids), cast(Any, config), **inputs)], None, trace)[0]
        return self.answer_all(self._requests(cast(Sequence[Ids], ids), config, inputs), None, trace)

    def stream_ids(
        self,
        ids: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        trace: Trace | None = None,
        **inputs: Any,
    ) -> Iterator[StreamEvent]:
        """Continue several lists of ids side by side; events carry their row. Checks all requests before it starts.

        inputs: those of `request`, each a list with one entry a row.
        """
        check_inputs({name: value for name, value in inputs.items() if name != "typed"})
        return self.stream_requests(self._requests(ids, config, inputs), trace=trace)

    def _requests(
        self,
        ids: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig] | None,
        inputs: Mapping[str, Any],
    ) -> list[Request]:
        each = _per_row({**inputs, "config": config} if isinstance(config, Sequence) else inputs, len(ids))
        shared = {} if isinstance(config, Sequence) else {"config": config}
        return [self.request(own, **shared, **rest) for own, rest in zip(ids, each, strict=True)]


def _read_small_files(folder: Path) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer and the generation settings of a folder. Raises for any file beside the weights that is damaged."""
    config, defaults = load_config(folder), read_generation_config(folder)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        return None, defaults
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}"
        )
    if folder.is_dir():
        find_sources(folder)
    return tokenizer, defaults


def _per_row(inputs: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Inputs of a batch, lists with one entry a row, as the inputs of each row. None: unset for all."""
    given = {name: values for name, values in inputs.items() if values is not None}
    for name, values in given.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != rows:
            raise InvalidRequest(f"{name} must be a list with one entry a row ({rows}), found {shown(values)}")
    return [{name: values[row] for name, values in given.items()} for row in range(rows)]


__all__ = ["LLM", "embedded_path"]
