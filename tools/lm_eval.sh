#!/usr/bin/env bash
# lm-evaluation-harness on an exported model, in an environment of its own beside the pinned one (650 MB, installed at the first
# call, once per machine): tools/lm_eval.sh --model hf --model_args pretrained=DIR --tasks TASK ...
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
lock=$root/third_party/requirements-lm-eval.lock
cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/narrowgauge}
folder=$cache/lm-eval-$(sha256sum "$lock" | cut -c 1-12)
mkdir -p "$cache"
exec 9>"$cache/lm-eval.lock"
flock 9
if [ ! -d "$folder" ]; then
  building=$folder.building.$$
  rm -rf "$folder".building.*
  echo "[lm-eval] installing lm-evaluation-harness (650 MB)" >&2
  "$root/tools/python.sh" -m pip install --quiet --disable-pip-version-check --no-deps --target "$building" -r "$lock" \
    </dev/null >&2 9>&-
  mv "$building" "$folder"
fi
exec 9>&-
PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} exec "$root/tools/python.sh" -m lm_eval "$@"
