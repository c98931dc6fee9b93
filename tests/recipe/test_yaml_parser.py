"""Parsing YAML: finetune/recipe/yaml_parser.py."""

from __future__ import annotations

import pytest

from finetune.recipe.yaml_parser import MAX_DEPTH, NotYamlError, YamlValues, compose


def build(text: str) -> tuple[object, YamlValues]:
    node, values = compose(text), YamlValues()
    assert node is not None
    return values.build(node, ()), values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("-007", -7), ("1.5", 1.5), ("2e-5", 2e-5), (".5", 0.5), ("-.inf", float("-inf")), ("true", True),
        ("False", False), ("~", None), ("null", None), ("no", "no"), ("0x10", "0x10"), ("1_000", "1_000"), ("'1'", "1"),
        ("!!str 1", "1"), ("!!float 1.0", 1.0), ("!<tag:yaml.org,2002:int> 5", 5), ("2020-01-01", "2020-01-01"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, expected: object) -> None:
    value, values = build(text)
    assert value == expected
    assert type(value) is type(expected)
    assert not values.problems


def _laughs() -> str:
    """Return nested aliases that expand to a billion values."""
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(lines)


def _chain(links: int) -> str:
    """Return lists that are nested deeply only because of aliases."""
    return "k0: &k0 []\n" + "".join(f"k{n}: &k{n} [*k{n - 1}]\n" for n in range(1, links))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: [1\n", 2, "expected ',' or ']'"),
        ("a: 1\nb: " + "[" * 100_000, 2, f"nested more than {MAX_DEPTH} deep"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), MAX_DEPTH, f"nested more than {MAX_DEPTH} deep"),
        ("a: &x [*x]\n", 1, "an alias that contains itself"),
        ("a: &x {b: {c: *x}}\n", 1, "an alias that contains itself"),
        (_laughs(), 6, "aliases repeat too much"),
        ("a: &a '" + "x" * 1_000_000 + "'\nb: [" + ",".join(["*a"] * 50) + "]", 2, "aliases repeat too much"),
        (_chain(2 * MAX_DEPTH), MAX_DEPTH + 1, "aliases repeat too much"),
        ('"\\UFFFFFFFF": 1\n', 1, "an invalid escape or directive"),
        ('a: 1\nb: "\\U00110000"\n', 2, "an invalid escape or directive"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", 1, "an invalid escape or directive"),
        ("a: 1\nb: '\0'\n", 2, r"the character '\x00' is not allowed"),
        ("a: 1\n---\nb: 1\n", 2, "expected a single document in the stream, but found another document"),
        ("a: *x\n", 1, "undefined alias 'x'"),
        ("!!set\na: 1\n", 1, "the tag !!set does not fit"),
        ("!!omap\n- a: 1\n", 1, "the tag !!omap does not fit"),
        ("a: 1\nb: !!bool foo\n", 2, "the tag !!bool does not fit"),
        ("a: !!int [1]\n", 1, "the tag !!int does not fit"),
        ("a: !!int 1.5\n", 1, "the tag !!int does not fit"),
        ("a: !!float abc\n", 1, "the tag !!float does not fit"),
        ("a: !!null foo\n", 1, "the tag !!null does not fit"),
        ("a: !!timestamp foo\n", 1, "the tag !!timestamp does not fit"),
        ("a: !!binary '='\n", 1, "the tag !!binary does not fit"),
        ("a: !!str {b: 1}\n", 1, "the tag !!str does not fit"),
        ("a: !!map [b]\n", 1, "the tag !!map does not fit"),
        ("a: !foo 1\n", 1, "the tag !foo does not fit"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "the tag !!python/object/apply:os.system does not fit"),
    ],
    ids=range(27),
)  # fmt: skip
def test_invalid_yaml_is_reported_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(NotYamlError) as error:
        compose(text)
    assert reason in str(error.value)
    assert error.value.line == line


def test_aliases_of_ordinary_size_are_expanded() -> None:
    rows = "[" + ",".join(["{sentence: a good film, label: 1}"] * 1000) + "]"
    value, _ = build(f"a: &a {rows}\nb: *a\nc: [*a, *a]\n")
    assert isinstance(value, dict)
    assert value["a"] == value["b"] == value["c"][1]
    assert len(value["a"]) == 1000


@pytest.mark.parametrize(
    ("text", "location", "reason"),
    [
        ("a: 1\na: 2\n", ("a",), "is given again on line 2; remove one of the two"),
        ("b:\n  ? [a]\n  : 1\n", ("b",), "a list or a mapping as a key on line 2"),
        ('a: ["\\ud800"]\n', ("a", 0), r"contains '\ud800', an unpaired surrogate"),
        ('"\\udfff": 1\n', ("\udfff",), r"contains '\udfff', an unpaired surrogate"),
        (f"a: {'9' * 101}\n", ("a",), "is a number of 101 digits; if it is text, put it in quotation marks"),
    ],
)
def test_faults_of_keys_and_scalars_are_collected(text: str, location: tuple[object, ...], reason: str) -> None:
    _, values = build(text)
    ((location, message),) = values.problems
    assert location == location
    assert reason in message


def test_the_first_value_of_a_duplicate_key_is_used() -> None:
    value, values = build("a: 1\na: 2\nb: 3\n")
    assert value == {"a": 1, "b": 3}
    assert values.lines == {("a",): "line 1", ("b",): "line 3"}


def test_an_alias_is_text_only_where_text_is_expected() -> None:
    value, _ = build("seed: &n 7\ntask: {label_names: [*n, true]}\ntraining: {*n : *n}\n")
    assert value == {"seed": 7, "task": {"label_names": ["7", "true"]}, "training": {"7": 7}}


def test_cells_of_rows_are_read_as_written() -> None:
    row = "{sentence: 1.50, label: 007, other: true, list: [1, 0.0], date: 2020-01-01, empty: null, nan: .nan}"
    value, _ = build(f"data: {{train_rows: [{row}], max_length: 16}}\n")
    assert isinstance(value, dict)
    (read,) = value["data"]["train_rows"]
    assert read.pop("nan") != 0.0
    assert read == {
        "sentence": "1.50", "label": "007", "other": "true", "list": ["1", "0.0"], "date": "2020-01-01", "empty": None,
    }  # fmt: skip
    assert value["data"]["max_length"] == 16
