"""The explanations of a run: the rows on which the heads are analyzed, some of them in detail.

N rows, L layers, H heads, S tokens, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batching import LocalBatch, load_batches
from finetune.data.sampler import plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.errors import FinetuneError, ModelError
from finetune.heads import explain
from finetune.heads.ablation import SHARED_ATTENTION, sample_savings
from finetune.heads.analysis import AnalysisSettings
from finetune.heads.explain_choice import choose_rows, rows_to_explain
from finetune.heads.explain_tokens import STEPS, TOLERANCE
from finetune.heads.fast_ablation import PrefixReuse, prefix_reuse
from finetune.heads.gated_forward import GatedRows
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_mask, shared_projection_gated
from finetune.models.precision import uses_flash_attention
from finetune.models.speedups import first_token_only
from finetune.out_of_memory import report_out_of_memory
from finetune.progress import stage
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.explanations import Explanations, HeadEffects, RowExplanation

T = TypeVar("T")

_ROWS = 8  # per batch of explained rows: of similar length, since sorted
# Attention maps per row: at most 8, and fewer for long rows, so that 40 rows stay below 1 MB.
_MAX_MAPS, _MAP_BYTES = 8, 24_000
_EFFECT_METHOD = "first-order estimate: derivative of the score by the gate of the head"


@dataclass(frozen=True)
class _Analyzed:
    """The first-order effects (N, L, H) and the logits (N, C) of all analyzed rows."""

    effects: np.ndarray
    logits: torch.Tensor

    def targets(self) -> torch.Tensor:
        """Return the label whose score is explained, (N,)."""
        return explain.predicted_targets(self.logits)


def explain_rows(
    classifier: Classifier,
    splits: dict[str, EncodedSplit],
    section: HeadImportanceSection,
    settings: AnalysisSettings,
    order: Sequence[tuple[int, int]],
    accelerator: Accelerator,
) -> Explanations | None:
    """Return the explanations of the held-out rows on which the heads are analyzed; None if no row is held out.

    All of them, at most `max_samples`, get first-order head effects; `explained_rows` of them are explained in detail.
    Each process explains its share.

    Args:
        order: the ranking, least important head first.
    """
    rows = rows_to_explain(splits, section, settings.seed)
    if rows is None:
        return None
    name, positions = rows
    sample = GatedRows(classifier, splits[name], name, positions, settings.batch_size, accelerator)
    analyzed = _first_order(sample)
    # Tokens and attention are explained for rows that the model reads at once.
    counts = sample.split.windows
    single = np.arange(len(sample)) if counts is None else np.flatnonzero(counts[sample.rows] == 1)
    chosen = choose_rows(analyzed.logits[single], sample.labels[single], sample.problem_type, section.explained_rows)
    chosen = single[chosen].tolist()
    detailed = _detailed(sample, analyzed, chosen, order)
    explained = [detailed.get(position) or _plain(sample, analyzed, position) for position in range(len(sample))]
    return Explanations(
        explain.SCORE_NAMES[sample.problem_type],
        _EFFECT_METHOD,
        STEPS,
        explained,
        _notes(sample, list(detailed.values()), len(sample) - len(single)),
        explain.baseline_token(classifier.tokenizer),
    )


def _first_order(sample: GatedRows) -> _Analyzed:
    """Return the first-order effects and the logits of all rows, from one forward and one backward pass."""
    layers, heads = head_mask(sample.sites).shape

    def effects_and_logits(batch: LocalBatch, positions: np.ndarray) -> np.ndarray:
        with sample.accelerator.autocast():
            effects, logits = explain.first_order_pass(sample.classifier, batch.inputs)
        return np.concatenate([effects.reshape(len(positions), -1), logits], 1)

    results = sample.map_batches(effects_and_logits)  # (N, L * H + C)
    effects, logits = results[:, : layers * heads], results[:, layers * heads :]
    return _Analyzed(effects.reshape(-1, layers, heads), torch.from_numpy(np.ascontiguousarray(logits)))


def _detailed(
    sample: GatedRows, analyzed: _Analyzed, chosen: Sequence[int], order: Sequence[tuple[int, int]]
) -> dict[int, RowExplanation]:
    """Return the detailed explanations of the chosen rows by their position in the sample, the same on each process."""
    base, accelerator, rows = sample.classifier.base, sample.accelerator, np.array(chosen)
    if not chosen:
        return {}
    batches = [rows[numbers] for numbers in plan_scoring(sample.split.lengths[sample.rows[rows]], _ROWS)]
    local = batches[accelerator.process_index :: accelerator.num_processes]

    def explain_local() -> dict[int, RowExplanation]:
        """Return the explanations of this process's batches."""
        results: dict[int, RowExplanation] = {}
        loaded = load_batches(
            replace(sample.split, states=None),
            [sample.rows[positions] for positions in local],
            sample.classifier.tokenizer,
            device=accelerator.device,
        )
        reuse = prefix_reuse(base, sample.sites, shared_attention=SHARED_ATTENTION in savings) if savings else None
        with stage("rows", total=sum(map(len, local))) as progress, accelerator.autocast():
            for positions, batch in zip(local, loaded, strict=True):
                results |= _explained_batch(sample, analyzed, positions, batch, reuse, order)
                progress.advance(len(positions))
        return results

    with first_token_only(base):
        savings = _savings(sample.subset(sample.rows[rows]))
        parts = gather_results(accelerator, lambda: _with_reason(explain_local))
    return dict(chain.from_iterable(part.items() for part in parts))


def _with_reason(function: Callable[[], T]) -> T:
    """Return the result of `function`; its errors are raised as a FinetuneError, which all processes report alike."""
    try:
        with report_out_of_memory():
            return function()
    except FinetuneError:
        raise
    except Exception as error:
        raise ModelError(f"{type(error).__name__}: {error}") from error


def _savings(sample: GatedRows) -> frozenset[str]:
    """Return how the exact effects of all heads can share computation; see `ablation.ablation`."""
    base = sample.classifier.base
    if shared_projection_gated(base, sample.sites) or uses_flash_attention(base):
        return frozenset()
    return sample_savings(sample)


def _explained_batch(
    sample: GatedRows,
    analyzed: _Analyzed,
    positions: np.ndarray,
    batch: LocalBatch,
    reuse: PrefixReuse | None,
    order: Sequence[tuple[int, int]],
) -> dict[int, RowExplanation]:
    """Return the detailed explanations of one batch by the position of the row in the sample."""
    classifier, inputs = sample.classifier, batch.inputs
    targets = analyzed.targets()[positions]
    effects = explain.head_effects(classifier, inputs, targets, reuse=reuse)
    attributions = explain.token_attributions(classifier, inputs, targets)
    texts = sample.split.texts[sample.rows[positions]]
    tokens = explain.readable_tokens(classifier, list(texts.values()))
    results = {}
    for index, position in enumerate(positions.tolist()):
        names, values = [token.text for token in tokens[index]], attributions[index]
        if len(names) != len(values.values):
            raise ModelError(f"a row has {len(values.values)} tokens, but its text gives {len(names)}")
        row_inputs = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
        heads = _shown_heads(effects[index], order, len(names))
        (maps,) = explain.attention_of(classifier, row_inputs, heads)
        results[position] = replace(
            _plain(sample, analyzed, position),
            tokens=names,
            attributions=values.values,
            score=values.score,
            baseline_score=values.baseline_score,
            completeness_gap=values.completeness_gap,
            attention={
                f"{layer}.{head}": np.rint(255 * weights).astype(int).tolist()
                for (layer, head), weights in maps.items()
            },
            exact_head_effects=_as_table(effects[index]),
        )
    return results


def _shown_heads(effects: np.ndarray, order: Sequence[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """Return the heads whose attention is stored: those that this row needs most, and the most important ones.

    Args:
        effects: the exact effects of the row, (L, H).
        order: the ranking, least important head first.
    """
    count = int(np.clip(_MAP_BYTES // tokens**2, 1, _MAX_MAPS))
    cells = [(layer, head) for layer, head in zip(*np.nonzero(~np.isnan(effects)), strict=True)]
    needed = sorted(((int(layer), int(head)) for layer, head in cells), key=lambda head: -effects[head])
    important = [(layer, head) for layer, head in reversed(order)]
    return list(dict.fromkeys(chain.from_iterable(zip(needed, important, strict=True))))[:count]


def _plain(sample: GatedRows, analyzed: _Analyzed, position: int) -> RowExplanation:
    """Return the explanation of a row without details."""
    regression = sample.problem_type == "regression"
    return RowExplanation(
        sample.split_name,
        int(sample.split.numbers[sample.rows[position]]),
        "" if regression else sample.classifier.label_names[int(analyzed.targets()[position])],
        _as_table(analyzed.effects[position]),
    )


def _as_table(effects: np.ndarray) -> HeadEffects:
    """Return effects (L, H) as lists, with None where a layer lacks the head."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in effects]


def _notes(sample: GatedRows, explained: Iterable[RowExplanation], with_windows: int) -> list[str]:
    """Return what a reader of the explanations must know.

    Args:
        with_windows: number of rows with several windows, which are not explained in detail.
    """
    rows = list(explained)
    notes = []
    if with_windows:
        notes.append(
            f"{with_windows} of {len(sample)} rows have several windows: their tokens and attention are not shown."
        )
    if rows and not any(row.attention for row in rows):
        model_type = sample.classifier.base.config.model_type
        notes.append(f"A '{model_type}' model returns no attention weights, so no attention is shown.")
    incomplete = sum(not _is_complete(row) for row in rows)
    if incomplete:
        notes.append(
            f"In {incomplete} of {len(rows)} rows the attributions miss the difference between score and baseline "
            f"score by more than {TOLERANCE:.0%} of it, since the score changes too abruptly between the two."
        )
    return notes


def _is_complete(row: RowExplanation) -> bool:
    if row.attributions is None or row.score is None or row.baseline_score is None or row.completeness_gap is None:
        return True
    values = row.attributions, row.score, row.baseline_score, row.completeness_gap
    return explain.TokenAttributions(*values, steps=0).is_complete()
