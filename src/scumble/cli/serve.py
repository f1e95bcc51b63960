"""`scumble serve`: a model over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, cast

import typer

from scumble.cli import options as o
from scumble.cli.loading import load_llm
from scumble.cli.serve_state import State, Store, need_serve, state_folder
from scumble.cli.terminal import error_console
from scumble.errors import InvalidRequest

EPILOG = """\
Examples:

  scumble serve

  scumble serve path/to/checkpoint --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem

  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "def mean(values):"}'
"""


def serve(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; nothing: the embedded model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    cache_dtype: o.CacheDtype = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; may be given several times.")
    ] = None,
    max_running: Annotated[int, typer.Option(help="Answers in the making at the same time.")] = 8,
    max_waiting: Annotated[int, typer.Option(help="Answers that may wait; more are refused with 429.")] = 64,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body.")] = 8 * 2**20,
    max_file_bytes: Annotated[int, typer.Option(help="Largest file that may be uploaded for a batch.")] = 100 * 2**20,
    max_files_bytes: Annotated[int, typer.Option(help="Room for all files that are kept.")] = 4 * 2**30,
    drain_seconds: Annotated[float, typer.Option(help="Time for requests in flight after SIGTERM.")] = 30.0,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Host header to answer besides the address; * for any.")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None, typer.Option(help="Web page elsewhere that may call, e.g. https://chat.example.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file (PEM); then it is HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key file (PEM).")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one a line, besides those of scumble keys.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Answer anybody, also from other machines.")] = False,
    state: State = None,
    store: Store = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Keep no audit log.")] = False,
    keep_texts: Annotated[
        bool, typer.Option("--keep-texts", help="Store prompts and answers beside the audit log.")
    ] = False,
    redact: Annotated[
        str | None, typer.Option(help="module:function that takes a text before it is stored, and returns another.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve the API alone, without the web page.")] = False,
) -> None:
    """Serve a model over HTTP, in the forms of OpenAI's and Anthropic's APIs.

    Without keys it answers this machine alone. `scumble keys create NAME --scope admin` makes the first one.
    """
    need_serve()
    from scumble.serve.run import serve as run
    from scumble.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, names=tuple(served_model_name or ()), max_running=max_running, max_waiting=max_waiting,
        max_body_bytes=max_body_bytes, max_file_bytes=max_file_bytes, max_files_bytes=max_files_bytes,
        drain_seconds=drain_seconds, hosts=tuple(allowed_host or ()),
        origins=tuple(allowed_origin or ()), tls_cert=tls_cert, tls_key=tls_key, key_file=api_key_file, is_open=open_,
        state=state_folder(state), store=store, audit=not no_audit, keep_texts=keep_texts,
        redact=None if redact is None else _function(redact), page=not no_page,
    )  # fmt: skip
    run(load_llm(model, dtype, device, cache_dtype, error_console()), settings)


def _function(name: str) -> Callable[[str], str]:
    """The function that module:function names."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest(f"--redact must name a function as module:function, found {name!r}: {error}") from None
    if not callable(found):
        raise InvalidRequest(f"--redact must name a function, found {name!r}")
    return cast("Callable[[str], str]", found)
