#!/bin/sh
# Runs the tests marked "lab" in a User-Mode Linux guest with a kernel that has device mapper, SCSI,
# iSCSI, NFS and more: prepares the guest's root file system if need be, boots, runs pytest inside,
# and ends with its exit status. Arguments go to pytest; without any, all of tests/lab and tests/contract runs.
#
#   sh tests/lab/run.sh
#   sh tests/lab/run.sh tests/lab/test_logical.py -k snapshot
#   sh tests/lab/run.sh --shell 'lvm version; lsscsi'     a command instead of the tests
#
# POOLKEEPER_LAB_OUTPUT   where junit.xml and logs go; default build/lab
# POOLKEEPER_LAB_MEMORY   the guest's memory, which also holds its disks; default 3G
# POOLKEEPER_LAB_DEADLINE seconds until the guest is ended; default 2400
# See root.sh for where the root file system is kept.
set -eu
cd "$(dirname "$0")/../.."
prepared=$(sh tests/lab/root.sh)
root=${prepared%% *}
output=${POOLKEEPER_LAB_OUTPUT:-build/lab}
mkdir -p "$output"
output=$(cd "$output" && pwd)
exec 8>"$output/running"
flock -n 8 || { echo "lab: a guest writes to $output already; set POOLKEEPER_LAB_OUTPUT" >&2; exit 1; }
rm -f "$output/status" "$output/junit.xml" "$output/kernel.log" "$output/console"
: >"$output/log"
case " $* " in
*" --shell "*) ;;
*" tests/"*) set -- -m lab "$@" ;;
*) set -- -m lab tests/lab tests/contract "$@" ;;
esac
printf '%s\0' "$@" >"$output/arguments"
echo "${prepared##* }" >"$output/python"

tail -n +1 -f "$output/log" &
tail=$!
guest=
trap 'kill $tail 2>/dev/null; [ -z "$guest" ] || kill -KILL $guest 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# Mounts and processes end with these namespaces, also when this script is killed.
PROJECT=$PWD ROOT=$root OUTPUT=$output unshare --mount --pid --fork --kill-child sh -euc '
    mount --make-rprivate /
    mount -t proc proc /proc
    mount --bind "$PROJECT" "$ROOT/lab/project"
    mount --bind "$OUTPUT" "$ROOT/lab/output"
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs -o size=16g,exec memory "$ROOT/dev/shm"
    exec timeout -k 5 "$0" chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin TMPDIR=/dev/shm HOME=/root \
        linux.uml "mem=$1" root=/dev/root rootfstype=hostfs ro quiet con=null con0=null,fd:1 \
        init=/bin/sh -- /lab/project/tests/lab/init.sh
' "${POOLKEEPER_LAB_DEADLINE:-2400}" "${POOLKEEPER_LAB_MEMORY:-3G}" \
    </dev/null >"$output/console" 2>&1 8>&- &
guest=$!
wait $guest || ended=$?
guest=

sleep 0.2
if [ ! -s "$output/status" ]; then
    if [ "${ended:-0}" = 124 ]; then
        echo "lab: the guest was ended at its deadline" >&2
        exit 124
    fi
    echo "lab: the guest died; the end of its console:" >&2
    tail -n 30 "$output/console" >&2
    exit 99
fi
exit "$(cat "$output/status")"
