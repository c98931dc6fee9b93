"""The files of a run: their paths, their content, and how they are written, read and locked. Imports no torch."""
