"""A comparison with baselines, with known scores."""

from __future__ import annotations

from finetune.runs.baselines import BaselineComparison, BaselineInfo, BaselineScores, SplitComparison
from finetune.runs.results import MetricValue

SCORES = BaselineScores({"accuracy": 0.5, "f1_macro": None}, {"accuracy": MetricValue(0.25, 0.125, 0.375)})
COMPARISON = BaselineComparison(
    "accuracy",
    {"majority": BaselineInfo("most frequent label 'a'", 40)},
    {"tfidf": "there is no word in the texts"},
    1.5,
    {
        "validation": SplitComparison(20, {"accuracy": 0.75, "f1_macro": 0.5}, {"majority": SCORES}),
        "test": SplitComparison(20, {"accuracy": 0.5, "f1_macro": 0.5}, {"majority": SCORES}, "not above 0.5"),
    },
)
