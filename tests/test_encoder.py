"""Which form of a tokenizer runs, and that a wrong one would be found."""

import pytest
import tokenizers

from data.encoder import CHECKED_LINES, Checked, Reference, fastest, invalid_lines, lines_of
from launch import native
from launch.errors import DataError


@pytest.fixture(scope="module")
def backend(tokenizer) -> tokenizers.Tokenizer:
    return tokenizer.backend_tokenizer


def test_lines() -> None:
    assert lines_of(b"a\r\nb\r\r\n\r\n\nc\rd\ne\r") == [b"a", b"b\r", b"", b"", b"c\rd", b"e"]
    assert lines_of(b"a\n") == [b"a"]
    assert lines_of(b"\n") == [b""]
    assert lines_of(b"") == []


def test_invalid_lines() -> None:
    assert invalid_lines("é\n東\n".encode()) == 0
    assert invalid_lines(b"a\xffb\nfine\n\xe6\x9d\n\xed\xa0\x80\n\xc3\n\xa9") == 5


def test_invalid_utf8_becomes_the_replacement_character(backend) -> None:
    ids = Reference(backend).encode(b"the\xff of\n")[0]
    assert ids.tolist() == Reference(backend).encode("the\ufffd of\n".encode())[0].tolist()


def test_berts_tokenizer_has_a_fast_form(backend) -> None:
    form, sentence = fastest(backend)
    assert isinstance(form, Checked)
    assert sentence == f"WordPiece in C++, checked against the tokenizers library {tokenizers.__version__}"


def test_without_a_compiler_the_reference_runs(backend, monkeypatch) -> None:
    monkeypatch.setenv("DILBERT_NATIVE", "0")
    native.load.cache_clear()
    try:
        form, sentence = fastest(backend)
    finally:
        native.load.cache_clear()
    assert isinstance(form, Reference)
    assert sentence.endswith("(no fast form: DILBERT_NATIVE=0)")


def test_other_tokenizers_run_by_the_reference() -> None:
    """RoBERTa's kind: byte-level BPE."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the cats walked and the dogs ran"] * 10, vocab_size=300)
    form, sentence = fastest(bpe._tokenizer)
    assert isinstance(form, Reference)
    assert "no fast form: its model is no WordPiece" in sentence
    ids, lengths = form.encode(b"the cats\n\xc3\xa9\n")
    assert bpe.decode(ids[: lengths[0]].tolist()) == "the cats"


class Wrong:
    """A form that gets one line wrong."""

    def __init__(self, reference: Reference, line: bytes) -> None:
        self.reference, self.line = reference, line

    def encode(self, block: bytes):
        return self.reference.encode(block.replace(self.line, b"of"))


def test_a_difference_stops_the_build(backend) -> None:
    reference = Reference(backend)
    wrong = Checked(Wrong(reference, b"zebra"), reference)
    head = b"the\n" * (CHECKED_LINES - 1)
    wrong.encode(head + b"the\n", head=True)
    with pytest.raises(DataError, match=r"other ids than the reference.*\nb'zebra'"):
        wrong.encode(head + b"zebra\n", head=True)
    wrong.encode(head + b"the\nzebra\n", head=True)  # beyond the head: by chance, in some block
    found = 0
    for i in range(200):
        try:
            wrong.encode(b"the\n" * (i % 7) + b"zebra\n" + b"of\n" * (i % 5))
        except DataError:
            found += 1
    assert 20 < found < 120


def test_a_huge_line_is_not_handed_to_the_reference(backend) -> None:
    reference = Reference(backend)
    huge = b"zebra " * 20_000
    Checked(Wrong(reference, huge), reference).encode(huge + b"\nthe\n", head=True)
    with pytest.raises(DataError):
        Checked(Wrong(reference, b"zebra"), reference).encode(b"zebra\n" + huge + b"\n", head=True)


def test_every_line_of_a_block_can_be_the_one_that_is_checked(backend, monkeypatch) -> None:
    checked = []
    reference = Reference(backend)
    form = Checked(Wrong(reference, b"zebra"), reference)
    monkeypatch.setattr(reference, "encode", lambda line, head=False: checked.append(line) or encode(line))
    encode = Reference(backend).encode
    form.fast = Wrong(Reference(backend), b"zebra")
    for i in range(300):
        form.encode(b"a\nb\r\nc\n" + b"d " * i)
    assert {line[:1] for line in checked} == {b"a", b"b", b"c", b"d"}
    assert b"b" in checked
