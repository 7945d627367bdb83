"""How long, how often, how a run starts."""

import pytest

from launch.errors import ConfigError
from launch.flags import Length


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (Length(max_steps=7), 7),
        (Length(epochs=1), 8),  # ceil(230 / 30)
        (Length(epochs=3), 23),
        (Length(epochs=0.5), 4),
        (Length(epochs=0.001), 1),
    ],
)
def test_steps(length, expected):
    assert length.steps(sequences=230, batch=30) == expected


def test_several_corpora_have_no_common_epoch():
    assert Length(max_steps=7).steps(sequences=None, batch=30) == 7
    with pytest.raises(ConfigError, match=r"--epochs 2: several corpora with weights .* give --max-steps"):
        Length(epochs=2).steps(sequences=None, batch=30)


def test_more_steps_than_can_be_counted():
    with pytest.raises(ConfigError, match="--epochs 2000000: are 2000000000000 steps"):
        Length(epochs=2_000_000).steps(sequences=10**9, batch=1000)


def test_warmup():
    assert Length(max_steps=1000).warmup(1000) == 50
    assert Length(max_steps=3).warmup(3) == 1
    assert Length(max_steps=1000, warmup_steps=7).warmup(1000) == 7
    with pytest.raises(ConfigError, match="--warmup-steps 9"):
        Length(max_steps=5, warmup_steps=9).warmup(5)


def test_last_step_of_this_start():
    assert Length(max_steps=9).last(9, now=0) == 9
    assert Length(max_steps=9, stop_at_step=4).last(9, now=4) == 4
    assert Length(max_steps=9, stop_at_step=40).last(9, now=2) == 9
    with pytest.raises(ConfigError, match="--stop-at-step 4: the run has done 5 steps"):
        Length(max_steps=9, stop_at_step=4).last(9, now=5)
    with pytest.raises(ConfigError, match="--max-steps 9: the run has done 10 steps"):
        Length(max_steps=9).last(9, now=10)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"max_steps": 1, "epochs": 1.0},
        {"max_steps": -1},
        {"epochs": 0.0},
        {"epochs": 1e99},
        {"max_steps": 2**31},
    ],
)
def test_refused(wrong):
    with pytest.raises(ConfigError):
        Length(**wrong)
