"""The fast tokenizer gives the ids of the reference, for every input."""

import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import VOCABULARY, write_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from data import wordpiece
from data.encoder import Reference
from data.wordpiece import WordPiece
from launch import native

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Pieces of every kind of script, so that words break in the middle, and some nowhere.
PIECES = (
    *VOCABULARY, *LETTERS, *(f"##{c}" for c in LETTERS[:13]), *"0123456789éßσς中文日本한국абвгд", "##σ", "##ς",
    "##文", "##국", "##ов", "##ing", "antidisestablishmentarianism", "##disestablishmentarianism", "İ", "i̇", "ö",
    "##ö", "“", "…", "€", "##1", "[unused1]", "A", "B", "É", "##É", "Σ", "The", "क", "##ा", "ก", "##ำ",
)  # fmt: skip


def tokenizer(**rules) -> tokenizers.Tokenizer:
    """BERT's tokenizer over PIECES."""
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(PIECES))}
    made = BertTokenizer(vocab=vocabulary, **rules).backend_tokenizer
    made.no_truncation()
    return made


KINDS = {
    "uncased": {"do_lower_case": True},
    "cased": {"do_lower_case": False},
    "accents kept": {"do_lower_case": True, "strip_accents": False},
    "accents stripped, cased": {"do_lower_case": False, "strip_accents": True},
    "characters joined": {"do_lower_case": True, "tokenize_chinese_chars": False},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def pair(request) -> tuple[WordPiece, Reference]:
    reference = tokenizer(**request.param)
    return WordPiece(reference), Reference(reference)


def assert_same(pair: tuple[WordPiece, Reference], block: bytes) -> None:
    found, expected = pair[0].encode(block), pair[1].encode(block)
    assert found[1].tolist() == expected[1].tolist(), block
    assert found[0].tolist() == expected[0].tolist(), block


def test_ids_by_hand(tokenizer_folder: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(tokenizer_folder).backend_tokenizer
    ids, lengths = WordPiece(tokenizer).encode("The cats, walked!\n\nzebra É\r\n".encode())
    expected = ["the", "cat", "##s", ",", "walk", "##ed", "!", "[UNK]", "[UNK]"]  # É becomes e: no word of it
    assert [VOCABULARY[i] for i in ids] == expected
    assert lengths.tolist() == [7, 0, 2]
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int64)


HARD = [
    "", "\n", "\n\n\n", "the", "the\n", "the of\r\nand\r\r\n", " \t the \t of \r and ",
    "the\x00of \x01 \x7f\x80\x85\u200b", "ΑΣ ΑΣΑ Σ σς ΟΔΥΣΣΕΥΣ", "İstanbul ıI ŉ ǰ ΐ և ﬁ ﬀ ẞ ß",
    "e\u0301 é E\u0301 É a\u0323\u0302 ậ ậ", "한국어 각 ᄀ\u1161\u11a8", "中文the日本of", "𠀀𠀁 〇 々 〆 ヶ",
    "the—of…“and”‘to’«in»¿a?", "a.b,c!d 3.14 $5 €6 x^2 `a` ~b~ a|b", "[MASK] [mask] [UNK]x y[SEP]z",
    "[CLS][SEP] [MAS K] [PAD", "[[MASK]]", "a" * 100, "a" * 101, "é" * 100, "é" * 101, "e\u0301" * 101, "中" * 101,
    "x" * 16 + " " + "x" * 17 + " " + "a" * 15, "\u302e\U0001d165 a\u302e\U0001d165 \U0001d165\u302eb",
    "a\u0345\u0301\u0323b", "\u1b44\u0301 \u09bc\u09cd \u0f71\u0f72\u0f74", "\U0001e000\U0001d165",
    "क्षत्रिय กำ ກຳ", "\u2028\u2029\u3000\u00a0\u1680\u2003\ufeff",
    "\ufffd \ufffe \uffff \U0010ffff \ue000 \U000e0001", "👩‍👩‍👧‍👦 🇩🇪 ☺️ 1️⃣",
    "antidisestablishmentarianisms" * 3, "²³¹ ½ Ⅳ ㊿ ㍿ ℡",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_hard_lines(pair, text: str) -> None:
    assert_same(pair, text.encode())
    assert_same(pair, text.encode())  # from memory


BROKEN = [
    b"\xff", b"a\xffb the", b"\xc3", b"\xc3\n\xa9", b"\xe6\x9d\n", b"\xe6\x9d", b"\xed\xa0\x80x",
    b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xc0\x80 \xe0\x80\x80", b"the\xe6 of\x9d",
    b"\xf0\x9f\x98 \xf0\x9f\x98\x80", b"[MASK]\xff",
]  # fmt: skip


@pytest.mark.parametrize("block", BROKEN)
def test_invalid_utf8(pair, block: bytes) -> None:
    assert_same(pair, block)


def test_every_code_point_in_and_between_words(pair) -> None:
    """Alone, within a word, twice, and before and behind marks of other combining classes."""
    codes = [chr(code) for code in range(wordpiece.CODE_POINTS) if not 0xD800 <= code < 0xE000]
    picked = codes[:0x3100] + random.Random(0).sample(codes[0x3100:], 4_000)
    picked += [c for c in codes if unicodedata.combining(c)]
    for start in range(0, len(picked), 500):
        lines = [f"{c} a{c}b {c}{c} a\u302e{c}b a{c}\U0001d165b a\u0323{c}\u0301b" for c in picked[start : start + 500]]
        assert_same(pair, "\n".join(line for line in lines if "\n" not in line).encode())


WORDS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=["Mn", "Mc", "Me", "Cf", "Zs", "Po", "Lo"]), max_size=6),
    st.sampled_from([*PIECES, "[MASK]", "[UNK]", "\t", "\r", "e\u0301", "Σ", "zebra", "a" * 99]),
    st.text("abcé中.[]M", max_size=24),
)
SEPARATORS = st.sampled_from([" ", "  ", "\n", "\r\n", "", "\t", "\u00a0", "\x00"])
BLOCKS = st.lists(st.tuples(WORDS, SEPARATORS), max_size=30).map(lambda pairs: "".join(a + b for a, b in pairs))


@settings(deadline=None, max_examples=150)
@given(text=BLOCKS)
def test_any_text(pair, text: str) -> None:
    assert_same(pair, text.encode(errors="replace"))


@settings(deadline=None, max_examples=150)
@given(
    block=st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b"the ", b"\n", "é中".encode()]))).map(b"".join)
)
def test_any_bytes(pair, block: bytes) -> None:
    assert_same(pair, block)


def test_a_huge_line(pair) -> None:
    generator = random.Random(1)
    words = [generator.choice([*PIECES, "zebra", "e\u0301", "[MASK]", "中文", "x" * 40]) for _ in range(200_000)]
    assert_same(pair, " ".join(words).encode())


def test_memory_is_bounded(monkeypatch) -> None:
    """Where there is no room to remember a chunk, it is worked out again."""
    reference = tokenizer(**KINDS["uncased"])
    monkeypatch.setattr(wordpiece, "MOST_CHUNKS", 10)
    small = WordPiece(reference)
    block = " ".join(f"a{i} [MASK]{i % 7}" for i in range(500)).encode()
    for _ in range(2):
        assert_same((small, Reference(reference)), block)


def test_the_table_is_read_once_and_checked(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DILBERT_CACHE", str(tmp_path))
    reference = tokenizer(**KINDS["cased"])
    state = wordpiece.json.loads(reference.to_str())
    first = wordpiece.code_points(reference, state)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(wordpiece, "_read_code_points", lambda _: pytest.fail("read again"))
    assert [bytes(memoryview(part)) for part in wordpiece.code_points(reference, state)] == [
        bytes(memoryview(part)) for part in first
    ]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(wordpiece, "_read_code_points", lambda _: first)
    wordpiece.code_points(reference, state)
    assert path.read_bytes()[:100] == bytes(content[:100])
    assert path.read_bytes() != bytes(content), "a damaged table is read anew"


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    unlike = {
        "its model is no WordPiece": tokenizers.Tokenizer(tokenizers.models.BPE()),
        "its normalizer is not BERT's": change(normalizer=None),
        "its pre-tokenizer is not BERT's": change(pre_tokenizer={"type": "Whitespace"}),
        "an added token may depend on its neighbours": added(
            tokenizers.AddedToken("zz", lstrip=True, normalized=False)
        ),
        "an added token holds white space": added(tokenizers.AddedToken("z z", normalized=False)),
    }
    for reason, other in unlike.items():
        with pytest.raises(native.Unavailable, match=reason):
            WordPiece(other)


def change(**parts) -> tokenizers.Tokenizer:
    state = wordpiece.json.loads(tokenizer().to_str())
    return tokenizers.Tokenizer.from_str(wordpiece.json.dumps(state | parts))


def added(token: tokenizers.AddedToken) -> tokenizers.Tokenizer:
    made = tokenizer()
    made.add_tokens([token])
    return made


def test_added_tokens_inside_words() -> None:
    reference = added(tokenizers.AddedToken("zz", normalized=False))
    assert_same((WordPiece(reference), Reference(reference)), b"pizzas zz fuzz ZZ the\n")


def test_without_a_compiler(monkeypatch, tmp_path: Path) -> None:
    native.load.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    try:
        with pytest.raises(native.Unavailable, match=r"no C\+\+ compiler"):
            WordPiece(tokenizer())
    finally:
        native.load.cache_clear()


def test_a_vocabulary_of_more_than_65536(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path, (*VOCABULARY, *(f"w{i}" for i in range(70_000))))
    reference = BertTokenizer.from_pretrained(folder).backend_tokenizer
    assert_same((WordPiece(reference), Reference(reference)), b"w69999 the w5 w69998\n")


def test_real_lines(shared_data: Path) -> None:
    """The real vocabulary on all of the real corpus's held-out lines, as they are, cut, and doubled."""
    reference = BertTokenizer.from_pretrained(shared_data / "bert-base-uncased").backend_tokenizer
    reference.no_truncation()
    pair = WordPiece(reference), Reference(reference)
    text = (shared_data / "corpus" / "dump.valid.txt").read_bytes()
    for block in (text, text[777:-33], text.replace(b" ", b""), text.replace(b"e", "é".encode())):
        assert_same(pair, block)
