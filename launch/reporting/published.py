"""What the paper reports: Sanh et al. (2019), "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
lighter", arXiv 1910.01108.

Scores are those of the development sets, medians of five runs; here as fractions, like those of our runs.
"""

from dataclasses import dataclass

SOURCE = "Sanh et al. (2019), DistilBERT, arXiv 1910.01108, tables 1 to 3"


@dataclass(frozen=True)
class Scores:
    """Of BERT-base, of DistilBERT, and of DistilBERT with a teacher in fine-tuning, too ("DistilBERT (D)")."""

    teacher: float
    student: float
    again: float | None = None

    @property
    def retention(self) -> float:
        """DistilBERT's share of BERT's score."""
        return self.student / self.teacher


def _percent(*values: float) -> Scores:
    return Scores(*(round(value / 100, 4) for value in values))


GLUE = {  # table 1
    "cola": _percent(56.3, 51.3),
    "mnli": _percent(86.7, 82.2),
    "mrpc": _percent(88.6, 87.5),
    "qnli": _percent(91.8, 89.2),
    "qqp": _percent(89.6, 88.5),
    "rte": _percent(69.3, 59.9),
    "sst2": _percent(92.7, 91.3),
    "stsb": _percent(89.0, 86.9),
    "wnli": _percent(53.5, 56.3),
}
GLUE_SCORE = _percent(79.5, 77.0)  # as printed; BERT-base's nine scores have a mean of 79.7
IMDB = _percent(93.46, 92.82)  # table 2, accuracy on the test set
SQUAD = {"exact": _percent(81.2, 77.7, 79.1), "f1": _percent(88.5, 85.8, 86.9)}  # table 2, version 1.1
PARAMETERS = 110e6, 66e6  # table 3
STSB_SECONDS = 668.0, 410.0  # table 3: the development set of STS-B on a CPU, one example at a time


def scores(task: str, metric: str) -> Scores | None:
    """What the paper has of a task of ours; None: nothing."""
    return SQUAD.get(metric) if task == "squad" else GLUE.get(task)
