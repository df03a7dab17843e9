# shellcheck shell=bash disable=SC2034,SC2016 # used by who sources this; apt's own variables
# What a Debian 12 or 13 host needs, and who builds on it. Sourced by run_x86.sh and by tests/run.sh.

# To compile: libcryptsetup and device-mapper are bound by bindgen, which reads their headers with libclang.
compile_packages=(gcc git libc6-dev libblkid-dev libclang-dev libcryptsetup-dev libdevmapper-dev pkg-config)
# What `nemos-image build` and `nemos-image run` run.
image_packages=(cryptsetup-bin debian-archive-keyring dosfstools e2fsprogs mmdebstrap mtools ovmf python3
                python3-pefile qemu-system-x86 qemu-utils squashfs-tools swtpm uidmap zstd)
# What both need besides for arm64: another architecture's programs are compiled, run and booted. tests/arm64.sh takes them.
arm64_packages=(arch-test gcc-aarch64-linux-gnu qemu-efi-aarch64 qemu-system-arm qemu-user-static)
# What the tests run besides.
test_packages=(dbus dmsetup fdisk gdisk kmod mount opensc openssh-client openssl shellcheck softhsm2 tpm2-tools user-mode-linux
               xfsprogs)

# Debian 13's kernel crashes under older ones, when there is no KVM.
qemu_least=1:10.0
rust_least=1.89

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

is_root() { [ "$(id -u)" -eq 0 ]; }

# shellcheck source=/dev/null
. /etc/os-release

# systemd-cryptenroll, and what libcryptsetup loads for a token: Debian 12 has them in systemd itself.
[ "${VERSION_CODENAME:-}" = bookworm ] || test_packages+=(systemd-cryptsetup)

check_host() {
    case "${ID:-}-${VERSION_ID:-}-$(uname -m)" in
        debian-12-x86_64 | debian-13-x86_64) ;;
        *) die "this is ${PRETTY_NAME:-not Debian} on $(uname -m), and only Debian 12 and 13 on x86_64 are known" ;;
    esac
}

installed_version() {
    dpkg-query --show --showformat '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed --quiet 's/^installed //p'
}

# Of the packages given, those that are not there, or too old.
missing_packages() {
    local package version
    for package in "$@"; do
        # dpkg-query fails for what it does not know, which ends nobody's script.
        version=$(installed_version "$package" || true)
        if [ -z "$version" ]; then
            echo "$package"
        elif [[ "$package" = qemu-system-* ]] && dpkg --compare-versions "$version" lt "$qemu_least"; then
            echo "$package"
        fi
    done
}

# Prints the archives that apt is configured with, one a line: address, release.
archives() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(CODENAME)' 'Created-By: Packages' |
        awk '{ print $1, $2; print $1, $3 }' | sort --unique
}

# The apt source of a release of newer versions, from the mirror that is configured, its lines quoted for a shell;
# nothing, if apt has it already.
backports_source() {
    local backports=$1 mirror
    if ! archives | grep --quiet " $backports\$"; then
        mirror=$(archives | sed --quiet "s/ $VERSION_CODENAME\$//p" | head --lines 1)
        [ -n "$mirror" ] || die "apt has no mirror of $VERSION_CODENAME to take $backports from; as root: apt-get update"
        printf "'%s' " 'Types: deb' "URIs: $mirror" "Suites: $backports" 'Components: main' \
            'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg'
    fi
}

# Installs what is missing of the packages given. $1 is how root is become (`sudo`), or empty: then only root installs,
# and others are told what is to be done.
install_missing() {
    local sudo=$1
    shift
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    if is_root; then
        sudo=
    elif [ -z "$sudo" ]; then
        sudo=tell
        say 'packages are missing; as root, run:'
    fi
    install_packages "${missing[@]}"
    [ "$sudo" != tell ] || exit 1
}

# Installs packages, or tells how; QEMU for Debian 12 comes from its backports.
install_packages() {
    local file=/etc/apt/sources.list.d/nemos-backports.sources backports=$VERSION_CODENAME-backports source
    local -a plain qemu
    mapfile -t plain < <(printf '%s\n' "$@" | grep --invert-match '^qemu-')
    mapfile -t qemu < <(printf '%s\n' "$@" | grep '^qemu-')
    # apt knows what its archives are called once it has asked them.
    root_does 'apt-get update --quiet'
    if [ "${#plain[@]}" -gt 0 ]; then
        root_does "apt-get install --yes --quiet --no-install-recommends ${plain[*]}"
    fi
    if [ "${#qemu[@]}" -gt 0 ] && [ "$VERSION_CODENAME" = bookworm ]; then
        source=$(backports_source "$backports") || exit
        if [ -n "$source" ]; then
            root_does "printf '%s\\n' $source > $file"
            root_does 'apt-get update --quiet'
        fi
        qemu=(--target-release "$backports" "${qemu[@]}")
    fi
    if [ "${#qemu[@]}" -gt 0 ]; then
        root_does "apt-get install --yes --quiet --no-install-recommends ${qemu[*]}"
    fi
}

# Runs a line of shell as root, or prints it, as install_missing decided.
root_does() {
    if [ "$sudo" = tell ]; then
        printf '    %s\n' "$1" >&2
    else
        $sudo env DEBIAN_FRONTEND=noninteractive sh -c "$1" || die "\`$1\` failed"
    fi
}

check_rust() {
    local version
    version=$(cargo --version 2>/dev/null | cut --delimiter ' ' --fields 2)
    if [ -z "$version" ]; then
        die "there is no Rust. On Debian 13: apt-get install rustup && rustup default stable; on Debian 12: https://rustup.rs"
    elif dpkg --compare-versions "$version" lt "$rust_least"; then
        die "Rust $rust_least or newer is needed, and this is $version: rustup update (Debian's own is too old)"
    fi
}

# Who builds images: an ordinary user. Root gives way to one of its own, which has user ids for the root of an image.
builder=nemos-build

# A folder of the builder's, outside of the checkout.
builder_folder() {
    if is_root; then
        echo "${NEMOS_CACHE:-/var/cache/nemos}"
    else
        echo "${NEMOS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nemos}"
    fi
}

make_builder() {
    if ! is_root; then
        mkdir --parents "$(builder_folder)"
        return
    fi
    id "$builder" >/dev/null 2>&1 || useradd --system --user-group --add-subids-for-system \
        --home-dir "$(builder_folder)" --shell /usr/sbin/nologin "$builder"
    ! getent group kvm >/dev/null || usermod --append --groups kvm "$builder"
    install --directory --owner "$builder" --group "$builder" "$(builder_folder)"
}

# Runs a command as the builder, in its folder.
as_builder() (
    cd "$(builder_folder)" || exit
    if is_root; then
        exec runuser --user "$builder" -- \
            env --unset TMPDIR --unset XDG_CACHE_HOME --unset XDG_RUNTIME_DIR HOME="$PWD" "$@"
    fi
    exec "$@"
)

# Builds the image of the checkout that the current folder is in, and leaves it in the builder's folder. Whoever calls
# compiles, since a Rust toolchain is a user's own; all else is done by the builder. $1 is the profile that the builder is
# compiled with, `dev` or `release`; more arguments are for `nemos-image build`. NEMOS_ARCH is what it is built for, amd64 if
# nobody says; NEMOS_RUSTC compiles for it, if the usual compiler cannot.
build_image() (
    set -o errexit
    folder=$(builder_folder)
    make_builder
    # Of the whole workspace, as everything is compiled here: what its packages share is compiled once.
    profile=$1
    shift
    cargo build --quiet --locked --workspace --bin nemos-image --profile "$profile"
    install -D --target-directory "$folder/bin" "${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/nemos-image"
    architecture=${NEMOS_ARCH:-amd64}
    package=nemos.deb
    [ "$architecture" = amd64 ] || package=nemos-$architecture.deb
    packages=$(mktemp --directory)
    trap 'rm --recursive --force "$packages"' EXIT
    env ${NEMOS_RUSTC:+"RUSTC=$NEMOS_RUSTC"} "$folder/bin/nemos-image" package --arch "$architecture" --output "$packages"
    install --mode 644 "$packages"/nemos_*.deb "$folder/$package"
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} \
        as_builder bin/nemos-image build --arch "$architecture" --package "$package" --output out --cache cache "$@"
)

# Builds the image that build_image left the package of again: signed with keys for development, and with the root hash
# signed by a key that is none of those. `keys` and `other` are two sets, `mixed` has the root key and the PCR key of the other.
build_signed_images() (
    set -o errexit
    package_date=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
    as_builder rm --recursive --force signed
    as_builder mkdir signed
    as_builder bin/nemos-image keys --output signed/keys
    as_builder bin/nemos-image keys --output signed/other
    as_builder cp --recursive signed/keys signed/mixed
    as_builder cp signed/other/{root,pcr}.{crt,key} signed/mixed
    for image in image:keys another-root-key:mixed; do
        SOURCE_DATE_EPOCH=$package_date as_builder bin/nemos-image build --package nemos.deb --cache cache \
            --output "signed/${image%:*}" --keys "signed/${image#*:}"
    done
)

# Boots a disk, whose file stays as it is, and prints name, type, place and state of each layer of its storage, and on stderr
# what its health has found. More arguments are for `nemos-image run`.
storage_layers() {
    "$(builder_folder)/bin/nemos-image" run --snapshot "$@" -- nemosctl status --json | /usr/bin/python3 -c '
import json, sys
status = json.load(sys.stdin)
for layer in status["storage"]:
    print(*(layer[word] for word in ("name", "kind", "on", "state")))
for finding in status["findings"]:
    print(finding["message"], file=sys.stderr)
'
}
