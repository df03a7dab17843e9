#!/bin/bash
# Called by Kiwi on the host, in the root of the image, when the disk is written: $1 is the disk. Makes the unified kernel
# image, with the root hash in its command line, and puts it where firmware looks.
set -o errexit -o nounset -o pipefail

ukify=${NEMOS_UKIFY:-ukify}
stub=${NEMOS_STUB:-/usr/lib/systemd/boot/efi/linuxx64.efi.stub}
loop=$(losetup --noheadings --output NAME --associated "$1")

# The device node of a partition of the disk, by the table: for partitions that Kiwi has mapped, the kernel knows no names.
partition() {
    sfdisk --dump "$loop" | sed --quiet "s|^\(/dev/[^ ]*\) : .* name=\"$1\".*|\1|p"
}

# Kiwi has written it into the last block.
metadata=$(tail --bytes=4096 "$(partition p.lxreadonly)" | tr '\377' '\n' | sed --quiet 2p | tr --delete '\0')
read -r _ _ _ _ _ _ root_hash _ <<< "$metadata"
if ! [[ $root_hash =~ ^[0-9a-f]{64}$ ]]; then
    echo "there is no root hash in the last block of p.lxreadonly: $metadata" >&2
    exit 1
fi

# The containers that are shipped are under dm-verity too: their hash tree behind them, at the next block.
containers=$(partition p.lxoci-preloaded)
read -r size <<< "$(od --address-radix n --format u8 --skip-bytes 40 --read-bytes 8 "$containers")"
blocks=$(((size + 4095) / 4096))
preloaded_hash=$(veritysetup format --data-blocks "$blocks" --hash-offset $((blocks * 4096)) "$containers" "$containers" |
    sed --quiet 's/^Root hash:[[:space:]]*//p')

zstd --quiet -T0 -12 --force image/initrd -o image/initrd.zst
"$ukify" build --stub "$stub" --linux image/vmlinuz --initrd image/initrd.zst --uname "$(cat image/kernel-version)" \
    --os-release @usr/lib/os-release --cmdline "roothash=$root_hash nemos.preloadedhash=${preloaded_hash:?} ${kiwi_cmdline:?}" --output image/uki.efi

esp=$(mktemp --directory)
mount "$(partition p.UEFI)" "$esp"
trap 'umount "$esp" && rmdir "$esp"' EXIT
mkdir --parents "$esp/EFI/BOOT"
cp image/uki.efi "$esp/EFI/BOOT/BOOTX64.EFI"
sync --file-system "$esp"
