"""A model hub on this machine: as much of the protocol as huggingface_hub needs to download.

As on the real one, files come from another host, which gets no token: ``localhost`` here.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

from tests.children import PROGRAM, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what it was asked.

    Attributes:
        repositories: ``{repository: {file name: path}}``.
        gated: repositories that need a token.
        cuts: bytes after which the connection breaks, for the next answers with a file.
        stalls: as `cuts`, but nothing more comes until `go_on` is set.
        spoils: how many answers with a file have a wrong first byte.
        sent: file, first byte and number of bytes of each answer with a file.
        told: tokens that the host of the files was told.

    """

    repositories: dict
    gated: set = field(default_factory=set)
    cuts: list = field(default_factory=list)
    stalls: list = field(default_factory=list)
    spoils: int = 0
    sent: list = field(default_factory=list)
    told: list = field(default_factory=list)
    address: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def environment(self, home, **more):
        """For a process that asks this hub and keeps its files in `home`."""
        return {
            **os.environ, "HF_ENDPOINT": self.address, "HF_HOME": str(home), "NO_PROXY": "*",
            "HF_HUB_DISABLE_XET": "1", "COLUMNS": "100", **more,
        }  # fmt: skip

    def run(self, home, *words, **more):
        """``dspark-gguf`` with these words, in a process of its own: it has the hub's address."""
        return run(*PROGRAM, *words, env=self.environment(home, **more))


@contextmanager
def serving(repositories, **more):
    """A `Hub` that answers."""
    hub = Hub(repositories, **more)
    kind = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("files/"):
            self.told.append(self.headers.get("Authorization"))
        for repository, files in self.hub.repositories.items():
            if path.startswith(f"files/{repository}/"):
                name = path.removeprefix(f"files/{repository}/")
                return self.send(name, files[name].read_bytes(), body)
            if path.startswith((f"api/models/{repository}/", f"{repository}/")) or (
                path == f"api/models/{repository}"
            ):
                if repository in self.hub.gated and TOKEN not in self.headers.get(
                    "Authorization", ""
                ):
                    return self.refuse(403, "GatedRepo")
                if path.startswith("api"):
                    return self.tell(path, repository, files)
                name = path.split("/", 4)[4]
                return (
                    self.redirect(repository, name, files)
                    if name in files
                    else self.refuse(404, "EntryNotFound")
                )
        return self.refuse(401, "RepoNotFound")

    @property
    def told(self):
        return self.hub.told

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def tell(self, path, repository, files):
        entries = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
            for name, file in files.items()
        ]
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        info = {"id": repository, "sha": COMMIT, "siblings": siblings}
        data = json.dumps(entries if "/tree/" in path else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, repository, name, files):
        data = files[name].read_bytes()
        port = self.server.server_port
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{port}/files/{repository}/{quote(name)}")
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, name, data, body):
        wanted = self.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if not body:
            return
        if self.hub.spoils:
            self.hub.spoils -= 1
            data = b"?" + data[1:]
        rest = data[first:]
        if self.hub.stalls:
            self.wfile.write(rest[: self.hub.stalls.pop(0)])
            self.hub.stalled.set()
            self.hub.go_on.wait()
            return
        if self.hub.cuts:
            rest = rest[: self.hub.cuts.pop(0)]
        self.hub.sent.append((name, first, len(rest)))
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *_):
        """Nothing."""
