#!/bin/sh
# tests/page/run.sh BUILD_DIR [NAMEPART]: finds Chromium, or installs it with apt, and runs test_page.py.
# Without either it says so and passes: a machine that cannot have a browser is no failure of the page.
set -eu
cd "$(dirname "$0")/../.."
find_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if ! find_chromium >/dev/null || ! command -v python3 >/dev/null; then
    if [ "$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi
    echo "installing with apt: chromium, python3"
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -q >/dev/null 2>&1 || true
    $sudo apt-get install -y -q --no-install-recommends chromium python3 fonts-dejavu-core >/dev/null 2>&1 || true
fi
if ! find_chromium >/dev/null || ! command -v python3 >/dev/null; then
    echo "page: skipped: there is no chromium or python3 here, and apt does not install them"
    exit 0
fi
exec python3 tests/page/test_page.py "$(realpath "$1")" "$(find_chromium)" ${2:+"$2"}
