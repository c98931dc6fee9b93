"""The errors of the hub, and what an upload repeats after one: finetune/pipeline/hub.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune.pipeline.publish import Publication, published_files
from finetune.runs.run_files import existing_run
from tests.support.hub_server import READER, HubServer, publish


def test_an_upload_that_was_interrupted_is_completed_by_the_next(
    small_run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.drop_uploads = True
    assert publish(small_run) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the upload to me/my-model at {hub.endpoint} failed (")
    assert "start the same command again" in error
    assert hub.repositories["me/my-model"].files == {}
    hub.drop_uploads, hub.fail_with = False, 503
    assert publish(small_run) == 2
    assert "error: the hub failed (503, Service unavailable); start the same command again" in capsys.readouterr().err
    assert hub.repositories["me/my-model"].files == {}
    sent = dict(hub.uploads)
    assert sent
    hub.fail_with = None
    assert publish(small_run) == 0
    names = published_files(existing_run(small_run), Publication("me/my-model")).keys()
    assert "model.safetensors" in names
    assert hub.repositories["me/my-model"].files.keys() == names
    assert [sorted(commit) for commit in hub.repositories["me/my-model"].commits] == [sorted(names)]
    assert dict(hub.uploads) == sent  # what was received before the error was not sent again
    assert set(sent.values()) == {1}


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("wrong", r"the hub refused the token \(401, Invalid username or password\); log in with `hf auth login`"),
        (READER, r"the token has no permission to write to me/my-model \(403, You don't have the rights .*\); log in"),
    ],
)
def test_a_refused_token_is_one_message(
    small_run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    token: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    assert publish(small_run) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: {message}.*\n", error), error
    assert hub.repositories == {}


def test_nothing_is_sent_without_a_token_or_a_network(
    small_run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.pipeline.hub.get_token", lambda: None)
    assert publish(small_run) == 2
    assert "there is no token for the hub; log in with `hf auth login`" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert publish(small_run) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert hub.requests == []


def test_a_hub_that_is_not_reachable_is_one_message(
    small_run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.server_close()
    assert publish(small_run) == 2
    error = capsys.readouterr().err
    beginning = rf"error: the upload to me/my-model at {hub.endpoint} failed \(.*\); check the connection and start"
    assert re.match(beginning, error), error
    assert error.count("\n") == 1


def test_the_hub_rejects_a_license_that_it_does_not_know(
    small_run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(small_run, "--license", "my-own") == 2
    assert (
        'the hub rejected the upload to me/my-model (Invalid metadata in README.md. - "license"'
        in capsys.readouterr().err
    )
    assert hub.repositories["me/my-model"].files == {}


def test_private_is_refused_for_a_repository_that_is_public(
    small_run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(small_run) == 0
    assert publish(small_run, "--private") == 2
    assert "the repository me/my-model exists and is public; make it private" in capsys.readouterr().err
    assert len(hub.repositories["me/my-model"].commits) == 1
