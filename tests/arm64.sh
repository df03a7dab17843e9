#!/bin/bash
# Builds the image for arm64 on a PC, checks it, boots it, and compares what nemosctl says of its storage with what it says on
# the image that build_image left (tests/run.sh). Not run by tests/run.sh: emulated, it takes half an hour.
#
# rustc needs a standard library for aarch64-unknown-linux-gnu: from rustup, or else, where rustup gives none, a compiler of
# Debian's own that has it.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=image-builder/host.sh
. image-builder/host.sh

target=aarch64-unknown-linux-gnu
# Seconds that a boot may take.
patience=900

check_host
install_missing '' "${compile_packages[@]}" "${image_packages[@]}" "${arm64_packages[@]}"
check_rust
folder=$(builder_folder)
[ -e "$folder/out/nemos-default.raw" ] || die 'there is no image to compare with: run tests/run.sh'

# Programs of arm64 run by themselves once the kernel knows who runs them. systemd sees to that; a container may have none.
register_emulation() {
    local known=/proc/sys/fs/binfmt_misc
    arch-test arm64 >/dev/null && return
    is_root || die "programs for arm64 do not run here; as root: systemctl restart systemd-binfmt"
    [ -e "$known/register" ] || mount -t binfmt_misc binfmt_misc "$known"
    cat /usr/lib/binfmt.d/qemu-aarch64.conf > "$known/register"
}

has_standard_library() {
    [ -d "$("${NEMOS_RUSTC:-rustc}" --print target-libdir --target "$target")" ]
}

# What is unpacked and not installed has its folders in /usr only if somebody makes them there; for mmdebstrap's shell.
# shellcheck disable=SC2016
merged='mkdir "$1/usr"; for folder in bin sbin lib lib64; do mkdir "$1/usr/$folder"; ln -s "usr/$folder" "$1/$folder"; done'

# A rustc of Debian's, recent enough, with the standard libraries of both architectures: unpacked, not installed.
debian_rust() {
    local rust=$folder/rust
    if [ ! -x "$rust/rustc" ]; then
        say "a compiler with a standard library for $target, from Debian"
        rm --recursive --force "$rust"
        mkdir --parents "$rust"
        archives | sed --quiet 's/^\(.*\) \(bookworm\|bookworm-security\)$/deb \1 \2 main/p' > "$rust/sources"
        mmdebstrap --quiet --variant=extract --architectures=amd64,arm64 --include=rustc-web,libstd-rust-web-dev:arm64 \
            --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/*' --skip=output/dev \
            --setup-hook="$merged" \
            --format=directory bookworm "$rust/root" - < "$rust/sources"
        # With its own libraries, and with the host's linker.
        cat > "$rust/rustc" <<'END'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/rustc" "$@"
END
        chmod 755 "$rust/rustc"
    fi
    export NEMOS_RUSTC=$rust/rustc
}

status=0
verdict() {
    if "${@:2}"; then
        printf 'test result: ok. 1 passed; 0 failed; %s\n' "$1"
    else
        printf 'test result: FAILED. 0 passed; 1 failed; %s\n' "$1"
        status=1
    fi
}

register_emulation
has_standard_library || rustup target add "$target" || debian_rust
has_standard_library || die "rustc has no standard library for $target"

begin=$SECONDS
NEMOS_ARCH=arm64 build_image dev
say "the image took $((SECONDS - begin)) s"

disk=$folder/out/nemos-default-arm64.raw
verdict 'the disk is what was built' "$folder/bin/nemos-image" verify "$disk"

begin=$SECONDS
storage_layers --timeout "$patience" "$disk" > "$folder/layers.arm64"
say "the boot took $((SECONDS - begin)) s"
storage_layers --timeout "$patience" "$folder/out/nemos-default.raw" > "$folder/layers.amd64"
verdict 'the stack is that of the image for amd64' diff "$folder/layers.amd64" "$folder/layers.arm64"
exit "$status"
