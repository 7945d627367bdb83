"""The documents' commands: found, read as the programs read them, and run on stand-ins as a user would type them.

A command is a line of a fenced block, a span of the text, or an example in a script's or a module's head. Launchers are
taken off by the launchers' own parsers; what is left is an entry point of ours with its flags.
"""

import argparse
import ast
import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ranks import command_line, run_ranks

from launch import hostfile

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "launch", "model", "tests")
ENTRY = ("python", "deepspeed", "torchrun", "mpirun", "sbatch", "bash", "make")
OTHERS = ("tensorboard", "pip", "hf", "scancel", "scontrol", "ssh")  # that are not ours to check
PLAIN = ("cp", "mkdir", "cat", "cmp", "grep", "source", "touch")  # that do the same everywhere
LENGTH = ("--epochs", "--max-steps")
ABBREVIATED = re.compile(r"\.\.\.|[|[]")  # a command that leaves something out, or shows what may be chosen
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"^.*<<'(\w+)'\n(?:.*\n)*?\1$", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"python -m (?!launch\.start)|(make|bash|sbatch) \w|(python|deepspeed|torchrun|mpirun) .*\.py ")
_EXAMPLE = re.compile(rf"^(#? *)((?:\w+=\S+ )*(?:{'|'.join(ENTRY)}) .*)$")
_ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Command:
    """A command as a document has it.

    Attributes:
        where: file of the repository.
        text: in one line, without comment.
        note: comment beside it, or above its lines.
        block: it stands in a fenced block or a script, whole, and can be typed as it is.
    """

    where: str
    text: str
    note: str = ""
    block: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    @property
    def words(self) -> list[str]:
        """Without variables that are set for it."""
        words = shlex.split(self.text)
        while _ASSIGNMENT.match(words[0]):
            words.pop(0)
        return words

    @property
    def abbreviated(self) -> bool:
        """Whether it can be read only by the names of its flags."""
        return bool(ABBREVIATED.search(self.text))


@dataclass(frozen=True)
class Start:
    """What a command comes to: an entry point of ours, in so many ranks."""

    module: str
    argv: list[str]
    ranks: int = 1


# --- finding commands ---


def fences(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language in a Markdown file; of "", those of none."""
    return [body for kind, body in _FENCE.findall(path.read_text()) if kind == language]


def prose(path: Path) -> str:
    """A Markdown file without its fenced blocks."""
    return _FENCE.sub("", path.read_text())


def spans(path: Path) -> list[str]:
    """What stands in backticks in a Markdown file's text, in one line each."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(path))]


def in_markdown(path: Path) -> Iterator[Command]:
    """All commands of a Markdown file."""
    where = str(path.relative_to(ROOT))
    for block in fences(path, "bash"):
        above = ""
        for line in lines(_HEREDOC.sub("", block)):
            code, _, note = line.partition("# ")
            above = note if not code else above
            if code:
                yield Command(where, code.strip(), f"{above} {note}", block=True)
    yield from (Command(where, span) for span in spans(path) if _COMMAND.match(span))


def lines(block: str) -> list[str]:
    """The lines of a script, those that are continued as one, without empty ones."""
    return [line for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line]


def in_python(path: Path) -> Iterator[Command]:
    """The examples in a module's docstring and in its EXAMPLE."""
    tree, where = ast.parse(path.read_text()), str(path.relative_to(ROOT))
    texts = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lower() == "example":
            texts.append(ast.literal_eval(node.value))
    for text in texts:
        yield from _examples(text, where)
        yield from (Command(where, " ".join(span.split())) for span in _SPAN.findall(text) if _COMMAND.match(span))


def in_head(path: Path) -> Iterator[Command]:
    """The examples in the comments at a script's head."""
    head = path.read_text().partition("\nset -")[0]
    yield from _examples("\n".join(line.removeprefix("#") for line in head.splitlines()), str(path.relative_to(ROOT)))


def _examples(text: str, where: str) -> Iterator[Command]:
    """Lines that begin with a program: indented, or `python -m`. What stands behind three spaces is a remark."""
    for line in lines(text):
        found = _EXAMPLE.match(line)
        if found and (len(found[1]) >= 2 or found[2].startswith("python -m")):
            yield Command(where, re.split(r" {3,}", found[2])[0])


def section(path: Path, heading: str) -> str:
    """What stands under a heading of a Markdown file, up to the next one of its rank."""
    return path.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, row by row, without heads."""
    lines = text.splitlines()
    inner = [line for line, rule in zip(lines, [*lines[1:], ""], strict=True)
             if line.startswith("| ") and not rule.startswith("|--")]  # fmt: skip
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in inner]


def anchors(path: Path) -> set[str]:
    """The names of a Markdown file's headings, as links have them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def anchor(heading: str) -> str:
    """A heading's name in links."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def messages() -> list[str]:
    """All texts in our code, with `\\0` where a value stands."""
    found = []
    for path in (*ROOT.glob("*.py"), *(path for room in ROOMS[:3] for path in (ROOT / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def entry_points() -> list[str]:
    """Modules that read flags of ours."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    reads = re.compile(r"^from launch.args import .*\bparse\b", re.MULTILINE)
    mine = [path for path in paths if not path.name.startswith("test_") and reads.search(path.read_text())]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in mine)


# --- reading commands ---


def start_of(words: list[str]) -> Start | None:
    """What a command starts; None: nothing of ours.

    Raises:
        DilbertError: by `launch.start`.
        AssertionError: no such script, module, target or program.
    """
    program, *rest = words
    if program == "python":
        return _of_python(rest)
    if program == "deepspeed":
        from deepspeed.launcher import runner

        given = runner.parse_args(rest)
        return Start(_script(given.user_script), given.user_args, max(given.num_gpus, 1))
    if program == "torchrun":
        from torch.distributed import run

        given = run.parse_args(rest)
        return Start(_script(given.training_script), given.training_script_args, int(given.nproc_per_node))
    if program == "mpirun":
        parser = argparse.ArgumentParser()
        parser.add_argument("--hostfile", type=Path, required=True)
        parser.add_argument("-x", required=True)
        parser.add_argument("-n", type=int, required=True)
        parser.add_argument("words", nargs=argparse.REMAINDER)
        given = parser.parse_args(rest)
        assert hostfile.read(given.hostfile)
        return start_of(given.words)
    if program == "sbatch":
        return _of_sbatch(rest)
    if program == "bash":
        assert (ROOT / rest[0]).is_file(), f"no script {rest[0]}"
    elif program == "make":
        assert rest[0] in _targets(), f"no target {rest[0]}"
    else:
        assert program in OTHERS + PLAIN, f"no program {program}"
    return None


def _of_python(rest: list[str]) -> Start | None:
    if rest[0] != "-m":
        return Start(_script(rest[0]), rest[1:])
    module, argv = rest[1], rest[2:]
    if module in ("pip", "venv", "pytest"):
        return None
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), f"no module {module}"
    if module != "launch.start":
        return Start(module, argv)
    from launch import start

    job = start.read(argv)
    at = next(number for number, word in enumerate(job.words) if word.endswith(".py"))
    return Start(_script(job.words[at]), job.words[at + 1 :], sum(job.hosts.values()))


def _of_sbatch(rest: list[str]) -> Start:
    at = next(number for number, word in enumerate(rest) if word.endswith(".sbatch"))
    script, argv = ROOT / rest[at], rest[at + 1 :]
    assert script.is_file(), f"no script {rest[at]}"
    if "-m data.binarize" in script.read_text():
        return Start("data.binarize", argv)
    return Start("train_dilbert", ["--output", *argv])


def _script(name: str) -> str:
    assert name in ("train_dilbert.py", "finetune_dilbert.py"), f"no script {name}"
    return name.removesuffix(".py")


def _targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


class _Read(Exception):
    """Flags are read: far enough."""


def read(start: Start, patch: Any) -> tuple[Any, ...]:
    """The flags of an entry point, by its own parser.

    Args:
        patch: pytest's MonkeyPatch.

    Raises:
        ConfigError: it refuses them.
    """
    module = importlib.import_module(start.module)
    real, found = module.parse, []

    def parse(*args: Any, **options: Any) -> Any:
        found.append(real(*args, **options))
        raise _Read

    with patch.context() as inner:
        inner.setattr(module, "parse", parse)
        inner.setattr(sys, "argv", [start.module, *start.argv])
        with contextlib.suppress(_Read):
            module.main()
    return found[0]


def options(module: str, patch: Any) -> set[str]:
    """The flags that an entry point knows."""
    from launch import args

    entry = importlib.import_module(module)
    found: set[str] = set()

    def parse(description: str, *groups: type, config: bool = False, **_: Any) -> Any:
        parser = args.build(description, *groups, *([args.ConfigFile] if config else []))
        found.update(parser._option_string_actions)
        raise _Read

    with patch.context() as inner, contextlib.suppress(_Read):
        inner.setattr(entry, "parse", parse)
        inner.setattr(sys, "argv", [module])
        entry.main()
    return found


def plain(flag: str) -> str:
    """A flag with hyphens, as parsers hold it."""
    return "--" + flag[2:].replace("_", "-")


# --- running commands ---


_SHIM = """\
#!{python} -IS
import os, sys
from multiprocessing.connection import Client
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with Client({address!r}) as line:
    line.send((words, os.getcwd()))
    code, output = line.recv()
sys.stdout.write(output)
sys.exit(code)
"""


class Shell:
    """bash in which our entry points, and the programs that start them, run on this machine's CPUs, each rank forked
    from a server that has imported everything. Programs of others do nothing. A context manager.

    Attributes:
        given: what was typed, but for plain programs of the system; in this order.
        started: what of it is ours.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        """
        Args:
            folder: for its programs.
            steps: of each training, however long it is said to be.
        """
        self.given: list[list[str]] = []
        self.started: list[Start] = []
        self.steps = steps
        self.programs, self.listener = folder / "bin", Listener(family="AF_UNIX")
        self.programs.mkdir()
        for name in (*ENTRY, *OTHERS):
            if name != "bash":
                (self.programs / name).write_text(_SHIM.format(python=sys.executable, address=self.listener.address))
                (self.programs / name).chmod(0o755)
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.listener.close()

    def run(self, script: str, folder: Path, **variables: object) -> str:
        """Run lines of bash in a folder; the first one that fails ends it.

        Returns:
            what was printed.
        """
        path = {"PATH": f"{self.programs}:{os.environ['PATH']}"}
        given = {name: str(value) for name, value in variables.items()}
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, env=os.environ | path | given, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _serve(self) -> None:
        while True:
            try:
                line = self.listener.accept()
            except OSError:  # closed
                return
            with line:
                words, folder = line.recv()
                try:
                    line.send(self._answer(words, folder))
                except Exception as error:  # a rank's traceback belongs to the user of this shell
                    line.send((1, f"{shlex.join(words)}: {error}\n"))

    def _answer(self, words: list[str], folder: str) -> tuple[int, str]:
        self.given.append(words)
        with contextlib.chdir(folder):
            start = start_of(words)
        if start is None or start.module.startswith(("launch.doctor", "tests.")) or "--push-to-hub" in words:
            return 0, ""  # other programs, other hosts, benchmarks, the internet
        self.started.append(start)
        results = run_ranks(start.ranks, call, start.module, self._shortened(start), folder)
        return max(code for code, _ in results), ("17\n" if "--parsable" in words else results[0][1])

    def _shortened(self, start: Start) -> list[str]:
        """The flags, with this shell's length of a training."""
        argv = list(start.argv)
        if not start.module.endswith("_dilbert") or "--eval-only" in argv:
            return argv
        for name in LENGTH:
            if name in argv:
                del argv[argv.index(name) : argv.index(name) + 2]
        return [*argv, "--max-steps", str(self.steps)]


def call(module: str, argv: list[str], folder: str) -> tuple[int, str]:
    """An entry point in this rank: exit code and output."""
    os.chdir(folder)
    return command_line(importlib.import_module(module).main, argv)


def execute(code: str, folder: str) -> dict[str, tuple[int, ...]]:
    """Lines of Python in this rank; the shapes of the tensors that they leave."""
    os.chdir(folder)
    left: dict[str, Any] = {}
    exec(compile(code, "document", "exec"), left)
    return {name: tuple(value.shape) for name, value in left.items() if hasattr(value, "shape")}
