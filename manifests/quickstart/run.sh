#!/bin/sh
# Installs what Poolkeeper needs and keeps a pool with four volumes under one directory of yours:
# the plan first, then the work, then what is there.
set -eu
cd "$(dirname "$0")/../.."
. .ci/prepare.sh

place=${POOLKEEPER_QUICKSTART:-$HOME/poolkeeper-quickstart}
mkdir -p "$place/manifests"
for manifest in manifests/quickstart/*.yaml; do
    sed "s#/tmp/poolkeeper-quickstart#$place#" "$manifest" >"$place/manifests/$(basename "$manifest")"
done
export POOLKEEPER_STATE_DIR="$place/state"

say() { printf '\n$ %s\n' "$*"; "$@" || status=$?; }
status=0
PATH="$PWD/.venv/bin:$PATH"
say poolkeeper plan -f "$place/manifests"
status=0 # plan ends with 2 where something is to be done
say poolkeeper apply -f "$place/manifests" --wait
say poolkeeper get storagepools
say poolkeeper get storagevolumes -o wide
say poolkeeper plan -f "$place/manifests"
printf '\nEdit %s and apply again. To remove all of it: rm -r %s\n' "$place/manifests" "$place"
exit "$status"
