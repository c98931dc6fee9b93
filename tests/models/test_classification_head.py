from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from tests.support.families import save_checkpoint
from tests.support.helpers import ROLES, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")
NAMES = ("zeta", "alpha", "mid")


def build(
    folder: Path, labels: tuple[str, ...], lora: Lora | None = None, problem: str = "single_label_classification"
) -> Classifier:
    source = Source(str(folder))
    return pretrained_classifier(source, load_tokenizer(source), Labels(labels, problem), max_length=16, lora=lora)


# BERT has one matrix above its pooler, RoBERTa two, XLM no module called a classifier.
@pytest.fixture(scope="module", params=["bert", "roberta", "xlm"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    """Folder of a saved classifier with labels NAMES, and the classifier in memory."""
    folder = tmp_path_factory.mktemp(request.param)
    built = build(save_checkpoint(request.param, folder / "base"), NAMES)
    with torch.no_grad():
        for p in built.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_classifier(built, folder / "tuned")
    return folder / "tuned", built


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_logits_follow_their_names(
    tuned: tuple[Path, Classifier], lora: Lora | None, problem: str, tmp_path: Path
) -> None:
    folder, before = tuned
    order = ("mid", "zeta", "alpha")
    built = build(folder, order, lora, problem)
    expected = logits_of(before, TEXTS, CPU)[:, [NAMES.index(name) for name in order]]
    torch.testing.assert_close(logits_of(built, TEXTS, CPU), expected, atol=1e-6, rtol=1e-6)  # the same matrix products
    assert built.notes == (
        "The rows of the checkpoint's classification head, for the labels zeta, alpha, mid, were reordered.",
    )
    save_classifier(built, tmp_path)  # with an adapter, the base keeps its order and the adapter has the head
    reloaded = load_classifier(tmp_path)
    assert check_reload(built, reloaded, TEXTS, CPU) <= 1e-6
    assert built.new_parameters == ()
    assert reloaded.label_names == list(order)


def test_with_the_same_order_the_head_is_unchanged(tuned: tuple[Path, Classifier]) -> None:
    built = build(tuned[0], NAMES)
    assert logits_of(built, TEXTS, CPU).equal(logits_of(tuned[1], TEXTS, CPU))
    assert (built.notes, built.new_parameters) == ((), ())


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (("alpha", "mid", "omega"), "labels zeta, alpha, mid, not for alpha, mid, omega"),
        (("alpha", "mid"), "labels zeta, alpha, mid"),
        (("0", "1", "2"), "labels zeta, alpha, mid, not for 0, 1, 2"),
    ],
)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_other_labels_get_a_new_head_and_a_note(
    tuned: tuple[Path, Classifier], labels: tuple[str, ...], note: str, lora: Lora | None
) -> None:
    folder, before = tuned
    classifiers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        classifiers.append(build(folder, labels, lora))
    assert classifiers[0].notes == (f"The classification head is new: the checkpoint's is for the {note}.",)
    last = [name for name in classifiers[0].new_parameters if name.endswith("weight")][-1]
    weights = [dict(built.base.named_parameters()) for built in classifiers]
    key = last if lora is None else f"{last.rpartition('.')[0]}.modules_to_save.default.weight"
    assert weights[0][key].equal(weights[1][key])
    assert not weights[0][key].equal(weights[2][key])
    stored = before.base.get_parameter(last)
    assert weights[0][key].shape != stored.shape or not weights[0][key].equal(stored)


def test_labels_without_names_are_matched_by_id(tiny_bert: Path, tmp_path: Path) -> None:
    first = tiny_classifier(tiny_bert, labels=("LABEL_0", "LABEL_1"))
    save_classifier(first, tmp_path)
    by_id = build(tmp_path, ("0", "1"))
    assert (by_id.notes, by_id.new_parameters) == ((), ())
    by_name = build(tmp_path, ("LABEL_0", "LABEL_1"))
    assert (by_name.notes, by_name.new_parameters) == ((), ())
    reversed_head = build(tmp_path, ("1", "0"))
    assert reversed_head.base.get_parameter("classifier.weight").equal(
        first.base.get_parameter("classifier.weight").flip(0)
    )
    renamed = build(tmp_path, ("no", "yes"))
    assert renamed.notes == (
        "The classification head is new: the checkpoint's is for 2 labels without names, not for no, yes.",
    )
    assert renamed.new_parameters == ("classifier.bias", "classifier.weight")


def test_a_regression_head_is_kept_for_regression(tiny_bert: Path, tmp_path: Path) -> None:
    first = build(tiny_bert, ("value",), problem="regression")
    save_classifier(first, tmp_path)
    assert build(tmp_path, ("value",), problem="regression").new_parameters == ()
    renamed = build(tmp_path, ("no", "yes"))
    assert renamed.notes == ("The classification head is new: the checkpoint's is for the labels value.",)


def test_the_head_of_a_pruned_model_is_recognized(tiny_bert: Path, tmp_path: Path) -> None:
    from finetune.models.head_pruning import prune_heads

    first = tiny_classifier(tiny_bert, labels=NAMES)
    prune_heads(first.base, {0: [0, 1, 2]})
    save_classifier(first, tmp_path)
    built = build(tmp_path, ("mid", "zeta", "alpha"))
    expected = logits_of(first, TEXTS, CPU)[:, [2, 0, 1]]
    torch.testing.assert_close(logits_of(built, TEXTS, CPU), expected, atol=1e-6, rtol=1e-6)
