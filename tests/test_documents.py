"""Every command, file, flag, link and message of the documents is what it says; and the commands do what they say."""

import json
import pickle
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import documents
import numpy as np
import pytest
import torch
import transformers
from conftest import VOCABULARY, sentence, write_vocabulary
from documents import ROOT, Command, Shell, Start
from jobs import config_file, make_models, write_squad, write_sst2
from ranks import run_ranks

from launch import args, ds_config, hostfile, plan
from launch.costs import parameters
from launch.retention import Retention
from model.config import BertConfig

CHANGES = ROOT / "CHANGELOG.md"
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.sh"))
PAGES = [
    ROOT / name
    for name in (
        "README.md", "CONTRIBUTING.md", "ds_configs/README.md", "launch/recipes/README.md", "tests/bench/README.md",
    )
]  # fmt: skip
MODULES = [ROOT / f"{name.replace('.', '/')}.py" for name in documents.entry_points()]
SCRIPTS = [*RECIPES, *sorted((ROOT / "launch" / "slurm").glob("*"))]
COMMANDS = [
    *(command for page in PAGES for command in documents.in_markdown(page)),
    *(command for module in MODULES for command in documents.in_python(module)),
    *(command for script in SCRIPTS for command in documents.in_head(script)),
]
FULL = [command for command in dict.fromkeys(COMMANDS) if not command.abbreviated]
LAUNCHERS = {"--num-gpus", "--master-port", "--hostfile", "--launcher", "--launcher-args", "--include", "--exclude",
             "--signal", "--batch", "--local-dir", "--group", "--constraint", "--logdir"}  # fmt: skip
ORIGINAL = """
    --file_path --tokenizer_type --tokenizer_name --dump_file --data_file --token_counts_dump --vocab_size
    --model_type --model_name --dump_checkpoint --vocab_transform --force --dump_path --student_type --student_config
    --student_pretrained_weights --teacher_type --teacher_name --temperature --alpha_ce --alpha_mlm --alpha_clm
    --alpha_mse --alpha_cos --mlm --mlm_mask_prop --word_mask --word_keep --word_rand --mlm_smoothing --token_counts
    --restrict_ce_to_mask --freeze_pos_embs --freeze_token_type_embds --n_epoch --batch_size --group_by_size
    --gradient_accumulation_steps --warmup_prop --weight_decay --learning_rate --adam_epsilon --max_grad_norm
    --initializer_range --fp16 --fp16_opt_level --n_gpu --local_rank --seed --log_interval --checkpoint_interval
    --model_name_or_path --output_dir --teacher_name_or_path --alpha_squad --data_dir --train_file --predict_file
    --config_name --cache_dir --version_2_with_negative --null_score_diff_threshold --max_seq_length --doc_stride
    --max_query_length --do_train --do_eval --evaluate_during_training --do_lower_case --per_gpu_train_batch_size
    --per_gpu_eval_batch_size --num_train_epochs --max_steps --warmup_steps --n_best_size --max_answer_length
    --verbose_logging --logging_steps --save_steps --eval_all_checkpoints --no_cuda --overwrite_output_dir
    --overwrite_cache --server_ip --server_port --threads
"""
TEACHERS = {"bert-base-uncased": 30522, "bert-base-cased": 28996, "bert-base-german-cased": 30000,
            "bert-base-multilingual-cased": 119547}  # tokens that they know; their shapes are one  # fmt: skip
WORDS = (*VOCABULARY, *(f"[unused{number}]" for number in range(30522 - len(VOCABULARY))))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository to its user: small stand-ins under the names that the documents use."""
    folder, generator = tmp_path_factory.mktemp("home"), random.Random(0)
    for name in ("launch", "train_dilbert.py", "finetune_dilbert.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "ds_configs").mkdir()
    for path in (ROOT / "ds_configs").glob("*.json"):
        config_file(folder / "ds_configs" / path.name)

    (folder / "texts" / "de").mkdir(parents=True)
    for name in ("en", "de", "fr", "es", "zh", "de/de"):
        lines = [
            f"{sentence(generator, generator.randint(12, 40))} ." for _ in range(2500)
        ]  # enough for a thousandth to be held out
        (folder / "texts" / f"{name}.txt").write_text("\n".join(lines))
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "records.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    write_pickles(folder / "data")
    (folder / "P").symlink_to("data/binarized_text.bert-base-uncased.pickle")
    (folder / "binarized_text.bert-base-uncased.pickle").symlink_to("data/binarized_text.bert-base-uncased.pickle")
    (folder / "hosts").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    (folder / "run.yaml").write_text("output: runs/first\nstudent: models/student\ndata: datasets/english/train\n")
    for write, name in ((write_sst2, "glue/SST-2"), (write_squad, "squad")):
        (folder / name).mkdir(parents=True)
        write(folder / name)

    teacher, student = make_models(folder / "quickstart", vocab_size=len(WORDS), max_position_embeddings=512)
    for model in (teacher, student):
        (model / "tokenizer.json").unlink(missing_ok=True)
        write_vocabulary(model, WORDS)
    student.rename(folder / "quickstart" / "student-start")
    argv = "--input texts/en.txt --valid-fraction 0.1 --tokenizer quickstart/teacher --output quickstart/data"
    assert run_ranks(1, documents.call, "data.binarize", argv.split(), str(folder))[0][0] == 0
    for name in ("uncased", "cased", "german-cased", "multilingual-cased"):
        (folder / f"bert-base-{name}").symlink_to(teacher)
    (folder / "dilbert-base-uncased").symlink_to(folder / "quickstart" / "student-start")
    write_checkpoint(folder / "serialization_dir" / "my_first_training", student=folder / "dilbert-base-uncased")
    return folder


def write_pickles(folder: Path) -> None:
    """What the original's scripts write: arrays of ids, and how often each occurs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = [np.array([2, *generator.integers(5, 40, 30), 3], np.uint16) for _ in range(200)]
    counts = np.bincount(np.concatenate(rows), minlength=len(WORDS)).tolist()
    for name, body in (("binarized_text", rows), ("token_counts", counts)):
        (folder / f"{name}.bert-base-uncased.pickle").write_bytes(pickle.dumps(body, pickle.HIGHEST_PROTOCOL))


def write_checkpoint(folder: Path, student: Path) -> None:
    """What the original saves of a student."""
    model = transformers.DistilBertForMaskedLM.from_pretrained(student)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "model_epoch_2.pth")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path, steps=2) as shell:
        yield shell


# --- commands ---


@pytest.mark.parametrize("command", FULL, ids=str)
def test_a_command_can_be_given(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher and its entry point take it as it stands; it names DeepSpeed's JSON that can be loaded."""
    monkeypatch.chdir(home)
    start = documents.start_of(command.words)
    for name in re.findall(r"ds_configs/\w+\.json", command.text):
        assert ds_config.load(ROOT / name, "cpu" if "cpu" in name or "fp32" in name else "cuda")
    if start and start.argv:
        assert documents.read(start, monkeypatch)


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each entry point."""
    with pytest.MonkeyPatch.context() as patch:
        return {name: documents.options(name, patch) for name in documents.entry_points()}


def test_abbreviated_commands_name_flags_that_there_are(flags: dict[str, set[str]], home: Path) -> None:
    known = set().union(*flags.values()) | LAUNCHERS
    for command in (command for command in COMMANDS if command.abbreviated):
        named = {documents.plain(flag) for flag in re.findall(r"--[a-z][\w-]+", command.text)}
        assert named <= known, command


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.block], ids=str)
def test_a_command_says_what_it_needs(command: Command) -> None:
    """Beside it or above it: other hosts, a GPU, the internet."""
    note = command.note.lower()
    if re.search(r"mpirun|launch\.start|launch\.doctor|sbatch", command.text):
        assert "needs a cluster" in note
    for name in re.findall(r"ds_configs/\w+\.json", command.text):
        precision = ds_config.precision(json.loads((ROOT / name).read_text()))
        assert precision == "fp32" or "needs a gpu" in note or "needs a cluster" in note
    if "--push-to-hub" in command.text:
        assert "needs the internet" in note
    if re.search(r"(bert|dilbert)-base-", command.text):
        assert "internet" in (ROOT / command.where).read_text()


def test_no_entry_point_is_without_a_command() -> None:
    """What finds commands has not gone blind, and every program of ours is shown somewhere as it can be typed."""
    assert len(COMMANDS) > 120
    started = {name for name in documents.entry_points() for command in COMMANDS if name in command.text}
    scripts = {"train_dilbert", "finetune_dilbert"}
    assert started | scripts == set(documents.entry_points())


# --- files, flags, links, messages ---


def test_all_pages_are_looked_at() -> None:
    """But for the list of changes, which names what there was."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {ROOT / name for name in listed.split()} - {CHANGES} == set(PAGES)


@pytest.mark.parametrize("page", [PAGES[0], PAGES[4]], ids=lambda page: str(page.relative_to(ROOT)))
def test_all_sections_are_found_from_the_head_of_a_page(page: Path) -> None:
    head, *sections = page.read_text().split("\n## ")
    linked = set(re.findall(r"\(#([\w-]+)\)", head))
    assert linked >= {documents.anchor(text.split("\n")[0]) for text in sections}


@pytest.mark.parametrize("page", [*PAGES, CHANGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", documents.prose(page)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in documents.anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    """In backticks: paths of the repository, and dotted names of modules or of what is in them."""
    for span in documents.spans(page):
        for path in re.findall(r"(?<![\w./-])(?:(?:launch|model|tests|ds_configs)/[\w./-]*|data/\w+\.py)", span):
            assert (ROOT / path).exists(), span
        for name in re.findall(r"(?<![\w./])(?:launch|model|data|tests)(?:\.[a-z]\w*)+", span):
            parts = name.split(".")
            there = [(ROOT / "/".join(parts[:n])).with_suffix(".py").exists() for n in range(2, len(parts) + 1)]
            assert any(there) or (ROOT / "/".join(parts[:2])).is_dir(), span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_are_named_exist(page: Path, flags: dict[str, set[str]]) -> None:
    known = set().union(*flags.values()) | LAUNCHERS
    text = re.sub(r"^\| `--[^|]*\|", "|", documents.prose(page), flags=re.MULTILINE)  # the original's, on the left
    named = {flag for span in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span)}
    assert {flag for flag in named if documents.plain(flag) not in known} == set()


def test_every_flag_of_the_original_has_a_place() -> None:
    """As its parsers have them."""
    text = documents.section(ROOT / "README.md", "Porting from the original")
    left = {flag for row in documents.rows(text) for flag in re.findall(r"--\w+", row[0])}
    assert left == set(ORIGINAL.split())


def test_the_hostfile_that_is_shown_is_the_example(tmp_path: Path) -> None:
    (shown,) = (block for block in documents.fences(ROOT / "README.md", "") if "slots=" in block)
    (tmp_path / "hosts").write_text(shown)
    assert hostfile.read(tmp_path / "hosts") == hostfile.read(ROOT / "launch" / "hostfile.example")


def test_messages_are_those_of_the_code() -> None:
    """Each is in one text of the code, but for the values."""
    rows, known = documents.rows(documents.section(ROOT / "README.md", "Troubleshooting")), documents.messages()
    assert len(rows) >= 15
    for message, _ in rows:
        parts = [re.escape(part) for part in message.strip("`").split("...")]
        assert any(re.search(".*".join(parts), text, re.DOTALL) for text in known), message


# --- the documents' commands, given one after another on stand-ins ---


def given(page: Path) -> str:
    """The fenced blocks of a page as one script, without the lines that leave something out."""
    blocks = "\n".join(documents.fences(page, "bash"))
    return "\n".join(line for line in documents.lines(blocks) if "..." not in line)


def test_the_readme_as_its_user_reads_it(home: Path, shell: Shell) -> None:
    """All of its blocks: by hand, from text to a student that `transformers` loads, tasks, reports, on clusters."""
    watched = (command.text for command in COMMANDS if command.text.startswith("python -m launch.watch runs/first"))
    shell.run("\n".join([given(ROOT / "README.md"), *watched]), home)
    started = [start.module for start in shell.started]
    after = ["model.export", "launch.report"]
    assert started[:5] == ["model.extract", "train_dilbert", "launch.watch", *after], "by hand, in quickstart/"
    assert (home / "quickstart" / "report" / "index.html").exists()
    assert started[5:10] == ["data.binarize", "model.extract", "train_dilbert", *after]
    assert started[10:14] == ["train_dilbert"] * 4, "the third of them on other machines"
    for run in ("first", "sst2", "squad", "narrow", "nodes", "slurm"):
        assert (home / "runs" / run / "DONE.json").exists(), run
    model = transformers.DistilBertForMaskedLM.from_pretrained(home / "models" / "dilbert")
    assert model.config.n_layers == 2
    assert (home / "models" / "dilbert" / "onnx" / "model_int8.onnx").exists()
    assert "<svg" in (home / "report" / "index.html").read_text()
    report = json.loads((home / "report" / "report.json").read_text())
    assert report["held_out"]["student"]["loss_mlm"] > 0 and len(report["pretraining"]) == 1
    assert json.loads((home / "runs" / "eval" / "result.json").read_text())["examples"] == {"dev": 60}
    transformers.DistilBertForMaskedLM.from_pretrained(home / "models" / "imported")
    assert json.loads((home / "models" / "narrow" / "config.json").read_text())["dim"] == 256


def test_using_a_model(home: Path) -> None:
    (block,) = documents.fences(ROOT / "README.md", "python")
    (shapes,) = run_ranks(1, documents.execute, block, str(home))
    batch, length, width = shapes["last_hidden_state"]
    assert (batch, width) == (1, 32)
    assert length >= 8, "six words, with their punctuation, [CLS] and [SEP]"


def test_a_change_is_proven_as_contributors_read_it(home: Path, shell: Shell) -> None:
    """The same weights in every bit, of two runs of one and the same code."""
    assert "runs/after" in shell.run(given(ROOT / "CONTRIBUTING.md"), home)
    assert (home / "compare" / "index.html").exists()


# --- recipes ---


def run_recipe(shell: Shell, home: Path, name: str, **variables: object) -> list[Start]:
    """Rehearse a recipe of pre-training, and run it; what the run itself has started."""
    out, line = home / "runs" / name, f"bash launch/recipes/{name}.sh"
    shell.run(f"{line} --dry-run", home, **variables)
    assert (out / "run" / "dry-run" / "report.txt").exists() and not (out / "run" / "DONE.json").exists()
    before = len(shell.started)
    shell.run(line, home, **variables)
    assert (out / "run" / "DONE.json").exists()
    student = transformers.DistilBertForMaskedLM.from_pretrained(out / "dilbert")
    assert student.config.n_layers == 2
    return shell.started[before:]


def test_base(home: Path, shell: Shell) -> None:
    started = run_recipe(shell, home, "base", CORPUS="texts/*.txt")
    assert [start.module for start in started] == ["train_dilbert", "model.export"], "the rehearsal made the rest"
    assert started[0].argv[-2:] == ["--epochs", "3"]
    shell.run("bash launch/recipes/base.sh", home, CORPUS="texts/*.txt")
    assert [start.module for start in shell.started[-2:]] == ["model.export", "train_dilbert"], "all else is there"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables", "teacher", "ranks"),
    [
        ("cased", {"CORPUS": "texts/*.txt", "LENGTH": "--max-steps 7"}, "bert-base-cased", 1),
        ("german", {"CORPUS": "records.jsonl", "FIELD": "text"}, "bert-base-german-cased", 1),
        ("laptop", {"CORPUS": "texts/*.txt", "SAMPLE": 0.5}, "bert-base-uncased", 1),
        ("eight_gpus", {"CORPUS": "texts/*.txt", "GPUS": 2}, "bert-base-uncased", 2),
        ("eight_nodes", {"CORPUS": "texts/*.txt"}, "bert-base-uncased", 2),
        ("multilingual", {}, "bert-base-multilingual-cased", 1),
    ],
)
def test_other_recipes(
    name: str, variables: dict[str, object], teacher: str, ranks: int, home: Path, shell: Shell
) -> None:
    start = run_recipe(shell, home, name, **variables)[0]
    assert start.ranks == ranks
    flags = json.loads((home / "runs" / name / "run" / "config.json").read_text())["flags"]
    assert flags["teacher"] == teacher
    assert variables.get("LENGTH", "--epochs 3" if name != "multilingual" else "--max-steps 20000") in " ".join(
        start.argv
    )
    if name == "multilingual":
        log = [json.loads(line) for line in (home / "runs" / name / "run" / "log.jsonl").read_text().splitlines()]
        assert sum(key.startswith("epoch_") for key in log[0]) == 5


@pytest.mark.slow
def test_eight_nodes_under_slurm(home: Path, shell: Shell) -> None:
    """Two jobs; the training waits for the data, which is not made twice."""
    line, out = "bash launch/recipes/eight_nodes_slurm.sh", home / "runs" / "eight_nodes_slurm"
    said = shell.run(line, home, CORPUS="texts/*.txt")
    assert (out / "run" / "DONE.json").exists()
    assert [words for words in shell.given if words[0] == "sbatch"][1][1:5] == [
        "--dependency",
        "afterok:17",
        "--nodes",
        "8",
    ]
    shell.run(said.splitlines()[-1].partition("is there: ")[2], home)
    assert (out / "dilbert" / "model.safetensors").exists()
    before = len(shell.started)
    shell.run(line, home, CORPUS="texts/*.txt")
    assert [start.module for start in shell.started[before:]] == ["train_dilbert"]


@pytest.mark.slow
def test_squad(home: Path, shell: Shell) -> None:
    line, out = "bash launch/recipes/squad.sh", home / "runs" / "twice"
    given = {"STUDENT": "dilbert-base-uncased", "DATA": "squad", "OUT": "runs/twice"}
    shell.run(f"{line} --dry-run", home, **given)
    assert (out / "teacher" / "dry-run" / "report.txt").exists() and not (out / "student").exists()
    shell.run(line, home, **given)
    result = json.loads((out / "student" / "result.json").read_text())
    assert (result["model"], result["teacher"]) == ("dilbert-base-uncased", "runs/twice/teacher-model")
    transformers.DistilBertForQuestionAnswering.from_pretrained(out / "student-model")


@pytest.mark.slow
def test_the_page_of_recipes_as_its_user_reads_it(home: Path, shell: Shell) -> None:
    shell.run(given(PAGES[3]), home)
    assert all((home / "runs" / run / "DONE.json").exists() for run in ("base/run", "v100/run", "squad/student"))


# --- figures on paper ---


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teachers' shapes as folders here, by the names that they have on the hub."""
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    for name, vocabulary in TEACHERS.items():
        (tmp_path / name).mkdir()
        BertConfig(vocab_size=vocabulary).write(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def planned(words: str) -> str:
    """What `launch.plan` says to them."""
    return plan.plan(*args.parse("", plan.Text, plan.Hardware, plan.Recipe, Retention, argv=words.split()))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.stem)
def test_heads_of_recipes(script: Path) -> None:
    """Each says what it needs and what came of it; hours, disk and memory are those of the plans that it names."""
    head = " ".join(script.read_text().partition("set -euo pipefail\n")[0].replace("\n#", " ").split())
    assert re.search("Hardware: .* Duration: .* Disk: .* Result: not run here", head)
    plans = re.findall(r"python -m launch\.plan ([^)]*)\)", head)
    assert plans or script.stem == "squad"
    for words in plans:
        said = planned(words)
        hours, sizes = re.findall(r"hours +([\d.]+)", said), re.findall(r"in all +([\d.]+) GB", said)
        assert f"{hours[0]} hours" in head, hours
        assert f"{sizes[1]} GB" in head or "V100" in words, sizes
        page = next(row for row in documents.rows(PAGES[3].read_text()) if f"[{script.name}]" in row[0])
        assert f"{hours[0]} h" in page[4] or page[4] == "the same", page
        teachers = {
            *re.findall(r"--teacher-config (\S+)", words),
            *re.findall(r"TEACHER:-([\w-]+)", script.read_text()),
        }
        assert teachers <= {page[1].strip("`")}, "planned, taken and named is the same one"


@pytest.mark.usefixtures("published")
def test_the_page_of_recipes_names_all_of_them() -> None:
    rows = documents.rows(PAGES[3].read_text())
    assert {f"[{path.name}]({path.name})" for path in RECIPES} == {row[0] for row in rows}
    for row in rows:
        if row[2]:
            _, student = plan.shapes(plan.Recipe(teacher_config=row[1].strip("`")))
            assert row[2] == f"{parameters(student):,}", row


@pytest.mark.usefixtures("published")
def test_hours_of_the_five_commands() -> None:
    text = documents.section(PAGES[0], "A real distillation")
    for words in ("--nodes 8", "--nodes 8 --interconnect-gbps 3200", "--nodes 1"):
        said = planned(f"--gpu H100 {words}")
        assert re.findall(r"hours +([\d.]+)", said)[0] in text
    dataset, checkpoint = (float(re.findall(rf"{name} +([\d.]+) GB", said)[0]) for name in ("dataset", "checkpoint"))
    assert f"{dataset:.1f} GB of dataset" in text and f"{checkpoint} GB a checkpoint" in text
