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
PATH="$PWD/.venv/bin:$PATH"
cd "$place"
echo "In $place:"

say() { printf '\n$ %s\n' "$*"; "$@" || status=$?; }
say poolkeeper plan -f manifests
status=0 # plan ends with 2 where something is to be done
say poolkeeper apply -f manifests --wait
say poolkeeper get storagepools
say poolkeeper get storagevolumes
say poolkeeper plan -f manifests
printf '\nEdit %s and apply again. To remove all of it: rm -r %s\n' "$place/manifests" "$place"
exit "$status"
