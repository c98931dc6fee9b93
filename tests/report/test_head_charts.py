from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from scipy import stats

from finetune.report.charts import chart_element
from finetune.report.head_charts import agreement_chart, agreement_rows, pruning_chart
from finetune.runs.head_results import RankAgreement, TauValue
from tests.support.known_run import full_analysis


def test_the_pruning_chart_has_every_curve_and_a_band_from_lowest_to_highest() -> None:
    truth = full_analysis(2).truth
    assert truth is not None
    option = pruning_chart(truth)
    series = {each["name"]: each for each in option["series"] if "stack" not in each}
    low, height = (each["data"] for each in option["series"][:2])
    assert low[:2] == [[0.0, 0.9], [10.0, 0.4]]
    assert height[:2] == [[0.0, 0.0], [10.0, 0.2]]
    assert series["iterative method 1"]["data"][-1] == [90.0, 0.9]
    assert series["iterative method 1, most important first"]["data"][-1] == [90.0, 0.25]
    assert option["legend"]["selected"] == {"iterative method 1, most important first": False}
    assert "lower edge" not in option["legend"]["data"]
    assert 'data-option="' in chart_element(option, 300, "curves")  # it can be written as JSON


def test_accuracies_of_the_leading_method_have_wilson_intervals() -> None:
    truth = full_analysis(2).truth
    assert truth is not None
    series = pruning_chart(truth)["series"]
    low, height = (each["data"] for each in series[4:6])
    assert series[5]["name"] == "iterative method 0"
    expected = stats.binomtest(36, 40).proportion_ci(method="wilson")  # accuracy 0.9 on 40 rows
    assert low[3] == [30.0, pytest.approx(expected.low, abs=1e-6)]
    assert height[3] == [30.0, pytest.approx(expected.high - expected.low, abs=2e-6)]
    without = pruning_chart(replace(truth, metric="f1_macro"))["series"]
    assert len(without) == len(series) - 4  # two lines for each of the two intervals


def test_curves_of_earlier_versions_have_no_reversed_scores() -> None:
    truth = full_analysis(1).truth
    assert truth is not None
    old = replace(truth, curves=[replace(curve, reverse_scores=[]) for curve in truth.curves], random=None)
    old = replace(old, metric="f1_macro")  # without intervals
    assert [each["name"] for each in pruning_chart(old)["series"]] == ["iterative method 0"]


def test_agreement_shows_the_pairs_below_the_stability_of_each_method() -> None:
    rows = agreement_rows(full_analysis(2))
    assert {kind: [name for name, _ in values] for kind, values in rows.items()} == {
        "one method, two halves of the rows": ["iterative method 0", "iterative method 1"],
        "two methods, the same rows": ["iterative method 0 and iterative method 1"],
    }
    option = agreement_chart(rows)
    assert option["yAxis"]["data"] == [name for values in rows.values() for name, _ in values]
    interval, point = option["series"][2:]
    assert point["data"] == [[0.5, 2]]
    assert interval["data"][:2] == [[0.4, 2], [0.6, 2]]


def test_many_methods_are_compared_with_the_leading_one() -> None:
    analysis = full_analysis(7)
    names = [scores.method for scores in analysis.methods]
    pairs = [RankAgreement(first, second, TauValue(0.5, 0.4, 0.6)) for first, second in combinations(names, 2)]
    assert len(pairs) == 21
    shown = agreement_rows(replace(analysis, agreement=pairs))["two methods, the same rows"]
    assert len(shown) == 6
    assert all(name.startswith("iterative method 0") for name, _ in shown)
    undefined = [RankAgreement("a", "b", TauValue(None))]
    methods = [replace(scores, stability=None) for scores in analysis.methods]
    assert agreement_rows(replace(analysis, methods=methods, agreement=undefined)) == {}
