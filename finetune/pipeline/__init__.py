"""One module per command, and the stages that commands share."""
