# Two commands do everything: `make demo` and `make test`.
#
# TORCH says which PyTorch is installed. On Linux the default brings CUDA, so that a GPU is used where there is
# one; without a GPU, `make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"` is a much
# smaller download. Once .venv exists, its torch is kept.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PORT ?= 8000
BIN := .venv/bin

.PHONY: demo test test-fast lint docs settings coverage bench soak chaos fuzz lock rules image audit clean

demo: .venv/demo
	$(BIN)/tween demo --port $(PORT)

# Three files of tests at a time: much of what they do is waiting for processes that start and servers that die.
test: lint .venv/debian
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# What starts no server or process and trains nothing.
test-fast: .venv/dev
	$(BIN)/python -m pytest -m 'not service' --numprocesses 2 --dist loadfile

# Before every commit as well: .venv/bin/pre-commit install
lint: .venv/dev
	$(BIN)/pre-commit run --all-files
	$(BIN)/mypy

# The site, in site/. Strict: a dead link fails.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The page docs/settings.md, from app/settings.py.
settings: .venv/demo
	$(BIN)/python -m app.settings > docs/settings.md

# Which lines no test runs; fails below the floor. Processes that tests start are not measured.
coverage: .venv/dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report term --cov-fail-under 85

bench: .venv/dev .venv/bench
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.cache_hits

soak: .venv/dev
	$(BIN)/python -m tests.soak

# About eight minutes. Debian's haproxy and faketime, and root (to mount a small disk); what is missing is said in its row.
chaos: .venv/dev
	$(BIN)/python -m pytest tests/test_chaos.py tests/test_culprit.py tests/test_hedging.py tests/test_draining.py \
	  tests/test_unmet.py
	$(BIN)/python -m tests.promises

# Longer than in `make test`, and what reads untrusted bytes under atheris, which has wheels for Linux alone.
fuzz: .venv/dev
	$(BIN)/python -m pip install --quiet 'atheris>=3,<4'
	TWEEN_FUZZ_EXAMPLES=100 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_members.py tests/test_against_models.py \
	  tests/test_blends_against_a_model.py tests/test_bounded_json.py tests/test_reading_time.py tests/test_connection.py \
	  tests/test_names.py tests/test_log_forging.py tests/test_roles.py tests/test_same_origin.py
	$(BIN)/python -W ignore -m tests.hostile_load
	$(BIN)/python -m tests.fuzz

# What the image installs, with hashes and without addresses; torch and what only torch with CUDA needs, apart.
lock: .venv/dev
	echo '$(firstword $(TORCH))' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-index-url --constraints /dev/stdin --extra demo --extra sweep --extra otel pyproject.toml \
	  | awk '/^[a-z]/ { file = /^(torch|triton|cuda-|nvidia-)/ ? "requirements-cuda.lock" : "requirements.lock" } { print > file }'

# The alerts for Prometheus' operator, from the file that everybody else reads.
rules:
	sed '/^#/d; s/^./  &/' k8s/monitoring/tween.rules.yml > .venv/rules
	sed -n -i '1,/^spec:/p' k8s/monitoring/rules.yaml
	cat .venv/rules >> k8s/monitoring/rules.yaml

# Builds the image and runs it, on Debian and without a Docker engine: needs root, and the packages that it names.
image: .venv/dev
	$(BIN)/python -m tests.image

# Known vulnerabilities, licences, a bill of materials, and the policies of checkov for manifests and Dockerfile; fails
# where the service that knows vulnerabilities does not answer.
audit: .venv/dev .venv/audit/bin/pip-audit .venv/policy/bin/checkov
	$(BIN)/python -m tests.audit .venv/audit/bin .venv/policy/bin/checkov

clean:
	rm -rf .venv

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo,sweep]'
	touch $@

.venv/bench: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/demo

# The policy checker pins versions that this project does not want, so it lives apart.
.venv/policy/bin/checkov: .venv/torch
	$(PYTHON) -m venv .venv/policy
	.venv/policy/bin/python -m pip install --quiet 'checkov>=3.3,<4'

# So do the tools of the audit.
.venv/audit/bin/pip-audit: .venv/torch
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3' 'pip-licenses>=5.5,<6' 'cyclonedx-bom>=7.5,<8'

# promtool, unpacked from Debian's package and not installed. Where that cannot be had, its tests are skipped.
.venv/debian: .venv/torch
	command -v promtool || (cd .venv && apt-get download --quiet prometheus && dpkg -x prometheus_*.deb debian) || true
	mkdir -p $@
