"""Model folders by path or by name on the Hugging Face hub."""

import shutil
from pathlib import Path

from launch.errors import ConfigError, did_you_mean_path, reason

# The first names of the published models, and where they live today.
RENAMED = {
    "dilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "dilbert-base-uncased-distilled-squad": "distilbert/distilbert-base-uncased-distilled-squad",
}

# `config.json` tells which class a tokenizer is, where the tokenizer's own files don't.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "config.json",
                   "special_tokens_map.json", "added_tokens.json", "sentencepiece.bpe.model")  # fmt: skip

INPUTS = ["input_ids", "attention_mask"]  # of a model without token types, as a tokenizer's settings name them


def resolve(name: str) -> str:
    """Today's hub name of a model; a folder or any other name stays as it is."""
    return name if Path(name).is_dir() else RENAMED.get(name, name)


def fetch(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a model: `name` itself if it is one, else the hub's files that match, downloaded or from the cache.

    Raises:
        ConfigError: no such folder, and the hub has no such model or can't be reached; or the folder is a run's.
    """
    folder = Path(name)
    if (folder / "ds_config.json").exists():
        raise ConfigError(
            f"'{name}' is a run, no model: `python -m model.export {name} --output FOLDER` makes one of it"
        )
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"'{name}': no such folder{did_you_mean_path(name, patterns)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    near, name = did_you_mean_path(name, patterns), resolve(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if folder.parent != Path() and folder.parent.is_dir():
            raise ConfigError(f"'{name}': no such folder{near}") from error
        raise ConfigError(
            f"'{name}' is no folder here, and could not be fetched from the Hugging Face hub ({reason(error)})"
            f"{near or '.'}\n"
            f"Offline? On a connected machine: `hf download {name} --local-dir FOLDER`, then give the folder."
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a model or dataset folder brings a tokenizer of its own."""
    return (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from folder to folder as they are, so that the copy's ids are the original's."""
    for name in TOKENIZER_FILES:
        if name != "config.json" and (source / name).exists():
            shutil.copyfile(source / name, target / name)
