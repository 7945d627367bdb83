"""model.bert: parity with `transformers` on the real sizes and on odd small ones; dropout; initialisation."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import bert, chosen_kernels, distilbert, largest, ours, pack, pad, randomise, real, sequences
from torch import Tensor, nn
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

from model import hf
from model.bert import Embeddings, Encoder, Layer, MaskedLM, activation, sinusoids
from model.config import BertConfig
from model.kernels import attention

REAL_LENGTHS = [37, 1, 12, 20]
ODD = [
    pytest.param(bert, {}, id="bert"),
    pytest.param(bert, {"hidden_size": 30, "num_attention_heads": 5, "intermediate_size": 17, "vocab_size": 61,
                        "max_position_embeddings": 19, "num_hidden_layers": 3, "type_vocab_size": 3}, id="bert-odd"),
    pytest.param(bert, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}, id="bert-gelu_new"),
    pytest.param(bert, {"hidden_act": "relu", "num_attention_heads": 1}, id="bert-relu"),
    pytest.param(distilbert, {}, id="distilbert"),
    pytest.param(distilbert, {"dim": 21, "n_heads": 7, "hidden_dim": 5, "n_layers": 1, "vocab_size": 60,
                              "max_position_embeddings": 19}, id="distilbert-odd"),
    pytest.param(distilbert, {"activation": "gelu_new"}, id="distilbert-gelu_new"),
    pytest.param(distilbert, {"activation": "relu"}, id="distilbert-relu"),
]  # fmt: skip


def outputs(theirs: nn.Module, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Last hidden states and logits of a `transformers` model, at real tokens."""
    found = theirs(**arguments, output_hidden_states=True)
    mask = arguments["attention_mask"]
    return real(found.hidden_states[-1], mask), real(found.logits, mask)


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, MaskedLM]:
    """bert-base or distilbert-base of `transformers` with random weights, and the same of ours.

    Word vectors get the length 1, so that logits (their products with normalised vectors) have unit scale.
    """
    if request.param == "bert":
        cls, config = transformers.BertForMaskedLM, transformers.BertConfig()
    else:
        cls, config = transformers.DistilBertForMaskedLM, transformers.DistilBertConfig()
    config._attn_implementation = "eager"
    theirs = randomise(cls(config), seed=3)
    theirs.get_input_embeddings().weight.data *= 768**-0.5 / config.initializer_range
    assert sum(p.numel() for p in theirs.parameters()) > 66e6
    return theirs, ours(theirs)


@torch.no_grad()
def test_real_size_packed_and_padded(pair: tuple[nn.Module, MaskedLM]) -> None:
    theirs, mine = pair
    rows = sequences(REAL_LENGTHS, vocabulary=30522)
    batch = pad(rows)
    hidden, logits = outputs(theirs, **batch)
    assert 0.9 < logits.std() < 1.1  # the tolerance is absolute, so the scale matters
    packed_hidden = mine.encode(**pack(rows))
    assert largest(packed_hidden - hidden) < 1e-5
    assert largest(mine.logits(packed_hidden) - logits) < 1e-5
    assert largest(real(mine(**batch).logits, batch["attention_mask"]) - logits) < 1e-5


@torch.no_grad()
def test_real_size_packed_is_one_by_one(pair: tuple[nn.Module, MaskedLM]) -> None:
    theirs, mine = pair
    rows = sequences(REAL_LENGTHS, vocabulary=30522)
    packed = mine.logits(mine.encode(**pack(rows)))
    alone = torch.cat([mine.logits(mine.encode(**pack([row]))) for row in rows])
    assert largest(packed - alone) < 1e-5
    assert largest(packed[-20:] - theirs(torch.tensor(rows[-1:])).logits[0]) < 1e-5


@pytest.mark.parametrize(("make", "changes"), ODD)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_small_and_odd_sizes(make: Any, changes: dict[str, Any], kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp64 the comparison is far sharper than rounding allows in fp32."""
    theirs = make(**changes)
    mine = ours(theirs).double()
    rows = sequences([3, 19, 1, 8, 1], vocabulary=theirs.config.vocab_size)
    hidden, logits = outputs(theirs.double(), **pad(rows))
    with chosen_kernels(monkeypatch, kernels):
        found = mine.encode(**pack(rows))
    assert 0.5 < logits.std() < 2
    assert largest(found - hidden) < 1e-11
    assert largest(mine.logits(found) - logits) < 1e-11


def test_token_types() -> None:
    theirs = bert(type_vocab_size=3)
    mine = ours(theirs)
    rows, types = sequences([7, 2, 11]), [[0, 0, 1, 1, 2, 2, 1], [2, 0], [1] * 11]
    hidden, logits = outputs(theirs, **pad(rows), token_type_ids=pad(types)["input_ids"])
    found = mine.encode(**pack(rows), token_types_T=torch.tensor([t for row in types for t in row]))
    assert largest(found - hidden) < 1e-5
    assert largest(mine.logits(found) - logits) < 1e-5
    assert largest(mine.encode(**pack(rows)) - hidden) > 0.1


def test_token_types_say_nothing_to_a_student() -> None:
    mine, rows = ours(distilbert()), sequences([4, 3])
    with_types = mine.encode(**pack(rows), token_types_T=torch.ones(7, dtype=torch.long))
    assert torch.equal(with_types, mine.encode(**pack(rows)))


@pytest.mark.parametrize("lengths", [[1], [24, 1, 1], [1, 2, 24, 5, 1]], ids=str)
def test_every_kernel_gives_the_same_model(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, rows = ours(bert()), sequences(lengths)
    weights = torch.randn(sum(lengths), 53, generator=torch.Generator().manual_seed(0))

    def run(form: Any) -> tuple[Tensor, list[Tensor]]:
        monkeypatch.setattr("model.bert.packed_attention", form)
        logits = mine.logits(mine.encode(**pack(rows)))
        wanted = [p for p in mine.parameters() if p is not mine.embeddings.token_type.weight]
        return logits, list(torch.autograd.grad((logits * weights).sum(), wanted))

    logits, gradients = run(attention.reference)
    for form in (attention.rows, attention.per_sequence, attention.padded):
        other_logits, other_gradients = run(form)
        assert largest(other_logits - logits) < 1e-5
        for found, expected in zip(other_gradients, gradients, strict=True):
            assert largest(found - expected) <= 1e-5 * max(largest(expected), 1.0)


@pytest.mark.parametrize("make", [bert, distilbert])
def test_every_gradient_is_that_of_transformers(make: Any) -> None:
    theirs = make()
    mine, rows = ours(theirs), sequences([5, 9, 1])
    weights = torch.randn(15, 53, generator=torch.Generator().manual_seed(0))
    (outputs(theirs, **pad(rows))[1] * weights).sum().backward()
    (mine.logits(mine.encode(**pack(rows))) * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in mine.named_parameters():
        wanted = torch.cat([expected[key] for key in hf.names_of(name, mine.config.model_type)])
        assert largest(parameter.grad - wanted) < 1e-5 * largest(wanted), name


def test_a_whole_model_never_waits_for_the_device() -> None:
    """Meta tensors have no values: any look at one would raise."""
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in pack(sequences([5, 9])).items()}
    with torch.device("meta"):
        model = MaskedLM(BertConfig(num_hidden_layers=2)).train()
    model.logits(model.encode(**batch)).sum().backward()
    assert model.embeddings.word.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_stays_low_and_near(dtype: torch.dtype) -> None:
    mine, rows = ours(bert()), sequences([5, 9, 1])
    exact = mine.logits(mine.encode(**pack(rows)))
    mine.to(dtype)
    hidden = mine.encode(**pack(rows))
    assert hidden.dtype == dtype
    assert mine.logits(hidden).dtype == dtype
    assert largest(mine.logits(hidden) - exact) < 0.1


# Activations and dropout.


def test_activations_by_their_formulas() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(activation("relu", x), x.clamp(min=0))
    torch.testing.assert_close(activation("gelu", x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    torch.testing.assert_close(activation("gelu_new", x), 0.5 * x * (1 + tanh))


def only(name: str, probability: float) -> BertConfig:
    """A tiny config with one dropout."""
    off = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                     max_position_embeddings=64, initializer_range=0.2).without_dropout()  # fmt: skip
    return dataclasses.replace(off, **{name: probability})


@pytest.mark.parametrize("name", ["hidden_dropout", "attention_dropout", "attention_output_dropout"])
def test_each_dropout_acts_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    model, batch = MaskedLM(only(name, 0.3)), pack(sequences([40, 5], vocabulary=50))
    without = MaskedLM(only(name, 0.0))
    without.load_state_dict(model.state_dict())
    expected = without.train().encode(**batch)
    assert torch.equal(model.eval().encode(**batch), expected)
    model.train()
    torch.manual_seed(1)
    first, second = model.encode(**batch), model.encode(**batch)
    assert largest(first - expected) > 0.1
    assert largest(first - second) > 0.1
    torch.manual_seed(1)
    assert torch.equal(model.encode(**batch), first)


def test_embedding_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    embeddings = Embeddings(only("hidden_dropout", 0.2))
    arguments = torch.arange(50), torch.arange(50)
    exact = embeddings.eval()(*arguments)
    draws = torch.stack([embeddings.train()(*arguments) for _ in range(400)])
    kept = draws != 0
    assert abs(float(kept.float().mean()) - 0.8) < 0.005
    torch.testing.assert_close(draws[kept], (exact / 0.8).expand_as(draws)[kept])
    assert largest(draws.mean(0) - exact) < 5 * 0.5 * largest(exact) / 20  # sqrt(p / (1 - p)) = 0.5, sqrt(400) = 20


def test_where_a_layer_drops() -> None:
    """At probability 1 a block adds nothing to the residual sum, and what is left can be written down."""
    batch = torch.tensor([0, 3], dtype=torch.int32), 3
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    norm = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()

    layer = Layer(only("attention_output_dropout", 1.0)).train()
    feed_forward = layer.output(F.gelu(layer.intermediate(norm)))
    expected = F.layer_norm(norm + feed_forward, (16,), eps=1e-12)
    torch.testing.assert_close(layer(x, *batch), expected, rtol=0, atol=1e-5)

    layer = Layer(only("hidden_dropout", 1.0)).train()
    for norms in (layer.attention_norm, layer.output_norm):
        norms.weight.data.fill_(2.0)
    after_attention = 2.0 * F.layer_norm(x + layer.eval().attention_output(attend(layer, x)), (16,), eps=1e-12)
    expected = 2.0 * F.layer_norm(after_attention, (16,), eps=1e-12)
    torch.testing.assert_close(layer.train()(x, *batch), expected, rtol=0, atol=1e-5)


def attend(layer: Layer, x: Tensor) -> Tensor:
    """Two heads of width 8 over one sequence, by the formula."""
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        heads.append((q[:, head] @ k[:, head].T / math.sqrt(8)).softmax(-1) @ v[:, head])
    return torch.cat(heads, dim=-1)


# Initialisation.


@pytest.mark.parametrize(
    ("theirs", "config"),
    [
        (transformers.BertForMaskedLM, transformers.BertConfig),
        (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig),
    ],
    ids=["bert", "distilbert"],
)
def test_initialisation_is_that_of_transformers(theirs: type, config: type) -> None:
    torch.manual_seed(0)
    hf_config = config(
        vocab_size=300, hidden_size=64, num_attention_heads=4, intermediate_size=128, num_hidden_layers=2,
        max_position_embeddings=128, initializer_range=0.05, pad_token_id=7,
    )  # fmt: skip
    expected = theirs(hf_config).state_dict()
    model = MaskedLM(BertConfig.from_dict(hf_config.to_dict()))
    for name, value in hf.dump_state(model, model.config).items():
        assert value.shape == expected[name].shape
        if value.unique().numel() <= 1:  # zeros, ones
            assert torch.equal(value, expected[name]), name
        else:
            few = 4 / math.sqrt(value.numel())
            assert abs(float(value.std() / expected[name].std()) - 1) < few, name
            assert abs(float(value.mean())) < 0.05 * few, name
    assert not model.embeddings.word.weight[7].any()
    assert model.embeddings.word.weight[0].any()


def test_seed_decides_the_weights() -> None:
    def make(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in MaskedLM(only("hidden_dropout", 0.0)).parameters()])

    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


@pytest.mark.parametrize(("positions", "width"), [(512, 768), (19, 30)])
def test_sinusoids_are_those_of_transformers(positions: int, width: int) -> None:
    expected = torch.empty(positions, width)
    create_sinusoidal_embeddings(positions, width, expected)
    assert largest(sinusoids(positions, width) - expected) < 1e-6


def test_sinusoids_by_hand() -> None:
    """Width 4: frequencies 1 and 10000^(-2/4) = 0.01; an odd width ends with a sine."""
    expected = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(3)]
    torch.testing.assert_close(sinusoids(3, 4), torch.tensor(expected))
    assert sinusoids(3, 5).shape == (3, 5)


def test_sinusoidal_positions_start_as_sines() -> None:
    config = dataclasses.replace(only("hidden_dropout", 0.0), sinusoidal_positions=True)
    for cls in (Encoder, MaskedLM):
        assert torch.equal(cls(config).embeddings.position.weight, sinusoids(64, 16))
