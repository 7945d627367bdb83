"""How fast is a step of distillation? The same pair of models and sequences, from the usual way to ours.

    python -m tests.bench.bench_step [--pair small|base] [--dtype fp32|bf16] [--lengths mixed|128|512]

Forward of the teacher, forward and backward of the student, three losses; no optimizer. Each variant runs in processes
of its own, in turn; the table has medians, real tokens a second of wall and of CPU time, and the highest memory. The
baseline is the original's way, written anew from its formulas (Sanh et al., 2019) on stock `transformers`: padded,
length-grouped batches of 5, losses over all logits at once. Hardware: CPU or one GPU; minutes for the small pair on 2
cores, half an hour for the base pair.
"""

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch import cpu  # noqa: F401  # isort: skip  (the same for all variants)

import numpy as np
import torch
import torch.nn.functional as F

from launch.args import flag, parse, require
from launch.errors import run
from tests.bench.table import show_cells

ROOT = Path(__file__).parents[2]
SHAPES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
VOCABULARY, DROPOUT, T, MASK_SHARE = 30_522, 0.1, 2.0, 0.15
VARIANTS = {  # in each: sequences of a batch, attention of transformers, or None for ours
    "the original's way": (5, "eager"),
    "transformers, sdpa, batches of 32": (32, "sdpa"),
    "packed, losses over all logits": (32, None),
    "packed, losses by chunks: ours": (32, None),
}


@dataclass(frozen=True)
class Arguments:
    """What is measured."""

    pair: Literal["small", "base"] = flag("small", "teacher 4 x 256 and student 2 x 256, or 12 x 768 and 6 x 768")
    dtype: Literal["fp32", "bf16"] = flag("fp32", "of weights and activations")
    lengths: Literal["mixed", "128", "512"] = flag("mixed", "tokens a sequence; mixed: log-normal, 127 in the mean")
    sequences: int = flag(160, "that each process goes through, after as many to warm up as a batch has")
    rounds: int = flag(3, "processes of each variant")
    output: Path = flag(Path("bench-step"), "where step.csv is kept", "FOLDER")
    variant: str | None = flag(None, "run one variant in this process, and print its figures as JSON", "NAME")

    def __post_init__(self) -> None:
        require(self.sequences >= 32, "sequences", self.sequences, "must be 32 at least, a batch")
        require(self.rounds > 0, "rounds", self.rounds, "must be positive")
        require(self.variant in (None, *VARIANTS), "variant", self.variant, f"must be one of {', '.join(VARIANTS)}")


@dataclass(frozen=True)
class Masked:
    """A sequence: ids as the model sees them, places that are predicted, and what stood there."""

    ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


def sequences(arguments: Arguments, count: int) -> list[Masked]:
    """The same for every variant."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length = int(random.lognormal(np.log(102), 0.66)) if arguments.lengths == "mixed" else int(arguments.lengths)
        ids = random.integers(1000, VOCABULARY, min(max(length, 12), 512))
        places = np.sort(random.choice(ids.size, max(1, round(MASK_SHARE * ids.size)), replace=False))
        made.append(Masked(ids, places, ids[places]))
    return made


def batches(data: list[Masked], size: int, grouped: bool) -> Iterator[list[Masked]]:
    """In order, or of nearly one length in random order."""
    if grouped:
        data = sorted(data, key=lambda s: s.ids.size)
    starts = list(range(0, len(data), size))
    if grouped:
        np.random.default_rng(1).shuffle(starts)
    for start in starts:
        yield data[start : start + size]


# --- the usual way ---


def theirs(arguments: Arguments, attention: str, device: torch.device) -> Callable[[list[Masked]], float]:
    """A step with `transformers`, padded."""
    from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

    shape, dtype = SHAPES[arguments.pair], torch_dtype(arguments)
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(**shape, attn_implementation=attention)).eval().to(device, dtype)
    student = DistilBertForMaskedLM(
        DistilBertConfig(
            dim=shape["hidden_size"], n_layers=shape["num_hidden_layers"] // 2, n_heads=shape["num_attention_heads"],
            hidden_dim=shape["intermediate_size"], attn_implementation=attention,
        )
    ).train().to(device, dtype)  # fmt: skip

    def step(batch: list[Masked]) -> float:
        width = max(s.ids.size for s in batch)
        ids, labels = np.zeros((len(batch), width), np.int64), np.full((len(batch), width), -100)
        for row, s in enumerate(batch):
            ids[row, : s.ids.size] = s.ids
            labels[row, s.places] = s.labels
        inputs = torch.from_numpy(ids).to(device)
        mask = inputs != 0
        ours = student(inputs, attention_mask=mask.long(), output_hidden_states=True)
        with torch.no_grad():
            goal = teacher(inputs, attention_mask=mask.long(), output_hidden_states=True)
        everywhere = mask[:, :, None].expand_as(ours.logits)
        s, t = (torch.masked_select(x.logits, everywhere).view(-1, VOCABULARY) for x in (ours, goal))
        soft = F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="batchmean") * T**2
        words = F.cross_entropy(ours.logits.view(-1, VOCABULARY), torch.from_numpy(labels).to(device).view(-1))
        hidden = mask[:, :, None].expand_as(ours.hidden_states[-1])
        a, b = (torch.masked_select(x.hidden_states[-1], hidden).view(-1, shape["hidden_size"]) for x in (ours, goal))
        cosine = F.cosine_embedding_loss(a, b, a.new_ones(len(a)))
        loss = 5 * soft + 2 * words + cosine
        loss.backward()
        student.zero_grad()
        return float(loss.detach())

    return step


# --- ours ---


def packed(arguments: Arguments, chunks: bool, device: torch.device) -> Callable[[list[Masked]], float]:
    """A step of the product's own modules."""
    from model import distiller as module
    from model.config import BertConfig
    from model.distiller import Batch, Distiller
    from model.kernels import distillation
    from model.losses import Objective
    from model.pretrained import DilBertForMaskedLM

    shape, dtype = SHAPES[arguments.pair], torch_dtype(arguments)
    bert = {"model_type": "bert", "vocab_size": VOCABULARY, **shape}
    distil = {
        "model_type": "distilbert", "vocab_size": VOCABULARY, "dim": shape["hidden_size"],
        "n_layers": shape["num_hidden_layers"] // 2, "n_heads": shape["num_attention_heads"],
        "hidden_dim": shape["intermediate_size"], "dropout": DROPOUT, "attention_dropout": DROPOUT,
    }  # fmt: skip
    torch.manual_seed(0)
    teacher, student = (DilBertForMaskedLM(BertConfig.from_dict(c)).to(device, dtype) for c in (bert, distil))
    distiller = Distiller(student.train(), teacher, Objective())
    if not chunks:
        module.vocabulary_losses = distillation.reference  # type: ignore[assignment]

    def step(batch: list[Masked]) -> float:
        sizes = np.array([s.ids.size for s in batch])
        ends = np.concatenate([[0], np.cumsum(sizes)])
        masked = np.concatenate([s.places + start for s, start in zip(batch, ends, strict=False)])
        loss, _ = distiller(Batch(
            input_ids=tensor(np.concatenate([s.ids for s in batch]), device),
            positions=tensor(np.concatenate([np.arange(n) for n in sizes]), device),
            cu_seqlens=tensor(ends.astype(np.int32), device), max_seqlen=int(sizes.max()),
            masked_positions=tensor(masked, device), labels=tensor(np.concatenate([s.labels for s in batch]), device),
            step_tokens=int(ends[-1]), step_masked=masked.size,
        ))  # fmt: skip
        loss.backward()
        distiller.zero_grad()
        return float(loss.detach())

    return step


def tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def torch_dtype(arguments: Arguments) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]


# --- measuring ---


def measure(arguments: Arguments, name: str) -> dict[str, Any]:
    """One variant, in this process: rates in real tokens a second, memory in MB, and the mean loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, attention = VARIANTS[name]
    step = theirs(arguments, attention, device) if attention else packed(arguments, name.endswith("ours"), device)
    data = sequences(arguments, arguments.sequences)
    for batch in batches(data[: 2 * size], size, grouped=bool(attention)):
        step(batch)
    wall, processor, losses = time.perf_counter(), time.process_time(), []
    for batch in batches(data, size, grouped=bool(attention)):
        losses.append(step(batch))
    tokens = sum(s.ids.size for s in data)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        highest = torch.cuda.max_memory_allocated() / 2**20
    return {
        "wall": tokens / (time.perf_counter() - wall), "cpu": tokens / (time.process_time() - processor),
        "memory": highest, "loss": statistics.fmean(losses),
    }  # fmt: skip


def one_process(arguments: Arguments, name: str) -> dict[str, Any]:
    """One variant in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.bench_step", "--variant", name]
    for field in ("pair", "dtype", "lengths", "sequences"):
        words += [f"--{field}", str(getattr(arguments, field))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(arguments: Arguments) -> list[tuple[str, ...]]:
    """All variants, in turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, results in found.items():
            results.append(one_process(arguments, name))
    middle = {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in found.items()
    }
    first = next(iter(middle.values()))
    cells = [("variant", "tokens/s", "ratio", "tokens/s of CPU time", "ratio", "MB", "ratio", "loss")]
    for name, row in middle.items():
        ratios = [f"{row[key] / first[key]:.2f}" for key in ("wall", "cpu", "memory")]
        cells.append((name, f"{row['wall']:,.0f}", ratios[0], f"{row['cpu']:,.0f}", ratios[1], f"{row['memory']:,.0f}",
                      ratios[2], f"{row['loss']:.4f}"))  # fmt: skip
    return cells


def main() -> None:
    """Measure one variant, or all of them."""
    (arguments,) = parse("How fast is a step?", Arguments, prog="tests.bench.bench_step")
    if arguments.variant:
        return print(json.dumps(measure(arguments, arguments.variant)))
    if os.getloadavg()[0] > 0.5:
        print(f"the machine is busy (load {os.getloadavg()[0]:.1f}): trust the CPU times more than the others")
    cells = table(arguments)
    print(f"{arguments.pair} pair, {arguments.dtype}, lengths {arguments.lengths}")
    show_cells(cells, right=range(1, 8))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.output / "step.csv", "a", newline="") as file:
        csv.writer(file).writerows([arguments.pair, arguments.dtype, arguments.lengths, *row] for row in cells)


if __name__ == "__main__":
    run(main)
