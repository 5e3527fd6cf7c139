# Sourced by the commands of the README: makes .venv with the project in it, and looks for the
# host's tools. POOLKEEPER_EXTRAS are extras to install, such as [dev]; POOLKEEPER_TOOLS are further
# programs with their Debian packages. As root on Debian it installs what is missing; as an ordinary
# user it says what to ask for.
set -eu

missing=""
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}
need python3 python3
need qemu-img qemu-utils
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
for pair in ${POOLKEEPER_TOOLS:-}; do need "${pair%%=*}" "${pair##*=}"; done

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing$missing"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "This host lacks:$missing" >&2
        echo "Ask root for: apt-get install$missing" >&2
        case " $missing " in *" python3"*) exit 1 ;; esac
        echo "Going on without; what needs these tools is refused by name." >&2
    fi
fi

if [ ! -x .venv/bin/python ]; then
    echo "Making .venv"
    python3 -m venv .venv
fi
extras=${POOLKEEPER_EXTRAS:-}
stamp=".venv/installed$extras"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "Installing Poolkeeper$extras into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
    touch "$stamp"
fi
