"""Fine-tune BERT-family classifiers from one recipe, and learn which attention heads they need."""

__version__ = "0.1.0"
