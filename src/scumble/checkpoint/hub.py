"""Checkpoints on a model hub, by id (`google/diffusiongemma-26B-A4B-it`), through huggingface-hub.

Files go to the cache that other tools share (HF_HOME), downloads are taken up where they stopped, HF_TOKEN, HF_ENDPOINT
and HF_HUB_OFFLINE are honoured. Only weights in safetensors, JSON, templates and tokenizers are taken; nothing of what
a repository holds is executed. A large file's digest is the name under which the hub knows it, and is compared.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from scumble.errors import CheckpointError, InvalidRequest, shown

WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SHA256 = re.compile(r"[0-9a-f]{64}")
BUFFER = 2**24


def is_hub_id(path: str) -> bool:
    """Whether a word may be a repository's id, "owner/name", and neither it nor a folder "owner" is here."""
    return ID.fullmatch(path) is not None and not Path(path).exists() and not Path(path).parent.exists()


def cached(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a repository that is in the cache whole, without asking the hub; None: it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(WANTED), local_files_only=True)
    except (LocalEntryNotFoundError, IncompleteSnapshotError, HFValidationError, OSError):
        return None
    return Path(str(folder)) if (Path(str(folder)) / "config.json").exists() else None


def pull(repository: str, revision: str | None = None, checked: Callable[[str], None] | None = None) -> Path:
    """Download a repository, or what is missing of it, and return its folder. checked: called with each file's name
    when its digest has been compared. Raises InvalidRequest for what is no id, CheckpointError for everything else.
    """
    if not ID.fullmatch(repository):
        raise InvalidRequest(f"a repository's id must look like owner/name, found {shown(repository)}")
    folder = _download(repository, revision)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{repository}: holds no config.json, so it is no checkpoint that Scumble can load")
    for file in sorted(folder.iterdir()):
        _check_digest(file, repository)
        if checked is not None:
            checked(file.name)
    return folder


def _download(repository: str, revision: str | None) -> Path:
    import httpx2 as http
    from huggingface_hub import constants, errors, snapshot_download

    what = repository if revision is None else f"{repository} at {revision}"
    try:
        return Path(str(snapshot_download(repository, revision=revision, allow_patterns=list(WANTED))))
    except errors.GatedRepoError:
        why = "is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
    except errors.RevisionNotFoundError:
        why = "has no such revision; give a branch, a tag or a commit"
    except errors.RepositoryNotFoundError as error:
        code = getattr(getattr(error, "response", None), "status_code", 404)
        why = f"is not there, or is private ({code}): check its id, and HF_TOKEN where it is private"
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
        if constants.HF_HUB_OFFLINE:
            why = "is not in the cache, and HF_HUB_OFFLINE is set: unset it to download"
        else:
            why = f"is not in the cache, and {constants.ENDPOINT} cannot be reached: check the network, or HF_ENDPOINT"
    except errors.HfHubHTTPError as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        why = "needs a valid token: set HF_TOKEN" if code == 401 else f"cannot be had: the hub answered {code}"
    except errors.HFValidationError as error:
        raise InvalidRequest(f"{shown(repository)}: {str(error).splitlines()[0]}") from None
    except http.HTTPError as error:
        why = (
            f"cannot be had from {constants.ENDPOINT}: {_first_line(error)}; the same command goes on where it stopped"
        )
    except OSError as error:  # a full disk; a file whose size is another than was announced
        why = f"cannot be stored: {error.strerror or _first_line(error)}; the same command goes on where it stopped"
    raise CheckpointError(f"{what}: {why}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_digest(file: Path, repository: str) -> None:
    """The cache names the content of a large file by its SHA-256. A file that is another one is taken away."""
    target = Path(os.path.realpath(file))
    if not file.is_symlink() or not SHA256.fullmatch(target.name):
        return
    digest = hashlib.sha256()
    with target.open("rb") as stream:
        while piece := stream.read(BUFFER):
            digest.update(piece)
    if digest.hexdigest() != target.name:
        target.unlink()
        file.unlink()
        raise CheckpointError(
            f"{repository}: {file.name} is damaged: its SHA-256 is not the one that the hub names; it was removed, the "
            "same command gets it again"
        )


def find_checkpoint(path: str | Path) -> Path:
    """A path as it is; for a hub id that names no file here its folder in the cache, downloaded where it is missing."""
    if not is_hub_id(str(path)):
        return Path(path)
    try:
        return cached(str(path)) or pull(str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: no such folder; and on the hub {error}") from None
