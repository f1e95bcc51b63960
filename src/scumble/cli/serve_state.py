"""What the server's commands share: where its state lives, and a clear word where its packages are missing."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from scumble.errors import InvalidRequest

PACKAGES = (
    "fastapi", "uvicorn", "python_multipart", "pydantic", "prometheus_client", "limits", "sqlalchemy", "cryptography",
)  # fmt: skip
State = Annotated[
    Path | None, typer.Option(help="Folder of keys and audit log; default: $SCUMBLE_STATE, else in your home.")
]
Store = Annotated[
    str | None,
    typer.Option(envvar="SCUMBLE_STORE", help="postgresql:// URL that servers share, for keys and limits."),
]


def state_folder(given: Path | None) -> Path:
    """The given folder, $SCUMBLE_STATE, or scumble under $XDG_STATE_HOME (~/.local/state)."""
    if given is not None:
        return given
    if os.environ.get("SCUMBLE_STATE"):
        return Path(os.environ["SCUMBLE_STATE"])
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "scumble"


def need_serve() -> None:
    """Raises InvalidRequest where the extra `serve` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InvalidRequest(
            f"{', '.join(missing)} must be installed for this: pip install 'scumble[serve]' brings all that it needs"
        )
