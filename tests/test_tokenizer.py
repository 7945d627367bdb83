"""data.tokenizer against `transformers` and `tokenizers` themselves, and the ways in which one can be missing."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import SPECIALS, VOCABULARY, write_vocabulary
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from data import DilBertTokenizer
from data.encoder import Reference
from data.tokenizer import load_tokenizer, tokenizer_hash, vocabulary_of
from data.vocabulary import Vocabulary
from launch import hub
from launch.errors import ConfigError, DataError

LINES = [
    "the cat",
    "",
    "Walking CATS!",
    "zebra",
    "é东東",
    "\ufffd",
    "the [SEP] of",
    "a " * 600,
    "\u2028 \x85",
    "x" * 300,
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and nothing cached; the variable of the environment is read at import only."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


# --- encoding ---


def encode_lines(tokenizer, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return Reference(tokenizer.backend_tokenizer).encode("".join(f"{line}\n" for line in lines).encode())


def test_ids_by_hand(tokenizer) -> None:
    ids, lengths = encode_lines(tokenizer, ["The cats, walked!", "", "zebra É"])
    expected = [["the", "cat", "##s", ",", "walk", "##ed", "!"], [], ["[UNK]", "[UNK]"]]  # É becomes e: no word of it
    assert [VOCABULARY[i] for i in ids] == [token for line in expected for token in line]
    assert lengths.tolist() == [7, 0, 2]
    assert ids.dtype == lengths.dtype == np.int64


def test_many_lines_equal_one_line_at_a_time(tokenizer) -> None:
    ids, lengths = encode_lines(tokenizer, LINES)
    one_by_one = [tokenizer.backend_tokenizer.encode(line, add_special_tokens=False).ids for line in LINES]
    assert ids.tolist() == [i for line in one_by_one for i in line]
    assert lengths.tolist() == [len(line) for line in one_by_one]
    assert one_by_one == [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]


def test_nothing_is_truncated_or_padded(tokenizer, tmp_path: Path) -> None:
    """A tokenizer.json often brings the truncation that somebody trained with (BERT's own class drops it)."""
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    truncating = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert len(truncating.backend_tokenizer.encode("the " * 9).ids) == 4
    found, expected = encode_lines(load_tokenizer(str(tmp_path)), LINES), encode_lines(tokenizer, LINES)
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    assert tokenizer_hash(truncating) == tokenizer_hash(tokenizer)


# --- the vocabulary ---


def test_vocabulary_by_hand(tokenizer) -> None:
    found = vocabulary_of(tokenizer)
    assert found == Vocabulary(len(VOCABULARY), 2, 3, 4, 0, 1, (0, 1, 2, 3, 4), tokenizer_hash(tokenizer))


def test_special_tokens_where_they_stand_elsewhere(tmp_path: Path) -> None:
    found = vocabulary_of(load_tokenizer(str(write_vocabulary(tmp_path, ("the", "of", *reversed(SPECIALS))))))
    assert (found.size, found.mask_id, found.sep_id, found.cls_id, found.unk_id, found.pad_id) == (7, 2, 3, 4, 5, 6)
    assert found.special_ids == (2, 3, 4, 5, 6)


def test_size_is_the_largest_id_and_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_vocabulary(tmp_path, (*SPECIALS, "the", "of", "the"))))
    assert len(tokenizer) == 7
    assert vocabulary_of(tokenizer).size == 8
    assert encode_lines(tokenizer, ["the of"])[0].tolist() == [7, 6]


@pytest.mark.parametrize(("size", "dtype"), [(30_522, "uint16"), (65_499, "uint16"), (65_500, "int32")])
def test_storage_type(size: int, dtype: str) -> None:
    assert Vocabulary(size, 0, 0, 0, 0, 0, (), "").dtype.name == dtype


# --- the hash ---


def test_the_hash_is_the_same_from_any_file_it_is_kept_in(tokenizer_folder: Path, tokenizer, tmp_path: Path) -> None:
    expected = tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path / "json")
    assert not (tmp_path / "json" / "vocab.txt").exists()
    shutil.copytree(tokenizer_folder, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path / "json", tmp_path / "model"):
        assert tokenizer_hash(load_tokenizer(str(folder))) == expected
    assert tokenizer_hash(BertTokenizer(vocab=str(tokenizer_folder / "vocab.txt"))) == expected
    assert tokenizer_hash(DilBertTokenizer.from_pretrained(tokenizer_folder)) == expected


def test_the_hash_changes_with_all_that_decides_ids(tokenizer_folder: Path, tmp_path: Path) -> None:
    vocabularies = [VOCABULARY, VOCABULARY[:-1], (*VOCABULARY, "owl"), (*VOCABULARY[:-2], "東", "é"),
                    ("[PAD]", "[UNK]", "[SEP]", "[CLS]", *VOCABULARY[4:])]  # fmt: skip
    hashes = [
        tokenizer_hash(load_tokenizer(str(write_vocabulary(tmp_path / str(i), tokens))))
        for i, tokens in enumerate(vocabularies)
    ]
    for options in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        hashes.append(tokenizer_hash(BertTokenizer.from_pretrained(tokenizer_folder, **options)))
    more = BertTokenizer.from_pretrained(tokenizer_folder)
    more.add_tokens(["owl"])
    hashes.append(tokenizer_hash(more))
    assert len(set(hashes)) == len(hashes) == 9


# --- DilBertTokenizer ---


@pytest.mark.parametrize("lower", [True, False])
def test_what_it_saves_is_berts(tokenizer_folder: Path, tmp_path: Path, lower: bool) -> None:
    ours = DilBertTokenizer.from_pretrained(pretrained_model_name_or_path=tokenizer_folder, do_lower_case=lower)
    ours.save_pretrained(save_directory=tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(theirs) is BertTokenizer
    assert theirs.model_input_names == ours.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer_hash(theirs) == tokenizer_hash(ours)
    for line in LINES:
        assert theirs(line)["input_ids"] == ours(line)["input_ids"]
    assert (theirs("The cat").tokens()[1] == "the") is lower
    again = DilBertTokenizer.from_pretrained(tmp_path / "saved")
    assert type(again) is DilBertTokenizer
    assert tokenizer_hash(again) == tokenizer_hash(ours)


def test_it_pads_and_frames_as_berts_does(tokenizer_folder: Path) -> None:
    batch = DilBertTokenizer.from_pretrained(tokenizer_folder)(["the cat", "the of and"], padding=True)
    assert batch["input_ids"] == [[2, 5, VOCABULARY.index("cat"), 3, 0], [2, 5, 6, 7, 3]]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 0], [1] * 5]


def test_first_names_of_the_published_models() -> None:
    assert hub.resolve("dilbert-base-uncased") == "distilbert/distilbert-base-uncased"
    assert hub.resolve("dilbert-base-uncased-distilled-squad") == "distilbert/distilbert-base-uncased-distilled-squad"
    assert hub.resolve("bert-base-uncased") == "bert-base-uncased"


def test_it_asks_the_hub_for_todays_name(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(BertTokenizer, "from_pretrained", classmethod(lambda cls, name, **_: asked.append(name)))
    DilBertTokenizer.from_pretrained("dilbert-base-uncased")
    assert asked == ["distilbert/distilbert-base-uncased"]


# --- what can be missing ---


@pytest.mark.parametrize("name", ["nobody/nothing-here", "dilbert-base-uncased", "bert-base-uncased"])
def test_a_hub_name_without_a_network(offline: None, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(name)
    assert str(caught.value).startswith(f"'{hub.resolve(name)}' is no folder here, and could not be fetched")
    assert f"hf download {hub.resolve(name)} --local-dir FOLDER" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", "~/nothing"])
def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked for a path")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=f"'{name}': no such folder"):
        load_tokenizer(name)


def test_a_name_below_a_folder_is_no_matter_of_the_hub(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/tt-run").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("models/tt")
    assert str(caught.value) == "'models/tt': no such folder"
    Path("models/tt-1").mkdir()
    Path("models/tt-1/vocab.txt").touch()
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("models/tt")
    assert str(caught.value) == "'models/tt': no such folder; did you mean 'models/tt-1'?"


def test_what_is_no_name(offline: None) -> None:
    with pytest.raises(ConfigError, match="'bad name!' is no folder here"):
        load_tokenizer("bad name!")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert not hub.has_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(str(tmp_path))


def test_a_folder_with_one(tokenizer_folder: Path, tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert hub.has_tokenizer(tokenizer_folder)
    assert hub.has_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "1.0"}', b"\xff\xfe"])
def test_a_damaged_tokenizer_json(tokenizer_folder: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "damaged")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="can't be read"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("tokens", [(), ("the", "of"), VOCABULARY[:1] + VOCABULARY[2:]])
def test_a_vocabulary_without_an_unknown_token(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"can't be read: .*\[UNK\]"):
        load_tokenizer(str(write_vocabulary(tmp_path, tokens)))


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    """As of a model that was never trained to fill gaps."""
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]",
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no mask_token"):
        load_tokenizer(str(tmp_path))


# --- the real one ---


def test_the_real_vocabulary(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "bert-base-uncased"))
    assert type(tokenizer) is BertTokenizer
    found = vocabulary_of(tokenizer)
    assert (found.size, found.pad_id, found.unk_id, found.cls_id, found.sep_id, found.mask_id) == (
        30_522, 0, 100, 101, 102, 103,
    )  # fmt: skip
    assert found.special_ids == (0, 100, 101, 102, 103)
    ids, lengths = encode_lines(tokenizer, ["Hello, world!", "The quick brown fox jumps over the lazy dog."])
    assert ids.tolist() == [7592, 1010, 2088, 999, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012]
    assert lengths.tolist() == [4, 10]
