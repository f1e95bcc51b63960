"""`python tools/corpus`: build the training corpus, train its tokenizer, pack it into token ids."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scumble.errors import InvalidRequest

app = typer.Typer(
    help="Build the training data: corpus, tokenizer, packed tokens.", no_args_is_help=True, add_completion=False
)

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the corpus; made if missing.")]


def _say(line: str, start: float = time.monotonic()) -> None:
    typer.echo(f"{time.monotonic() - start:7.1f} s  {line}", err=True)


def _warn(line: str) -> None:
    typer.echo(f"warning: {line}", err=True)


@app.command()
def build(
    out: OutOption = Path("corpus"),
    packages: Annotated[
        Path | None, typer.Option(help="List of name==version lines, or a manifest.json; default: the shipped list.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N packages.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes for reading wheels.")] = 2,
    max_bytes_per_package: Annotated[int, typer.Option(help="At most this much text from one package.")] = 3_000_000,
    include_files: Annotated[bool, typer.Option("--include-files", help="Whole files too.")] = False,
    include_tests: Annotated[bool, typer.Option("--include-tests", help="Test code too.")] = False,
    keep_wheels: Annotated[bool, typer.Option(help="Keep the downloaded wheels.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the totals as JSON.")] = False,
) -> None:
    """Fetch permissively licensed packages and extract their functions into train, validation and test.jsonl.

    Interrupt it at any time; the same command goes on where it was.

    Example: python tools/corpus build --out corpus --limit 80
    """
    from corpus import CorpusSettings, build_corpus, read_pins, settings_of
    from corpus.split import SPLITS

    settings = CorpusSettings(
        max_bytes_per_package=max_bytes_per_package, include_files=include_files, include_tests=include_tests
    )
    pins = read_pins(packages)[:limit]
    if packages is not None and (theirs := settings_of(packages)) is not None:
        ours = dataclasses.asdict(settings)
        unlike = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if unlike:
            other = ", ".join(f"{name} {theirs[name]} (here {ours[name]})" for name in unlike)
            _warn(f"{packages} was built with other settings, so the texts will differ: {other}")
    try:
        manifest = build_corpus(out, pins, settings, jobs=jobs, keep_wheels=keep_wheels, say=_say)
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command to go on", err=True)
        raise typer.Exit(130) from None
    total = manifest["totals"]
    for split in SPLITS:
        if not total["splits"].get(split, {}).get("functions"):
            _warn(f"the {split} split is empty; which packages belong to it is fixed, take more of them (--limit)")
    if as_json:
        typer.echo(json.dumps(total))
        return
    typer.echo(f"{total['functions']} texts, {total['bytes'] / 1e6:.1f} MB, {total['packages']} packages in {out}")
    for split, count in total["splits"].items():
        typer.echo(
            f"  {split}: {count['functions']} texts, {count['bytes'] / 1e6:.1f} MB, {count['packages']} packages"
        )
    for reason, count in total["excluded"].items():
        typer.echo(f"  left out: {count} packages, {reason}")


@app.command()
def tokenizer(
    out: OutOption = Path("corpus"),
    vocabulary: Annotated[list[int] | None, typer.Option(min=272, max=65536, help="Size; may be repeated.")] = None,
    megabytes: Annotated[int, typer.Option(min=1, max=1000, help="Training text to use.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train byte-level BPE vocabularies on the corpus in --out; writes tokenizer-<size>/tokenizer.json there.

    Example: python tools/corpus tokenizer --out corpus --vocabulary 8192 --vocabulary 16384
    """
    from corpus.bpe import bytes_per_token, load_tokenizer, sample_texts, save_tokenizer, spread, train_bpe

    train = out / "train.jsonl"
    every = spread(train, megabytes * 1_000_000)
    held_out = list(sample_texts(out / "validation.jsonl", 20_000_000))
    results = []
    for size in vocabulary or [8192]:
        path = out / f"tokenizer-{size}" / "tokenizer.json"
        save_tokenizer(train_bpe(sample_texts(train, megabytes * 1_000_000, every), size), path)
        ratio = bytes_per_token(load_tokenizer(path), held_out) if held_out else 0.0
        results.append({"vocabulary": size, "bytes_per_token": round(ratio, 4)})
        if not as_json:
            typer.echo(
                f"{path}: {ratio:.3f} bytes a token on validation" if held_out else f"{path}: no validation text"
            )
    if as_json:
        typer.echo(json.dumps(results))


@app.command()
def pack(
    tokenizer_file: Annotated[Path, typer.Option("--tokenizer", help="A tokenizer.json from `tokenizer`.")],
    out: OutOption = Path("corpus"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the document order.")] = 0,
    documented: Annotated[bool, typer.Option("--documented", help="Only functions with a docstring.")] = False,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Only texts up to that many UTF-8 bytes.")] = None,
    methods: Annotated[
        float, typer.Option(min=0, max=1, help="Keep this share of the methods (first argument self or cls).")
    ] = 1.0,
    name: Annotated[str | None, typer.Option(help="Name of the folder; default tok<size>.")] = None,
) -> None:
    """Turn the three splits into flat files of token ids; writes tok<size>/<split>.bin, .offsets and .json.

    Example: python tools/corpus pack --out corpus --tokenizer corpus/tokenizer-8192/tokenizer.json
    """
    from corpus.bpe import load_tokenizer
    from corpus.pack import is_method, pack_jsonl, share_of
    from corpus.split import SPLITS

    if name is not None and (name in ("", "..") or Path(name).name != name):
        raise InvalidRequest(f"--name must be a plain folder name inside --out, found {name!r}")
    loaded = load_tokenizer(tokenizer_file)
    folder = out / (name if name is not None else f"tok{loaded.get_vocab_size()}")

    def keep(record: dict[str, Any]) -> bool:
        if documented and not record.get("documented"):
            return False
        if methods < 1 and is_method(record["text"]) and share_of(record["text"]) >= methods:
            return False
        return max_bytes is None or len(record["text"].encode()) <= max_bytes

    for split in SPLITS:
        tokens = pack_jsonl(out / f"{split}.jsonl", loaded, folder / split, seed=seed, keep=keep)
        typer.echo(f"{folder / split}.bin: {tokens} tokens")
        if not tokens:
            _warn(f"{out / split}.jsonl has no text to pack; allow more of it, or build from more packages")
