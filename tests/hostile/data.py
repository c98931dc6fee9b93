"""Data files in all formats with a few wrong cells or bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

CELLS = [
    "a cat sat", "x", "y", "1", "0", "0.0", "007", "-1", "1e300", "nan", "NA", "null", "None", "true", "2020-01-01",
    "", " ", "\t", '"', '""', "'", 'a "b" c', 'a\\"b', "a,b", "a\nb", "a\rb", "\0", "\x1b[31m", "é", "😀", "\ufeff",
    "\u2028", "x" * 2000, "[1, 0]", "[]", "{}", '{"a": 1}', "9" * 23, "inf", "-inf", "<b>", "\ufffd",
]  # fmt: skip
MAGIC = [
    b"PK\x03\x04", b"\x1f\x8b\x08", b"PAR1", b"\x28\xb5\x2f\xfd", b"ARROW1", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf",
    b"BZh9", b"SQLite format 3\0",
]  # fmt: skip


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """Draw a data file: its name, its content, and overrides for it."""
    format_name = draw(st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"]))
    content = {"csv": _table, "tsv": _table, "jsonl": _json, "json": _json, "parquet": _parquet}[format_name](
        draw, format_name
    )
    match draw(st.integers(0, 19)):
        case 0:
            content = content[: draw(st.integers(0, len(content)))]
        case 1:
            position = draw(st.integers(0, len(content)))
            content = content[:position] + draw(st.binary(min_size=1, max_size=4)) + content[position + 1 :]
        case 2:
            content = draw(st.sampled_from(MAGIC)) + content
        case 3:
            content = draw(st.binary(max_size=60))
    problem = ["single_label_classification", "multi_label_classification", "regression"]
    changes = [f"task.problem_type={draw(st.sampled_from(problem))}"] if draw(st.integers(0, 3)) == 0 else []
    if draw(st.integers(0, 4)) == 0:
        changes.append("task.label_names=[x, y]")
    if draw(st.integers(0, 6)) == 0:
        changes.append("data.text_pair_column=other")
    if draw(st.integers(0, 6)) == 0:
        changes += ["data.validation_file=null", "data.validation_size=0.5"]
    return f"data.{format_name}", content, changes


def _table(draw: st.DrawFn, kind: str) -> bytes:
    sign = "," if kind == "csv" else "\t"
    rows = [["sentence", "label", "other"]]
    rows += [[f"a cat {number}", "xy"[number % 2], "1"] for number in range(draw(st.integers(2, 6)))]
    for _ in range(draw(st.integers(0, 3))):
        row, cell = draw(st.sampled_from(rows)), draw(st.sampled_from(CELLS))
        match draw(st.integers(0, 4)):
            case 0:
                row.append(cell)
            case 1:
                row.pop() if len(row) > 1 else None
            case _:
                row[draw(st.integers(0, len(row) - 1))] = cell
    quoted = draw(st.booleans())
    lines = [sign.join('"' + c.replace('"', '""') + '"' if quoted else c for c in row) for row in rows]
    return draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(lines).encode()


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(CELLS) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "", "sentence"]), inner, max_size=2)
    ),
    max_leaves=5,
)


def _json(draw: st.DrawFn, kind: str) -> bytes:
    count = draw(st.integers(2, 6))
    rows: list[Any] = [{"sentence": f"a cat {n}", "label": "xy"[n % 2], "other": "1"} for n in range(count)]
    for _ in range(draw(st.integers(0, 2))):
        if not rows or draw(st.integers(0, 9)) == 0:
            rows.append(draw(VALUE))
        elif isinstance(row := draw(st.sampled_from(rows)), dict):
            row[draw(st.sampled_from(["sentence", "label", "label", "other", "", "new"]))] = draw(VALUE)
    if draw(st.integers(0, 3)) == 0 and rows:
        column = draw(st.sampled_from(["sentence", "label"]))
        rows = [{**row, column: draw(VALUE)} if isinstance(row, dict) else row for row in rows]
    texts = [json.dumps(row) for row in rows]
    if kind == "jsonl":
        return "\n".join(texts).encode()
    match draw(st.sampled_from(["rows", "rows", "rows", "value", "object", "deep"])):
        case "rows":
            return f"[{','.join(texts)}]".encode()
        case "value":
            return json.dumps(draw(VALUE)).encode()
        case "object":
            return json.dumps({"data": rows}).encode()
    return b"[" * 100_000


_TYPES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), ["x", "y", "", None]),
    (pa.large_string(), ["x", "y"]),
    (pa.int64(), [0, 1, 2, -1, None]),
    (pa.uint64(), [0, 2**64 - 1]),
    (pa.int8(), [0, 1]),
    (pa.float16(), [0.0, 1.0]),
    (pa.float32(), [0.0, 1.0, float("nan"), float("inf")]),
    (pa.float64(), [0.0, 1e300, None]),
    (pa.bool_(), [True, False, None]),
    (pa.date32(), [0, 1]),
    (pa.timestamp("us"), [0, 1]),
    (pa.duration("s"), [0, 1]),
    (pa.time64("us"), [0, 1]),
    (pa.binary(), [b"x", b"\xff"]),
    (pa.binary(2), [b"xx", b"yy"]),
    (pa.decimal128(25, 2), [1, 2]),
    (pa.null(), [None]),
    (pa.list_(pa.int64()), [[0], [1, 0], [], None, [None]]),
    (pa.list_(pa.string()), [["x"], ["x", "y"], []]),
    (pa.list_(pa.int64(), 2), [[0, 1], [1, 0]]),
    (pa.list_(pa.list_(pa.int64())), [[[0]], [[1, 0], []]]),
    (pa.large_list(pa.string()), [["x"], ["y"]]),
    (pa.list_(pa.float64()), [[0.0, 1.0], [0.5]]),
    (pa.struct([("a", pa.int64())]), [{"a": 1}, {"a": None}, None]),
    (pa.map_(pa.string(), pa.int64()), [[("a", 1)], []]),
    (pa.dictionary(pa.int32(), pa.string()), ["x", "y", None]),
]


def _parquet(draw: st.DrawFn, kind: str) -> bytes:
    count = draw(st.integers(0, 6))
    columns: dict[str, Any] = {}
    for name in ("sentence", "label", "other"):
        texts = [f"a {n}" if name == "sentence" else "xy"[n % 2] for n in range(count)]
        columns[name] = pa.array(texts, pa.string())
    for _ in range(draw(st.integers(0, 2))):
        type_, values = draw(st.sampled_from(_TYPES))
        cells = draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
        name = draw(st.sampled_from(["sentence", "label", "label", "other", ""]))
        columns[name] = pa.array(cells, type_)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=draw(st.sampled_from([1, 100])))
    return sink.getvalue()
