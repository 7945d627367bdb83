"""Uploads to a hub of this machine's own, which answers as far as `huggingface_hub` asks."""

import base64
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from jobs import make_models

from launch.errors import ConfigError, run
from launch.reporting.exported import REPORT
from model import export, push

TOKEN = "hf_ThisIsNobodysTokenAtAll0123456789"


class Hub(ThreadingHTTPServer):
    """Repositories as {name: {path: content}}, and how it is to answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.refuses: dict[str, int] = {}  # status by the end of a path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name not in self.server.repos:
            return self.reply({"error": "not found"}, 404)
        self.reply({"id": name, "private": self.server.private[name], "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.tokens.add(token)
        if not token:
            return self.reply({"error": "who is there?"}, 401)
        for end, status in self.server.refuses.items():
            if self.path.endswith(end):
                return self.reply({"error": f"no, {token}"}, status)
        name = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            new = name not in self.server.repos
            if new:
                self.server.repos[name], self.server.private[name] = {}, wanted.get("visibility") == "private"
            return self.reply({"url": f"{self.server.url}/{name}"}, 200 if new else 409)
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.reply({"files": files})
        assert self.path.endswith("/commit/main")
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/{name}/commit/0"})

    def reply(self, body: object, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    _, student = make_models(tmp_path_factory.mktemp("models"))
    (student / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# mine\n")
    (student / REPORT).write_text("{}")
    (student / "onnx").mkdir()
    (student / "onnx" / "model.onnx").write_bytes(b"a network")
    return student


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(monkeypatch, *words: object) -> int:
    """`python -m model.export`, its exit code."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    try:
        run(export.main)
    except SystemExit as end:
        return int(end.code)
    return 0


def test_the_whole_folder_arrives(hub, model, monkeypatch, capfd):
    before = files(model)
    assert command(monkeypatch, model, "--push-to-hub", "me/dilbert") == 0
    assert hub.repos["me/dilbert"] == {name: content for name, content in before.items() if name != REPORT}
    assert files(model) == before
    assert hub.tokens == {TOKEN}
    assert not hub.private["me/dilbert"]
    assert f"{hub.url}/me/dilbert" in capfd.readouterr().out


def test_nothing_is_uploaded_unless_asked(hub, model, monkeypatch):
    assert command(monkeypatch, model) == 0
    assert hub.repos == {}


def test_private(hub, model, tmp_path):
    push.push(model, "me/secret", True, ())
    assert hub.private == {"me/secret": True}
    push.push(model, "me/secret", True, ())  # again
    hub.repos["me/open"], hub.private["me/open"] = {}, False
    with pytest.raises(ConfigError, match="me/open is there already, and public; nothing was uploaded"):
        push.push(model, "me/open", True, ())
    assert hub.repos["me/open"] == {}


def test_only_after_verification(hub, model, tmp_path, monkeypatch, capfd):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in files(model).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    weights = load_file(folder / "model.safetensors")
    weights.pop("vocab_transform.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert command(monkeypatch, folder, "--push-to-hub", "me/dilbert") == 4
    assert "vocab_transform.bias" in capfd.readouterr().err
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("end", "status"),
    [("/create", 401), ("/create", 403), ("/create", 500), ("/commit/main", 401), ("/commit/main", 403)],
)
def test_the_token_is_never_shown(end, status, hub, model, monkeypatch, capfd, caplog):
    """Not even where a server sends it back, and everything is logged."""
    caplog.set_level(logging.DEBUG)
    hub.refuses[end] = status
    before = files(model)
    assert command(monkeypatch, model, "--push-to-hub", "me/dilbert", "--private") == 2
    shown = capfd.readouterr()
    assert hub.tokens == {TOKEN}
    assert TOKEN not in shown.out + shown.err + caplog.text
    assert str(status) in shown.err
    assert f"python -m model.export {model} --push-to-hub me/dilbert --private" in shown.err
    assert "Traceback" not in shown.err
    assert files(model) == before


def test_nobody_is_logged_in(hub, model, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert command(monkeypatch, model, "--push-to-hub", "me/dilbert") == 2
    assert "401" in (shown := capfd.readouterr().err)
    assert "hf auth whoami" in shown


def test_offline(model, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = files(model)
    assert command(monkeypatch, model, "--push-to-hub", "me/dilbert") == 2
    shown = capfd.readouterr()
    assert f"{model} is complete, but could not be uploaded" in shown.err
    assert TOKEN not in shown.out + shown.err
    assert files(model) == before


@pytest.mark.parametrize("name", ["dilbert", "me/dil/bert", "me/dil bert", "me/-dilbert", "me/"])
def test_names_that_the_hub_would_refuse(name):
    with pytest.raises(ConfigError, match=r"--push-to-hub"):
        push.Upload(name)


def test_private_alone_means_nothing():
    with pytest.raises(ConfigError, match="goes with --push-to-hub"):
        push.Upload(None, private=True)


def test_names_of_the_hub_are_known_by_its_cache(tmp_path, monkeypatch):
    """`models/teacher` may be a folder that is gone, or another machine's."""
    name = "distilbert/distilbert-base-uncased"
    snapshot = tmp_path / "models--distilbert--distilbert-base-uncased" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert push.hub_name(name) == push.hub_name("dilbert-base-uncased") == name
    assert push.hub_name("models/teacher") is push.hub_name("/models/teacher") is push.hub_name(None) is None
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert push.hub_name(name) is None
