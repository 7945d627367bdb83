"""Tokenizers by folder or hub name, and what a dataset knows of their vocabulary."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, BertTokenizer

from data.vocabulary import Vocabulary
from launch import hub
from launch.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NO_WORD = "\U00010330"  # a Gothic letter: in no vocabulary


class DilBertTokenizer(BertTokenizer):
    """BERT's tokenizer, for models without token types. `from_pretrained` knows the published models' first names;
    what `save_pretrained` writes loads anywhere as `BertTokenizer`."""

    model_input_names = hub.INPUTS

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **options: Any
    ) -> "DilBertTokenizer":
        """Load from a folder or the hub, as `transformers` does."""
        return super().from_pretrained(hub.resolve(str(pretrained_model_name_or_path)), *args, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> tuple[str, ...]:
        """Write the tokenizer's files under the class name that stock `transformers` knows, with this one's inputs."""
        files = super().save_pretrained(save_directory, *args, **options)
        path = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config |= {"tokenizer_class": "BertTokenizer", "model_input_names": self.model_input_names}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        return files


def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model, by folder or hub name, without truncation or padding.

    Raises:
        ConfigError: nothing by that name, or a folder without a tokenizer.
        DataError: its files can't be read, or it lacks a special token that the training stream needs.
    """
    folder = hub.fetch(name, hub.TOKENIZER_FILES)
    if not any((folder / file).exists() for file in hub.TOKENIZER_FILES if file != "config.json"):
        raise ConfigError(f"tokenizer '{name}': the folder has neither tokenizer.json nor vocab.txt")
    try:
        # A folder with nothing but vocab.txt is BERT's; AutoTokenizer would need a config.json to know it.
        alone = not (folder / "tokenizer.json").exists() and not (folder / "config.json").exists()
        tokenizer: Any = (BertTokenizer if alone else AutoTokenizer).from_pretrained(folder)
        tokenizer.tokenize(NO_WORD)  # a vocabulary without [UNK] loads, and fails at the first unknown word
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise DataError(f"tokenizer '{name}': can't be read: {error}") from error
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer '{name}': has no tokenizer.json, and none could be made from its files")
    for token in ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token"):
        if getattr(tokenizer, f"{token}_id") is None:
            raise DataError(f"tokenizer '{name}': has no {token}")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def vocabulary_of(tokenizer: "PreTrainedTokenizerFast") -> Vocabulary:
    """What the data stream and the models must agree on."""
    return Vocabulary(
        size=max(tokenizer.get_vocab().values()) + 1,
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        unk_id=tokenizer.unk_token_id,
        special_ids=tuple(sorted(tokenizer.all_special_ids)),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 of all that decides the ids of a text; not of the decoder, truncation or padding, which don't."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: state[key] for key in ("normalizer", "pre_tokenizer", "model")}
    parts["added_tokens"] = sorted((token["id"], token["content"]) for token in state["added_tokens"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
