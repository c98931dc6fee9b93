from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.heads.pruning import heads_to_prune
from finetune.models.attention_sites import attention_sites
from finetune.models.loading import load_classifier
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from tests.support.pruning import prune_run


def test_a_ranking_on_test_rows_is_replaced_by_one_on_training_rows(run: Path) -> None:
    analysis = json.loads((run / "heads.json").read_text())
    for method in analysis["methods"]:
        method["split"] = "test"
        method["order"] = method["order"][::-1]  # the reversed order would remove the most important heads first
    (run / "heads.json").write_text(json.dumps(analysis))
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["head_importance"]["split"] = "test"
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    pruning = prune_run(run, "--share", "0.5")
    assert "gradient on 48 train rows" in pruning.chosen_by
    order = [tuple(head) for head in analysis["methods"][0]["order"][::-1]]
    sites = attention_sites(load_classifier(run / "model").base)
    assert pruning.heads == {str(layer): heads for layer, heads in sorted(heads_to_prune(order, sites, 0.5).items())}


def test_a_method_is_read_from_the_analysis_or_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(sample: Any, method: str, **_: Any) -> Any:
        measured.append(method)
        return read_json(run / "heads.json", HeadAnalysis).methods[1]

    monkeypatch.setattr("finetune.pipeline.choose_heads.measure_importance", measure)
    assert "fisher on 48 train rows" in prune_run(run, "--share", "0.3", "--method", "fisher").chosen_by
    assert measured == []
    shutil.rmtree(run / "pruned")
    prune_run(run, "--share", "0.3", "--method", "entropy")
    assert measured == ["entropy"]
