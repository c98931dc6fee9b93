"""The first sentences of the report: the result of a run, and what a reader must be careful about."""

from __future__ import annotations

from finetune.recipe.named_metrics import lower_is_better
from finetune.report.run_record import RunRecord
from finetune.runs.baselines import BaselineComparison
from finetune.runs.removable_heads import removable_heads
from finetune.runs.results import MetricValue, format_number, format_significant

_FEW_ROWS = 100


def headline(record: RunRecord) -> str:
    """Return the result of a run in one sentence, without the parts that the run does not have.

    For example "0.891 accuracy on 1,821 test rows [0.876, 0.905], 0.080 [0.062, 0.098] above TF-IDF + logistic
    regression; 31 of 72 heads can be removed before it falls below that interval."
    """
    split = record.shown_split()
    if split is None:
        return "There are no validation or test rows, so there are no scores."
    scores, metric = record.scores[split], headline_metric(record, split)
    value = scores.metrics[metric]
    name = metric.replace("_", " ")
    score = f"{format_number(value.value)} {name}" if value.value is not None else f"The {name} is undefined"
    rows = "row" if scores.rows == 1 else "rows"
    sentence = f"{score} on {scores.rows:,} {split} {rows} {value.interval()}".rstrip()
    baseline = _against_baseline(record.baselines, split, metric)
    heads = _removable(record, metric, value)
    return "".join([sentence, f", {baseline}" if baseline else "", f"; {heads}" if heads else "", "."])


def headline_metric(record: RunRecord, split: str) -> str:
    """Return the metric of the headline: the one that selects the best weights, or the first that was measured."""
    measured = record.scores[split].metrics
    return record.training.best_metric if record.training.best_metric in measured else next(iter(measured))


def _against_baseline(comparison: BaselineComparison | None, split: str, metric: str) -> str:
    """Return how a score compares with that of the strongest baseline, such as "no better than TF-IDF ...", or ""."""
    if comparison is None or comparison.metric != metric or split not in comparison.splits:
        return ""
    sign = -1 if lower_is_better(metric) else 1
    results = {
        name: scores
        for name, scores in comparison.splits[split].baselines.items()
        if scores.metrics.get(metric) is not None and metric in scores.differences
    }
    if not results:
        return ""
    name = max(results, key=lambda each: sign * (results[each].metrics[metric] or 0.0))
    return _difference(results[name].differences[metric], comparison.fitted[name].description, sign)


def _difference(difference: MetricValue, baseline: str, sign: int) -> str:
    """Return "0.080 [0.062, 0.098] above B", or that the classifier is no better, with the signed difference.

    Args:
        sign: -1 if a lower score is better.
    """
    value, low, high = difference.value, difference.low, difference.high
    if value is None:
        return ""
    if low is None or high is None:
        direction = "equal to" if value == 0 else "above" if value > 0 else "below"
        return f"{abs(value):.3f} {direction} {baseline} (no interval)" if value else f"equal to {baseline}"
    size = f"{abs(value):.3f} [{min(abs(low), abs(high)):.3f}, {max(abs(low), abs(high)):.3f}]"
    if low <= 0 <= high:
        return f"no better than {baseline} (difference {value:+.3f} [{low:+.3f}, {high:+.3f}])"
    better = sign * value > 0
    return f"{size} {'above' if value > 0 else 'below'} {baseline}{'' if better else ', which is better'}"


def _removable(record: RunRecord, metric: str, value: MetricValue) -> str:
    """Return how many heads can be removed before the score falls below its interval, or ""."""
    curves = None if record.heads is None else record.heads.truth
    if record.heads is None or curves is None or curves.metric != metric:
        return ""
    edge = value.high if lower_is_better(metric) else value.low
    if edge is None or value.value is None:
        return ""
    result = removable_heads(record.heads, abs(value.value - edge))
    assert result is not None, "there is a pruning curve"
    worse = "rises above" if lower_is_better(metric) else "falls below"
    count = f"{result.count} of {result.heads} heads" if result.count else "no head"
    return f"{count} can be removed before it {worse} that interval"


def cautions(record: RunRecord) -> list[str]:
    """Return what a reader of the scores must be careful about, as sentences."""
    split = record.shown_split()
    found = [*_selection(record, split), *record.notes()]
    for name, result in record.scores.items():
        found += [f"{name}: {warning}." for warning in result.warnings]
        found += [f"{name}: {result.interval_note}."] if result.interval_note else []
    if split is not None and record.scores[split].rows < _FEW_ROWS and not record.scores[split].interval_note:
        found.append(f"The {split} split has only {record.scores[split].rows} rows, so its scores are uncertain.")
    found += record.baselines.warnings() if record.baselines else []
    curves = None if record.heads is None else record.heads.truth
    if split is not None and curves is not None and _removable_is_shown(record, split):
        found.append(
            f"The number of removable heads comes from {curves.rows:,} {curves.split} rows, and the interval from "
            f"{record.scores[split].rows:,} {split} rows: score a pruned model before you use it."
        )
    return found


def _removable_is_shown(record: RunRecord, split: str) -> bool:
    metric = headline_metric(record, split)
    return bool(_removable(record, metric, record.scores[split].metrics[metric]))


def _selection(record: RunRecord, split: str | None) -> list[str]:
    """Return a sentence if the rows of the headline also selected the weights."""
    if split != "validation" or record.training.best_step is None:
        return []
    evaluations = sum("eval_loss" in entry for entry in record.history)
    if evaluations < 2:
        return []
    return [
        f"The validation rows also selected the weights, the best of {evaluations} evaluations, so the validation "
        "scores are a little too good. Only test rows that nothing was chosen on give an unbiased score."
    ]


def cost_text(record: RunRecord) -> str:
    """Return the cost of training in words: time, speed, memory and parameters."""
    training = record.training
    speed = training.speed
    return (
        f"{format_significant(speed.train_seconds)} s of training at {speed.train_samples_per_second:,.1f} rows/s, "
        f"peak memory {speed.peak_memory_mb:,.0f} MB, {training.trainable_parameters:,} of "
        f"{training.total_parameters:,} parameters trained"
    )
