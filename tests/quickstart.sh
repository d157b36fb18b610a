#!/usr/bin/env bash
# Runs ./quickstart as a new user does, with a store and notebooks of its own, and checks what it promises: a notebook that was created and
# run, the limits as the kernel reports them, and nothing left after --stop.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d /var/tmp/gpurun-quickstart-XXXXXX)
chmod 755 "$work"
export GPURUN_ROOT=$work/root GPURUN_RUN=$work/run GPURUN_NOTEBOOKS=$work/notebooks
gpurun=${CARGO_TARGET_DIR:-target}/release/gpurun
cleanup() {
    ./quickstart --stop >/dev/null 2>&1 || true
    # The mounts of images, which are kept for the next start.
    for point in "$work"/run/images/*; do umount "$point" 2>/dev/null || true; done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

./quickstart </dev/null 2>&1 | tee "$work/output"
for line in '^1\+1 = 2$' '^--memory .*= 2147483648$' '^open +http://' '^password +[0-9a-f]{18}$'; do
    grep -qE -- "$line" "$work/output" || fail "the output has no line \`$line\`"
done
! ./quickstart </dev/null >/dev/null 2>"$work/again" || fail "a second ./quickstart replaced a running notebook without asking"
grep -q 'it is running already' "$work/again" || fail "a second ./quickstart says: $(cat "$work/again")"
./quickstart --stop
[ -z "$("$gpurun" ps -aq)" ] || fail "--stop left a container"
[ -d "$work/notebooks" ] || fail "--stop removed the notebooks"
echo "quickstart: all checks passed"
