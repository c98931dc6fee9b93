"""Build, save, load and change classifiers."""
