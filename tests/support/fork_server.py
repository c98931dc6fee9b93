"""A process that imports the libraries once, and forks for every request: `python -m tests.support.fork_server`.

Each line of the standard input is a request, each line of the standard output the exit codes of its processes. The
process starts no thread and runs no command itself, so a fork differs from a new process only in its imports. It also
ends without freeing every imported module, which would take another second.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "finetune.cli", "finetune.pipeline.evaluate", "finetune.pipeline.predict", "finetune.pipeline.series",
    "sklearn.feature_extraction.text", "sklearn.linear_model", "transformers.models.bert.modeling_bert",
)  # fmt: skip


def main() -> None:
    """Answer requests until the standard input is closed."""
    for name in PRELOADED:
        __import__(name)
    gc.freeze()  # a collection in a fork would copy the memory of all imported modules
    for line in sys.stdin:
        request = json.loads(line)
        forks = []
        for environment in request["environments"]:
            fork = os.fork()
            if fork == 0:
                os._exit(exit_code(request, environment))
            forks.append(fork)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks]), flush=True)


def exit_code(request: dict[str, Any], environment: dict[str, str]) -> int:
    """Run the request, print what ends it, and return the exit code as Python would."""
    try:
        run(request, environment)
        result: object = 0
    except SystemExit as end:
        result = end.code
    except BaseException:
        traceback.print_exc()
        result = 1
    if isinstance(result, str):
        print(result, file=sys.stderr)
    sys.stdout.flush(), sys.stderr.flush()
    return result if isinstance(result, int) else int(result is not None)


def run(request: dict[str, Any], environment: dict[str, str]) -> None:
    """Run the request as Python would with these arguments, working directory, environment and output files."""
    for stream, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        file = os.open(name, flags)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(environment)
    program, *arguments = request["command"]
    if program == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], request["folder"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [program, *arguments], str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
