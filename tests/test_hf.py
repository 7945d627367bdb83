"""model.hf: names and files of Hugging Face, in and out, bit for bit; and what is wrong with a file is said."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import bert, distilbert, ours
from torch import Tensor, nn

from data.tokenizer import load_tokenizer, tokenizer_hash
from launch import hub
from launch.errors import CheckpointError, ConfigError
from model import hf
from model.config import BertConfig
from model.pretrained import DilBertForMaskedLM, DilBertModel

both = pytest.mark.parametrize("make", [bert, distilbert])


def config_of(theirs: nn.Module) -> BertConfig:
    return BertConfig.from_dict(theirs.config.to_dict())


def folder_with(path: Path, theirs: nn.Module, state: Mapping[str, Any] | None = None) -> Path:
    """A model folder whose `pytorch_model.bin` holds `state`, by default the model's."""
    theirs.config.save_pretrained(path)
    torch.save(dict(theirs.state_dict() if state is None else state), path / "pytorch_model.bin")
    return path


def assert_same_weights(mine: nn.Module, theirs: nn.Module) -> None:
    """All parameters of `theirs`, under their names, bit for bit."""
    expected = dict(theirs.named_parameters())
    found = hf.dump_state(mine, mine.config)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


# Round trips.


@both
def test_transformers_to_ours_to_transformers(make: Any, tmp_path: Path) -> None:
    theirs = make()
    theirs.save_pretrained(tmp_path / "theirs")
    mine = DilBertForMaskedLM.from_pretrained(tmp_path / "theirs")
    assert_same_weights(mine, theirs)
    mine.save_pretrained(tmp_path / "ours")
    again, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(again) is type(theirs)
    found = again.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(found[name], value), name
    assert config_of(again) == config_of(theirs)


@both
def test_state_in_state_out(make: Any) -> None:
    theirs = make()
    mine = DilBertForMaskedLM(config_of(theirs))
    assert hf.load_state(mine, mine.config, theirs.state_dict(), "x") == hf.Report((), ())
    assert_same_weights(mine, theirs)


def test_names_by_hand() -> None:
    assert hf.names_of("layers.13.qkv.bias", "bert") == (
        "bert.encoder.layer.13.attention.self.query.bias",
        "bert.encoder.layer.13.attention.self.key.bias",
        "bert.encoder.layer.13.attention.self.value.bias",
    )
    assert hf.names_of("layers.0.output_norm.weight", "distilbert") == (
        "distilbert.transformer.layer.0.output_layer_norm.weight",
    )
    assert hf.names_of("head.bias", "bert") == ("cls.predictions.bias",)
    assert hf.names_of("pooler.weight", "bert") == ("bert.pooler.dense.weight",)
    assert hf.names_of("pooler.bias", "distilbert") == ("pre_classifier.bias",)
    for family in ("bert", "distilbert"):
        assert hf.names_of("classifier.weight", family) == ("classifier.weight",)
        assert hf.names_of("qa_outputs.bias", family) == ("qa_outputs.bias",)


@pytest.mark.parametrize(
    ("make", "cls", "expected"),
    [
        (bert, transformers.BertForPreTraining, ()),
        (distilbert, transformers.DistilBertForMaskedLM, ()),
        (bert, transformers.BertForTokenClassification, ("classifier.bias", "classifier.weight")),
        (distilbert, transformers.DistilBertForSequenceClassification,
         ("classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight")),
        (distilbert, transformers.DistilBertForQuestionAnswering, ("qa_outputs.bias", "qa_outputs.weight")),
    ],
)  # fmt: skip
def test_what_an_encoder_leaves_of_other_tasks(make: Any, cls: type, expected: tuple[str, ...]) -> None:
    """What pre-training alone uses is nobody's loss."""
    theirs = make(cls=cls)
    mine = DilBertModel(config_of(theirs))
    report = hf.load_state(mine, mine.config, theirs.state_dict(), "x")
    assert not report.missing
    assert report.of_other_tasks == expected


def test_what_is_written(tmp_path: Path) -> None:
    """One fp32 file that others may read; no tensor twice; the weights of a model in 16 bit, too."""
    before = os.umask(0o022)
    try:
        model = DilBertForMaskedLM(config_of(distilbert())).bfloat16()
        model.save_pretrained(tmp_path / "new" / "folder")
    finally:
        os.umask(before)
    weights = tmp_path / "new" / "folder" / "model.safetensors"
    assert sorted(os.listdir(weights.parent)) == ["config.json", "model.safetensors"]
    assert stat.S_IMODE(weights.stat().st_mode) == 0o644
    with safetensors.safe_open(weights, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "vocab_projector.weight" not in file.keys()  # noqa: SIM118
    state = safetensors.torch.load_file(weights)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.parameters())


# The tokenizer beside it.


BERTS, STUDENTS = BertConfig(max_position_embeddings=80), BertConfig(max_position_embeddings=80, type_vocab_size=0)
TWO = ["input_ids", "attention_mask"]
SHORT, SHORT_TWO = {"model_max_length": 80}, {"model_max_length": 80, "model_input_names": TWO}


@pytest.mark.parametrize(
    ("config", "before", "changes"),
    [
        (BERTS, None, SHORT),
        (BERTS, {"model_max_length": 512, "name": "größer"}, SHORT),
        (BERTS, {"model_max_length": None}, SHORT),
        (BERTS, {"max_len": 20}, {"model_max_length": 20}),
        (BERTS, {"model_input_names": TWO, "model_max_length": 80}, {"model_input_names": [*TWO, "token_type_ids"]}),
        (STUDENTS, None, SHORT_TWO),
        (STUDENTS, {"model_max_length": 10**30, "tokenizer_class": "BertTokenizer"}, SHORT_TWO),
        (STUDENTS, {"model_input_names": ["input_ids"], "do_lower_case": False}, SHORT_TWO),
        (STUDENTS, {"model_max_length": 64, "mask_token": "[MASK]"}, {"model_input_names": TWO}),
    ],
)
def test_settings_of_a_tokenizer_beside_a_model(config, before, changes, tokenizer_folder, tmp_path) -> None:
    source = Path(shutil.copytree(tokenizer_folder, tmp_path / "source"))
    if before is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(before), encoding="utf-8")
    (tmp_path / "out").mkdir()
    hf.write_tokenizer(tmp_path / "out", source, config)
    text = (tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8")
    after = (before or {}) | changes
    assert text == json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_settings_that_fit_stay_as_they_are(tokenizer_folder, tmp_path) -> None:
    for number, (config, settings) in enumerate(
        ((BERTS, '{"model_max_length":  80}'), (STUDENTS, json.dumps(SHORT_TWO)))
    ):
        source = Path(shutil.copytree(tokenizer_folder, tmp_path / f"source{number}"))
        (source / "tokenizer_config.json").write_text(settings)
        (tmp_path / f"out{number}").mkdir()
        hf.write_tokenizer(tmp_path / f"out{number}", source, config)
        assert (tmp_path / f"out{number}" / "tokenizer_config.json").read_text() == settings


@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json", "all"])
@pytest.mark.parametrize("lower", [True, False])
def test_a_tokenizer_beside_a_model_gives_the_same_ids(files, lower, tokenizer_folder, tmp_path) -> None:
    """As the copy of its files does there, whichever they are; and no token types."""
    if files == "vocab.txt":
        source = tokenizer_folder
    else:
        source = tmp_path / "source"
        transformers.BertTokenizer.from_pretrained(tokenizer_folder, do_lower_case=lower).save_pretrained(source)
        if files == "tokenizer.json":
            (source / "tokenizer_config.json").unlink()
    student = ours(distilbert())
    for name in ("copy", "out"):
        student.save_pretrained(tmp_path / name)
    hub.copy_tokenizer(source, tmp_path / "copy")
    hf.write_tokenizer(tmp_path / "out", source, student.config)
    copy, found = (load_tokenizer(str(tmp_path / name)) for name in ("copy", "out"))
    assert tokenizer_hash(found) == tokenizer_hash(copy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert set(tokenizer("The cat", "in the house")) == {"input_ids", "attention_mask"}
    assert len(tokenizer("the cat " * 300, truncation=True)["input_ids"]) == student.config.max_position_embeddings


def test_what_is_no_tokenizer_gets_no_settings(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    hf.write_tokenizer(tmp_path / "out", tmp_path, STUDENTS)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_damaged_settings_are_named(content, tokenizer_folder, tmp_path) -> None:
    source = Path(shutil.copytree(tokenizer_folder, tmp_path / "source"))
    (source / "tokenizer_config.json").write_text(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"source/tokenizer_config\.json: "):
        hf.write_tokenizer(tmp_path / "out", source, STUDENTS)


def test_saving_over_shards(tmp_path: Path) -> None:
    """Old shards and their index may lie beside; what was saved last is what loads, here and in `transformers`."""
    distilbert(seed=1).save_pretrained(tmp_path, max_shard_size="10KB")
    mine = ours(distilbert(seed=2))
    mine.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(DilBertForMaskedLM.from_pretrained(tmp_path).layers[0].qkv.weight, mine.layers[0].qkv.weight)
    assert_same_weights(mine, transformers.AutoModelForMaskedLM.from_pretrained(tmp_path))


def test_sinusoidal_positions_that_have_learnt(tmp_path: Path) -> None:
    """The flag is about the initialisation; what is in the file stays."""
    theirs = distilbert(sinusoidal_pos_embds=True)
    ours(theirs).save_pretrained(tmp_path)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.config.sinusoidal_pos_embds
    assert_same_weights(DilBertForMaskedLM.from_pretrained(tmp_path), theirs)
    assert_same_weights(ours(theirs), again)


# Forms of files.


def as_one_file(theirs: nn.Module, path: Path) -> None:
    theirs.save_pretrained(path)
    assert (path / "model.safetensors").exists()


def as_shards(theirs: nn.Module, path: Path) -> None:
    theirs.save_pretrained(path, max_shard_size="10KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2


def as_bin(theirs: nn.Module, path: Path) -> None:
    folder_with(path, theirs)


def as_bin_shards(theirs: nn.Module, path: Path) -> None:
    theirs.config.save_pretrained(path)
    state = theirs.state_dict()
    halves = {
        "pytorch_model-00001-of-00002.bin": list(state)[::2],
        "pytorch_model-00002-of-00002.bin": list(state)[1::2],
    }
    for file, names in halves.items():
        torch.save({name: state[name] for name in names}, path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def as_16_bit(theirs: nn.Module, path: Path) -> None:
    for parameter in theirs.parameters():  # so that nothing is lost below
        parameter.data = parameter.data.half().float()
    folder_with(path, theirs, {name: value.half() for name, value in theirs.state_dict().items()})


def as_safetensors_beside_a_damaged_bin(theirs: nn.Module, path: Path) -> None:
    theirs.save_pretrained(path)
    (path / "pytorch_model.bin").write_bytes(b"damaged")


def under_old_names(theirs: nn.Module, path: Path) -> None:
    """As the first checkpoints of BERT: gamma and beta, the decoder's copy, a buffer of positions."""
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
             for name, value in theirs.state_dict().items()}  # fmt: skip
    prefix = theirs.base_model_prefix
    folder_with(path, theirs, state | {f"{prefix}.embeddings.position_ids": torch.arange(24)[None]})


def with_tied_weights_under_the_copys_name(theirs: nn.Module, path: Path) -> None:
    state = theirs.state_dict()
    for copy, original in theirs._tied_weights_keys.items():
        assert copy in state
        del state[original]
    folder_with(path, theirs, state)


@both
@pytest.mark.parametrize(
    "write",
    [
        as_one_file,
        as_shards,
        as_bin,
        as_bin_shards,
        as_16_bit,
        as_safetensors_beside_a_damaged_bin,
        under_old_names,
        with_tied_weights_under_the_copys_name,
    ],
)
def test_forms_of_files(
    write: Callable[[nn.Module, Path], None], make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = make()
    write(theirs, tmp_path)
    mine = DilBertForMaskedLM.from_pretrained(tmp_path)
    assert_same_weights(mine, theirs)
    assert not caplog.messages
    assert {p.dtype for p in mine.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "cls", "unused"),
    [
        (bert, transformers.BertModel, {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
        (distilbert, transformers.DistilBertModel, set()),
        (distilbert, transformers.DistilBertForQuestionAnswering, {"qa_outputs.weight", "qa_outputs.bias"}),
        (bert, transformers.BertForPreTraining,
         {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight",
          "cls.seq_relationship.bias", "cls.predictions.bias", "cls.predictions.transform.dense.weight",
          "cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.weight",
          "cls.predictions.transform.LayerNorm.bias"}),
    ],
    ids=["bert-base-model", "distilbert-base-model", "question-answering", "pre-training"],
)  # fmt: skip
def test_encoder_out_of_other_models(
    make: Any, cls: type, unused: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Base models are saved without the prefix; what has no place is named."""
    theirs = make(cls=cls)
    theirs.save_pretrained(tmp_path)
    mine = DilBertModel.from_pretrained(tmp_path)
    prefix = theirs.base_model_prefix
    expected = {name if name.startswith(prefix) else f"{prefix}.{name}": p for name, p in theirs.named_parameters()}
    for name, value in hf.dump_state(mine, mine.config).items():
        assert torch.equal(value, expected[name]), name
    named = set(caplog.messages[0].partition("not used: ")[2].split(", ")) if caplog.messages else set()
    assert named == unused


def test_the_head_out_of_a_pre_training_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = bert(cls=transformers.BertForPreTraining)
    theirs.save_pretrained(tmp_path)
    mine = DilBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(mine.head.transform.weight, theirs.cls.predictions.transform.dense.weight)
    assert torch.equal(mine.head.bias, theirs.cls.predictions.bias)
    (message,) = caplog.messages
    assert "cls.seq_relationship.weight" in message
    assert "cls.predictions" not in message


# What is wrong with a file is said.


def load_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        DilBertForMaskedLM.from_pretrained(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("names", [
    ["bert.encoder.layer.2.attention.self.key.bias"],
    ["bert.embeddings.position_embeddings.weight", "cls.predictions.transform.dense.bias"],
])  # fmt: skip
def test_missing_weights_are_named(names: list[str], tmp_path: Path) -> None:
    theirs = bert()
    state = {name: value for name, value in theirs.state_dict().items() if name not in names}
    message = load_error(folder_with(tmp_path, theirs, state))
    assert f"{len(names)} weights are missing: {', '.join(names)}" in message


def test_a_base_model_lacks_the_head(tmp_path: Path) -> None:
    distilbert(cls=transformers.DistilBertModel).save_pretrained(tmp_path)
    for name in ("vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"):
        assert name in load_error(tmp_path)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    assert "distilbert.transformer.layer.0.attention.q_lin.weight" in load_error(
        folder_with(tmp_path, distilbert(), bert().state_dict())
    )


@pytest.mark.parametrize(("name", "shape"), [
    ("bert.embeddings.word_embeddings.weight", (60, 20)),
    ("bert.embeddings.position_embeddings.weight", (23, 20)),
    ("bert.encoder.layer.0.attention.self.query.weight", (20, 21)),
    ("bert.encoder.layer.1.attention.self.key.bias", ()),
    ("bert.encoder.layer.3.output.dense.weight", (28, 20)),
    ("cls.predictions.transform.LayerNorm.weight", (1,)),
])  # fmt: skip
def test_another_shape_is_named(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    theirs = bert()
    state = theirs.state_dict() | {name: torch.zeros(shape)}
    state.pop("cls.predictions.decoder.weight")
    message = load_error(folder_with(tmp_path, theirs, state))
    assert f"{name} has shape {shape}" in message
    assert str(tuple(theirs.state_dict()[name].shape)) in message


def test_query_and_key_of_other_shapes_do_not_make_up_for_each_other(tmp_path: Path) -> None:
    theirs, name = bert(), "bert.encoder.layer.0.attention.self.{}.weight"
    state = theirs.state_dict() | {name.format("query"): torch.zeros(19, 20), name.format("key"): torch.zeros(21, 20)}
    assert f"{name.format('query')} has shape (19, 20)" in load_error(folder_with(tmp_path, theirs, state))


@both
def test_an_untied_decoder(make: Any, tmp_path: Path) -> None:
    theirs = make()
    (copy, original), *_ = theirs._tied_weights_keys.items()
    state = theirs.state_dict()
    message = load_error(folder_with(tmp_path, theirs, state | {copy: state[copy] + 1}))
    assert f"{copy} differs from {original}" in message


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated(file: str, keep: float, tmp_path: Path) -> None:
    theirs = distilbert()
    if file == "model.safetensors":
        theirs.save_pretrained(tmp_path)
    else:
        folder_with(tmp_path, theirs)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert file in load_error(tmp_path)


def test_a_shard_is_missing(tmp_path: Path) -> None:
    as_shards(distilbert(), tmp_path)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert gone.name in load_error(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../other.bin"}}', '{"weight_map": {"a": "/b"}}'],
)
def test_a_damaged_index(index: str, tmp_path: Path) -> None:
    as_shards(distilbert(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in load_error(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    distilbert().config.save_pretrained(tmp_path)
    assert not hf.has_weights(tmp_path)
    assert "no weights (model.safetensors or pytorch_model.bin)" in load_error(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3, "model": {"a": torch.zeros(1)}}, torch.zeros(3)], ids=type)
def test_a_bin_that_holds_something_else(content: Any, tmp_path: Path) -> None:
    distilbert().config.save_pretrained(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "holds something else than tensors by name" in load_error(tmp_path)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_does_not_run(zipped: bool, tmp_path: Path) -> None:
    theirs = distilbert()
    theirs.config.save_pretrained(tmp_path)
    state: dict[str, Any] = {**theirs.state_dict(), "payload": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = load_error(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "pytorch_model.bin: refused" in message
    assert "weights_only" not in message  # torch's message says how to run it all the same
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # so the payload was there to run


# The hub.


def test_weights_in_shards_are_added_up(tmp_path: Path) -> None:
    for name, size in (("model-00001-of-2.safetensors", 7), ("model-00002-of-2.safetensors", 5), ("other.bin", 100)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert hf.weight_bytes(tmp_path) == 12


def hub_of(folder: Path, asked: list[tuple[str, tuple[str, ...]]]) -> Callable[..., str]:
    """A stand-in for the hub that has one model, and notes what it is asked for."""

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, tuple(allow_patterns)))
        return str(folder)

    return download


def test_bin_files_are_fetched_only_where_there_is_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub_of(tmp_path, asked))
    assert hf.fetch("someone/model") == tmp_path
    assert [any("bin" in pattern for pattern in patterns) for _, patterns in asked] == [False, True]
    asked.clear()
    (tmp_path / "model.safetensors").touch()
    assert hf.fetch("someone/model") == tmp_path
    assert [any("bin" in pattern for pattern in patterns) for _, patterns in asked] == [False]


def test_a_folder_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert hf.fetch(str(tmp_path)) == tmp_path
    distilbert().save_pretrained(tmp_path)
    assert hf.has_weights(hf.fetch(str(tmp_path)))


def test_tensors_are_copied(tmp_path: Path) -> None:
    """Training the model must not write into the state that it was loaded from."""
    theirs = distilbert()
    state: dict[str, Tensor] = theirs.state_dict()
    mine = DilBertForMaskedLM(config_of(theirs))
    hf.load_state(mine, mine.config, state, "x")
    before = state["vocab_transform.weight"].clone()
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.zero_()
    assert torch.equal(state["vocab_transform.weight"], before)
    dumped = hf.dump_state(mine, mine.config)
    with torch.no_grad():
        mine.head.transform.weight.fill_(1.0)
    assert not dumped["vocab_transform.weight"].any()
