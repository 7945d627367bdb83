"""Training a tokenizer: BERT's form, the same ids from either file, the same vocabulary on every run."""

import errno
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

from data import train_tokenizer
from data.train_tokenizer import SPECIAL_TOKENS, Options, bert_pipeline, continuations, frequent_characters
from launch.errors import ConfigError, DataError

TEXT = "The cat sat.\nThe cats sat, the Cat sat!\nCaf\u00e9s \u4e2d\u6587 cafe\n"
# Of TEXT, lower-cased and without accents, by hand: characters sorted, then those that can continue a word.
CHARACTERS = ["!", ",", ".", "a", "c", "e", "f", "h", "s", "t", "\u4e2d", "\u6587"]
CONTINUATIONS = ["##a", "##c", "##e", "##f", "##h", "##s", "##t"]


def trained(folder: Path, text: str | bytes = TEXT, *, vocab_size: int = 40, **settings: object) -> Path:
    """A tokenizer folder trained on `text`."""
    corpus = folder / "corpus.txt"
    corpus.write_bytes(text.encode() if isinstance(text, str) else text)
    output = folder / "tokenizer"
    run_main(Options(input=(corpus,), output=output, vocab_size=vocab_size, **settings))
    return output


def run_main(options: Options) -> None:
    words = ["--input", *map(str, options.input), "--output", str(options.output)]
    words += ["--vocab-size", str(options.vocab_size), "--min-frequency", str(options.min_frequency)]
    words += ["--lower-case" if options.lower_case else "--no-lower-case"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_tokenizer", *words])
        train_tokenizer.main()


def vocabulary_of(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


def ambiguous_text(lines: int = 300) -> str:
    """Text in which hundreds of pairs are equally frequent, so that ties decide what is learnt."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(lines)]
    return "".join(f"{a} {b}\n" for a, b in zip(words, reversed(words), strict=True))


# --- the form ---


def test_vocabulary_by_hand(tmp_path: Path) -> None:
    # Of the words the 3, cat 2, cats 1, sat 3, cafes 1, cafe 1: first ##a ##t, 6 times. Then four pairs are left that
    # occur 3 times, c ##at, s ##at, t ##h and ##h ##e, and are taken by the ids of their left halves.
    learnt = vocabulary_of(trained(tmp_path, vocab_size=28))
    assert learnt == [*SPECIAL_TOKENS, *CHARACTERS, *CONTINUATIONS, "##at", "cat", "sat", "th"]


def test_the_files_are_those_of_bert(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["model_max_length"], config["do_lower_case"]) == (
        "BertTokenizer",
        512,
        True,
    )
    state = json.loads((folder / "tokenizer.json").read_text())
    assert state["normalizer"] == {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    assert state["pre_tokenizer"] == {"type": "BertPreTokenizer"}
    model = {key: value for key, value in state["model"].items() if key != "vocab"}
    assert model == {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100
    }  # fmt: skip
    assert [(token["id"], token["content"]) for token in state["added_tokens"]] == list(enumerate(SPECIAL_TOKENS))
    assert state["model"]["vocab"] == {token: number for number, token in enumerate(vocabulary_of(folder))}


def test_transformers_loads_it_as_bert(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained(tmp_path))
    assert type(tokenizer).__name__ == "BertTokenizer"
    assert tokenizer.model_max_length == 512
    special = ["pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"]
    assert [getattr(tokenizer, name) for name in special] == [0, 1, 2, 3, 4]
    assert tokenizer.tokenize("CATS \u4e2d!") == ["cat", "##s", "\u4e2d", "!"]
    pair = tokenizer("cat", "sat")
    cat, sat = tokenizer.convert_tokens_to_ids(["cat", "sat"])
    assert pair["input_ids"] == [2, cat, 3, sat, 3]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("lower_case", [True, False])
def test_both_files_give_the_same_ids(tmp_path: Path, lower_case: bool) -> None:
    folder = trained(tmp_path, TEXT + ambiguous_text(), vocab_size=200, lower_case=lower_case)
    whole = AutoTokenizer.from_pretrained(folder)
    (tmp_path / "only").mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "only" / name)
    from_vocabulary = BertTokenizer.from_pretrained(tmp_path / "only")
    assert from_vocabulary.get_vocab() == whole.get_vocab()
    texts = [*TEXT.splitlines(), *ambiguous_text().splitlines(), "Unknown \u0416 [MASK]", "", "CAF\u00c9 \u4e2d\u6587"]
    ids = whole(texts)["input_ids"]
    assert ids == from_vocabulary(texts)["input_ids"]
    assert any(4 in line for line in ids)


def test_case_and_accents_are_kept_when_asked(tmp_path: Path) -> None:
    folder = trained(tmp_path, lower_case=False)
    assert {"T", "C", "\u00e9", "##\u00e9"} <= set(vocabulary_of(folder))
    assert AutoTokenizer.from_pretrained(folder).tokenize("\u00c9") == ["[UNK]"]


def test_rare_pairs_become_no_tokens(tmp_path: Path) -> None:
    learnt = vocabulary_of(trained(tmp_path, "abab abab abab cd cd", min_frequency=3, vocab_size=100))
    assert "abab" in learnt
    assert "cd" not in learnt


# --- characters ---


def test_characters_are_those_of_the_normalised_text() -> None:
    assert frequent_characters(bert_pipeline(lower_case=True), TEXT.splitlines(keepends=True)) == CHARACTERS
    assert continuations(bert_pipeline(lower_case=True), CHARACTERS) == CONTINUATIONS


def test_the_rarest_characters_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train_tokenizer, "MAX_CHARACTERS", 3)
    text = "aaa bb zyxw vuts rqpo nmlk jihg fedc"  # the third place is won by the first of the alphabet
    assert frequent_characters(bert_pipeline(lower_case=True), [text]) == ["a", "b", "c"]
    learnt = vocabulary_of(trained(tmp_path, text))
    assert set("".join(learnt[5:])) == set("abc#")


def test_forms_of_a_character_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tokenizer, "MAX_CHARACTERS", 1)
    assert frequent_characters(bert_pipeline(lower_case=True), ["EE ee bbb"]) == ["e"]


# --- the same on every run ---


def test_every_run_learns_the_same(tmp_path: Path) -> None:
    """The library alone fails this: its hash maps are seeded at random, and ties fall by their order."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(ambiguous_text())
    vocabularies = set()
    for number in range(8):
        run_main(Options(input=(corpus,), output=tmp_path / str(number), vocab_size=400))
        vocabularies.add((tmp_path / str(number) / "tokenizer.json").read_bytes())
    assert len(vocabularies) == 1


def test_another_process_learns_the_same(tmp_path: Path) -> None:
    folder = trained(tmp_path, ambiguous_text(), vocab_size=400)
    words = ["--input", tmp_path / "corpus.txt", "--vocab-size", "400", "--output", tmp_path / "again"]
    command = [sys.executable, "-m", "data.train_tokenizer", *map(str, words)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env={"TOKENIZERS_PARALLELISM": "false"}, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == f"{tmp_path / 'again'}: 400 tokens, 26 different characters\n"
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_files_are_read_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(parts, ("aba aba aba\n", "xyz xyz xyz\n"), strict=True):
        path.write_text(text)
    run_main(Options(input=tuple(parts), output=tmp_path / "out", vocab_size=100))
    assert {"aba", "xyz"} < set(vocabulary_of(tmp_path / "out"))
    count = len(vocabulary_of(tmp_path / "out"))
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'out'}: {count} tokens, all that the text gives, 5 different characters\n"
    )


# --- bad inputs ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no text to learn from"),
        (b" \n\t\n", "no text to learn from"),
        (b"\x00\n", "no text to learn from"),
    ],
)
def test_bad_text_is_an_error_and_leaves_nothing(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_invalid_bytes_are_read_as_binarize_reads_them(tmp_path: Path) -> None:
    words = vocabulary_of(
        trained(tmp_path, b"good words here\n" * 20 + b"good \xff words\n" + bytes(range(256)), vocab_size=200)
    )
    assert {"good", "words", "here"} <= set(words)


def test_unreadable_text_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # tests may run as root, for whom no mode is unreadable
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(train_tokenizer, "open", refuse, raising=False)
    with pytest.raises(DataError, match=r"corpus\.txt: can't be read: Permission denied"):
        trained(tmp_path)


def test_a_vocabulary_that_holds_not_even_the_characters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--vocab-size 23: the text's single characters need 24"):
        trained(tmp_path, vocab_size=23)
    (tmp_path / "exact").mkdir()
    assert len(vocabulary_of(trained(tmp_path / "exact", vocab_size=24))) == 24


@pytest.mark.parametrize("step", ["save", "verify"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    original = getattr(train_tokenizer, step)

    def fail(*words: object) -> None:
        original(*words)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train_tokenizer, step, fail)
    with pytest.raises(OSError, match="No space left on device"):
        trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_files_that_disagree_are_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train_tokenizer.save

    def save_and_damage(vocabulary: list[str], lower_case: bool, folder: Path) -> None:
        original(vocabulary, lower_case, folder)
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in [*vocabulary[:5], *vocabulary[:4:-1]]))

    monkeypatch.setattr(train_tokenizer, "save", save_and_damage)
    with pytest.raises(DataError, match=r"tokenizer\.json and vocab\.txt disagree"):
        trained(tmp_path)
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_an_existing_output_is_refused(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "tokenizer"
    {"folder": output.mkdir, "file": output.touch, "link": lambda: output.symlink_to("nowhere")}[kind]()
    with pytest.raises(ConfigError, match=r"--output .*tokenizer: exists already; remove it or name another"):
        trained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": (Path("no.txt"),)}, "--input no.txt: is no file"),
        ({"input": (Path("."),)}, "--input .: is no file"),
        ({"vocab_size": 5}, "--vocab-size 5: holds no more than special tokens"),
        ({"min_frequency": 0}, "--min-frequency 0: must be at least 1"),
    ],
)
def test_bad_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(TEXT)
    with pytest.raises(ConfigError) as caught:
        Options(**({"input": (Path("corpus.txt"),), "output": Path("out"), "vocab_size": 40} | change))
    assert str(caught.value) == message


def test_every_flag_is_a_decision() -> None:
    assert list(Options.__dataclass_fields__) == ["input", "output", "vocab_size", "lower_case", "min_frequency"]
