"""The web application of `finetune demo`: one page, and the calls that the page makes."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from time import perf_counter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from finetune.demo.explorer import Explorer, Heads
from finetune.demo.opened_model import OpenedModel
from finetune.demo.page import render_page
from finetune.errors import DataError, FinetuneError

_MAX_BYTES = 4_000_000  # of a request; texts of 1,000,000 characters fit
_Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the policy of the page itself is in the page
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Question(BaseModel):
    """What the page sends.

    Attributes:
        texts: a text, or both texts of a pair.
        off: the heads that are off, as [layer, head].
        exact: whether the effects of heads are computed exactly.
        head: the head whose attention is shown.
        target: the label that is explained; None: the most probable one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    texts: Annotated[list[str], Field(min_length=1, max_length=2)]
    off: list[_Pair] = []
    exact: bool = True
    head: _Pair = [0, 0]
    target: int | None = None

    def heads_off(self) -> Heads:
        """Return the heads that are off."""
        return frozenset((layer, head) for layer, head in self.off)


def demo_app(opened: OpenedModel, hosts: Sequence[str]) -> Starlette:
    """Return the application.

    Args:
        hosts: the names under which the page may be opened, "*" for any. Without this check, a page of another host
            could reach the model through a name that points at this machine.
    """
    explorer, page = Explorer(opened.classifier), render_page(opened)
    # Calls of several people wait for each other here, and not in the server's threads.
    predicting = ThreadPoolExecutor(1, "predictions")
    explaining = ThreadPoolExecutor(1, "explanations", _lower_priority)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    def answering(function: Callable[[Question], dict[str, Any]], worker: Executor) -> Callable[[Request], Any]:
        """Return the endpoint that answers with a function of the question, computed by a worker."""

        async def answer(request: Request) -> Response:
            try:
                question = await _question(request, reads_pairs=opened.reads_pairs)
                result = await asyncio.get_running_loop().run_in_executor(worker, _timed, function, question)
            except FinetuneError as error:
                return JSONResponse({"error": str(error)}, status_code=422, headers=_HEADERS)
            except asyncio.CancelledError:  # the command ends; not raised, because the server would log a traceback
                return JSONResponse({"error": "the demo was stopped"}, status_code=503, headers=_HEADERS)
            return JSONResponse(result, headers=_HEADERS)

        return answer

    def predict(question: Question) -> dict[str, Any]:
        return asdict(explorer.predict(tuple(question.texts), question.heads_off()))

    def explain(question: Question) -> dict[str, Any]:
        texts, off = tuple(question.texts), question.heads_off()
        return asdict(explorer.explain(texts, off, target=question.target, exact=question.exact))

    def attention(question: Question) -> dict[str, Any]:
        layer, head = question.head
        return asdict(explorer.attention(tuple(question.texts), (layer, head), question.heads_off()))

    routes = [
        Route("/", show_page),
        Route("/predict", answering(predict, predicting), methods=["POST"]),
        Route("/explain", answering(explain, explaining), methods=["POST"]),
        Route("/attention", answering(attention, explaining), methods=["POST"]),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[trusted])


def _lower_priority() -> None:
    """Let the system prefer other threads to this one: on Linux, a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _timed(function: Callable[[Question], dict[str, Any]], question: Question) -> dict[str, Any]:
    """Return the result of a function with its duration; the page shows it."""
    started = perf_counter()
    return {**function(question), "milliseconds": 1000 * (perf_counter() - started)}


async def _question(request: Request, *, reads_pairs: bool) -> Question:
    """Return the content of a request.

    Raises:
        DataError: it is not JSON of the right form, too long, or its number of texts is not that of the model.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        # A form of another page can send other types without the browser asking this server for permission.
        raise DataError("the content type of a request must be application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MAX_BYTES:
            raise DataError(f"the request is longer than {_MAX_BYTES:,} bytes; send a shorter text")
    try:
        question = Question.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"request: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if len(question.texts) != 1 + reads_pairs:
        expected = "pairs of texts" if reads_pairs else "single texts"
        raise DataError(f"the request has {len(question.texts)} texts, and the model was trained on {expected}")
    return question
