# The two commands a newcomer needs: `make demo` and `make test`. Each makes the virtual environment when it is missing.
.PHONY: demo test lint clean

# The newest interpreter that every pinned wheel exists for comes first; override with `make demo PYTHON=...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

demo: $(VENV)/.installed
	$(BIN)/anomaly3d generate --config configs/benchmark/demo_data.yaml
	$(BIN)/anomaly3d compare --config configs/benchmark/demo.yaml
	@echo
	@echo "Open   results/demo/heatmaps.png     ground truth beside the heat map of every method"
	@echo "       results/demo/comparison.md    the table above, with where its numbers come from"
	@echo "Try    .venv/bin/anomaly3d --help    then your own clouds: README.md, 'Your own data'"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A stamp, so that a broken installation is made again and a changed pin is noticed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "anomaly3d needs Python 3.11, 3.12 or 3.13: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) results runs datasets
