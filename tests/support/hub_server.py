"""A stand-in for the hub on the local machine: the requests that uploading and downloading a model make."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from finetune.cli import main
from tests.support.helpers import HANG_SECONDS

WRITER, READER = "hf_writer", "hf_reader"  # tokens
_LARGE = 10_000  # bytes; larger files are stored by their checksum, as git-lfs does
_FAR_FUTURE = 4102444800  # seconds since 1970
_LICENSES = {"apache-2.0", "mit"}


@dataclass
class Repository:
    """A repository: its files, by name, and the names in each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(json.dumps(self.commits).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The stand-in: repositories, stored large files, and what it was asked.

    Attributes:
        uploads: how often the content of each large file was received completely, by checksum.
        drop_uploads: close the connection in the middle of every upload of a large file.
        fail_with: HTTP status of every answer to a commit; None: commits succeed.
        xet_store: a folder in which hf_xet stores large files; the repository then has their checksums as content.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.requests: list[str] = []
        self.drop_uploads = False
        self.fail_with: int | None = None
        self.xet_store: Path | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server(patch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Start the stand-in, and let huggingface_hub use it without waiting between attempts."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    patch.setenv("HF_TOKEN", WRITER)
    patch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    try:
        yield server
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join(HANG_SECONDS)


def _xet_headers(store: str) -> dict[str, str]:
    return {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(_FAR_FUTURE)}


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        path, size = self.path, int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = self._chunks()
        else:
            content = self.rfile.read(size // 2 if self.server.drop_uploads else size)
        if self.server.drop_uploads:
            self.close_connection = True
            self.connection.close()
            return
        oid = path.rpartition("/")[2]
        assert _sha256(content) == oid
        self.server.stored[oid] = content
        self.server.uploads[oid] += 1
        self._send(200, {})

    def _chunks(self) -> bytes:
        """Return the content of a chunked request; only its first chunk if uploads are dropped."""
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
            if self.server.drop_uploads:
                return content
        self.rfile.readline()
        return content

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            self._send(401, {"error": "Invalid username or password."})
            return
        for prefix, action in _ACTIONS.items():
            if path.startswith(prefix):
                action(self, path, body)
                return
        self._large_files(path, body) if path.endswith("/objects/batch") else self._file(path)

    def _create(self, path: str, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.headers["Authorization"] != f"Bearer {WRITER}":
            self._send(403, {"error": f"You don't have the rights to create a model under {wanted['organization']}"})
        elif name in self.server.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.server.endpoint}/{name}"})
        else:
            self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
            self._send(200, {"url": f"{self.server.endpoint}/{name}", "name": name})

    def _validate(self, path: str, body: bytes) -> None:
        """Check the front matter of a card as the hub does: that it is YAML, and that the license is known."""
        data = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        known = data.get("license") in (None, *_LICENSES)
        errors = [] if known else [{"message": f'"license" must be one of {sorted(_LICENSES)}'}]
        self._send(200 if known else 400, {"errors": errors, "warnings": []})

    def _model(self, path: str, body: bytes) -> None:
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["preupload"]:
            self._send(200, {"files": [self._upload_mode(repository, file) for file in json.loads(body)["files"]]})
        elif rest[:1] == ["commit"]:
            self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
        elif rest[:1] == ["xet-write-token"]:
            store = f"local://{self.server.xet_store}"
            self._send(200, {"accessToken": "x", "exp": _FAR_FUTURE, "casUrl": store}, _xet_headers(store))
        elif rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": _git_oid(content)}
                for file, content in repository.files.items()
            ]
            self._send(200, entries)
        else:
            siblings = [{"rfilename": file} for file in repository.files]
            model = {"id": f"{owner}/{name}", "sha": repository.head, "private": repository.private}
            self._send(200, {**model, "siblings": siblings})

    def _upload_mode(self, repository: Repository, file: dict[str, Any]) -> dict[str, object]:
        content = repository.files.get(file["path"])
        large = file["size"] > _LARGE
        oid = None if content is None else _sha256(content) if large else _git_oid(content)
        return {
            "path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid,
        }  # fmt: skip

    def _large_files(self, path: str, body: bytes) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}
            objects.append({**item, **({} if item["oid"] in self.server.stored else {"actions": upload})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        if self.server.fail_with is not None:
            self._send(self.server.fail_with, {"error": "Service unavailable"})
            return
        repository, names = self.server.repositories[name], []
        for line in lines[1:]:
            value = line["value"]
            names.append(value["path"])
            if line["key"] == "deletedFile":
                del repository.files[value["path"]]
            elif line["key"] == "lfsFile" and self.server.xet_store is not None:
                repository.files[value["path"]] = value["oid"].encode()
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.stored[value["oid"]]
            else:
                repository.files[value["path"]] = base64.b64decode(value["content"])
        repository.commits.append(names)
        url = f"{self.server.endpoint}/{name}/commit/{repository.head}"
        self._send(200, {"commitUrl": url, "commitOid": repository.head, "pullRequestUrl": None})

    def _file(self, path: str) -> None:
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        repository = self.server.repositories.get(name)
        content = None if repository is None else repository.files.get(rest.partition("/")[2])
        if repository is None or content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": repository.head}
        self._send_bytes(200, content, headers)

    def _send(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


_ACTIONS: dict[str, Callable[[_Handler, str, bytes], None]] = {
    "/api/repos/create": _Handler._create,
    "/api/validate-yaml": _Handler._validate,
    "/api/models/": _Handler._model,
}


def publish(run: Path, *options: str, repo: str = "me/my-model") -> int:
    """Publish a run, and return the exit code."""
    return main(["publish", str(run), "--repo", repo, *options])
