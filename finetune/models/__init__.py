"""Build, load, save and modify classifiers: one module per topic, and `architectures.py` with all model families."""
