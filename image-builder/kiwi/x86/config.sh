#!/bin/bash
# Called by Kiwi in the image, when its packages and the files under root/ are there: what nemos-image does to a root.
set -o errexit -o nounset -o pipefail

dpkg --install /tmp/nemos.deb
rm /tmp/nemos.deb

# DEMO: `admin` with the password `nemos`. A device that leaves the laboratory has another one.
useradd --uid 1000 --user-group --groups adm,systemd-journal --no-create-home --home-dir /home/admin --shell /bin/bash admin
# shellcheck disable=SC2016 # a hash, and no variables
echo 'admin:$6$nemosdemo$KKKyx40e7jKcy5bV25bFxiA8e.jOuyH9JYVdevcTahFX3/Ei1lf7QUaaFzkXTBHCrRIA/P5CiBdJrwiSyjzPf1' |
    chpasswd --encrypted

systemctl --quiet enable systemd-networkd.service tmp.mount
systemctl --quiet disable dpkg-db-backup.timer netavark-dhcp-proxy.service netavark-dhcp-proxy.socket
mkdir --parents /etc/systemd/system-generators
for generator in \
    systemd-gpt-auto-generator \
    systemd-cryptsetup-generator \
    systemd-integritysetup-generator \
    systemd-veritysetup-generator \
    systemd-ssh-generator \
    systemd-hibernate-resume-generator \
    systemd-rc-local-generator \
    systemd-system-update-generator \
    systemd-sysv-generator; do
    ln --symbolic --force /dev/null "/etc/systemd/system-generators/$generator"
done
for unit in \
    sshd-keygen.service \
    dracut-shutdown.service \
    e2scrub_all.timer \
    e2scrub_reap.service \
    xfs_scrub_all.timer; do
    ln --symbolic --force /dev/null "/etc/systemd/system/$unit"
done

version=$(dpkg-query --show --showformat '${Version}' nemos)
profile=default
for name in development bootstrapped; do
    if [[ ,${kiwi_profiles:?}, == *,$name,* ]]; then
        profile=$name
        break
    fi
done
cat > /usr/lib/os-release <<END
NAME="nemos"
PRETTY_NAME="nemos $version ($profile, built with Kiwi)"
ID=nemos
ID_LIKE=debian
VARIANT_ID=nemos
VERSION_ID=$version
VERSION_CODENAME=trixie
IMAGE_ID=nemos-$profile
IMAGE_VERSION=$version
BUILD_ID=$(date --utc +%Y%m%d%H%M%S)
END
chmod 600 /var/lib/nemos/state.json
mkdir --parents /home /var/lib/containers/storage /var/lib/containers/loaded

# What boots the disk goes to its ESP, and not into the root: uki.sh takes it from /image, which stays outside.
kernel=$(ls /lib/modules)
dracut --quiet --confdir /usr/share/nemos/dracut --no-compress --reproducible /image/initrd "$kernel"
mv "/boot/vmlinuz-$kernel" /image/vmlinuz
echo "$kernel" > /image/kernel-version
find /boot -mindepth 1 -delete
rm --force /vmlinuz* /initrd.img*
mkdir --parents /boot/efi

# A device takes its software from images: nothing installs packages on it. The rest is the device's own, or nobody's.
dpkg --purge apt libapt-pkg7.0 debian-archive-keyring sqv
# Kiwi mounts a repository that is a folder of its host at the same place in here, which may be below /var/cache: it stays.
rm --recursive --force --one-file-system /var/cache/* || true
rm --recursive --force /etc/ssh/ssh_host_* /etc/resolv.conf /var/lib/dbus/machine-id /var/log/*.log \
    /var/log/apt /var/lib/apt /etc/apt /var/lib/systemd/random-seed /etc/.pwd.lock /etc/*- /var/lib/dpkg/*-old \
    /usr/share/{doc,info,lintian,locale,man}/* /usr/lib/x86_64-linux-gnu/libicu* /usr/sbin/xfs_scrub* \
    /usr/lib/podman/netavark-dhcp-proxy-client /usr/libexec/podman/podman-testing
echo uninitialized > /etc/machine-id
