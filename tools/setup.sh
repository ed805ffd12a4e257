#!/usr/bin/env bash
# Sets up everything the build and the tests need, once per machine and version:
#   1. the packages of third_party/apt-packages.txt (needs root; without it, says what to ask for),
#   2. a Python environment with the wheels of third_party/requirements.lock (libtorch lives in one of them),
#   3. nvcc, from the wheels of third_party/requirements-cuda.lock,
#   4. the programs that tests load exports with, from the wheels of third_party/requirements-consumers.lock,
#   5. the links third_party/site and third_party/cuda, which Bazel reads as @torch and @cuda, and third_party/consumers.
# All are kept in ${NARROWGAUGE_CACHE:-~/.cache/narrowgauge}, named by their lock file's hash, so a second
# checkout reuses them. Running this again does nothing and takes milliseconds.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/narrowgauge}
hash_of() { sha256sum "$1" | cut -c1-12; }
environment=$cache/python-$(hash_of third_party/requirements.lock)
cuda_environment=$cache/cuda-$(hash_of third_party/requirements-cuda.lock)
consumers=$cache/consumers-$(hash_of third_party/requirements-consumers.lock)
say() { printf '[setup] %s\n' "$*" >&2; }

missing_packages() {
  local package
  grep -v '^#' third_party/apt-packages.txt | while read -r package; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || printf '%s ' "$package"
  done
}

# Says every five seconds what COMMAND ... prints, while the process that runs this script lives: pip and apt-get are
# silent for minutes. The lock is closed, so that a killed set-up leaves no holder of it behind; sleep, which outlives
# its loop, holds no output open either.
progress_pid=""
start_progress() {
  while sleep 5 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do say "      $("$@" 2>/dev/null)"; done 9>&- &
  progress_pid=$!
}
stop_progress() {
  [ -z "$progress_pid" ] || kill "$progress_pid" 2>/dev/null || :
  progress_pid=""
}
trap stop_progress EXIT

apt_progress() {
  awk '/^Get:/ {got++} /^Unpacking / {unpacked++} /^Setting up / {ready++}
       END {printf "packages downloaded: %d, unpacked: %d, set up: %d", got, unpacked, ready}' "$cache/apt.log"
}

folder_progress() {
  local folder=$1 expected_mb=$2
  printf '%s of about %s MB' "$(du -sm "$folder" | cut -f1)" "$expected_mb"
}

install_packages() {
  local missing=$1 as_root=""
  if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
      as_root="sudo -n"
    else
      say "these packages are missing and this user may not install them; ask your administrator for:"
      say "  apt-get install --no-install-recommends $missing"
      exit 1
    fi
  fi
  say "1/5 installing packages: $missing"
  # Variables go through env, since sudo drops the caller's. No question may be asked: nobody would see it.
  # shellcheck disable=SC2086  # the words are meant to split
  apt_get() {
    $as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a LC_ALL=C \
      apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$cache/apt.log" 2>&1 9>&-
  }
  : >"$cache/apt.log"
  start_progress apt_progress
  apt_get update || say "apt-get update failed; trying with the package lists as they are"
  # shellcheck disable=SC2086  # the list is meant to split
  apt_get install -y --no-install-recommends $missing ||
    { tail -20 "$cache/apt.log" >&2; say "apt-get failed; the whole log is $cache/apt.log"; exit 1; }
  stop_progress
}

make_environment() {
  local building="$environment.building.$$"
  rm -rf "$environment".building.*
  python3 -m venv "$building" 9>&-
  say "2/5 installing the pinned Python wheels (5 GB, one to five minutes)"
  start_progress folder_progress "$building" 5300
  "$building/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    -r third_party/requirements.lock </dev/null >&2 9>&-
  stop_progress
  # The folder appears under its final name only when complete, so an interrupted set-up is never half used.
  mv "$building" "$environment"
}

make_cuda_environment() {
  local building="$cuda_environment.building.$$"
  rm -rf "$cuda_environment".building.*
  mkdir "$building"
  say "3/5 installing nvcc (250 MB)"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$building" \
    -r third_party/requirements-cuda.lock </dev/null >&2 9>&-
  mv "$building" "$cuda_environment"
}

make_consumers() {
  local building="$consumers.building.$$"
  rm -rf "$consumers".building.*
  mkdir "$building"
  say "4/5 installing what loads our exports in tests (160 MB)"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$building" \
    -r third_party/requirements-consumers.lock </dev/null >&2 9>&-
  # pip --target leaves executorch's schema compiler without the right to run.
  find "$building" -path '*/executorch/data/bin/flatc' -exec chmod +x {} +
  mv "$building" "$consumers"
}

link() {
  [ "$(readlink "$2" || :)" = "$1" ] || { say "5/5 linking $2"; ln -sfn "$1" "$2"; }
}

mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock -n 9 || { say "another set-up is running; waiting for it"; flock 9; }

missing=$(missing_packages)
[ -z "$missing" ] || install_packages "$missing"
[ -d "$environment" ] || make_environment
[ -d "$cuda_environment" ] || make_cuda_environment
[ -d "$consumers" ] || make_consumers
link "$(echo "$environment"/lib/python3.*/site-packages)" third_party/site
link "$cuda_environment/nvidia/cu13" third_party/cuda
link "$consumers" third_party/consumers
