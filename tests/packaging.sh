#!/usr/bin/env bash
# Builds the Debian package and the tarball, and tries both in a clean Debian chroot, where nothing of this checkout or its toolchain is.
#
#     tests/packaging.sh
#
# The chroot's tree is cached outside the repository, keyed by its suite.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpurun
base=$cache/packaging-bookworm.tar
work=$(mktemp -d)
chroot=$work/root
cleanup() {
    local point
    for point in dev sys proc .; do umount -R -l "$chroot/$point" 2>/dev/null || true; done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

mkdir -p "$cache"
if [ ! -s "$base" ]; then
    mmdebstrap --quiet --variant=minbase --include=nftables,ca-certificates bookworm "${base%.tar}.new.tar"
    mv "${base%.tar}.new.tar" "$base"
fi
mkdir "$chroot"
# A mount point, so that a container's root can be pivoted to from inside.
mount --bind "$chroot" "$chroot"
tar -C "$chroot" -xpf "$base"
deb=$("$here/packaging/deb" "$work")
tarball=$("$here/packaging/tarball" "$work")
cp "$deb" "$tarball" "$chroot/root/"

# A private mount namespace would be cleaner, but the kernel's cgroup mounts must be the host's own: bound recursively, and never propagated back.
mount -t proc proc "$chroot/proc"
mount --rbind /sys "$chroot/sys" && mount --make-rslave "$chroot/sys"
mount --rbind /dev "$chroot/dev" && mount --make-rslave "$chroot/dev"

inside() { chroot "$chroot" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }

echo "-- the package installs in a clean Debian, and has what an admin expects"
inside dpkg -i "/root/${deb##*/}" >/dev/null
for file in /usr/bin/gpurun /usr/share/man/man1/gpurun-run.1.gz /usr/share/bash-completion/completions/gpurun \
    /usr/share/zsh/vendor-completions/_gpurun /usr/share/fish/vendor_completions.d/gpurun.fish /usr/share/doc/gpurun/copyright /etc/gpurun/config.toml; do
    [ -f "$chroot$file" ] || fail "the package has no $file"
done
[ "$(inside gpurun --version)" = "gpurun $(sed -n 's/^version = "\(.*\)"/\1/p' "$here/Cargo.toml" | head -n 1)" ] || fail "the version"
inside bash -n /usr/share/bash-completion/completions/gpurun || fail "bash cannot read its completion script"

echo "-- its gpurun runs an image, with a limit that the kernel holds"
mkdir "$work/box" && mkdir -p "$work/box/bin"
cp "$(command -v busybox)" "$work/box/bin/busybox" && ln -s busybox "$work/box/bin/sh" && ln -s busybox "$work/box/bin/echo"
printf 'FROM scratch\nCOPY bin /bin\nCMD ["sh"]\n' >"$work/box/Containerfile"
cp -r "$work/box" "$chroot/root/box"
inside gpurun build -q -t box /root/box >/dev/null
told=$(inside gpurun run --rm --network none --memory 64m --pids-limit 32 box sh -c 'echo works')
[ "$told" = works ] || fail "a container said: $told"

echo "-- docker's names are not part of the package, and go with it"
if inside sh -c 'command -v docker'; then fail "the package has a docker"; fi
inside gpurun shim install >/dev/null
[ "$(inside docker run --rm --network none box echo shim)" = shim ] || fail "docker does not run gpurun"

echo "-- removing the package leaves what people made with it"
inside dpkg --purge gpurun >/dev/null
[ ! -L "$chroot/usr/local/bin/docker" ] || fail "dpkg -r left a link to nothing"
[ ! -e "$chroot/usr/bin/gpurun" ] || fail "dpkg -r left the program"
[ -d "$chroot/var/lib/gpurun/images" ] || fail "dpkg -r removed the images"

echo "-- the tarball runs from where it is unpacked, and installs and uninstalls"
inside tar -C /opt -xzf "/root/${tarball##*/}"
unpacked=/opt/$(basename "$tarball" .tar.gz)
[ "$(inside "$unpacked/bin/gpurun" run --rm --network none box echo moved)" = moved ] || fail "the unpacked program"
inside "$unpacked/install" >/dev/null
[ "$(inside gpurun run --rm --network none box echo local)" = local ] || fail "the installed program"
before=$(inside find /usr/local -type f | wc -l)
[ "$before" -gt 20 ] || fail "./install installed $before files"
inside "$unpacked/install" --uninstall >/dev/null
[ "$(inside find /usr/local /etc -path "/usr/local/*" -type f -o -path "/etc/gpurun/*" | wc -l)" -eq 0 ] || fail "./install --uninstall left $(inside find /usr/local -type f)"
if inside "$unpacked/install" --uninstall 2>"$work/error"; then fail "a second --uninstall worked"; fi
grep -q '^hint: ' "$work/error" || fail "no hint: $(cat "$work/error")"
inside "$unpacked/bin/gpurun" image rm box >/dev/null
echo "packaging: all checks passed"
