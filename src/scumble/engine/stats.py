"""What an engine is doing, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Now: requests waiting and running, canvases in flight (slots). Since the start: requests that ended, failed or
    were cancelled; steps, passes over a canvas (candidates count each), tokens committed, tokens encoded (prefilled:
    prompts and commits), tokens whose keys and values another request had left (reused), and how often a request made
    room for an older one (preempted). prefix_bytes: what is kept of beginnings. cache_bytes: what requests that run
    have for their keys and values. cache_limit: what both may be together."""

    waiting: int = 0
    running: int = 0
    slots: int = 0
    prefix_bytes: int = 0
    cache_bytes: int = 0
    cache_limit: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    passes: int = 0
    tokens: int = 0
    prefilled: int = 0
    reused: int = 0
    preempted: int = 0
