# The commands of the README. Without make, run the same lines: python -m lab, python -m lab test, …
PYTHON ?= python3

.PHONY: lab test test-slow test-browser book ledger student solutions site readme
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
student:    ## the book without its solutions, into build/student
	@$(PYTHON) -m lab student
solutions:  ## the book with every exercise solved, into build/solutions
	@$(PYTHON) -m lab solutions
site:       ## make the HTML book in build/site
	@$(PYTHON) -m lab site
readme:     ## make the README's picture and tables again
	@$(PYTHON) -m lab setup && .venv/bin/python -m pruninglab readme
