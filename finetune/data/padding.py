"""Padded batches of token ids, with numpy only.

B sequences, S tokens of the longest of them
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# An array with the values of many sequences, and the position in it of the first value of B sequences, (B,).
Values = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Padding:
    """How a tokenizer pads the model inputs of a batch.

    Attributes:
        input_names: the model inputs: input_ids, and attention_mask and token_type_ids if the model reads them.
        pad_id, pad_type_id: the token id and the segment id of padding.
        left: whether padding comes before the tokens.
    """

    input_names: tuple[str, ...]
    pad_id: int = 0
    pad_type_id: int = 0
    left: bool = False

    def batch(self, lengths: np.ndarray, ids: Values, type_ids: Values | None) -> dict[str, np.ndarray]:
        """Return the model inputs (B, S) in int64, padded to the longest sequence, without a Python object per row.

        Args:
            lengths: tokens per sequence, (B,).
            ids, type_ids: the token ids, and the segment ids if there are any.
        """
        tokens = int(lengths.max(initial=1))
        positions = np.arange(tokens) - (tokens - lengths[:, None] if self.left else 0)  # of each token in its sequence
        mask = positions >= 0 if self.left else positions < lengths[:, None]
        inputs = {"input_ids": _padded(ids, positions, mask, self.pad_id)}
        if type_ids is not None and "token_type_ids" in self.input_names:
            inputs["token_type_ids"] = _padded(type_ids, positions, mask, self.pad_type_id)
        if "attention_mask" in self.input_names:
            inputs["attention_mask"] = mask.astype(np.int64)
        return inputs


def _padded(values: Values, positions: np.ndarray, mask: np.ndarray, padding: int) -> np.ndarray:
    """Return the values at these positions of the sequences where the mask (B, S) is true, and padding elsewhere."""
    flat, starts = values
    padded: np.ndarray = flat[(starts[:, None] + positions) * mask].astype(np.int64)
    padded[~mask] = padding
    return padded
