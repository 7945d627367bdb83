"""The sequences of a step, the same for every variant, and the two ways to make batches of them: padded and packed.

B sequences of a batch, L tokens of the longest of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.batching import MicroBatch, deal, positions_within

MASK_SHARE, SHORTEST, LONGEST = 0.15, 12, 512
NO_LABEL = -100  # of torch's cross-entropy


@dataclass(frozen=True)
class Masked:
    """A sequence: ids as the model sees them, places that are predicted, and what stood there."""

    ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


def sequences(lengths: str, count: int, vocabulary: int, alike: int = 1) -> list[Masked]:
    """Random ones, none of them with padding (0), in random order.

    Args:
        lengths: "mixed" (log-normal, 127 in the mean), or a number of tokens.
        alike: so many have nearly one length, as sequences of a batch do that are grouped out of a large corpus.
    """
    random = np.random.default_rng(0)
    made = []
    for length in random.permutation(mixed(count, alike) if lengths == "mixed" else [int(lengths)] * count):
        ids = random.integers(1, vocabulary, length)
        places = np.sort(random.choice(ids.size, max(1, round(MASK_SHARE * ids.size)), replace=False))
        made.append(Masked(ids, places, random.integers(1, vocabulary, places.size)))
    return made


def mixed(count: int, alike: int) -> list[int]:
    """Lengths: of each of count / alike equal parts of a corpus, those next to the part's mean."""
    corpus = np.random.default_rng(2).lognormal(np.log(102), 0.66, max(20_000, 16 * count))
    lengths: list[int] = []
    for part in np.array_split(np.sort(corpus.clip(SHORTEST, LONGEST)), -(-count // alike)):
        start = np.searchsorted(part, part.mean()) - alike // 2
        start = min(max(start, 0), part.size - alike)
        lengths += part[start : start + alike].astype(int).tolist()
    return lengths[:count]


def tokens(data: list[Masked]) -> int:
    """Real ones."""
    return sum(s.ids.size for s in data)


# --- padded ---


@dataclass(frozen=True)
class Padded:
    """A padded batch: int64 BL; labels are NO_LABEL where nothing is predicted."""

    ids_BL: Tensor
    mask_BL: Tensor
    labels_BL: Tensor

    @classmethod
    def of(cls, batch: list[Masked], device: torch.device) -> "Padded":
        """On the host, ready to be sent."""
        shape = len(batch), max(s.ids.size for s in batch)
        ids, labels = np.zeros(shape, np.int64), np.full(shape, NO_LABEL)
        for row, s in enumerate(batch):
            ids[row, : s.ids.size] = s.ids
            labels[row, s.places] = s.labels
        tensors = (torch.from_numpy(array) for array in (ids, (ids != 0).astype(np.int64), labels))
        return cls(*(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in tensors))

    def to(self, device: torch.device) -> "Padded":
        """On the device."""
        return Padded(*(x.to(device, non_blocking=True) for x in (self.ids_BL, self.mask_BL, self.labels_BL)))

    @property
    def slots(self) -> int:
        """Tokens and padding."""
        return self.ids_BL.numel()


def grouped(data: list[Masked], size: int) -> list[list[Masked]]:
    """Batches of nearly one length, in random order."""
    data = sorted(data, key=lambda s: s.ids.size)
    batches = [data[start : start + size] for start in range(0, len(data), size)]
    order = np.random.default_rng(1).permutation(len(batches))
    return [batches[i] for i in order]


# --- packed ---


def dealt(data: list[Masked], size: int) -> list[list[Masked]]:
    """Batches of nearly the same number of tokens, as a step's micro-batches are."""
    parts = -(-len(data) // size)
    part_of = deal(np.array([s.ids.size for s in data]), parts)
    return [[s for s, its in zip(data, part_of, strict=True) if its == part] for part in range(parts)]


def packed(batch: list[Masked]) -> MicroBatch:
    """One that is a whole step."""
    sizes = np.array([s.ids.size for s in batch])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    masked = np.concatenate([s.places + start for s, start in zip(batch, ends, strict=False)])
    return MicroBatch(
        input_ids=np.concatenate([s.ids for s in batch]), positions=positions_within(ends),
        cu_seqlens=ends.astype(np.int32), max_seqlen=int(sizes.max()), masked_positions=masked,
        labels=np.concatenate([s.labels for s in batch]), step=0, part=0, step_tokens=int(ends[-1]),
        step_masked=masked.size,
    )  # fmt: skip


def one_step(parts: list[MicroBatch]) -> list[MicroBatch]:
    """The same as parts of one step, weighted by its counts."""
    tokens_, masked = (sum(getattr(part, name) for part in parts) for name in ("step_tokens", "step_masked"))
    return [replace(part, part=i, step_tokens=tokens_, step_masked=masked) for i, part in enumerate(parts)]
