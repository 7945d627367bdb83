"""Text and token ids: datasets on disk, and the training stream drawn from them. Knows no networks."""

from typing import TYPE_CHECKING, Any

import launch  # noqa: F401  (says which library a program lacks)

if TYPE_CHECKING:
    from data.tokenizer import DilBertTokenizer

__all__ = ["DilBertTokenizer"]


def __getattr__(name: str) -> Any:
    """Import the tokenizer when it is asked for: most tools of this room do without it, and it takes seconds."""
    if name == "DilBertTokenizer":
        from data.tokenizer import DilBertTokenizer

        return DilBertTokenizer
    raise AttributeError(name)
