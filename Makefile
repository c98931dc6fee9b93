# Every verb sets up what it needs: a virtual environment in .venv, made anew when pyproject.toml changes.
VENV ?= .venv
RUN ?= runs/toy
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed

.PHONY: install format lint test test-gpu soak eval bench bench-accuracy bench-heads toy clean

install: $(SETUP)

$(SETUP): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

format: $(SETUP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(SETUP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# One worker per core, four at most, as each takes about 1 GB; a file stays with one worker, as its tests share what they
# build. Plain `pytest` runs the same tests in one process.
test: $(SETUP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The tests of tests/gpu alone; fails where torch finds no CUDA GPU, as all of them would be skipped.
test-gpu: $(SETUP)
	$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('test-gpu: torch finds no CUDA GPU')"
	$(BIN)/python -m pytest -m gpu tests/gpu

# Kills real runs at 24 random times, then runs at each write that they do, and compares every bit of what they leave;
# about 25 minutes on two cores. Then gives 5,500 hostile inputs to the commands: recipes, overrides, data, damaged runs.
soak: $(SETUP)
	$(BIN)/python -m tests.hostile.soak --at random-times
	$(BIN)/python -m tests.hostile.soak --at every-write
	$(BIN)/python -m tests.hostile.soak_inputs

toy: $(SETUP)
	$(BIN)/accelerate launch finetune/run.py recipes/toy.yaml

# Evaluates a finished run from its folder; trains the toy recipe first if it is asked for and not there.
eval: $(SETUP)
	@test -d $(RUN)/model || test $(RUN) != runs/toy || $(MAKE) --no-print-directory toy
	$(BIN)/finetune evaluate $(RUN)

# Speed against Trainer, then how time grows with a run's sizes; 45 minutes, on a machine that does nothing else.
bench: $(SETUP)
	$(BIN)/python -m tests.benchmarks.speed
	$(BIN)/python -m tests.benchmarks.growth

# Accuracy of both over three seeds; DATA holds sst2/train.parquet and sst2/test.parquet.
bench-accuracy: $(SETUP)
	$(BIN)/python -m tests.benchmarks.accuracy $(DATA)/sst2/train.parquet $(DATA)/sst2/test.parquet

# Rankings of heads against each other, over tasks and seeds. DATA holds sst2, trec and banking77, each with
# train, validation and test.parquet and labels.json; takes over an hour where nothing is trained yet.
bench-heads: $(SETUP)
	$(BIN)/python -m tests.benchmarks.gradients
	$(BIN)/python -m tests.benchmarks.ablation
	$(BIN)/python -m tests.benchmarks.heads --data $(DATA) --runs runs/bench-heads

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
