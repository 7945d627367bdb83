"""Train a WordPiece vocabulary in BERT's form, for a corpus whose language or domain no published one fits.

    python -m data.train_tokenizer --input corpus.txt --vocab-size 8192 --output tokenizer

The folder holds `tokenizer.json`, `tokenizer_config.json` and `vocab.txt`; `transformers.AutoTokenizer` loads it as
BertTokenizer. The ids are: the five special tokens 0 to 4, the characters of the corpus, the same as continuations
(`##a`), then the learnt tokens. The same text gives the same vocabulary, bit for bit.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from tqdm import tqdm
from transformers import AutoTokenizer, BertTokenizer

from launch import commit
from launch.args import flag, parse, require
from launch.errors import ConfigError, DataError, run

EXAMPLE = "  python -m data.train_tokenizer --input corpus.txt --vocab-size 8192 --output tokenizer"

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # in the order of their ids
CONTINUATION = "##"
MAX_CHARACTERS = 1000  # rarer characters become [UNK], as in BERT
MODEL_MAX_LENGTH = 512
VERIFIED_LINES = 1000


@dataclass(frozen=True)
class Options:
    """The text to learn from, and the tokenizer to make of it."""

    input: tuple[Path, ...] = flag(help="text files, UTF-8, one sequence a line")
    output: Path = flag(help="folder of the tokenizer; must not exist yet")
    vocab_size: int = flag(help="tokens at most, special ones and single characters included")
    lower_case: bool = flag(True, "whether to ignore case and accents")
    min_frequency: int = flag(2, "how often a pair must occur to become a token")

    def __post_init__(self) -> None:
        for path in self.input:
            require(path.is_file(), "input", path, "is no file")
        require(not os.path.lexists(self.output), "output", self.output, "exists already; remove it or name another")
        require(
            self.vocab_size > len(SPECIAL_TOKENS), "vocab_size", self.vocab_size, "holds no more than special tokens"
        )
        require(self.min_frequency > 0, "min_frequency", self.min_frequency, "must be at least 1")


def read_lines(paths: Iterable[Path]) -> Iterator[str]:
    """The lines of all files; invalid bytes are U+FFFD, as in `data.binarize`.

    Raises:
        DataError: a file can't be read.
    """
    for path in paths:
        try:
            with open(path, "rb") as file:
                for line in file:
                    yield line.decode(errors="replace")
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error


def bert_pipeline(lower_case: bool) -> Tokenizer:
    """A tokenizer with BERT's way of cleaning and splitting text, and no vocabulary yet."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def frequent_characters(tokenizer: Tokenizer, lines: Iterable[str]) -> list[str]:
    """The MAX_CHARACTERS most frequent characters of the normalised text, sorted."""
    raw: Counter[str] = Counter()
    for line in lines:
        raw.update(line)
    counts: Counter[str] = Counter()
    for character, count in raw.items():  # BERT's normalisation sees single characters: no need to normalise all lines
        for part in "".join(tokenizer.normalizer.normalize_str(character).split()):
            counts[part] += count
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted(by_frequency[:MAX_CHARACTERS])


def continuations(tokenizer: Tokenizer, characters: Iterable[str]) -> list[str]:
    """`##c` for each character that can stand within a word, so not for punctuation and Chinese characters."""
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    normalize = tokenizer.normalizer.normalize_str
    return [CONTINUATION + c for c in characters if len(split(normalize("a" + c))) == 1]


def train(tokenizer: Tokenizer, lines: Iterable[str], characters: Sequence[str], options: Options) -> list[str]:
    """The learnt vocabulary, by id.

    Raises:
        ConfigError: the single characters alone exceed the vocabulary's size.

    The library numbers the `##c` in the order of a randomly seeded hash map, and breaks ties between equally frequent
    pairs by these numbers: two runs learn different tokens. Giving all single characters as "special" tokens fixes
    their numbers, and all else follows from them; only the vocabulary is kept, where they are tokens like others.
    """
    fixed = [*SPECIAL_TOKENS, *characters, *continuations(tokenizer, characters)]
    if options.vocab_size < len(fixed):
        raise ConfigError(f"--vocab-size {options.vocab_size}: the text's single characters need {len(fixed)}")
    trainer = WordPieceTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=fixed,
        initial_alphabet=list(characters),
        limit_alphabet=len(characters),
        continuing_subword_prefix=CONTINUATION,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(ids, key=lambda token: ids[token])


def bert_tokenizer(vocabulary: Sequence[str], lower_case: bool) -> BertTokenizer:
    """The tokenizer of a vocabulary, by id, as `transformers` builds it."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    return BertTokenizer(vocab=ids, do_lower_case=lower_case, model_max_length=MODEL_MAX_LENGTH)


def save(vocabulary: Sequence[str], lower_case: bool, folder: Path) -> None:
    """Write the tokenizer's files into a folder."""
    bert_tokenizer(vocabulary, lower_case).save_pretrained(folder)
    text = "".join(f"{token}\n" for token in vocabulary)
    (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")


def verify(folder: Path, lower_case: bool, lines: Iterable[str]) -> None:
    """Raise DataError unless `tokenizer.json` and `vocab.txt` give the same ids for `lines`."""
    loaded = AutoTokenizer.from_pretrained(folder)
    rebuilt = bert_tokenizer((folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1], lower_case)
    for line in lines:
        if loaded(line, truncation=False)["input_ids"] != rebuilt(line, truncation=False)["input_ids"]:
            raise DataError(f"tokenizer.json and vocab.txt disagree on the text {line!r}; report this as a defect")


def publish(vocabulary: Sequence[str], options: Options) -> None:
    """Make the output folder appear at once, complete and verified."""
    with commit.folder(options.output) as partial:
        save(vocabulary, options.lower_case, partial)
        verify(partial, options.lower_case, itertools.islice(read_lines(options.input), VERIFIED_LINES))


def main() -> None:
    """Command line."""
    (options,) = parse(
        "Train a WordPiece tokenizer in BERT's form.", Options, example=EXAMPLE, prog="data.train_tokenizer"
    )
    tokenizer = bert_pipeline(options.lower_case)
    lines = tqdm(read_lines(options.input), "counting characters", unit=" lines", disable=None)
    characters = frequent_characters(tokenizer, lines)
    if not characters:
        raise DataError(f"{', '.join(map(str, options.input))}: no text to learn from")
    vocabulary = train(tokenizer, read_lines(options.input), characters, options)
    publish(vocabulary, options)
    fewer = "" if len(vocabulary) == options.vocab_size else ", all that the text gives"
    print(f"{options.output}: {len(vocabulary):,} tokens{fewer}, {len(characters)} different characters")


if __name__ == "__main__":
    run(main)
