# make reproduce | make test: everything else follows from these two.
PYTHON ?= python3.11
PROFILE ?= miniature
NOTEBOOKS ?=
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: env reproduce test test-slow lint format notebooks results bench clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.installed  ## .venv with the project and its pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev,rl]'
	@touch $@

reproduce: env  ## run notebooks: PROFILE=smoke|miniature|miniature-full|sd3-medium NOTEBOOKS="01 02"
	$(RUN) -m hybridlib.study.reproduce --profile $(PROFILE) $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

# One thread a worker: two torch processes of several threads each slow each other down many times.
PYTEST := OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(RUN) -m pytest --numprocesses auto --dist loadfile

test: env  ## the test suite without its slow part, then every committed notebook against its stored outputs
	$(PYTEST) -m "not slow"
	$(PYTEST) --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg notebooks

test-slow: env  ## the rest: trainings, killed runs, null data, every shipped number measured again
	$(PYTEST) -m slow

lint: env  ## ruff and the type checker
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: env  ## let ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

notebooks: env  ## execute the committed notebooks in place with their smoke defaults
	TQDM_DISABLE=1 $(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb
	$(VENV)/bin/nbstripout --keep-output --keep-count --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb

results: env  ## take the tables of a finished miniature-full run into data/results
	$(RUN) -m hybridlib.study.results --profile miniature-full

bench: env  ## both sides of every speed or size claim, in one run each
	$(RUN) benchmarks/study01.py
	$(RUN) benchmarks/metrics.py
	$(RUN) benchmarks/codecs.py
	OMP_NUM_THREADS=1 $(RUN) benchmarks/scheduling.py

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) outputs
