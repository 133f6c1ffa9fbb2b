# What can be done with this checkout. `pip install uv && uv run just` lists it.
# `uv run` adds the groups a recipe names to the environment and takes none away, so the recipes do not fight.

set positional-arguments

tools := env("UV", "uv") + " run --group lint --group test"
# Tests wait more than they compute, so there are more processes than cores; a module's tests stay together.
parallel := "-n 3 --dist loadfile --no-loadscope-reorder"

# Where Python is told to keep no bytecode, every process that a test starts would compile for seconds.
export PYTHONPYCACHEPREFIX := if env("PYTHONDONTWRITEBYTECODE", "") == "" { env("PYTHONPYCACHEPREFIX", "") } else { justfile_directory() / "__pycache__" }
export PYTHONDONTWRITEBYTECODE := ""

# list the recipes
default:
    @{{ just_executable() }} --list

# format, lint, types and the direction of imports
check:
    {{ tools }} ruff format --check
    {{ tools }} ruff check
    {{ tools }} mypy
    {{ tools }} lint-imports --no-logo

# put the code in the shape `check` asks for
format:
    {{ tools }} ruff check --fix
    {{ tools }} ruff format

# the tests that need no services; arguments go to pytest
unit *arguments:
    {{ tools }} pytest {{ parallel }} -m "not services" "$@"

# find PostgreSQL, RabbitMQ, Redis and Chromium, or install them; not in pytest, where the clock of the first test would run
services:
    {{ tools }} python tests/services.py

# everything: `check`, then every test on real services; arguments go to pytest
test *arguments: check services
    {{ tools }} pytest {{ parallel }} "$@"

# start the service in one process with nothing else installed; arguments go to `inventory serve`
run *arguments:
    {{ env("UV", "uv") }} run inventory serve "$@"

# core, relay and consumer in virtual time, where much goes wrong; a seed replays (`--seed N`, `--seeds M`)
simulate *arguments:
    {{ tools }} env PYTHONPATH=tests python -m simulation "$@"

# measure the service beside its limits (`--list`, `--only NAME`, `--quick`; see bench/README.md)
bench *arguments:
    {{ tools }} python bench/run.py "$@"

# two minutes in which something always goes wrong, on real servers (`--seed N`, `--minutes M`); then it must add up
chaos *arguments: services
    {{ tools }} python tests/faults/chaos.py "$@"
