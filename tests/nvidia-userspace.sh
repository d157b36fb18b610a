#!/usr/bin/env bash
# Native injection of NVIDIA's real user-space driver, as Debian packages it (non-free, 33 MB), into a Debian container. There is no GPU: what is
# seen is that the real library answers our probe, and that the real nvidia-smi and libcuda are found and start in the container.
#
#     tests/nvidia-userspace.sh [GPURUN]
set -euo pipefail
gpurun=${1:-${GPURUN_TEST_BINARY:-target/debug/gpurun}}
here=$(realpath "$(dirname "$0")")
dir=$(mktemp -d)
export GPURUN_ROOT=$dir/gpurun GPURUN_RUN=$dir/run GPURUN_DRIVER_ROOT=$dir/driver
clean() {
    for mount in $(awk -v dir="$dir/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo); do umount -l "$mount" || true; done
    rm -rf "$dir"
}
trap clean EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

# The packages, by apt with lists of its own: the host's configuration stays as it is.
mkdir -p "$dir"/apt/{lists/partial,cache/archives/partial} "$dir/debs"
key=/usr/share/keyrings/debian-archive-keyring.gpg
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" 'Component: main' | sort -u | head -n 1)
echo "deb [signed-by=$key] $mirror $release non-free" >"$dir/apt/sources.list"
apt=(-qq -o "Dir::Etc::sourcelist=$dir/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$dir/apt/lists" -o "Dir::Cache=$dir/apt/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$dir/debs" && apt-get "${apt[@]}" download libnvidia-ml1 libcuda1 nvidia-smi libnvidia-ptxjitcompiler1 libnvidia-nvvm4)

# The tree, with the links that the packages' scripts would make by update-alternatives, and a kernel's /proc.
root=$GPURUN_DRIVER_ROOT libraries=usr/lib/x86_64-linux-gnu
mkdir -p "$root"/etc/alternatives "$root/usr/bin" "$root/proc/driver/nvidia/gpus/0000:3b:00.0"
for package in "$dir"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
alternative() { ln -s "/$2" "$root/etc/alternatives/nvidia--$(basename "$1")" && ln -s "/etc/alternatives/nvidia--$(basename "$1")" "$root/$1"; }
for library in "$root/$libraries"/nvidia/current/*.so*; do
    name=$(basename "$library")
    alternative "$libraries/$name" "$libraries/nvidia/current/$name"
done
alternative usr/bin/nvidia-smi usr/lib/nvidia/current/nvidia-smi
echo "/$libraries" >"$root/etc/ld.so.conf"
/sbin/ldconfig -r "$root"
version=$(basename "$(readlink "$root/$libraries/nvidia/current/libcuda.so.1")" | sed 's/libcuda.so.//')
echo "NVRM version: NVIDIA UNIX x86_64 Kernel Module  $version  Release Build" >"$root/proc/driver/nvidia/version"
printf 'Model: \t Tesla\nGPU UUID: \t GPU-aaaaaaaa-0000-0000-0000-000000000000\nDevice Minor: \t 0\n' >"$root/proc/driver/nvidia/gpus/0000:3b:00.0/information"
printf 'Character devices:\n195 nvidia\n511 nvidia-uvm\n' >"$root/proc/devices"

# A Debian image of the day, and what happens in it.
mmdebstrap --quiet --variant=essential "$release" "$dir/layer.tar"
python3 - "$dir" <<'PYTHON'
import hashlib, io, json, sys, tarfile
layer = open(sys.argv[1] + "/layer.tar", "rb").read()
digest = lambda data: hashlib.sha256(data).hexdigest()
config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(layer)]}}).encode()
manifest = json.dumps([{"Config": digest(config) + ".json", "RepoTags": ["debian:latest"], "Layers": ["layer.tar"]}]).encode()
with tarfile.open(sys.argv[1] + "/image.tar", "w") as archive:
    for name, data in ((digest(config) + ".json", config), ("layer.tar", layer), ("manifest.json", manifest)):
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
PYTHON
"$here/fake-driver/build" "$dir/built"
"$gpurun" image load "$dir/image.tar" >/dev/null 2>&1

said=$("$gpurun" gpus 2>&1)
grep -q "libnvidia-ml.so.$version.*driver is not loaded" <<<"$said" || fail "the real NVML says: $said"
run() { "$gpurun" run --rm --network none --gpus 1 -v "$dir/built/load:/load:ro" debian bash -c "$1" 2>/dev/null; }
said=$(run nvidia-smi || true)
# With its library missing it would say "couldn't find libnvidia-ml.so".
grep -q "couldn't communicate with the NVIDIA driver" <<<"$said" || fail "the real nvidia-smi says: $said"
[ "$(run /load)" = loaded ] || fail "libcuda.so.1 is not found"
[ "$(run 'ldconfig && /load')" = loaded ] || fail "libcuda.so.1 is not found once the image's own ldconfig has run"
run 'ldconfig -p' | grep -q "libcuda.so.1 .* => /$libraries/libcuda.so.1" || fail "ldconfig does not know libcuda.so.1"
[ -z "$("$gpurun" run --rm --network none debian sh -c 'ldconfig -p | grep -e nvidia -e cuda')" ] || fail "a container without --gpus has the driver"
echo "the real driver $version is found, starts, and is where the linker looks"
