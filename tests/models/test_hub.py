"""Loading a model by hub id from a local server that replaces the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.helpers import HANG_SECONDS

COMMIT = {"main": "a" * 40, "v1": "b" * 40}
PROGRAM = """\
import sys
from finetune.errors import ModelError
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.pretrained import quiet_libraries
from finetune.models.pretrained import Source, load_tokenizer
quiet_libraries()
try:
    source = Source(sys.argv[1], sys.argv[2])
    labels = Labels(('no', 'yes'), 'single_label_classification')
    classifier = pretrained_classifier(source, load_tokenizer(source), labels, max_length=16)
    print('layers', classifier.base.config.num_hidden_layers)
except ModelError as error:
    print('ModelError', error)
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of one model, `team/tiny`, at two revisions."""

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.drop, self.requests = files, False, 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.requests += 1
        path = self.path.partition("?")[0]
        if "/tree/" in path:  # a folder of chat templates, which this model does not have
            self.send(404, b"", "text/plain", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        if path.startswith("/api/models/team/tiny"):
            revision = path.rpartition("/")[2] if "/revision/" in path else "main"
            siblings = [{"rfilename": file.name} for file in self.server.files.iterdir()]
            model_info = {"id": "team/tiny", "modelId": "team/tiny", "sha": COMMIT.get(revision), "siblings": siblings}
            self.send(200, json.dumps(model_info).encode(), "application/json", {}, body=body)
            return
        model, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        missing = (
            "RepoNotFound" if model != "team/tiny"
            else "RevisionNotFound" if revision not in (*COMMIT, *COMMIT.values())
            else None if (self.server.files / name).is_file() else "EntryNotFound"
        )  # fmt: skip
        if missing:
            self.send(404, b"", "text/plain", {"X-Error-Code": missing, "X-Error-Message": missing}, body=body)
            return
        content = (self.server.files / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT.get(revision, revision)}
        self.send(200, content, "application/octet-stream", headers, body=body)

    def send(self, status: int, content: bytes, kind: str, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.server.drop and len(content) > 10_000:
            self.wfile.write(content[:5000])
            self.close_connection = True
            self.connection.close()
        elif body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny_bert: Path) -> Iterator[Hub]:
    server = Hub(tiny_bert)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def load(hub: Hub, cache: Path, name: str, revision: str = "main", **environment: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    inherited |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": str(HANG_SECONDS),
        "HF_HUB_ETAG_TIMEOUT": str(HANG_SECONDS),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, revision],
        env=inherited | environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_model_is_fetched_once_and_then_offline(hub: Hub, tmp_path: Path) -> None:
    assert load(hub, tmp_path, "team/tiny") == "layers 2"
    assert load(hub, tmp_path, "team/tiny", "v1") == "layers 2"
    requests = hub.requests
    assert requests > 5
    assert load(hub, tmp_path, "team/tiny", HF_HUB_OFFLINE="1") == "layers 2"
    assert hub.requests == requests
    output = load(hub, tmp_path, "team/other", HF_HUB_OFFLINE="1")
    assert output.startswith("ModelError cannot load model 'team/other' (revision main)")
    assert "go online or fill the cache" in output


def test_a_missing_model_is_named(hub: Hub, tmp_path: Path) -> None:
    output = load(hub, tmp_path, "team/nothing")
    assert output.startswith("ModelError cannot load model 'team/nothing' (revision main)")
    assert "give a hub id and revision" in output


def test_a_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    output = load(hub, tmp_path, "team/tiny", "v9")
    assert output.startswith("ModelError cannot load model 'team/tiny' (revision v9)")


def test_a_dropped_connection_is_named_and_can_be_repeated(hub: Hub, tmp_path: Path) -> None:
    hub.drop = True
    output = load(hub, tmp_path, "team/tiny")
    assert output.startswith("ModelError cannot load model 'team/tiny' (revision main)")
    hub.drop = False
    assert load(hub, tmp_path, "team/tiny") == "layers 2"
