"""The main loop: one request, from prompt ids to committed ids, one canvas after another.

Read `diffusion` top to bottom: encode the prompt; per canvas: start from noise, then per pass denoise, propose,
accept, renoise, until stable and confident; commit; next canvas. `yield Segment` runs the model (see steps.py).
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from scumble.diffusion import Canvas, Noise, Proposal, committed_ids, start_canvas
from scumble.engine.autoregressive import autoregressive
from scumble.engine.candidates import choose, side_by_side
from scumble.engine.commit import cut, with_alternatives
from scumble.engine.prefill import prefill
from scumble.engine.request import Request
from scumble.engine.steps import Answer, PassDone, Steps, TokensCommitted, Work
from scumble.errors import check_output
from scumble.model import Cache, Segment, Transformer
from scumble.ops import VocabResult


def generate(model: Transformer, request: Request) -> Steps:
    """The program of one row, by the decoder that the request names."""
    return (diffusion if request.settings.decoder == "diffusion" else autoregressive)(model, request)


def diffusion(model: Transformer, request: Request) -> Steps:
    """Answer a request canvas by canvas. With several candidates a canvas, or revisions, the causal model has its say
    in what is committed.
    """
    settings = request.settings
    scored = settings.logprobs is not None or len(request.noises) > 1 or settings.revisions > 0
    cache = model.new_cache()
    last_hidden = yield from prefill(request.prompt.to(model.device), cache, quiet=not scored)

    passes: list[int] = []
    evaluations = 0
    answer: list[int] = []
    uncached: Segment | None = None  # what was committed last; it is encoded along with the next canvas's first pass
    while True:
        index = len(passes)
        finished = yield from side_by_side([
            denoise(model, request, noise, cache, first_canvas(model, request, noise, index, len(answer)),
                    uncached if number == 0 else None, None if answer else request.first)
            for number, noise in enumerate(request.noises)
        ])  # fmt: skip
        passes.append(max(taken for _, taken in finished))
        evaluations += sum(taken for _, taken in finished)

        drafts = [cut(ids, settings, settings.max_new_tokens - len(answer)) for ids, _ in finished]
        ids, ended = drafts[0]
        logprobs, reads = None, 0
        if scored:
            room = min(settings.canvas_length(index), settings.max_new_tokens - len(answer))
            text, reads = yield from choose(model, request, cache, answer, drafts, last_hidden, room)
            ids, ended, last_hidden = text.ids, text.ended, text.last_hidden
            logprobs = None if settings.logprobs is None else with_alternatives(text.logprobs, settings.logprobs)
        answer += ids.tolist()
        yield TokensCommitted(tuple(ids.tolist()), index, logprobs, reads)
        if ended or len(answer) == settings.max_new_tokens:  # the last canvas is never encoded for its own sake
            return Answer("stop" if ended else "length", tuple(passes), evaluations)
        uncached = Segment(ids, cache, "encode", quiet=True)


def first_canvas(model: Transformer, request: Request, noise: Noise, index: int, begin: int) -> Canvas:
    """Canvas number `index` before its first pass: noise, with what the request's draft and pins say about it.

    begin: its first position in the answer.
    """
    length = request.settings.canvas_length(index)
    draft = None if request.draft is None else request.draft[begin : begin + length]
    pinned = {p - begin: token for p, token in request.pinned.items() if begin <= p < begin + length}
    return start_canvas(noise, index, length, model.config.vocab_size, draft, pinned, model.device)


def denoise(
    model: Transformer, request: Request, noise: Noise, cache: Cache, canvas: Canvas, uncached: Segment | None,
    first: Tensor | None,
) -> Generator[Work | PassDone, Tensor, tuple[Tensor, int]]:  # fmt: skip
    """Denoise one canvas until it is stable and confident or out of passes -> ids to commit [L], passes taken.

    Raises ScumbleError where the model's output is not a number.
    uncached: a quiet segment that the canvas must see in its context; it shares the first pass's forward.
    first: the ids that its position 0 may have; None: any.
    """
    settings, vocab = request.settings, model.config.vocab_size
    schedule = settings.schedule_of(canvas.length)
    soft: Tensor | None = None
    history: list[Tensor] = []
    pass_index = 0
    while True:
        look = Segment(canvas.ids, cache, "denoise", soft)
        hidden = yield look if uncached is None or pass_index else (uncached, look)
        temperature = schedule(pass_index)
        uniforms = noise.uniform(canvas.index, pass_index, canvas.length)
        last = pass_index + 1 == schedule.passes  # nothing follows that would read a soft embedding
        proposal, soft = propose(
            model, canvas, hidden, temperature, uniforms, settings.temperature == 0, not last, first
        )

        accepted = settings.sampler.accept(canvas, proposal)
        fresh = torch.as_tensor(noise.renoise(canvas.index, pass_index, canvas.length, vocab), device=model.device)
        following = settings.sampler.renoise(canvas, proposal, accepted, fresh)

        stopped = settings.stopping.done(canvas, proposal, history)
        check_output(float(proposal.entropy.sum()))  # here, where the host has waited for the entropies anyway
        yield PassDone(
            canvas.index, pass_index, temperature, canvas.ids, following.ids, accepted,
            proposal.argmax, proposal.sample, proposal.entropy, stopped,
        )  # fmt: skip
        pass_index += 1
        if stopped or last:
            return committed_ids(settings.commit, canvas, proposal), pass_index
        history = [*history, proposal.argmax][-max(settings.stopping.stability, 1) :]
        canvas = following


def propose(
    model: Transformer, canvas: Canvas, hidden: Tensor, temperature: float, uniforms: Tensor, greedy: bool,
    want_soft: bool, first: Tensor | None = None,
) -> tuple[Proposal, Tensor | None]:  # fmt: skip
    """Hidden states [L, D] -> what the model proposes, and the soft embedding [L, D] for the next pass, if wanted.

    A pinned position proposes its own id, is certain of it, and its soft embedding is that id's embedding.
    first: the ids that position 0 may have; None: any.
    """
    weight = model.embed_tokens.weight

    def head(rows: slice, allowed: Tensor | None = None) -> VocabResult:
        return model.vocab_head(
            hidden[rows], temperature=temperature, allowed=allowed, want_soft=want_soft,
            uniforms=None if greedy else torch.as_tensor(uniforms)[rows],
        )  # fmt: skip

    if first is None:
        result = head(slice(None))
    else:
        allowed = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
        allowed[first.to(weight.device)] = True
        result = head(slice(0, 1), allowed)
        if canvas.length > 1:
            result = result.followed_by(head(slice(1, None)))
    sample = result.argmax if result.sample is None else result.sample
    proposal = Proposal(
        argmax=canvas.keep_pinned(result.argmax),
        sample=canvas.keep_pinned(sample),
        entropy=result.entropy.masked_fill(canvas.pinned, 0.0),
    )
    if result.soft is None:
        return proposal, None
    return proposal, torch.where(canvas.pinned[:, None], weight[canvas.ids].float(), result.soft)
