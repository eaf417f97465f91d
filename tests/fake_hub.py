"""A model hub on this machine: as much of the protocol as huggingface_hub needs to download."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repositories):
    """Serve ``{repository: {file name: path}}``; yields the address."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path).strip("/")
            for repository, files in repositories.items():
                if path.startswith(f"api/models/{repository}"):
                    return self.tell(path, repository, files)
                if path.startswith(f"{repository}/resolve/"):
                    name = path.split("/", 4)[4]
                    if name in files:
                        return self.send(files[name].read_bytes(), body)
            return self.send_error(404)

        def tell(self, path, repository, files):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            answer = entries if "/tree/" in path else info
            self.send(json.dumps(answer).encode(), True, "application/json")

        def send(self, data, body, kind="application/octet-stream"):
            first = 0
            wanted = self.headers.get("Range")
            if wanted:
                first = int(wanted.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if first else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data) - first))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data[first:])

        def log_message(self, *_):
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
