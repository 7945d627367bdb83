"""Scale on paper: `python -m launch.plan --gpu H100 --nodes 8` says what a distillation costs before it is started.

FLOPs, time, memory, messages and disk by the formulas of `launch.costs` and `launch.scaling`, for a corpus, a DeepSpeed
JSON and a cluster. Nothing is run and no GPU is needed.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.indexed import Dataset
from data.vocabulary import id_dtype
from launch import costs, ds_config, hub, plan_report, scaling
from launch.args import flag, parse, require
from launch.costs import Tokens
from launch.errors import ConfigError, did_you_mean, run
from launch.plan_report import columns, section
from launch.retention import Retention
from launch.scaling import GPUS, Cluster, Job
from model.config import BertConfig
from model.extract import default_layers, student_config
from model.kernels.distillation import CHUNK

DESCRIPTION = """\
What a distillation costs, on paper. Formulas (d hidden size, f intermediate size, V vocabulary, N layers, L lengths):
  forward FLOPs a token    N (8 d^2 + 4 d f) + 4 d N sum(L^2) / sum(L) + 2 d^2 + 2 d V
  step                     teacher forward + 3 x student forward, / (peak x MFU)
  messages of a rank       (n - 1) / n x (2 x gradients [x accumulation at stage 2] + weights), / the slowest link
  efficiency               compute / (compute + messages that no backward pass hides)
  optimizer                12 bytes a parameter / ranks: fp32 weights and two moments; 8 on each rank without ZeRO
launch/costs.py and launch/scaling.py explain them; tests/test_plan.py compares them with runs on 1 and 2 ranks."""
EXAMPLE = "  python -m launch.plan --gpu H100 --gpus-per-node 8 --nodes 8 --interconnect-gbps 3200"
TOKENS, MEAN_LENGTH = 4e9, 127.0  # BooksCorpus and Wikipedia, a sequence a line


def _positive(flags: object, *names: str) -> None:
    for name in names:
        value = getattr(flags, name)
        require(value is None or 0 < value < math.inf, name, value, "must be positive")


@dataclass(frozen=True)
class Text:
    """What is trained on."""

    data: Path | None = flag(None, "dataset whose tokens and lengths count (instead of the next two)", "DATASET")
    tokens: float | None = flag(None, "tokens of the corpus (default: 4e9, BooksCorpus and Wikipedia)")
    mean_length: float | None = flag(None, f"tokens of each sequence, all alike (default: {MEAN_LENGTH:.0f})", "TOKENS")
    epochs: float = flag(3.0, "passes over it")

    def __post_init__(self) -> None:
        _positive(self, "tokens", "mean_length", "epochs")
        for name in ("tokens", "mean_length"):
            rule = "give either this or --data, which knows it"
            require(self.data is None or getattr(self, name) is None, name, getattr(self, name), rule)


@dataclass(frozen=True)
class Hardware:
    """What it runs on."""

    gpu: str = flag("H100", f"kind: {', '.join(GPUS)}", "KIND")
    gpus_per_node: int = flag(8, "GPUs of a node")
    nodes: int = flag(1, "nodes")
    interconnect_gbps: float = flag(400.0, "network of a whole node, Gbit/s in one direction", "GBIT")
    mfu: float = flag(0.45, "share of the peak that a GPU sustains: assumed")
    peak_tflops: float | None = flag(None, "peak of a GPU (default: dense 16 bit, of its data sheet)", "TFLOPS")
    link_gbps: float | None = flag(None, "within a node, Gbit/s of a GPU in one direction (default: NVLink's)", "GBIT")

    def __post_init__(self) -> None:
        require(self.gpu in GPUS, "gpu", self.gpu, f"must be one of {', '.join(GPUS)}{did_you_mean(self.gpu, GPUS)}")
        _positive(self, "gpus_per_node", "nodes", "interconnect_gbps", "mfu", "peak_tflops", "link_gbps")
        require(self.mfu <= 1, "mfu", self.mfu, "must be a share of the peak, 1 at most")

    @property
    def peak(self) -> float:
        """FLOP/s."""
        return 1e12 * (self.peak_tflops or GPUS[self.gpu].tflops)

    @property
    def link(self) -> float:
        """Gbit/s."""
        return self.link_gbps or 8 * GPUS[self.gpu].link

    @property
    def cluster(self) -> Cluster:
        """In FLOP/s and bytes/s."""
        return Cluster(self.gpus_per_node, self.nodes, self.peak * self.mfu, self.link * 1e9 / 8,
                       self.interconnect_gbps * 1e9 / 8)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How it is trained."""

    deepspeed_config: Path = flag(Path("ds_configs/zero1_bf16.json"), "DeepSpeed JSON, as in training", "JSON")
    zero_stage: int | None = flag(None, "ZeRO stage, 1 or 2 (default: the JSON's)", "STAGE")
    batch: int | None = flag(None, "sequences of a step, on all GPUs (default: the JSON's)", "SEQUENCES")
    micro_batch: int | None = flag(None, "sequences that a GPU takes at once (default: the JSON's)", "SEQUENCES")
    teacher_config: str | None = flag(
        None, "config.json, its folder, or a name on the Hugging Face hub (default: BERT-base)", "MODEL"
    )
    student_config: str | None = flag(
        None, "the same of the student (default: half of the teacher's layers, as `model.extract` takes them)", "MODEL"
    )
    checkpoint_interval: int = flag(1000, "steps between checkpoints", "STEPS")

    def __post_init__(self) -> None:
        require(self.zero_stage in (None, 1, 2), "zero_stage", self.zero_stage, "must be 1 or 2")
        _positive(self, "batch", "micro_batch", "checkpoint_interval")


@dataclass(frozen=True)
class Corpus:
    """Sums over all sequences.

    Attributes:
        item: bytes of an id.
        bytes: on disk, ids and index.
    """

    tokens: float
    squares: float
    sequences: float
    item: float
    bytes: float


def corpus(text: Text, vocabulary: int) -> Corpus:
    """The dataset's, or those of a corpus whose sequences all have the same length.

    Args:
        vocabulary: size of the tokenizer's, which decides how many bytes an id has.

    Raises:
        DataError: no such dataset, or a damaged one.
    """
    if text.data is None:
        tokens, length = text.tokens or TOKENS, text.mean_length or MEAN_LENGTH
        item = id_dtype(vocabulary).itemsize
        size = costs.dataset_bytes(tokens, tokens / length, item)
        return Corpus(tokens, tokens * length, tokens / length, item, size)
    shards = Dataset.open(text.data).shards
    squares = sum(float(np.square(shard.lengths, dtype=np.float64).sum()) for shard in shards)
    sequences = sum(len(shard.lengths) for shard in shards)
    index = sum(12 * len(shard.lengths) + 8 * len(shard.document_ends) for shard in shards)
    tokens, size = sum(shard.ids.size for shard in shards), sum(shard.ids.nbytes for shard in shards)
    return Corpus(tokens, squares, sequences, size / tokens, size + index)


def shape(model: str) -> BertConfig:
    """What a config.json says: by its path, by its folder, or by the model's name on the hub.

    Raises:
        ConfigError: there is none, or one that can't be read; or as `hub.fetch`.
    """
    path = Path(model)
    if path.name == "config.json":
        return BertConfig.read(path.parent)
    return BertConfig.read(path if path.is_file() else hub.fetch(model, ("config.json",)))


def shapes(recipe: Recipe) -> tuple[BertConfig, BertConfig]:
    """Teacher and student; where nothing is said of the student, it is what `model.extract` makes of the teacher.

    Raises:
        ConfigError: as `shape`.
    """
    teacher = shape(recipe.teacher_config) if recipe.teacher_config else BertConfig()
    if recipe.student_config:
        return teacher, shape(recipe.student_config)
    return teacher, student_config(teacher, default_layers(teacher.num_hidden_layers))


def configuration(recipe: Recipe, hardware: Hardware) -> ds_config.Json:
    """The JSON with the flags' values in it and its three batch sizes explicit.

    Raises:
        ConfigError: a JSON that training would refuse, a batch that can't be cut so, or numbers that the GPU has not.
    """
    config = ds_config.load(recipe.deepspeed_config, "cuda")
    config["zero_optimization"] = dict(config.get("zero_optimization", {}))
    for part, key, value in (
        (config["zero_optimization"], "stage", recipe.zero_stage),
        (config, "train_batch_size", recipe.batch),
        (config, "train_micro_batch_size_per_gpu", recipe.micro_batch),
    ):
        if value is not None:
            part[key] = value
    precision = ds_config.precision(config)
    if precision == "bf16" and not GPUS[hardware.gpu].bf16:
        raise ConfigError(f"--gpu {hardware.gpu}: has no bf16; --deepspeed-config ds_configs/zero1_fp16.json")
    rule = "the table's peaks are those of 16 bit; say what the GPU reaches in fp32"
    require(precision != "fp32" or hardware.peak_tflops is not None, "peak_tflops", hardware.peak_tflops, rule)
    config.update(ds_config.batch_sizes(config, hardware.cluster.ranks))
    return config


def job_of(teacher: BertConfig, student: BertConfig, config: ds_config.Json, data: Corpus) -> Job:
    """What is trained, and how.

    Args:
        config: with its batch sizes explicit.
    """
    return Job(
        teacher=teacher,
        student=student,
        engine=costs.engine(config),
        sequence=Tokens(data.tokens, data.squares, data.tokens) * (1 / data.sequences),
        batch=config["train_batch_size"],
        micro=config["train_micro_batch_size_per_gpu"],
    )


def headline(text: Text, data: Corpus, hardware: Hardware, config: ds_config.Json) -> list[str]:
    """What is planned."""
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    return [
        "Arithmetic, not measured.",
        f"{data.tokens:,.0f} tokens in {data.sequences:,.0f} sequences of {data.tokens / data.sequences:.1f} in "
        f"the mean, {text.epochs:g} epoch(s)",
        f"{hardware.nodes} x {hardware.gpus_per_node} {hardware.gpu}, {hardware.peak / 1e12:g} TFLOP/s each, of which "
        f"{hardware.mfu:.0%} (assumed)",
        f"{config['train_batch_size']:,} sequences a step = {micro} x {accumulation} accumulation x "
        f"{hardware.cluster.ranks} GPU(s) | {ds_config.precision(config)}, ZeRO stage {ds_config.stage(config)}",
    ]


def plan(text: Text, hardware: Hardware, recipe: Recipe, keep: Retention) -> str:
    """The whole table.

    Raises:
        DilbertError: as `corpus`, `shapes` and `configuration`.
    """
    config, cluster = configuration(recipe, hardware), hardware.cluster
    teacher, student = shapes(recipe)
    data = corpus(text, student.vocab_size)
    job = job_of(teacher, student, config, data)
    step, steps = scaling.step(job, cluster), math.ceil(text.epochs * data.sequences / job.batch)
    assert step is not None, "batch_sizes has cut the batch"
    lines = [
        *headline(text, data, hardware, config),
        *section("MFLOP a token", plan_report.flops_rows(job)),
        *section("time", plan_report.time_rows(job, cluster, step, steps)),
        *section(
            "memory of a GPU", plan_report.memory_rows(job, cluster, step, CHUNK["cuda"], GPUS[hardware.gpu].memory)
        ),
        *section("messages of a GPU and step", plan_report.message_rows(job, cluster, step)),
        *section("disk", plan_report.disk_rows(job, data.bytes, data.item, steps, recipe.checkpoint_interval, keep)),
        *section("where it stops scaling", plan_report.limit_rows(job, cluster)),
        *["", *columns(list(plan_report.scaling_cells(job, cluster)))],
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    print(plan(*parse(DESCRIPTION, Text, Hardware, Recipe, Retention, example=EXAMPLE, prog="launch.plan")))


if __name__ == "__main__":
    run(main)
