# make reproduce | bench | peers | test | check | publish | lab | book | lint. Needs Python 3.11+ and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BOOK_VENV := .venv-book
PEERS_VENV := .venv-peers

# CPU=avx2: torch and oneDNN use no instruction beyond AVX2, and so no bf16, whatever this machine could do.
ifeq ($(CPU),avx2)
export ATEN_CPU_CAPABILITY := avx2
export ONEDNN_MAX_CPU_ISA := AVX2
else ifneq ($(CPU),)
$(error CPU=$(CPU) is unknown; there is CPU=avx2)
endif

.PHONY: setup reproduce bench peers test check publish lint lab book clean help

help:
	@echo "make reproduce  set up .venv and run every notebook on the embedded data into results/quick"
	@echo "make bench      time every part of a score and its rivals (a quarter of an hour) into results/bench"
	@echo "make peers      run anomalib's PaDiM and PatchCore beside ours (parameters: peers/peers.py)"
	@echo "make test       set up .venv and run the tests (notebooks included)"
	@echo "make check      compare the README with the committed CSV files, and those with their provenance"
	@echo "make publish    make results/reference of a finished run (RUN=reference-run)"
	@echo "make lab        open JupyterLab on the notebooks"
	@echo "make book       build the executed notebooks as a site, book/_build/html (BOOK=quick: of that run alone)"
	@echo "make lint       ruff on code and notebooks, and no outputs in notebooks"
	@echo "make clean      remove .venv, caches, results/quick and the book"
	@echo "reproduce, bench and test take CPU=avx2: as a CPU without AVX-512 and bf16 would do it"

setup: $(READY)

# torch first, on its own: later packages then find it there and do not fetch another build of it.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "This Python has no venv; on Debian: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

reproduce: setup
	$(BIN)/python -m irf_lib run quick

bench: setup
	$(BIN)/python -m irf_lib notebook 12 -p preset=reference -p out=results/bench

# An environment of its own, of several gigabytes. All that the lock pins has the same version here, except torch.
$(PEERS_VENV)/.ready: peers/requirements.txt requirements.lock pyproject.toml
	@test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	grep -v '^torch==' requirements.lock > $(PEERS_VENV)/constraints.txt
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(PEERS_VENV)/constraints.txt \
	  -r peers/requirements.txt --editable .
	@touch $@

# Each parameter is passed on where it is given: make peers DATA=data/mvtec_ad CATEGORIES="bottle pill" SEEDS="0 1 2"
peers: $(PEERS_VENV)/.ready
	$(PEERS_VENV)/bin/python -W ignore peers/peers.py $(foreach one,DATA CATEGORIES SEEDS PRESET OUT ROUNDS THREADS,\
	  $(if $($(one)),--$(shell echo $(one) | tr A-Z a-z) $($(one))))

# A process for each core, each with one thread; the tests of one file stay together, because they share what they made,
# and files keep the order of tests/conftest.py, the longest first.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Part of make test, too.
check: setup
	$(BIN)/python -m pytest -q tests/repository/test_results.py \
	  tests/repository/test_repository.py::test_readme_shows_the_committed_numbers

publish: setup
	$(BIN)/python workflow/publish.py $(or $(RUN),reference-run)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id $(sort $(wildcard notebooks/*.ipynb))

# Jupyter refuses to serve as root, which is what one is in a container, unless it is told.
lab: setup
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

# An environment of its own: the book's tools and the project's would pin each other.
$(BOOK_VENV)/.ready: book/requirements.txt
	@test -x $(BOOK_VENV)/bin/python || $(PYTHON) -m venv $(BOOK_VENV)
	$(BOOK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r book/requirements.txt
	@touch $@

# Every warning is an error, a link that leads nowhere included.
book: $(BOOK_VENV)/.ready
	$(BOOK_VENV)/bin/python book/pages.py $(BOOK)
	$(BOOK_VENV)/bin/jupyter-book build book/_build/source --path-output book -W -n --keep-going -q

clean:
	rm -rf $(VENV) $(BOOK_VENV) $(PEERS_VENV) book/_build .cache .pytest_cache .ruff_cache .snakemake data/textures results/quick
