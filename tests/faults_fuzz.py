"""Input that is anything: hostfiles, JSON, flags, names, records, environment.

Taken, or refused with an exit code; never a traceback.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis
from faults_jobs import SETTINGS, Workshop
from faults_table import REFUSED, TAKEN, TRACEBACK, Table, count
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from ranks import RankFailed, run_ranks, train

from launch import args, checkpoint, ds_config, errors, hostfile, retention
from launch.retention import Retention

ROOT = Path(__file__).parents[1]
CODES = {0, 2, 3, 4, 5, 75}  # of a whole start; 2, 3 and 4 with a message
ODD = ("", " ", "-1", "0", "1", "1.5", "1e999", "nan", "inf", "-inf", "0x10", "\u0661", "99999999999999999999",
       "None", "true", "auto", "on", "{}", "-", "--", "a b", "../..", "/dev/null", "/", "\n", "%s",
       "~", "1" * 5000)  # fmt: skip
words = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12))
numbers = st.one_of(
    st.integers(-3, 70), st.integers(), st.sampled_from([2**31, 2**63, 10**30]), st.floats(), st.floats(0, 1)
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=4)


def outcome_of(action: Callable[[], Any], codes: Iterable[int]) -> tuple[str, str]:
    """What became of it, and what it said; as `launch.errors.run` ends a program."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            errors.run(lambda: (action(), None)[1])
        except SystemExit as end:
            code = end.code or 0
            return (TAKEN if code == 0 else REFUSED if code in codes else TRACEBACK), f"{code}: {said.getvalue()}"
        except BaseException:
            return TRACEBACK, traceback.format_exc(limit=-3)
    return TAKEN, ""


def fuzz(
    kind: str, examples: int, strategy: st.SearchStrategy, action: Callable[[Any], Any], codes: Iterable[int] = (2,)
) -> Table:
    """So many inputs; an input is refused with one of the exit codes."""
    table: Table = {}

    @hypothesis.settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(example: Any) -> None:
        outcome, said = outcome_of(lambda: action(copy.deepcopy(example)), codes)
        count(table, kind, outcome, f"{str(example)[:600]!r}\n{said[-1500:]}")

    attempt()
    return table


# --- in this process ---


def hostfiles(folder: Path, examples: int) -> Table:
    """Lines that look like a hostfile's, and any others."""
    good = st.builds("{} slots={}".format, st.from_regex(r"[a-z]{1,3}[0-9]{1,3}", fullmatch=True), st.integers(1, 16))
    name, n = st.one_of(st.from_regex(r"[A-Za-z0-9_.-]{1,9}", fullmatch=True), words), st.integers(-2, 2000).map(str)
    line = st.builds("{} {}{}{}".format, name, st.sampled_from(["slots=", "slots =", "slot="]), st.one_of(n, words),
                     st.sampled_from(["", " ", "#x", " max_slots=3"]))  # fmt: skip
    lines = st.lists(st.one_of(good, good, good, line, words), max_size=4).map("\n".join)
    text = st.one_of(lines, lines, lines, st.binary(max_size=40))

    def read(content: str | bytes) -> None:
        path = folder / "hostfile"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        hosts = hostfile.read(path)
        assert hosts and all(host.slots > 0 and not host.name.startswith("-") for host in hosts)

    return fuzz("hostfiles", examples, text, read)


def mutated(draw: st.DrawFn, config: Any, most: int = 3) -> Any:
    """JSON with a few values changed, removed, or added."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.integers(1, most))):
        at = config
        while isinstance(at, dict) and at:
            key = draw(st.sampled_from(sorted(at)))
            what = draw(st.sampled_from(["down", "down", "down", "set", "set", "set", "remove", "add"]))
            if what == "down" and isinstance(at[key], dict):
                at = at[key]
                continue
            if what == "remove":
                del at[key]
            else:
                at[draw(st.one_of(words, known)) if what == "add" else key] = draw(values)
            break
    return config


known = st.sampled_from(sorted(ds_config.KNOWN_KEYS - {"wandb", "comet"}))  # these two would go on the network
bases = [json.loads(path.read_text()) for path in sorted((ROOT / "ds_configs").glob("*.json"))]


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """DeepSpeed JSON like ours, changed; or anything."""
    return draw(values) if draw(st.integers(0, 19)) == 0 else mutated(draw, draw(st.sampled_from(bases)))


@st.composite
def json_bytes(draw: st.DrawFn) -> bytes:
    """A file of it, perhaps cut off or changed; or brackets that never end."""
    if draw(st.integers(0, 99)) == 0:
        return b"[" * 100_000
    content = json.dumps(draw(configs())).encode()
    at = draw(st.integers(0, len(content)))
    return draw(st.sampled_from([content, content, content, content[:at], content[:at] + b"\xff" + content[at:]]))


def deepspeed_jsons(folder: Path, examples: int) -> Table:
    """Loaded and resolved."""

    def read(content: bytes) -> None:
        path = folder / "deepspeed.json"
        path.write_bytes(content)
        config = ds_config.load(path, "cuda")
        resolved = ds_config.resolve(config, 8, 1000, 50)
        ds_config.precision(resolved), ds_config.stage(resolved), list(ds_config.changes(config, resolved))

    return fuzz("DeepSpeed JSON: loaded and resolved", examples, json_bytes(), read)


@st.composite
def command_lines(draw: st.DrawFn, options: list[str]) -> list[str]:
    """Flags of train_dilbert.py with odd values, and words that are none."""
    found: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        option = draw(
            st.one_of(st.sampled_from(options), words) if draw(st.integers(0, 4)) == 0 else st.sampled_from(options)
        )
        likely = st.one_of(st.integers(0, 40).map(str), st.floats(0, 1).map(str), st.sampled_from(["auto", "blocks"]))
        value = draw(draw(st.sampled_from([likely, likely, likely, numbers.map(str), words])))
        pair, joined, alone, three = [option, value], [f"{option}={value}"], [option], [option, value, value]
        found += draw(st.sampled_from([pair, pair, pair, joined, alone, three]))
    return found


def options_of(groups: Iterable[type]) -> list[str]:
    """All flags."""
    parser = args.build("", *groups)
    return sorted(name for action in parser._actions for name in action.option_strings if name.startswith("--"))


def flags_alone(examples: int) -> Table:
    """Parsed, and checked by themselves."""
    import train_dilbert

    required = ["--deepspeed-config", "c.json", "--data", "d", "--student", "s", "--output", "o", "--max-steps", "9"]
    lines = command_lines(options_of(train_dilbert.GROUPS)).map(lambda more: [*required, *more])
    return fuzz("flags: parsed", examples, lines, lambda line: args.parse("", *train_dilbert.GROUPS, argv=line))


@st.composite
def folder_names(draw: st.DrawFn) -> list[tuple[str, str]]:
    """What may lie beside checkpoints: a name, and what it is."""
    odd = st.sampled_from(["step", "step1", "step9", "step00000099", "step000000060", "step99999999999999999999",
                           "step" + 8 * "\u0661", "step0000006\u0660", "STEP00000060", "latest", ".partial-1",
                           "step-0000060", ".deleted-step00000060", "damaged-step00000060", "step00000060.old",
                           "step" + "9" * 200])  # fmt: skip
    name = st.one_of(odd, words.map(lambda word: "step" + word), words)
    usable = name.filter(lambda n: n not in ("", ".", "..") and "/" not in n and len(n.encode()) < 250)
    kinds = st.sampled_from(["folder", "file", "link", "loop", "foreign"])
    return draw(st.lists(st.tuples(usable, kinds), max_size=4, unique_by=lambda pair: pair[0]))


def tags(workshop: Workshop, examples: int) -> Table:
    """Odd names beside two checkpoints: nothing else is taken for one, and sweeping and deleting work."""
    two = checkpoint.committed(workshop.undisturbed(SETTINGS[0]) / "checkpoints")[-2:]

    def look(names: list[tuple[str, str]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for path in two:
                os.symlink(path, root / path.name)
            for name, kind in names:
                put(root / name, kind, two[0])
            found = checkpoint.newest(root, lambda _: None)
            assert found and found.path.name == two[1].name, found
            checkpoint.sweep(root)
            retention.prune(root, Retention(keep_last=2))
            assert checkpoint.verify(root / two[0].name)

    return fuzz("names beside checkpoints", examples, folder_names(), look)


def put(path: Path, kind: str, other: Path) -> None:
    """An odd entry of a folder, if its name is free."""
    with contextlib.suppress(FileExistsError):
        if kind == "folder":
            path.mkdir()
        elif kind == "file":
            path.touch(exist_ok=False)
        elif kind == "foreign":
            shutil.copytree(other, path)
        else:
            path.symlink_to(other if kind == "link" else path)


@st.composite
def manifests(draw: st.DrawFn, right: Any) -> Any:
    """A checkpoint's manifest, changed."""
    return draw(values) if draw(st.integers(0, 9)) == 0 else mutated(draw, right)


def checkpoint_manifests(workshop: Workshop, examples: int) -> Table:
    """Verified; one that is taken is of the same step, and its checkpoint can be read."""
    path = checkpoint.committed(workshop.undisturbed(SETTINGS[2]) / "checkpoints")[-1]
    right = json.loads((path / checkpoint.MANIFEST).read_text())
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(path, Path(folder) / path.name))

        def look(manifest: Any) -> None:
            (copied / checkpoint.MANIFEST).write_text(json.dumps(manifest))
            found = checkpoint.verify(copied)
            assert (found.step, found.ranks) == (
                right["step"],
                right["ranks"],
            )  # of any stage, weights are read by name

        return fuzz("manifests of checkpoints", examples, manifests(right), look, codes=(4,))


# --- in a rank, whole starts ---


def in_a_rank(fuzzing: Callable[..., Table], *arguments: Any) -> Table:
    """All its starts are made in one rank of its own, one after another: a start is a step or two."""
    return run_ranks(1, _quietly, fuzzing, arguments, timeout=900)[0]


def _quietly(fuzzing: Callable[..., Table], arguments: tuple[Any, ...]) -> Table:
    """DeepSpeed writes here and there: into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        return fuzzing(*arguments)


def begin(line: list[str]) -> None:
    """`train_dilbert.py` as its command line would run it; its output counts if its exit code is an odd one."""
    code, said = train(line)
    if code not in CODES or "Traceback" in said:
        raise AssertionError(f"exit code {code}: {said[-1500:]}")
    print(said)
    if code not in (0, 75):
        raise SystemExit(2)


def whole_jsons(workshop: Workshop, examples: int) -> Table:
    """DeepSpeed itself sees the JSON, if we take it."""
    line = workshop.words(SETTINGS[0], workshop.folder / "fuzzed", "--stop-at-step", "1", "--fresh")
    base = json.loads(Path(line[1]).read_text())
    more = [{}, {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, {"fp16": {"enabled": True}}]
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

    def small(config: Any) -> bool:
        found = [config.get(name) for name in sizes] if isinstance(config, dict) else []
        return all(not isinstance(size, int) or size < 100 for size in found)

    @st.composite
    def ours(draw: st.DrawFn) -> Any:
        return mutated(draw, base | draw(st.sampled_from(more)), most=2)

    def start(config: Any) -> None:
        path = workshop.folder / "fuzzed.json"
        path.write_text(json.dumps(config))
        begin([*line[:1], str(path), *line[2:]])
        shutil.rmtree(workshop.folder / "fuzzed", ignore_errors=True)

    return fuzz("DeepSpeed JSON: whole starts", examples, ours().filter(small), start)


def whole_flags(workshop: Workshop, examples: int) -> Table:
    """A start with odd flags; how long it takes stays short."""
    import train_dilbert

    line = workshop.words(SETTINGS[0], workshop.folder / "flagged", "--fresh")
    at = line.index("--max-steps")
    rest = line[:at] + line[at + 2 :]
    long = st.one_of(numbers.map(str), words)
    one = st.just(["--max-steps", "1"])
    lengths = st.one_of(
        one, one, one, one, long.map(lambda n: ["--max-steps", n, "--stop-at-step", "1"]),
        long.map(lambda n: ["--epochs", n, "--stop-at-step", "1"]),
    )  # fmt: skip
    skip = {"--max-steps", "--epochs", "--stop-at-step", "--output", "--help"}
    options = sorted(set(options_of(train_dilbert.GROUPS)) - skip)
    lines = st.tuples(lengths, command_lines(options)).map(lambda parts: [*rest, *parts[0], *parts[1]])

    def start(words: list[str]) -> None:
        begin(words)
        shutil.rmtree(workshop.folder / "flagged", ignore_errors=True)

    return fuzz("flags: whole starts", examples, lines, start)


def whole_records(workshop: Workshop, examples: int) -> Table:
    """Files of a run folder that hold anything."""
    run = workshop.folder / "recorded"
    line = workshop.words(SETTINGS[0], run, "--stop-at-step", "2")
    begin(line)
    files = ("config.json", "ds_config.json", "environment.json", "log.jsonl", "LOCK.json", "STOPPED.json", "DONE.json",
             "skipped.jsonl", "heartbeats/rank00000.json", "checkpoints/latest")  # fmt: skip
    record = json.loads((run / "config.json").read_text())

    @st.composite
    def contents(draw: st.DrawFn) -> tuple[str, bytes]:
        body = json.dumps(draw(st.one_of(manifests(record), values))).encode() + draw(st.sampled_from([b"", b"\n"]))
        return draw(st.sampled_from(files)), draw(st.one_of(st.just(body), st.binary(max_size=20)))

    def start(example: tuple[str, bytes]) -> None:
        name, content = example
        path = run / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            begin(line)
        finally:
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_bytes(before)

    return fuzz("records of a run folder", examples, contents(), start)


# --- environment ---

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_PORT", "DILBERT_KERNELS",
             "DILBERT_NATIVE", "DILBERT_CACHE", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_RESTART_COUNT",
             "SLURM_JOB_END_TIME", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "DS_LOG_LEVEL", "OMP_NUM_THREADS")  # fmt: skip


def environments(workshop: Workshop, examples: int) -> Table:
    """One or two variables that hold anything, in a process of its own each."""
    line = workshop.words(SETTINGS[0], workshop.folder / "surrounded", "--stop-at-step", "1", "--fresh")
    several = {"WORLD_SIZE"}  # a number here means other ranks, which are waited for
    value = words.filter(lambda word: len(word) < 1000)
    pairs = st.dictionaries(st.sampled_from(VARIABLES), value, min_size=1, max_size=2).filter(
        lambda found: not any(found.get(name, "").strip().isdigit() and int(found[name]) > 1 for name in several)
    )

    def start(found: dict[str, str]) -> None:
        try:
            code, said = run_ranks(1, begin_within, found, line, timeout=60)[0]
        except RankFailed as error:
            raise AssertionError(str(error)[-1500:]) from None
        if code not in CODES or "Traceback" in said:
            raise AssertionError(f"exit code {code}: {said[-1500:]}")
        if code not in (0, 75):
            raise SystemExit(2)

    return fuzz("environment", examples, pairs, start)


def begin_within(environment: dict[str, str], line: list[str]) -> tuple[int, str]:
    """In a rank of its own: with these variables; without any of a launcher's where the number of tasks is odd."""
    if environment.keys() & {"SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name)
    os.environ |= environment
    os.chdir(Path(line[line.index("--output") + 1]).parent)  # a cache of any name is made there
    return train(line)
