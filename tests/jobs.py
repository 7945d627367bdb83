"""Small training jobs: models, tasks, DeepSpeed JSON and command lines that several test files use."""

import json
import random
from pathlib import Path
from typing import Any

from conftest import VOCABULARY, WORDS, write_vocabulary

BERT = {
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_models(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A random teacher, and the student extracted from it, both with a tokenizer; call it in a rank or a test."""
    import torch

    from launch import hub
    from model.config import BertConfig
    from model.extract import default_layers, extract
    from model.pretrained import DilBertForMaskedLM

    torch.manual_seed(0)
    teacher = DilBertForMaskedLM(BertConfig.from_dict({**BERT, **changes}))
    student = extract(teacher, default_layers(teacher.config.num_hidden_layers))
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folder / name)
        hub.copy_tokenizer(write_vocabulary(folder / "tokenizer"), folder / name)
    return folder / "teacher", folder / "student"


def write_sst2(folder: Path) -> Path:
    """Sentences in SST-2's format; those with a cat in them are positive."""
    generator = random.Random(0)
    for name, count in (("train", 400), ("dev", 60)):
        rows = ["sentence\tlabel"]
        for number in range(count):
            words = generator.choices(WORDS, k=generator.randint(3, 12))
            words.insert(generator.randint(0, len(words)), ("dog", "cat")[number % 2])
            rows.append(f"{' '.join(words)}\t{number % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def write_squad(folder: Path) -> Path:
    """Questions in SQuAD's format; the answer is the context's only tree, and what stands before it."""
    generator = random.Random(1)
    for name, count in (("train", 200), ("dev", 30)):
        questions = []
        for number in range(count):
            words = generator.choices(WORDS, k=generator.randint(5, 15))
            at = generator.randint(1, len(words))
            words.insert(at, "tree")
            context, answer = " ".join(words), f"{words[at - 1]} tree"
            answers = [{"text": answer, "answer_start": context.index(answer)}]
            asked = {"id": f"{name}{number}", "question": "is it the tree", "answers": answers}
            questions.append({"context": context, "qas": [asked]})
        body = {"version": "1.1", "data": [{"title": "trees", "paragraphs": questions}]}
        (folder / f"{name}-v1.1.json").write_text(json.dumps(body))
    return folder


def config_file(
    path: Path, stage: int = 1, micro: int = 4, batch: int = 16, precision: str = "fp32", **more: Any
) -> Path:
    """A DeepSpeed JSON like those in ds_configs, for a tiny batch; a value of None removes its key."""
    config: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 5.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01,
                                                  "torch_adam": True}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_type": "linear", "warmup_num_steps": "auto",
                                                          "total_num_steps": "auto"}},
    }  # fmt: skip
    if precision != "fp32":
        config[precision] = {"enabled": True}
    config = {key: value for key, value in (config | more).items() if value is not None}
    path.write_text(json.dumps(config))
    return path


def flags(config: Path, data: Path | str, models: tuple[Path | None, Path], output: Path, *more: str) -> list[str]:
    """Arguments of train_dilbert.py that log every step."""
    teacher, student = models
    words = ["--deepspeed_config", str(config), "--data", str(data), "--student", str(student), "--output", str(output)]
    words += ["--teacher", str(teacher)] if teacher else []
    return [*words, "--log-interval", "1", *more]
