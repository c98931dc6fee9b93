from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.heads.latency import Latencies
from finetune.heads.pruning import check_pruned, pruned_classifier
from finetune.heads.structured_pruning import search_sizes
from finetune.heads.sublayers import HEADS, NEURONS, removed_members, sublayers
from finetune.models.comparison import logits_of
from tests.support.families import TEXTS, build, save_checkpoint, split_of
from tests.support.helpers import sample_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "family", ["albert", "bert", "deberta", "distilbert", "eurobert", "ibert", "modernbert", "mpnet", "xlm"]
)
def test_a_refitted_model_equals_gates_of_zero_and_is_nearer_to_the_full_model(family: str, tmp_path: Path) -> None:
    classifier = build(save_checkpoint(family, tmp_path))
    classifier = replace(classifier, model=classifier.model.eval())
    before = {name: tensor.clone() for name, tensor in classifier.base.state_dict().items()}
    parts = sublayers(classifier.base)
    by_size = tuple(tuple(float(size * part.width) for size in part.sizes()) for part in parts)
    latencies = Latencies(1 + sum(times[0] for times in by_size), by_size)
    search = search_sizes(sample_of(classifier, split=split_of(classifier)), parts, latencies, 0)
    kept = search.kept_at(2)
    assert kept is not None
    heads, neurons = removed_members(kept, HEADS), removed_members(kept, NEURONS)
    assert heads or neurons
    refitted = search.refitted(kept)
    pruned = pruned_classifier(refitted, heads, neurons)
    check_pruned(refitted, pruned, heads, TEXTS, neurons)
    full = logits_of(classifier, TEXTS, CPU)
    errors = [
        float((logits_of(model, TEXTS, CPU) - full).square().sum())
        for model in (pruned, pruned_classifier(classifier, heads, neurons))
    ]
    assert errors[0] < errors[1]  # on the rows of the refit
    assert all(tensor.equal(before[name]) for name, tensor in classifier.base.state_dict().items())
    assert search.kept_at(1e9) is None
