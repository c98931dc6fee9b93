"""What the tests prune from a small model of every family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.models.architectures import FAMILIES
from tests.support.families import CONFIGS


@dataclass(frozen=True)
class Case:
    """What is pruned from a model of a family with changes to its config: numbers by layer."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    heads: dict[int, list[int]] = field(default_factory=lambda: {0: [1], 1: [0, 1, 2]})
    neurons: dict[int, list[int]] = field(default_factory=lambda: {0: list(range(32)), 1: [0, 5, 6, 31]})


POSITIONS = {"share_att_key": False, "pos_att_type": ["p2c"]}
SHARED = {"heads": {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 2], 3: [0, 2]}}
SHARED_NEURONS = {0: [3, 4], 1: [3, 4], 2: list(range(32)), 3: list(range(32))}
INTERLEAVED = {"heads": {0: [1], 1: [0, 1, 2], 2: [1], 3: [0, 1, 2]}}
# All families with prunable heads or neurons, and variants that a config can select.
CASES: dict[str, Case] = {
    **{family: Case(family) for family in FAMILIES},
    "albert": Case("albert", **SHARED, neurons=SHARED_NEURONS),
    "albert, two inner layers": Case(
        "albert",
        {"num_hidden_layers": 2, "num_hidden_groups": 1, "inner_group_num": 2},
        **INTERLEAVED,
        neurons={0: list(range(32)), 1: [3], 2: list(range(32)), 3: [3]},
    ),
    **{family: Case(family, heads={}) for family in ("convbert", "nystromformer")},
    "deberta, content to position": Case("deberta", {"pos_att_type": ["c2p"]}),
    "deberta-v2, separate positions": Case("deberta-v2", {"share_att_key": False}),
    "deberta-v2, position to content": Case("deberta-v2", POSITIONS),
    "eurobert": Case(
        "eurobert",
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4},
        heads={0: [2, 3], 1: [0, 1, 2, 3, 4, 5]},
    ),
    **{family: Case(family, neurons={0: list(range(96)), 1: [0, 5, 95]}) for family in ("flaubert", "xlm")},
    "modernbert, with biases": Case("modernbert", {"attention_bias": True}),
    **{family: Case(family, neurons={}) for family in ("mobilebert", "multi_head_classifier")},
}
NOT_PRUNABLE = {"squeezebert"}
for not_prunable in NOT_PRUNABLE:
    del CASES[not_prunable]
WEAK = {"flaubert", "multi_head_classifier", "xlm"}  # their initial weights are too small for heads to matter
# Families with the same row of the table as another one, with the same config: they are not loaded once more.
SAME_ROW = {
    name
    for number, name in enumerate(sorted(FAMILIES))
    if any(FAMILIES[name] == FAMILIES[other] and CONFIGS[name] == CONFIGS[other] for other in sorted(FAMILIES)[:number])
}
