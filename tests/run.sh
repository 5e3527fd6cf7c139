#!/bin/sh
# Installs what the tests need and runs them: style, types, layering, and the suite.
# Further arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
POOLKEEPER_TOOLS="git=git mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.vfat=dosfstools setfattr=attr cryptsetup=cryptsetup-bin scrub=scrub sfdisk=fdisk"
POOLKEEPER_EXTRAS="[dev]"
. .ci/prepare.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
exec .venv/bin/python -m pytest -n auto -m "not lab and not cluster and not libvirt" "$@"
