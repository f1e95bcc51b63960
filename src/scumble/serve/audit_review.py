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

from scumble.serve.audit import AuditLog, text_digest
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
        self.texts = 0  # stored texts that are what the log says they were
        self.unfinished = 0  # requests that began and never ended: the process was killed, or they still run
        self.first: str | None = None
        self.last: str | None = None
        self.head = START
        self.fault: str | None = None


def verify(folder: Path, public_key: Path | None = None, kept_head: str | None = None) -> Verdict:
    """Read the whole log and check every hash, number and signature, and the stored texts against it.

    kept_head: a head that this log once had. A log that was cut at its end, or replaced by an older copy of itself, is
    a whole one; only who kept a head elsewhere sees that it is not there any more.
    """
    verdict, texts = Verdict(), _Texts()
    open_requests: dict[str, str] = {}  # when they began
    is_head_there = kept_head is None
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
            is_head_there = is_head_there or head == kept_head
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
        is_head_there = is_head_there or head == kept_head
        verdict.lines += 1
        verdict.unsigned = 0 if record["kind"] == "checkpoint" else verdict.unsigned + 1
        verdict.first, verdict.last, verdict.head = verdict.first or record["time"], record["time"], head
        if record["kind"] == "begin":
            open_requests[record["request"]] = record["time"]
        elif record["kind"] == "end":
            begun = open_requests.pop(record["request"], "")
            if "texts" in record:
                texts.expected[record["request"]] = (record["texts"], begun)
        elif record["kind"] == "texts_pruned":
            texts.pruned_until = max(texts.pruned_until, record["until"])
    verdict.unfinished = len(open_requests)
    if verdict.fault is None and not is_head_there:
        verdict.fault = (
            "no line has the head that was kept: lines were cut off the end, or the file was replaced by an older one"
        )
    verdict.fault = verdict.fault or texts.fault(folder)
    verdict.texts = texts.found
    return verdict


class _Texts:
    """What the log says of the texts that are stored beside it. expected: by request, the digest and when it began."""

    def __init__(self) -> None:
        self.expected: dict[str, tuple[str, str]] = {}
        self.pruned_until = ""
        self.found = 0

    def fault(self, folder: Path) -> str | None:
        """The first text that was changed, or is missing although nobody pruned it.

        A text whose request has no end in the log is of a process that was killed, or of a line that was pruned.
        """
        missing = {name for name, (_, begun) in self.expected.items() if begun >= self.pruned_until}
        if (folder / TEXTS).exists():
            for number, raw in enumerate(lines_of(folder / TEXTS), 1):
                try:
                    record = json.loads(raw)
                    body = {"prompts": record["prompts"], "answers": record["answers"]}
                    request, digest = record["request"], text_digest(record["nonce"], body)
                except (ValueError, KeyError, TypeError):
                    return f"line {number} of {TEXTS} is not what a server writes"
                if request in self.expected and self.expected[request][0] != digest:
                    return f"line {number} of {TEXTS} was changed: the log has another digest of that request's texts"
                self.found += request in self.expected
                missing.discard(request)
        return f"{len(missing)} texts are missing from {TEXTS} that were never pruned" if missing else None


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
