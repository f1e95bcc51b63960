"""`scumble pull`: a checkpoint from a model hub, by its id."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = """\
Examples:

  scumble pull google/diffusiongemma-26B-A4B-it

  HF_TOKEN=… scumble pull owner/name --revision v2
"""


def pull(
    repository: Annotated[str, typer.Argument(metavar="ID", help="owner/name, as the hub has it.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; main when left out.")] = None,
) -> None:
    """Download a checkpoint into the cache that other tools share, and print its folder.

    Weights, JSON, templates and tokenizer files only. An interrupted download goes on where it stopped. Honours
    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
    """
    from scumble.checkpoint.hub import pull as run

    print(run(repository, revision))
