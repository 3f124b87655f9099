# `make demo` and `make test` need nothing but Python >= 3.10 and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch first and pinned: an open range may fetch several gigabytes of CUDA on a machine without a GPU.
# `make test CONSTRAINTS=` takes the newest releases instead.
CONSTRAINTS ?= -c constraints.txt
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
LOWEST := .venv-lowest
# Tools that benchmarks compare with, each in an environment of its own that sees this one's torch and transformers.
PEERS := .venv-peers

# How long `make fuzz` takes, in seconds, and what it begins with; UNGUIDED=--unguided tries many more, without coverage.
SECONDS ?= 600
SEED ?= 1
UNGUIDED ?=

.PHONY: demo test test-lowest test-tasks lint docs fuzz survey methods smollm2 bench wheel release clean

demo: $(VENV)/installed
	$(BIN)/surgeon apply recipes/zero_core.yaml

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# The lowest releases that pyproject.toml allows, in an environment of their own; several gigabytes, with torch from the
# index as it is. UV_TORCH_BACKEND=cpu takes the one without CUDA where it can be had. Old releases may use what new ones
# of their own dependencies deprecate: no error here.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -q -n 2 -m "not slow" -W default::DeprecationWarning
	$(LOWEST)/bin/python -m pytest -q -n 2 -W default tests/freeze/test_freeze_trainers.py

# What needs lm-evaluation-harness, 300 MB; `make test` skips it where that is not installed.
test-tasks: $(VENV)/installed-dev
	$(INSTALL) -e ".[tasks]"
	$(BIN)/python -m pytest -q tests/harness

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

fuzz: $(VENV)/installed-dev
	$(INSTALL) -e ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --seed $(SEED) $(UNGUIDED)

# Every type of model that transformers has, tiny and random, beside plain transformers; writes docs/models.md. A quarter
# of an hour on one core.
survey: $(VENV)/installed-dev
	$(INSTALL) pillow scipy
	rm -f out/survey.jsonl
	$(BIN)/python scripts/survey_models.py --results out/survey.jsonl; found=$$?; \
	  $(BIN)/python scripts/survey_models.py --results out/survey.jsonl --page && exit $$found

# Every recipe of docs/methods.md on the builtin model, with the training that some of them take: over an hour on one
# core. CORPUS is a folder of texts to train on (docs/paper.md); without it the Declaration's scoring half.
TRAIN = $(BIN)/python examples/further_pretraining.py $(if $(CORPUS),--corpus $(CORPUS)) --measure-at
methods: $(VENV)/installed-dev
	for language in zh es; do $(TRAIN) --language $$language --arms nothing --seeds 0 -- out/stitch/$$language || exit 1; done
	for name in ssu language_neurons super_weight stitch tall layers layers_freeze compare_scores; do \
	  $(BIN)/surgeon apply methods/$$name || exit 1; done
	$(if $(CORPUS),texts=$$(cd out/stitch/zh/texts; for file in *.txt; do echo "'$${file%.txt}': $$PWD/$$file,"; done); \
	  $(BIN)/surgeon apply methods/stitch --output out/stitch/help-texts --set verify.tokens=1024 --set "corpus={$$texts}")
	$(BIN)/python examples/upcycle.py out/mixture
	$(BIN)/surgeon apply methods/super_experts --set model=out/mixture --set regions.random.select.random=0.0625
	$(TRAIN) 15 30 60 90 -- out/ssu
	$(BIN)/python examples/further_pretraining_figure.py out/ssu/curves.jsonl
	$(BIN)/python examples/masked_gradients.py out/ssu/variants/columns
	$(TRAIN) --seeds 0 --arms nothing zh-only random-only -- out/language-neurons
	$(TRAIN) --seeds 0 -- out/layers-freeze
	for name in language-neurons layers-freeze; do \
	  $(BIN)/python examples/further_pretraining_figure.py out/$$name/curves.jsonl || exit 1; done

smollm2: $(VENV)/installed-dev
	$(BIN)/python scripts/fetch_smollm2.py models/SmolLM2-135M-Instruct
	$(BIN)/surgeon apply recipes/smollm2/zero_core.yaml

# All benchmarks at small sizes, a quarter of an hour; what is compared, and larger sizes: docs/performance.md.
bench: $(VENV)/installed-dev $(PEERS)/lm_eval/installed $(PEERS)/mergekit/installed
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/write.py --gigabytes 0.5 --runs 3 --mergekit $(PEERS)/mergekit/bin/mergekit-yaml
	$(BIN)/python benchmarks/diff.py --gigabytes 0.5
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/verify.py --harness $(PEERS)/lm_eval/bin/python
	$(BIN)/python benchmarks/variants.py
	$(BIN)/python benchmarks/measurements.py --languages en --items 4
	$(BIN)/python benchmarks/region_size.py
	$(BIN)/python benchmarks/freeze.py --model builtin:tiny30 --tokens 1024 --length 256
	$(BIN)/python benchmarks/agreement.py --samples 4 --languages ar,es

wheel: $(VENV)/installed-dev
	$(BIN)/python -m build --wheel --outdir dist .

# Builds, checks, and prints what a person has to sign; uploads nothing.
release: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python scripts/release.py dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e ".[dev,docs,smollm2,trainers]"
	touch $@

$(LOWEST)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -e ".[test,trainers,smollm2]"
	touch $@

$(PEERS)/%/installed: | $(VENV)/installed-dev
	$(BIN)/python -m venv $(PEERS)/$*
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	    > $$($(PEERS)/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/seen.pth
	$(PEERS)/$*/bin/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) $*
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(PEERS) dist build out models site
