from __future__ import annotations

from finetune.runs.data_quality import NOTE, WARNING, DataQuality, Finding, RowExample, list_names


def test_findings_by_level_and_without_texts() -> None:
    findings = [
        Finding("a", WARNING, "train", 1, "first", [[RowExample("train", 1, "secret")]]),
        Finding("b", NOTE, "", 2, "second"),
    ]
    quality = DataQuality(128, 64, {}, findings)
    assert [finding.kind for finding in quality.with_level(WARNING)] == ["a"]
    assert [finding.kind for finding in quality.with_level(NOTE)] == ["b"]
    assert "secret" not in str(quality.without_texts())
    assert [finding.message for finding in quality.without_texts().findings] == ["first", "second"]


def test_long_lists_are_cut() -> None:
    assert list_names(list("abc")) == "a, b, c"
    assert list_names(list("abcdefg")) == "a, b, c, d, e and 2 more"
