"""Flags from frozen dataclasses."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import finetune_dilbert
import train_dilbert
from launch.args import build, flag, parse, positional, require
from launch.errors import ConfigError
from launch.flags import Start


@dataclass(frozen=True)
class Example:
    """An example group."""

    name: str = flag(help="a name")
    folder: Path = flag(Path("here"), "a folder")
    count_of: int = flag(3, "how many, 100 % of them")
    share: float | None = flag(None, "a share")
    layers: tuple[int, ...] = flag((0, 1), "some layers")
    mode: Literal["a", "b"] = flag("a", "a mode")
    fast: bool = flag(True, "be fast")

    def __post_init__(self) -> None:
        require(self.count_of > 0, "count_of", self.count_of, "must be positive")


@dataclass(frozen=True)
class Place:
    """A positional argument."""

    path: Path = positional("where", "PATH")


def read(*words: str) -> Example:
    return parse("A program.", Example, argv=words, example="  program --name x", prog="program")[0]


def test_numbers_of_any_size_are_not_taken():
    assert read("--name", "x", "--count-of", str(2**53)).count_of == 2**53
    with pytest.raises(ConfigError, match=r"--count-of: 99999999999999999999\.\.\. is too large"):
        read("--name", "x", "--count-of", "9" * 30)
    with pytest.raises(ConfigError, match=r"--count-of: invalid int value: '1\.5'"):
        read("--name", "x", "--count-of", "1.5")


def test_two_hyphens_are_no_value():
    with pytest.raises(ConfigError, match="argument '--share=--': -- is no value"):
        read("--name", "x", "--share=--")


def test_defaults_and_types():
    assert read("--name", "x") == Example("x", Path("here"), 3, None, (0, 1), "a", True)
    words = [
        "--name=y",
        "--folder",
        "f",
        "--count-of",
        "5",
        "--share",
        "0.5",
        "--layers",
        "2",
        "3",
        "--mode",
        "b",
        "--no-fast",
    ]
    assert read(*words) == Example("y", Path("f"), 5, 0.5, (2, 3), "b", False)


def test_a_flag_given_twice_collects():
    assert read("--name", "x", "--layers", "2", "3", "--layers", "4").layers == (2, 3, 4)


def test_underscores_are_hyphens_but_values_stay():
    assert read("--name", "a_b", "--count_of=7").count_of == 7
    assert read("--name=--a_b").name == "--a_b"
    assert read("--name", "x", "--folder", "my_folder").folder == Path("my_folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "x", "--count-off", "1"], "did you mean '--count-of'?"),
        (["--name", "x", "--zzzzzz"], "unknown argument '--zzzzzz'"),
        (["--name", "x", "--coun", "1"], "unknown argument"),
        (["--name", "x", "--count-of", "many"], "--count-of"),
        (["--name", "x", "--mode", "c"], "--mode"),
        (["--name", "x", "--mode", "bb"], "did you mean 'b'?"),
        (["--name", "x", "--count-of", "0"], "--count-of 0: must be positive"),
        (["--name"], "--name"),
        (["stray", "--name", "x"], "stray"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match="(?s)" + __import__("re").escape(message)):
        read(*words)


def test_missing_flags_are_all_named_with_an_example():
    with pytest.raises(ConfigError) as caught:
        read()
    assert "--name" in str(caught.value)
    assert "a name" in str(caught.value)
    assert "program --name x" in str(caught.value)


def test_a_misspelt_flag_is_named_before_it_is_missing():
    with pytest.raises(ConfigError, match=r"unknown argument '--nane'; did you mean '--name'\?"):
        read("--nane", "x")
    with pytest.raises(ConfigError, match=r"^required, but missing:\n  --name "):
        read("--share", "0.5", "--")


@pytest.mark.parametrize("script", [train_dilbert, finetune_dilbert])
def test_what_stands_in_the_json_is_no_flag_and_says_so(script):
    names = {"--learning_rate": "optimizer.params.lr", "--weight-decay=0.1": "optimizer.params.weight_decay",
             "--per_gpu_train_batch_size": "train_micro_batch_size_per_gpu", "--fp16": "fp16.enabled"}  # fmt: skip
    for name, key in names.items():
        with pytest.raises(ConfigError, match=f"^unknown argument '--.*': stands in the DeepSpeed JSON: {key}\n"):
            parse("", *script.GROUPS, argv=[name, "1"])
    assert not set(Start.MOVED) & set(build("", *script.GROUPS)._option_string_actions)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "An example group",
        "how many, 100 % of them (default: 3)",
        "--no-fast",
        "(default: 0 1)",
        "program --name x",
    ):
        assert word in text


def test_no_number_is_explained_by_its_flag_alone():
    for script in (train_dilbert, finetune_dilbert):
        for group in script.GROUPS:
            hints = typing.get_type_hints(group)
            for field in dataclasses.fields(group):
                if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
                    assert field.metadata["metavar"], f"--{field.name}: which unit, or of what?"


def test_an_empty_default_is_none(capsys):
    with pytest.raises(SystemExit):
        parse("", Start, argv=["--help"])
    assert "(default: )" not in capsys.readouterr().out


@dataclass(frozen=True)
class Places:
    """Several positional arguments."""

    paths: tuple[Path, ...] = positional("where", "PATH")
    fast: bool = flag(False, "be fast")


def test_positional_tuple():
    assert parse("", Places, argv=["a", "b_c", "--fast"])[0] == Places((Path("a"), Path("b_c")), True)
    assert parse("", Places, argv=["--fast", "a"])[0].paths == (Path("a"),)
    with pytest.raises(ConfigError, match="PATH"):
        parse("", Places, argv=["--fast"])


def test_positional():
    assert parse("", Place, argv=["there"])[0].path == Path("there")
    with pytest.raises(ConfigError, match="PATH"):
        parse("", Place, argv=[])


# --- flags from a file ---


def configured(tmp_path: Path, text: str, *words: str, suffix: str = ".yaml") -> Example:
    path = tmp_path / f"flags{suffix}"
    path.write_text(text)
    argv = (f"--config={path}", *words)
    return parse("A program.", Example, argv=argv, prog="program", config=True)[0]


def test_flags_from_a_file(tmp_path):
    text = "name: x\ncount-of: 7\nlayers: [4, 5]\nmode: b\nfast: false\nshare: 1e-3\nfolder:\n"
    expected = Example("x", count_of=7, share=0.001, layers=(4, 5), mode="b", fast=False)
    assert configured(tmp_path, text) == expected
    body = json.dumps({"flags": {"name": "x", "count_of": 7, "layers": 4}, "more": {"of": "a run"}})
    assert configured(tmp_path, body, suffix=".json") == Example("x", count_of=7, layers=(4,))
    assert configured(tmp_path, "name: --odd=1") == Example("--odd=1")


def test_the_command_line_counts_more(tmp_path):
    text = "name: x\nlayers: [4, 5]\nfast: false\ncount_of: 7"
    found = configured(tmp_path, text, "--layers", "1", "--fast", "--count-of=9")
    assert found == Example("x", count_of=9, layers=(1,), fast=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count_off: 3", "unknown flag 'count_off'; did you mean 'count-of'?"),
        ("config: other.yaml", "config: a file names no other one: put its flags here"),
        ("help: true", "unknown flag 'help'\n"),
        ("hel: true", "unknown flag 'hel'\n"),
        ("print_confg: true", "unknown flag 'print_confg'\n"),
        ("- a\n- b", "must hold flags by name"),
        ("", "must hold flags by name"),
        ("a: [1", "is no YAML: "),
        ("name: x\ncount_of: many", "--count-of: invalid int value: 'many'"),
        ("name: x\ncount_of: -1", "--count-of -1: must be positive"),
        ("name: x\nfast: 1", "fast 1: must be true or false"),
        ("name: x\nfast: off", "fast off: must be true or false"),
        ("name: x\nname: y", "flags.yaml: can't be read: 'name' stands there twice"),
        ("count_of: 3\ncount-of: 4", "'count_of' stands there twice"),
        ("name: {a: 1}", "name {'a': '1'}: must be a word or a number"),
        ("name: x\nlayers: [[1]]", "layers ['1']: must be a word or a number"),
        ("!!python/object/apply:os.system [echo]", "is no YAML"),
        ("share: 0.5", "required, but missing:\n  --name"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, text)
    assert message in f"{error.value}\n"


def test_yaml_says_what_is_written(tmp_path):
    """12:30:00, `on` and 010 are a number, a truth value and an octal number to YAML 1.1."""
    assert configured(tmp_path, "name: 12:30:00\ncount_of: 010") == Example("12:30:00", count_of=10)
    for word in ("on", "off", "yes", "2026-01-31", "1_0", "0x1f", ".inf", "1e3"):
        assert configured(tmp_path, f"name: {word}").name == word
    assert configured(tmp_path, "name: x\nfast: False\nshare: ~\ncount_of: null") == Example("x", fast=False)


def test_json_with_a_name_twice(tmp_path):
    with pytest.raises(ConfigError, match=r"flags\.json: can't be read: 'name' stands there twice"):
        configured(tmp_path, '{"name": "x", "name": "y"}', suffix=".json")


def test_a_folder_is_its_record(tmp_path):
    (tmp_path / "config.json").write_text('{"flags": {"name": "x"}}')
    assert parse("", Example, argv=["--config", str(tmp_path)], config=True)[0].name == "x"
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"runs/config\.json: can't be read: .*No such file"):
        parse("", Example, argv=["--config", str(tmp_path / "runs")], config=True)


@pytest.mark.parametrize("words", [["--config"], ["--config", "--mode", "a"]])
def test_config_without_a_file(words):
    with pytest.raises(ConfigError, match="argument --config: expected one argument"):
        parse("", Example, argv=words, config=True)


@dataclass(frozen=True)
class Run:
    """Of a run."""

    output: Path = flag(help="a folder")
    max_steps: int | None = flag(None, "how long", "STEPS")
    epochs: float | None = flag(None, "how long", "EPOCHS")


def test_a_length_on_the_command_line_puts_out_the_files(tmp_path):
    path = tmp_path / "f.yaml"
    for name, value in (("max_steps", 7), ("epochs", 7.0)):
        path.write_text(f"output: x\n{name}: 7")
        for option, expected in (("--max-steps", Run(Path("x"), max_steps=3)), ("--epochs", Run(Path("x"), epochs=3))):
            assert parse("", Run, argv=["--config", str(path), option, "3"], config=True)[0] == expected
        assert getattr(parse("", Run, argv=["--config", str(path)], config=True)[0], name) == value


def test_a_record_asks_for_an_output(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"flags": {"output": "old", "max_steps": 3}}')
    with pytest.raises(ConfigError, match=f"go on with it, give --output {tmp_path}; to repeat it, another"):
        parse("", Run, argv=["--config", str(path)], config=True)
    assert parse("", Run, argv=["--config", str(path), "--output=new"], config=True)[0].output == Path("new")
    with pytest.raises(SystemExit) as end:
        parse("", Run, argv=["--config", str(path), "--help"], config=True)
    assert end.value.code == 0
    path.write_text('{"output": "new"}')  # no record
    assert parse("", Run, argv=["--config", str(path)], config=True)[0].output == Path("new")


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no-file\.json: can't be read"):
        parse("A program.", Example, argv=["--config", str(tmp_path / "no-file.json")], config=True)


def test_a_record_tells_where_its_paths_begin(tmp_path, monkeypatch, capsys):
    """For those who repeat a run from another folder."""
    path = tmp_path / "config.json"
    for folder, note in ((str(Path.cwd()), ""), ("/elsewhere", "are those of a start in /elsewhere")):
        path.write_text(json.dumps({"flags": {"name": "x", "folder": "data"}, "folder": folder}))
        parse("A program.", Example, argv=["--config", str(path)], config=True)
        said = capsys.readouterr().err
        assert bool(said) == bool(note) and note in said
    monkeypatch.setenv("RANK", "1")
    parse("A program.", Example, argv=["--config", str(path)], config=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("output", ["", ".", "..", "/"])
def test_a_run_has_a_folder_of_its_own(output):
    for paths, more in ((train_dilbert.Paths, {"data": ("d",)}), (finetune_dilbert.Paths, {"task": "sst2"})):
        given = {"deepspeed_config": Path("c"), "output": Path(output), "student": "s", "model": "s", **more}
        names = {field.name for field in dataclasses.fields(paths)}
        with pytest.raises(ConfigError, match=r"--output .*must be the name of a folder"):
            paths(**{name: value for name, value in given.items() if name in names})


def test_one_rank_prints_for_all(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        parse("A program.", Example, argv=["--name", "x", "--print-config"], config=True)
    assert (end.value.code, capsys.readouterr().out) == (0, "")


def test_what_is_printed_can_be_read_back(tmp_path, capsys):
    words = ["--name", "x", "--layers", "3", "4", "--no-fast", "--folder", "a b"]
    with pytest.raises(SystemExit) as end:
        parse("A program.", Example, argv=[*words, "--print-config"], config=True)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert configured(tmp_path, printed, suffix=".json") == configured(tmp_path, printed) == read(*words)
