"""Data: read rows from files, the hub or the recipe, label and tokenize them, and make batches."""
