"""A hub on this machine: enough of the Hugging Face API over HTTP for its library to download from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Hub:
    """Serves the files of `folder` as the repository org/name, until it is told otherwise."""

    folder: Path
    port: int = 0
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    gated: bool = False
    cut_after: int | None = None
    """Bytes of a file after which the connection is closed."""
    silent: threading.Event = field(default_factory=threading.Event)
    """While it is set nothing is answered."""

    def environment(self, home: Path) -> dict[str, str]:
        """What a program is told that it asks this hub, and nobody else."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def weights_asked(self) -> bool:
        """Whether anyone wanted to have weights."""
        return any(line.startswith("GET") and line.endswith(".safetensors") for line in self.asked)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Such a hub, for as long as the context lasts."""
    hub = Hub(folder)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            while hub.silent.is_set() and not over.wait(0.05):
                pass
            with contextlib.suppress(ConnectionError):
                self._answer([part for part in self.path.partition("?")[0].split("/") if part])

        do_HEAD = do_GET

        def _answer(self, path: list[str]) -> None:
            files = sorted(file for file in hub.folder.iterdir() if file.is_file())
            match path:
                case ["api", "models", "org", "name", "revision", "main" | hub.commit]:
                    self._json({"id": "org/name", "sha": hub.commit, "siblings": []})
                case ["api", "models", "org", "name", "revision", _]:
                    self._json({}, 404, "RevisionNotFound")
                case ["api", "models", "org", "name", "tree", "main" | hub.commit]:
                    self._json([_entry(file) for file in files])
                case ["org", "name", "resolve", _, name] if (hub.folder / name) in files:
                    if hub.gated:
                        self._json({}, 403, "GatedRepo")
                    else:
                        self._file(hub.folder / name)
                case ["api", "models", *_]:
                    self._json({}, 404, "RepoNotFound")
                case _:
                    self._json({}, 404, "EntryNotFound")

        def _json(self, value: Any, status: int = 200, error: str = "") -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _file(self, file: Path) -> None:
            body = file.read_bytes()
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{_entry(file)["oid"]}"')
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Content-Length", str(len(body) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            if self.command == "GET":
                whole = hub.cut_after is None or len(body) - begin <= hub.cut_after
                self.wfile.write(body[begin:] if whole else body[begin : begin + (hub.cut_after or 0)])
                self.close_connection = not whole

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            over.set()
            server.shutdown()


def _entry(file: Path) -> dict[str, Any]:
    oid = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid}
