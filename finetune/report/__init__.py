"""One HTML file that tells a run, and a model card; both from the run folder alone. Imports no torch."""

from finetune.report.record import read_record
from finetune.report.write import write_report

__all__ = ["read_record", "write_report"]
