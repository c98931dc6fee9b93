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
for line in sys.stdin:
    try:
        source = Source(*line.split())
        labels = Labels(('no', 'yes'), 'single_label_classification')
        classifier = pretrained_classifier(source, load_tokenizer(source), labels, max_length=16)
        print('RESULT layers', classifier.base.config.num_hidden_layers, flush=True)
    except ModelError as error:
        print('RESULT ModelError', str(error).replace('\\n', ' '), flush=True)
"""
MODELS = ("team/tiny", "team/dropped")  # the same files, so that each test finds its model outside the cache


class Hub(ThreadingHTTPServer):
    """Serves the files of one model under the names MODELS, at two revisions."""

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
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path.startswith("/api/models/") and name in MODELS:
            revision = path.rpartition("/")[2] if "/revision/" in path else "main"
            siblings = [{"rfilename": file.name} for file in self.server.files.iterdir()]
            model_info = {"id": name, "modelId": name, "sha": COMMIT.get(revision), "siblings": siblings}
            self.send(200, json.dumps(model_info).encode(), "application/json", {}, body=body)
            return
        model, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        missing = (
            "RepoNotFound" if model not in MODELS
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


class Loader:
    """A process that loads models by name from the hub; it reads the environment when it imports the libraries."""

    def __init__(self, hub: Hub, cache: Path, **environment: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        inherited |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(HANG_SECONDS),
            "HF_HUB_ETAG_TIMEOUT": str(HANG_SECONDS),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=inherited | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def load(self, name: str, revision: str = "main") -> str:
        """Return the number of layers of the model, or the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {revision}\n")
        self.process.stdin.flush()
        timer = threading.Timer(HANG_SECONDS, self.process.kill)
        timer.start()
        result = next((line for line in self.process.stdout if line.startswith("RESULT ")), None)
        timer.cancel()
        assert result is not None, "the process has ended; its error is above"
        return result.removeprefix("RESULT ").strip()

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=HANG_SECONDS)
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def hub(tiny_bert: Path) -> Iterator[Hub]:
    server = Hub(tiny_bert)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub-cache")


@pytest.fixture(scope="module")
def online(hub: Hub, cache: Path) -> Iterator[Loader]:
    loader = Loader(hub, cache)
    yield loader
    loader.close()


def test_a_model_is_fetched_once_and_then_offline(hub: Hub, online: Loader, cache: Path) -> None:
    hub.requests = 0
    assert online.load("team/tiny") == "layers 2"
    assert online.load("team/tiny", "v1") == "layers 2"
    requests = hub.requests
    assert requests > 5
    offline = Loader(hub, cache, HF_HUB_OFFLINE="1")
    assert offline.load("team/tiny") == "layers 2"
    assert hub.requests == requests
    output = offline.load("team/other")
    assert output.startswith("ModelError cannot load model 'team/other' (revision main)")
    assert "go online or fill the cache" in output
    offline.close()


def test_a_missing_model_is_named(online: Loader) -> None:
    output = online.load("team/nothing")
    assert output.startswith("ModelError cannot load model 'team/nothing' (revision main)")
    assert "give a hub id and revision" in output


def test_a_missing_revision_is_named(online: Loader) -> None:
    output = online.load("team/tiny", "v9")
    assert output.startswith("ModelError cannot load model 'team/tiny' (revision v9)")


def test_a_dropped_connection_is_named_and_can_be_repeated(hub: Hub, online: Loader) -> None:
    hub.drop = True
    output = online.load("team/dropped")
    assert output.startswith("ModelError cannot load model 'team/dropped' (revision main)")
    hub.drop = False
    assert online.load("team/dropped") == "layers 2"
