"""Checkpoints that were damaged after they were committed: seen, named, and passed over for the one before."""

import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults_jobs import Setting, Workshop
from faults_table import EXACT, REFUSED, SILENT, Table, count

from launch import checkpoint
from launch.errors import CheckpointError

FLIPS = 40  # bits of each file, beside those of its first, middle and last byte
FLIPPED, CUT, MISSING = "a bit of a file flipped", "a file cut off", "a file missing"
OTHERS, ADDED, GROWN = "a file of another rank or checkpoint", "a file too many", "bytes appended to a file"
BOTH, STARTS, ALL_STARTS = "both checkpoints damaged", "whole starts after damage", "whole starts, all damaged"
MORE = b"\0", b"\xff", b"\n", bytes(4096)


@dataclass(frozen=True)
class Damage:
    """What becomes of some files of the newest checkpoint; None: there is no such file any more."""

    kind: str
    files: dict[str, bytes | None]

    def inflict(self, folder: Path) -> None:
        """Files are replaced, never written into: a reader may have the old ones mapped."""
        for name, content in self.files.items():
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)


def damages(newest: Path, before: Path, flips: int = FLIPS) -> Iterator[Damage]:
    """All that is tried on one checkpoint."""
    generator = random.Random(0)
    ours, older = ({path.name: path.read_bytes() for path in sorted(p.iterdir())} for p in (newest, before))
    for name, content in ours.items():
        size = len(content)
        for at in (0, size // 2, size - 1, *generator.sample(range(size), min(flips, size))):
            yield Damage(FLIPPED, {name: flipped(content, at, generator.randrange(8))})
        for left in sorted({0, 1, size // 2, size - 1, generator.randrange(size)}):
            yield Damage(CUT, {name: content[:left]})
        yield Damage(MISSING, {name: None})
        yield from (Damage(GROWN, {name: content + more}) for more in MORE)
        yield from (Damage(OTHERS, {name: o}) for o in (older[name], *ours.values()) if o != content)
    yield Damage(MISSING, dict.fromkeys(ours))
    yield Damage(ADDED, {"zero_pp_rank_7_mp_rank_00_optim_states.pt": next(iter(older.values()))})


def flipped(content: bytes, at: int, bit: int) -> bytes:
    """`content` with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


# --- a look at the checkpoints ---


def looked_at(workshop: Workshop, settings: Iterable[Setting], flips: int = FLIPS) -> Table:
    """What a start would go on from, after each damage to the newest of two checkpoints, and to both."""
    table: Table = {}
    for setting in settings:
        before, newest = last_two(workshop, setting)
        for damage in damages(newest, before, flips):
            where = f"{setting}, {', '.join(damage.files)}"
            with tempfile.TemporaryDirectory() as folder:
                root = copied(workshop, setting, Path(folder))
                damage.inflict(root / newest.name)
                count(table, damage.kind, judge(workshop, setting, root, damage), where)
                damage.inflict(root / before.name)
                count(table, BOTH, judge(workshop, setting, root, damage), where)
    return table


def last_two(workshop: Workshop, setting: Setting) -> list[Path]:
    """Of the undisturbed run."""
    return checkpoint.committed(workshop.undisturbed(setting) / "checkpoints")[-2:]


def copied(workshop: Workshop, setting: Setting, root: Path) -> Path:
    """The undisturbed run's last two checkpoints, in another folder."""
    for path in last_two(workshop, setting):
        shutil.copytree(path, root / path.name)
    return root


def judge(workshop: Workshop, setting: Setting, root: Path, damage: Damage) -> str:
    """Exact is: the one before, after the damaged file was named (a false record blames its file); or the same values,
    because the damage changed none (white space)."""
    words: list[str] = []
    try:
        found = checkpoint.newest(root, words.append)
    except CheckpointError as error:
        return REFUSED if is_named(damage, str(error)) else SILENT
    named = found == checkpoint.committed(root)[-1] or is_named(damage, "\n".join(words))
    return EXACT if named and workshop.is_exact(setting, found) else SILENT


def is_named(damage: Damage, words: str) -> bool:
    """Whether a message says which file it is."""
    return checkpoint.MANIFEST in damage.files or any(name in words for name in damage.files)


# --- whole starts ---


def resumed(workshop: Workshop, settings: Iterable[Setting], every: int = 1) -> Table:
    """Starts of a run whose newest checkpoint was damaged, in each kind of way in each file; then all of them."""
    table: Table = {}
    for setting in settings:
        before, newest = last_two(workshop, setting)
        found = {(d.kind, tuple(d.files)): d for d in damages(newest, before, flips=1)}
        for damage in list(found.values())[::every]:
            outcome = resume(workshop, setting, damage)
            count(table, STARTS, outcome, f"{setting}, {damage.kind}, {list(damage.files)}")
        everything = Damage(CUT, {path.name: b"" for path in newest.iterdir()})
        outcome = resume(workshop, setting, everything, both=True)
        count(table, ALL_STARTS, outcome, setting)
    return table


def resume(workshop: Workshop, setting: Setting, damage: Damage, both: bool = False) -> str:
    """Start the run again; exact is: from the checkpoint before to the same end."""
    run = workshop.new("resumed")
    shutil.copytree(workshop.undisturbed(setting), run, ignore=lambda *_: ["checkpoints", "DONE.json"])
    root = copied(workshop, setting, run / "checkpoints")
    before, newest = checkpoint.committed(root)
    for path in (before, newest)[0 if both else 1 :]:
        damage.inflict(path)
    left = sorted(path.name for path in root.iterdir())
    harmless = _verifies(newest)
    codes, outputs = zip(*workshop.start(setting, run), strict=True)
    try:
        if set(codes) == {CheckpointError.exit_code} and sorted(path.name for path in root.iterdir()) == left:
            return REFUSED if is_named(damage, outputs[0]) else SILENT
        said = "skipping a damaged checkpoint" in outputs[0] and is_named(damage, outputs[0])
        went_on = set(codes) == {0} and (said or harmless)
        return EXACT if went_on and workshop.is_done_exactly(setting, run) else SILENT
    finally:
        shutil.rmtree(run)


def _verifies(path: Path) -> bool:
    """White space more or less in a manifest is no damage."""
    try:
        return bool(checkpoint.verify(path))
    except CheckpointError:
        return False
