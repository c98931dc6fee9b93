# All targets except clean install the virtual environment in .venv if it is missing or pyproject.toml has changed.
VENV ?= .venv
RUN ?= runs/toy
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed

.PHONY: install format lint test test-gpu soak eval bench bench-accuracy bench-heads bench-pruning bench-export bench-predict bench-report bench-interop \
	bench-inference bench-intervals bench-defaults bench-peers bench-coverage bench-label-errors bench-data bench-pipeline bench-startup claims toy clean

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

# One worker per core, but at most four, because each takes about 1 GB. The tests of a file share fixtures, so they run
# in one worker. `pytest` without options runs the same tests in one process.
test: $(SETUP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Only the tests in tests/gpu. Fails if torch finds no CUDA GPU, because all of them would be skipped.
test-gpu: $(SETUP)
	$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('test-gpu: torch finds no CUDA GPU')"
	$(BIN)/python -m pytest -m gpu tests/gpu

# Kills runs at 24 random times and at each of their writes, resumes them, and compares the results bit by bit: about 25
# minutes on two cores. Then tries 5,500 invalid inputs: recipes, overrides, data files and damaged runs.
soak: $(SETUP)
	$(BIN)/python -m tests.hostile.soak --at random-times
	$(BIN)/python -m tests.hostile.soak --at every-write
	$(BIN)/python -m tests.hostile.soak_inputs

toy: $(SETUP)
	$(BIN)/accelerate launch finetune/run.py recipes/toy.yaml

# Evaluates the finished run in RUN. If that is runs/toy and it does not exist, the toy recipe is trained first.
eval: $(SETUP)
	@test -d $(RUN)/model || test $(RUN) != runs/toy || $(MAKE) --no-print-directory toy
	$(BIN)/finetune evaluate $(RUN)

# Speed compared with Trainer: 20 minutes on two cores with no other load. The results are in runs/bench; to keep them and
# update guide and README: python -m tests.benchmarks.speed --write
bench: $(SETUP)
	$(BIN)/python -m tests.benchmarks.speed

# Accuracy of finetune and Trainer over three seeds, 5 minutes. DATA is a folder with sst2/train.parquet and sst2/test.parquet.
bench-accuracy: $(SETUP)
	$(BIN)/python -m tests.benchmarks.accuracy --train $(DATA)/sst2/train.parquet --test $(DATA)/sst2/test.parquet

# Every training option against the plain recipe at equal training time. Start it several times at once to use more
# cores; it resumes where it stopped. GRID is choose (cr, subj, mpqa, clinc) or confirm (trec, sst2, mrpc, nlupp,
# banking77); DATA has a folder of each, with train.parquet, validation.parquet or test.parquet, and labels.json. The
# tables: python -m tests.benchmarks.defaults --grid GRID --table, or --write to keep the results and update the guide.
GRID ?= choose
bench-defaults: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.defaults --data $(DATA) --grid $(GRID)

# The default recipe against Trainer, TF-IDF, frozen states and, if SETFIT_PYTHON is a Python with setfit, SetFit, on the
# same rows of trec, sst2, mrpc, nlupp and banking77. It resumes where it stopped.
bench-peers: $(SETUP)
	$(BIN)/python -m tests.benchmarks.peers --data $(DATA) $(if $(SETFIT_PYTHON),--setfit-python $(SETFIT_PYTHON))

# Calibration, prediction sets and rows out of scope on four data sets; updates the tables of the guide on probabilities.
# DATA has trec, banking77, sst2 and clinc_oos; without it, the logits of an earlier call are used. Trains for half an hour.
bench-coverage: $(SETUP)
	$(BIN)/python -m tests.benchmarks.coverage $(if $(DATA),--data $(DATA))

# Compares orders of the attention heads. GRID is choose (candidates on validation rows of three data sets) or confirm
# (methods on rows and data sets that chose nothing). DATA has one folder per data set: trec, sst2, banking77; for confirm
# also mrpc, nlupp, cr, subj, mpqa and clinc. Trains the models that do not exist: hours. For the tables:
# python -m tests.benchmarks.heads --grid GRID --table, or --write to keep the results and update the guide.
bench-heads: GRID = confirm
bench-heads: $(SETUP)
	$(BIN)/python -m tests.benchmarks.gradients
	$(BIN)/python -m tests.benchmarks.ablation
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.heads --data $(DATA) --grid $(GRID)

# Which published statements about attention heads hold here, with intervals over data sets and seeds; updates the guide
# "Claims". DATA is a folder with sst2, trec and banking77, each with train, validation and test.parquet and labels.json.
# Takes about 75 CPU minutes on one core, 20 of them to train nine models. It resumes where it stopped.
claims: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.claims --data $(DATA)
	$(BIN)/python -m tests.benchmarks.claims --write

# Prunes models of sst2, trec and banking77 (DATA as above) to twice the speed, without and with recovery fine-tuning: two
# hours, with training. The results are kept in tests/benchmarks/results/pruning.json; for the tables of the guide:
# python -m tests.benchmarks.pruning --write
bench-pruning: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.pruning --data $(DATA) --runs runs/bench-pruning

# Speed of inference on the texts of the finished run in RUN (and of RUN/pruned, if it exists): about 10 minutes on a
# machine with no other load.
bench-inference: $(SETUP)
	$(BIN)/python -m tests.benchmarks.inference $(RUN)

# Exports a small random model of each family to ONNX, and compares its logits with PyTorch's: a minute.
bench-export: $(SETUP)
	$(BIN)/python -m tests.benchmarks.export_families

# Memory and speed of `finetune predict` at 10,000 and 1,000,000 rows with the small classifier, then at 10,000 rows with
# the model in RUN: about 15 minutes on a machine with no other load.
bench-predict: $(SETUP)
	@test -d runs/toy_from_scratch/model || $(BIN)/finetune train recipes/toy_from_scratch.yaml
	$(BIN)/python -m tests.benchmarks.predict runs/toy_from_scratch
	$(BIN)/python -m tests.benchmarks.predict $(RUN) --rows 10000

# Size and speed of report.html with 10,000 to 1,000,000 generated predictions, from a copy of the run in RUN: 3 minutes.
bench-report: $(SETUP)
	$(BIN)/python -m tests.benchmarks.report_page $(RUN)

# How many planted label errors of TREC are found, and how many of the first likely errors of Banking77 are wrong: two
# minutes on a machine with no other load. DATA is a folder with trec and banking77, each with train.parquet and labels.json.
bench-label-errors: $(SETUP)
	$(BIN)/python -m tests.benchmarks.label_errors --data $(DATA)

# Memory and speed of reading and tokenizing 100,000 and 1,000,000 rows of csv and parquet, and of the second run, which
# finds the token ids in the cache: 10 minutes on a machine with no other load.
bench-data: $(SETUP)
	$(BIN)/python -m tests.benchmarks.large_data

# Tokens per second that reach a model which computes nothing, against a DataLoader with transformers' collator: two minutes
# on a machine with no other load. Updates the table of the performance guide.
bench-pipeline: $(SETUP)
	$(BIN)/python -m tests.benchmarks.input_pipeline --write

# Seconds of the processor from a command to the first training step or the first prediction, in new processes, with the
# finished run in RUN; AGAINST is another checkout, measured in the same rounds: 3 minutes on a machine with no other load.
bench-startup: $(SETUP)
	$(BIN)/python -m tests.benchmarks.startup $(RUN) $(if $(AGAINST),--against $(AGAINST))

# How often the 95 % intervals of all metrics contain the true value: 400 data sets per setting, 10 minutes. Updates the
# guide "Runs".
bench-intervals: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.intervals

# How much probabilities differ when transformers, peft and sentence-transformers open the models of the run in RUN.
bench-interop: $(SETUP)
	$(BIN)/python -m tests.benchmarks.interop $(RUN)

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
