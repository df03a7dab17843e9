#!/bin/bash
# Builds the image that build_image left again, and compares every byte of the disk and of the package: from a copy of the
# source at another path, with another home, as root if tests/run.sh is run by root (the first was built by an ordinary
# user), later, with all programs compiled and dracut run anew.
#
#     tests/reproducible.sh           takes Debian's part from the cache of the first build
#     tests/reproducible.sh --cold    fetches and installs that anew as well: some minutes, and not run by tests/run.sh
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=image-builder/host.sh
. image-builder/host.sh

first=$(builder_folder)
[ -e "$first/out/nemos-default.raw" ] || die 'there is no image to compare with: run tests/run.sh'
again=$(mktemp --directory)
trap 'rm --recursive --force "$again"' EXIT
umask 077
mkdir "$again/source" "$again/home" "$again/cache"
git ls-files -z | xargs --null cp --parents --target-directory "$again/source"
if [ "${1:-}" != --cold ]; then
    cp --archive --reflink=auto "$first"/cache/distribution-* "$again/cache"
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
program=$PWD/target/debug/nemos-image
# What cargo has fetched need not be fetched again, and is seen under another path.
ln --symbolic "${CARGO_HOME:-$HOME/.cargo}" "$again/home/cargo"
(
    cd "$again/source"
    export RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
    export HOME="$again/home" CARGO_HOME="$again/home/cargo"
    "$program" build --output "$again/out" --cache "$again/cache"
)

status=0
same() {
    if cmp "$1" "$2"; then
        printf 'test result: ok. 1 passed; 0 failed; %s is the same again\n' "$(basename "$2")"
    else
        printf 'test result: FAILED. 0 passed; 1 failed; %s differs\n' "$(basename "$2")"
        status=1
    fi
}
same "$first/nemos.deb" "$again"/out/nemos_*.deb
same "$first/out/nemos-default.raw" "$again/out/nemos-default.raw"
if [ "$status" -ne 0 ]; then
    diff <("$program" inspect "$first/out/nemos-default.raw") <("$program" inspect "$again/out/nemos-default.raw") || true
fi
exit "$status"
