# Digit by Digit. `make` lists the targets; the first one that needs it makes the environment in .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
BOOK := _build/html/index.html
CODE := mnistlib tests scripts benchmarks notebooks book/_ext

.DEFAULT_GOAL := help
.PHONY: help book test lint notebooks ablations train clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(VENV)/.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: name another one with `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install -q -r requirements.txt
	$(RUN) pip install -q --no-deps -e .
	@touch $@

book: $(VENV)/.stamp  ## build the book from the stored outputs, warning-free, from scratch
	rm -rf _build
	$(VENV)/bin/jupyter-book build . -W -n --keep-going -q
	@echo "The book: $(CURDIR)/$(BOOK)"

test: export OMP_NUM_THREADS := 1
test: lint  ## lint, then all tests and every chapter's stored numbers (minutes)
	env -u MNISTLIB_DATA MNISTLIB_PROFILE=read $(RUN) pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env notebooks
	$(RUN) pytest -n 2 --dist loadfile tests

lint: $(VENV)/.stamp  ## check style and spelling
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)
	$(VENV)/bin/codespell README.md $(CODE) book

notebooks: $(VENV)/.stamp  ## execute the chapters again: notebooks/src/*.md -> notebooks/*.ipynb
	$(VENV)/bin/python scripts/notebooks.py

ablations: $(VENV)/.stamp  ## run the chapters' ablations again, resumable (hours)
	$(RUN) mnistlib.ablations

# Each after those it stands on: they are judged by the shipped digit_features, and the latent ones
# live in the shipped vae (`scripts/ship.py NAME` ships what was trained).
TRAINED := digit_features ddpm vae latent_classifier latent joint ddpm_class rgb_vae text_to_image

train: $(VENV)/.stamp  ## train the networks again, resumable (hours on two CPU cores)
	@for name in $(TRAINED); do \
		if test -f runs/$$name/$$name.safetensors; then continue; fi; \
		if test -f runs/$$name/state.safetensors; then resume=--resume; else resume=; fi; \
		$(RUN) mnistlib train $$name --profile full $$resume || exit 1; \
	done

clean:  ## remove what was built, the environment too
	rm -rf _build $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
