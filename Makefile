# Each target makes .venv where there is none, installs what constraints.txt pins, and runs.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: table3 test suite lint book outputs picture clean

table3: $(INSTALLED)  ## Table 3 at 3,000 clean images: trains what has no record yet
	$(BIN)/papermill notebooks/table3.ipynb out.ipynb -p clean_size 3000 --log-output
	$(BIN)/purifier show table3

test: lint suite  ## lint, types, unit tests, and the notebooks, briefly trained

suite: $(INSTALLED)  ## the tests alone
	$(BIN)/pytest --nbval-lax

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(INSTALLED)  ## the rendered book in _build/html, warnings as errors
	$(BIN)/jupyter-book build . -W -n --keep-going

outputs: $(INSTALLED)  ## the notebook that is committed with outputs, run at quick
	$(BIN)/jupyter-execute --inplace notebooks/own_model.ipynb

picture: $(INSTALLED)  ## the README's picture, from the committed records
	PURIFIER_RECORDS_ONLY=1 $(BIN)/purifier show table3 --figure book/_static/table3.png

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 ...")'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,cluster,test]'
	touch $(INSTALLED)

clean:
	rm -rf _build out.ipynb
