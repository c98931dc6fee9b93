from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import attention_sites
from finetune.models.building import new_classifier, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, checkpoint_labels, load_tokenizer
from finetune.models.saving import save_classifier
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")
LABELS = ("zeta", "alpha", "no", "mid", "beta")


def disturb(classifier: Classifier) -> None:
    """Move every trained weight, as training would."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_masked_lm"])
def test_what_was_trained_comes_back(
    checkpoint: str, lora: Lora | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained = tiny_classifier(request.getfixturevalue(checkpoint), lora=lora, labels=LABELS)
    disturb(trained)
    save_classifier(trained, tmp_path / "model")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.move(tmp_path / "model", moved)
    torch.manual_seed(99)
    again = load_classifier(moved)
    assert check_reload(trained, again, TEXTS, CPU) <= 1e-6
    assert (again.label_names, again.problem_type) == (list(LABELS), "single_label_classification")
    assert (again.max_length, again.tokenizer.get_vocab()) == (16, trained.tokenizer.get_vocab())
    assert isinstance(again.model, peft.PeftModel) == (lora is not None)


@pytest.mark.parametrize(
    ("dtype", "shift", "fits"),
    [
        (torch.float32, 1e-6, True),
        (torch.float32, 1e-3, False),
        (torch.bfloat16, 1e-3, True),
        (torch.bfloat16, 1.0, False),
    ],
)
def test_logits_may_differ_by_the_rounding_of_the_precision(
    tiny_bert: Path, dtype: torch.dtype, shift: float, fits: bool
) -> None:
    trained, reloaded = (tiny_classifier(tiny_bert) for _ in range(2))
    reloaded.model.load_state_dict(trained.model.state_dict())
    for classifier in (trained, reloaded):
        classifier.model.to(dtype)
    # What no weight shows.
    reloaded.base.classifier.register_forward_hook(lambda module, args, logits: logits + shift)
    if fits:
        assert check_reload(trained, reloaded, TEXTS, CPU) < 2 * shift + (dtype == torch.bfloat16) * 0.02
    else:
        with pytest.raises(ModelError, match="the logits of the saved model differ from the trained one"):
            check_reload(trained, reloaded, TEXTS, CPU)


def test_a_fresh_process_gives_the_same_logits(tiny_masked_lm: Path, tmp_path: Path) -> None:
    trained = tiny_classifier(tiny_masked_lm, lora=LORA, labels=LABELS)
    disturb(trained)
    save_classifier(trained, tmp_path)
    program = (
        "import sys, json, torch, pathlib\n"
        "from finetune.models.comparison import logits_of\n"
        "from finetune.models.loading import load_classifier\n"
        f"found = load_classifier(pathlib.Path({str(tmp_path)!r}))\n"
        f"print(json.dumps(logits_of(found, {TEXTS!r}, torch.device('cpu')).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    there = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    assert_equal_up_to_rounding(there, logits_of(trained, TEXTS, CPU))  # the same weights elsewhere in memory


def test_a_difference_after_reload_is_an_error(tiny_bert: Path, tmp_path: Path) -> None:
    trained = tiny_classifier(tiny_bert)
    save_classifier(trained, tmp_path)
    again = load_classifier(tmp_path)
    with torch.no_grad():
        again.base.classifier.bias += 1e-6
    with pytest.raises(ModelError, match=r"differs from the trained one in classifier\.bias"):
        check_reload(trained, again, TEXTS, CPU)


@pytest.mark.parametrize("roles", [("query",), ("query", "value"), ROLES])
def test_lora_is_where_it_was_asked_and_nowhere_else(tiny_masked_lm: Path, roles: tuple[str, ...]) -> None:
    found = tiny_classifier(tiny_masked_lm, lora=Lora(2, 4, 0.0, roles))
    adapted = {name for name, m in found.base.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted == {path for site in attention_sites(found.base) for path in site.paths(roles)}
    assert len(adapted) == 2 * len(roles)
    trained = {n for n, p in found.model.named_parameters() if p.requires_grad and "lora_" not in n}
    # The pooler is not in a masked-LM checkpoint: new, so it is trained and saved besides the head.
    assert found.new_parameters == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )
    assert len(trained) == 4


def test_new_weights_are_drawn_from_the_seed(tiny_bert: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(tiny_classifier(tiny_bert).base.classifier.weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_trained_weights_are_float32_whatever_the_checkpoint(tiny_bert: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(tmp_path)
    load_tokenizer(Source(str(tiny_bert))).save_pretrained(tmp_path)
    found = tiny_classifier(tmp_path)
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    save_classifier(found, tmp_path / "model")
    assert {p.dtype for p in load_classifier(tmp_path / "model").model.parameters()} == {torch.float32}


def test_a_checkpoint_with_another_head_gets_a_new_one(tiny_bert: Path, tmp_path: Path) -> None:
    first = tiny_classifier(tiny_bert, labels=LABELS)
    save_classifier(first, tmp_path)
    second = tiny_classifier(tmp_path, labels=("a", "b"))
    assert second.new_parameters == ("classifier.bias", "classifier.weight")
    assert torch.equal(second.base.bert.pooler.dense.weight, first.base.bert.pooler.dense.weight)
    adapted = tiny_classifier(tmp_path, labels=("a", "b"), lora=LORA)
    save_classifier(adapted, tmp_path / "adapter")
    assert check_reload(adapted, load_classifier(tmp_path / "adapter"), TEXTS, CPU) <= 1e-6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_package/model",
            r"package 'no_such_package' is not installed; run `pip install no-such-package`",
        ),
        ("package:finetune/nowhere", r"package 'finetune' has no folder 'nowhere'"),
        ("nobody/nothing", r"cannot load model 'nobody/nothing' \(revision main\)"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(Source(name))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contains no saved classifier"):
        load_classifier(tmp_path)


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    model.config.model_type = "strange"
    with pytest.raises(
        ModelError, match=rf"'strange' is not supported; supported model types: {', '.join(sorted(FAMILIES))}$"
    ):
        attention_sites(model)


def test_an_encoder_without_its_own_weights_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "broken")
    config = json.loads((tiny_bert / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"has no weights for bert\.encoder\.layer\.2\.attention\.self\.query"):
        tiny_classifier(tmp_path / "broken")


def test_too_long_a_length_is_refused(tiny_bert: Path) -> None:
    source = Source(str(tiny_bert))
    with pytest.raises(ModelError, match=r"data\.max_length is 33, but .* takes 32 tokens"):
        pretrained_classifier(
            source,
            load_tokenizer(source),
            label_names=("a", "b"),
            problem_type="single_label_classification",
            max_length=33,
        )


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("no_such_type", {}, "model.model_type 'no_such_type' is unknown"),
        ("bert", {"hidden": 3}, "a bert config has no hidden"),
        ("bert", {"hidden_size": 10, "num_attention_heads": 3}, "a bert cannot be built: .*multiple"),
    ],
)
def test_a_new_model_that_cannot_be_built_is_named(
    tiny_bert: Path, model_type: str, overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        new_classifier(
            model_type,
            overrides,
            load_tokenizer(Source(str(tiny_bert))),
            label_names=("a", "b"),
            problem_type="single_label_classification",
            max_length=16,
        )


def test_pickled_weights_are_read_only_when_allowed(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"safetensors.*model\.use_safetensors: false"):
        tiny_classifier(tmp_path / "pickled")
    source = Source(str(tmp_path / "pickled"), use_safetensors=False)
    found = pretrained_classifier(
        source,
        load_tokenizer(source),
        label_names=("no", "yes"),
        problem_type="single_label_classification",
        max_length=16,
    )
    assert found.new_parameters == ("classifier.bias", "classifier.weight")


def test_code_of_a_checkpoint_is_run_only_when_allowed(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "coded")
    config = json.loads((tiny_bert / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (tmp_path / "coded" / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (tmp_path / "coded" / "own.py").write_text("raise SystemExit('this code must not run')\n")
    with pytest.raises(ModelError, match=r"model\.trust_remote_code: true"):
        checkpoint_labels(Source(str(tmp_path / "coded")))


def test_the_labels_of_a_fine_tuned_checkpoint_are_known(tiny_bert: Path, tmp_path: Path) -> None:
    assert checkpoint_labels(Source(str(tiny_bert))) is None
    save_classifier(tiny_classifier(tiny_bert, labels=LABELS), tmp_path)
    assert checkpoint_labels(Source(str(tmp_path))) == list(LABELS)


def test_an_adapter_is_no_checkpoint_to_start_from(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter; write plain weights first with `finetune merge`"):
        tiny_classifier(tmp_path)
