"""Output for people: the HTML report, the model card, terminal tables and progress. Imports no torch."""

from finetune.report.page import write_report
from finetune.report.run_record import read_record

__all__ = ["read_record", "write_report"]
