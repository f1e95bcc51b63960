"""Sequence-level distillation: batches whose answers a teacher has written, token by token.

A text can go on in many ways. Who proposes all positions of a canvas at once mixes them, unless the target leaves no
choice; a greedy teacher leaves none. (Kim and Rush, 1606.07947; Gu et al., 1711.02281, for parallel decoders.) The
teacher here is the model that training starts from, decoding autoregressively.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from scumble.checkpoint import load_checkpoint
from scumble.engine import Answer, TokensCommitted, generate, make_request, run
from scumble.generation import GenerationConfig
from scumble.model import Transformer
from scumble.train.batches import Batch, Specials

LONGEST = 96  # tokens of an answer; longer ones are rarely worth learning from a small teacher, and take long


def open_teacher(folder: str, device: torch.device) -> Transformer:
    """The checkpoint in bfloat16, for inference."""
    return load_checkpoint(folder, torch.bfloat16, device)


def distilled(batch: Batch, teacher: Transformer, specials: Specials) -> Batch | None:
    """The batch with the teacher's greedy answers behind its prompts; rows whose answer does not end are left out.

    None when no row is left.
    """
    longest = min(LONGEST, teacher.config.max_position_embeddings - batch.prompt)
    answers = greedy(teacher, [row.tolist() for row in batch.ids[:, : batch.prompt]], longest)
    kept = [(row, answer) for row, answer in enumerate(answers) if answer[-1] == specials.eos]
    if not kept:
        return None
    lengths = np.array([batch.prompt + len(answer) for _, answer in kept])
    canvases = -(-(int(lengths.max()) - batch.prompt) // batch.canvas)
    ids = np.full((len(kept), batch.prompt + canvases * batch.canvas), specials.pad, np.int64)
    for number, (row, answer) in enumerate(kept):
        ids[number, : batch.prompt] = batch.ids[row, : batch.prompt]
        ids[number, batch.prompt : lengths[number]] = answer
    return replace(batch, ids=ids, lengths=lengths, distilled=True)


def greedy(model: Transformer, prompts: list[list[int]], longest: int) -> list[list[int]]:
    """What the autoregressive decoder writes behind each prompt at temperature 0: 1 to `longest` ids."""
    config = GenerationConfig(max_new_tokens=longest, decoder="autoregressive", temperature=0)
    requests = [make_request(prompt, config, {}, model.config) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    for row, event in run(model, [generate(model, request) for request in requests]):
        if isinstance(event, TokensCommitted):
            answers[row] += event.ids
        else:
            assert isinstance(event, Answer)
    return answers
