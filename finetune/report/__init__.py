"""One HTML file that tells a run, and a model card; both from the run folder alone. Imports no torch."""

from finetune.report.write import write_report

__all__ = ["write_report"]
