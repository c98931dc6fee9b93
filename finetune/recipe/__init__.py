"""The recipe: its schema, how it is loaded, and how its mistakes are reported. Imports no torch."""
