#!/usr/bin/env bash
# Runs a Python test in the pinned environment: run_python_test.sh FILE.py [ARG ...]
set -eu
exec "${NARROWGAUGE_PYTHON:?set by tools/setup.sh through the launcher}" "$@"
