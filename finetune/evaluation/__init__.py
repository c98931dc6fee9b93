"""Predictions, metrics and their confidence intervals."""
