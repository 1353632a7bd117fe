# make demo   train nothing: load the packaged network, classify held-out scenes, write demo/index.html
# make test   the tests, a process per core (SLOW=1: the slow ones too)
# make study  train every model of the study (hours; resumes where it was interrupted) and write its report
# All set up .venv and the data first, and say what they do.

PYTHON := .venv/bin/python
PYTEST_MARK := $(if $(SLOW),-m "not gpu",)

.PHONY: demo test study lint setup

demo: setup
	$(PYTHON) examples/demo.py --out demo

test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PYTEST_MARK) --numprocesses auto --dist loadfile

study: setup
	$(PYTHON) benchmarks/study.py
	$(PYTHON) benchmarks/study_report.py
	$(PYTHON) benchmarks/export_scenes.py

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

setup:
	@./scripts/setup.sh
