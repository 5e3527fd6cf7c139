#!/bin/sh
# Prepares the root file system of the lab's guest and prints its path and that of the Python
# in it: Debian trixie from the mirror that apt on this machine uses, with the packages of the file
# "packages", and a virtual environment with what the project's tests import. Both are kept between runs and made anew when they change.
#
# POOLKEEPER_LAB_CACHE  where they are kept; default /var/cache/poolkeeper-lab
# POOLKEEPER_LAB_MIRROR a Debian mirror, instead of apt's
set -eu
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
cache=${POOLKEEPER_LAB_CACHE:-/var/cache/poolkeeper-lab}
suite=trixie

say() { echo "lab: $*" >&2; }
fail() { say "$@"; exit 1; }

[ "$(uname -s)" = Linux ] || fail "the lab needs Linux; this is $(uname -s)"
[ "$(uname -m)" = x86_64 ] || fail "User-Mode Linux is packaged for x86_64 only; this is $(uname -m)"
[ "$(id -u)" = 0 ] || fail "the lab needs root, to make a root file system and to mount"
command -v apt-get >/dev/null || fail "the lab is made of Debian packages and needs apt-get;" \
    "on another machine run the tests on spare devices: see tests/lab/README.md"

mirror() {
    cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | awk '
        /^URIs:/ { print $2; exit }
        /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }'
}

packages() { sed 's/#.*//' "$here/packages" | xargs; }

# The project's own dependencies and those of its tests; not the tools that check style and types.
requirements() {
    python3 - "$project/pyproject.toml" <<'PY'
import re, sys, tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
development = project["optional-dependencies"]["dev"]
unused = re.compile("ruff|mypy|import-linter|lxml-stubs|types-|pytest-xdist")
print("\n".join([*project["dependencies"], *(i for i in development if not unused.match(i))]))
PY
}

digest() { sha256sum | cut -c1-16; }

inside() { # ROOT COMMAND...: run in the root with /proc, apart from this machine's mounts
    unshare --mount sh -euc '
        root=$1; shift
        mount --make-rprivate /
        mount -t proc proc "$root/proc"
        mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
        exec chroot "$root" "$@"' inside "$@" >&2
}

make_root() { # ROOT
    command -v debootstrap >/dev/null || {
        say "installing debootstrap"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends debootstrap >&2
    }
    from=${POOLKEEPER_LAB_MIRROR:-$(mirror)}
    say "making $suite from ${from:-the default mirror}; this takes some minutes, once"
    debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$suite" "$1" "$from" >"$cache/debootstrap.log" 2>&1 ||
        fail "debootstrap failed: see $cache/debootstrap.log"
    cat >"$1/etc/apt/apt.conf.d/99lab" <<'APT'
APT::Install-Recommends "false";
Dpkg::Options { "--force-unsafe-io"; "--force-confold"; };
Acquire::Languages "none";
APT
    # Nothing may start while packages are set up (policy-rc.d(8)).
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
    chmod +x "$1/usr/sbin/policy-rc.d"
    cp -L /etc/resolv.conf "$1/etc/resolv.conf"
    # shellcheck disable=SC2046
    inside "$1" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
            apt-get update -qq
            apt-get install -y -qq "$@"
            apt-get clean' install $(packages) >"$cache/packages.log" 2>&1 ||
        fail "the packages could not be installed: see $cache/packages.log"
    version=$(ls "$1/usr/lib/uml/modules")
    mkdir -p "$1/usr/lib/modules"
    ln -s "/usr/lib/uml/modules/$version" "$1/usr/lib/modules/$version"
    mkdir -p "$1/lab/project" "$1/lab/output" "$1/lab/compiled"
}

make_venv() { # ROOT DIGEST
    say "installing what the tests import"
    requirements >"$1/lab/requirements"
    cp -L /etc/resolv.conf "$1/etc/resolv.conf"
    [ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$1/etc/pip.conf"
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] ||
        cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
    inside "$1" env PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
        python3 -m venv --clear "/lab/venv-$0"
        "/lab/venv-$0/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r /lab/requirements' "$2" >"$cache/venv.log" 2>&1 ||
        fail "pip failed: see $cache/venv.log"
    touch "$1/lab/venv-$2/prepared"
}

mkdir -p "$cache"
exec 9>"$cache/preparing"
flock 9
root="$cache/$suite-$({ packages; cat "$here/root.sh"; } | digest)"
if [ ! -e "$root/lab/prepared" ]; then
    rm -rf "$root"
    make_root "$root"
    touch "$root/lab/prepared"
fi
wanted=$(requirements | digest)
[ -e "$root/lab/venv-$wanted/prepared" ] || make_venv "$root" "$wanted"
echo "$root /lab/venv-$wanted/bin/python"
