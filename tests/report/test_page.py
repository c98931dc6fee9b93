from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import DataError
from finetune.report import write_report
from finetune.report.card import interval_or_dash
from finetune.report.page import SECTIONS, render_report
from finetune.report.run_record import read_record
from finetune.runs.json_files import read_json, write_json
from finetune.runs.predictions import worst_predictions
from finetune.runs.results import MetricValue, SplitScores, TrainingResult
from finetune.runs.run_folder import RunFolder
from tests.support import ROOT
from tests.support.baselines import COMPARISON
from tests.support.known_run import RECIPE, cell, full_analysis, known_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with known results and without a model."""
    return known_run(tmp_path / "known")


def test_the_report_and_the_card_contain_the_results(run: RunFolder) -> None:
    write_report(run)
    html = run.report.read_text()
    for expected in (
        "0.875", "[0.825, 0.925]", "3 of 40 test rows are also training rows", "E|dL/dgate|",
        "layer 0 head 1 (0.09 ± 0.002)", "1,234 of 56,789 parameters", "12.5 %", "LoRA rank 8 on query, value",
        "0.4321",
    ):  # fmt: skip
        assert expected in html, expected
    card = run.card.read_text()
    assert "| accuracy | 0.8750 [0.825, 0.925] |" in card
    assert "| f1_macro | 0.8000 – |" in card


def test_every_template_is_a_section_of_the_page() -> None:
    templates = (ROOT / "finetune/report/sections").glob("*.html")
    assert sorted(template.stem for template in templates) == sorted(SECTIONS)


def test_baseline_warnings_are_shown(run: RunFolder) -> None:
    scores = read_json(run.scores, dict[str, SplitScores])["test"]
    write_json(run.scores, {"test": replace(scores, warnings=["accuracy is not above <0.5>"])})
    write_report(run)
    assert "<li>test: accuracy is not above &lt;0.5&gt;.</li>" in run.report.read_text()
    assert "\n> test: accuracy is not above <0.5>.\n" in run.card.read_text()


def test_baselines_are_shown_beside_the_classifier(run: RunFolder) -> None:
    write_report(run)
    assert "Baselines" not in run.report.read_text() + run.card.read_text()
    write_json(run.baselines, COMPARISON)
    write_report(run)
    html, card = run.report.read_text(), run.card.read_text()
    assert '<td class="text">most frequent label &#39;a&#39;</td><td>0.5000</td><td>undefined</td>' in html
    assert '<td>+0.2500 <span class="soft">[0.125, 0.375]</span></td>' in html
    assert "<li>test: not above 0.5.</li>" in html
    assert "Without the baseline tfidf: there is no word in the texts." in html
    assert "| model | validation accuracy | test accuracy | \n" in card
    row = "| most frequent label 'a' | 0.5000 (+0.2500 [0.125, 0.375]) | 0.5000 (+0.2500 [0.125, 0.375]) | "
    assert f"| this classifier | 0.7500 | 0.5000 | \n{row}\n" in card
    assert "\n> test: not above 0.5.\n" in card


def test_training_notes_are_shown(run: RunFolder) -> None:
    training = read_json(run.training, TrainingResult)
    new_head, falling = "The classification head is new: it was for <a>.", "The loss was still falling."
    write_json(run.training, replace(training, notes=[new_head], warnings=[falling]))
    write_report(run)
    assert f"<li>{falling}</li>" in run.report.read_text()
    assert f"\n> {falling}\n" in run.card.read_text()
    assert "<li>The classification head is new: it was for &lt;a&gt;.</li>" in run.report.read_text()
    assert "\n> The classification head is new: it was for <a>.\n" in run.card.read_text()


def test_undefined_metrics_are_shown_as_undefined(run: RunFolder) -> None:
    scores = read_json(run.scores, dict[str, SplitScores])["test"]
    write_json(run.scores, {"test": replace(scores, metrics={"pearson": MetricValue(None)})})
    training = replace(read_json(run.training, TrainingResult), best_metric="pearson", best_value=None)
    write_json(run.training, training)
    write_report(run)
    html = run.report.read_text()
    assert "<b>undefined</b>" in html
    assert "pearson undefined in every evaluation, lowest loss at step 2." in html
    assert "| pearson | undefined – |" in run.card.read_text()


def test_the_report_shows_every_part_of_an_analysis(run: RunFolder) -> None:
    write_json(run.heads, full_analysis(3))
    write_report(run)
    html = run.report.read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", html[html.index('id="heads"') :]).replace("&#39;", "'").split())
    for expected in (
        "halves of the rows is 0.50 [0.40, 0.60] on average (in brackets: the central 95 % of random splits). A note.",
        "The ranking is the reverse of the order in which heads would be removed.",
        "Most important by iterative method 0: layer 1 head 10 (0.14 ± 0.1), layer 1 head 9", "beware of &lt;this&gt;",
        "iterative method 2 0.7500 0.2500 40 1.5 0.50 [0.40, 0.60]", "3 random orders 0.5000 ± 0.0125 –",
        "iterative method 0, iterative method 1 0.50 [0.40, 0.60]",
        "McNemar's exact test, corrected for 23 heads (Holm). The table shows the ten heads with the smallest",
        "1 essential, 2 redundant, 1 harmful, 2 unused, 18 undecided. The tests compare the probability of the",
        "Without all 2 unused heads together the score changes by +0.0010 and the output by 0.0040.",
        "0.1 redundant with layer 1, head 10 -0.0010 -0.0900 0.001 1.10",
        "0.0 -0.1000 [-0.2000, +0.0000] 4 0 1", "No such tie is seen.", "output-value product",
    ):  # fmt: skip
        assert expected in text, expected
    write_json(run.heads, full_analysis(1, "mean squared error"))
    write_report(run)
    assert "Wilcoxon's signed-rank test" in run.report.read_text().replace("&#39;", "'")


def test_the_report_needs_no_network(run: RunFolder) -> None:
    write_report(run)
    html = run.report.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?!.data:)", html)
    assert 'id="chart-library"' in html
    assert len(html) < 1_500_000
    assert f"<style>\n{(ROOT / 'finetune/report/style.css').read_text().strip()}" in html


def test_the_text_of_rows_is_escaped(run: RunFolder) -> None:
    write_report(run)
    assert "<script>alert(" not in run.report.read_text()
    assert "&lt;script&gt;alert(13)" in run.report.read_text()


def test_a_page_without_texts_contains_the_rows_and_no_text(run: RunFolder) -> None:
    record = read_record(run)
    with_texts = render_report(record, "known", "")
    html = render_report(record.without_texts(), "known", "")
    for name in ("rows-manifest", "rows-label", "rows-length"):
        assert f'id="{name}"' in html
    assert 'id="rows-text-0"' in with_texts
    assert "rows-text-" not in html.replace("`rows-text-${chunk}`", "")
    assert "alert(13)" in with_texts
    assert "alert(13)" not in html
    assert "This copy of the report does not contain texts" in html


def test_the_ten_worst_errors_are_sorted_by_loss(run: RunFolder) -> None:
    rows = worst_predictions(run, 10)
    assert [row.row for row in rows] == list(range(14, 4, -1))
    assert (rows[0].label, rows[0].predicted, rows[0].confidence) == ("no", "yes", 0.75)


def test_an_unfinished_or_damaged_run_is_rejected(run: RunFolder, tmp_path: Path) -> None:
    run.scores.write_text(json.dumps({"test": {"rows": "many"}}))
    with pytest.raises(DataError, match=r"scores\.json is damaged or of another version \(test\.rows"):
        write_report(run)
    run.scores.unlink()
    with pytest.raises(DataError, match=r"no scores\.json in .*known; a finished run has one"):
        write_report(run)
    with pytest.raises(DataError, match=r"no recipe\.yaml in"):
        write_report(RunFolder(tmp_path))


def test_a_regression_run_without_head_analysis(run: RunFolder) -> None:
    run.recipe.write_text(RECIPE + "task: {problem_type: regression}\nhead_importance: null\n")
    write_json(run.scores, {"test": SplitScores(40, 0.5, {"pearson": cell(0.5)})})
    run.heads.unlink()
    values = pa.array([0.5, 0.25])
    columns = {"split": ["test"] * 2, "row": [1, 2], "text": ["a", "b"], "label": values, "predicted": values}
    columns |= {"probabilities": [[0.5], [0.25]], "loss": [0.0, 0.0]}
    pq.write_table(pa.table(columns), run.predictions)
    write_report(run)
    html = run.report.read_text()
    assert "pearson" in html
    assert "Every scored row was predicted correctly" in html
    assert 'id="confusion"' not in html
    assert 'id="heads"' not in html


def test_a_missing_interval_is_a_dash() -> None:
    assert interval_or_dash(MetricValue(0.5, 0.4, 0.6)) == "[0.400, 0.600]"
    assert interval_or_dash(MetricValue(0.5)) == "–"


def test_the_same_results_give_the_same_report(run: RunFolder) -> None:
    write_report(run)
    html, card = run.report.read_bytes(), run.card.read_bytes()
    write_report(run)
    assert (run.report.read_bytes(), run.card.read_bytes()) == (html, card)
