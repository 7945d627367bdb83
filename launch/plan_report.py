"""The tables of `launch.plan`: name, value, and what the value comes from."""

from collections.abc import Iterable, Iterator, Sequence

from launch import costs, scaling
from launch.retention import Retention
from launch.scaling import Cluster, Job, Step

Row = tuple[str, str, str]


def flops_rows(job: Job) -> Iterator[Row]:
    """MFLOP of a token."""
    one = job.sequence * (1 / job.sequence.count)
    forward = [costs.forward_flops(shape, one) / 1e6 for shape in (job.teacher, job.student)]
    formula = "N (8 d^2 + 4 d f) + 4 d N sum(L^2) / sum(L) + 2 d^2 + 2 d V"
    yield "teacher forward", f"{forward[0]:.1f}", formula
    yield "student forward", f"{forward[1]:.1f}", "the same"
    yield "student backward", f"{2 * forward[1]:.1f}", "2 x forward"
    yield "in all", f"{costs.step_flops(job.teacher, job.student, one) / 1e6:.1f}", ""


def time_rows(job: Job, cluster: Cluster, step: Step, steps: int) -> Iterator[Row]:
    """A step and the run."""
    seconds = step.seconds * steps
    yield "compute", f"{1e3 * step.compute:.2f} ms", "FLOPs of a GPU's tokens / (peak x MFU)"
    yield "gradients", f"{1e3 * step.gradients:.2f} ms", f"{1e3 * step.hidden:.2f} of them behind the backward pass"
    gathered = "gathered after the update; nothing hides them" if job.engine.stage else "whole on every rank"
    yield "weights", f"{1e3 * step.weights:.2f} ms", gathered
    yield "step", f"{1e3 * step.seconds:.2f} ms", f"efficiency {step.efficiency:.1%} = compute / step"
    yield "tokens/s", f"{job.batch * job.sequence.count / step.seconds:,.0f}", ""
    yield "hours", f"{seconds / 3600:,.2f}", f"{steps:,.0f} steps"
    yield "GPU hours", f"{seconds / 3600 * cluster.ranks:,.2f}", f"x {cluster.ranks}"


def memory_rows(job: Job, cluster: Cluster, step: Step, chunk: int, capacity: float) -> Iterator[Row]:
    """Memory of a GPU by part, their sum, and whether they fit: 5 % are left to CUDA and to gaps.

    Args:
        chunk: rows of logits at once.
        capacity: GB of the card.
    """
    tokens = step.micro * job.sequence.count
    parts = costs.memory(job.teacher, job.student, job.engine, cluster.ranks, tokens, chunk)
    shared = f" / {cluster.ranks}" if job.engine.stage else ""
    bucket = "2 x reduce_bucket_size" if job.engine.overlap else "reduce_bucket_size"
    why = {
        "teacher": f"{costs.parameters(job.teacher):,} parameters",
        "student": f"{costs.parameters(job.student):,} parameters",
        "their sums": "over micro-batches" + (", 1 / ranks of them" if job.engine.stage == 2 else ""),
        "reduction buffers": bucket if not job.engine.flat and job.engine.stage else "",
        "optimizer": "on the host" if job.engine.offload else f"{job.engine.adam} bytes a parameter{shared}",
        "activations": f"{tokens:,.0f} tokens of a micro-batch",
        "logits": f"{min(tokens, chunk):,.0f} rows of both models",
    }
    for name, part in parts.items():
        yield name, size(part), why.get(name, "")
    total = sum(parts.values())
    verdict = "fits" if total < 0.95e9 * capacity else "TOO MUCH: a smaller --micro-batch"
    yield "in all", size(total), f"at most, of {capacity:.0f} GB, without CUDA's own: {verdict}"


def message_rows(job: Job, cluster: Cluster, step: Step) -> Iterator[Row]:
    """MB that each rank sends in a step, and how long they take over each kind of link."""
    sent = costs.traffic(costs.parameters(job.student), job.engine, cluster.ranks, step.accumulation)
    rounds = f" x {step.accumulation} micro-batch(es)" if job.engine.stage == 2 else ""
    bits = 8 * job.engine.wire
    yield "gradients", f"{sent.gradients / 1e6:,.1f} MB", f"2 (n - 1) / n x {bits} bit{rounds}: an all-reduce"
    gathered = "(n - 1) / n: an all-gather" if job.engine.stage else "whole on every rank"
    yield "weights", f"{sent.weights / 1e6:,.1f} MB", gathered
    total = sent.gradients + sent.weights
    yield "within a node", f"{1e3 * total / cluster.link:.2f} ms", f"at {cluster.link * 8e-9:,.0f} Gbit/s a GPU"
    between = f"at {cluster.network * 8e-9:,.0f} Gbit/s a node" if cluster.nodes > 1 else "one node"
    yield "between nodes", f"{1e3 * total / cluster.network * (cluster.nodes > 1):.2f} ms", between


def limit_rows(job: Job, cluster: Cluster) -> Iterator[Row]:
    """Where adding GPUs stops paying."""
    yield "can hide", f"{costs.hideable(job.student, job.engine):.0%}", f"of the gradients: {_why(job)}"
    hiding = scaling.hiding_tokens(job, cluster)
    yield (
        "tokens to hide behind",
        f"{hiding:,.0f}",
        "a GPU and micro-batch: their backward pass is as long as the reduction",
    )
    for efficiency in (0.5, 0.9):
        tokens = scaling.tokens_for(job, cluster, efficiency)
        yield f"tokens for {efficiency:.0%}", f"{tokens:,.0f}", f"a GPU and step, on {cluster.ranks} GPUs"
        most = scaling.most_gpus(job, cluster, efficiency)
        yield f"most GPUs at {efficiency:.0%}", f"{most or 0:,}", f"with {job.batch:,} sequences a step"


def _why(job: Job) -> str:
    """Why so much of the gradients can hide."""
    if job.engine.flat or not job.engine.stage:
        return f"{'bf16 at stage 1' if job.engine.stage else 'stage 0'} reduces them after the backward pass"
    if not job.engine.overlap:
        return "overlap_comm is off"
    if not costs.hideable(job.student, job.engine):
        return f"one bucket of {job.engine.bucket:,} (reduce_bucket_size) waits for the last"
    return "all but the embeddings', which are there last"


def disk_rows(job: Job, dataset: float, item: float, steps: int, interval: int, keep: Retention) -> Iterator[Row]:
    """Dataset and checkpoints.

    Args:
        dataset: its bytes.
        item: bytes of an id.
        interval: steps between checkpoints.
    """
    one = costs.checkpoint_bytes(costs.parameters(job.student), job.engine)
    kept = keep.most(0, steps, interval)
    yield "dataset", size(dataset), f"{item:g} bytes a token, and the index"
    yield "checkpoint", size(one), f"{job.engine.element} + {job.engine.adam} bytes a parameter"
    yield "in all", size(dataset + kept * one), f"with {kept} checkpoint(s) at most, one each {interval:,} steps"


def scaling_cells(job: Job, cluster: Cluster) -> Iterator[tuple[str, ...]]:
    """The same batch on 1, 2, 4 ... 1024 GPUs."""
    yield "GPUs", "nodes", "tokens/GPU", "micro x acc.", "compute ms", "exposed ms", "step ms", "efficiency", "tokens/s"
    counts = sorted({1 << power for power in range(11)} | {cluster.ranks})
    for other, step in scaling.steps(job, cluster, counts):
        tokens = job.batch * job.sequence.count
        times = (f"{1e3 * seconds:,.2f}" for seconds in (step.compute, step.exposed, step.seconds))
        yield (f"{other.ranks:,}", f"{other.nodes:,}", f"{tokens / other.ranks:,.0f}",
               f"{step.micro} x {step.accumulation}", *times, f"{step.efficiency:.1%}",
               f"{tokens / step.seconds:,.0f}")  # fmt: skip


def size(bytes_: float) -> str:
    """In GB, or MB where that is little."""
    return f"{bytes_ / 1e9:,.2f} GB" if bytes_ >= 5e7 else f"{bytes_ / 1e6:,.2f} MB"


def section(title: str, rows: Iterable[Row]) -> list[str]:
    """A head, and a line for each row: name, value, what it comes from."""
    return ["", title, *(f"  {name:<22}{value:>16}   {why}".rstrip() for name, value, why in rows)]


def columns(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Right-aligned."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in cells]
