"""A server on 127.0.0.1 in place of the Hugging Face hub and of plain file hosts, with faults on demand."""

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MAX_REQUESTS = 200  # a test that asks more often than this is caught in a loop


@dataclass
class Files:
    """What the server has, what goes wrong with it, and what it was asked.

    `faults[path]` is a list: each GET of the path takes the first fault from it. A fault is a status to answer,
    "cut" (the connection breaks after 40 % of what was asked for) or "corrupt" (right length, wrong bytes). A fault
    at the end of a list that is named "forever" stays there.
    """

    content: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list] = field(default_factory=dict)
    everywhere: int | None = None  # a status for every request
    retry_after: str = "1"  # what it asks for with status 429
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range header
    url: str = ""

    def take_fault(self, path: str):
        faults = self.faults.get(path, [])
        if len(faults) == 2 and faults[1] == "forever":
            return faults[0]
        return faults.pop(0) if faults else None

    def gets(self, path: str) -> list[str | None]:
        """The Range headers of the GETs of a path."""
        return [ranged for method, asked, ranged in self.log if (method, asked) == ("GET", path)]


class Quiet(ThreadingHTTPServer):
    """Says nothing where a client has gone away: tests read what programs write to the same place."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Plain files by path; under /api/models/ and /OWNER/NAME/resolve/ the routes that the hub's client asks for."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.reply()

    def do_GET(self):
        self.reply()

    def reply(self):
        files: Files = self.server.files
        path = re.sub(r"/resolve/[^/]+/", "/resolve/", self.path.partition("?")[0])
        files.log.append((self.command, path, self.headers.get("Range")))
        assert len(files.log) < MAX_REQUESTS
        fault = files.everywhere or (files.take_fault(path) if self.command == "GET" else None)
        if isinstance(fault, int):
            self.send(fault, b"fault", {"Retry-After": files.retry_after} if fault == 429 else {})
        elif path.startswith("/api/models/"):
            self.reply_api(files, path)
        elif path in files.content:
            self.reply_file(files, path, fault)
        else:
            self.send(404, b"not here", {"X-Error-Code": "EntryNotFound"})

    def reply_api(self, files: Files, path: str):
        repo = "/".join(path.split("/")[3:5])
        prefix = f"/{repo}/resolve/"
        own = {name.removeprefix(prefix): body for name, body in files.content.items() if name.startswith(prefix)}
        if not own:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(b), "oid": git_sha(b)} for n, b in own.items()]
            for entry, body in zip(tree, own.values(), strict=True):
                if entry["path"].endswith((".safetensors", ".pth")):
                    entry["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 130}
            self.send(200, json.dumps(tree).encode())
        else:
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in own]}
            self.send(200, json.dumps(info).encode())

    def reply_file(self, files: Files, path: str, fault):
        body = files.content[path]
        large = path.endswith((".safetensors", ".pth"))
        etag = f'"{sha256(body) if large else git_sha(body)}"'
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "ETag": etag}
        if large:
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(len(body))}
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:-1] + bytes([body[-1] ^ 1])
        status = 200
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if ranged:
            start = int(ranged[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        self.send(status, body, headers, cut=fault == "cut")

    def send(self, status: int, body: bytes, headers: dict | None = None, cut: bool = False):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: int(len(body) * 0.4)] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *args):
        pass


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_sha(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class StandIn:
    """`with StandIn() as files:` serves `files.content` at `files.url` until the block ends."""

    def __enter__(self) -> Files:
        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.files = Files(url=f"http://127.0.0.1:{self.server.server_address[1]}")
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self.server.files

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
