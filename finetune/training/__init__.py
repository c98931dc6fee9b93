"""Training: the loop, the optimizer, the schedule, checkpoints and FSDP."""
