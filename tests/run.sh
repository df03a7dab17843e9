#!/bin/bash
# Runs everything that is tested, on a fresh Debian 12 or 13: rules, devices in User-Mode Linux, whole images in QEMU.
#
# As root, it installs what is missing; otherwise it says what to install. The image is built by an ordinary user either
# way, with what need not be made twice in ${NEMOS_CACHE:-/var/cache/nemos} (not root: ~/.cache/nemos).
set -o nounset -o pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck source=image-builder/host.sh
. image-builder/host.sh

check_host
install_missing '' "${compile_packages[@]}" "${image_packages[@]}" "${test_packages[@]}"
check_rust

folder=$(mktemp --directory)
trap 'rm --recursive --force "$folder"' EXIT
passed=0
failed=0
table=()

# Starts a part beside those that follow; what it says waits in a file. A device on the rig has one processor, and a compiler has use
# for the other one, but does not take the first.
begin() {
    (
        renice --priority 10 "$BASHPID" > /dev/null
        start=$SECONDS
        "${@:2}" &> "$folder/$1.log"
        echo "$? $((SECONDS - start))" > "$folder/$1.ended"
    ) &
}

# Waits for it, and shows what it said.
finish() {
    local status seconds
    wait
    printf '\n== %s\n' "$1"
    cat "$folder/$1.log"
    read -r status seconds < "$folder/$1.ended"
    count "$1" "$status" "$seconds"
}

# Runs a part by itself.
part() {
    local start=$SECONDS
    printf '\n== %s\n' "$1"
    # By itself, for a function that stops at the first failure does not where its status is asked for.
    "${@:2}" 2>&1 | tee "$folder/$1.log"
    count "$1" "$?" $((SECONDS - start))
}

# Counts the tests of a part. One that fails without a test that did counts as one.
count() {
    local name=$1 status=$2 seconds=$3 verdict=ok part_passed part_failed
    read -r part_passed part_failed < <(sed --quiet 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' \
        "$folder/$name.log" | awk '{ passed += $1; failed += $2 } END { print passed + 0, failed + 0 }')
    if [ "$status" -ne 0 ] && [ "$part_failed" -eq 0 ]; then
        part_failed=1
    fi
    [ "$status" -eq 0 ] || verdict=FAILED
    passed=$((passed + part_passed))
    failed=$((failed + part_failed))
    table+=("$(printf '%-28s %6d s  %4d passed  %s' "$name" "$seconds" "$part_passed" "$verdict")")
    return "$status"
}

# The tests of whole devices are no target of `--all-targets`, for they run only when they are named.
lints() (
    set -o errexit
    cargo clippy --locked --workspace --all-targets -- --deny warnings
    cargo clippy --locked --workspace --test image -- --deny warnings
)

images() (
    set -o errexit
    build_image dev
    build_signed_images
)

image_tests() {
    cargo build --locked --workspace --bin nemos-image --bin nemosctl &&
        NEMOS_IMAGE=$(builder_folder)/out/nemos-default.raw NEMOS_SIGNED=$(builder_folder)/signed \
            cargo test --locked --workspace --test image -- --test-threads=2
}

# Always of the whole workspace: packages share what they need only if they are compiled together.
part 'format' cargo fmt --all --check
part 'lints' lints
part 'scripts' shellcheck --external-sources image-builder/*.sh image-builder/bench tests/*.sh
part 'compiling' cargo test --locked --workspace --tests --no-run
begin 'images' images
part 'rules and devices' cargo test --locked --workspace --tests --no-fail-fast
# An image that could not be built is one failure; its tests are not run.
finish 'images' && part 'whole devices' image_tests

printf '\n%s\n' '== how long it took'
printf '%s\n' "${table[@]}"
printf '%-28s %6d s\n' 'all' "$SECONDS"
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
