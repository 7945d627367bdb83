"""SQuAD: files, windows as `transformers` cuts them, answers mapped to tokens and back, decoding as BERT's original."""

import itertools
import json
import math
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPECIALS, sentence, write_vocabulary

from data.tasks import TASKS, FeatureSettings
from data.tasks.answers import CERTAIN, Decoded, Window, decode
from data.tasks.windows import Answer, Question, SpanFeatures, _central
from data.tokenizer import load_tokenizer
from launch.errors import ConfigError, DataError

SQUAD, SQUAD_V2 = TASKS["squad"], TASKS["squad_v2"]
SETTINGS = FeatureSettings()
SMALL = FeatureSettings(max_length=20, doc_stride=4, max_query_length=6)
CONTEXT = "the cat walked to the house and the dog talked."


def record(number: str = "q1", *answers: tuple[str, int], **more: Any) -> dict:
    return {
        "id": number,
        "question": "who walked?",
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
        **more,
    }


def document(*records: dict, context: str = CONTEXT) -> dict:
    return {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(records)}]}]}


def write(folder: Path, content: Any, name: str = "train-v1.1.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def question(context: str = CONTEXT, *answers: str, text: str = "who walked ?", number: str = "q") -> Question:
    return Question(number, text, context, tuple(Answer(answer, context.index(answer)) for answer in answers))


def tokens_of(tokenizer: Any, features: SpanFeatures, number: int) -> list[str]:
    return tokenizer.convert_ids_to_tokens(features.ids[features.ends[number] : features.ends[number + 1]].tolist())


@pytest.fixture(scope="module")
def reference(tokenizer_folder: Path) -> Any:
    """Another instance: called as `transformers` does, it keeps its truncation on."""
    return load_tokenizer(str(tokenizer_folder))


# --- what the tasks are ---


def test_both_versions() -> None:
    for task in (SQUAD, SQUAD_V2):
        assert (task.head, task.labels, task.main, task.splits) == ("span", (), "f1", ("dev",))
        assert task.max_length == 384


# --- files ---


def test_version_1(tmp_path: Path) -> None:
    write(tmp_path, document(record("a", ("the cat", 0)), record("b", ("dog", 36), ("the dog", 32))))
    answers = [(Answer("the cat", 0),), (Answer("dog", 36), Answer("the dog", 32))]
    expected = [Question(n, "who walked?", CONTEXT, own) for n, own in zip("ab", answers, strict=True)]
    assert SQUAD.read(tmp_path, "train") == expected
    write(tmp_path, document(record("a", ("the cat", 0))), "dev-v1.1.json")
    assert SQUAD.read(tmp_path, "dev") == expected[:1]


def test_version_2(tmp_path: Path) -> None:
    plausible = [{"text": "cat", "answer_start": 4}]
    rows = document(record("a", ("the cat", 0), is_impossible=False),
                    record("b", is_impossible=True, plausible_answers=plausible))  # fmt: skip
    write(tmp_path, rows, "dev-v2.0.json")
    assert [q.answers for q in SQUAD_V2.read(tmp_path, "dev")] == [(Answer("the cat", 0),), ()]


def test_places_are_counted_in_characters(tmp_path: Path) -> None:
    """Not in bytes, and not in UTF-16: one outside the basic plane counts 1."""
    context = "\ufeff \U0001f600\u00e9\u6771 dog"
    path = tmp_path / "train-v1.1.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(document(record("a", ("dog", 6)), context=context)).encode())
    assert SQUAD.read(tmp_path, "train")[0].answers == (Answer("dog", 6),)
    path.write_text(json.dumps(document(record("a", ("dog", 6)), context=context), ensure_ascii=False), "utf-8")
    assert SQUAD.read(tmp_path, "train")[0].context == context


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: None, split: str) -> list[dict]:
        assert (name, config, split) in (
            ("rajpurkar/squad", None, "train"),
            ("rajpurkar/squad_v2", None, "validation"),
        )
        answers = {"text": ["the cat"], "answer_start": [0]}
        row = {"id": "a", "title": "t", "context": CONTEXT, "question": "who walked?", "answers": answers}
        return [row, row | {"id": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    expected = [Question(n, "who walked?", CONTEXT, (Answer("the cat", 0),)) for n in "ab"]
    assert SQUAD.read(None, "train") == SQUAD_V2.read(None, "dev") == expected
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="rajpurkar/squad"):
        SQUAD.read(None, "train")


# --- bad files ---


def refuses(tmp_path: Path, content: Any, task: str = "squad") -> str:
    """What is said of a training file."""
    path = write(tmp_path, content, f"train-v{TASKS[task].version}.json")  # type: ignore[attr-defined]
    with pytest.raises(DataError) as error:
        TASKS[task].read(tmp_path, "train")
    assert str(path) in str(error.value)
    return str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SQuAD 2\.0's dev set is not there; looked for dev-v2\.0\.json"):
        SQUAD_V2.read(tmp_path, "dev")


def test_an_empty_file(tmp_path: Path) -> None:
    assert "train-v1.1.json: the file is empty" in refuses(tmp_path, " \n")
    assert "no questions in it" in refuses(tmp_path, {"data": []})


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    whole = json.dumps(document(record("a", ("the cat", 0))), indent=1)
    for length in (1, len(whole) // 2, len(whole) - 2):
        message = refuses(tmp_path, whole[:length])
        assert "not JSON" in message
        assert f"line {whole[:length].count(chr(10)) + 1}, column" in message
    assert "seems to be cut off" in refuses(tmp_path, whole[:-2])
    assert "seems to be cut off" in refuses(tmp_path, whole[: whole.index("cat") + 1]), "within a string"
    assert "cut off" not in refuses(tmp_path, "{]" + whole)
    assert "not JSON that can be read" in refuses(tmp_path, "[" * 100_000)
    assert "not JSON that can be read" in refuses(tmp_path, "1" * 5000)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train-v1.1.json").write_bytes(b'{"version":\n"\xff"}')
    with pytest.raises(DataError, match=r"train-v1\.1\.json, line 2: not UTF-8: .*, byte 14 of the file"):
        SQUAD.read(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "'data' must be there, and be a list"),
        ({"data": {}}, "'data' must be there, and be a list"),
        ({"data": [{"title": "t"}]}, "article 0: 'paragraphs' must be there, and be a list"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "article 0, paragraph 0: 'context' must be there, and be a text"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "article 0, paragraph 0: 'qas' must be there"),
        (document({"question": "a", "answers": []}), "paragraph 0, question 0: 'id' must be there, and be a text"),
        (document({"id": "a", "answers": []}), "question 0: 'question' must be there, and be a text"),
        (document({"id": "a", "question": "b"}), "question 0, id 'a': 'answers' must be there, and be a list"),
        (document(record("a") | {"answers": ["cat"]}), "id 'a': 'text' must be there, and be a text"),
        (document(record("a", ("cat", "4"))), "id 'a': 'answer_start' must be there, and be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_a_missing_field(tmp_path: Path, content: Any, expected: str) -> None:
    assert expected in refuses(tmp_path, content)


def test_half_a_character(tmp_path: Path) -> None:
    """JSON can say it by an escape; no tokenizer takes it."""
    message = refuses(tmp_path, document(record("a", ("cat", 4)), context=CONTEXT + "\ud83d"))
    assert "paragraph 0: 'context' holds half a character" in message
    whole = document(record("a", ("cat", 4)), context=CONTEXT + "\ud83d\ude00")
    write(tmp_path, json.dumps(whole))
    assert SQUAD.read(tmp_path, "train")[0].context == CONTEXT + "\U0001f600"


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("cat", 5), "id 'a': answer 'cat' is not in the context at answer_start 5; it begins at 4: correct"),
        (("the", 1), "it begins at 0 or at 18 or at 32: correct answer_start"),
        (("cow", 4), "it is nowhere in it: correct the answer, or take the question out"),
        (("The cat", 0), "it is nowhere in it"),
        (("talked.", -7), "answer_start -7; it begins at 40"),
        (("cat", 900), "answer_start 900; it begins at 4"),
        (("", 3), "id 'a': an answer's text is empty"),
    ],
)
def test_an_answer_that_is_not_where_it_says(tmp_path: Path, task: str, answer: tuple, expected: str) -> None:
    assert expected in refuses(tmp_path, document(record("a", ("the cat", 0), answer)), task)


def test_a_question_without_answers(tmp_path: Path) -> None:
    message = refuses(tmp_path, document(record("a", is_impossible=True)))
    assert "id 'a': has no answers" in message
    assert "--task squad_v2" in message
    contradiction = document(record("a", ("cat", 4), is_impossible=True))
    assert "id 'a': has answers, and is_impossible" in refuses(tmp_path, contradiction, "squad_v2")
    contradiction = document(record("a", is_impossible=False))
    assert "id 'a': has no answers, and is_impossible is false" in refuses(tmp_path, contradiction, "squad_v2")
    assert "'answer_start' must be there, and be a whole number" in refuses(
        tmp_path, document(record("a", ("at", True)))
    )


def test_an_id_twice(tmp_path: Path) -> None:
    message = refuses(tmp_path, document(record("a", ("cat", 4)), record("b", ("cat", 4)), record("a", ("cat", 4))))
    assert "question 2: id 'a' has been another question's already" in message


# --- windows ---


def test_windows_by_hand(tokenizer: Any) -> None:
    """[CLS] 3 tokens [SEP] 8 tokens [SEP]: windows begin at tokens 0, 6 and, the last, 12 of the context's 19."""
    context = "the of and to in a is that it was for on are with as at be this have"
    settings = FeatureSettings(max_length=14, doc_stride=2, max_query_length=6)
    features = SQUAD.features([question(context, "for on", text="cat ! dog")], tokenizer, settings, training=False)
    own = [tokens_of(tokenizer, features, number) for number in range(len(features))]
    words = context.split()
    head = ["[CLS]", "cat", "!", "dog", "[SEP]"]
    assert own == [[*head, *words[a : a + 8], "[SEP]"] for a in (0, 6, 12)]
    assert features.example.tolist() == [0, 0, 0]
    assert features.types.tolist() == [0, 0, 0, 0, 0, *[1] * 9] * 2 + [0, 0, 0, 0, 0, *[1] * 8]
    assert features.labels.tolist() == [[0, 0], [9, 10], [0, 0]]  # tokens 10 and 11
    places = [[context[a:b] if a >= 0 else None for a, b in features.window(n, np.empty(0)).offsets] for n in range(3)]
    assert places == [[*[None] * 5, *words[a : a + 8], None] for a in (0, 6, 12)]
    # Tokens 6 and 7 have 1 and 0 tokens behind them in the first window, 0 and 1 before them in the second.
    central = [list(itertools.compress(own[n], features.window(n, np.empty(0)).central)) for n in range(3)]
    assert central == [words[:7], words[7:13], words[13:]]


def cases(count: int = 40, seed: int = 0) -> list[Question]:
    """Questions of up to 14 words, contexts of up to 90, and answers anywhere, also within words."""
    generator, found = random.Random(seed), []
    for number in range(count):
        context = sentence(generator, generator.randint(1, 90))
        start = generator.randrange(len(context))
        text = context[start : start + generator.randint(1, 30)]
        found.append(
            Question(str(number), sentence(generator, generator.randint(0, 14)), context, (Answer(text, start),))
        )
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(20, 4), (20, 0), (40, 25), (64, 10), (384, 128)])
def test_windows_are_those_of_transformers(tokenizer: Any, reference: Any, max_length: int, stride: int) -> None:
    settings = FeatureSettings(max_length=max_length, doc_stride=stride, max_query_length=min(6, max_length - stride))
    questions = [q for q in cases() if len(tokenizer.tokenize(q.question)) <= 6]
    assert len(questions) > 10
    features = SQUAD.features(questions, tokenizer, settings, training=False)
    theirs = reference(
        [q.question for q in questions], [q.context for q in questions], truncation="only_second",
        max_length=max_length, stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True,
        return_token_type_ids=True,
    )  # fmt: skip
    assert len(features) == len(theirs["input_ids"])
    assert features.example.tolist() == theirs["overflow_to_sample_mapping"]
    for i, (a, b) in enumerate(itertools.pairwise(features.ends.tolist())):
        assert features.ids[a:b].tolist() == theirs["input_ids"][i]
        assert features.types[a:b].tolist() == theirs["token_type_ids"][i]
        inside = [part == 1 for part in theirs.sequence_ids(i)]
        pairs = zip(theirs["offset_mapping"][i], inside, strict=True)
        assert features.offsets[a:b].tolist() == [list(place) if is_in else [-1, -1] for place, is_in in pairs]
    assert tokenizer.backend_tokenizer.truncation is None


def test_questions_are_cut(tokenizer: Any) -> None:
    """Within a word, too: the tokens that stay are those that it began with."""
    for text, expected in {
        "the cat walking to it is": ["the", "cat", "walk", "##ing"],
        "the of cat walking to": ["the", "of", "cat", "walk"],
        "the of cat zebra to": ["the", "of", "cat", "[UNK]"],
        "the of cat to": ["the", "of", "cat", "to"],
        "the of": ["the", "of"],
    }.items():
        settings = FeatureSettings(max_length=20, doc_stride=4, max_query_length=4)
        features = SQUAD.features([question(text=text)], tokenizer, settings, training=True)
        tokens = tokens_of(tokenizer, features, 0)
        assert tokens[1 : tokens.index("[SEP]")] == expected


def test_lengths_that_leave_no_room(tokenizer: Any) -> None:
    tight = FeatureSettings(max_length=20, doc_stride=10, max_query_length=6)
    SQUAD.features(cases(), tokenizer, tight, training=True)  # 11 tokens of context
    with pytest.raises(ConfigError, match="--doc-stride 11: must be less than the 11 tokens"):
        SQUAD.features(cases(), tokenizer, FeatureSettings(max_length=20, doc_stride=11, max_query_length=6), True)
    with pytest.raises(ConfigError, match="--max-length 64: leaves no room: questions may have 64 tokens"):
        SQUAD.features(cases(), tokenizer, FeatureSettings(max_length=64), True)


def test_windows_of_short_inputs_share_half_of_them(tokenizer: Any) -> None:
    """Where nothing is said; so a shorter --max-length needs no other flag."""
    said = FeatureSettings(max_length=20, doc_stride=5, max_query_length=6)  # 11 tokens of context
    left_out = FeatureSettings(max_length=20, max_query_length=6)
    expected, found = (SQUAD.features(cases(), tokenizer, settings, True) for settings in (said, left_out))
    assert np.array_equal(found.ids, expected.ids) and np.array_equal(found.ends, expected.ends)


def test_an_empty_context(tokenizer: Any) -> None:
    features = SQUAD_V2.features([question(""), question("the cat", "cat")], tokenizer, SETTINGS, training=False)
    assert tokens_of(tokenizer, features, 0) == ["[CLS]", "[UNK]", "walk", "##ed", "[UNK]", "[SEP]", "[SEP]"]
    assert features.labels.tolist() == [[0, 0], [7, 7]]
    outputs = [np.zeros((length, 2), np.float32) for length in features.lengths]
    assert json.loads(SQUAD_V2.predictions([question("", number="a"), question("the cat", number="b")], features,
                                           outputs, SETTINGS)[""])["a"] == ""  # fmt: skip


def test_what_training_leaves_out(tokenizer: Any) -> None:
    trains, measures = (SQUAD.features(cases(), tokenizer, SMALL, training) for training in (True, False))
    for name in ("ids", "types", "ends", "labels", "example"):
        assert np.array_equal(getattr(trains, name), getattr(measures, name))
        assert getattr(trains, name).dtype == getattr(measures, name).dtype
    assert trains.offsets.size == trains.central.size == 0
    dtypes = [a.dtype for a in (trains.ids, trains.types, trains.ends, trains.labels, trains.example, measures.offsets)]
    assert dtypes == [np.int32, np.uint8, np.int64, np.int64, np.int64, np.int32]


def spans(sizes: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Window, place in it, and token of the context, by BERT's rule, token by token."""
    for token in range(max(start + size for start, size in sizes)):
        best, window = None, None
        for number, (start, size) in enumerate(sizes):
            if start <= token < start + size:
                score = min(token - start, start + size - 1 - token) + 0.01 * size
                if best is None or score > best:
                    best, window = score, number
        assert window is not None
        yield window, token - sizes[window][0], token


@pytest.mark.parametrize(("max_length", "stride"), [(20, 4), (20, 7), (20, 9), (40, 25)])
def test_a_token_counts_where_it_has_most_context(tokenizer: Any, max_length: int, stride: int) -> None:
    settings = FeatureSettings(max_length=max_length, doc_stride=stride, max_query_length=6)
    questions = cases()
    features = SQUAD.features(questions, tokenizer, settings, training=False)
    for number in range(len(questions)):
        own = [features.window(i, np.empty(0)) for i in np.flatnonzero(features.example == number)]
        sizes = [int((window.offsets[:, 0] >= 0).sum()) for window in own]
        starts = [i * (sizes[0] - stride) for i in range(len(own))]
        expected = [np.zeros(size, bool) for size in sizes]
        for window, place, _ in spans(list(zip(starts, sizes, strict=True))):
            expected[window][place] = True
        for window, central in zip(own, expected, strict=True):
            inside = window.offsets[:, 0] >= 0
            assert window.central[inside].tolist() == central.tolist()
            assert not window.central[~inside].any()


def test_a_token_counts_where_the_formula_over_all_windows_says() -> None:
    """All windows beside all tokens, which takes the square of the context's length."""
    generator = random.Random(0)
    for _ in range(300):
        size = generator.randint(1, 12)
        step, count = generator.randint(1, size), generator.randint(1, 9)
        sizes = np.array([size] * (count - 1) + [generator.randint(size - step + 1, size)])
        starts = np.arange(count) * step
        left = np.arange(starts[-1] + sizes[-1]) - starts[:, None]
        context = np.minimum(left, sizes[:, None] - 1 - left)
        best = np.where(context < 0, -1, context + 0.01 * sizes[:, None]).argmax(0)
        expected = [best[start : start + size] == i for i, (start, size) in enumerate(zip(starts, sizes, strict=True))]
        assert np.array_equal(_central(starts, sizes), np.concatenate(expected))


# --- answers as tokens ---


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ("the cat", ["the", "cat"]),
        ("walked", ["walk", "##ed"]),
        ("talked", ["talk", "##ed"]),
        ("alk", ["walk"]),  # a part of a token: the whole of it
        ("at walk", ["cat", "walk"]),
        ("ed to th", ["##ed", "to", "the"]),
        (" ", []),  # no token at all
        (" cat ", ["cat"]),
        (CONTEXT, ["the", "cat", "walk", "##ed", "to", "the", "house", "and", "the", "dog", "talk", "##ed", "."]),
    ],
)
def test_an_answer_is_the_tokens_that_it_touches(tokenizer: Any, answer: str, tokens: list[str]) -> None:
    features = SQUAD.features([question(CONTEXT, answer)], tokenizer, SETTINGS, training=True)
    first, last = features.labels[0].tolist()
    if tokens:
        assert tokens_of(tokenizer, features, 0)[first : last + 1] == tokens
    else:
        assert (first, last) == (0, 0)


def test_the_first_of_several_answers_counts(tokenizer: Any) -> None:
    features = SQUAD.features([question(CONTEXT, "dog", "the cat")], tokenizer, SETTINGS, training=True)
    assert tokens_of(tokenizer, features, 0)[slice(*(features.labels[0] + [0, 1]))] == ["dog"]


def test_no_answer_is_the_first_token(tokenizer: Any) -> None:
    features = SQUAD_V2.features([question(CONTEXT * 9)], tokenizer, SMALL, training=True)
    assert len(features) > 5
    assert not features.labels.any()


@pytest.mark.parametrize(
    "settings", [SETTINGS, SMALL, FeatureSettings(max_length=40, doc_stride=25, max_query_length=6)]
)
def test_answers_map_back(tokenizer: Any, settings: FeatureSettings) -> None:
    """In each window, found by its characters alone: which tokens touch the answer, and are all of them there?"""
    questions = cases(80)
    features = SQUAD.features(questions, tokenizer, settings, training=False)
    whole = 0
    for i, number in enumerate(features.example):
        (answer,), context = questions[number].answers, questions[number].context
        offsets = features.window(i, np.empty(0)).offsets.tolist()
        everything = tokenizer.backend_tokenizer.encode(context, add_special_tokens=False).offsets
        wanted = [place for place in everything if place[1] > answer.start and place[0] < answer.end]
        tokens = [t for t, (a, b) in enumerate(offsets) if a >= 0 and (a, b) in wanted]
        if wanted and len(tokens) == len(wanted):
            whole += 1
            first, last = features.labels[i].tolist()
            assert (first, last) == (tokens[0], tokens[-1])
            assert context[offsets[first][0] : offsets[last][1]].find(answer.text.strip()) >= 0
        else:
            assert features.labels[i].tolist() == [0, 0]
    assert whole > 40


# Pieces of words that are tokens, and what the tokenizer drops of them: an accent of its own, vowel signs, zero width.
MARKED = ("cafe\u0301", "e\u0301te\u0301", "\u0928\u092e\u0938\u094d\u0924\u0947", "word\u200b", "zebra\u0301", "word")
STOPS = ("", "", ".", ".\u0338", "-\u200d")


@pytest.fixture(scope="module")
def marking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that knows the pieces but for the zebra."""
    tokens = ("cafe", "ete", "\u0928", "##\u092e", "##\u0938", "##\u0924", "word", ".", "-", "(", ")")
    return load_tokenizer(str(write_vocabulary(tmp_path_factory.mktemp("marking"), (*SPECIALS, *tokens))))


def marked(generator: random.Random, number: int) -> Question:
    """A context of words, each with a stop behind it or none, and an answer from the beginning of one piece to the end
    of another."""
    context, places = "", []
    for _ in range(generator.randint(1, 12)):
        context += generator.choice((" ", "\t", "\u2003"))
        word = generator.choice(("", "", "\u200b", "\u0301")) + generator.choice(MARKED)
        for text in filter(None, (word, generator.choice(STOPS))):
            places.append((len(context), len(context) + len(text)))
            context += text
    (start, _), (_, end) = sorted(generator.choices(places, k=2))
    return Question(str(number), "word", context, (Answer(context[start:end], start),))


def answered(task: Any, questions: list[Question], tokenizer: Any) -> dict[str, str]:
    """By a model that is sure of the right tokens."""
    settings = FeatureSettings(max_answer_length=200)
    features = task.features(questions, tokenizer, settings, training=False)
    return json.loads(task.predictions(questions, features, certain(features), settings)[""])


def test_answers_keep_what_the_tokenizer_drops(marking: Any) -> None:
    generator = random.Random(0)
    questions = [marked(generator, number) for number in range(200)]
    assert answered(SQUAD, questions, marking) == {one.id: one.answers[0].text for one in questions}


@pytest.mark.parametrize(
    ("context", "answer", "found"),
    [
        ("cafe\u0301.", "cafe", "cafe\u0301"),  # an accent goes with the letter
        ("cafe\u0301.", ".", "."),
        ("(\u200bword)", "word", "word"),  # zero width with the token before it
        ("(\u200bword)", "(", "(\u200b"),
        ("\u200bword", "word", "\u200bword"),  # unless there is none
        ("cafe \u0301 word", "word", "word"),  # what stands alone is nobody's
        ("cafe \u0301 word", "cafe", "cafe"),
        ("cafe \u0301 word", "\u0301", ""),
        ("\u0301 cafe", "cafe", "cafe"),
    ],
)
def test_whose_a_dropped_character_is(marking: Any, context: str, answer: str, found: str) -> None:
    assert answered(SQUAD_V2, [question(context, answer)], marking) == {"q": found}


# --- decoding ---


def window(*tokens: tuple[str, float, float], context: str, only: str | None = None) -> Window:
    """Tokens of the context with their logits, after [CLS] whose logits are 0.

    Args:
        only: tokens that may begin an answer (default: all).
    """
    logits, offsets, end = [(0.0, 0.0)], [(-1, -1)], 0
    for text, *both in tokens:
        start = context.index(text, end)
        end = start + len(text)
        logits.append(tuple(both))
        offsets.append((start, end))
    central = [False, *(only is None or text in only.split() for text, *_ in tokens)]
    return Window(np.array(logits, np.float32), np.array(offsets, np.int32), np.array(central))


def test_the_best_span_by_hand() -> None:
    """Start a 1, b 2, c 3; end a 4, b 5, c 0: the best pair that goes forward is b to b, 7."""
    found = decode("a b c", [window(("a", 1, 4), ("b", 2, 5), ("c", 3, 0), context="a b c")], False, SETTINGS)
    assert found.text == "b"
    assert [(c.text, c.start_logit, c.end_logit) for c in found.n_best] == [
        ("b", 2, 5), ("a b", 1, 5), ("a", 1, 4), ("c", 3, 0), ("b c", 2, 0), ("a b c", 1, 0),
    ]  # fmt: skip
    weights = [math.exp(score) for score in (7, 6, 5, 3, 2, 1)]
    assert [c.probability for c in found.n_best] == [pytest.approx(w / sum(weights)) for w in weights]


def test_answers_have_a_longest_length() -> None:
    tokens = window(("a", 9, 0), ("b", 0, 1), ("c", 0, 5), context="a b c")
    assert decode("a b c", [tokens], False, FeatureSettings(max_answer_length=3)).text == "a b c"
    assert decode("a b c", [tokens], False, FeatureSettings(max_answer_length=2)).text == "a b"
    assert decode("a b c", [tokens], False, FeatureSettings(max_answer_length=1)).text == "a"


def test_only_the_likely_starts_and_ends_are_paired() -> None:
    """With one of each, the start is c and the end a, which do not go together; [CLS] and the question count, too."""
    tokens = window(("a", 1, 4), ("b", 2, 3), ("c", 3, 1), context="a b c")
    assert decode("a b c", [tokens], False, FeatureSettings(n_best=1)).text == ""
    found = decode("a b c", [tokens], False, FeatureSettings(n_best=2))
    assert [c.text for c in found.n_best] == ["b"]


def test_the_same_text_stands_once() -> None:
    found = decode("to to", [window(("to", 1, 2), ("to", 3, 4), context="to to")], False, SETTINGS)
    assert [(c.text, c.score) for c in found.n_best] == [("to", 7), ("to to", 5)]


def test_windows_compete() -> None:
    """The second window scores `b` higher, but the token belongs to the first one."""
    first = window(("a", 0, 1), ("b", 2, 2), context="a b c", only="a b")
    second = window(("b", 9, 9), ("c", 1, 1), context="a b c", only="c")
    assert decode("a b c", [first, second], False, SETTINGS).text == "b"
    assert [c.score for c in decode("a b c", [first, second], False, SETTINGS).n_best][:2] == [4, 2]


@pytest.mark.parametrize(
    ("threshold", "text"), [(0.0, "a"), (-1.5, ""), (-1.0, "a"), (-1.01, "")]
)  # the answer's score is 4, that of no answer 3
def test_the_threshold_of_no_answer(threshold: float, text: str) -> None:
    tokens = window(("a", 2, 2), ("b", 1, 1), context="a b")
    tokens.logits[0] = (1, 2)
    other = window(("b", -5, -5), context="a b")
    other.logits[0] = (8, 9)  # the lowest of all windows counts
    found = decode("a b", [other, tokens], True, FeatureSettings(null_threshold=threshold))
    assert (found.text, found.null_odds) == (text, -1.0)
    assert [(c.text, c.score) for c in found.n_best[:4]] == [("a", 4), ("a b", 3), ("", 3), ("b", 2)]
    assert decode("a b", [other, tokens], False, FeatureSettings(null_threshold=threshold)).text == "a"


def test_no_answer_is_always_a_candidate() -> None:
    tokens = window(("a", 2, 2), ("b", 1, 1), context="a b")
    found = decode("a b", [tokens], True, FeatureSettings(n_best=1))
    assert [c.text for c in found.n_best] == ["a", ""]


def by_loops(context: str, windows: list[Window], unanswerable: bool, settings: FeatureSettings) -> Decoded:
    """BERT's procedure, pair by pair."""
    pairs = []
    for window in windows:
        likely = [
            sorted(range(len(window.logits)), key=lambda i: float(window.logits[i][k]), reverse=True)[: settings.n_best]
            for k in (0, 1)
        ]
        for start, end in itertools.product(*likely):
            if not window.central[start] or window.offsets[end][0] < 0:
                continue
            if not 0 <= end - start < settings.max_answer_length:
                continue
            text = context[window.offsets[start][0] : window.offsets[end][1]]
            pairs.append((text, float(window.logits[start][0]), float(window.logits[end][1])))
    nulls = [("", float(window.logits[0][0]), float(window.logits[0][1])) for window in windows]
    null = min(nulls, key=lambda row: row[1] + row[2])
    ranked = sorted(pairs + [null] * unanswerable, key=lambda row: row[1] + row[2], reverse=True)
    best: list[tuple[str, float, float]] = []
    for row in ranked:
        if len(best) < settings.n_best and row[0] not in [text for text, *_ in best]:
            best.append(row)
    if unanswerable and null not in best:
        best.append(null)
    answer = next(row for row in best if row[0])
    odds = null[1] + null[2] - answer[1] - answer[2]
    return Decoded("" if unanswerable and odds > settings.null_threshold else answer[0], best, odds)  # type: ignore[arg-type]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_decoding_is_that_of_bert(tokenizer: Any, unanswerable: bool) -> None:
    """Logits are whole numbers, so that there are ties."""
    settings = FeatureSettings(max_length=24, doc_stride=6, max_query_length=6, n_best=8, max_answer_length=5)
    questions, generator = cases(60, seed=3), np.random.default_rng(0)
    features = SQUAD.features(questions, tokenizer, settings, training=False)
    empty = 0
    for number, one in enumerate(questions):
        windows = []
        for i in np.flatnonzero(features.example == number):
            logits = generator.integers(-6, 6, (features.lengths[i], 2)).astype(np.float32)
            logits[0] += number % 8
            windows.append(features.window(i, logits))
        found = decode(one.context, windows, unanswerable, settings)
        try:
            expected = by_loops(one.context, windows, unanswerable, settings)
        except StopIteration:  # no span at all
            assert (found.text, found.null_odds) == ("", CERTAIN)
            continue
        assert (found.text, found.null_odds) == (expected.text, expected.null_odds)
        assert [(c.text, c.start_logit, c.end_logit) for c in found.n_best] == expected.n_best
        empty += found.text == ""
    assert (empty > 5) == unanswerable


# --- from outputs to files and scores ---


def certain(features: SpanFeatures) -> list[np.ndarray]:
    """Outputs that are sure of the labels."""
    outputs = []
    for length, (first, last) in zip(features.lengths, features.labels, strict=True):
        logits = np.zeros((length, 2), np.float32)
        logits[first, 0] = logits[last, 1] = 9
        outputs.append(logits)
    return outputs


def test_predictions_are_written_as_published(tmp_path: Path, tokenizer: Any) -> None:
    examples = [question(CONTEXT, "the cat", number="a"), question(CONTEXT, "dog", number="\u00e9")]
    features = SQUAD.features(examples, tokenizer, SETTINGS, training=False)
    SQUAD.write_predictions(tmp_path / "p.json", examples, features, certain(features), SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p_nbest.json"]
    assert json.loads((tmp_path / "p.json").read_text("utf-8")) == {"a": "the cat", "\u00e9": "dog"}
    n_best = json.loads((tmp_path / "p_nbest.json").read_text("utf-8"))
    assert {number: (len(rows), rows[0]["text"], rows[0]["start_logit"]) for number, rows in n_best.items()} == {
        "a": (20, "the cat", 9.0), "\u00e9": (20, "dog", 9.0)
    }  # fmt: skip
    assert set(n_best["a"][0]) == {"text", "start_logit", "end_logit", "probability"}
    assert SQUAD.score(examples, features, certain(features), SETTINGS) == {"exact": 1.0, "f1": 1.0}


def test_predictions_of_version_2(tmp_path: Path, tokenizer: Any) -> None:
    examples = [question(CONTEXT, "the cat", number="a"), question("dog talked", number="b")]
    features = SQUAD_V2.features(examples, tokenizer, SETTINGS, training=False)
    outputs = certain(features)
    SQUAD_V2.write_predictions(tmp_path / "p.json", examples, features, outputs, SETTINGS)
    assert json.loads((tmp_path / "p.json").read_text()) == {"a": "the cat", "b": ""}
    assert json.loads((tmp_path / "p_null_odds.json").read_text()) == {"a": -18.0, "b": 18.0}
    assert SQUAD_V2.score(examples, features, outputs, SETTINGS) == {
        f"{part}{name}": 1.0 for part in ("", "HasAns_", "NoAns_") for name in ("exact", "f1")
    }
    always = FeatureSettings(null_threshold=-19.0)
    assert SQUAD_V2.score(examples, features, outputs, always)["HasAns_exact"] == 0.0
    never = FeatureSettings(null_threshold=18.0)
    assert SQUAD_V2.score(examples, features, outputs, never)["NoAns_exact"] == 0.0


def test_an_answer_in_a_far_window(tokenizer: Any) -> None:
    """Of two questions, each with several windows."""
    contexts = ["the of and to " * 12 + "cat tree . " + "in a is " * 9, "it was for on are " * 15 + "dog house ."]
    examples = [question(contexts[0], "cat tree", number="a"), question(contexts[1], "dog house", number="b")]
    features = SQUAD.features(examples, tokenizer, SMALL, training=False)
    assert len(features) > 10
    assert json.loads(SQUAD.predictions(examples, features, certain(features), SMALL)[""]) == {
        "a": "cat tree", "b": "dog house"
    }  # fmt: skip


# --- real data ---


@pytest.fixture(scope="module")
def real_tokenizer(shared_data: Path) -> Any:
    return load_tokenizer(str(shared_data / "bert-base-uncased"))


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (160, 60)])
def test_every_real_answer_maps_back(
    shared_data: Path, real_tokenizer: Any, split: str, max_length: int, stride: int
) -> None:
    settings = FeatureSettings(max_length=max_length, doc_stride=stride)
    examples = SQUAD.read(shared_data / "squad", split)
    assert len(examples) == {"train": 970, "dev": 220}[split]
    features = SQUAD.features(examples, real_tokenizer, settings, training=False)
    assert features.longest <= max_length
    mapped, inexact = set(), []
    for i in np.flatnonzero(features.labels[:, 1]):
        example = examples[features.example[i]]
        offsets = features.window(i, np.empty(0)).offsets
        first, last = features.labels[i]
        text = example.context[offsets[first, 0] : offsets[last, 1]]
        if text != example.answers[0].text:
            inexact.append((text, example.answers[0].text))
        assert example.answers[0].text in text
        mapped.add(int(features.example[i]))
    assert mapped == set(range(len(examples)))
    assert all(whole.split()[0] != cut.split()[0] or whole.split()[-1] != cut.split()[-1] for whole, cut in inexact)
    assert len(inexact) < 0.01 * len(features)
