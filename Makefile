# The commands of the README. Without make, run the same lines: python -m lab, python -m lab test, …
PYTHON ?= python3

.PHONY: lab test test-slow test-browser book ledger readme
lab:        ## set up if need be, and open JupyterLab on the book
	@$(PYTHON) -m lab
test:       ## set up if need be, and pass the tests
	@$(PYTHON) -m lab test
test-slow:  ## the slow tests too
	@$(PYTHON) -m lab test --slow
test-browser: ## JupyterLab as readers have it, in the system's Chromium
	@$(PYTHON) -m lab test-browser
book:       ## run every chapter into build/book
	@$(PYTHON) -m lab book
ledger:     ## test every claim of the book, into book/ledger.md; an interrupted run goes on
	@$(PYTHON) -m lab ledger
readme:     ## make the README's picture and tables again
	@$(PYTHON) -m lab setup && .venv/bin/python -m pruninglab readme
