"""What is saved opens in transformers, peft and sentence-transformers with the same probabilities, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from finetune.data.tokenization import word_tokenizer
from finetune.heads.pruning import pruned_classifier, write_zeroed
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier, with_plain_adapters
from tests.conftest import SENTENCES
from tests.support.helpers import ROLES
from tests.support.stock_loaders import LOADERS, Case, Opened, add_to_hub_cache, open_in_a_fresh_process

LONG = "the cat sat on the mat and the dog chased the cat on the floor now or it will not sit on the mat again"
TEXTS = [(SENTENCES[0],), (SENTENCES[5],), (LONG,)]  # the last one has more tokens than max_length
PAIRS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], SENTENCES[3]), (LONG, SENTENCES[4])]
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PLAIN = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
LORA = {
    "lora": PLAIN,
    "gaussian": replace(PLAIN, init_lora_weights="gaussian"),
    "orthogonal": replace(PLAIN, init_lora_weights="orthogonal"),
    "olora": replace(PLAIN, init_lora_weights="olora"),
    "pissa": replace(PLAIN, init_lora_weights="pissa"),
    "rslora": replace(PLAIN, use_rslora=True),
    "dora": replace(PLAIN, use_dora=True),
    "pissa, rslora and ranks": replace(
        PLAIN, init_lora_weights="pissa", use_rslora=True, rank_pattern={"query": 1, "1.value": 3}
    ),
}
# The limit for rounding of finetune/models/precision.py; a wrong adapter differs by percents. Measured: 2e-7 at most.
TOLERANCE = 1e-5
PRUNED, PRUNED_NEURONS = {0: [1], 1: [0, 1, 2]}, {0: list(range(32)), 1: [5]}


@dataclass(frozen=True)
class Kind:
    """A kind of saved model.

    Attributes:
        labels: names of the labels.
        lora: None without adapters.
        pairs: whether its rows are pairs of texts.
        options: what the stock loaders of an adapter must be given, because its base does not have it.
        pooling: as in the recipe.
    """

    labels: tuple[str, ...]
    lora: Lora | None = None
    problem_type: str = SINGLE
    pairs: bool = False
    family: str = "bert"
    options: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "head"


TWO, THREE = ("no", "yes"), ("a", "b", "c")
NAMES = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
FULL = {
    "full": Kind(THREE),
    "full, pairs": Kind(THREE, pairs=True),
    "full, multi-label": Kind(THREE, problem_type=MULTI, pairs=True),
    "full, regression": Kind(("score",), problem_type=REGRESSION, pairs=True),
}
ADAPTERS = {
    **{name: Kind(TWO, lora) for name, lora in LORA.items()},
    "lora, pairs": Kind(TWO, PLAIN, pairs=True),
    "lora, head of two layers": Kind(TWO, PLAIN, family="roberta"),
    "lora, head of the base": Kind(TWO, PLAIN, family="tuned"),
    "lora, three labels": Kind(THREE, PLAIN, options=NAMES),
    "lora, multi-label": Kind(THREE, PLAIN, MULTI, pairs=True, options={**NAMES, "problem_type": MULTI}),
}
# Pooled classifiers: only code that comes with the model opens them, and nothing but finetune their adapters.
POOLED = {
    "pooled": Kind(THREE, pooling="mean"),
    "pooled, pairs": Kind(THREE, pairs=True, pooling="cls"),
    "pooled, multi-label": Kind(THREE, problem_type=MULTI, pairs=True, family="roberta", pooling="mean"),
}
POOLED_ADAPTERS = {
    "pooled lora": Kind(TWO, PLAIN, pooling="mean"),
    "pooled lora, three labels": Kind(THREE, PLAIN, options=NAMES, pooling="cls"),
    "pooled lora, head of two layers": Kind(TWO, PLAIN, family="roberta", pooling="mean"),
}


def trained(base: Path, kind: Kind) -> Classifier:
    """Return a classifier of this kind, with weights that were changed as by training."""
    source = Source(str(base), pooling=kind.pooling)
    labels = Labels(kind.labels, kind.problem_type)
    classifier = pretrained_classifier(source, load_tokenizer(source), labels, max_length=16, lora=kind.lora)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    classifier.model.eval()
    return with_plain_adapters(classifier, TEXTS, torch.device("cpu"))


def save_base(family: str, folder: Path) -> Path:
    """Save a small random encoder of this family as a checkpoint."""
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 40)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, initializer_range=0.2, **sizes
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy() -> Classifier:
    """Return a classifier of finetune's own model type."""
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 40)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 3, "hidden_size": 24, "head_dim": 8}
    labels = Labels(("no", "yes"), SINGLE)
    return new_classifier("multi_head_classifier", sizes, tokenizer, labels, max_length=16)


TRUSTED = ", trusted"
WITHOUT_LABELS = "lora, three labels, without num_labels"


class Models:
    """Saved models, with what finetune predicts with each."""

    def __init__(self, folder: Path, bases: Mapping[str, Path]) -> None:
        self.folder, self.bases = folder, bases
        self.cases: list[Case] = []
        self.expected: dict[str, np.ndarray] = {}

    def save(self, name: str, kind: Kind) -> Classifier:
        """Save a trained classifier of this kind; its base has a hub id there."""
        base = self.bases[kind.family]
        classifier = trained(base, kind)
        source = Source(f"team/{kind.family}")
        save_classifier(replace(classifier, source=source), self.folder / name)
        self.add(name, classifier, kind)
        return classifier

    def add(self, name: str, classifier: Classifier, kind: Kind, folder: str = "", *, trusted: bool = False) -> None:
        """Add a saved model to the cases, with the predictions of this classifier."""
        columns = [list(column) for column in zip(*(PAIRS if kind.pairs else TEXTS), strict=True)]
        self.expected[name] = classifier.rules.probabilities(classifier.logits(columns, 8))
        base = f"team/{kind.family}" if kind.lora else None
        rows = PAIRS if kind.pairs else TEXTS
        path = str(self.folder / (folder or name))
        self.cases.append(Case(name, path, rows, kind.problem_type, base, kind.options, trusted))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Saved models of every kind."""
    root = tmp_path_factory.mktemp("stock")
    bases = {family: save_base(family, root / f"base {family}") for family in ("bert", "roberta")}
    save_classifier(trained(bases["bert"], Kind(TWO)), root / "base tuned")
    models = Models(root, {**bases, "tuned": root / "base tuned"})
    saved = {name: models.save(name, kind) for name, kind in (FULL | ADAPTERS | POOLED | POOLED_ADAPTERS).items()}
    three, pairs = Kind(THREE, PLAIN), Kind(THREE, pairs=True)
    models.add(WITHOUT_LABELS, saved["lora, three labels"], three, "lora, three labels")
    adapted = trained(bases["bert"], Kind(THREE, LORA["pissa"]))
    models.add("merged", adapted, Kind(THREE))
    merge_classifier(adapted, root / "merged", TEXTS)
    pruned = pruned_classifier(trained(bases["bert"], pairs), PRUNED, PRUNED_NEURONS)
    save_classifier(pruned, root / "pruned")
    models.add("pruned", pruned, pairs)
    write_zeroed(pruned, root / "zeroed", PAIRS)
    models.add("zeroed", pruned, pairs)
    adapted = trained(bases["bert"], Kind(TWO, PLAIN, pooling="mean"))
    models.add("pooled merged", adapted, Kind(TWO))
    merge_classifier(adapted, root / "pooled merged", TEXTS)
    pruned = pruned_classifier(trained(bases["bert"], POOLED["pooled, pairs"]), PRUNED, PRUNED_NEURONS)
    save_classifier(pruned, root / "pooled pruned")
    models.add("pooled pruned", pruned, pairs)
    write_zeroed(pruned, root / "pooled zeroed", PAIRS)
    models.add("pooled zeroed", pruned, pairs)
    for case in [case for case in models.cases if case.name.startswith("pooled") and not case.base]:
        models.cases.append(replace(case, name=f"{case.name}{TRUSTED}", trusted=True))
        models.expected[f"{case.name}{TRUSTED}"] = models.expected[case.name]
    save_classifier(toy(), root / "toy")
    models.add("toy", toy(), Kind(TWO))
    return models


@pytest.fixture(scope="module")
def opened(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Opened]]:
    """What the stock loaders give, in a fresh process without finetune, by model and loader."""
    work = tmp_path_factory.mktemp("opened")
    for family, base in models.bases.items():
        add_to_hub_cache(work / "hub", f"team/{family}", base)
    return open_in_a_fresh_process(models.cases, work / "hub", work)


def check(name: str, loaders: Sequence[str], models: Models, opened: dict[str, dict[str, Opened]]) -> None:
    """Check that these loaders give the same probabilities."""
    for loader in loaders:
        result = opened[name][loader]
        assert not result.error, f"{loader}: {result.error}"
        difference = np.abs(np.array(result.probabilities) - models.expected[name]).max()
        assert difference <= TOLERANCE, f"{loader} differs by {difference}"


@pytest.mark.parametrize("name", [*FULL, "merged", "zeroed"])
def test_plain_weights_open_with_the_same_probabilities_and_labels(
    name: str, models: Models, opened: dict[str, dict[str, Opened]]
) -> None:
    loaders = ("pipeline", "AutoModel", "CrossEncoder")
    check(name, loaders, models, opened)
    labels = list(FULL[name].labels if name in FULL else THREE)
    assert [opened[name][loader].labels for loader in loaders] == [labels] * 3
    for loader in ("AutoPeftModel", "PeftModel"):
        assert opened[name][loader].error.startswith("ValueError: Can't find 'adapter_config.json'")


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_open_with_the_same_probabilities(
    name: str, models: Models, opened: dict[str, dict[str, Opened]]
) -> None:
    check(name, LOADERS, models, opened)
    assert opened[name]["CrossEncoder"].labels == list(ADAPTERS[name].labels)


def test_an_adapter_for_another_number_of_labels_than_its_base_needs_num_labels(
    models: Models, opened: dict[str, dict[str, Opened]]
) -> None:
    results = opened[WITHOUT_LABELS]
    assert "Could not load model" in results["pipeline"].error
    assert "You set `ignore_mismatched_sizes` to `False`" in results["AutoModel"].error
    for loader in ("AutoPeftModel", "PeftModel"):
        assert "size mismatch for base_model.model.classifier" in results[loader].error
    check(WITHOUT_LABELS, ["CrossEncoder"], models, opened)  # it reads them from its own file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pruned", "has model type `pruned_classifier` but Transformers does not recognize"),
        ("toy", "multi_head_classifier"),
    ],
)
def test_a_model_that_no_stock_class_can_represent_is_never_opened(
    name: str, message: str, opened: dict[str, dict[str, Opened]]
) -> None:
    for loader in LOADERS:
        assert opened[name][loader].error, loader
        assert opened[name][loader].probabilities == []
    assert message in opened[name]["AutoModel"].error


@pytest.mark.parametrize("name", [*POOLED, "pooled merged", "pooled zeroed"])
def test_a_pooled_classifier_opens_with_the_code_that_comes_with_it(
    name: str, models: Models, opened: dict[str, dict[str, Opened]]
) -> None:
    loaders = ("pipeline", "AutoModel", "CrossEncoder")
    check(f"{name}{TRUSTED}", loaders, models, opened)
    labels = list(POOLED[name].labels if name in POOLED else TWO if name == "pooled merged" else THREE)
    assert [opened[f"{name}{TRUSTED}"][loader].labels for loader in loaders] == [labels] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "contains custom code which must be executed") for name in (*POOLED, "pooled merged")),
        *((name, "contains custom code which must be executed") for name in ("pooled pruned", "pooled zeroed")),
        ("pooled pruned, trusted", "parts of this classifier were pruned; open it with finetune"),
        *((name, "LORA of a pooled classifier; open it with finetune, or") for name in POOLED_ADAPTERS),
    ],
)
def test_a_pooled_classifier_is_never_opened_as_another(
    name: str, message: str, opened: dict[str, dict[str, Opened]]
) -> None:
    for loader in LOADERS:
        assert opened[name][loader].error, loader
        assert opened[name][loader].probabilities == []
    assert message in opened[name]["AutoModel"].error


@pytest.mark.parametrize(
    "name",
    [*FULL, *ADAPTERS, "merged", "pruned", "zeroed", *POOLED, *POOLED_ADAPTERS, "pooled merged", "pooled pruned"],
)
def test_finetune_opens_everything_that_it_saved(name: str, models: Models, tmp_path: Path) -> None:
    (case,) = (case for case in models.cases if case.name == name)
    family = case.base and case.base.removeprefix("team/")
    loaded = load_classifier(Path(case.folder), base=family and str(models.bases[family]))
    columns = [list(column) for column in zip(*case.rows, strict=True)]
    probabilities = loaded.rules.probabilities(loaded.logits(columns, 8))
    assert np.abs(probabilities - models.expected[name]).max() <= TOLERANCE
