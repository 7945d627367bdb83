"""model.heads: logits and gradients of `transformers`' own classes; what is loaded, new or refused is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, distilbert, largest, pack, pad, real, sequences, with_head
from torch import Tensor, nn

from launch.errors import CheckpointError, ConfigError
from model import heads, hf
from model.config import BertConfig, read_values
from model.heads import SequenceClassifier, SpanPredictor, TaskHead, TaskModel

COLOURS = ("red", "green", "blue")
NAMED = {"id2label": dict(enumerate(COLOURS)), "label2id": {name: i for i, name in enumerate(COLOURS)}}
HEADS = {
    "classification": TaskHead("classification", COLOURS),
    "regression": TaskHead("regression"),
    "span": TaskHead("span"),
}
CLASSES = {
    ("bert", "classification"): transformers.BertForSequenceClassification,
    ("bert", "regression"): transformers.BertForSequenceClassification,
    ("bert", "span"): transformers.BertForQuestionAnswering,
    ("distilbert", "classification"): transformers.DistilBertForSequenceClassification,
    ("distilbert", "regression"): transformers.DistilBertForSequenceClassification,
    ("distilbert", "span"): transformers.DistilBertForQuestionAnswering,
}
LENGTHS = [9, 1, 24, 5]

every_head = pytest.mark.parametrize("kind", HEADS)
both = pytest.mark.parametrize("family", ["bert", "distilbert"])


def tuned(family: str, kind: str, **changes: Any) -> nn.Module:
    """A tiny model of `transformers` with random weights in its head, too."""
    labels = {"classification": NAMED, "regression": {"num_labels": 1}, "span": {}}[kind]
    make = bert if family == "bert" else distilbert
    return make(cls=CLASSES[family, kind], **labels, **changes)


def pre_trained(family: str, folder: Path, **changes: Any) -> nn.Module:
    theirs = bert(**changes) if family == "bert" else distilbert(**changes)
    theirs.save_pretrained(folder)
    return theirs


def inputs(family: str, lengths: list[int] = LENGTHS) -> dict[str, Tensor]:
    batch = pad(sequences(lengths))
    if family == "bert":
        generator = torch.Generator().manual_seed(2)
        batch["token_type_ids"] = torch.randint(2, batch["input_ids"].shape, generator=generator)
    return batch


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of sequences [B, C], or of real tokens [T, 2]."""
    outputs = model(**batch)
    if "logits" in outputs:
        return outputs.logits
    return real(torch.stack([outputs.start_logits, outputs.end_logits], -1), batch["attention_mask"])


# Numbers.


@both
@every_head
def test_logits_and_gradients_are_those_of_transformers(kind: str, family: str) -> None:
    theirs = tuned(family, kind)
    mine, batch = with_head(theirs, HEADS[kind]), inputs(family)
    found, expected = (logits_of(model, batch) for model in (mine, theirs))
    assert found.shape == expected.shape == {"classification": (4, 3), "regression": (4, 1), "span": (39, 2)}[kind]
    assert largest(found - expected) < 1e-5
    directions = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found * directions).sum().backward()
    (expected * directions).sum().backward()
    parameters = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        goal = torch.cat([parameters[key].grad for key in hf.names_of(name, family)])
        assert parameter.grad is not None, name
        assert largest(parameter.grad - goal) <= 1e-5 * max(1.0, largest(goal)), name


@both
@every_head
@torch.no_grad()
def test_a_sequence_does_not_see_its_neighbours(kind: str, family: str) -> None:
    """The same logits alone, packed with others in any order, and padded."""
    model, rows = with_head(tuned(family, kind), HEADS[kind]), sequences(LENGTHS)
    padded = logits_of(model, pad(rows))

    def packed(*numbers: int) -> list[Tensor]:
        arguments = pack([rows[number] for number in numbers])
        logits = model.logits(model.encode(**arguments), arguments["cu_seqlens"])
        return list(logits.split([LENGTHS[number] for number in numbers]) if kind == "span" else logits)

    together = packed(0, 1, 2, 3)
    for number, (alone,) in enumerate(packed(number) for number in range(4)):
        assert largest(alone - together[number]) < 1e-5
        assert largest(alone - packed(3, number, 2)[1]) < 1e-5
    assert largest(torch.cat([x.reshape(-1, padded.shape[1]) for x in together]) - padded) < 1e-5


def test_token_types_matter_to_a_bert_and_are_nothing_to_a_student() -> None:
    batch, student = inputs("bert"), with_head(tuned("distilbert", "span"), HEADS["span"])
    without = {name: value for name, value in batch.items() if name != "token_type_ids"}
    assert torch.equal(logits_of(student, batch), logits_of(student, without))
    teacher = with_head(tuned("bert", "span"), HEADS["span"])
    assert largest(logits_of(teacher, batch) - logits_of(teacher, without)) > 0.1


@pytest.mark.parametrize(("family", "kind", "changes", "expected"), [
    ("bert", "classification", {"hidden_dropout_prob": 0.3}, 0.3),
    ("bert", "classification", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.4}, 0.4),
    ("bert", "regression", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}, 0.0),
    ("bert", "span", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.4}, 0.0),
    ("distilbert", "classification", {"dropout": 0.3}, 0.2),
    ("distilbert", "regression", {"seq_classif_dropout": 0.5, "qa_dropout": 0.6}, 0.5),
    ("distilbert", "span", {}, 0.1),
    ("distilbert", "span", {"seq_classif_dropout": 0.5, "qa_dropout": 0.6}, 0.6),
])  # fmt: skip
def test_dropout_is_what_config_json_says(
    family: str, kind: str, changes: dict[str, float], expected: float, tmp_path: Path
) -> None:
    """Of a model that was fine-tuned, and of one that is going to be; and it is written as it was read."""
    theirs = tuned(family, kind, **changes)
    theirs.save_pretrained(tmp_path / "tuned")
    pre_trained(family, tmp_path / "pre-trained", **changes)
    for name in ("tuned", "pre-trained"):
        model = heads.load(tmp_path / name, HEADS[kind].kind, HEADS[kind].labels)
        assert model.dropout.p == expected
        model.save_pretrained(tmp_path / f"{name}-again")
        again = transformers.AutoConfig.from_pretrained(tmp_path / f"{name}-again")
        key = {"bert": "classifier_dropout", "distilbert": "qa_dropout" if kind == "span" else "seq_classif_dropout"}
        if (family, kind) != ("bert", "span"):
            assert getattr(again, key[family]) == getattr(theirs.config, key[family])
        assert heads.load(tmp_path / f"{name}-again", HEADS[kind].kind, HEADS[kind].labels).dropout.p == expected


@pytest.mark.parametrize(("family", "kind"), [key for key in CLASSES if key != ("bert", "span")])
def test_what_drops_is_what_the_last_layer_sees(family: str, kind: str) -> None:
    """In training mode, with every dropout but the head's off: logits are the bias where all is dropped."""
    model = with_head(tuned(family, kind), HEADS[kind]).train()
    model.dropout.p = 1.0
    last = model.qa_outputs if kind == "span" else model.classifier
    assert torch.equal(logits_of(model, pad(sequences([5, 3]))).unique(dim=0), last.bias[None])


# Folders, out and in.


@both
@every_head
def test_transformers_loads_what_is_saved(kind: str, family: str, tmp_path: Path) -> None:
    theirs = tuned(family, kind)
    mine = with_head(theirs, HEADS[kind])
    mine.save_pretrained(tmp_path)
    auto = "QuestionAnswering" if kind == "span" else "SequenceClassification"
    again, info = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(again) is CLASSES[family, kind]
    assert again.config.architectures == [CLASSES[family, kind].__name__]
    assert again.config.num_labels == {"classification": 3, "regression": 1, "span": 2}[kind]
    if kind == "classification":
        assert (again.config.id2label, again.config.label2id) == (NAMED["id2label"], NAMED["label2id"])
    problems = {"classification": "single_label_classification", "regression": "regression", "span": None}
    assert again.config.problem_type == problems[kind]
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@both
@every_head
def test_a_model_that_knows_the_task(kind: str, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, batch = tuned(family, kind), inputs(family)
    theirs.save_pretrained(tmp_path)
    for known in (True, False):
        mine = heads.load(tmp_path, HEADS[kind].kind, HEADS[kind].labels, known=known)
        assert type(mine) is (SpanPredictor if kind == "span" else SequenceClassifier)
        assert not mine.training
        assert {p.dtype for p in mine.parameters()} == {torch.float32}
        assert largest(logits_of(mine, batch) - logits_of(theirs, batch)) < 1e-5
    assert not caplog.messages


@both
@every_head
def test_our_own_folders_are_known(kind: str, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_head(tuned(family, kind), HEADS[kind]).save_pretrained(tmp_path)
    mine = heads.load(tmp_path, HEADS[kind].kind, HEADS[kind].labels, known=True)
    assert (mine.task.kind, mine.task.labels) == (HEADS[kind].kind, HEADS[kind].labels)
    assert not caplog.messages


# What is new.


NEW = {
    ("bert", "classification"): {"bert.pooler.dense", "classifier"},
    ("bert", "regression"): {"bert.pooler.dense", "classifier"},
    ("bert", "span"): {"qa_outputs"},
    ("distilbert", "classification"): {"pre_classifier", "classifier"},
    ("distilbert", "regression"): {"pre_classifier", "classifier"},
    ("distilbert", "span"): {"qa_outputs"},
}


def new_ones(message: str) -> set[str]:
    """Modules that a log line calls new."""
    assert "new, with random weights: " in message
    names = message.partition("new, with random weights: ")[2].split(", ")
    modules = {name.rpartition(".")[0] for name in names}
    assert sorted(names) == sorted(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))
    return modules


@both
@every_head
def test_a_new_head(kind: str, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a pre-trained model: said in one line, and nothing is said of the masked-language-model head."""
    theirs = pre_trained(family, tmp_path)
    torch.manual_seed(5)
    mine = heads.load(tmp_path, HEADS[kind].kind, HEADS[kind].labels)
    (message,) = caplog.messages
    assert message.startswith(str(tmp_path))
    assert new_ones(message) == NEW[family, kind]
    expected, found = theirs.state_dict(), hf.dump_state(mine, mine.config)
    assert {name.rpartition(".")[0] for name in found.keys() - expected.keys()} == NEW[family, kind]
    for name, value in found.items():
        if name in expected:
            assert torch.equal(value, expected[name]), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:  # N(0, 0.2): 40 to 400 numbers
            assert 0.7 * 0.2 < float(value.std()) < 1.3 * 0.2, name
    torch.manual_seed(5)
    again = heads.load(tmp_path, HEADS[kind].kind, HEADS[kind].labels)
    assert all(torch.equal(x, y) for x, y in zip(mine.parameters(), again.parameters(), strict=True))
    different = heads.load(tmp_path, HEADS[kind].kind, HEADS[kind].labels)
    assert not all(torch.equal(x, y) for x, y in zip(mine.parameters(), different.parameters(), strict=True))


@pytest.mark.parametrize("cls", [transformers.BertModel, transformers.BertForPreTraining])
def test_the_pooler_of_pre_training_is_kept(cls: type, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = bert(cls=cls)
    theirs.save_pretrained(tmp_path)
    mine = heads.load(tmp_path, "classification", COLOURS)
    assert isinstance(mine, SequenceClassifier)
    assert torch.equal(mine.pooler.weight, dict(theirs.named_modules())[
        "pooler.dense" if cls is transformers.BertModel else "bert.pooler.dense"
    ].weight)  # fmt: skip
    (message,) = caplog.messages
    assert new_ones(message) == {"classifier"}


@both
def test_the_pooler_is_nothing_to_a_span(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A BERT's is left over from pre-training; a student's was trained on a task, and is named."""
    theirs = bert(cls=transformers.BertModel) if family == "bert" else tuned("distilbert", "classification")
    theirs.save_pretrained(tmp_path)
    heads.load(tmp_path, "span")
    assert new_ones(caplog.messages[0]) == {"qa_outputs"}
    unused = [f"{tmp_path}: not used: pre_classifier.bias, pre_classifier.weight"] if family == "distilbert" else []
    assert caplog.messages[1:] == unused


@pytest.mark.parametrize("labels", [("yes", "no"), ("low", "middle", "high")])
def test_a_model_of_another_task_gives_all_but_its_last_layer(
    labels: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the original recipes start RTE from MNLI."""
    theirs = tuned("distilbert", "classification")
    theirs.save_pretrained(tmp_path)
    mine = heads.load(tmp_path, "classification", labels)
    assert isinstance(mine, SequenceClassifier)
    (message,) = caplog.messages
    assert new_ones(message) == {"classifier"}
    assert mine.classifier.weight.shape == (len(labels), 20)
    assert not mine.classifier.bias.any()
    assert torch.equal(mine.pooler.weight, theirs.pre_classifier.weight)
    assert mine.task.labels == labels


def test_a_multiple_choice_head_is_no_regression(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bert(cls=transformers.BertForMultipleChoice).save_pretrained(tmp_path)
    heads.load(tmp_path, "regression")
    assert new_ones(caplog.messages[0]) == {"classifier"}
    with pytest.raises(ConfigError, match="BertForMultipleChoice; needed is one for regression"):
        heads.load(tmp_path, "regression", known=True)


# What does not know the task is refused.


def refused(folder: Path, task: TaskHead) -> str:
    with pytest.raises(ConfigError) as caught:
        heads.load(folder, task.kind, task.labels, known=True)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


@both
def test_another_kind_is_refused(family: str, tmp_path: Path) -> None:
    for kind in HEADS:
        tuned(family, kind).save_pretrained(tmp_path / kind)
    colours = HEADS["classification"]
    message = refused(tmp_path / "span", colours)
    assert "is a model for question answering; needed is one for classification (red, green, blue)" in message
    assert message.endswith("give one that was fine-tuned on this task")
    assert "is a model for classification (red, green, blue); needed is one for question answering" in refused(
        tmp_path / "classification", HEADS["span"]
    )
    assert "is a model for regression; needed is one for classification" in refused(tmp_path / "regression", colours)
    assert "needed is one for regression: give" in refused(tmp_path / "classification", HEADS["regression"])


@both
def test_a_model_without_a_head_is_refused(family: str, tmp_path: Path) -> None:
    theirs = pre_trained(family, tmp_path)
    assert f"is a {type(theirs).__name__}; needed is one for question answering" in refused(tmp_path, HEADS["span"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    assert "names no architecture; needed is one for question answering" in refused(tmp_path, HEADS["span"])


@pytest.mark.parametrize("labels", [("red", "green"), ("red", "green", "grey")])
def test_other_labels_are_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    tuned("bert", "classification").save_pretrained(tmp_path)
    message = refused(tmp_path, TaskHead("classification", labels))
    assert f"(red, green, blue); needed is one for classification ({', '.join(labels)})" in message


def test_several_labels_at_once_are_refused(tmp_path: Path) -> None:
    tuned("bert", "classification", problem_type="multi_label_classification").save_pretrained(tmp_path)
    assert "is a BertForSequenceClassification; needed" in refused(tmp_path, HEADS["classification"])


def test_case_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NEGATIVE and POSITIVE on the hub, negative and positive in the data; what is saved has the data's names."""
    tuned("bert", "classification").save_pretrained(tmp_path)
    mine = heads.load(tmp_path, "classification", ("RED", "Green", "blue"), known=True)
    assert mine.task.labels == ("RED", "Green", "blue")
    assert not caplog.messages


@both
def test_labels_in_another_order_are_taken_by_their_names(family: str, tmp_path: Path, caplog) -> None:
    """As published models of MNLI have them; a copy has the data's order."""
    theirs = tuned(family, "classification")
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(5, 40, (3, 7))
    mine = heads.load(tmp_path, "classification", ("Blue", "red", "green"), known=True)
    assert caplog.messages == [
        f"{tmp_path}: its labels are in another order; taken by their names: {', '.join(COLOURS)}"
    ]
    torch.testing.assert_close(mine(ids).logits, theirs.eval()(ids).logits[:, [2, 0, 1]], atol=1e-5, rtol=1e-4)
    mine.save_pretrained(tmp_path / "copy")
    assert list(TaskHead.of(read_values(tmp_path / "copy")).labels) == ["Blue", "red", "green"]


def test_labels_without_names_are_taken_in_order_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LABEL_0, LABEL_1, or nothing at all, which `transformers` writes for two labels."""
    for classes, labels in ((3, COLOURS), (2, ("no", "yes"))):
        folder = tmp_path / str(classes)
        bert(cls=transformers.BertForSequenceClassification, num_labels=classes).save_pretrained(folder)
        mine = heads.load(folder, "classification", labels, known=True)
        assert mine.task.labels == labels
        assert caplog.messages == [
            f"{folder}: its labels have no names; taken for these, in this order: {', '.join(labels)}"
        ]
        caplog.clear()
        mine.save_pretrained(folder)
        heads.load(folder, "classification", labels, known=True)
        assert not caplog.messages
    assert "(no, yes); needed is one for classification (red, green, blue)" in refused(folder, HEADS["classification"])


@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_encoder_is_never_new(known: bool, tmp_path: Path) -> None:
    theirs = tuned("distilbert", "classification")
    theirs.config.architectures = ["DistilBertForSequenceClassification"]
    theirs.config.save_pretrained(tmp_path)
    gone = ["distilbert.transformer.layer.1.ffn.lin1.bias", "pre_classifier.weight"]
    state = {name: value for name, value in theirs.state_dict().items() if name not in gone}
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = gone if known else gone[:1]
    with pytest.raises(CheckpointError, match=f"{len(expected)} weights are missing: {', '.join(expected)}$"):
        heads.load(tmp_path, "classification", COLOURS, known=known)


def test_a_head_of_another_shape_than_its_labels(tmp_path: Path) -> None:
    tuned("bert", "classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"classifier\.weight has shape \(3, 20\).*\(2, 20\)"):
        heads.load(tmp_path, "classification", ("a", "b"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"id2label": {"zero": "a", "one": "b"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "a"}}, "classification (a, a)"),
        ({"id2label": None, "num_labels": "two"}, "id2label"),
        ({"classifier_dropout": "0.1"}, "dropout of a task head, '0.1'"),
        ({"classifier_dropout": 1.5}, "dropout of a task head, 1.5"),
    ],
)
def test_a_config_that_makes_no_sense(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tuned("bert", "classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError) as caught:
        heads.load(tmp_path, "classification", COLOURS)
    assert str(caught.value).startswith(str(tmp_path))
    assert words in str(caught.value)


# The head as data.


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classification", ()), ("classification", ("a",)), ("classification", ("a", "a")), ("regression", ("a", "b")),
        ("span", ("a",)), ("tagging", ()),
    ],
)  # fmt: skip
def test_what_makes_no_head(kind: Any, labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="question answering" if kind == "span" else kind):
        TaskHead(kind, labels)


@pytest.mark.parametrize("head", [*HEADS.values(), TaskHead("regression", ("score",), 0.3)])
def test_a_record_of_a_run(head: TaskHead) -> None:
    """Through JSON, and equal to what a later start says."""
    record = json.loads(json.dumps(head.to_dict()))
    assert record == head.to_dict()
    assert TaskHead.from_dict(record) == head
    assert TaskHead.from_dict({"kind": head.kind, "labels": list(head.labels)}).labels == head.labels


@both
@every_head
def test_a_head_survives_config_json(kind: str, family: str) -> None:
    config = BertConfig.from_dict((bert if family == "bert" else distilbert)().config.to_dict())
    head = HEADS[kind]
    found = TaskHead.of(head.to_config(config))
    assert found is not None
    assert found.order(head) == head.order(found) == list(range(max(1, len(head.labels))))
    assert found.labels == head.labels


def test_a_random_model_with_a_head() -> None:
    config = BertConfig.from_dict(distilbert().config.to_dict())
    models: list[TaskModel] = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(heads.build(config, HEADS["classification"]))
    assert all(torch.equal(x, y) for x, y in zip(*(model.parameters() for model in models), strict=True))
