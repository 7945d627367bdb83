"""What `launch.report` measures of teacher and student on this machine: size, speed, masked words, production forms."""

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch import cpu  # noqa: F401  # isort: skip  (before torch)

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from launch import costs
from launch.args import flag, require
from launch.errors import ConfigError
from launch.evaluate import check_together, held_out, vocabulary_for
from launch.progress import bar
from launch.reporting import forms, speed
from launch.reporting.document import STUDENT, TEACHER, Measured
from launch.reporting.speed import Go, Sample
from model import heads, hf, onnx_export
from model.config import read_values
from model.distiller import Distiller
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

BATCH = 16  # held-out sequences at once; the figures do not depend on it
CPU = torch.device("cpu")

Json = dict[str, Any]
Gap = tuple[str, str]  # what is not measured, and why


@dataclass(frozen=True)
class Measuring:
    """What is measured, of --teacher and --student, on this machine."""

    measure: Literal["speed", "size", "nothing"] = flag(
        "speed", "speed and size; size alone; or nothing: the names are only those in the runs"
    )
    batch_sizes: tuple[int, ...] = flag((1, 8, 32), "sequences at once, for speed", "SEQUENCES")
    lengths: tuple[int, ...] = flag((32, 128), "tokens of the longest of them", "TOKENS")
    rounds: int = flag(7, "goes of each model at each batch and length, in turn; their median counts")
    data: Path | None = flag(None, "held-out dataset: masked words", "DATASET")
    train_data: tuple[str, ...] | None = flag(
        None, "what was trained on, as in its --data: its token counts draw the masks (default: --data)", "DATASET"
    )

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            values = getattr(self, name)
            require(min(values) > 0, name, " ".join(map(str, values)), "must be positive")
        require(self.rounds > 0, "rounds", self.rounds, "must be positive")
        rule = "needs the models; leave --measure nothing out"
        require(self.data is None or self.measure != "nothing", "data", self.data, rule)


@dataclass(frozen=True)
class Model:
    """A model under its name."""

    name: str
    folder: Path
    network: DilBertForMaskedLM

    @classmethod
    def load(cls, name: str) -> "Model":
        """By folder or hub name.

        Raises:
            ConfigError: a model for a task; and, as CheckpointError, as `DilBertForMaskedLM.from_pretrained`.
        """
        folder = hf.fetch(name)
        if head := heads.TaskHead.of(read_values(folder)):
            raise ConfigError(
                f"{name}: is a model for {head.kind}; give the masked language model that it was fine-tuned from, and "
                "the fine-tuning among --runs"
            )
        return cls(name, folder, DilBertForMaskedLM.from_pretrained(name))

    @property
    def positions(self) -> int:
        """Tokens that it takes at once."""
        return self.network.config.max_position_embeddings

    def stock(self) -> nn.Module:
        """The same in `transformers`, on the processor."""
        return AutoModelForMaskedLM.from_pretrained(self.folder, dtype=torch.float32).eval()


Models = dict[str, Model]  # by role


def measured(models: Models, measuring: Measuring, masking: MaskingSettings) -> Measured:
    """All of it, as far as there are models, a dataset, and files.

    Raises:
        DataError, ConfigError, CheckpointError: a dataset or a file is not there, damaged, or not the models'.
    """
    if not models:
        return Measured(not_measured=[("size, speed, masked words", "no model was opened")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = held_out_data(models, measuring, masking) if measuring.data else None
    for model in models.values():
        model.network.to(device)
    gaps = [(f"size, speed and masked words of the {role}", f"no --{role}")
            for role in (TEACHER, STUDENT) if role not in models]  # fmt: skip
    words = masked_words(models, data) | {"data": str(measuring.data), "masking": asdict(masking)} if data else None
    if data is None:
        gaps.append(("held-out masked words", "no --data"))
    rows: list[Json] = []
    produced: list[Json] = []
    if measuring.measure == "speed":
        rows, too_long = speeds(models, measuring, device)
        produced, not_produced = production(models, measuring, data, words)
        gaps += too_long + not_produced
    else:
        gaps.append(("speed", f"--measure {measuring.measure}"))
    sizes = [size(role, model) for role, model in models.items()]
    return Measured(speed.machine(device), sizes, rows, produced, words, gaps)


# --- size ---


def size(role: str, model: Model) -> Json:
    """Parameters, and the bytes of its weights' file or files."""
    config, total = model.network.config, sum(p.numel() for p in model.network.parameters())
    return {
        "role": role,
        "name": model.name,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": total,
        "without_embeddings": total - costs.embedding_parameters(config),
        "bytes": hf.weight_bytes(model.folder),
    }


# --- speed ---


def speeds(models: Models, measuring: Measuring, device: torch.device) -> tuple[list[Json], list[Gap]]:
    """Rows of `launch.reporting.speed.measure`, and what is left out."""
    positions = min(model.positions for model in models.values())
    fitting = [length for length in measuring.lengths if length <= positions]
    gaps = [(f"speed at {length} tokens", f"the models have {positions} positions")
            for length in measuring.lengths if length not in fitting]  # fmt: skip
    goes: dict[speed.Name, Go] = {}
    for form, make in (("padded", padded), ("packed", packed)):
        goes |= {(form, role): make(model, device) for role, model in models.items()}
    shapes = [(batch, length) for length in fitting for batch in measuring.batch_sizes]
    return speed.measure(goes, shapes, measuring.rounds, vocabulary(models), device), gaps


def vocabulary(models: Models) -> int:
    """Ids that all of them know."""
    return min(model.network.config.vocab_size for model in models.values())


def padded(model: Model, device: torch.device) -> Go:
    """The encoder as users of stock `transformers` call it."""
    stock: Any = model.stock()
    return by_transformers(stock.base_model.to(device))


def by_transformers(network: Any) -> Go:
    """A model of `transformers`, or its encoder, on what a sample has padded."""
    return lambda sample: network(input_ids=sample.ids_BL, attention_mask=sample.mask_BL)


def packed(model: Model, device: torch.device) -> Go:
    """Our encoder, without padding.

    Args:
        device: where the model is.
    """

    def go(sample: Sample) -> Tensor:
        return model.network.encode(sample.ids_T, sample.positions_T, sample.cu_seqlens, sample.longest)

    return go


# --- masked words ---


def held_out_data(models: Models, measuring: Measuring, masking: MaskingSettings) -> HeldOut:
    """The held-out dataset with its masks.

    Raises:
        DataError, ConfigError: no such dataset, or one that does not belong to the models.
    """
    assert measuring.data
    dataset = Dataset.open(measuring.data)
    pairs = [(models[role].name, models[role].network) for role in (STUDENT, TEACHER) if role in models]
    known = vocabulary_for((dataset,), *(name for name, _ in pairs))
    check_together((dataset,), known, pairs, needs_width=False)
    counts = Corpora.open(measuring.train_data or (str(measuring.data),)).counts(known)
    return HeldOut(dataset, known, masking, counts)


def masked_words(models: Models, data: HeldOut) -> Json:
    """Held-out figures of each; the student's also beside the teacher's."""
    found: Json = {"sequences": data.size}
    names = {"loss_mlm": "loss_mlm", "accuracy": "accuracy", "loss_ce": "kl", "agreement": "agreement"}
    with bar(len(models) * -(-data.size // BATCH), " batches", "masked words") as progress:
        for role, model in models.items():
            teacher = models[TEACHER].network if role == STUDENT and TEACHER in models else None
            objective = Objective(alpha_cos=0.0, temperature=1.0) if teacher else Objective()
            distiller = Distiller(model.network, teacher, objective)
            figures = held_out(distiller, data, BATCH, alive=lambda _: progress.update())
            found[role] = {names[name]: value for name, value in figures.items() if name in names}
    return found


# --- production forms ---


def production(
    models: Models, measuring: Measuring, data: HeldOut | None, words: Json | None
) -> tuple[list[Json], list[Gap]]:
    """Models that have ONNX files: these, and beside them torch, whole and on the processor.

    Args:
        words: what `masked_words` found.

    Returns:
        Rows {"role", "form", "bytes", "length", "seconds", "tokens_per_second", "accuracy" (None: no data)}, and what
        is left out.
    """
    paths = {(form, role): path for role, model in models.items() for form, path in forms.files(model.folder).items()}
    if not paths:
        return [], [("production forms", f"no {forms.FILES['ONNX']} beside the weights")]
    if not importlib.util.find_spec("onnxruntime"):
        return [], [("production forms", "onnxruntime is not installed: the dependency group onnx")]
    opened = {name: of_words(onnx_export.open_file(path)) for name, path in paths.items()}
    goes: dict[speed.Name, Go] = {}
    for role in dict.fromkeys(role for _, role in paths):
        goes[forms.TORCH, role] = by_transformers(models[role].stock())
        goes |= {name: on_sample(logits) for name, logits in opened.items() if name[1] == role}
    length = min(max(measuring.lengths), *(model.positions for model in models.values()))
    timed = {row["form"]: row for row in speed.measure(goes, [(1, length)], measuring.rounds, vocabulary(models), CPU)}
    rows = []
    for form, role in goes:
        row = {"role": role, "form": form, "length": length}
        row |= {name: timed[form][role][name] for name in ("seconds", "tokens_per_second")}
        if form == forms.TORCH:
            share = words[role]["accuracy"] if words else None
            row |= {"bytes": hf.weight_bytes(models[role].folder), "accuracy": share}
        else:
            share = masked_accuracy(opened[form, role], data, f"{role}, {form}") if data else None
            row |= {"bytes": paths[form, role].stat().st_size, "accuracy": share}
        rows.append(row)
    return rows, []


def of_words(run: onnx_export.Run) -> forms.Logits:
    """A masked language model's, of text without token types."""

    def logits(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        types_BL = torch.zeros_like(ids_BL)
        return run({"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL})["logits"]

    return logits


def on_sample(logits: forms.Logits) -> Go:
    """With what a sample has padded."""
    return lambda sample: logits(sample.ids_BL, sample.mask_BL)


def masked_accuracy(logits: forms.Logits, data: HeldOut, title: str) -> float:
    """Masked words right, with progress."""
    with bar(data.size, " sequences", title) as progress:

        def watched() -> Iterator[forms.Masked]:
            for sequence in data.micro_batches(1):
                yield sequence
                progress.update()

        return forms.accuracy(logits, watched())
