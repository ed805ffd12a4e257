#!/usr/bin/env bash
# Builds llama.cpp with its Python binding from the source package of a pinned version, once per machine (ten minutes on two
# cores), and prints the folder to add to PYTHONPATH. Tests tagged slow run exported GGUF files with it.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
version=0.3.36
cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/narrowgauge}
folder=$cache/llama-cpp-python-$version
mkdir -p "$cache"
exec 9>"$cache/llama-cpp.lock"
flock 9
if [ ! -d "$folder" ]; then
  building=$folder.building.$$
  rm -rf "$folder".building.*
  echo "[llama.cpp] compiling llama-cpp-python $version (ten minutes on two cores)" >&2
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF" \
    tools/python.sh -m pip install --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --target "$building" "llama-cpp-python==$version" </dev/null >&2 9>&-
  mv "$building" "$folder"
fi
echo "$folder"
