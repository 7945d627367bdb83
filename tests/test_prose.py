"""What counts as English prose in a documentation."""

from collections import Counter

import pytest

from data.prose import sentence_fault, sequences, split_sentences

RIVER = (
    "The river that runs through the old town was once the only road by which the grain of the valley "
    "could be brought to the sea."
)
MILL = (
    "A mill stood there for more than two hundred years, and its owner was free to take a tenth of all that he ground."
)
BRIDGE = (
    "When the bridge was built at last, the boats had no more work to do and most of them were left on the bank to rot."
)


def found(text: str) -> list[str]:
    return list(sequences(text, Counter()))


def test_hard_wrapped_lines_become_one() -> None:
    wrapped = RIVER.replace("once the", "once\n    the").replace("valley could", "valley\n    could")
    assert found(f"    {wrapped}\n\n    {MILL}\n") == [RIVER, MILL]


def test_a_short_summary_is_read_on_with_the_paragraph_below_it() -> None:
    assert found(f"Describe the river.\n\n{RIVER}\n\n{MILL}") == [f"Describe the river. {RIVER}", MILL]


def test_long_paragraphs_are_cut_between_sentences() -> None:
    paragraph = " ".join(MILL.replace("two", str(number)) for number in range(12))  # of 24 words each
    cut = found(paragraph)
    assert " ".join(cut) == paragraph
    assert [len(sequence.split()) for sequence in cut] == [120, 120, 48]


@pytest.mark.parametrize(
    "block",
    [
        f">>> the_river(is_deep=True)\nIt is. {MILL}",
        f"```python\n\n{MILL}\n\n```",
        f"~~~\n\n{MILL}\n\n~~~",
        f"For example::\n\n    {MILL}\n\n    {MILL}",
        f".. code-block:: text\n\n    {MILL}",
        f"| {MILL} |",
        f"A | {MILL} | B",
        "A    " + MILL,
        f"{MILL}\n------",
        f"======\n{MILL}\n======",
        f"# {MILL}",
        f"{MILL} " * 45,  # more than 5,000 characters in a line
        f"{MILL}\n" * 45,  # in a paragraph
    ],
)
def test_blocks_that_are_no_prose_are_left_out(block: str) -> None:
    assert found(f"{RIVER}\n\n{block}\n\n{BRIDGE}") == [RIVER, BRIDGE]


@pytest.mark.parametrize("line", ["<p>", "+----+---+", "![image](river.png)", "{% if river %}", "# The mill"])
def test_lines_that_are_no_prose_part_paragraphs(line: str) -> None:
    assert found(f"Describe it.\n\n{line}\n{MILL}\n{line}\n{RIVER}") == [MILL, RIVER]


@pytest.mark.parametrize("between", ["\n    ", "\n* ", "\n1. ", "\n\n", " It holds x = 3. "])
def test_what_does_not_read_on_is_parted(between: str) -> None:
    assert found(f"* {RIVER}{between}{MILL}") == [RIVER, MILL] if between != "\n    " else [f"{RIVER} {MILL}"]
    assert found(f"{RIVER}{between}{MILL}") == [RIVER, MILL]
    assert found(f"* {RIVER}\n{MILL}") == [RIVER, MILL]


@pytest.mark.parametrize("underline", ["====", "----", "~~~~", "^^^^"])
def test_text_below_a_heading_is_kept(underline: str) -> None:
    assert found(f"Mill\n{underline}\n\n{MILL}\n\nRiver\n{underline}\n{RIVER}") == [MILL, RIVER]


def test_sequences_have_at_least_20_words() -> None:
    nineteen = " ".join(RIVER.split()[:18]) + " sea."
    assert (len(nineteen.split()), found(nineteen)) == (19, [])
    assert found(f"Old {nineteen}".replace("The", "the")) == [f"Old {nineteen}".replace("The", "the")]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("the ``river`` of `Kent` is **very** *deep*", "the river of Kent is very deep"),
        ("the :class:`~River` and the :py:func:`mill <town.mill>`", "the River and the mill"),
        ("the [river](https://example.org/river) and the [mill][1]", "the river and the mill"),
        ("the `river <https://example.org/river>`_ and the mill_s", None),
        ("the `river <https://example.org/river>`_ and the mill", "the river and the mill"),
        ("the \u201cold\u201d mill\u2019s wheel \u2013 of wood", 'the "old" mill\'s wheel - of wood'),
        ("the water-\nwheel", "the water-wheel"),
        ("the water- and the mill-\nwheels", "the water- and the mill-wheels"),
    ],
)
def test_markup_is_taken_off(marked: str, plain: str | None) -> None:
    sentence = "This is what the people of the town have always called {}, and they will not change it for us."
    assert found(sentence.format(marked)) == ([sentence.format(plain)] if plain else [])


@pytest.mark.parametrize(
    "documented",
    [
        f"Parameters\n----------\nriver : str or Path, optional\n    {RIVER}\nmill : int\n    The mill.\n",
        f"Args:\n    river (`str` or `Path(...)`, *optional*): {RIVER}\n    mill (int): The mill.\n",
        f"Args:\n    river (Callable[(int, str), None]):\n        {RIVER}\n    mill (int):\n        The mill.\n",
        f":param river: {RIVER}\n:type river: str\n:param int mill: The mill.\n",
        f"* {RIVER}\n* The mill.\n",
        f" 1. **river** (str) -- {RIVER}\n 2. mill (int) -- The mill.\n",
    ],
)
def test_parameters_lose_name_and_type(documented: str) -> None:
    assert found(documented) == [RIVER]


def test_the_body_of_a_note_is_kept() -> None:
    assert found(f".. note::\n\n    {RIVER}\n") == [RIVER]


def test_a_line_that_begins_with_a_role_reads_on() -> None:
    assert found(RIVER.replace("by which", "by\n:attr:`which`")) == [RIVER]


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("It is a good sentence (e.g. this one), with 3.5 commas.", None),
        ('He said: "It is done."', None),
        ("It has its own key(s) and all that is needed by the others of that kind in this town.", None),
        ("it begins in the middle of something.", "no full sentence"),
        ("It has no end", "no full sentence"),
        ("It ends in a list:", "no full sentence"),
        ("It ends in a formula, i.e.", "no full sentence"),
        ("It holds x = 3 for all of them.", "symbols"),
        ("It calls river(3) of the town.", "symbols"),
        ("It opens a bracket (and never closes it.", "symbols"),
        ("It holds a name_with_underscores in the middle.", "symbols"),
        ("It is to be found at www.example.org by all.", "web address"),
        ("The Copyright is held by all of the people.", "licence"),
        ("Redistributions of it must retain this list of conditions.", "licence"),
        ("It may be redistributed to the others.", None),
        ("See below.", "too short or long a sentence"),
        ("The " + "very " * 120 + "old mill.", "too short or long a sentence"),
        ("The RiverBank of torch.nn is a MillHouse.", "identifiers"),
    ],
)
def test_faults_of_sentences(sentence: str, fault: str | None) -> None:
    assert sentence_fault(sentence) == fault


def test_what_is_dropped_is_counted_by_reason() -> None:
    dropped: Counter[str] = Counter()
    terms = "Rivers, mills, bridges, boats, banks, towns, valleys, roads, grain, seas, owners, wheels, weirs, locks, "
    text = f"{RIVER}\n\nToo short it is.\n\n* x = 3 is a formula.\n\n* {terms}{terms.lower()}and barges."
    assert list(sequences(text, dropped)) == [RIVER]
    assert dropped == {"too few words": 1, "no full sentence": 1, "not English": 1}


def test_abbreviations_end_no_sentence() -> None:
    assert split_sentences("Ask e.g. The Miller. He knows J. Smith et al. (Not us.) Why?") == [
        "Ask e.g. The Miller.",
        "He knows J. Smith et al. (Not us.)",
        "Why?",
    ]
