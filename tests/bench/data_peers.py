"""What the data stream is measured against: the usual way of doing each thing, as well as it is usually done."""

import bisect
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from data.indexed import Dataset
from data.masking import MaskingSettings
from data.vocabulary import Vocabulary

Padded = tuple[torch.Tensor, torch.Tensor]  # int64 [batch, length] and [batch]: ids, 0 behind each sequence; lengths


class SliceReader:
    """A view of the mapped file for each sequence, as Megatron's IndexedDataset reads, and nothing else."""

    def __init__(self, dataset: Dataset) -> None:
        (shard,) = dataset.shards
        self.lengths, self.pointers, self.dtype = shard.lengths, shard.pointers, shard.dtype
        self.buffer = memoryview(shard.ids)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.frombuffer(self.buffer, self.dtype, self.lengths[i], self.pointers[i])


class TorchMasking:
    """Masking on a padded batch by the original's formulas (Sanh et al., 2019)."""

    def __init__(self, counts: np.ndarray, vocabulary: Vocabulary, settings: MaskingSettings) -> None:
        weights = np.maximum(counts, 1) ** -settings.mlm_smoothing
        weights[list(vocabulary.special_ids)] = 0
        self.weights, self.share = torch.from_numpy(weights).float(), settings.mlm_mask_prop
        self.actions = torch.tensor([settings.word_mask, settings.word_keep, settings.word_rand])
        self.vocabulary = vocabulary

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [batch, length] each: what the model sees, and labels, -100 where nothing is predicted."""
        chances = self.weights[ids.flatten()]
        count = math.ceil(self.share * int(lengths.sum()))
        chosen = torch.zeros(ids.numel(), dtype=torch.bool)
        chosen[torch.multinomial(chances / chances.sum(), count, replacement=False)] = True
        chosen = chosen.view(ids.shape) & (ids != self.vocabulary.pad_id)
        real = ids[chosen]
        action = torch.multinomial(self.actions, len(real), replacement=True)
        word = torch.randint_like(real, self.vocabulary.size)
        seen = self.vocabulary.mask_id * (action == 0) + real * (action == 1) + word * (action == 2)
        return ids.masked_scatter(chosen, seen), ids.masked_fill(~chosen, -100)


class InMemory(torch.utils.data.Dataset):
    """A list of arrays."""

    def __init__(self, dataset: Dataset) -> None:
        ids, ends = dataset.gather(np.arange(len(dataset)))
        self.rows = np.split(ids.astype(np.uint16), ends[1:-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[i]


def grouped_by_length(lengths: np.ndarray, size: int) -> Iterator[list[int]]:
    """The original's batches: sequences in random order, each with others of its length within four tokens."""
    bins, pools = list(range(3, int(lengths.max()) + 4, 4)), {}
    for i in torch.randperm(len(lengths)).tolist():
        pool = pools.setdefault(bisect.bisect(bins, lengths[i]), [])
        pool.append(i)
        if len(pool) == size:
            yield list(pool)
            pool.clear()


def pad(rows: Sequence[np.ndarray]) -> Padded:
    """By torch's own function."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(row) for row in rows])


def pad_lists(rows: Sequence[np.ndarray]) -> Padded:
    """As the original does: by lists of Python's."""
    longest = max(map(len, rows))
    padded = [list(row.astype(int)) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) for row in rows])
