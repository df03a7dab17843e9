#!/bin/bash
# The initrd of a nemos device: systemd, udev, nemos-initrd, and nothing that could mount a root or open a shell instead.
#
# Asked for by name only (see /usr/share/nemos/dracut): on a machine that is not a nemos device it would not boot.

# shellcheck disable=SC2154  # dracut sets initdir, moddir and the folders of systemd

check() {
    require_binaries mkfs.xfs mkfs.ext4 e2fsck dmsetup blkid veritysetup cp || return 1
    return 255
}

depends() {
    echo systemd-initrd systemd-ask-password
}

installkernel() {
    # What the disk may hang on.
    hostonly='' instmods \
        virtio_blk virtio_scsi virtio_pci virtio_console nvme ahci ata_piix sd_mod usb-storage uas xhci-pci ehci-pci \
        mmc_block sdhci-pci sdhci-acpi

    # What is on it. The ciphers by the names that libcryptsetup and dm-crypt ask for, directly or inside a template.
    hostonly='' instmods \
        dm-mod dm-verity dm-crypt dm-integrity \
        squashfs overlay xfs ext4 vfat nls_ascii nls_cp437 nls_utf8 loop \
        aegis128 aegis128-aesni aes_generic aesni_intel authenc authencesn cbc ecb xts essiv hmac \
        sha256 sha256-ssse3 sha512 crypto_null cryptd \
        af_alg algif_aead algif_skcipher algif_hash algif_rng

    # Those of them that use an ARM processor's own instructions; its TPM, which is built into the kernels of PCs; and OP-TEE.
    hostonly='' instmods -s aes-ce-blk aes-neon-blk sha2-ce sha256-arm64 sha512-arm64 tpm_tis tee optee

    # A device that hangs in its initrd must come back by itself.
    hostonly='' instmods -s i6300esb iTCO_wdt sbsa_gwdt softdog

    # Unpacked once, here, instead of one by one at each boot: the initrd is compressed as a whole.
    local unpack
    for unpack in "xz --decompress" "busybox unxz"; do
        if type -P "${unpack%% *}" > /dev/null; then
            # shellcheck disable=SC2086
            find "$initdir/lib/modules/" -name '*.ko.xz' -exec $unpack {} +
            break
        fi
    done
}

# dracut goes on without what it cannot find, and the device would not come up.
must() {
    "$@" || {
        dfatal "the initrd lacks what it must have: $*"
        exit 1
    }
}

# Libraries that are opened while a program runs, with those that they need: dracut looks for these only where a file may be
# executed, and Debian's libraries may not.
libraries() {
    local file needed
    for file in "$@"; do
        must inst "$file"
        for needed in $(ldd "$file" | sed -n 's|.* => \([^ ]*\).*|\1|p'); do
            must inst "$needed"
        done
    done
}

# A key that a PKCS#11 token keeps: systemd's plugin, and the modules that the image has for p11-kit, if it has any.
install_pkcs11() {
    local file module modules=/usr/share/p11-kit/modules
    for file in "$modules"/*.module; do
        # Of certificates.
        if [ ! -e "$file" ] || [ "${file##*/}" = p11-kit-trust.module ]; then continue; fi
        module=$(sed -n 's/^module: *//p' "$file")
        case $module in
            /*) libraries "$module" ;;
            *) libraries /usr/lib/*/pkcs11/"$module" ;;
        esac
        must inst_simple "$file"
    done
    # OP-TEE's comes without a word to p11-kit.
    for file in /usr/lib/*/libckteec.so.0; do
        [ -e "$file" ] || continue
        libraries "$file"
        mkdir -p "$initdir$modules"
        echo "module: $file" > "$initdir$modules/ckteec.module"
    done
    if [ -d "$initdir$modules" ]; then
        libraries /usr/lib/*/cryptsetup/libcryptsetup-token-systemd-pkcs11.so /usr/lib/*/libp11-kit.so.*
    fi
}

install() {
    must inst_multiple mkfs.xfs mkfs.ext4 mke2fs e2fsck dmsetup blkid modprobe kmod mount umount cp sleep echo sync
    must inst_simple /etc/mke2fs.conf

    inst_rules 55-dm.rules 60-persistent-storage-dm.rules 95-dm-notify.rules

    # The builder adds the program behind a cached initrd, so that a new program costs no new run of dracut. Its libraries
    # must be in here without it: veritysetup brings libcryptsetup and all that libcryptsetup needs.
    must inst_multiple veritysetup
    must inst_libdir_file "libgcc_s.so.*"
    inst_multiple -o /usr/lib/nemos/nemos-initrd

    # A key that a TPM keeps: systemd's plugin for libcryptsetup, and what it loads.
    libraries /usr/lib/*/cryptsetup/libcryptsetup-token-systemd-tpm2.so \
        /usr/lib/*/libtss2-{esys,mu,rc,sys,tcti-device}.so.*

    install_pkcs11

    must inst_simple "$moddir/nemos-initrd.service" "$systemdsystemunitdir/nemos-initrd.service"
    mkdir -p "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires"
    ln -sf ../nemos-initrd.service "$initdir$systemdsystemunitdir/initrd-root-fs.target.requires/nemos-initrd.service"
    ln -sf initrd.target "$initdir$systemdsystemunitdir/default.target"

    # systemd stops what the next target does not need, and these mounts carry the running system.
    local unit
    for unit in run-nemos-root run-nemos-overlay run-nemos-saved; do
        must inst_simple "$moddir/keep-mounted.conf" "$systemdsystemunitdir/$unit.mount.d/keep-mounted.conf"
    done

    # A device that verifies its root offers no shell on its console: whatever fails here ends in a reboot.
    must inst_simple "$moddir/emergency.service" "$systemdsystemunitdir/emergency.service"
    must inst_simple "$moddir/emergency.service" "$systemdsystemunitdir/rescue.service"
    rm -f "$initdir$systemdsystemunitdir/debug-shell.service"

    # Generators: nemos-initrd alone decides what /sysroot is.
    rm -rf "$initdir$systemdutildir/system-generators" "$initdir$systemdutildir/systemd-sysroot-fstab-check"
    must inst_simple "$moddir/no-fstab.conf" "$systemdsystemunitdir/initrd-parse-etc.service.d/no-fstab.conf"

    must inst_simple "$moddir/modules-load.conf" /usr/lib/modules-load.d/nemos.conf
    must inst_simple "$moddir/no-audit.conf" "$systemdutildir/journald.conf.d/nemos.conf"

    # The demo key is public. Without a newline: the passphrase is exactly these bytes.
    mkdir -p "$initdir/etc/cryptsetup-keys.d"
    (umask 0377 && printf insecure > "$initdir/etc/cryptsetup-keys.d/luks.key")

    rm -f "$initdir/etc/initrd-release"
    cp /usr/lib/os-release "$initdir/etc/initrd-release"
    ln -sf initrd-release "$initdir/etc/os-release"
}
