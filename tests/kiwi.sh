#!/bin/bash
# Builds the image with Kiwi, as image-builder/kiwi describes it, boots it, and compares what nemosctl says of its storage
# with what it says on the image that build_image left (tests/run.sh). Not run by tests/run.sh: it takes a quarter of an hour.
#
# Kiwi needs root, loop devices and device-mapper, and gets them in User-Mode Linux. There is no network: Kiwi itself
# comes from PyPI before, and Debian's packages from the mirror that apt is configured with, or from $NEMOS_MIRROR.
#
#     tests/kiwi.sh [PROFILE]            `bootstrapped`, if none is named; with the packages of the last run, if there are any
#     tests/kiwi.sh --fresh [PROFILE]    fetches the packages anew
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=image-builder/host.sh
. image-builder/host.sh

kiwi_packages=(dpkg-dev fdisk gdisk kmod openssl python3-venv rsync user-mode-linux xz-utils)
kiwi_version='>=11,<12'
# The default recipe's, and what the developers' profile adds.
suite=trixie
# Of User-Mode Linux, in MiB: Kiwi's root and its disk are in it.
memory=6144

check_host
install_missing '' "${image_packages[@]}" "${kiwi_packages[@]}"
is_root || die 'Kiwi keeps the owners of files, and User-Mode Linux takes them from its user: run this as root'

first=$(builder_folder)
[ -e "$first/out/nemos-default.raw" ] || die 'there is no image to compare with: run tests/run.sh'
folder=$first/kiwi
if [ "${1:-}" = --fresh ]; then
    rm --recursive --force "$folder/repo" "$folder/apt"
    shift
fi
profile=${1:-bootstrapped}
rm --recursive --force "$folder/kiwi" "$folder/out"
mkdir --parents "$folder/out"
cp tests/kiwi-machine.sh "$folder"

say 'Kiwi'
if [ ! -x "$folder/venv/bin/kiwi-ng" ]; then
    /usr/bin/python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" --quiet install "kiwi$kiwi_version"
fi

description_packages() {
    sed --quiet 's/^ *<package name="\(.*\)"\/>$/\1/p' image-builder/kiwi/x86/appliance.kiwi
}

# apt, for another release than the host's, and nothing of the host's.
other_apt() {
    apt-get --quiet --option "Dir::Etc=$folder/apt" --option "Dir::State=$folder/apt/state" \
        --option "Dir::State::status=$folder/apt/status" --option "Dir::Cache=$folder/apt/cache" \
        --option APT::Install-Recommends=false --option APT::Sandbox::User=root "$@"
}

# A repository of all packages; among them, as Kiwi wants it, the root file system that `bootstrapped` unpacks.
make_repository() {
    local mirror tree=$folder/apt/tree
    mirror=${NEMOS_MIRROR:-$(archives | sed --quiet "s/ $VERSION_CODENAME\$//p" | head --lines 1)}
    [ -n "$mirror" ] || die "apt has no mirror of $VERSION_CODENAME, and NEMOS_MIRROR names none"
    mkdir --parents "$folder"/apt/{preferences.d,apt.conf.d,state/lists/partial,cache/archives/partial,unpacked} "$folder/repo.new"
    : > "$folder/apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$folder/apt/sources.list"
    other_apt update
    # shellcheck disable=SC2046 # words
    other_apt install --yes --download-only '?essential' apt $(description_packages)
    mv "$folder"/apt/cache/archives/*.deb "$folder/repo.new"
    (cd "$folder/repo.new" && dpkg-scanpackages --multiversion . > Packages)
    mmdebstrap --mode=root --variant=apt --include="$(description_packages | paste --serial --delimiters ,)" \
        --aptopt='APT::Install-Recommends "false"' "$suite" "$folder/apt/root.tar" "deb [trusted=yes] copy:$folder/repo.new ./"
    mkdir --parents "$tree/DEBIAN" "$tree/var/lib/bootstrap"
    xz -1 --threads=0 --stdout "$folder/apt/root.tar" > "$tree/var/lib/bootstrap/nemos-bootstrap.x86_64.tar.xz"
    printf '%s: %s\n' Package nemos-bootstrap Version 1 Architecture all Maintainer nobody Description 'a root' > "$tree/DEBIAN/control"
    dpkg-deb -Znone --build "$tree" "$folder/repo.new/nemos-bootstrap.deb"
    (cd "$folder/repo.new" && dpkg-scanpackages --multiversion . > Packages)
    (cd "$folder/apt" && other_apt download systemd-ukify systemd-boot-efi &&
        for package in *.deb; do dpkg-deb --extract "$package" unpacked; done)
    cp "$folder/apt/unpacked/usr/bin/ukify" "$folder"/apt/unpacked/usr/lib/systemd/boot/efi/linuxx64.efi.stub "$folder"
    rm --recursive "$tree" "$folder/apt/root.tar"
    mv "$folder/repo.new" "$folder/repo"
}

if [ ! -e "$folder/repo" ]; then
    say "Debian's packages, and a root file system of them"
    make_repository
fi

say "the build of profile $profile, in User-Mode Linux"
git ls-files -z image-builder/kiwi | xargs --null cp --parents --target-directory "$folder"
mv "$folder/image-builder/kiwi" "$folder/kiwi"
rmdir "$folder/image-builder"
cp "$first/nemos.deb" "$folder/kiwi/x86/nemos.deb"
"$first/bin/nemos-image" keys --output "$folder/kiwi/keys"
TMPDIR=/dev/shm linux.uml mem="${memory}M" root=/dev/root rootfstype=hostfs rootflags=/ ro quiet con=null con0=null,fd:1 ssl=null \
    init="$folder/kiwi-machine.sh" NEMOS_KIWI="$folder" NEMOS_PROFILE="$profile" > "$folder/out/console" 2>&1 < /dev/null || true
if [ "$(cat "$folder/out/status" 2>/dev/null)" != 0 ]; then
    tail --lines 30 "$folder/out/console" "$folder/out/log" >&2
    die "Kiwi made no image; all it said is in $folder/out"
fi

say 'the image, booted'
storage_layers "$first/out/nemos-default.raw" > "$folder/out/layers.default" 2> "$folder/out/findings.default"
storage_layers "$folder/out/nemos-kiwi.raw" > "$folder/out/layers.kiwi" 2> "$folder/out/findings.kiwi"
status=0
verdict() {
    if "${@:2}"; then
        printf 'test result: ok. 1 passed; 0 failed; %s\n' "$1"
    else
        printf 'test result: FAILED. 0 passed; 1 failed; %s\n' "$1"
        status=1
    fi
}
verdict 'the stack is that of the default image' diff "$folder/out/layers.default" "$folder/out/layers.kiwi"
verdict 'health says that the key came from a build' grep 'came from the build' "$folder/out/findings.kiwi"
exit "$status"
