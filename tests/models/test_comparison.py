"""A reloaded classifier must have equal weights, and equal logits up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.errors import ModelError
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier
from tests.support.helpers import tiny_classifier

TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")


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
    # A difference that no weight shows.
    reloaded.base.classifier.register_forward_hook(lambda module, args, logits: logits + shift)
    if fits:
        assert check_reload(trained, reloaded, TEXTS, CPU) < 2 * shift + (dtype == torch.bfloat16) * 0.02
    else:
        with pytest.raises(ModelError, match="the logits of the saved model differ from the trained one"):
            check_reload(trained, reloaded, TEXTS, CPU)


def test_a_difference_after_reload_is_an_error(tiny_bert: Path, tmp_path: Path) -> None:
    trained = tiny_classifier(tiny_bert)
    save_classifier(trained, tmp_path)
    reloaded = load_classifier(tmp_path)
    with torch.no_grad():
        reloaded.base.classifier.bias += 1e-6
    with pytest.raises(ModelError, match=r"differs from the trained one in classifier\.bias"):
        check_reload(trained, reloaded, TEXTS, CPU)
