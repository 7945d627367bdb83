"""Text -> dataset: `python -m data.binarize --input dump.txt --tokenizer bert-base-uncased --output DATASET`.

A line of the text (it ends at `\\n` only) becomes one sequence `[CLS] ids [SEP]`, or, if too long, several of one
document. The text is cut into ranges that depend on nothing but the text; each becomes one shard, independent of the
others: by processes of this machine, or by `mpirun --hostfile hosts -x PATH -n N python -m data.binarize ...` on many,
always the same bytes. A build that was killed goes on where it was: the same command again.
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from data import inputs, text, workers
from data.assembly import assemble, drop_work, recorded, work_folder
from data.building import Extent, Job, build_all
from data.manifest import CleaningRules, Manifest
from data.shards import Builder, Recipe
from data.text import Selection
from launch import commit
from launch.args import flag, parse, require, require_named
from launch.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAW = 1  # version of what a text becomes: bump it when the same text, tokenizer and rules would give other shards


@dataclass(frozen=True)
class Files:
    """What is read and written."""

    input: tuple[str, ...] = flag(
        help="text, UTF-8, one sequence a line: files, patterns in quotes, .gz .bz2 .xz .zst, or - for standard input; "
        "with --field records: JSON lines, Parquet, or hub:NAME[@REVISION][:CONFIG[:SPLIT]], a dataset of the hub",
        metavar="FILE",
    )
    tokenizer: str = flag(help="folder, or name on the Hugging Face hub (bert-base-uncased)", metavar="NAME")
    output: Path = flag(help="dataset folder to make; appears only when complete", metavar="DATASET")
    shard_megabytes: int | None = flag(None, "text in one shard (default: a 64th of all, between 8 and 256)", "MB")
    workers: int | None = flag(None, "processes (default: all cores; under mpirun each rank is one)", "N")
    field: str | None = flag(None, "the input is records, and this field of each is the text", "NAME")

    def __post_init__(self) -> None:
        for name in ("shard_megabytes", "workers"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive")
        require(self.field != "", "field", self.field, "must be a name")
        require_named("output", self.output)


@dataclass(frozen=True)
class Lines:
    """Which lines."""

    limit: int | None = flag(None, "only the first so many lines (plain files come before compressed ones)", "LINES")
    sample: float = flag(1.0, "this share of the lines, chosen by their content", "SHARE")
    valid_fraction: float = flag(
        0.0, "hold this share out, chosen by content: the output holds two datasets, train/ and valid/", "SHARE"
    )

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "limit", self.limit, "must be positive")
        require(0 < self.sample <= 1, "sample", self.sample, "must be above 0 and at most 1")
        require(0 <= self.valid_fraction < 1, "valid_fraction", self.valid_fraction, "must be from 0 to below 1")

    @property
    def selection(self) -> Selection:
        """The part of it that looks at a line's content."""
        return Selection(self.sample, self.valid_fraction)


@dataclass(frozen=True)
class Cleaning:
    """What becomes a sequence (lengths count the special tokens)."""

    max_length: int = flag(512, "longer lines are split into pieces of at most so many tokens", metavar="TOKENS")
    min_length: int = flag(12, "shorter sequences are dropped", metavar="TOKENS")
    max_unknown: float = flag(0.5, "sequences with this share of unknown tokens or more are dropped", metavar="SHARE")

    def __post_init__(self) -> None:
        rule = "must be from 3 ([CLS], a token, [SEP]) to 1,000,000"
        require(3 <= self.max_length <= 1_000_000, "max_length", self.max_length, rule)
        require(self.min_length <= self.max_length, "min_length", self.min_length, "must not exceed --max-length")
        require(self.max_unknown > 0, "max_unknown", self.max_unknown, "must be above 0 (above 1 keeps everything)")

    def rules(self) -> CleaningRules:
        """The form that the manifest stores."""
        return CleaningRules(self.max_length, self.min_length, self.max_unknown)


def binarize(files: Files, rules: CleaningRules, lines: Lines | None = None) -> list[Manifest]:
    """Build the dataset folder, or go on with it; under MPI, every rank calls it.

    Returns:
        The manifest of each dataset made: one, or two where lines are held out. None on MPI ranks other than 0.

    Raises:
        ConfigError: the output exists, the tokenizer can't be found, or an unfinished build was of something else.
        DataError: no sequence is left after cleaning, or the tokenizer can't be used.
        KeyboardInterrupt: complete shards are kept.
    """
    comm = workers.mpi()
    alone = comm is None or comm.Get_size() == 1
    require(alone or files.workers is None, "workers", files.workers, "under mpirun each rank is one worker")
    if comm and comm.Get_rank():
        if job := comm.bcast(None):
            builder = Builder(job.recipe)
            if not builder.fast:
                print(f"rank {comm.Get_rank()} on {platform.node()}: {builder.form}", flush=True)
            workers.build_by_ranks(builder, job.ranges, job.folder, lambda *_: None, comm)
        return []
    from data.tokenizer import load_tokenizer  # here, so that workers, which import this file, need not wait for it

    paths = inputs.expand(files.input, files.field)
    tokenizer = load_tokenizer(files.tokenizer)
    job, identity = plan(paths, files, rules, lines or Lines(), tokenizer)
    if comm and recorded(files.output) == identity:
        comm.bcast(None)  # there is nothing left to build
    return make(files.output, job, identity, tokenizer, lambda: build_all(job, files.workers, comm))


def make(
    output: Path, job: Job, identity: dict[str, Any], tokenizer: "PreTrainedTokenizerFast",
    build: Callable[[], list[Extent]],
) -> list[Manifest]:  # fmt: skip
    """Make the dataset folder of a job, or go on with it.

    Args:
        identity: what an unfinished build is compared with.
        build: makes all shards of the job that are not complete.

    Returns, raises: as `binarize`.
    """
    if recorded(output) != identity:  # else it was killed in its last moment
        commit.refuse_existing(output)
        with work_folder(job.folder, identity, job.streams):
            extents = build()
            refuse_changed(job.inputs, identity["input"], job.folder)
            assemble(job, extents, tokenizer)
            commit.publish(job.folder, output)
    drop_work(output)
    return [Manifest.read(output / name) for name in job.recipe.selection.datasets]


def refuse_changed(paths: list[str], before: list[dict[str, Any]], folder: Path) -> None:
    """Raise DataError if an input is no longer what it was when the build began."""
    for path, known in zip(paths, before, strict=True):
        if inputs.identity(path) != known:
            raise DataError(f"{path}: changed while it was read; remove {folder} and start over")


def plan(
    paths: list[str], files: Files, rules: CleaningRules, lines: Lines, tokenizer: "PreTrainedTokenizerFast"
) -> tuple[Job, dict[str, Any]]:
    """The job, and all that decides its outcome: what an unfinished build is compared with."""
    from data.tokenizer import vocabulary_of

    plain, streams = [p for p in paths if not inputs.is_stream(p)], [p for p in paths if inputs.is_stream(p)]
    size = text.shard_bytes(paths, files.shard_megabytes)
    ranges, limit = text.plan(plain, size, lines.limit)
    vocabulary = vocabulary_of(tokenizer)
    recipe = Recipe(tokenizer.backend_tokenizer.to_str(), vocabulary, rules, lines.selection, files.field)
    folder = files.output.with_name(files.output.name + ".partial")
    job = Job(folder, recipe, paths, ranges, streams, limit, size)
    return job, identity_of(job, law=LAW, lines=dataclasses.asdict(lines), field=files.field)


def identity_of(job: Job, **more: Any) -> dict[str, Any]:
    """All that decides the outcome of a job, as JSON holds it."""
    identity = {
        "input": [inputs.identity(path) for path in job.inputs],
        "tokenizer": job.recipe.vocabulary.tokenizer_hash,
        "tokenizers": tokenizers.__version__,
        "cleaning": dataclasses.asdict(job.recipe.rules),
        "shard_bytes": job.shard_bytes,
    }
    return json.loads(json.dumps(identity | more))


def summary(output: Path, manifest: Manifest) -> str:
    """What was made, in three lines."""
    did = manifest.cleaning
    return (
        f"{output}: {manifest.sequences:,} sequences, {manifest.tokens:,} tokens in {len(manifest.shards)} shard(s), "
        f"from {did.lines:,} lines\n"
        f"dropped: {did.dropped_too_short:,} too short, {did.dropped_unknown:,} mostly unknown; "
        f"split: {did.lines_split:,} lines into {did.pieces_of_split_lines:,}; "
        f"invalid UTF-8 in {did.lines_with_invalid_utf8:,}"
        + (f"; not sampled: {did.not_sampled:,}" if did.not_sampled else "")
    )


def main() -> None:
    """Command line."""
    example = (
        "  python -m data.binarize --input dump.txt --tokenizer bert-base-uncased --output datasets/dump\n"
        "  mpirun --hostfile hosts -x PATH -n 64 python -m data.binarize --input 'd/*.txt' \\\n"
        "      --tokenizer bert-base-uncased --output datasets/all"
    )
    groups = (Files, Lines, Cleaning)
    files, lines, cleaning = parse("Text -> dataset of token ids.", *groups, example=example, prog="data.binarize")
    try:
        manifests = binarize(files, cleaning.rules(), lines)
    except KeyboardInterrupt:
        print("interrupted: complete shards are kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)
    for name, manifest in zip(lines.selection.datasets, manifests, strict=False):
        print(summary(files.output / name, manifest))


if __name__ == "__main__":
    workers.abort_together(main)
