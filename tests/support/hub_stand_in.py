"""The HTTP interfaces of ModelScope and Hugging Face on loopback, as far as downloads need them; faults to order."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import hashlib
import http.server
import json
from pathlib import Path
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from safetensors.numpy import save

from tests.support.published_configs import published_files


COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("master", "main", "v1", COMMIT)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def small_repository() -> dict[str, bytes]:
    """The configuration of Qwen3-VL-4B, two shards that are not its weights, and files that nobody wants."""
    files = {name: json.dumps(values).encode() for name, values in published_files().items()}
    random = np.random.default_rng(0)
    for shard in SHARDS:
        files[shard] = save({shard[:11]: random.random(40_000).astype(np.float32)})
    index = {"weight_map": {shard[:11]: shard for shard in SHARDS}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["merges.txt"] = b"#version: 0.2\n"
    files["modeling_qwen.py"] = b"raise SystemExit('code of a repository was run')\n"
    files["original/consolidated.safetensors"] = b"another copy"
    files["README.md"] = b"# A model\n"
    return files


@dataclass
class StandIn:
    """The repository `org/model`, and what was asked for.

    Attributes:
        files: What it holds; the listing is made from `listed` where a test wants a lie.
        break_after: The connection breaks after so many bytes of a file, each time it is asked for until the list is
            empty.
        stall: If set, half of every shard is sent, and the rest when this event is.
        ranges: (file, `Range` header or "") of every request for a file.
    """

    files: dict[str, bytes] = field(default_factory=small_repository)
    listed: dict[str, bytes] = field(default_factory=dict)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    denied: bool = False
    stall: threading.Event | None = None
    ranges: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def listing(self) -> dict[str, tuple[int, str]]:
        told = self.files | self.listed
        return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in told.items()}

    def fetched(self) -> set[str]:
        return {name for name, _ in self.ranges}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {k: v[0] for k, v in parse_qs(url.query).items()}
        if self.hub.denied:
            self._json(403, {"Code": 403, "Message": "forbidden", "error": "forbidden"})
        elif path.startswith("/api/v1/models/org/model/repo"):
            self._modelscope(path, query)
        elif path.startswith("/api/models/org/model"):
            self._huggingface_api(path)
        elif path.startswith("/org/model/resolve/"):
            self._file(path.removeprefix("/org/model/resolve/").partition("/")[2])
        else:
            self._missing("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _modelscope(self, path: str, query: dict[str, str]) -> None:
        if query.get("Revision") not in REVISIONS:
            self._missing("RevisionNotFound")
        elif path.endswith("/files"):
            files = [
                {"Path": name, "Name": Path(name).name, "Type": "blob", "Size": size, "Sha256": sha}
                for name, (size, sha) in self.hub.listing().items()
            ]
            self._json(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            self._file(query["FilePath"])

    def _huggingface_api(self, path: str) -> None:
        rest = path.removeprefix("/api/models/org/model").strip("/").split("/")
        if len(rest) > 1 and rest[1] not in REVISIONS:
            self._missing("RevisionNotFound")
            return
        entries: list[dict[str, Any]] = []
        for name, (size, sha) in self.hub.listing().items():
            oid = hashlib.sha1(self.hub.files[name]).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "rfilename": name}
            entry |= {"size": size, "oid": oid, "blobId": oid}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": sha, "oid": sha, "size": size, "pointerSize": 130}
            entries.append(entry)
        if rest[0] == "tree":
            self._json(200, entries)
        else:
            self._json(200, {"id": "org/model", "sha": COMMIT, "siblings": entries, "tags": []})

    def _file(self, name: str) -> None:
        data = self.hub.files.get(name)
        if data is None:
            self._missing("EntryNotFound")
            return
        asked = self.headers.get("Range", "")
        if self.command == "GET":
            self.hub.ranges.append((name, asked))
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        body = data[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.break_after.get(name)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
            return
        if self.hub.stall is not None and name.endswith(".safetensors"):
            half = len(body) // 2
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[:half])
                self.hub.stall.wait(60)
                self.wfile.write(body[half:])
            return
        self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._json(404, {"Code": 10010205001, "Message": "not found", "error": "not found"}, code)

    def _json(self, status: int, document: object, error_code: str = "") -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error_code:
            self.send_header("X-Error-Code", error_code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Tests stay silent."""


@contextlib.contextmanager
def serving(hub: StandIn) -> Iterator[StandIn]:
    """Serves it on a free port."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
