"""Scale on paper against hand-worked numbers, models, and jobs of one and two ranks."""

import functools
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from jobs import config_file, flags, make_models
from played_hub import served
from ranks import run_ranks, train
from tiny_models import chosen_kernels
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from data.indexed import Dataset
from launch import checkpoint, costs, ds_config, errors, plan, plan_report, scaling
from launch.costs import Engine, Tokens
from launch.plan import Hardware, Recipe, Text
from launch.retention import Retention
from launch.scaling import Cluster, Job
from model.config import BertConfig
from model.distiller import Batch, Distiller
from model.kernels import attention, distillation
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

ROOT = Path(__file__).parents[1]
WIDE = {"hidden_size": 128, "intermediate_size": 384}  # so that a checkpoint is weights, and not names
BF16 = {"data_types": {"grad_accum_dtype": "fp32"}}
MICRO, BATCH, STEPS = 4, 16, 3
_, STUDENT = plan.shapes(Recipe())


# --- by hand ---


def test_parameters_of_the_published_models():
    """What `transformers` counts for bert-base-uncased (masked-LM, tied) and distilbert-base-uncased."""
    assert costs.parameters(BertConfig()) == 109_514_298
    assert costs.parameters(STUDENT) == 66_985_530


def test_flops_by_hand():
    """V = 10, d = 2, f = 4, N = 3, sequences of 1 and 3 tokens.

    A layer's matrices: 8 x 4 + 4 x 2 x 4 = 64 a token, x 4 tokens = 256. Attention: 4 x 2 x (1 + 9) = 80. Three layers:
    1008. The head: 2 x 4 + 2 x 2 x 10 = 48 a token, 192.
    """
    shape = BertConfig(10, 2, 3, 1, 4)
    tokens = Tokens.of([1, 3])
    assert tokens == Tokens(count=4, squares=10, rows=4)
    assert costs.encoder_flops(shape, tokens) == 1008
    assert costs.forward_flops(shape, tokens) == 1200
    assert costs.step_flops(shape, shape, tokens) == 4 * 1200
    assert costs.step_flops(None, shape, tokens) == 3 * 1200
    assert costs.forward_flops(shape, Tokens.of([1, 3], rows=1)) == 1008 + 48
    assert costs.backward_flops(shape, tokens) == 2 * (1008 + 8 * 4), "without the decoder"


@pytest.mark.parametrize(("length", "teacher", "student"), [(127, 222.6, 406.0), (512, 236.8, 427.3)])
def test_flops_of_the_base_pair(length, teacher, student):
    """Millions a token. Teacher: 12 x (8 x 768^2 + 4 x 768 x 3072) = 169.9, attention 12 x 4 x 768 x L = 4.7 and 18.9,
    head 2 x 768^2 + 2 x 768 x 30522 = 48.1; student: half the layers, the same head, all three times."""
    token = Tokens.of([length]) * (1 / length)
    assert costs.forward_flops(BertConfig(), token) / 1e6 == pytest.approx(teacher, abs=0.05)
    assert 3 * costs.forward_flops(STUDENT, token) / 1e6 == pytest.approx(student, abs=0.05)


def test_memory_by_hand():
    """67 M parameters in bf16 with fp32 sums: 12 / 4 bytes of optimizer on each of 4 ranks; the sums whole at stage 1,
    a quarter of them at stage 2; two buckets of 10 M gradients with overlap."""
    P = 66_985_530
    first, second = Engine(stage=1, flat=True), Engine(stage=2, overlap=True, bucket=10_000_000)
    assert costs.optimizer_bytes(P, first, 4) == costs.optimizer_bytes(P, second, 4) == 3 * P
    assert costs.optimizer_bytes(P, Engine(stage=0, element=4), 4) == 8 * P, "the fp32 weights are the model's own"
    assert costs.optimizer_bytes(P, Engine(stage=2, offload=True), 4) == 0
    assert list(costs.gradient_bytes(P, first, 4).values()) == [2 * P, 4 * P, 2 * P]
    assert list(costs.gradient_bytes(P, second, 4).values()) == [2 * P, P, 40_000_000]
    fp16 = Engine(stage=1, accumulated=2, bucket=10_000_000)
    assert list(costs.gradient_bytes(P, fp16, 4).values()) == [2 * P, 0, 20_000_000], "summed where they are"
    # 100 rows: 30,522 words are 30,528 columns; two models, two padded embeddings; the gradient of one, and its sum.
    logits = 2 * 2 * (100 * 30_528 + 30_528 * 768) + (2 + 4) * 30_528 * 768
    assert costs.logits_bytes(BertConfig(), first, 100) == logits
    parts = costs.memory(BertConfig(), STUDENT, first, 4, tokens=100, chunk=1000)
    assert parts["teacher"] == 2 * 109_514_298
    assert parts["logits"] == logits, "a chunk has no more rows than the micro-batch"


def test_columns_of_the_logits_are_those_of_the_kernel():
    assert costs.ALIGNMENT == distillation._ALIGNMENT


def test_messages_by_hand():
    """1000 gradients of 2 bytes on 4 ranks: a ring's all-reduce sends 2 x 3/4 of them, gathering weights 3/4."""
    assert costs.traffic(1000, Engine(stage=1), 4, accumulation=5) == costs.Traffic(3000, 1500)
    assert costs.traffic(1000, Engine(stage=2), 4, accumulation=5) == costs.Traffic(15_000, 1500)
    assert costs.traffic(1000, Engine(stage=2, wire=4), 4, accumulation=5) == costs.Traffic(30_000, 1500)
    assert costs.traffic(1000, Engine(stage=0, element=4, wire=4), 4, accumulation=5) == costs.Traffic(6000, 0)
    assert costs.traffic(1000, Engine(stage=2), 1, accumulation=5) == costs.Traffic(0, 0)


def test_what_can_hide_by_hand():
    """Of the base student's 66,985,530 gradients 23,835,648 are the embeddings', ready last; 43,149,882 are before."""
    assert costs.embedding_parameters(STUDENT) == (30_522 + 512 + 2) * 768
    overlap = functools.partial(Engine, stage=2, overlap=True)
    assert costs.hideable(STUDENT, overlap(bucket=10_000_000)) == 40_000_000 / 66_985_530
    assert costs.hideable(STUDENT, overlap()) == 0, "one bucket holds all"
    assert costs.hideable(STUDENT, Engine(stage=2, bucket=10_000_000)) == 0
    assert costs.hideable(STUDENT, overlap(bucket=10_000_000, flat=True)) == 0


def test_a_ring_is_as_fast_as_its_slowest_link():
    cluster = Cluster(8, 2, flops=1e12, link=400e9, network=50e9)
    assert (cluster.ranks, cluster.ring) == (16, 50e9)
    assert cluster.of(8).ring == 400e9
    assert (cluster.of(4).gpus_per_node, cluster.of(4).nodes) == (4, 1)
    assert cluster.of(32).nodes == 4
    assert cluster.of(12) is None, "no whole nodes"


SMALL = Job(BertConfig(1000, 64, 4, 2, 256, max_position_embeddings=128),
            BertConfig(1000, 64, 2, 2, 256, max_position_embeddings=128, type_vocab_size=0),
            Engine(flat=True), Tokens.of([100]), batch=8, micro=4)  # fmt: skip


def test_a_step_by_hand():
    """8 sequences of 100 tokens on 2 GPUs of 5 GFLOP/s, 1 MB/s between them.

    A layer: 8 x 64^2 + 4 x 64 x 256 + 4 x 64 x 100 = 123,904 a token; the head 2 x 64^2 + 2 x 64 x 1000 = 136,192.
    Teacher 631,808, student 384,000, a step 1,783,808 a token, 400 tokens a GPU: 142.7 ms. Student's parameters:
    embeddings 1128 x 64 + 128, 2 layers of 49,984, head 5,288: 177,576. Gradients 355,152 bytes, weights 177,576.
    """
    assert costs.parameters(SMALL.student) == 177_576
    cluster = Cluster(2, 1, flops=5e9, link=1e6, network=1.0)
    step = scaling.step(SMALL, cluster)
    assert (step.micro, step.accumulation, step.hidden) == (4, 1, 0)
    assert step.compute == pytest.approx(400 * 1_783_808 / 5e9)
    assert (step.gradients, step.weights) == pytest.approx((0.355152, 0.177576))
    assert step.efficiency == pytest.approx(0.14270464 / (0.14270464 + 0.532728))
    # Backward: 2 (2 x 123,904 + 8,192) = 512,000 FLOPs a token; as long as 0.355152 s: 3,468 tokens.
    assert scaling.hiding_tokens(SMALL, cluster) == pytest.approx(0.355152 * 5e9 / 512_000)


@pytest.mark.parametrize("engine", [Engine(flat=True), Engine(stage=2, overlap=True, bucket=10_000)])
@pytest.mark.parametrize("flops", [1e9, 1e12])
def test_tokens_for_an_efficiency_reach_it(engine, flops):
    cluster = Cluster(8, 4, flops=flops, link=1e8, network=1e7)
    one = Job(SMALL.teacher, SMALL.student, engine, Tokens.of([1]), batch=1, micro=1)
    tokens = round(scaling.tokens_for(one, cluster, 0.9))
    job = Job(one.teacher, one.student, engine, one.sequence, batch=32 * tokens, micro=tokens)
    assert tokens > 100
    assert scaling.step(job, cluster).efficiency == pytest.approx(0.9, rel=1e-3)


def test_the_most_gpus_are_found_among_all_that_divide_the_batch():
    cluster = Cluster(8, 1, flops=1e12, link=450e9, network=1e9)
    job = Job(BertConfig(), STUDENT, Engine(flat=True), Tokens.of([127]), batch=96, micro=8)
    reached = {n: scaling.step(job, cluster.of(n)).efficiency for n in (1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 96)}
    for efficiency in (0.5, 0.9, 0.999):
        expected = max(n for n, found in reached.items() if found >= efficiency)
        assert scaling.most_gpus(job, cluster, efficiency) == expected
    assert reached[1] == 1.0
    assert scaling.step(job, Cluster(5, 1, 1e12, 1e9, 1e9)) is None, "5 does not divide 96"


# --- against the modules ---


def batch(lengths: list[int], vocabulary: int) -> Batch:
    """Random tokens, a sixth of them masked."""
    random, ends = np.random.default_rng(0), np.cumsum([0, *lengths])
    total = int(ends[-1])
    places = np.sort(random.choice(total, total // 6, replace=False))
    return Batch(
        input_ids=torch.from_numpy(random.integers(5, vocabulary, total)),
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        cu_seqlens=torch.from_numpy(ends.astype(np.int32)), max_seqlen=max(lengths),
        masked_positions=torch.from_numpy(places), labels=torch.from_numpy(random.integers(5, vocabulary, places.size)),
        step_tokens=total, step_masked=places.size,
    )  # fmt: skip


def distiller(dtype: torch.dtype = torch.float32, **objective: Any) -> Distiller:
    """A pair without dropout."""
    teacher = BertConfig(640, 128, 4, 2, 384)
    student = BertConfig(640, 128, 2, 2, 384, type_vocab_size=0)
    models = [DilBertForMaskedLM(config.without_dropout()).to(dtype) for config in (teacher, student)]
    return Distiller(models[1].train(), models[0], Objective(**objective))


def test_flops_are_those_that_torch_counts(monkeypatch):
    """By the plain formulas torch's counter sees every product. They attend over all pairs of tokens, so each sequence
    is a micro-batch of its own."""
    module, lengths = distiller(), [17, 80, 128]
    with chosen_kernels(monkeypatch, "reference"), FlopCounterMode(display=False) as counter:
        for length in lengths:
            module(batch([length], 640))[0].backward()
    expected = costs.step_flops(module.teacher.config, module.student.config, Tokens.of(lengths))
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.fixture
def torch_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention by torch's operation, as on GPUs: it keeps no scores, and its products are its own affair."""
    monkeypatch.setattr(attention, "form", lambda *_: "per sequence", raising=False)


@pytest.mark.parametrize("restricted", [False, True])
def test_flops_of_packed_sequences_and_chunks_are_the_same(restricted, torch_attention):
    """The counter knows neither an addition in place nor attention on CPUs: it is told of the one; the other is left
    out on both sides."""
    module, lengths = distiller(restrict_ce_to_mask=restricted), [17, 80, 128, 33, 12]
    packed, aten = batch(lengths, 640), torch.ops.aten
    product = functools.partial(flop_registry[aten.addmm])
    product._get_raw = True  # it takes the tensors' shapes itself
    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: product}) as counter:
        module(packed)[0].backward()
    counts = counter.get_flop_counts()["Global"]
    found = sum(counts.get(operation, 0) for operation in (aten.mm, aten.addmm, aten.addmm_))
    tokens = Tokens(sum(lengths), squares=0, rows=packed.labels.numel() if restricted else sum(lengths))
    expected = costs.step_flops(module.teacher.config, module.student.config, tokens)
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("dtype", "element"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activations_are_those_that_autograd_keeps(dtype, element, torch_attention):
    """The formula is that of separate operations; kernels that join some of them keep less. Three tensors of T x d are
    where autograd's hooks don't see them: the head's output, its gradient, and the teacher's head."""
    module, lengths = distiller(dtype), [100, 80, 128]
    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.teacher.parameters())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = module(batch(lengths, 640))
    found = sum(storage.nbytes() for storage in kept.values()) + 3 * 308 * 128 * element
    expected = costs.activation_bytes(module.student.config, Engine(element=element), sum(lengths), masks=0)
    assert 0.8 * expected < found < 1.02 * expected
    assert torch.isfinite(loss)


# --- against jobs ---


def counted(argv: list[str]) -> tuple[int, str, list[tuple[str, int, int]]]:
    """`train_dilbert.py` in this rank: exit code, output, and messages of its collectives: name, elements, bytes."""
    import torch.distributed as dist

    messages: list[tuple[str, int, int]] = []
    for name in ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather",
                 "all_to_all_single"):  # fmt: skip
        real = getattr(dist, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
            whole = max(tensors, key=torch.Tensor.numel)  # of gathering: what all ranks have together
            messages.append((_name, whole.numel(), whole.numel() * whole.element_size()))
            return _real(*args, **options)

        setattr(dist, name, call)
    return *train(argv), messages


class Jobs:
    """Real jobs, each run once."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.models = make_models(folder / "models", **WIDE)
        self.student = BertConfig.read(self.models[1])
        self.known: dict[str, tuple[Path, list[tuple[str, int, int]], Engine]] = {}

    def run(self, ranks: int, **config: Any) -> tuple[Path, list[tuple[str, int, int]], Engine]:
        """The run's checkpoint, the messages of rank 0, and what `launch.plan` reads out of the JSON."""
        key = json.dumps([ranks, config])
        if key not in self.known:
            self.known[key] = self._run(ranks, config)
        return self.known[key]

    def _run(self, ranks: int, config: dict[str, Any]) -> tuple[Path, list[tuple[str, int, int]], Engine]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        path = config_file(folder / "c.json", micro=MICRO, batch=BATCH, **config)
        argv = flags(path, self.data, self.models, folder / "run", "--max-steps", str(STEPS), "--warmup-steps", "1")
        results = run_ranks(ranks, counted, argv)
        assert [code for code, *_ in results] == [0] * ranks, results[0][1]
        done = folder / "run" / "checkpoints" / checkpoint.tag(STEPS)
        return done, results[0][2], costs.engine(ds_config.load(path, "cpu"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, dataset_folder: Path) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), dataset_folder)


KINDS = [
    {"stage": 0}, {"stage": 1}, {"stage": 2}, {"stage": 1, "precision": "bf16"},
    {"stage": 1, "precision": "bf16", **BF16}, {"stage": 2, "precision": "bf16", **BF16},
    {"stage": 2, "precision": "bf16", **BF16, "communication_data_type": "fp32"},
]  # fmt: skip


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_messages_of_two_ranks(config, jobs):
    """What DeepSpeed really sends in a step: gradients all-reduced, at stage 2 once a micro-batch; weights gathered;
    and a few bytes of norms, flags and meters. A ring of two sends half of a message to scatter or gather it."""
    _, messages, engine = jobs.run(2, **config)
    accumulation = BATCH // MICRO // 2
    found = Counter()
    for name, _, size in messages:
        found[name] += size / STEPS
    assert found.keys() <= {"all_reduce", "all_gather_into_tensor"}
    expected = costs.traffic(costs.parameters(jobs.student), engine, 2, accumulation)
    assert 2 * 0.5 * found["all_reduce"] == pytest.approx(expected.gradients, rel=0.001)
    assert 0.5 * found["all_gather_into_tensor"] == pytest.approx(expected.weights, rel=0.001)


def test_buckets_leave_before_the_last_gradient_is_there(jobs):
    """With the default size all gradients are one message, so that nothing can overlap; with a smaller one, the layers'
    leave first, and the last message is the embeddings'."""
    embeddings = jobs.student.vocab_size * jobs.student.hidden_size
    for zero, early in (({"stage": 2}, 0), ({"stage": 2, "overlap_comm": True, "reduce_bucket_size": 100_000}, 1)):
        _, messages, engine = jobs.run(2, zero_optimization=zero)
        sizes = [elements for name, elements, _ in messages if name == "all_reduce" and elements > 1000]
        step = sizes[: len(sizes) // (2 * STEPS)]
        assert sum(step) == costs.parameters(jobs.student)
        assert step[-1] >= embeddings, "the tied embedding is there last"
        share = sum(step[:-1]) / sum(step)
        assert (share > 0) == early
        assert costs.hideable(jobs.student, engine) == pytest.approx(share, abs=0.15)


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_bytes_of_a_checkpoint(config, jobs):
    for ranks in (1, 2) if config["stage"] else (1,):
        path, _, engine = jobs.run(ranks, **config)
        found = sum(file.stat().st_size for file in path.iterdir())
        expected = costs.checkpoint_bytes(costs.parameters(jobs.student), engine)
        assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("config", KINDS[1:], ids=str)
def test_optimizer_of_each_rank(config, jobs):
    """A rank of two holds half of what one rank alone does."""
    for ranks in (1, 2):
        path, _, engine = jobs.run(ranks, **config)
        expected = costs.optimizer_bytes(costs.parameters(jobs.student), engine, ranks)
        shards = sorted(path.glob("*_optim_states.pt"))
        assert len(shards) == ranks
        for shard in shards:
            content = torch.load(shard, weights_only=False)["optimizer_state_dict"]  # made by this test
            states = content["base_optimizer_state"]["state"].values()
            tensors = [*content["single_partition_of_fp32_groups"], *(x for state in states for x in state.values())]
            assert sum(x.nbytes for x in tensors) == pytest.approx(expected, rel=0.001)


def test_parameters_are_the_models(jobs):
    for folder in jobs.models:
        model = DilBertForMaskedLM.from_pretrained(folder)
        assert costs.parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_a_dataset(dataset, dataset_folder):
    found = plan.corpus(Text(data=dataset_folder), 0)
    lengths = dataset.lengths(np.arange(len(dataset))).tolist()
    assert (found.tokens, found.squares) == (sum(lengths), sum(n * n for n in lengths))
    assert found.sequences == len(lengths)
    files = [path for prefix in dataset.shards for path in dataset_folder.glob(f"{prefix.prefix.name}.*")]
    assert len(files) == 6
    size = sum(path.stat().st_size for path in files)
    assert found.bytes == pytest.approx(size, rel=0.01)
    assert costs.dataset_bytes(found.tokens, found.sequences, 2) == pytest.approx(size, rel=0.02)


def test_ids_of_large_vocabularies_have_four_bytes():
    small, large = (plan.corpus(Text(tokens=1e6), size) for size in (30_522, 119_547))
    assert large.bytes - small.bytes == 2e6


# --- the command ---


def write(folder: Path, config: BertConfig) -> str:
    """A model's folder that holds nothing else."""
    folder.mkdir(parents=True)
    config.write(folder)
    return str(folder)


def small_plan(tmp_path: Path, precision: str = "bf16", stage: int = 1, vocabulary: int = 1000, **recipe: Any) -> str:
    """SMALL on 2 GPUs of 0.01 TFLOP/s at 50 %, 1 MB/s between them, 8 million tokens in an epoch, sums in fp32."""
    for name, shape in (("teacher", SMALL.teacher), ("student", SMALL.student)):
        recipe[f"{name}_config"] = write(tmp_path / name, replace(shape, vocab_size=vocabulary))
    config = config_file(tmp_path / "c.json", stage, batch=8, micro=4, precision=precision, **BF16)
    hardware = Hardware(gpus_per_node=2, peak_tflops=0.01, mfu=0.5, link_gbps=0.008)
    whole = Recipe(deepspeed_config=config, batch=8, micro_batch=4, **recipe)
    return plan.plan(Text(tokens=8e6, mean_length=100), hardware, whole, Retention())


def rows(text: str) -> list[str]:
    """Its lines, with one space between words."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_small_plan_says_what_is_worked_out_by_hand(tmp_path):
    """See test_a_step_by_hand; 3 epochs of 80,000 sequences are 30,000 steps of 0.675433 s: 5.63 h."""
    lines = rows(small_plan(tmp_path))
    for expected in (
        "8,000,000 tokens in 80,000 sequences of 100.0 in the mean, 3 epoch(s)",
        "8 sequences a step = 4 x 1 accumulation x 2 GPU(s) | bf16, ZeRO stage 1",
        "student backward 0.8 2 x forward", "in all 1.8", "compute 142.70 ms FLOPs of a GPU's tokens / (peak x MFU)",
        "gradients 355.15 ms 0.00 of them behind the backward pass", "tokens/s 1,184", "hours 5.63 30,000 steps",
        "GPU hours 11.26 x 2", "student 0.36 MB 177,576 parameters", "weights 0.2 MB (n - 1) / n: an all-gather",
        "2 1 400 4 x 1 142.70 532.73 675.43 21.1% 1,184",
    ):  # fmt: skip
        assert any(line.startswith(expected) for line in lines), f"{expected!r} is not in\n" + "\n".join(lines)
    assert any("tokens to hide behind 3,468" in line for line in lines)


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),
    [
        ("fp32", 0, ["optimizer 1.42 MB 8 bytes a parameter", "checkpoint 2.13 MB 4 + 8 bytes a parameter",
                     "weights 0.0 MB whole on every rank"]),
        ("bf16", 1, ["optimizer 1.07 MB 12 bytes a parameter / 2", "checkpoint 2.49 MB 2 + 12 bytes a parameter",
                     "weights 0.2 MB (n - 1) / n: an all-gather"]),
        ("bf16", 2, ["optimizer 1.07 MB 12 bytes a parameter / 2", "checkpoint 2.49 MB 2 + 12 bytes a parameter",
                     "weights 0.2 MB (n - 1) / n: an all-gather"]),
    ],
)  # fmt: skip
def test_the_words_beside_a_figure_give_it(precision, stage, expected, tmp_path):
    """177,576 parameters on 2 GPUs: x 8 = 1.42 MB, x 12 = 2.13 MB, x 12 / 2 = 1.07 MB, x 14 = 2.49 MB."""
    lines = rows(small_plan(tmp_path, precision, stage))
    assert set(expected) <= set(lines), lines


def test_the_words_beside_the_size_of_a_dataset_give_it(dataset_folder, tmp_path):
    """8,000,000 tokens of 2 or 4 bytes, and 20 for each of 80,000 sequences: 17.6 and 33.6 MB."""
    assert "dataset 17.60 MB 2 bytes a token, and the index" in rows(small_plan(tmp_path / "a", vocabulary=65_499))
    assert "dataset 33.60 MB 4 bytes a token, and the index" in rows(small_plan(tmp_path / "b", vocabulary=65_500))
    assert plan.corpus(Text(data=dataset_folder), 119_547).item == 2, "the dataset's own, whatever the models know"


@pytest.mark.parametrize(("stage", "precision", "reason"), [(0, "fp32", "stage 0"), (1, "bf16", "bf16 at stage 1")])
def test_why_no_gradient_hides(stage, precision, reason, tmp_path):
    config = config_file(tmp_path / "c.json", stage, precision=precision, **BF16,
                         zero_optimization={"stage": stage, "overlap_comm": True})  # fmt: skip
    job = replace(SMALL, engine=costs.engine(ds_config.load(config, "cpu")))
    first, *_ = plan_report.limit_rows(job, Cluster(2, 1, flops=1e12, link=1e9, network=1e9))
    assert first == ("can hide", "0%", f"of the gradients: {reason} reduces them after the backward pass")


@pytest.mark.parametrize(
    ("overlap", "figure", "words"),
    [(False, "10.00 MB", "reduce_bucket_size"), (True, "20.00 MB", "2 x reduce_bucket_size")],
)
def test_buckets_with_overlap_are_two(overlap, figure, words):
    """Of 5,000,000 gradients in 16 bit."""
    cluster = Cluster(2, 1, flops=1e12, link=1e9, network=1e9)
    job = replace(SMALL, engine=Engine(stage=2, overlap=overlap, bucket=5_000_000))
    lines = plan_report.memory_rows(job, cluster, scaling.step(job, cluster), chunk=100, capacity=80)
    assert ("reduction buffers", figure, words) in lines


def test_a_student_is_that_of_the_teacher_where_nothing_is_said(tmp_path):
    """As `model.extract` makes it: half of the layers, no token types, all else the teacher's."""
    teacher = BertConfig(1000, 64, 5, 2, 256, max_position_embeddings=128)
    student = BertConfig(1000, 64, 3, 2, 256, max_position_embeddings=128, type_vocab_size=0,
                         attention_output_dropout=0.0)  # fmt: skip
    assert plan.shapes(Recipe(teacher_config=write(tmp_path / "teacher", teacher))) == (teacher, student)
    other = write(tmp_path / "student", SMALL.student)
    assert plan.shapes(Recipe(student_config=other))[1].num_hidden_layers == 2
    assert plan.shapes(Recipe()) == (BertConfig(), STUDENT)


def test_a_model_is_a_file_a_folder_or_a_name_on_the_hub(tmp_path, monkeypatch):
    """A folder of that name comes first, and nothing but config.json is fetched."""
    here, there = BertConfig(num_hidden_layers=3), BertConfig(num_hidden_layers=4)
    write(tmp_path / "hub" / "some" / "teacher", there)
    (tmp_path / "hub" / "some" / "teacher" / "model.safetensors").write_text("large")
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "hub") as address:
        fetched = functools.partial(huggingface_hub.snapshot_download, endpoint=address, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
        assert plan.shape("some/teacher") == there
    assert [path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")] == ["config.json"]
    write(tmp_path / "some" / "teacher", here)
    (tmp_path / "teacher.json").write_bytes((tmp_path / "some" / "teacher" / "config.json").read_bytes())
    for name in ("some/teacher", "some/teacher/config.json", str(tmp_path / "some" / "teacher"), "teacher.json"):
        assert plan.shape(name) == here, name


def test_help_says_what_a_model_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", "--help"])
    with pytest.raises(SystemExit):
        plan.main()
    said = " ".join(capsys.readouterr().out.split())
    assert "--teacher-config MODEL config.json, its folder, or a name on the Hugging Face hub" in said
    assert "the same of the student (default: half of the teacher's layers, as `model.extract` takes them)" in said


def test_flags_override_the_json(tmp_path):
    text = small_plan(tmp_path, zero_stage=2)
    assert "ZeRO stage 2" in text
    assert "x 16 bit x 1 micro-batch(es)" in text


PRE_TRAINING = [path for path in sorted((ROOT / "ds_configs").glob("*.json")) if not path.stem.startswith("finetune")]


@pytest.mark.parametrize("path", PRE_TRAINING, ids=lambda path: path.stem)
def test_configurations(path):
    """What each shipped JSON means, as `test_messages_of_two_ranks` measured it."""
    engine = costs.engine(ds_config.load(path, "cuda"))
    assert engine.stage == int(path.stem[4]) if path.stem != "cpu" else engine.stage == 2
    assert engine.element == (4 if path.stem == "cpu" else 2)
    assert engine.wire == (2 if "fp16" in path.stem else 4)
    assert engine.accumulated == (4 if "bf16" in path.stem or path.stem == "cpu" else 2)
    assert engine.flat == (path.stem == "zero1_bf16")
    assert engine.offload == ("offload" in path.stem)
    hardware = Hardware(gpu="A100", peak_tflops=19.5 if path.stem == "cpu" else None)
    recipe = Recipe(deepspeed_config=path, batch=1024, micro_batch=32)
    assert "where it stops scaling" in plan.plan(Text(), hardware, recipe, Retention())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "H10"], "--gpu H10: must be one of V100, T4, A100, H100, H200, B200; did you mean 'H100'?"),
        (["--gpu", "V100"], "--gpu V100: has no bf16; --deepspeed-config ds_configs/zero1_fp16.json"),
        (["--batch", "100"], "train_batch_size 100 is no multiple of train_micro_batch_size_per_gpu 64 x 8 rank(s)"),
        (["--nodes", "3"], "train_batch_size 4096 is no multiple of train_micro_batch_size_per_gpu 64 x 24 rank(s)"),
        (["--zero-stage", "3"], "--zero-stage 3: must be 1 or 2"),
        (["--mfu", "1.5"], "--mfu 1.5: must be a share of the peak, 1 at most"),
        (["--nodes", "0"], "--nodes 0: must be positive"),
        (["--tokens", "-1"], "--tokens -1.0: must be positive"),
        (["--epochs", "inf"], "--epochs inf: must be positive"),
        (["--peak-tflops", "nan"], "--peak-tflops nan: must be positive"),
        (["--data", "X", "--tokens", "5"], "--tokens 5.0: give either this or --data, which knows it"),
        (["--deepspeed-config", "ds_configs/cpu.json"], "--peak-tflops: the table's peaks are those of 16 bit"),
        (["--deepspeed-config", "gone.json"], "--deepspeed-config gone.json: No such file or directory"),
        (["--student-config", "gone/config.json"], "gone/config.json: no such file"),
        (["--student-config", "./gone"], "'./gone': no such folder"),
        (["--teacher-config", "gone"], "'gone' is no folder here, and could not be fetched from the Hugging Face hub"),
        (["--node", "2"], "unknown argument '--node'; did you mean '--nodes'?"),
    ],
)  # fmt: skip
def test_mistakes(words, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "argv", ["plan", *words])
    with pytest.raises(SystemExit) as caught:
        errors.run(plan.main)
    assert caught.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_bucket_is_a_number(tmp_path):
    path = config_file(tmp_path / "c.json", zero_optimization={"stage": 2, "reduce_bucket_size": "big"})
    with pytest.raises(errors.ConfigError, match=r"key 'zero_optimization\.reduce_bucket_size': 'big'"):
        costs.engine(ds_config.load(path, "cpu"))


def test_a_missing_dataset_is_exit_3(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan", "--data", str(tmp_path / "gone")])
    with pytest.raises(SystemExit) as caught:
        errors.run(plan.main)
    assert caught.value.code == 3
    assert "neither a dataset folder nor a prefix" in capsys.readouterr().err


def test_the_command_line(monkeypatch, capsys, dataset_folder):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan", "--data", str(dataset_folder), "--gpus_per_node", "4"])
    plan.main()
    printed = capsys.readouterr().out
    assert f"{Dataset.open(dataset_folder).tokens:,} tokens in " in printed
    assert "x 4 GPU(s)" in printed


def test_tokens_of_a_micro_batch():
    """Sequences of 3, 5 and 2 tokens, then filler of 4 and 6."""
    ends = np.array([0, 3, 8, 10, 14, 20], np.int32)
    assert Tokens.within(ends, 10) == Tokens.of([3, 5, 2])
    assert Tokens.within(ends, 10, rows=2) == Tokens.of([3, 5, 2], rows=2)


def test_peaks_of_gpus_by_the_names_they_give_themselves():
    names = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA A100-SXM4-40GB": 312, "Tesla V100-SXM2-16GB": 125, "Tesla T4": 65}
    assert {name: scaling.peak_tflops(name) for name in names} == names
    assert scaling.peak_tflops("NVIDIA GeForce RTX 4090") is None
