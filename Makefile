# `make chat` and `make test` set themselves up: all that is needed is Python 3.10 or newer, with venv.
.SILENT:
.PHONY: help chat test lint types

help:
	echo "make chat                    talk to the bundled model (options: make chat ARGS='--no-think')"
	echo "make test                    run the tests (options: make test ARGS='-k parser')"
	echo "make lint, make types        ruff; mypy"
	echo "PYTHON=/path/to/python3.11   the interpreter to use, with any of them"

chat:
	scripts/venv.sh chat
	.venv/bin/glmchat $(ARGS)

# Threads of OpenMP that spin while they wait would take the core from the other half of the tests.
test:
	scripts/venv.sh dev
	OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

lint:
	scripts/venv.sh dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	scripts/venv.sh dev
	.venv/bin/mypy
