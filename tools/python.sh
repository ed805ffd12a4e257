#!/usr/bin/env bash
# The Python of the pinned environment (torch, transformers, torchao): tools/python.sh FILE.py [ARG ...]
set -eu
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
[ -e "$root/third_party/site" ] || { echo "python.sh: no pinned environment yet; run tools/setup.sh" >&2; exit 1; }
site=$(readlink -f "$root/third_party/site")
exec "${site%/lib/*}/bin/python" "$@"
