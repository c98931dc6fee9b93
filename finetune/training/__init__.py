"""Training: the loop (start with trainer.py), the optimizer, the schedule, checkpoints and FSDP."""
