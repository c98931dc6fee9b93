from __future__ import annotations

from finetune.runs.comparison import PairComparison, RunsComparison, SplitDifference


def test_the_splits_of_all_pairs() -> None:
    result = SplitDifference(1, {}, None)
    pairs = [PairComparison("b", {"test": result}), PairComparison("c", {"validation": result, "test": result})]
    comparison = RunsComparison("regression", "pearson", [], pairs, {}, [])
    assert comparison.splits() == ["test", "validation"]
    assert comparison.pairs_on("validation") == [pairs[1]]
