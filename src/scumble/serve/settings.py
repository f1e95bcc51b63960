"""Every option of `scumble serve`, with its range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from scumble.errors import InvalidRequest, shown


@dataclass(frozen=True)
class ServeSettings:
    """How the server behaves; times in seconds, sizes in bytes.

    names: what clients may call the model; the first is the one that answers carry. Empty: the folder's name.
    max_running: canvases that are denoised at the same time; max_waiting: requests that may wait for a place.
    max_choices: answers (`n` times prompts) that one request may ask for.
    max_file_bytes, max_files_bytes: of an uploaded file, and of all that are kept.
    queue_seconds: how long a request may wait for a place before it is refused.
    read_seconds: for the head of a request, and again for its body. write_seconds: for a reader to take one piece.
    stall_seconds: an engine that has work and takes no step for so long is replaced; a single pass takes less.
    drain_seconds: what requests in flight get after SIGTERM.
    hosts: Host headers to answer, in addition to the address served; ("*",): any.
    state: folder of the keys' database and the audit log; None: keys in memory, no audit log.
    store: a postgresql:// URL that servers share, instead of the database in `state`.
    key_file: further keys (see keys.read_key_file). is_open: serve others than this machine without any key.
    keep_texts: store prompts and answers beside the audit log, each through `redact`.
    origins: web pages elsewhere that may call the API ("https://chat.example").
    """

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    max_running: int = 8
    max_waiting: int = 64
    max_choices: int = 128
    max_body_bytes: int = 8 * 2**20
    max_file_bytes: int = 100 * 2**20
    max_files_bytes: int = 4 * 2**30
    max_depth: int = 64
    queue_seconds: float = 120.0
    read_seconds: float = 20.0
    write_seconds: float = 60.0
    drain_seconds: float = 30.0
    stall_seconds: float = 300.0
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    state: Path | None = None
    store: str | None = None
    key_file: Path | None = None
    is_open: bool = False
    audit: bool = True
    keep_texts: bool = False
    redact: Callable[[str], str] | None = None
    warm_up: bool = True
    page: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535), ("max_running", 1, 4096), ("max_waiting", 0, 100_000), ("max_choices", 1, 4096),
            ("max_body_bytes", 1024, 2**31), ("max_file_bytes", 1024, 2**31), ("max_files_bytes", 1024, 2**50),
            ("max_depth", 4, 128), ("queue_seconds", 0.1, 86400),
            ("read_seconds", 0.1, 3600), ("write_seconds", 0.1, 3600), ("drain_seconds", 0, 3600),
            ("stall_seconds", 0.1, 86400),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidRequest(f"{name} must lie in {low} … {high}, found {shown(value)}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidRequest("TLS needs both a certificate and a key: give --tls-cert and --tls-key")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
