"""The import rule of the house, its flags, and what the repository promises of itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "data", "launch")
LEAVES = {
    "launch.args",
    "launch.config_file",
    "launch.errors",
    "launch.commit",
    "launch.hub",
    "launch.lines",
    "launch.native",
    "launch.progress",
}
# Entry points that compose: they may join rooms, and no room may import them.
COMPOSERS = {"model.export", "model.import_checkpoint", "launch.evaluate", "launch.showcase", "launch.plan",
             "launch.tasks", "launch.task_forms", "launch.report", "launch.measuring",
             "launch.samples"}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the three rooms by its dotted name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, also within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name in modules()}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(modules()))
def test_import_rule(name):
    ours = imports(modules()[name]) - set(ROOMS)
    if name in COMPOSERS:
        return
    assert not ours & COMPOSERS, "nothing imports an entry point"
    foreign = {other for other in ours if room(other) != room(name)}
    if room(name) == "launch":
        assert not foreign, "the life of a run knows no networks and no tokens"
        if name in LEAVES:
            assert ours <= LEAVES, "a leaf imports nothing of ours but leaves"
    else:
        assert foreign <= LEAVES, "model and data know of each other nothing, of launch its leaves"


def test_the_top_level_is_fixed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {path.split("/")[0] for path in listed}
    rooms = {"ds_configs", "model", "data", "launch", "tests", ".ci"}
    files = {
        "train_dilbert.py",
        "finetune_dilbert.py",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        ".gitignore",
    }
    papers = {"CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"}
    assert top <= rooms | files | papers
    assert any(path.startswith("data/") for path in listed), ".gitignore swallows data/"


def test_the_architecture_page_names_every_module():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    names = {path.name for path in modules().values() if path.name != "__init__.py" and "kernels" not in path.parts}
    assert [name for name in sorted(names) if name not in page] == []


def test_no_module_shadows_the_standard_library():
    names = {Path(name.replace(".", "/")).name for name in modules()}
    assert not names & set(sys.stdlib_module_names)


FLAGS = [
    "--allow-change", "--alpha-ce", "--alpha-cos", "--alpha-mlm", "--alpha-mse", "--attention-dropout",
    "--checkpoint-interval", "--compile", "--data", "--deepspeed", "--deepspeed-config", "--dry-run", "--epochs",
    "--eval-interval", "--freeze-pos-embs", "--fresh", "--hang-timeout", "--help", "--keep-every", "--keep-last",
    "--local-rank", "--log-interval", "--max-bad-steps", "--max-steps", "--mlm-mask-prop", "--mlm-smoothing",
    "--no-deepspeed", "--no-dry-run", "--no-freeze-pos-embs", "--no-fresh", "--no-restrict-ce-to-mask", "--order",
    "--order-block", "--order-window", "--output", "--price-per-hour", "--ranks", "--restrict-ce-to-mask", "--seed",
    "--stop-at-step", "--student", "--teacher", "--teacher-fp8", "--temperature", "--time-limit", "--token-block",
    "--valid-data", "--warmup-steps", "--word-keep", "--word-mask", "--word-rand",
]  # fmt: skip


def test_flags_are_a_decision():
    import train_dilbert
    from launch.args import build

    parser = build("", *train_dilbert.GROUPS)
    found = {option for option in parser._option_string_actions if option.startswith("--")}
    assert found == set(FLAGS)
    assert all(action.help for action in parser._actions)


def test_every_dependency_has_a_reason():
    lines = (ROOT / "pyproject.toml").read_text().split("[dependency-groups]")[1].split("[tool.")[0].splitlines()
    packages = [line for line in lines if line.strip().startswith('"')]
    assert len(packages) > 10
    for line in packages:
        assert len(line.partition("#")[2].split()) >= 2, line
