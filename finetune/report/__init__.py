"""One HTML file that tells a run, and a model card; both from the run folder alone. Imports no torch."""

from finetune.report.page import write_report
from finetune.report.run_record import read_record

__all__ = ["read_record", "write_report"]
