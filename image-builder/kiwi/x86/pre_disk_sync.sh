#!/bin/bash
# Called by Kiwi in the image, before it goes to the disk: takes back what Kiwi has written for an initrd of its own. Here
# nemos-initrd alone mounts, and the passphrase would lie readable in the root.
set -o errexit -o nounset -o pipefail

: > /etc/fstab
rm --force /etc/crypttab /root/.luks.header /root/.luks.slot /root/.slotpass /config.partids /etc/dracut.conf.d/02-kiwi.conf
