#!/bin/sh
# deploy/share.sh BUILD_DIR: manual pages and shell completions into BUILD_DIR/share, as `make install`
# puts them under PREFIX/share. The programs print them from the tables that their parsers read.
set -eu
build=$1
here=$(cd "$(dirname "$0")/.." && pwd)
share=$build/share
rm -rf "$share"
mkdir -p "$share/man/man1" "$share/man/man5" "$share/man/man8" "$share/bash-completion/completions" \
    "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
"$build/bitdeltad" --print-man > "$share/man/man8/bitdeltad.8"
"$build/bitdelta" --print-man > "$share/man/man1/bitdelta.1"
for command in $("$build/bitdelta" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
    "$build/bitdelta" "$command" --print-man > "$share/man/man1/bitdelta-$command.1"
done
cp "$here/docs/bitdelta.5" "$share/man/man5/"
for program in bitdelta bitdeltad; do
    "$build/$program" --print-bash > "$share/bash-completion/completions/$program"
    "$build/$program" --print-zsh > "$share/zsh/site-functions/_$program"
    "$build/$program" --print-fish > "$share/fish/vendor_completions.d/$program.fish"
done
chmod -R u=rwX,go=rX "$share"
