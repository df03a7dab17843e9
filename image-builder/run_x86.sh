#!/bin/bash
# Builds the reference image and boots it: on a fresh Debian 12 or 13, from nothing.
#
#     ./image-builder/run_x86.sh                              gives the image's console
#     ./image-builder/run_x86.sh --snapshot -- nemosctl status     runs a command on it
#
# Arguments are those of `nemos-image run`.
set -o errexit -o nounset -o pipefail
cd "$(dirname "$0")/.."
# shellcheck source=image-builder/host.sh
. image-builder/host.sh

check_host
install_missing sudo "${compile_packages[@]}" "${image_packages[@]}"
check_rust
build_image release
say "the image is $(builder_folder)/out/nemos-default.raw; to boot it again: $(builder_folder)/bin/nemos-image run DISK"
as_builder bin/nemos-image run out/nemos-default.raw "$@"
