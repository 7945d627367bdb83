"""The networks: one encoder for teacher and student, their losses, and the border to Hugging Face.

Knows nothing of files of tokens, ranks, flags or logging.
"""

import launch  # noqa: F401  (says which library a program lacks)
from model.pretrained import DilBertForMaskedLM, DilBertModel

__all__ = ["DilBertForMaskedLM", "DilBertModel"]
