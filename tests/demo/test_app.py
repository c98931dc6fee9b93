"""The page of `finetune demo` in a browser, and what its server answers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main
from finetune.demo.explorer import Explorer, Heads
from finetune.demo.listener import LOOPBACK, address, listen
from finetune.demo.opened_model import OpenedModel, open_model
from finetune.demo.serving import serving
from finetune.pipeline.load_classifier import load_classifier
from tests.support.browser import chromium, needs_chromium, serious_violations, wait_until
from tests.support.helpers import HANG_SECONDS, assert_equal_up_to_rounding

HOSTILE = "<img src=x onerror=\"document.title='run'\"> \u202e cat </textarea>"


@dataclass(frozen=True)
class Running:
    """A demo that is being served, and the same model in Python."""

    url: str
    opened: OpenedModel
    python: Explorer

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(HTTPConnection(self.url[7:-1], timeout=HANG_SECONDS)) as connection:
            connection.request("POST", path, content, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else text.decode()


@pytest.fixture(scope="module")
def running(small_run: Path) -> Iterator[Running]:
    opened = open_model(small_run)
    with listen(LOOPBACK, None) as listener, serving(opened, listener) as url:
        yield Running(url, opened, Explorer(load_classifier(small_run)))


def test_the_server_answers_what_python_computes(running: Running) -> None:
    question = {"texts": ["the dog chased the cat"], "off": [[0, 1], [1, 3]]}
    texts, off = ("the dog chased the cat",), frozenset({(0, 1), (1, 3)})
    status, answer = running.post("/predict", question)
    assert status == 200
    assert_equal_up_to_rounding(answer["heads_off"], running.python.predict(texts, off).heads_off)
    assert_equal_up_to_rounding(answer["all_heads"], running.python.predict(texts).all_heads)
    status, answer = running.post("/explain", question)
    assert (status, answer["effects"][0][1], answer["tokens"]) == (200, None, texts[0].split())
    status, answer = running.post("/attention", {**question, "head": [1, 2]})
    assert (status, len(answer["weights"])) == (200, 5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": ["a"], "off": [[0, 4]]}, "there is no head 0.4; the heads per layer are 4, 4"),
        ({"texts": ["a", "b"]}, "the request has 2 texts, and the model was trained on single texts"),
        ({"texts": [" "]}, "the text has no tokens; write at least one word"),
        ({"texts": [3]}, "request: texts.0: Input should be a valid string"),
        ({"texts": ["a"], "heads": []}, "request: heads: Extra inputs are not permitted"),
        (b"[", "request: : Invalid JSON"),
        (b'{"texts": ["\\ud800"]}', "request: : Invalid JSON"),
        (b" " * 4_000_001, "the request is longer than 4,000,000 bytes; send a shorter text"),
    ],
)
def test_a_wrong_request_is_one_message(running: Running, body: Any, message: str) -> None:
    status, answer = running.post("/predict", body)
    assert status == 422
    assert answer["error"].startswith(message)


def test_pages_of_other_hosts_are_refused(running: Running) -> None:
    question = {"texts": ["a"]}
    assert running.post("/predict", question, host="example.com") == (400, "Invalid host header")
    status, answer = running.post("/predict", question, **{"content-type": "text/plain"})
    assert (status, answer["error"]) == (422, "the content type of a request must be application/json")


def test_the_first_free_port_is_used_and_a_taken_one_is_an_error(
    capsys: pytest.CaptureFixture[str], small_run: Path
) -> None:
    with listen(LOOPBACK, None) as first, listen(LOOPBACK, None) as second:
        ports = [int(address(listener).rpartition(":")[2].rstrip("/")) for listener in (first, second)]
        assert 7860 <= ports[0] < ports[1] < 7960
        assert main(["demo", str(small_run), "--port", str(ports[0])]) == 2
    expected = (
        f"error: port {ports[0]} of 127.0.0.1 cannot be used (Address already in use); name another, or leave out"
    )
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere cannot be used: there is no such folder; name a run folder"),
        (["exported"], "exported is an exported model, whose graph has no gates: its heads cannot be switched off"),
        (["RUN", "--port", "70000"], "--port is 70000; a port is a number from 1 to 65535"),
        (["RUN", "--host", "nowhere.invalid"], "--host is 'nowhere.invalid', which is no address of this machine"),
    ],
)
def test_a_start_that_cannot_work_is_one_message(
    arguments: list[str],
    message: str,
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune.cli.serving.loading_libraries", lambda: pytest.fail("libraries were loaded"))
    if "--host" in arguments:
        monkeypatch.setattr("socket.getaddrinfo", unknown)
    Path("exported").mkdir()
    Path("exported/model.onnx").touch()
    assert main(["demo", *[str(small_run) if word == "RUN" else word for word in arguments]]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_several_processes_and_missing_libraries_are_errors(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["demo", str(small_run)]) == 2
        message = "the demo needs starlette and uvicorn, not installed here; run `pip install 'finetune[demo]'`"
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo", str(small_run)]) == 2
    assert "demo runs in one process, and the launcher started 2" in capsys.readouterr().err


def shown(page: Any, column: str, off: str) -> list[float]:
    """Return the probability of each label that the page shows, once it shows them for these heads."""
    place = f'[data-column={column}] [data-off="{off}"]'
    page.wait_for_selector(place)
    assert page.eval_on_selector_all(f"{place} [data-label]", "rows => rows.map(row => row.dataset.label)") == [
        "0",
        "1",
    ]
    values = page.eval_on_selector_all(f"{place} b", "places => places.map(place => place.dataset.probability)")
    return list(map(float, values))


@pytest.fixture
def browser() -> Iterator[Any]:  # not for the module: it would leave an event loop running in this thread
    with chromium() as running_browser:
        yield running_browser


@needs_chromium
def test_two_people_switch_heads_and_see_what_python_computes(running: Running, browser: Any) -> None:
    problems: list[str] = []

    def open_page(fragment: str = "") -> Any:
        page = browser.new_context().new_page()
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith(running.url) else problems.append(sent.url))
        page.goto(running.url + fragment)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    def python(text: str, off: Heads = frozenset()) -> list[float]:
        return running.python.predict((text,), off).heads_off

    first, second = open_page("#a=the+cat+sat"), open_page("#a=the+cat+sat")
    for page in (first, second):
        assert_equal_up_to_rounding(shown(page, "A", ""), python("the cat sat"))
    first.click('[data-head="1.2"]')
    without = shown(first, "A", "1.2")
    assert_equal_up_to_rounding(without, python("the cat sat", frozenset({(1, 2)})))
    assert abs(without[0] - python("the cat sat")[0]) > 0.001
    second.fill("[data-field=A0]", "a dog sat")  # the other person's heads stay on
    wait_until(second, "() => document.querySelector('[data-column=A] [role=status]').textContent.startsWith('3')")
    second.wait_for_selector(".token >> text=dog")
    assert_equal_up_to_rounding(shown(second, "A", ""), python("a dog sat"))

    kept = running.opened.rankings[0].order[5:]
    off = running.python.heads - set(kept)
    first.evaluate("keep => { keep.value = 3; keep.dispatchEvent(new Event('input')); }", first.query_selector("#keep"))
    names = ",".join(f"{layer}.{head}" for layer, head in sorted(off))
    assert_equal_up_to_rounding(shown(first, "A", names), python("the cat sat", off))
    first.click("#all-on")
    shown(first, "A", "")
    first.wait_for_selector("#columns .token")
    first.click("#second")
    first.fill("[data-field=B0]", HOSTILE)
    first.wait_for_selector("#edits ins")
    assert first.query_selector("main img") is None
    assert first.input_value("[data-field=B0]") == HOSTILE
    assert first.text_content("#edits ins").strip().startswith("<img")
    first.fill("[data-field=A0]", "cat " * 25_000)
    first.wait_for_selector("[role=status] >> text=Longer than 16 tokens: the model reads the first 16")
    first.wait_for_selector(".tokens:not(.stale) .token")
    assert serious_violations(first) == []
    assert first.title() == "run: demo"
    for page in (first, second):
        page.context.close()
    assert problems == []


def test_ctrl_c_ends_the_command_without_a_traceback(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = []

    def open_page(url: str) -> None:
        try:
            with closing(HTTPConnection(url[7:-1], timeout=HANG_SECONDS)) as connection:
                connection.request("GET", "/")
                pages.append(connection.getresponse().read())
                question = json.dumps({"texts": ["the cat sat"]}).encode()
                connection.request("POST", "/explain", question, {"content-type": "application/json"})
                os.kill(os.getpid(), signal.SIGINT)  # the answer is not awaited
        finally:
            ended.set()

    ended = threading.Event()
    monkeypatch.setattr("webbrowser.open", open_page)
    assert main(["demo", str(small_run / "model"), "--open"]) == 130
    assert ended.wait(HANG_SECONDS)
    output = capsys.readouterr()
    assert re.search(r"^Demo of run/model: http://127\.0\.0\.1:\d+/ \(Ctrl\+C ends it\)$", output.out, re.MULTILINE)
    assert output.err == "stopped by SIGINT\n"
    assert [b"<title>run/model: demo</title>" in page for page in pages] == [True]
