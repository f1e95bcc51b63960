"""Reading the audit log: is it whole, what does it say, and what is old enough to go. See audit.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scumble.serve.audit import AuditLog
from scumble.serve.chain import (
    LOG,
    PUBLIC_KEY,
    START,
    TEXTS,
    canonical,
    checked,
    is_signed,
    lines_of,
    locked,
    make_line,
    now,
    read_public_key,
    sign,
    signing_key,
    stamp,
)


class Verdict:
    """What `verify` found. fault: the first thing that is wrong, or None."""

    def __init__(self) -> None:
        self.lines = 0
        self.checkpoints = 0
        self.unsigned = 0  # lines after the last signature
        self.pruned = 0  # lines that tombstones stand for
        self.unfinished = 0  # requests that began and never ended: the process was killed, or they still run
        self.first: str | None = None
        self.last: str | None = None
        self.head = START
        self.fault: str | None = None


def verify(folder: Path, public_key: Path | None = None) -> Verdict:
    """Read the whole log and check every hash, number and signature."""
    verdict, open_requests = Verdict(), set()
    key = read_public_key(public_key or folder / PUBLIC_KEY)
    seq, head, tombstone = 0, START, START
    for number, raw in enumerate(lines_of(folder / LOG), 1):
        record = checked(raw)
        if record is None:
            verdict.fault = f"line {number} was changed: its hash is not that of its content"
            break
        if record["kind"] == "tombstone":
            fault = _tombstone_fault(record, tombstone, seq, key)
            if fault:
                verdict.fault = f"line {number}: {fault}"
                break
            tombstone = record["hash"]
            seq, head = record["last_seq"], record["last_hash"]
            verdict.pruned += record["records"]
            continue
        if record["prev"] != head or record["seq"] != seq + 1:
            verdict.fault = f"line {number} does not follow the line before it: lines were removed, added or moved"
            break
        if record["kind"] == "checkpoint":
            if record["signs"] != head or not is_signed(key, head, record["signature"]):
                verdict.fault = f"line {number}: the signature is not that of this log's key"
                break
            verdict.checkpoints += 1
        seq, head = record["seq"], record["hash"]
        verdict.lines += 1
        verdict.unsigned = 0 if record["kind"] == "checkpoint" else verdict.unsigned + 1
        verdict.first, verdict.last, verdict.head = verdict.first or record["time"], record["time"], head
        if record["kind"] == "begin":
            open_requests.add(record["request"])
        elif record["kind"] == "end":
            open_requests.discard(record["request"])
    verdict.unfinished = len(open_requests)
    return verdict


def records(folder: Path, since: str = "", until: str = "~") -> Iterator[dict[str, Any]]:
    """Lines whose time lies between two ISO times (UTC)."""
    for raw in lines_of(folder / LOG):
        record = json.loads(raw)
        if since <= record["time"] < until:
            yield record


def prune(folder: Path, days: float, at: datetime | None = None) -> int:
    """Delete lines older than so many days, leaving a signed tombstone -> how many went."""
    before = stamp((at or datetime.now(UTC)) - timedelta(days=days))
    log = AuditLog(folder)
    with locked(folder), (folder / LOG).open("rb") as file:
        stones: list[bytes] = []
        gone, first, last = 0, None, None
        kept_from = 0
        for raw in file:
            record = json.loads(raw)
            if record["kind"] == "tombstone":
                stones.append(raw)
            elif record["time"] < before:
                gone, first, last = gone + 1, first or record, record
            else:
                break
            kept_from += len(raw)
        if first is None or last is None:
            log.close()
            return 0
        fields = {
            "kind": "tombstone", "time": now(), "prev": json.loads(stones[-1])["hash"] if stones else START,
            "first_seq": first["seq"], "last_seq": last["seq"], "last_hash": last["hash"], "records": gone,
            "from": first["time"], "until": last["time"],
        }  # fmt: skip
        fields["signature"] = sign(signing_key(folder), canonical(fields).decode())
        file.seek(kept_from)
        _replace(folder / LOG, [*stones, make_line(fields)[0]], file)
    log.append("pruned", records=gone, until=last["time"])
    log.close()
    return gone


def prune_texts(folder: Path, days: float, at: datetime | None = None) -> int:
    """Delete stored texts older than so many days -> how many went. Their digests stay in the chain."""
    before = stamp((at or datetime.now(UTC)) - timedelta(days=days))
    path = folder / TEXTS
    if not path.exists():
        return 0
    log = AuditLog(folder)
    with locked(folder):
        lines = list(lines_of(path))
        kept = [line for line in lines if json.loads(line)["time"] >= before]
        if len(kept) < len(lines):
            _replace(path, kept)
    gone = len(lines) - len(kept)
    if gone:
        log.append("texts_pruned", texts=gone, until=before)
    log.close()
    return gone


def _tombstone_fault(record: dict[str, Any], previous: str, seq: int, key: Ed25519PublicKey) -> str | None:
    if record["prev"] != previous or record["first_seq"] != seq + 1:
        return "the tombstone does not follow the one before it"
    signed = {name: value for name, value in record.items() if name not in ("signature", "hash")}
    if not is_signed(key, canonical(signed).decode(), record["signature"]):
        return "the tombstone's signature is not that of this log's key"
    return None


def _replace(path: Path, lines: Sequence[bytes], rest: IO[bytes] | None = None) -> None:
    """Either the old file or the whole new one, whatever happens in between. rest: a file whose remainder follows."""
    staged = path.with_suffix(".new")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(lines)
        if rest is not None:
            shutil.copyfileobj(rest, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
