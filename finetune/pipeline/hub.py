"""Upload files to a model repository on the hub, and turn its errors into messages. Imports no torch."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # its __init__ re-exports without __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from finetune.errors import FinetuneError, shorten
from finetune.version import __version__

Files = Mapping[str, Path | bytes]  # name in the repository -> a local file, or the content
_AGAIN = "start the same command again: files that are already there are not sent twice"
_LOG_IN = (
    "log in with `hf auth login`, or set HF_TOKEN to a token with write permission (huggingface.co/settings/tokens)"
)


def check_repository(name: str) -> None:
    """Raise FinetuneError unless `name` is the full id of a repository, such as "me/my-model"."""
    try:
        validate_repo_id(name)
        problem = "" if name.count("/") == 1 else "it has no owner"
    except HFValidationError as error:
        problem = " ".join(str(error).split()).rstrip(".")
    if problem:
        raise FinetuneError(
            f"'{shorten(name, 120)}' is not the name of a repository ({shorten(problem, 200)}); write OWNER/NAME, such "
            "as me/my-model"
        )


def upload(files: Files, repository: str, *, private: bool, replaced: frozenset[str] = frozenset()) -> str:
    """Write files to a repository in one commit, and return its address; the repository is created if needed.

    A file that the repository already has with the same content is not sent again.

    Args:
        private: whether the repository must be private.
        replaced: names of files that are deleted if the repository has them and `files` does not.

    Raises:
        FinetuneError: there is no token, the hub refuses it, cannot be reached or rejects the files, or the repository
            is public and `private` is set.
    """
    if get_token() is None:
        raise FinetuneError(f"there is no token for the hub; {_LOG_IN}")
    with _quiet(), _hub_errors(repository):
        api = HfApi(library_name="finetune", library_version=__version__)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise FinetuneError(
                f"the repository {repository} exists and is public; make it private in its settings, or name another"
            )
        stale = (replaced - files.keys()) & set(api.list_repo_files(repository))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(name) for name in sorted(stale)),
            *(CommitOperationAdd(name, content) for name, content in files.items()),
        ]
        api.create_commit(repository, operations, commit_message=f"Publish a model with finetune {__version__}")
        return f"{api.endpoint}/{repository}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the notices of the hub's library, and its progress bars where the output is not a terminal."""
    verbosity, hidden = hub_logging.get_verbosity(), are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # That a parquet file is not expected in a model repository, and how the library itself calls httpx.
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not hidden:
            enable_progress_bars()


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn any error of the hub's library into one FinetuneError."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:  # of HTTP, of the Rust library for large files, or of the operating system
        raise FinetuneError(_message(error, repository)) from error


def _message(error: BaseException, repository: str) -> str:
    """Return the error as one message that says what to do."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading 'FILE'"
        error = error.__cause__
    reason = shorten(" ".join(str(error).split()), 300).rstrip(".;") or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = shorten(str(getattr(error, "server_message", None) or reason), 300).rstrip(".;")
    match status:
        case 401:
            return f"the hub refused the token (401, {said}); {_LOG_IN}"
        case 403:
            return f"the token has no permission to write to {repository} (403, {said}); {_LOG_IN}"
        case 404:
            return f"the hub has no repository {repository} that the token can see (404, {said}); correct the name"
        case 400 | 409 | 422:
            return f"the hub rejected the upload to {repository} ({status}, {said}); correct it and try again"
        case int():
            return f"the hub failed ({status}, {said}); {_AGAIN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be published; unset it"
    if isinstance(error, ValueError):
        return f"the hub rejected the upload to {repository} ({reason}); correct it and try again"
    return f"the upload to {repository} at {HfApi().endpoint} failed ({reason}); check the connection and {_AGAIN}"
