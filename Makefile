# make reproduce | make test: everything else follows from these two.
PYTHON ?= python3.11
PROFILE ?= miniature
NOTEBOOKS ?=
CLUSTER ?=
VENV := .venv
RUN := $(VENV)/bin/python
unexport PYTHONDONTWRITEBYTECODE  # uv leaves compiling to the first import: let that be kept
EXTRAS := dev,lora,metrics,rl
PINNED := --quiet --constraint constraints.txt --editable
# uv installs what pip would, several times quicker; pip reaches indexes that only its own configuration names.
install = $(RUN) -m uv pip install --python $(RUN) $(PINNED) '.[$(1)]' || $(RUN) -m pip install $(PINNED) '.[$(1)]'

.PHONY: env arguments reproduce test test-slow test-browser lint format notebooks results site bench clean clean-outputs help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.installed  ## .venv with the project and its pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet uv
	$(call install,$(EXTRAS))
	@touch $@

reproduce: arguments env $(if $(filter ray,$(CLUSTER)),$(VENV)/.ray)  ## run notebooks: PROFILE=smoke|miniature|miniature-full|sd3-medium NOTEBOOKS="01 02" CLUSTER=local|ray
	$(VENV)/bin/hybridlib reproduce $(PROFILE) $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS)) $(if $(CLUSTER),--cluster $(CLUSTER))

$(VENV)/.ray: $(VENV)/.installed
	$(call install,ray)
	@touch $@

arguments:  # refused before the environment is built
	@test -d params/$(PROFILE) || test -e $(PROFILE) || { echo "no profile $(PROFILE); there are: $$(ls params | tr '\n' ' ')"; exit 2; }
	@for n in $(NOTEBOOKS); do test -f $$n || ls notebooks/$$n*.ipynb >/dev/null 2>&1 || { echo "no notebook $$n; there are: $$(ls notebooks | tr '\n' ' ')"; exit 2; }; done

# One thread a worker: two torch processes of several threads each slow each other down many times.
PYTEST := OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(RUN) -m pytest --numprocesses auto --dist loadfile

NBVAL := $(PYTEST) --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg
LONG := $(wildcard notebooks/02*.ipynb notebooks/09*.ipynb notebooks/05*.ipynb notebooks/06*.ipynb notebooks/07*.ipynb notebooks/08*.ipynb notebooks/1*.ipynb)

test: env  ## the quick tests, then the quick notebooks against their stored outputs
	$(PYTEST) -m "not slow"
	$(NBVAL) $(filter-out $(LONG), $(wildcard notebooks/*.ipynb))

test-slow: env $(VENV)/.site $(VENV)/.ray  ## the rest: trainings, killed runs, null data, every shipped number measured again, Ray, the site, the longer notebooks
	$(PYTEST) -m slow
	$(NBVAL) $(LONG)

test-browser: env  ## the explorer in JupyterLab, driven in headless Chromium (apt-get install chromium chromium-driver)
	$(call install,browser)
	$(RUN) -m pytest -m browser tests/explorer

lint: env  ## ruff and the type checker
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: env  ## let ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

notebooks: env  ## execute the committed notebooks in place with their smoke defaults
	TQDM_DISABLE=1 $(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace \
		--NotebookExporter.preprocessors=hybridlib.study.stills.StillsOnly notebooks/*.ipynb
	$(VENV)/bin/nbstripout --keep-output --keep-count --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb

results: env  ## take the tables of a finished miniature-full run into data/results
	$(RUN) -m hybridlib.study.results --profile miniature-full
	$(RUN) docs/tables.py

$(VENV)/.site: $(VENV)/.installed
	$(call install,site)
	@touch $@

site: env $(VENV)/.site  ## outputs/site/: guides, studies, reference; open index.html, no server needed
	$(RUN) docs/site/build.py

bench: env  ## both sides of every speed or size claim, in one run each
	$(RUN) benchmarks/study01.py
	$(RUN) benchmarks/metrics.py
	$(RUN) benchmarks/codecs.py
	$(RUN) benchmarks/seal.py
	$(RUN) benchmarks/explorer.py
	OMP_NUM_THREADS=1 $(RUN) benchmarks/scheduling.py
	OMP_NUM_THREADS=1 $(RUN) benchmarks/assignment.py

clean:  ## remove the environment; outputs stay
	rm -rf $(VENV)

clean-outputs:  ## remove all outputs, after asking
	@if [ ! -d outputs ]; then echo "there are no outputs"; exit 0; fi; du -sh outputs; \
	read -p "Remove outputs/ with all images and tables in it? [y/N] " answer; \
	if [ "$$answer" = y ]; then rm -rf outputs; else echo "kept"; fi
