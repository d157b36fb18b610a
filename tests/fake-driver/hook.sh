#!/bin/sh
# A stand-in for NVIDIA's nvidia-container-runtime-hook 1.20: what it reads, what it refuses and in which words, and how it calls its tool.
# @ROOT@ is the tree of the driver. @ROOT@/hook-body, if it exists, runs first, with the same arguments and standard input.
root=@ROOT@
fail() {
    echo "$*" >&2
    exit 1
}
state=$(cat)
if [ -e "$root/hook-body" ]; then
    printf '%s' "$state" | sh "$root/hook-body" "$@" || exit $?
fi
config=$root/etc/nvidia-container-runtime/config.toml
required=
if [ -n "$NVIDIA_CTK_CONFIG_FILE_PATH" ]; then
    config=$NVIDIA_CTK_CONFIG_FILE_PATH required=1
fi
while [ $# -gt 0 ]; do
    case $1 in
    -config) config=$2 required=1 && shift ;;
    prestart) ;;
    *) exit 2 ;;
    esac
    shift
done
[ -e "$config" ] || [ -z "$required" ] || fail "error getting hook config: failed to load config: couldn't open required configuration file: file does not exist"
[ -e "$config" ] || config=/dev/null
line=$(sed -n '/^ *\]/{=;q}' "$config")
[ -z "$line" ] || fail "error getting hook config: failed to load config: couldn't open required configuration file: failed to load specified config file: ($line, 1): parsing error: keys cannot contain ] character"
# The value of a key in a section; a key that is set twice is an error there, and the last one counts here.
get() {
    awk -v wanted="$1" -v key="$2" '
        /^[ \t]*#/ { next }
        /^[ \t]*\[/ { section = $0; gsub(/[][ \t]/, "", section); next }
        { name = $0; sub(/=.*/, "", name); gsub(/[ \t"]/, "", name) }
        section == wanted && name == key { value = $0; sub(/^[^=]*=[ \t]*/, "", value); gsub(/"/, "", value) }
        END { print value }' "$config"
}
pid=$(printf '%s' "$state" | sed 's/.*"pid":\([0-9]*\).*/\1/')
bundle=$(printf '%s' "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')
# One text a line, however the file is written.
spec=$(sed -e 's/","/",\n"/g' -e 's/\["/[\n"/g' -e 's/"\]/"\n]/g' -e 's/},/},\n/g' "$bundle/config.json")
rootfs=$(echo "$spec" | sed -n '/"root":/,/}/s/.*"path": *"\([^"]*\)".*/\1/p' | head -n 1)
has() { echo "$spec" | grep -q "^ *\"$1="; }
variable() { echo "$spec" | sed -n "s/^ *\"$1=\(.*\)\",\{0,1\}\$/\1/p" | tail -n 1; }
privileged() { echo "$spec" | sed -n '/"bounding"/,/\]/p' | grep -q CAP_SYS_ADMIN; }

devices=$(variable NVIDIA_VISIBLE_DEVICES)
names=NVIDIA_VISIBLE_DEVICES
swarm=
for name in $(get '' swarm-resource | tr , ' '); do
    if has "$name"; then swarm="$swarm,$(variable "$name")" names=$name; fi
done
[ -z "$swarm" ] || devices=${swarm#,}
if [ -n "$devices" ] && [ "$devices" != void ] && [ "$(get '' accept-nvidia-visible-devices-envvar-when-unprivileged)" = false ] && ! privileged; then
    echo "time=\"2026-11-29T12:00:00Z\" level=warning msg=\"Ignoring devices requested by environment variable(s) in unprivileged container: [$names]\"" >&2
    exit 0
fi
case $devices in '' | void) exit 0 ;; esac
for name in CONFIG MONITOR; do
    [ -z "$(variable NVIDIA_MIG_${name}_DEVICES)" ] || privileged || fail "cannot set MIG_${name}_DEVICES in non privileged container"
done
supported=$(get '' supported-driver-capabilities)
[ -n "$supported" ] || supported=compute,compat32,graphics,utility,video,display,ngx
capabilities=$(variable NVIDIA_DRIVER_CAPABILITIES)
allowed=
for name in $(echo "${capabilities:-utility,compute}" | tr , ' '); do
    case ,$supported, in *,"$name",*) allowed="$allowed,$name" ;; esac
done
case $capabilities in all) allowed=,$supported ;; '') ;; *) [ "${allowed#,}" = "$capabilities" ] || fail "unsupported capabilities found in '$capabilities' (allowed '${allowed#,}')" ;; esac

mode=$(get nvidia-container-runtime mode)
if [ "$(get nvidia-container-runtime-hook skip-mode-detection)" != true ]; then
    case $mode in
    '' | auto) echo "Auto-detected mode as 'legacy'" >&2 ;;
    legacy) echo "Using requested mode 'legacy'" >&2 ;;
    *) fail "invoking the NVIDIA Container Runtime Hook directly (e.g. specifying the docker --gpus flag) is not supported. Please use the NVIDIA Container Runtime (e.g. specify the --runtime=nvidia flag) instead" ;;
    esac
fi
tool=$(get nvidia-container-cli path)
[ -n "$tool" ] || tool=/usr/bin/nvidia-container-cli
[ -x "$root$tool" ] || fail "exec failed: no such file or directory"
set -- configure --ldconfig=@/sbin/ldconfig
[ "$(get nvidia-container-cli no-cgroups)" != true ] || set -- "$@" --no-cgroups
exec "$root$tool" "$@" "--device=$devices" "--capabilities=${allowed#,}" "--pid=$pid" "$rootfs"
