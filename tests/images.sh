#!/usr/bin/env bash
# The large images, built from package registries alone, each with a real cell: tests/images.sh [NAME…]
#
# The store is kept (GPURUN_ROOT, default below ~/.cache), so that the second run takes seconds. `./run-tests --big` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${GPURUN_TEST_BINARY:-}" ]; then cargo build --quiet --locked; fi
gpurun=$(realpath "${GPURUN_TEST_BINARY:-${CARGO_TARGET_DIR:-target}/debug/gpurun}")
export GPURUN_ROOT=${GPURUN_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/gpurun/images-root}
export GPURUN_RUN=${GPURUN_RUN:-/run/gpurun-images}
password=$(mktemp)
names=()
cleanup() {
    for name in "${names[@]}"; do "$gpurun" rm -f "$name" >/dev/null || true; done
    rm -f "$password"
}
trap cleanup EXIT
echo "open sesame" >"$password"

# A product of matrices whose result is known: 0…8 as a 3 × 3 matrix, times itself.
want='[[15.0, 18.0, 21.0], [42.0, 54.0, 66.0], [69.0, 90.0, 111.0]]'
cell() {
    case $1 in
        pytorch_cuda10) echo 'import torch; a = torch.arange(9.).reshape(3, 3); (a @ a).tolist()' ;;
        cuda10) echo 'import sys, notebook, torch; assert (sys.version_info[:2], torch.__version__, notebook.__version__[0]) == ((3, 9), "1.12.1+cu102", "6"); a = torch.arange(9.).reshape(3, 3); (a @ a).tolist()' ;;
        tf2) echo 'import tensorflow as tf; a = tf.reshape(tf.range(9.), (3, 3)); tf.matmul(a, a).numpy().tolist()' ;;
    esac
}
"$gpurun" image bootstrap --quiet debian:bookworm-slim >/dev/null
[ "$#" -gt 0 ] || set -- pytorch_cuda10 cuda10 tf2
for image in "$@"; do
    args=() source=$image
    case $image in
        tf2) args=(--build-arg TENSORFLOW=tensorflow-cpu) ;;
        # The arguments of its README.
        cuda10)
            source=pytorch_cuda10
            "$gpurun" image bootstrap --quiet debian:bullseye-slim >/dev/null
            args=(--build-arg BASE=debian:bullseye-slim --build-arg TORCH=torch==1.12.1
                --build-arg PACKAGES="jupyterlab==3.6.8 notebook==6.5.7 ipykernel argon2-cffi numpy<2")
            ;;
    esac
    "$gpurun" build --host-ca --network host -t "$image" "${args[@]}" "images/$source" >/dev/null
    name=images-$image-$$
    names+=("$name")
    url=$("$gpurun" --image "$image" --name "$name" --mem 4g -d --password-file "$password")
    found=$(timeout 300 python3 tests/notebook.py "$url" password "$password" "$(cell "$image")" | tr -d '\n' | sed 's/,  *\[/, [/g' | grep -o '\[\[.*\]\]')
    [ "$found" = "$want" ] || { echo "FAILED: $image: expected $want, got $found" >&2; exit 1; }
    echo "ok: $image: a product of matrices by password"
done
