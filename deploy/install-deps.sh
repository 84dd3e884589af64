#!/bin/sh
# Installs with apt what the build needs and lacks: a compiler and the libraries. Prints what it
# installs; does nothing and needs no network or root when everything is there.
set -eu
missing=
need() { # need PACKAGE TEST...: asks for the package if the test fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { [ -e "/usr/include/$1" ] || [ -e "/usr/include/$(uname -m)-linux-gnu/$1" ]; }
need gcc command -v gcc
need g++ command -v g++
need libc6-dev header stdio.h
need libmicrohttpd-dev header microhttpd.h
need libuv1-dev header uv.h
need libjansson-dev header jansson.h
need libsentencepiece-dev header sentencepiece_processor.h
need libssl-dev header openssl/evp.h
need libzip-dev header zip.h
need libcurl4-openssl-dev header curl/curl.h
need libedit-dev header histedit.h
need libcairo2-dev header cairo/cairo.h
need curl command -v curl
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
echo "installing with apt:$missing"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q >/dev/null
# shellcheck disable=SC2086 # a list of package names
$sudo apt-get install -y -q --no-install-recommends $missing >/dev/null
