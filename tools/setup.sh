#!/usr/bin/env bash
# Sets up everything the build and the tests need, once per machine and version:
#   1. the packages of third_party/apt-packages.txt (needs root; without it, says what to ask for),
#   2. a Python environment with the wheels of third_party/requirements.lock (libtorch lives in one of them),
#   3. the link third_party/site, which Bazel reads as @torch.
# The environment is kept in ${NARROWGAUGE_CACHE:-~/.cache/narrowgauge}, named by the lock file's hash, so a
# second checkout reuses it. Running this again does nothing and takes milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/narrowgauge}
lock_hash=$(sha256sum third_party/requirements.lock | cut -c1-12)
environment="$cache/python-$lock_hash"
say() { printf '[setup] %s\n' "$*" >&2; }

missing_packages() {
  local package
  grep -v '^#' third_party/apt-packages.txt | while read -r package; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || printf '%s ' "$package"
  done
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
  say "1/3 installing packages: $missing"
  $as_root apt-get update -qq
  # shellcheck disable=SC2086  # the list is meant to split
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >"$cache/apt.log" 2>&1 ||
    { tail -20 "$cache/apt.log" >&2; say "apt-get failed; the whole log is $cache/apt.log"; exit 1; }
}

# Prints the growing size of a folder every five seconds until it is killed: pip itself is silent for minutes.
show_growth() {
  local folder=$1 expected_mb=$2
  while sleep 5; do
    say "      $(du -sm "$folder" 2>/dev/null | cut -f1) of about $expected_mb MB"
  done
}

make_environment() {
  local building="$environment.building.$$"
  rm -rf "$environment".building.*
  python3 -m venv "$building"
  say "2/3 installing the pinned Python wheels (5 GB, one to five minutes)"
  show_growth "$building" 5300 &
  local progress=$!
  trap 'kill $progress 2>/dev/null || :' EXIT
  "$building/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    -r third_party/requirements.lock >&2
  kill $progress
  trap - EXIT
  # The folder appears under its final name only when complete, so an interrupted set-up is never half used.
  mv "$building" "$environment"
}

mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock -n 9 || { say "another set-up is running; waiting for it"; flock 9; }

missing=$(missing_packages)
[ -z "$missing" ] || install_packages "$missing"
[ -d "$environment" ] || make_environment
site=$(echo "$environment"/lib/python3.*/site-packages)
[ "$(readlink third_party/site || :)" = "$site" ] || { say "3/3 linking third_party/site"; ln -sfn "$site" third_party/site; }
