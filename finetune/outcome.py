"""How training ended, and how fast it was."""

from __future__ import annotations

from finetune.loop import Loop
from finetune.memory import peak_memory_mb
from finetune.results import Speed, Training


def training_result(loop: Loop, stopped: str, best_metric: str) -> Training:
    """Return how training ended and how fast it was."""
    state, (trained, total) = loop.state, loop.classifier.parameter_counts()
    seconds = max(state.train_seconds, 1e-9)
    return Training(
        steps=state.step,
        best_step=state.best_step,
        best_metric=best_metric,
        best_value=state.best_value,
        stopped=stopped,
        trainable_parameters=trained,
        total_parameters=total,
        trained_dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in loop.parameters})),
        speed=Speed(
            train_seconds=state.train_seconds,
            train_samples_per_second=state.rows_seen / seconds,
            train_tokens_per_second=state.tokens_seen / seconds,
            padding_share=1 - state.tokens_seen / max(state.padded_seen, 1),
            eval_samples_per_second=state.rows_evaluated / max(state.eval_seconds, 1e-9),
            peak_memory_mb=peak_memory_mb(loop.accelerator.device),
        ),
        notes=list(loop.classifier.notes),
    )
