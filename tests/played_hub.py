"""A Hugging Face hub on this machine: as much of its HTTP as its own libraries ask for to read datasets and models."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee00" * 5


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Its address for the block; the files of dataset or model `a/b` are those in `folder/a/b`, all of one commit."""
    handler = type("Handler", (_Handler,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", _, owner, name, *more] if not (self.folder / owner / name).is_dir():
                self.refuse("RepoNotFound")
            case ["api", _, _, _, "revision", revision] if revision not in ("main", COMMIT):
                self.refuse("RevisionNotFound")
            case ["api", _, owner, name] | ["api", _, owner, name, "revision", _]:
                self.answer({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []})
            case ["api", _, owner, name, "tree", _, *more]:
                self.list(self.folder / owner / name, "/".join(more))
            case ["datasets", owner, name, "resolve", _, *more] | [owner, name, "resolve", _, *more]:
                self.send(self.folder / owner / name / "/".join(more))
            case _:
                self.refuse("EntryNotFound")

    do_HEAD = do_GET

    def list(self, root: Path, part: str) -> None:
        """What is in a folder of a dataset."""
        if not (root / part).is_dir():
            return self.refuse("EntryNotFound")
        self.answer([
            {"type": "directory" if path.is_dir() else "file", "path": str(path.relative_to(root)),
             "oid": "0" * 40, "size": path.stat().st_size}
            for path in sorted((root / part).iterdir())
        ])  # fmt: skip

    def send(self, path: Path) -> None:
        """A file, or the range of it that is asked for."""
        if not path.is_file():
            return self.refuse("EntryNotFound")
        content, headers = path.read_bytes(), {"ETag": f'"{path.stat().st_mtime_ns}"', "X-Repo-Commit": COMMIT}
        if wanted := self.headers["Range"]:
            first, last = wanted.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self.respond(206, part, headers)
        self.respond(200, content, headers)

    def answer(self, body: Any) -> None:
        self.respond(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.respond(404, b"", {"X-Error-Code": code})

    def respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""
