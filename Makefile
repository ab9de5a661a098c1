# The commands of this project; `make` alone lists them. Anything longer than a line is in scripts/setup.sh.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
# What is given to the command behind a target: make demo ARGS="--strategy fedasync --workers 8"
ARGS ?=
MINUTES ?=
# Many containers set it, and then each of hundreds of processes would compile Fluffle anew.
export PYTHONDONTWRITEBYTECODE :=

bin := .venv/bin
# Renewed when the pinned packages or the package itself have changed.
installed := .venv/.installed

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Give more with ARGS, as in: make demo ARGS="--compare --seeds 3"'

$(installed): requirements.lock pyproject.toml
	@scripts/setup.sh python
	@touch $@

.PHONY: install
install: $(installed) ## Install Fluffle and what it needs into .venv, and nothing else

.PHONY: rabbitmq
rabbitmq: $(installed)
	@scripts/setup.sh rabbitmq

.PHONY: demo
demo: $(installed) rabbitmq ## Install what is missing, then watch four workers train one model
	@$(bin)/fluffle demo $(ARGS)

.PHONY: demo-spark
demo-spark: $(installed) rabbitmq ## Install Spark and HDFS, then watch four sites train in Spark's executors
	@scripts/setup.sh data
	@scripts/setup.sh spark
	@scripts/setup.sh hdfs
	@PYTHONPATH=examples $(bin)/python -m clothing_on_spark.demo $(ARGS)

.PHONY: test-tools
test-tools: $(installed) rabbitmq
	@scripts/setup.sh tests

# Most tests wait for other processes, so that three at a time keep two cores busy; -n 0 runs one after the other. In their
# own order, the slow files come first, and the many quick ones fill what is left.
.PHONY: test
test: test-tools ## Run the tests, with real RabbitMQ nodes and real training, in 20 minutes
	@$(bin)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

.PHONY: test-long
test-long: test-tools ## Run the tests that take longer: kills, power cuts, clusters, refusals, 40 minutes
	@$(bin)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m long $(ARGS)

.PHONY: test-pythons
test-pythons: $(installed) rabbitmq ## Run every test on the oldest and newest Python here, and on the lowest packages
	@scripts/test_pythons.sh all $(ARGS)

.PHONY: test-lowest
test-lowest: $(installed) ## Run the unit tests on the lowest versions of the packages that are allowed
	@scripts/test_pythons.sh lowest $(ARGS)

.PHONY: test-jax
test-jax: $(installed) ## Run the tests of Keras tasks with Keras on JAX
	@scripts/test_pythons.sh jax $(ARGS)

.PHONY: test-torch
test-torch: $(installed) ## Run the tests of the PyTorch example (downloads some gigabytes on Linux)
	@scripts/test_pythons.sh torch $(ARGS)

.PHONY: test-containers
test-containers: ## Build the images and run a federation in containers as unknown users (needs Docker)
	@python3 scripts/try_containers.py

.PHONY: fuzz
fuzz: $(installed) ## Look for messages that break the decoder or the leader (MINUTES=1 for each target)
	@scripts/setup.sh fuzzer
	@PYTHONPATH=tests $(bin)/python -m fuzz --minutes $(or $(MINUTES),1)

.PHONY: soak
soak: $(installed) rabbitmq ## Kill and freeze everything at random, and count (MINUTES=30; ARGS="--seed 7")
	@FLUFFLE_TEST_MODEL_MB=200 $(bin)/pytest -q tests/faults/test_late_joiners.py
	@PYTHONPATH=tests $(bin)/python -m soak --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: bench
bench: $(installed) rabbitmq ## Run all benchmarks but the fleet, 15 minutes (some: ARGS="fold latency")
	@scripts/setup.sh data
	@$(bin)/python -m benchmarks.bench $(ARGS)

.PHONY: bench-quick
bench-quick: $(installed) rabbitmq ## Measure the required ratios, 8 minutes; fails when one falls short
	@$(bin)/python -m benchmarks.quick

.PHONY: bench-fleet
bench-fleet: $(installed) rabbitmq ## Watch one aggregator serve 10 to 500 workers, 14 minutes
	@$(bin)/python -m benchmarks.fleet $(ARGS)

.PHONY: bench-engines
bench-engines: $(installed) rabbitmq ## Measure workers in Spark and reading from HDFS, 10 minutes; fails when one falls short
	@scripts/setup.sh engines
	@PYTHONPATH=examples $(bin)/python -m benchmarks.on_spark
	@$(bin)/python -m benchmarks.reading

.PHONY: race
race: $(installed) rabbitmq ## Race the strategies with real processes, 5 seeds each (ARGS="--seeds 2"; see benchmarks/race.py)
	@$(bin)/python -m benchmarks.race $(ARGS)

.PHONY: papers
papers: $(installed) ## Play what papers say on the simulator, 40 minutes (some: ARGS="fedbuff")
	@scripts/setup.sh data
	@$(bin)/python -m benchmarks.papers $(ARGS)

.PHONY: peers
peers: $(installed) ## Measure simulations beside Flower and pfl-research, 20 minutes (downloads some gigabytes)
	@scripts/setup.sh peers
	@$(bin)/python -m benchmarks.peers $(ARGS)

.PHONY: secagg
secagg: $(installed) rabbitmq ## Measure secure aggregation beside Flower's SecAgg+, 20 minutes (downloads some gigabytes)
	@scripts/setup.sh peers
	@$(bin)/python -m benchmarks.secagg $(ARGS)

.PHONY: oracle
oracle: $(installed) ## Compare single steps of FedAsync and FedBuff with those of FLSim (downloads some gigabytes)
	@scripts/setup.sh peers
	@$(bin)/python -m benchmarks.oracle

.PHONY: performance
performance: $(installed) ## Write the newest results into docs/results/
	@$(bin)/python -m benchmarks.page

.PHONY: reference
reference: $(installed) ## Write docs/reference/settings.md from the settings classes
	@$(bin)/python -m scripts.reference

.PHONY: wheel
wheel: $(installed) ## Build the package to install elsewhere: dist/fluffle-VERSION-py3-none-any.whl
	@rm -rf dist
	@$(bin)/python -m hatchling build -t wheel

.PHONY: docs
docs: $(installed) ## Build the documentation as a site in site/; a broken link ends it
	@scripts/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --clean

.PHONY: check
check: $(installed) ## Check format, lint, types, the architecture's rules, and the docs' links and commands
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/pytest -q tests/test_architecture.py tests/test_docs.py

.PHONY: format
format: $(installed) ## Format the code and put right what lint can put right
	@$(bin)/ruff format .
	@$(bin)/ruff check --fix .

.PHONY: lock
lock: ## Pin the packages anew for a changed pyproject.toml (newer ones: ARGS=--upgrade)
	@scripts/setup.sh lock $(ARGS)

.PHONY: secrets
secrets: ## Draw passwords for docker compose: .secrets/, and RabbitMQ's users (docs/how-to/containers.md)
	@python3 scripts/make_secrets.py $(ARGS)

.PHONY: clean
clean: ## Remove the environment and caches; runs/ and .fluffle/ stay
	@rm -rf .venv .venvs .hadoop dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
