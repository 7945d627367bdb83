"""The fast form of BERT's tokenizer, exact by construction: `wordpiece.cpp`, with tables read out of the reference.

What becomes of a code point is asked of the reference tokenizer itself, once for its rules and its library's version,
and kept in the cache folder. Chunks whose treatment depends on more than their code points go to the reference.
"""

import contextlib
import ctypes
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from launch import commit, native

SOURCE = Path(__file__).with_name("wordpiece.cpp")
SLACK = bytes(16)  # readable bytes that the operation needs behind a block
MOST_CHUNKS = 1 << 21  # remembered: 128 MB
CODE_POINTS = 0x110000
_ALONE, _BREAK, _OPEN = b"\x01", b"\x02", b"\x03"  # as in wordpiece.cpp
# Two marks that survive the stripping of accents, of combining classes 224 and 216. A mark of any other class changes
# places with one of them: those up to 223 stand before the first, those from 217 on behind the second.
_HIGH_MARK, _LOW_MARK = "\u302e", "\U0001d165"


class WordPiece:
    """Lines of UTF-8 -> ids, as `tokenizers` would give them.

    Raises:
        native.Unavailable: another kind of tokenizer than BERT's, or no compiler.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.reference = tokenizer
        state = json.loads(self.reference.to_str())
        _refuse_unlike_bert(state)
        self.library = _library()
        model = state["model"]
        unknown = model["vocab"][model["unk_token"]]
        self.address = self.library.wordpiece_new(MOST_CHUNKS, unknown, model["max_input_chars_per_word"])
        prefix = model["continuing_subword_prefix"]
        for token, number in model["vocab"].items():
            self._add(self.library.wordpiece_word, token, number)
            if token.startswith(prefix):
                self._add(self.library.wordpiece_continuation, token.removeprefix(prefix), number)
        for token in state["added_tokens"]:
            self._add(self.library.wordpiece_special, token["content"])
        offsets, normalised = code_points(self.reference, state)
        self.library.wordpiece_code_points(self.address, offsets.ctypes.data, normalised)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self.library.wordpiece_delete(self.address)

    def _add(self, function: Any, text: str, *number: int) -> None:
        content = text.encode()
        function(self.address, content, len(content), *number)

    def encode(self, block: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the lines of a block, without special tokens around them; the last line may lack its end.

        Returns:
            ids: uint32 [sum of lengths], the lines' ids one after another.
            lengths: int64 [lines].
        """
        padded = block + SLACK
        sizes = (ctypes.c_int64 * 3)()
        self.library.wordpiece_encode(self.address, padded, len(block), sizes)
        count, lines, open_chunks = sizes
        if open_chunks:
            count = self._ask_reference(padded, open_chunks)
        ids = _array(self.library.wordpiece_ids(self.address), np.uint32, count)
        return ids, _array(self.library.wordpiece_lengths(self.address), np.int64, lines)

    def _ask_reference(self, block: bytes, count: int) -> int:
        """Resolve the chunks that the operation left open; the number of ids after that."""
        places = _array(self.library.wordpiece_open(self.address), np.int64, 4 * count).reshape(count, 4)
        chunks = [block[begin : begin + length] for begin, length in places[:, :2].tolist()]
        distinct = list(dict.fromkeys(chunks))
        texts = [chunk.decode(errors="replace") for chunk in distinct]
        encodings = self.reference.encode_batch_fast(texts, add_special_tokens=False)
        answer = {chunk: encoding.ids for chunk, encoding in zip(distinct, encodings, strict=True)}
        counts = np.array([len(answer[chunk]) for chunk in chunks], np.int64)
        ids = np.array([token for chunk in chunks for token in answer[chunk]], np.uint32)
        return self.library.wordpiece_resolve(self.address, block, ids.ctypes.data, counts.ctypes.data)


def code_points(reference: tokenizers.Tokenizer, state: dict[str, Any]) -> tuple[np.ndarray, bytes]:
    """What becomes of each code point, from the cache or read now.

    Returns:
        offsets: uint32 [0x110000 + 1] into the second.
        normalised: for each code point its normalised text in UTF-8, with marks: 1 before a character that is a word of
            its own, 2 for a border between words, 3 alone where neighbours matter.
    """
    rules = [tokenizers.__version__, state["normalizer"], state["pre_tokenizer"], Path(__file__).read_text()]
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    path = native.cache() / f"code-points-{digest[:16]}.bin"
    sizes, head = 4 * (CODE_POINTS + 1), len(digest) // 2
    content = path.read_bytes() if path.exists() else b""
    if content[:head] != hashlib.sha256(content[head:]).digest():  # none yet, or damaged
        offsets, normalised = _read_code_points(reference)
        body = offsets.tobytes() + normalised
        with contextlib.suppress(OSError):  # the next process then reads it out again
            path.parent.mkdir(parents=True, exist_ok=True)
            commit.write_bytes(path, hashlib.sha256(body).digest() + body)
        return offsets, normalised
    return np.frombuffer(content, np.uint32, CODE_POINTS + 1, head), content[head + sizes :]


def _read_code_points(reference: tokenizers.Tokenizer) -> tuple[np.ndarray, bytes]:
    normalise, cut = reference.normalizer.normalize_str, reference.pre_tokenizer.pre_tokenize_str
    marks: dict[str, bytes] = {}

    def mark(c: str) -> bytes:
        """What stands for one normalised character: 1, 2 or 3 words come out of a..b."""
        if c not in marks:
            pieces = len(cut(f"a{c}b"))
            marks[c] = {1: c.encode(), 2: _BREAK, 3: _ALONE + c.encode()}.get(pieces, _OPEN)
        return marks[c]

    offsets, normalised = np.zeros(CODE_POINTS + 1, np.uint32), bytearray()
    for code in range(CODE_POINTS):
        if not 0xD800 <= code < 0xE000:  # no such characters
            text = normalise(f"a{chr(code)}b")
            alone = text[:1] == "a" and text[-1:] == "b" and not _moves(chr(code), text[1:-1], normalise)
            normalised += b"".join(map(mark, text[1:-1])) if alone else _OPEN
        offsets[code + 1] = len(normalised)
    return offsets, bytes(normalised)


def _moves(c: str, becomes: str, normalise: Any) -> bool:
    """Whether Unicode would reorder what becomes of a character among other marks beside it."""
    if not becomes or ord(c) < 0x300:
        return False
    behind, before = normalise(f"a{_HIGH_MARK}{c}b"), normalise(f"a{c}{_LOW_MARK}b")
    return behind != f"a{_HIGH_MARK}{becomes}b" or before != f"a{becomes}{_LOW_MARK}b"


def _refuse_unlike_bert(state: dict[str, Any]) -> None:
    """Raise Unavailable unless every fact that wordpiece.cpp relies on holds."""
    model, normalizer = state["model"], state["normalizer"] or {}
    facts = {
        "its model is no WordPiece": model["type"] == "WordPiece",
        "its normalizer is not BERT's": normalizer.get("type") == "BertNormalizer" and normalizer["clean_text"],
        "its pre-tokenizer is not BERT's": (state["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer",
        "its unknown token is no word": model.get("unk_token") in model["vocab"],
        "an added token may depend on its neighbours": not any(
            token[key] for token in state["added_tokens"] for key in ("single_word", "lstrip", "rstrip", "normalized")
        ),
        "an added token holds white space": not any(
            not token["content"] or token["content"].split() != [token["content"]] for token in state["added_tokens"]
        ),
    }
    wrong = next((reason for reason, holds in facts.items() if not holds), None)
    if wrong:
        raise native.Unavailable(wrong)


def _array(address: int, dtype: Any, count: int) -> np.ndarray:
    """A copy of the operation's memory."""
    if not count:
        return np.zeros(0, dtype)
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).copy()


def _library() -> ctypes.CDLL:
    library = native.load(SOURCE)
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "new": (pointer, [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int]),
        "delete": (None, [pointer]),
        "word": (None, [pointer, text, integer, ctypes.c_uint32]),
        "continuation": (None, [pointer, text, integer, ctypes.c_uint32]),
        "special": (None, [pointer, text, integer]),
        "code_points": (None, [pointer, pointer, text]),
        "encode": (None, [pointer, text, integer, pointer]),
        "open": (pointer, [pointer]),
        "resolve": (integer, [pointer, text, pointer, pointer]),
        "ids": (pointer, [pointer]),
        "lengths": (pointer, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"wordpiece_{name}")
        function.restype, function.argtypes = result, arguments
    return library
