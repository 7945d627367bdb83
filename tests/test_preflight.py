"""Models, data and tokenizer belong together."""

import pytest

from launch.errors import ConfigError
from launch.preflight import Shape, check_data, check_features, check_models

MODEL = Shape("model", vocabulary=100, hidden_size=8, positions=64, tokenizer_hash="abc")
DATA = Shape("data", vocabulary=100, tokenizer_hash="abc")


def test_what_fits():
    check_models(MODEL, None, needs_width=True)
    check_models(MODEL, MODEL, needs_width=True)
    check_models(MODEL, Shape("wide", vocabulary=100, hidden_size=16), needs_width=False)
    check_data(DATA, 64, MODEL, Shape("no tokenizer", vocabulary=100, positions=64))
    check_data(Shape("bare"), 64, MODEL)


@pytest.mark.parametrize(
    ("data", "longest", "words"),
    [
        (Shape("data", vocabulary=101), 10, "vocabulary of 101"),
        (Shape("data", vocabulary=100, tokenizer_hash="xyz"), 10, "another tokenizer"),
        (DATA, 65, "--max-length 64"),
    ],
)
def test_data_that_does_not_fit(data, longest, words):
    with pytest.raises(ConfigError, match=words):
        check_data(data, longest, MODEL)


def test_models_that_do_not_fit():
    with pytest.raises(ConfigError, match="vocabulary of 100"):
        check_models(MODEL, Shape("teacher", vocabulary=99), needs_width=False)
    with pytest.raises(ConfigError, match="--alpha-cos 0"):
        check_models(MODEL, Shape("teacher", vocabulary=100, hidden_size=16), needs_width=True)


def test_features_that_do_not_fit():
    bert, student = (Shape(name, 100, 8, 64, "abc", token_types) for name, token_types in (("bert", 1), ("student", 0)))
    check_features(DATA, 64, 1, bert, student)
    check_features(DATA, 64, 2, student)
    for source, longest, types, words in (
        (Shape("data", vocabulary=101), 10, 1, "vocabulary of 100, the tokenizer of data of 101"),
        (Shape("data", vocabulary=100, tokenizer_hash="xyz"), 10, 1, "another tokenizer"),
        (DATA, 65, 1, "--max-length 64"),
        (DATA, 10, 2, "token types for 1 text, the task has 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_features(source, longest, types, student, bert)
