"""Measure what a model can do, offline: tasks with fixed seeds, both decoders side by side, means with intervals.

    from scumble.evaluate import Plan, evaluate
    report = evaluate(LLM.load(), Plan(tasks=("infill",), limit=50))

`plan` says what is to be done, `evaluate` does it and returns JSON values; docs/evaluation.md says what they mean.
"""

from scumble.evaluate.plan import TASKS, Plan
from scumble.evaluate.run import evaluate

__all__ = ["TASKS", "Plan", "evaluate"]
