#!/usr/bin/env bash
# gpurun on a machine with real NVIDIA GPUs: every way in that the host has, CUDA at work, isolation, and who uses what.
#
#     sudo tests/real-gpu.sh [GPURUN]          the report goes to standard output
#     sudo PYTHON=/path/to/venv/bin/python tests/real-gpu.sh [GPURUN]
#
# PYTHON (default: python3) is the host's; it goes into the containers read-only with its modules, PyTorch among them where it is installed. Nothing
# is downloaded, and nothing of the host's is changed: images and containers are in a temporary directory. GPUs that others use are
# not used, except for a kernel of a few milliseconds where there is no idle one.
#
# Ends with `N passed, N failed, N skipped`; status 1 where something failed, 77 where the host has no GPU.
set -uo pipefail
here=$(realpath "$(dirname "$0")")
gpurun=$(realpath "${1:-${GPURUN_TEST_BINARY:-$here/../target/release/gpurun}}")
root=${GPURUN_DRIVER_ROOT:-}
passed=0 failed=0 skipped=0

skip() { echo "SKIPPED  $1: $2"; skipped=$((skipped + 1)); }
ok() { echo "ok       $1"; passed=$((passed + 1)); }
bad() { echo "FAILED   $1"; sed 's/^/             /' <<<"${2:-}"; failed=$((failed + 1)); }
# A check: its name, then a command; what it says is shown.
check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then ok "$name"; sed 's/^/             /' <<<"$said"; else bad "$name" "$said"; fi
}
# A check: its name, what is expected, what was seen.
equal() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "expected: $2"$'\n'"seen:     $3"; fi; }
end() { echo; echo "$passed passed, $failed failed, $skipped skipped"; exit "$1"; }

[ "$(id -u)" = 0 ] || { echo "error: run it with sudo" >&2; exit 2; }
[ -x "$gpurun" ] || { echo "error: there is no $gpurun: cargo build --release, or name another" >&2; exit 2; }
if [ ! -r "$root/proc/driver/nvidia/version" ] || [ -z "$(ls "$root/proc/driver/nvidia/gpus" 2>/dev/null)" ]; then
    skip "everything" "this host has no NVIDIA GPU with a loaded driver ($root/proc/driver/nvidia)"
    end 77
fi
# Not what PATH has: that may be a script that looks for one.
host_python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)') || { echo "error: there is no ${PYTHON:-python3}" >&2; exit 2; }

dir=$(mktemp -d /var/tmp/gpurun-real-gpu.XXXXXX)
export GPURUN_ROOT=$dir/root GPURUN_RUN=/run/gpurun-real-gpu.$$
clean() {
    for id in $("$gpurun" ps -aq --no-trunc 2>/dev/null); do "$gpurun" rm -f "$id" >/dev/null 2>&1; done
    awk -v one="$dir/" -v other="$GPURUN_RUN/" 'index($5, one) == 1 || index($5, other) == 1 {print $5}' /proc/self/mountinfo | xargs -r umount -l
    rm -rf "$dir" "$GPURUN_RUN"
}
trap clean EXIT

# The image: the host's own shell and Python with the libraries that they link to, and nothing of the driver.
stage=$dir/stage
mkdir -p "$stage"/{tmp,etc,usr/bin,bin,work}
for library in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64; do [ -d $library ] && mkdir -p "$stage$library"; done
echo 'root:x:0:0::/:/bin/sh' >"$stage/etc/passwd"
mapfile -t modules < <("$host_python" - <<'PYTHON'
import glob, os, sys, sysconfig
prefixes = [p for p in {sys.prefix, sys.base_prefix} if p not in ("/", "/usr", "/usr/local")]
paths = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"]] + [p for p in sys.path if os.path.isdir(p)]
binds = prefixes + sorted({os.path.abspath(p) for p in paths if not any((p + "/").startswith(q + "/") for q in prefixes)})
for path in sorted(set(binds)):
    print("bind", path)
print("program", os.path.realpath(sys.executable))
for path in [p for p in paths + prefixes]:
    for library in glob.glob(path + "/lib-dynload/*.so") + glob.glob(path + "/torch/lib/*.so*") + glob.glob(path + "/numpy/**/*.so", recursive=True):
        print("library", library)
PYTHON
)
binds=() programs=(/bin/sh /bin/ls /bin/cat /bin/sleep)
for line in "${modules[@]}"; do
    case $line in
        "bind "*) binds+=(-v "${line#bind }:${line#bind }:ro") ;;
        *) programs+=("${line#* }") ;;
    esac
done
put() { [ -e "$stage$1" ] || { mkdir -p "$stage$(dirname "$1")" && cp -L "$1" "$stage$1"; }; }
for program in "${programs[@]}"; do
    case $program in *.so*) ;; *) put "$program" ;; esac
    ldd "$program" 2>/dev/null
done | grep -o '/[^ ]*' | grep -v -e libcuda -e libnvidia -e libtorch -e ':$' | sort -u >"$dir/libraries"
while read -r library; do put "$library"; done <"$dir/libraries"
ln -sf "$(realpath "$host_python")" "$stage/usr/bin/real-python"
cp "$here/real-gpu.py" "$stage/work/gpu.py"
tar -C "$stage" --owner 0 --group 0 -cf "$dir/layer.tar" .
diff_id=$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)
case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
echo "{\"architecture\":\"$architecture\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/usr/bin:/bin\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$diff_id\"]}}" >"$dir/config.json"
echo '[{"Config":"config.json","RepoTags":["host:latest"],"Layers":["layer.tar"]}]' >"$dir/manifest.json"
tar -C "$dir" -cf "$dir/image.tar" config.json layer.tar manifest.json
"$gpurun" image load "$dir/image.tar" >/dev/null 2>&1 || { echo "error: the image cannot be loaded" >&2; exit 1; }
rm -rf "$stage" "$dir/layer.tar" "$dir/image.tar"

limits=(--memory 8g --cpus 2)
run() { "$gpurun" run --rm --network none "${limits[@]}" "${binds[@]}" "$@"; }
# The Python that was named, a virtual environment's link and all.
inside() { local flags=$1; shift; run $flags host "$python" /work/gpu.py "$@"; }
python=$host_python
case " ${binds[*]} " in *" ${python%/bin/*}:"*) ;; *) python=/usr/bin/real-python ;; esac

smi=$(command -v nvidia-smi || true)
[ -n "$root" ] && smi=$root/usr/bin/nvidia-smi
driver=$(sed -n 's/^NVRM version:.*[^0-9.]\([0-9][0-9.]*\.[0-9][0-9.]*\) .*/\1/p' "$root/proc/driver/nvidia/version")
echo "gpurun     $("$gpurun" --version 2>&1 | head -n 1)"
echo "kernel     $(uname -srm), cgroup $([ -e /sys/fs/cgroup/cgroup.controllers ] && echo v2 || echo v1)"
echo "driver     $driver"
echo "toolkit    $( (nvidia-ctk --version 2>/dev/null || echo none) | head -n 1)"
echo "python     $host_python ($("$host_python" --version))"
[ -n "$root" ] && echo "           the driver is looked for below $root"
"$gpurun" gpus | sed 's/^/           /'
"$gpurun" doctor | grep ' gpu  ' | sed 's/^/doctor     /'
echo
mapfile -t uuids < <("$gpurun" gpus --json | "$host_python" -c 'import json, sys; [print(unit["index"], unit["name"]) for unit in json.load(sys.stdin)["gpus"]]')
first=${uuids[0]#* } index=${uuids[0]%% *}
torch=$("$host_python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)

real=1
"$smi" -L 2>/dev/null | grep -q "UUID: " || { real=; skip "what needs the driver itself" "\`$smi -L\` on the host lists no GPU"; }

for mode in native hook cdi; do
    if ! said=$(run --gpu-mode "$mode" --gpus "device=$first" host /bin/sh -c 'exit 0' 2>&1); then
        case $mode in
            native) bad "native: a container starts" "$said" ;;
            *) skip "$mode" "$(head -n 2 <<<"$said" | tr '\n' ' ')" ;;
        esac
        continue
    fi
    ok "$mode: a container starts with GPU $index"
    flags="--gpu-mode $mode --gpus device=$first"
    equal "$mode: its node can be opened" open "$(inside "$flags" open "${index%%:*}" 2>&1)"
    if [ "${#uuids[@]}" -ge 2 ]; then
        other=${uuids[1]%% *}
        said=$(inside "$flags" open "${other%%:*}" 2>&1)
        # NVIDIA's hook leaves making nodes allowed; opening them is not.
        if [ "$said" = no ] || { [ "$mode" = hook ] && [ "$said" = denied ]; }; then
            ok "$mode: GPU $other is out of reach ($said)"
        else
            bad "$mode: GPU $other is out of reach" "$said"
        fi
    else
        skip "$mode: isolation" "the host has one GPU"
    fi
    if [ -z "$real" ]; then continue; fi
    equal "$mode: nvidia-smi lists that GPU and no other" "$first" \
        "$(run $flags host nvidia-smi -L 2>&1 | sed -n 's/.*UUID: \([^)]*\)).*/\1/p' | tail -n 1)"
    equal "$mode: one line of it" 1 "$(run $flags host nvidia-smi -L 2>&1 | grep -c '^GPU ')"
    equal "$mode: nvidia-smi says the driver's version" "$driver" \
        "$(run $flags host nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1 | head -n 1)"
    check "$mode: nvidia-smi with --pid host" run $flags --pid host host nvidia-smi --query-compute-apps=pid,used_memory --format=csv
    check "$mode: a CUDA kernel" inside "$flags" cuda
    if [ -n "$torch" ]; then
        check "$mode: PyTorch's matrix product, with 8 GiB and 2 CPUs" inside "$flags" torch
    else
        skip "$mode: PyTorch" "$host_python has no torch"
    fi
done

# Who uses what, as the host sees it.
if [ -n "$real" ]; then
    mkdir "$dir/hold"
    "$gpurun" run -d --name holder --network none "${binds[@]}" -v "$dir/hold:/hold" --gpus "device=$first" host "$python" /work/gpu.py hold /hold/end >/dev/null 2>&1
    for _ in $(seq 150); do "$gpurun" logs holder 2>/dev/null | grep -q 'are held' && break; sleep 0.2; done
    said=$("$gpurun" gpus)
    if grep -q "holder: .* \[[0-9]*\]" <<<"$said"; then ok "gpurun gpus shows the process and its container"; else bad "gpurun gpus shows the process and its container" "$said"; fi
    sed 's/^/             /' <<<"$said"
    check "gpurun stats shows its memory" bash -c "'$gpurun' stats --no-stream holder | grep -E '[0-9]+: [0-9.]+ GiB'"
    said=$("$gpurun" run --rm --network none --gpus "${#uuids[@]}" host /bin/sh -c 'exit 0' 2>&1)
    if grep -q 'container `holder` of' <<<"$said"; then ok "who asks for all idle ones hears who has one"; else bad "who asks for all idle ones hears who has one" "$said"; fi
    sed 's/^/             /' <<<"$said"
    touch "$dir/hold/end"
    "$gpurun" rm -f holder >/dev/null 2>&1
fi
end "$((failed > 0))"
