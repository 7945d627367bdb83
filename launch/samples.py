"""A few held-out sentences with what teacher and student would put in place of a masked word, for people."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from data.batching import MicroBatch
from data.loader import HeldOut
from data.tokenizer import load_tokenizer
from launch import hub
from model.distiller import Batch, Distiller

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENS = range(8, 65)  # of a sentence that a person takes in at a glance
_LOOKED_AT = 500  # sequences


@dataclass(frozen=True)
class Samples:
    """The same sentences each time, masked as for the held-out figures."""

    batches: list[MicroBatch]
    tokenizer: "PreTrainedTokenizerFast"

    @classmethod
    def of(cls, data: HeldOut, tokenizer: Path, count: int = 4) -> "Samples | None":
        """
        Args:
            tokenizer: folder.

        Returns:
            None where the folder has no tokenizer, or the data no sentence that will do.
        """
        if not hub.has_tokenizer(tokenizer):
            return None
        sentences = (
            batch
            for batch in islice(data.micro_batches(1), _LOOKED_AT)
            if batch.tokens in _TOKENS and batch.labels.size
        )
        chosen = list(islice(sentences, count))
        return cls(chosen, load_tokenizer(str(tokenizer))) if chosen else None

    def text(self, distiller: Distiller, words: int = 3) -> str:
        """Markdown: a line a sentence, then the word that stood there and the guesses of each model."""
        return "\n".join(self._one(distiller, batch, words) for batch in self.batches)

    def _one(self, distiller: Distiller, batch: MicroBatch, words: int) -> str:
        """Of the first masked word, in bold; the others stay masked, as the models saw them."""
        ids, place = batch.input_ids.copy(), int(batch.masked_positions[0])
        ids[place] = self.tokenizer.mask_token_id
        mask = _plain(str(self.tokenizer.mask_token))
        sentence = _plain(str(self.tokenizer.decode(ids[1:-1].tolist()))).replace(mask, f"**{mask}**", 1)
        lines = [f"- {sentence}", f"    - *it was*: {_plain(self._word(int(batch.labels[0])))}"]
        device = next(distiller.parameters()).device
        for name, (best, shares) in distiller.guesses(Batch.of(batch, device).to(device), words).items():
            pairs = zip(best[0].tolist(), shares[0].tolist(), strict=True)
            shown = name if distiller.teacher else "model"
            lines.append(f"    - {shown}: " + ", ".join(f"{_plain(self._word(i))} {share:.0%}" for i, share in pairs))
        return "\n".join(lines)

    def _word(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))


def _plain(text: str) -> str:
    """Without what Markdown takes for its own."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!" else letter for letter in text)
