# Everything a fresh machine needs: Python >= 3.11 and make.
#   make demo    install into .venv and explain tissue with the packaged model -> demo/report.html (TILES=folder: your own pictures)
#   make test    install the development extras and run every notebook and test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lab docs sync readme clean

demo: .venv/.installed
	$(BIN)/hx_demo $(if $(TILES),--tiles "$(TILES)")

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

lab: .venv/.dev
	$(BIN)/jupyter lab nbs

# the site, in _docs: with Quarto where it is installed, else without
docs: .venv/.dev
	@if command -v quarto >/dev/null; then $(BIN)/nbdev_docs; else $(BIN)/python .ci/site.py; fi

# notebooks -> module and README, notebooks without their metadata
sync: .venv/.dev
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/pictures.py
	$(MAKE) readme

readme: .venv/.dev
	$(BIN)/python -m nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | sed -E 's#\]\((figures|tutorials)/#](nbs/\1/#g' > .README.tmp && mv .README.tmp README.md

.venv/.python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; make PYTHON=/path/to/python3.12 ..."'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

# torch and torchvision come from the same place, in one command: a mixed pair does not import
.venv/.installed: .venv/.python settings.ini setup.py
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/.dev: .venv/.installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf .venv _proc _docs demo
