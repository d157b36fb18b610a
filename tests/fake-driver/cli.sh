#!/bin/sh
# A stand-in for NVIDIA's nvidia-container-cli: the nodes of the devices, bound from the driver's tree @ROOT@ as it does it, a library with its
# link, the linker's cache, and the rules of cgroup version 1. (Version 2's device filter takes bpf(2), which a script cannot call: there the
# filter stays as gpurun attached it, as with --no-cgroups.)
#
# The file @ROOT@/lie makes it report success for something else: `nothing`, `numbers` (the node of another device), `nodev`, `closed` (a mode
# that only root can open), `all` (every GPU of the host, on version 1).
root=@ROOT@
[ "$1" != --version ] || { echo "cli-version: 1.19.1" && exit 0; }
lie=$(cat "$root/lie" 2>/dev/null)
fail() {
    echo "nvidia-container-cli: $*" >&2
    exit 1
}
no_cgroups=
for word in "$@"; do
    case $word in
    --device=*) devices=${word#*=} ;;
    --capabilities=*) capabilities=${word#*=} ;;
    --pid=*) pid=${word#*=} ;;
    --no-cgroups) no_cgroups=1 ;;
    /*) rootfs=$word ;;
    esac
done
nvml=$root/@LIBRARIES@/fake-nvml
case $(sed -n 's/^fail //p' "$nvml") in
'') ;;
18) fail "initialization error: nvml error: driver/library version mismatch" ;;
*) fail "initialization error: nvml error: unknown error" ;;
esac
[ "$lie" != nothing ] || exit 0

# Nodes by UUID, number or `all`; a MIG device's are its GPU's and its two capabilities.
nodes=nvidiactl
add() {
    for node in "$@"; do
        case " $nodes " in *" $node "*) ;; *) nodes="$nodes $node" ;; esac
    done
}
case ,$capabilities, in *,compute,*) add nvidia-uvm nvidia-uvm-tools ;; esac
gpus=
for information in "$root"/proc/driver/nvidia/gpus/*/information; do
    gpus="$gpus $(sed -n 's/^GPU UUID:[ \t]*//p' "$information")=$(sed -n 's/^Device Minor:[ \t]*//p' "$information")"
done
cap() { sed -n "s|^$1/access ||p" "$root/proc/driver/nvidia-caps/mig-minors"; }
[ "$lie" != all ] || devices=all
for device in $(echo "$devices" | tr , ' '); do
    found=
    for gpu in $gpus; do
        case $device in all | "${gpu%=*}" | "${gpu#*=}") add "nvidia${gpu#*=}" && found=1 ;; esac
    done
    mig=$(sed -n "s/^mig \([0-9]*\) $device \([0-9]*\) \([0-9]*\) .*/gpu\1 gi\2 ci\3/p" "$nvml")
    if [ -n "$mig" ]; then
        set -- $mig
        add "nvidia${1#gpu}" "nvidia-caps/nvidia-cap$(cap "$1/$2")" "nvidia-caps/nvidia-cap$(cap "$1/$2/$3")"
        found=1
    fi
    [ -n "$found" ] || fail "device error: $device: unknown device"
done

script="mkdir -p $rootfs/dev/nvidia-caps"
allow=$(sed -n 's/^[0-9]*:devices://p' "/proc/$pid/cgroup")
for node in $nodes; do
    from=$root/dev/$node to=$rootfs/dev/$node
    [ -c "$from" ] || fail "mount error: stat failed: /dev/$node: no such file or directory"
    if [ -n "$allow" ] && [ -z "$no_cgroups" ]; then
        printf 'c %d:%d rw' "0x$(stat -c %t "$from")" "0x$(stat -c %T "$from")" >"/sys/fs/cgroup/devices$allow/devices.allow"
    fi
    options=ro,nosuid,noexec,dev
    case $lie/$node in
    numbers/nvidia[0-9]*) from=/dev/full ;;
    nodev/nvidia[0-9]*) options=ro,nosuid,noexec,nodev ;;
    closed/nvidia[0-9]*) chmod 600 "$from" ;;
    esac
    script="$script && : >$to && mount --bind $from $to && mount -o remount,bind,$options $to"
done
library=libcuda.so.@VERSION@ dir=/@LIBRARIES@
script="$script && mkdir -p $rootfs$dir && : >>$rootfs$dir/$library && mount --bind $root$dir/$library $rootfs$dir/$library"
script="$script && rm -f $rootfs$dir/libcuda.so.1 && ln -s $library $rootfs$dir/libcuda.so.1"
script="$script && echo cache >$rootfs/etc/ld.so.cache~ && mv $rootfs/etc/ld.so.cache~ $rootfs/etc/ld.so.cache"
said=$(nsenter -t "$pid" -m sh -c "$script" 2>&1) || fail "mount error: $said"
