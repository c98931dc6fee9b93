"""The commands, one module each, and the stages that they share. Importing a command's module imports PyTorch."""
