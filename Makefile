# make run and make test set up all they need: a virtual environment and the packages in pyproject.toml.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: run test test-system lint bench soak pictures clean

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/.ready  ## the main job on a copy of the fixtures
	$(BIN)/python examples/tour.py

test: $(VENV)/.ready  ## the whole suite; needs nothing but Python
	$(BIN)/python -m pytest -m "not system"

test-system: $(VENV)/.ready  ## what needs Node.js, root or Debian packages, real gateways and schemathesis
	./tests/install_system_packages.sh
	./tests/gateways/install.sh
	$(BIN)/python -m pytest -m system

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/conformance/tiny.py
	$(BIN)/lint-imports

bench: $(VENV)/.ready  ## ratios, measured side by side; SIZE=smallest sees only that each benchmark runs
	$(BIN)/python -m benchmarks $(if $(filter smallest,$(SIZE)),--smallest)

soak: $(VENV)/.ready  ## the long runs of the concurrency tests; those of real gateways need what test-system installs
	SOAK=1 $(BIN)/python -m pytest -m "not system" tests/service/test_chat_crowd.py tests/service/test_engine_purge.py \
		$(addprefix tests/stores/test_,$(addsuffix .py,faults gateway_writers kill kill_restore random_kills restore_faults stateful))
	SOAK=1 SM_GATEWAY_MESSAGES=200 $(BIN)/python -m pytest -m system tests/gateways/test_messages_and_removals.py \
		tests/service/test_dashboard_page.py

pictures: $(VENV)/.ready  ## the README's pictures, on a copy of the fixtures; needs Debian's chromium
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
