#!/usr/bin/env bash
# The Python of the pinned environment (torch, transformers, torchao): tools/python.sh FILE.py [ARG ...]
set -eu
site=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../third_party/site")
exec "${site%/lib/*}/bin/python" "$@"
