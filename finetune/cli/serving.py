"""The commands that put a trained model to use: predict, demo, export, publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.cli.shared import Arguments, Commands, add_command, delimiter, loading_libraries


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    _add_predict(commands)
    _add_demo(commands)
    _add_export(commands)
    _add_publish(commands)


def _add_predict(commands: Commands) -> None:
    parser = add_command(commands, "predict", _predict, "label the rows of a file, or lines of text, with a model")
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder, or a model folder in it")
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        default=Path("-"),
        metavar="FILE",
        help="csv, tsv, json, jsonl, parquet, arrow or txt, also compressed (.gz, .zst); - or nothing: standard input, "
        "one text per line",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="csv, tsv, jsonl or parquet (default: print)")
    parser.add_argument(
        "--text-column",
        action="append",
        default=[],
        metavar="NAME",
        help="the column with the texts (default: as in the training data); give it twice for pairs",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="add the K most probable labels")
    parser.add_argument("--probabilities", action="store_true", help="add the probability of every label")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[LABEL=]T",
        help="predict labels with a probability above this (default: as in the model); give it again for another label",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="C",
        help="add a set of labels, or an interval, that is right with this probability, such as 0.9",
    )
    parser.add_argument("--coverage-per-class", action="store_true", help="let the coverage hold for each label")
    parser.add_argument(
        "--in-scope",
        type=float,
        metavar="S",
        help="add whether a row is like the validation rows, so that this share of such rows is, such as 0.95",
    )
    parser.add_argument("--prefix", default="", metavar="TEXT", help="the beginning of the names of the new columns")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows per forward pass (default: 32, on a GPU 256)")
    precision = parser.add_mutually_exclusive_group()
    for name, text in _PRECISIONS.items():
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, default="no", help=text)
    parser.add_argument("--input-format", metavar="FORMAT", choices=_INPUT_FORMATS, help=", ".join(_INPUT_FORMATS))
    parser.add_argument(
        "--delimiter", type=delimiter, metavar="C", help="what separates the cells of a csv (default: as in its header)"
    )
    parser.add_argument("--output-format", metavar="FORMAT", choices=_OUTPUT_FORMATS, help=", ".join(_OUTPUT_FORMATS))
    parser.add_argument("--base", metavar="MODEL", help="where the base model of an adapter is now")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the base model")


_INPUT_FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt")
_PRECISIONS = {
    "bf16": "compute in bfloat16 (default: float32)",
    "int8": "multiply in int8, for CPUs without bfloat16 instructions",
}
_OUTPUT_FORMATS = ("csv", "tsv", "jsonl", "parquet", "table")


def _predict(args: Arguments) -> None:
    from finetune.pipeline.predict import PredictOptions, check_request, is_exported, predict
    from finetune.pipeline.prediction_columns import ColumnOptions

    options = PredictOptions(
        args.file,
        args.input_format,
        tuple(args.text_column),
        args.output,
        args.output_format,
        ColumnOptions(
            args.top_k,
            args.probabilities,
            tuple(args.threshold),
            args.prefix,
            args.coverage,
            args.coverage_per_class,
            args.in_scope,
        ),
        args.batch_size,
        args.precision,
        args.base,
        args.trust_remote_code,
        args.delimiter,
    )
    check_request(args.model, options)
    with loading_libraries(stderr=True, torch=not is_exported(args.model)):
        if not is_exported(args.model):
            import finetune.pipeline.torch_predictor  # noqa: F401
    predict(args.model, options)


def _add_demo(commands: Commands) -> None:
    parser = add_command(commands, "demo", _demo, "try a model in the browser, and switch its attention heads off")
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder, a series, or a model folder in it")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="interface to serve on (default: this machine only)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--base", metavar="MODEL", help="where the base model of an adapter is now")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the base model")


def _demo(args: Arguments) -> None:
    from finetune.demo.listener import check_start, listen

    check_start(args.model)
    with listen(args.host, args.port) as listener:
        with loading_libraries():
            from finetune.demo.opened_model import open_model
            from finetune.demo.serving import serve
        opened = open_model(args.model, trust_remote_code=args.trust_remote_code, base=args.base)
        serve(opened, listener, open_browser=args.open)


def _add_publish(commands: Commands) -> None:
    parser = add_command(commands, "publish", _publish, "upload a finished run's model, card and scores to the hub")
    parser.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository on the hub")
    parser.add_argument("--private", action="store_true", help="the repository must be private")
    parser.add_argument("--dry-run", action="store_true", help="list the files and show the card, without a network")
    parser.add_argument(
        "--include-texts", action="store_true", help="also publish texts of the rows: predictions, examples"
    )
    parser.add_argument(
        "--model",
        default="model",
        metavar="KIND",
        help="model (default); merged, from `finetune merge`; pruned or zeroed, from `finetune prune`",
    )
    parser.add_argument("--language", action="append", default=[], help="a language of the texts, such as en")
    parser.add_argument("--license", help="the license of the model, such as apache-2.0")


def _publish(args: Arguments) -> None:
    from finetune.pipeline.publish import Publication, print_files, publish

    publication = Publication(
        repository=args.repo,
        model=args.model,
        private=args.private,
        include_texts=args.include_texts,
        languages=tuple(args.language),
        license=args.license,
    )
    if args.dry_run:
        print_files(args.run, publication)
    else:
        print(f"Published: {publish(args.run, publication)}")


def _add_export(commands: Commands) -> None:
    export = add_command(commands, "export", _export, "write a model as a folder that onnxruntime can serve alone")
    export.add_argument(
        "model", type=Path, metavar="run", help="a run folder, such as runs/toy, or a model folder, such as RUN/pruned"
    )
    export.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="changes to the run's recipe"
    )
    export.add_argument("--format", choices=["onnx"], default="onnx", help="the format to write (default: onnx)")
    export.add_argument("--quantize", choices=["int8"], help="quantize the weights (default: float32)")
    export.add_argument("--output", type=Path, help="the folder to write (default: RUN/onnx, with int8 RUN/onnx-int8)")


def _export(args: Arguments) -> None:
    from finetune.runs.run_files import check_has_model

    check_has_model(args.model)
    with loading_libraries():
        from finetune.pipeline.export import export
    folder, result = export(args.model, args.overrides, int8=args.quantize == "int8", output=args.output)
    print(f"Exported to {folder}")
    for line in result.lines():
        print(line)


# Commands that run in one process only: with several, each would write the same files or serve the same page.
ONE_PROCESS: dict[Callable[[Arguments], None], str] = {
    _demo: "demo",
    _export: "export",
    _publish: "publish",
}
