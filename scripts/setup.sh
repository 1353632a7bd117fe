#!/bin/sh
# Make .venv with everything the tests and the demo need, and fetch the data. Does nothing that is already done.
set -eu
cd "$(dirname "$0")/.."

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    echo "setup: installing $* with apt-get"
    as_root apt-get update -qq || return 1
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

find_python() {
    for name in ${SACT_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2])' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# The environment is kept only while the dependency files and the Python are the ones it was made from.
python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } || {
    echo "setup: no Python 3.10 or newer found; install one, or name it: SACT_PYTHON=/path/to/python3 make ..." >&2
    exit 1
}
wanted="$("$python" --version) $(sha256sum pyproject.toml | cut -d' ' -f1)"
kernel=$(cat setup.py src/sact/engines/native/* | sha256sum | cut -d' ' -f1)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/dependencies 2>/dev/null || true)" != "$wanted" ]; then
    echo "setup: making .venv with $("$python" --version) (PyTorch and TensorFlow: some minutes, about 7 GB)"
    rm -rf .venv
    if ! "$python" -m venv .venv 2>/dev/null; then
        rm -rf .venv
        apt_install python3-venv || { echo "setup: python3-venv is missing; install it and try again" >&2; exit 1; }
        "$python" -m venv .venv
    fi
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade pip
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
    echo "$kernel" > .venv/kernel
    echo "$wanted" > .venv/dependencies
elif [ "$(cat .venv/kernel 2>/dev/null || true)" != "$kernel" ]; then
    echo "setup: compiling the CPU engine"
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
    echo "$kernel" > .venv/kernel
else
    echo "setup: .venv is up to date"
fi

# Fashion-MNIST, photographs and cut-outs, from Debian's packages where there is apt-get.
have_data() {
    case $1 in
        dataset-fashion-mnist) [ -e /usr/share/datasets/fashion-mnist ] ;;
        gnome-backgrounds) [ -e /usr/share/backgrounds/gnome ] ;;
        mate-backgrounds) [ -e /usr/share/backgrounds/mate ] ;;
        plasma-workspace-wallpapers) [ -e /usr/share/wallpapers/Autumn ] || [ -e /usr/share/wallpapers/Altai ] ;;
        tuxpaint-stamps-default) [ -e /usr/share/tuxpaint/stamps ] ;;
    esac
}
for package in dataset-fashion-mnist gnome-backgrounds mate-backgrounds plasma-workspace-wallpapers \
    tuxpaint-stamps-default; do
    have_data "$package" || apt_install "$package" || echo "setup: could not install $package; without them" \
        "Fashion-MNIST is downloaded on first use, scenes use the photographs there are (or --data-dir), and" \
        "sact compose needs cut-outs of your own" >&2
done

# The browser that clicks through the page of `sact serve` in the slow tests.
command -v chromium >/dev/null || command -v google-chrome >/dev/null || apt_install chromium ||
    echo "setup: could not install chromium; the test that clicks through the page is skipped" >&2
