"""What a dataset, the training stream and the models must agree on: the numbers of a tokenizer that outlive it."""

from dataclasses import dataclass

import numpy as np


def id_dtype(size: int) -> np.dtype:
    """Storage type of ids, by Megatron's rule: uint16 below 65,500 entries, else int32."""
    return np.dtype(np.uint16) if size < 65_500 else np.dtype(np.int32)


@dataclass(frozen=True)
class Vocabulary:
    """Stored in every dataset's manifest."""

    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unk_id: int
    special_ids: tuple[int, ...]
    tokenizer_hash: str

    @property
    def dtype(self) -> np.dtype:
        """Storage type of its ids."""
        return id_dtype(self.size)
