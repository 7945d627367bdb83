"""`DilBertModel` and `DilBertForMaskedLM`: the encoder as users of `transformers` know a model.

    model = DilBertModel.from_pretrained("dilbert-base-uncased")
    outputs = model(input_ids, attention_mask)      # padded [batch, length]
    outputs[0]                                       # last hidden states [batch, length, hidden]

Any BERT or DistilBERT folder or hub name loads, as its `config.json` says.
"""

import logging
from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from model import hf
from model.bert import Encoder, MaskedLM
from model.config import BertConfig

logger = logging.getLogger(__name__)


class _Pretrained(Encoder):
    """Reading and writing of model folders."""

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load a model by folder or hub name, in fp32 and evaluation mode.

        Weights in the file that the model has no place for (a pooler, a task head) are named in a log line.

        Raises:
            ConfigError: no such model, or another architecture.
            CheckpointError: weights are missing, damaged, or of other shapes.
        """
        folder = hf.fetch(str(name))
        model = cls(BertConfig.read(folder))
        report = hf.load_state(model, model.config, hf.read_folder(folder), str(name))
        hf.refuse_missing(report.missing, str(name))
        if report.unexpected:
            logger.warning("%s: not used: %s", name, ", ".join(report.unexpected))
        return model.eval()

    @classmethod
    def from_config(cls, config: BertConfig) -> Self:
        """A model with random weights, drawn from torch's global generator."""
        return cls(config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; stock `transformers` loads them."""
        hf.write_folder(Path(folder), self, self.config)


class DilBertModel(_Pretrained):
    """The encoder without a head."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutput:
        """Hidden states of a padded batch.

        Args:
            input_ids: integers [batch, length].
            attention_mask: [batch, length], 1 for real tokens; None: all are.
            token_type_ids: [batch, length]; only for a BERT.

        Returns:
            `last_hidden_state` (also `[0]`): [batch, length, hidden], 0 at padding.
        """
        return BaseModelOutput(last_hidden_state=self.encode_padded(input_ids, attention_mask, token_type_ids))


class DilBertForMaskedLM(_Pretrained, MaskedLM):
    """The encoder with its masked-language-model head: the class of teacher and student."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Scores over the vocabulary for a padded batch.

        Args:
            input_ids, attention_mask, token_type_ids: as for `DilBertModel`.
            labels: [batch, length], -100 where there is nothing to predict.

        Returns:
            `loss` (mean cross-entropy, if labels are given) and `logits` [batch, length, vocabulary].
        """
        logits: Tensor = self.logits(self.encode_padded(input_ids, attention_mask, token_type_ids))
        loss: Any = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)
