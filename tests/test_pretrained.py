"""model.pretrained: models called as users of `transformers` call theirs, with its results; names on the hub."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_models import bert, distilbert, largest, ours, pad, real, sequences
from torch import nn

from data.tokenizer import DilBertTokenizer
from launch import hub
from launch.errors import ConfigError
from model import DilBertForMaskedLM, DilBertModel
from model.config import BertConfig

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", ",", "my", "dog", "is", "cut", "##e", "and", "so", "am")

both = pytest.mark.parametrize("make", [bert, distilbert])


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A DistilBERT folder as it lies on the hub: weights of the masked language model, and the tokenizer's files."""
    distilbert(vocab_size=len(WORDS)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 24}))
    return tmp_path


def test_usage_of_the_readme(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The README's own lines, run where the published model's name is a folder."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "DilBertModel" in block)
    (tmp_path / "dilbert-base-uncased").symlink_to(published)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)

    inputs, outputs = names["inputs"], names["outputs"]
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 7, 8, 9, 10, 11, 3]]
    assert outputs[0].shape == (1, 9, 20)
    assert torch.equal(outputs[0], outputs.last_hidden_state)
    theirs = transformers.DistilBertModel.from_pretrained(published)
    assert largest(outputs[0] - theirs(inputs["input_ids"])[0]) < 1e-5
    assert "not used: vocab_layer_norm.bias" in caplog.text


@torch.no_grad()
def test_a_batch_of_texts(published: Path) -> None:
    tokenizer = DilBertTokenizer.from_pretrained(published)
    texts = ["Hello", "Hello, my dog is cute", "am and so is unknown"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    found = DilBertModel.from_pretrained(published)(**batch).last_hidden_state
    theirs = transformers.DistilBertModel.from_pretrained(published)
    mask = batch["attention_mask"]
    assert mask.sum(1).tolist() == [3, 9, 7]
    assert largest(real(found, mask) - real(theirs(**batch)[0], mask)) < 1e-5
    assert not found[mask == 0].any()


@both
@torch.no_grad()
def test_padding_anywhere(make: Any) -> None:
    """Left, right, both and within: a token's position is its column, as it is in `transformers`."""
    theirs = make()
    ids = torch.tensor(sequences([8, 8, 8, 8, 8]))
    mask = torch.tensor([[1] * 8, [0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0],
                         [0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0]])  # fmt: skip
    expected = theirs(ids, attention_mask=mask).logits
    for form in (mask, mask.bool(), mask.float()):
        assert largest(real(ours(theirs)(ids, form).logits - expected, mask)) < 1e-5


@both
@torch.no_grad()
def test_without_a_mask_all_tokens_are_real(make: Any) -> None:
    theirs, ids = make(), torch.tensor(sequences([6, 6]))
    ids[1, 3:] = 0  # padding ids count as tokens where no mask says otherwise
    assert largest(ours(theirs)(ids).logits - theirs(ids).logits) < 1e-5
    assert largest(ours(theirs)(ids.int()).logits - theirs(ids).logits) < 1e-5


@torch.no_grad()
def test_rows_of_padding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no sequences of length 0: attention over nothing would be NaN."""
    mine = ours(distilbert())
    ids = torch.tensor(sequences([5, 5, 5]))
    mask = torch.tensor([[0] * 5, [1] * 5, [0] * 5])
    given, encode = [], mine.encode
    monkeypatch.setattr(mine, "encode", lambda *arguments: given.append(arguments[2].tolist()) or encode(*arguments))
    found = mine(ids, mask).logits
    assert given == [[0, 5]]
    assert torch.equal(found[1], mine(ids[1:2]).logits[0])
    assert found.isfinite().all()
    nothing = mine.encode_padded(ids, torch.zeros_like(mask), None)
    assert nothing.shape == (3, 5, 20)
    assert not nothing.any()


@torch.no_grad()
def test_token_types_of_a_bert(tmp_path: Path) -> None:
    theirs = bert()
    theirs.save_pretrained(tmp_path)
    batch = pad(sequences([6, 3]))
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    expected = theirs.bert(**batch, token_type_ids=types).last_hidden_state
    found = DilBertModel.from_pretrained(tmp_path)(**batch, token_type_ids=types)[0]
    assert largest(real(found - expected, batch["attention_mask"])) < 1e-5
    without = theirs.bert(**batch).last_hidden_state
    assert largest(real(without - expected, batch["attention_mask"])) > 0.1


@both
def test_labels_give_the_loss_of_transformers(make: Any) -> None:
    theirs, batch = make(), pad(sequences([7, 4]))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[0, 6], labels[1, 0] = 5, 17, 52
    mine = ours(theirs)
    found, expected = mine(**batch, labels=labels), theirs(**batch, labels=labels)
    assert largest(found.loss - expected.loss) < 1e-5
    assert found[0] is found.loss
    found.loss.backward()
    expected.loss.backward()
    goal = theirs.get_input_embeddings().weight.grad
    assert largest(mine.embeddings.word.weight.grad - goal) < 1e-5 * largest(goal)
    assert mine(**batch).loss is None


def test_too_long() -> None:
    with pytest.raises(ValueError, match=r"25 tokens.*24 positions"):
        ours(distilbert())(torch.ones(1, 25, dtype=torch.long))


@torch.no_grad()
def test_low_precision_and_autocast() -> None:
    mine, batch = ours(distilbert()), pad(sequences([7, 4]))
    exact = mine(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mine(**batch).logits
    assert largest(real(cast - exact, batch["attention_mask"])) < 0.1
    low = mine.bfloat16()(**batch).logits
    assert mine.dtype == low.dtype == torch.bfloat16
    assert mine.device == low.device
    assert largest(real(low - exact, batch["attention_mask"])) < 0.1


@both
def test_save_and_load(make: Any, tmp_path: Path) -> None:
    mine = ours(make(hidden_dropout_prob=0.1) if make is bert else make(dropout=0.1))
    mine.save_pretrained(tmp_path)
    again = DilBertForMaskedLM.from_pretrained(str(tmp_path))
    assert again.config == mine.config
    assert again.config.hidden_dropout == 0.1
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    expected = mine.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("cls", [DilBertModel, DilBertForMaskedLM])
def test_stock_transformers_loads_what_is_saved(cls: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = cls.from_config(BertConfig.from_dict(distilbert().config.to_dict())).eval()
    mine.save_pretrained(tmp_path)
    auto = transformers.AutoModel if cls is DilBertModel else transformers.AutoModelForMaskedLM
    theirs, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.tensor(sequences([6, 6]))
    assert largest(mine(ids)[0] - theirs(ids)[0]) < 1e-5


def test_a_config_alone_gives_random_weights() -> None:
    config = BertConfig.from_dict(distilbert().config.to_dict())
    torch.manual_seed(1)
    first = DilBertModel.from_config(config)
    torch.manual_seed(1)
    second = DilBertModel.from_config(config)
    assert torch.equal(first.layers[0].qkv.weight, second.layers[0].qkv.weight)
    assert not torch.equal(first.layers[0].qkv.weight, DilBertModel.from_config(config).layers[0].qkv.weight)


# Architectures that are refused, and the hub.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "roberta"}, "roberta"),
        ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ({"activation": "silu"}, "silu"),
    ],
)
def test_another_architecture_is_refused(changes: dict[str, str], words: str, published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError, match=words) as caught:
        DilBertModel.from_pretrained(published)
    assert str(published) in str(caught.value)


FIRST_NAMES = {
    "dilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "dilbert-base-uncased-distilled-squad": "distilbert/distilbert-base-uncased-distilled-squad",
}


@pytest.mark.parametrize(("name", "today"), [*FIRST_NAMES.items(), ("bert-base-uncased", "bert-base-uncased")])
def test_first_names_are_resolved(
    name: str, today: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.resolve(name) == today
    asked = []

    def download(name: str, **_: Any) -> str:
        asked.append(name)
        return str(published)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert isinstance(DilBertModel.from_pretrained(name), nn.Module)
    assert set(asked) == {today}


def test_a_folder_goes_before_a_name(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "dilbert-base-uncased").symlink_to(published)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert hub.resolve("dilbert-base-uncased") == "dilbert-base-uncased"
    DilBertModel.from_pretrained("dilbert-base-uncased")


def unreachable(*_: Any, **__: Any) -> str:
    raise LocalEntryNotFoundError("Got: ConnectError\n\nAn error happened while trying to locate files.\nMore lines.")


def really_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., str]:
    """The library's own download, told that there is no network, over an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    download = huggingface_hub.snapshot_download
    return lambda *names, **options: download(*names, cache_dir=cache, **options)


@pytest.mark.parametrize("how", ["unreachable", "offline"])
def test_offline(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = unreachable if how == "unreachable" else really_offline(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError) as caught:
        DilBertModel.from_pretrained("dilbert-base-uncased")
    message = str(caught.value)
    assert "'distilbert/distilbert-base-uncased' is no folder here, and could not be fetched" in message
    assert "hf download distilbert/distilbert-base-uncased --local-dir FOLDER" in message
    assert how == "offline" or "(Got: ConnectError An error happened while trying to locate files.)" in message
    assert "More lines" not in message


@pytest.mark.parametrize("name", ["./models/student", "/no/such/folder", "models/a/b"])
def test_a_folder_that_is_not_there_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match=f"'{name}': no such folder"):
        DilBertModel.from_pretrained(name)


def test_a_run_is_no_model(tmp_path: Path) -> None:
    for name in ("config.json", "ds_config.json"):
        (tmp_path / name).write_text("{}")
    cure = f"is a run, no model: `python -m model.export {tmp_path} --output FOLDER` makes one of it"
    with pytest.raises(ConfigError, match=re.escape(cure)):
        DilBertForMaskedLM.from_pretrained(tmp_path)
