#!/bin/sh
# The guest's first process: a root that is the prepared one below and memory above, so that no run
# changes it and several share it; udev; then the tests or a command, and off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

enter_overlay() {
    mount -t tmpfs -o mode=755 memory /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t proc proc /proc
    modprobe overlay
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
    umount /proc
    cd /mnt/root
    mkdir old
    pivot_root . old
    exec chroot . /bin/sh /lab/project/tests/lab/init.sh inside </dev/console >/dev/console 2>&1
}

mount_all() {
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts devpts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t tmpfs -o mode=755 run /run
    mount -t tmpfs -o mode=1777 tmp /tmp
    mkdir -p /run/lock /run/udev
    mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
    mount -t configfs configfs /sys/kernel/config 2>/dev/null
    ln -sfT /proc/self/fd /dev/fd
    mount -t hostfs -o hostfs=/lab/project,ro project /lab/project
    mount -t hostfs -o hostfs=/lab/output output /lab/output
    mount -t hostfs -o hostfs=/lab/compiled compiled /lab/compiled
    umount -l /old
}

run_tests() {
    cd /lab/project
    # Compiled modules are kept for the next run; the project itself is read-only here.
    POOLKEEPER_LAB_GUEST=1 PYTHONPYCACHEPREFIX=/lab/compiled HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
        xargs -0 -a /lab/output/arguments sh -c '"$@"; echo $? >/run/ended' tests \
        "$(cat /lab/output/python)" -m pytest \
        -o cache_dir=/lab/output/cache --junitxml=/lab/output/junit.xml
    return "$(cat /run/ended)" # xargs has a status of its own
}

run_command() {
    cd /lab/project
    POOLKEEPER_LAB_GUEST=1 sh -c "$(tr '\0' '\n' </lab/output/arguments | tail -n +2)"
}

if [ "${1:-}" != inside ]; then
    enter_overlay
fi
mount_all
modprobe -a loop dm-mod
ip link set lo up
hostname lab
/usr/lib/systemd/systemd-udevd --daemon
udevadm control --log-priority=err 2>/dev/null
exec >>/lab/output/log 2>&1 </dev/null
case "$(tr '\0' '\n' </lab/output/arguments | head -n 1)" in
--shell) run_command ;;
*) run_tests ;;
esac
status=$?
dmesg >/lab/output/kernel.log
echo $status >/lab/output/status
sync
echo o >/proc/sysrq-trigger
sleep 10
