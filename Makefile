# A thin door: every target is a `python -m lifelong_core` command that also works without make.
PYTHON ?= python3

.PHONY: setup demo ui test lint
setup demo ui test lint:
	@$(PYTHON) -m lifelong_core $@
