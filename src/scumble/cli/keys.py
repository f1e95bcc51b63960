"""`scumble keys`: who may use a server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scumble.cli.serve_state import State, Store, need_serve, state_folder

if TYPE_CHECKING:
    from scumble.serve.keys import Keys

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of a server.")


def _keys(state: Path | None, store: str | None) -> Keys:
    need_serve()
    from scumble.serve.keys import Keys
    from scumble.serve.store import open_store

    return Keys(open_store(store or state_folder(state) / "keys.db"))


@app.command(epilog="Example:\n\n  scumble keys create ci --scope generate --expires-days 90 --requests-per-minute 600")
def create(
    name: Annotated[str, typer.Argument(help="What the audit log will call whoever has the key.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="generate, metrics or admin; may be given several times.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(help="Valid for so many days; without it, for ever.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Limit; without it, none.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Limit of prompt and answer tokens.")] = None,
    state: State = None,
    store: Store = None,
) -> None:
    """Make a key and print it. It is shown this once; only its hash is stored."""
    secret = _keys(state, store).create(
        name, scope or ["generate"], expires_days, requests_per_minute, tokens_per_minute
    )
    print(secret)


@app.command("list")
def show(
    state: State = None,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List all keys, also revoked and expired ones."""
    for key in _keys(state, store).all():
        public = key.public()
        if as_json:
            print(json.dumps(public))
            continue
        until = "for ever" if key.expires is None else time.strftime("until %Y-%m-%d", time.gmtime(key.expires))
        limits = [
            f"{value} {what}/min"
            for value, what in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
            if value is not None
        ]
        print("  ".join([f"{key.name:24}", f"{public['state']:8}", ",".join(key.scopes), until, *limits]))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")], state: State = None, store: Store = None
) -> None:
    """Make a key invalid for ever. Running servers refuse it within two seconds."""
    _keys(state, store).revoke(name)
    print(f"revoked {name}")
