"""The trainer, its schedule, its optimizer, and its checkpoints."""
