"""Text and token ids: datasets on disk, and the training stream drawn from them. Knows no networks."""

from data.tokenizer import DilBertTokenizer

__all__ = ["DilBertTokenizer"]
