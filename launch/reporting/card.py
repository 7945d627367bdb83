"""The model card of an exported folder: a pure function of its `report.json` (launch/reporting/exported.py)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from launch import ds_config
from launch.log import duration
from launch.reporting import tables, terminal

Json = dict[str, Any]

ARCHITECTURES = {"bert": "BERT", "distilbert": "DistilBERT"}
PIPELINES = {None: "fill-mask", "classification": "text-classification", "regression": "text-classification",
             "span": "question-answering"}  # fmt: skip
# On the Hugging Face hub: data set and configuration by task, and metrics.
DATASETS = {"squad": ("rajpurkar/squad", "plain_text"), "squad_v2": ("rajpurkar/squad_v2", "squad_v2")}
GLUE = "nyu-mll/glue"
METRICS = {"accuracy": "accuracy", "f1": "f1", "exact": "exact_match", "matthews": "matthews_correlation",
           "pearson": "pearsonr", "spearman": "spearmanr"}  # fmt: skip
SPLITS = {"": "validation", "matched": "validation_matched", "mismatched": "validation_mismatched"}
ONE_TEXT = ("cola", "sst2")
FIGURES = (tables.tasks, tables.sizes, tables.speed, tables.production, tables.held_out)

FILL_MASK = """\
from transformers import pipeline

fill = pipeline("fill-mask", "{name}")
print(fill("The capital of France is [MASK]."))"""
CLASSIFY = """\
from transformers import pipeline

classify = pipeline("text-classification", "{name}")
print(classify({texts}))"""
TEXT, PAIR = '"A fine film."', '{"text": "A man is eating.", "text_pair": "Someone eats."}'
ANSWER = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForQuestionAnswering.from_pretrained("{name}")
inputs = tokenizer("Where is the cat?", "The cat is in the house.", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
start, end = int(outputs.start_logits.argmax()), int(outputs.end_logits.argmax())
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""


def card(report: Json) -> str:
    """`README.md`: the hub's metadata, what the model is and how it is used, how it was made, what was measured."""
    export = report["export"]
    parts = (_headline(export), _usage(export), _facts(export), *_figures(report), _onnx(export["model"]),
             _recipe(export))  # fmt: skip
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{metadata(export).to_yaml()}\n---\n\n{body}\n"


# --- the hub's metadata ---


def metadata(export: Json) -> ModelCardData:
    """What the hub sorts and finds models by."""
    model, flags = export["model"], export["flags"]
    published = "task" in flags and flags.get("data") is None  # else they are somebody's files, of any content
    results = list(_results(export)) if published else []
    return ModelCardData(
        license=model["license"],
        language=list(model["language"]) or None,
        library_name="transformers",
        pipeline_tag=PIPELINES[model["kind"]],
        tags=[model["model_type"], *(["distillation"] if flags.get("teacher") else [])],
        base_model=model["base_model"],
        datasets=[_dataset(flags["task"])[0]] if published else None,
        model_name=_name(model) if results else None,
        eval_results=results or None,
    )


def _dataset(task: str) -> tuple[str, str]:
    return DATASETS.get(task, (GLUE, task))


def _results(export: Json) -> Iterator[EvalResult]:
    """Of a fine-tuned model: each of its metrics that the hub knows."""
    result = export["result"] or {"metrics": {}}
    for name, value in result["metrics"].items():
        split, _, metric = name.rpartition("_")
        if metric in METRICS and split in SPLITS:
            dataset, config = _dataset(result["task"])
            yield EvalResult(
                task_type=PIPELINES[export["model"]["kind"]],
                dataset_type=dataset,
                dataset_name=tables.task_title(result["task"]),
                dataset_config=config,
                dataset_split=SPLITS[split],
                metric_type=METRICS[metric],
                metric_name=name,
                metric_value=round(value, 4),
            )


# --- the text ---


def _headline(export: Json) -> str:
    model, flags = export["model"], export["flags"]
    what = f"{ARCHITECTURES[model['model_type']]} of {model['layers']} layers"
    teacher = _named(flags["teacher"]) if flags.get("teacher") else None
    if "task" in flags:
        labels = f" ({', '.join(model['labels'])})" if model["labels"] else ""
        start = f" from {_named(flags['model'])}" if flags.get("model") else ""
        under = f" under the teacher {teacher}" if teacher else ""
        made = f"A {what} for {tables.task_title(flags['task'])}{labels}, fine-tuned{start}{under}"
    else:
        made = f"A {what}, a masked language model, " + (f"distilled from {teacher}" if teacher else "pre-trained")
    return f"# {_name(model)}\n\n{made} with DilBERT."


def _name(model: Json) -> str:
    """On the hub, if it is there, else of its folder."""
    return PurePath(model["hub"] or model["name"]).name


def _usage(export: Json) -> str:
    """Code for this kind of model."""
    model, kind = export["model"], export["model"]["kind"]
    code = {"fill-mask": FILL_MASK, "text-classification": CLASSIFY, "question-answering": ANSWER}[PIPELINES[kind]]
    texts = TEXT if export["flags"].get("task") in ONE_TEXT else PAIR
    code = code.replace("{name}", model["hub"] or "FOLDER").replace("{texts}", texts)
    number = "\n\nThe score is the predicted number as it is." if kind == "regression" else ""
    return f"```python\n{code}\n```{number}"


def _facts(export: Json) -> str:
    """How it was made, a row each."""
    model, environment = export["model"], export["environment"]
    size = f"{model['parameters']:,}; {model['layers']} layers x {model['hidden_size']}"
    time = [duration(export["seconds"]), f"{export['tokens']:,.0f} tokens"] if export["seconds"] else []
    precision = (export["result"] or {}).get("precision") or "fp32"
    precision = f"{precision}, of which these weights are the fp32 copy" if precision != "fp32" else ""
    rows = {
        "parameters": f"{size}, at most {model['positions']} tokens",
        "steps": tables.unfinished(export) or f"{export['step']:,}",
        "batch and optimizer": _engine(export["deepspeed"]),
        "data": f"{_data(export)} (fingerprint {export['fingerprint']})",
        **{name: f"{value:.4f}" for name, value in export["figures"].items()},
        "scores measured in": precision,
        "training time": ", ".join(time),
        "energy": _energy(export),
        "cost": tables.price(export["cost"]) if "cost" in export else "",
        "hardware": tables.hardware(environment),
        "made with": tables.versions(environment),
        "code": f"commit {environment.get('git_commit') or 'unknown'}",
        "verified": f"`transformers` {model['transformers']} computes the same logits, to {model['difference']:.1e}",
    }
    return _table(("", ""), [(name, text) for name, text in rows.items() if text])


def _energy(export: Json) -> str:
    """How much, and of which devices."""
    if "energy_kwh" not in export:
        return ""
    return ", ".join([f"{tables.kwh(export['energy_kwh'])} kWh", *export["environment"].get("energy_counters", ())])


def _engine(deepspeed: Json) -> str:
    """The DeepSpeed JSON in short."""
    if not deepspeed:
        return ""
    optimizer, clip = deepspeed.get("optimizer", {}), deepspeed.get("gradient_clipping")
    return (
        f"{deepspeed['train_batch_size']:,} sequences a step, {optimizer.get('type')}, learning rate "
        f"{optimizer.get('params', {}).get('lr')}" + (f", gradient norm at most {clip:g}" if clip else "") + "; "
        f"{ds_config.precision(deepspeed)}, ZeRO stage {ds_config.stage(deepspeed)}"
    )


def _data(export: Json) -> str:
    """What it was trained on."""
    flags = export["flags"]
    if "task" in flags:
        own = f", files in {_named(flags['data'])}" if flags.get("data") else ""
        return tables.task_title(flags["task"]) + own
    parts = [part for part in export["environment"].get("data", []) if isinstance(part, dict)]
    if parts:
        return ", ".join(f"{_named(part.get('path'))}: {tables.amount(part.get('tokens'))} tokens" for part in parts)
    return ", ".join(map(_named, flags.get("data") or []))


def _figures(report: Json) -> Iterator[str]:
    """The report's tables, as far as there are any."""
    if any(make(report) for make in FIGURES):
        yield "## Figures"
        yield terminal.markdown(table for make in FIGURES if (table := make(report)))


def _onnx(model: Json) -> str:
    if not model["onnx"]:
        return ""
    head = ("file", "MB", "difference of logits", "same first choice")
    rows = [
        (f"`{form['file']}`", f"{form['bytes'] / 1e6:.1f}", f"{form['difference']:.1e}",
         tables.percent(form["agreement"]) + " %" if form["agreement"] is not None else tables.NONE)
        for form in model["onnx"]
    ]  # fmt: skip
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model["model_type"] == "bert" else [])]
    inputs = ", ".join(f"`{name}`" for name in names)
    note = f"Inputs: {inputs}, int64 [batch, length]. Differences: from torch, relative to the largest logit."
    return f"## ONNX\n\n{_table(head, rows)}\n\n{note}"


def _recipe(export: Json) -> str:
    shown = {name: _short(value) for name, value in export["flags"].items() if value is not None and name != "output"}
    return f"## Flags of the run\n\n```json\n{json.dumps(shown, indent=2)}\n```"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _named(name: str | None) -> str:
    return f"`{_short(name)}`"


def _short(value: Any) -> Any:
    """Paths from a machine's root say nothing elsewhere: their last part."""
    if isinstance(value, list):
        return [_short(part) for part in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value
