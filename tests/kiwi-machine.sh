#!/bin/bash
# The first process of the machine that tests/kiwi.sh starts: User-Mode Linux over the host's files, where Kiwi finds the root,
# the loop devices and the device-mapper that it needs. What it writes is in memory, but for $NEMOS_KIWI/out.
set -o errexit -o nounset -o pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
folder=${NEMOS_KIWI:?}

if [ "$$" -eq 1 ]; then
    # Whatever happens, the machine ends.
    trap 'sync; echo o > /proc/sysrq-trigger; sleep 60' EXIT
    mount -t proc proc /proc
    mount -t tmpfs -o size=90%,mode=0755 tmpfs /mnt
    mkdir /mnt/{upper,work,root,lib}
    ln --symbolic /usr/lib/uml/modules /mnt/lib/modules
    modprobe --dirname /mnt overlay
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
    cd /mnt/root
    pivot_root . .
    umount --lazy .
    cd /
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mkdir --parents /dev/pts /dev/shm /lib/modules
    mount -t devpts devpts /dev/pts
    for memory in /dev/shm /run /tmp; do
        mount -t tmpfs -o size=90% tmpfs "$memory"
    done
    mount --bind /usr/lib/uml/modules /lib/modules
    modprobe --all dm-mod loop
    mkdir /run/out
    mount -t hostfs -o "$folder/out" hostfs /run/out
    status=0
    /bin/bash "$0" || status=$?
    echo "$status" > /run/out/status
    exit 0
fi

# Kiwi's root tree and its disk are in memory. Its repository is mounted in the tree at the place that it has here.
mkdir /run/repository
mount --bind "$folder/repo" /run/repository
cd "$folder/kiwi"
NEMOS_UKIFY=$folder/ukify NEMOS_STUB=$folder/linuxx64.efi.stub "$folder/venv/bin/kiwi-ng" \
    --config kiwi.yaml --profile "${NEMOS_PROFILE:?}" --shared-cache-dir /tmp/cache --logfile /run/out/log \
    system build --description x86 --target-dir /tmp/target \
    --ignore-repos --add-repo "dir:///run/repository,apt-deb,nemos-kiwi,,,,,,,false"
cp --sparse=always /tmp/target/*.raw /run/out/nemos-kiwi.raw
