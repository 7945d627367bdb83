"""From FLOPs and bytes to seconds: how long a step takes on so many GPUs, and where adding more stops paying.

A model of the first order: computing at a constant rate (peak x MFU), messages at the rate of the slowest link of a
ring, no latency. It knows nothing of kernels that get worse with small micro-batches, of stragglers, of the optimizer's
step, or of loading data.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launch.costs import Engine, Shape, Tokens, backward_flops, hideable, parameters, step_flops, traffic


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its maker's data sheet (the SXM form where there is one).

    Attributes:
        tflops: dense 16-bit tensor cores, peak.
        memory: GB (10^9 bytes).
        link: GB/s to its neighbours in the node, one direction: half of what the data sheets state.
        bf16: else fp16 only.
    """

    tflops: float
    memory: float
    link: float
    bf16: bool = True


GPUS = {
    "V100": Gpu(125, 32, 150, bf16=False),
    "T4": Gpu(65, 16, 16, bf16=False),  # PCIe 3 x16
    "A100": Gpu(312, 80, 300),
    "H100": Gpu(989, 80, 450),
    "H200": Gpu(989, 141, 450),
    "B200": Gpu(2250, 180, 900),
}


def peak_tflops(name: str) -> float | None:
    """Of a GPU by the name that it gives itself; None: it is not in the table."""
    return next((gpu.tflops for kind, gpu in GPUS.items() if kind in name.replace("-", " ").split()), None)


@dataclass(frozen=True)
class Cluster:
    """GPUs and what is between them.

    Attributes:
        flops: that a GPU sustains: peak x MFU, FLOP/s.
        link: bytes/s of a GPU within its node, one direction.
        network: bytes/s of a whole node, one direction.
    """

    gpus_per_node: int
    nodes: int
    flops: float
    link: float
    network: float

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.gpus_per_node * self.nodes

    @property
    def ring(self) -> float:
        """Bytes/s of a ring through all GPUs, node by node: those of its slowest link, which passes all that a rank
        sends. (NCCL opens several rings, so that together they fill a node's network.)"""
        return self.link if self.nodes == 1 else min(self.link, self.network)

    def of(self, ranks: int) -> "Cluster | None":
        """The same with another number of GPUs: a part of one node, or whole nodes; None: neither."""
        if ranks > self.gpus_per_node and ranks % self.gpus_per_node:
            return None
        here = min(ranks, self.gpus_per_node)
        return Cluster(here, ranks // here, self.flops, self.link, self.network)


@dataclass(frozen=True)
class Job:
    """What is trained, and how.

    Attributes:
        sequence: mean of a sequence's tokens, squares and rows.
        batch: sequences of a step, on all ranks.
        micro: sequences that a GPU takes at once, where its share of the batch is that large.
    """

    teacher: Shape
    student: Shape
    engine: Engine
    sequence: Tokens
    batch: int
    micro: int

    def cut(self, ranks: int) -> tuple[int, int] | None:
        """Sequences of a micro-batch, and how many of them a rank takes in a step; None: the batch has no such cut."""
        share, rest = divmod(self.batch, ranks)
        if rest or not share:
            return None
        micro = next(size for size in range(min(self.micro, share), 0, -1) if share % size == 0)
        return micro, share // micro


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and of its parts.

    Attributes:
        compute: of a GPU, at its sustained rate.
        gradients, weights: of their messages.
        hidden: of the gradients', while the backward pass runs.
    """

    micro: int
    accumulation: int
    compute: float
    gradients: float
    weights: float
    hidden: float

    @property
    def exposed(self) -> float:
        """Seconds in which a GPU waits for messages: gradients + weights - hidden."""
        return self.gradients + self.weights - self.hidden

    @property
    def seconds(self) -> float:
        """compute + exposed."""
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        """compute / (compute + exposed): 1 is as fast as that many GPUs alone."""
        return self.compute / self.seconds


def step(job: Job, cluster: Cluster) -> Step | None:
    """A step of the job; None: the batch can't be cut so. Hidden: of each reduction at most the share that can be, and
    at most as long as the backward pass of a micro-batch takes."""
    cut = job.cut(cluster.ranks)
    if cut is None:
        return None
    micro, accumulation = cut
    tokens = job.sequence * micro
    sent = traffic(parameters(job.student), job.engine, cluster.ranks, accumulation)
    gradients, backward = sent.gradients / cluster.ring, backward_flops(job.student, tokens) / cluster.flops
    return Step(
        micro=micro,
        accumulation=accumulation,
        compute=accumulation * step_flops(job.teacher, job.student, tokens) / cluster.flops,
        gradients=gradients,
        weights=sent.weights / cluster.ring,
        hidden=min(gradients * hideable(job.student, job.engine), job.engine.rounds(accumulation) * backward),
    )


def steps(job: Job, cluster: Cluster, counts: Iterable[int]) -> Iterator[tuple[Cluster, Step]]:
    """Steps on other numbers of GPUs, those that neither batch nor nodes allow left out."""
    for ranks in counts:
        other = cluster.of(ranks)
        found = step(job, other) if other else None
        if other and found:
            yield other, found


def most_gpus(job: Job, cluster: Cluster, efficiency: float) -> int | None:
    """The largest number of GPUs, of all that divide the batch, with at least this efficiency; None: not even one."""
    small = [ranks for ranks in range(1, math.isqrt(job.batch) + 1) if job.batch % ranks == 0]
    divisors = {*small, *(job.batch // ranks for ranks in small)}
    return max((c.ranks for c, s in steps(job, cluster, divisors) if s.efficiency >= efficiency), default=None)


def hiding_tokens(job: Job, cluster: Cluster) -> float:
    """Tokens of a micro-batch whose backward pass takes as long as reducing the gradients once: with fewer of them the
    reduction can't hide, however it is cut. sent / ring x flops / backward FLOPs a token."""
    seconds = traffic(parameters(job.student), job.engine, cluster.ranks, 1).gradients / cluster.ring
    return seconds * cluster.flops / backward_flops(job.student, job.sequence) * job.sequence.count


def tokens_for(job: Job, cluster: Cluster, efficiency: float) -> float:
    """Tokens a GPU and step, in one micro-batch, for an efficiency e below 1.

    With C and B the seconds of a token in all and in the backward pass, G, W and H those of gradients, weights and what
    can hide, exposed is max(G + W - H, G + W - B T), and T (1 - e) C = e x exposed: the larger T of the two cases.
    """
    sent = traffic(parameters(job.student), job.engine, cluster.ranks, 1)
    G, W = sent.gradients / cluster.ring, sent.weights / cluster.ring
    share = hideable(job.student, job.engine)
    C = step_flops(job.teacher, job.student, job.sequence) / cluster.flops / job.sequence.count
    B = backward_flops(job.student, job.sequence) / cluster.flops / job.sequence.count
    odds = efficiency / (1 - efficiency)
    return max(odds * (G + W - G * share) / C, odds * (G + W) / (C + odds * B))
