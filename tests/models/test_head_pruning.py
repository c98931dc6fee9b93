"""Every family whose heads can be cut out, by small random models: pruned = gated, and the same after reload."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import attention_sites, pruned_heads
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.head_gates import head_gates
from finetune.models.head_pruning import classifier_class, prune_heads, unpruned_copy
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.saving import save_classifier
from tests.conftest import SENTENCES
from tests.support.families import CONFIGS, build, save_checkpoint, train_three_steps
from tests.support.helpers import ROLES, assert_equal_up_to_rounding

CPU = torch.device("cpu")
TEXTS = [(sentence,) for sentence in SENTENCES]  # of differing lengths, so that rows are padded
CUT = {0: [1], 1: [0, 2]}
ROUNDING = 1e-4  # beside what is measured below; the heads that are cut out change logits by more than 2e-3

# Case: family, changes of its config, heads to cut out. Beside each family of the table, what a config can change.
CASES: dict[str, tuple[str, dict[str, Any], dict[int, list[int]]]] = {
    **{family: (family, {}, CUT) for family in FAMILIES if not FAMILIES[family].not_prunable},
    "albert": ("albert", {}, {0: [1], 1: [1], 2: [0, 2], 3: [0, 2]}),
    "albert, two inner layers": (
        "albert",
        {"num_hidden_layers": 2, "num_hidden_groups": 1, "inner_group_num": 2},
        {0: [1], 1: [0, 2], 2: [1], 3: [0, 2]},
    ),
    "deberta, content to position": ("deberta", {"pos_att_type": ["c2p"]}, CUT),
    "deberta-v2, own positions": ("deberta-v2", {"share_att_key": False}, CUT),
    "deberta-v2, position to content": ("deberta-v2", {"share_att_key": False, "pos_att_type": ["p2c"]}, CUT),
    "eurobert": (
        "eurobert",
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4},
        {0: [2, 3], 1: [0, 1, 4, 5]},
    ),
    "modernbert, with biases": ("modernbert", {"attention_bias": True}, CUT),
}
WEAK = {"flaubert", "multi_head_classifier", "xlm"}  # their configs start with weights too small to tell heads by
SAVED: dict[str, tuple[Path, Tensor]] = {}  # what was saved on the way, for a fresh process
ZEROED: dict[str, tuple[Path, Tensor]] = {}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def whole(case: str, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """The case's classifier before pruning; copy it."""
    family, changes, _ = CASES[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, family, CONFIGS[family] | changes)
        found = build(save_checkpoint(family, tmp_path_factory.mktemp("whole")))
    with torch.no_grad():
        for tensor in found.base.state_dict().values():
            if not tensor.any():
                tensor.normal_(std=0.3)  # biases start at 0, where it would not be seen which of them went
        if family in WEAK:
            for site in attention_sites(found.base):
                for path in site.paths(("value", "output")):
                    found.base.get_submodule(path).weight.mul_(6)
    return replace(found, model=found.model.eval())


def copied(classifier: Classifier) -> Classifier:
    return replace(classifier, model=copy.deepcopy(classifier.model))


def pruned(classifier: Classifier, heads: dict[int, list[int]]) -> Classifier:
    found = copied(classifier)
    prune_heads(found.base, heads)
    return found


def gated(classifier: Classifier, heads: dict[int, list[int]]) -> Tensor:
    sites = attention_sites(classifier.base)
    gates = torch.ones(len(sites), max(site.num_heads for site in sites))
    for layer, numbers in heads.items():
        gates[layer, numbers] = 0
    with head_gates(classifier.base, sites, gates):
        return logits_of(classifier, TEXTS, CPU)


def test_pruned_logits_are_gated_logits(case: str, whole: Classifier) -> None:
    heads, small = CASES[case][2], pruned(whole, CASES[case][2])
    implementations = ["eager", "sdpa"] if whole.base._supports_sdpa else ["eager"]
    for implementation in implementations:
        for classifier in (whole, small):
            classifier.base.set_attn_implementation(implementation)
        expected, found = gated(whole, heads), logits_of(small, TEXTS, CPU)
        # Measured: 1.4e-5 for MobileBERT, at most 1.6e-6 for the others, with logits up to 4: sums have fewer terms.
        assert_equal_up_to_rounding(found, expected)
        assert float((found - logits_of(whole, TEXTS, CPU)).abs().max()) > 2e-3


def test_only_weights_of_the_heads_go(case: str, whole: Classifier) -> None:
    """What is left of a tensor, filled up with zeros, is the whole tensor wherever it is not zero."""
    heads, small = CASES[case][2], pruned(whole, CASES[case][2])
    assert attention_sites(small.base) == [
        replace(
            site,
            num_heads=site.num_heads - len(heads.get(site.layer, ())),
            num_key_value_heads=site.num_key_value_heads
            - len(heads.get(site.layer, ())) * site.num_key_value_heads // site.num_heads,
        )
        for site in attention_sites(whole.base)
    ]
    large, left = whole.base.state_dict(), small.base.state_dict()
    assert large.keys() == left.keys()
    changed = {name for name in large if large[name].shape != left[name].shape}
    assert all(any(word in name for word in ("attention", "attn")) for name in changed)
    assert all(large[name].equal(left[name]) for name in large.keys() - changed)
    zero = unpruned_copy(small.base).state_dict()
    assert changed
    for name in changed:
        kept = zero[name] != 0
        assert kept.any()
        assert zero[name][kept].equal(large[name][kept])


def test_what_was_pruned_comes_back(case: str, whole: Classifier, accelerator: Accelerator, tmp_path: Path) -> None:
    small = pruned(whole, CASES[case][2])
    expected = logits_of(small, TEXTS, CPU)
    save_classifier(small, tmp_path / "model")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    torch.manual_seed(99)
    again = load_classifier(tmp_path / "moved")
    assert check_reload(small, again, TEXTS, CPU) <= 1e-5
    assert pruned_heads(again.base.config) == CASES[case][2]
    save_classifier(again, tmp_path / "twice")
    assert check_reload(small, load_classifier(tmp_path / "twice"), TEXTS, CPU) <= 1e-5
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("moved", "twice"))
    assert first == second
    assert first["architectures"] == [type(whole.base).__name__]
    assert "torch_dtype" not in first
    SAVED[case] = (tmp_path / "moved", expected)
    train_three_steps(again, accelerator)
    again.model.eval()
    assert not torch.allclose(logits_of(again, TEXTS, CPU), expected, atol=1e-3)
    save_classifier(again, tmp_path / "trained")
    assert check_reload(again, load_classifier(tmp_path / "trained"), TEXTS, CPU) <= 1e-5


def test_bfloat16_comes_back(case: str, whole: Classifier, tmp_path: Path) -> None:
    save_classifier(whole, tmp_path / "whole")
    about = json.loads((tmp_path / "whole" / "classifier.json").read_text())
    about["source"]["dtype"] = "bfloat16"
    (tmp_path / "whole" / "classifier.json").write_text(json.dumps(about))
    low = load_classifier(tmp_path / "whole")
    small = pruned(low, CASES[case][2])
    dtypes = {name: parameter.dtype for name, parameter in low.base.named_parameters()}  # DeBERTa's q_bias is float32
    assert {name: parameter.dtype for name, parameter in small.base.named_parameters()} == dtypes
    assert torch.bfloat16 in dtypes.values()
    save_classifier(small, tmp_path / "small")
    again = load_classifier(tmp_path / "small")
    if CASES[case][0] == "deberta":  # whole or pruned, transformers 5.23 cannot run it in bfloat16
        assert all(tensor.equal(again.base.state_dict()[name]) for name, tensor in small.base.state_dict().items())
    else:
        assert check_reload(small, again, TEXTS, CPU) <= 1e-5


def test_pruned_twice_is_pruned_once(case: str, whole: Classifier) -> None:
    _, _, heads = CASES[case]
    once, twice = pruned(whole, heads).base, copied(whole).base
    odd = {site.output for site in attention_sites(twice) if site.layer == 0}
    first = {site.layer: heads[site.layer] for site in attention_sites(twice) if site.output in odd}
    size = attention_sites(twice)[0].num_heads // attention_sites(twice)[0].num_key_value_heads
    prune_heads(twice, first)
    rest = {layer: numbers for layer, numbers in heads.items() if layer not in first}
    prune_heads(twice, {layer: numbers[:size] for layer, numbers in rest.items()})
    # What is left is numbered anew: the rest moved down by those cut before them.
    prune_heads(twice, {layer: [n - size for n in numbers[size:]] for layer, numbers in rest.items()})
    assert pruned_heads(twice.config) == pruned_heads(once.config) == heads
    assert all(tensor.equal(twice.state_dict()[name]) for name, tensor in once.state_dict().items())
    assert sum(len(m._forward_pre_hooks) for m in twice.modules()) == sum(
        len(m._forward_pre_hooks) for m in once.modules()
    )
    ids = torch.tensor([[2, 3, 4]])
    assert once(input_ids=ids).logits.equal(twice(input_ids=ids).logits)


def test_zeroed_gives_the_same_logits(case: str, whole: Classifier, tmp_path: Path) -> None:
    small = pruned(whole, CASES[case][2])
    expected, before = logits_of(small, TEXTS, CPU), small.base.state_dict()
    plain = unpruned_copy(small.base)
    assert {name: t.shape for name, t in plain.state_dict().items()} == {
        name: t.shape for name, t in whole.base.state_dict().items()
    }
    assert not any(m._forward_pre_hooks for m in plain.modules())
    assert all(tensor.equal(before[name]) for name, tensor in small.base.state_dict().items())
    # Measured as above, 1.4e-5 and 1.6e-6: the sums have their zero terms again.
    assert_equal_up_to_rounding(logits_of(replace(small, model=plain), TEXTS, CPU), expected)
    plain.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    assert "pruned_heads" not in json.loads((tmp_path / "config.json").read_text())
    if case != "multi_head_classifier":  # not in transformers
        ZEROED[case] = (tmp_path, expected)


@pytest.mark.parametrize(
    ("saved", "program"),
    [
        (
            SAVED,
            "from finetune.models.loading import load_classifier\n"
            "def load(folder):\n"
            "    found = load_classifier(pathlib.Path(folder))\n"
            "    return found.model, found.tokenizer\n",
        ),
        (
            ZEROED,
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
            "def load(folder):\n"
            "    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()\n"
            "    assert not any(name.startswith('finetune') for name in sys.modules)\n"
            "    return model, AutoTokenizer.from_pretrained(folder)\n",
        ),
    ],
    ids=["saved", "zeroed"],
)
def test_a_fresh_process_gives_the_same_logits(saved: dict[str, tuple[Path, Tensor]], program: str) -> None:
    expected = len(CASES) - (saved is ZEROED)
    if len(saved) < expected:
        pytest.skip(f"{len(saved)} of {expected} models were saved: run the whole file")
    program = (
        "import json, pathlib, sys, torch\n" + program + "torch.manual_seed(12345)\n"
        "for folder in json.loads(sys.stdin.read()):\n"
        "    model, tokenizer = load(folder)\n"
        f"    inputs = tokenizer({SENTENCES!r}, padding=True, truncation=True, max_length=16, return_tensors='pt')\n"
        "    print('LOGITS', json.dumps(model(**inputs).logits.tolist()))"
    )
    folders = json.dumps([str(folder) for folder, _ in saved.values()])
    done = subprocess.run([sys.executable, "-c", program], input=folders, capture_output=True, text=True, check=True)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
    assert len(found) == len(saved) == expected
    for there, (_, here) in zip(found, saved.values(), strict=True):
        # Measured: saved 0.0 for 29 of 34, at most 7.2e-7 (another place in memory); zeroed as above.
        assert_equal_up_to_rounding(there, here)


def test_every_family_is_tested_or_refused() -> None:
    tested = {family for family, _, _ in CASES.values()}
    assert tested | {family for family in FAMILIES if FAMILIES[family].not_prunable} == set(FAMILIES)
    assert len(tested) >= 29


# One family each from here on.


@pytest.fixture
def bert(tmp_path: Path) -> Classifier:
    found = build(save_checkpoint("bert", tmp_path / "bert"))
    return replace(found, model=found.model.eval())


def made(family: str, folder: Path, **changes: Any) -> Classifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, family, CONFIGS[family] | changes)
        return build(save_checkpoint(family, folder))


def parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.base.parameters())


def test_a_bert_head_has_as_many_parameters_as_by_hand(bert: Classifier) -> None:
    hidden, width = 24, 8
    head = 3 * (width * hidden + width) + hidden * width  # query, key, value with biases; output, whose bias stays
    before = parameters(bert)
    prune_heads(bert.base, CUT)
    assert before - parameters(bert) == 3 * head == 2376
    attention = bert.base.bert.encoder.layer[1].attention
    assert (attention.self.num_attention_heads, attention.self.all_head_size) == (1, 8)
    assert (attention.self.query.out_features, attention.output.dense.in_features) == (8, 8)
    assert bert.base.config.num_attention_heads == 3


def test_what_is_frozen_stays_frozen(bert: Classifier) -> None:
    bert.base.bert.encoder.layer[1].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in bert.base.named_parameters()}
    prune_heads(bert.base, CUT)
    assert {name: parameter.requires_grad for name, parameter in bert.base.named_parameters()} == before
    assert len(set(before.values())) == 2
    assert all(p.is_contiguous() and p.is_leaf for p in bert.base.parameters())


def test_buffers_with_a_row_for_each_row_of_a_projection_are_cut_too(tmp_path: Path) -> None:
    base = made("ibert", tmp_path).base
    prune_heads(base, CUT)
    query = base.ibert.encoder.layer[1].attention.self.query
    assert query.weight_integer.shape == query.weight.shape == (8, 24)
    assert query.fc_scaling_factor.shape == query.bias_integer.shape == query.bias.shape == (8,)
    dense = base.ibert.encoder.layer[1].attention.output.dense
    assert dense.weight_integer.shape == dense.weight.shape == (24, 8)
    assert dense.fc_scaling_factor.shape == dense.bias_integer.shape == dense.bias.shape == (24,)


def test_no_heads_leave_no_trace(bert: Classifier) -> None:
    before = bert.base.state_dict()
    prune_heads(bert.base, {0: [], 1: ()})
    assert not hasattr(bert.base.config, "pruned_heads")
    assert all(tensor.equal(before[name]) for name, tensor in bert.base.state_dict().items())
    assert classifier_class(bert.base.config) is AutoModelForSequenceClassification


@pytest.mark.parametrize("family", sorted(family for family in FAMILIES if FAMILIES[family].not_prunable))
def test_families_that_cannot_be_pruned_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"heads of a '{family}' model can be masked, but not pruned: .*convolution"):
        prune_heads(made(family, tmp_path).base, {0: [1]})


def test_talking_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a 'deberta' model can be masked, but not pruned: talking_head mixes"):
        prune_heads(made("deberta", tmp_path, talking_head=True).base, {0: [1]})


def test_sparse_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'big_bird' .*'block_sparse' .*; write \"attention_type\": \"original_full\""
    ):
        prune_heads(made("big_bird", tmp_path, attention_type="block_sparse").base, {0: [1]})


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({0: [0, 1, 2]}, "layer 0 would lose all its 3 heads; keep at least one"),
        ({1: [3]}, "layer 1 has no head 3; its heads are 0 to 2"),
        ({1: [-1]}, "layer 1 has no head -1"),
        ({2: [0]}, "there is no layer 2; layers are 0 to 1"),
    ],
)
def test_heads_that_cannot_go_are_refused(bert: Classifier, heads: dict[int, list[int]], said: str) -> None:
    before = bert.base.state_dict()
    with pytest.raises(ModelError, match=said):
        prune_heads(bert.base, {0: [1], **heads})
    assert all(tensor.equal(before[name]) for name, tensor in bert.base.state_dict().items())


def test_a_layer_cannot_be_emptied_bit_by_bit(bert: Classifier) -> None:
    prune_heads(bert.base, CUT)
    with pytest.raises(ModelError, match="layer 1 would lose all its 1 heads"):
        prune_heads(bert.base, {1: [0]})


def test_layers_that_share_weights_lose_the_same_heads(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layers 0 and 1 share their weights, but would lose heads \[1\] and \[\]"):
        prune_heads(made("albert", tmp_path).base, {0: [1]})


def test_query_heads_that_share_a_key_go_together(tmp_path: Path) -> None:
    base = made("eurobert", tmp_path, num_attention_heads=6, num_key_value_heads=3, head_dim=4).base
    with pytest.raises(ModelError, match="heads 2, 3 of layer 1 share a key and a value, but only 3 would be pruned"):
        prune_heads(base, {1: [3]})


def test_adapters_are_merged_first(tmp_path: Path) -> None:
    base = build(save_checkpoint("bert", tmp_path), Lora(2, 4, 0.0, ROLES)).base
    for refused in (lambda: prune_heads(base, {0: [1]}), lambda: unpruned_copy(base)):
        with pytest.raises(ModelError, match="a model with adapters cannot be pruned; merge the adapters first"):
            refused()


# Where transformers 4 kept a layer's projections: query, key, value, output.
V4 = {
    "bert": ("bert.encoder.layer.{}.attention.{}", ("self.query", "self.key", "self.value", "output.dense")),
    "distilbert": ("distilbert.transformer.layer.{}.attention.{}", ("q_lin", "k_lin", "v_lin", "out_lin")),
}


@pytest.fixture(params=sorted(V4))
def version_4(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Classifier, Path]:
    """A whole classifier, and the folder that transformers 4 would write with heads 0 and 2 of layer 1 pruned."""
    whole, folder = made(request.param, tmp_path / "whole"), tmp_path / "version-4"
    whole.base.save_pretrained(folder)
    whole.tokenizer.save_pretrained(folder)
    weights, rows = load_file(folder / "model.safetensors"), slice(8, 16)
    place, (*inner, output) = V4[request.param]
    for name in inner:
        for kind in ("weight", "bias"):
            key = f"{place.format(1, name)}.{kind}"
            weights[key] = weights[key][rows].contiguous()
    key = f"{place.format(1, output)}.weight"
    weights[key] = weights[key][:, rows].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"pruned_heads": {"1": [2, 0]}, "transformers_version": "4.57.1"}
    (folder / "config.json").write_text(json.dumps(config))
    return replace(whole, model=whole.model.eval()), folder


def test_checkpoints_of_version_4_are_read(
    version_4: tuple[Classifier, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    whole, folder = version_4
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    read = build(folder)
    assert not read.new_parameters
    assert pruned_heads(read.base.config) == {1: [0, 2]}
    read.model.eval()
    assert_equal_up_to_rounding(logits_of(read, TEXTS, CPU), gated(whole, {1: [0, 2]}))
    read.model.train()
    train_three_steps(read, accelerator)
    save_classifier(read, tmp_path / "trained")
    assert check_reload(read, load_classifier(tmp_path / "trained"), TEXTS, CPU) <= 1e-5


def test_sizes_that_the_config_does_not_tell_are_refused(version_4: tuple[Classifier, Path]) -> None:
    _, folder = version_4
    config = json.loads((folder / "config.json").read_text())
    for told in ({}, {"0": [1], "1": [0, 2]}, {"1": [0]}):
        (folder / "config.json").write_text(json.dumps(config | {"pruned_heads": told}))
        with pytest.raises(ModelError, match=r"has no weights for .*, or its sizes differ from its config\.json"):
            build(folder)
    (folder / "config.json").write_text(json.dumps(config | {"pruned_heads": {"1": [0, 1, 2]}}))
    with pytest.raises(ModelError, match="layer 1 would lose all its 3 heads"):
        build(folder)


def test_saved_classifiers_whose_config_tells_other_sizes_are_refused(bert: Classifier, tmp_path: Path) -> None:
    prune_heads(bert.base, CUT)
    save_classifier(bert, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pruned_heads": {"0": [1]}}))
    with pytest.raises(ModelError, match=r"has no weights for .*layer\.1.*, or its sizes differ from its config"):
        load_classifier(tmp_path / "model")
    path.write_text(json.dumps(config | {"intermediate_size": 16}))
    with pytest.raises(ModelError, match=r"has no weights for bert\.encoder.*, or its sizes differ from its config"):
        load_classifier(tmp_path / "model")


def test_adapters_on_a_pruned_base(bert: Classifier, accelerator: Accelerator, tmp_path: Path) -> None:
    prune_heads(bert.base, CUT)
    bert.base.save_pretrained(tmp_path / "base")
    bert.tokenizer.save_pretrained(tmp_path / "base")
    trained = build(tmp_path / "base", Lora(2, 4, 0.0, ROLES))
    train_three_steps(trained, accelerator)
    save_classifier(trained, tmp_path / "adapter")
    assert check_reload(trained, load_classifier(tmp_path / "adapter"), TEXTS, CPU) <= 1e-5
    assert merge_classifier(load_classifier(tmp_path / "adapter"), tmp_path / "merged", TEXTS) < ROUNDING
    # The same adapter on the whole base: its attention would be new and random.
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(tmp_path / "bert", tmp_path / "base")
    with pytest.raises(ModelError, match=r"has no weights for .*, or its sizes differ from its config\.json"):
        load_classifier(tmp_path / "adapter")


def test_a_family_outside_transformers_is_refused(bert: Classifier) -> None:
    class Strange(type(bert.base.config)):  # type: ignore[misc]
        model_type = "bert"

    with pytest.raises(ModelError, match="lists pruned heads, which is supported only for classifiers in transformers"):
        classifier_class(Strange(pruned_heads={"0": [1]}))
