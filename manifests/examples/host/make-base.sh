#!/bin/sh
# make-base.sh FILE: a qcow2 image of 64 MiB with a real ext4 file system and a few files in it.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tree/etc"
echo "base" >"$work/tree/etc/hostname"
echo "made for the examples" >"$work/tree/README"
truncate -s 64M "$work/base.raw"
mkfs.ext4 -q -d "$work/tree" "$work/base.raw"
qemu-img convert -f raw -O qcow2 "$work/base.raw" "$1"
