#!/usr/bin/env bash
# Development containers, as VS Code starts them: the program @devcontainers/cli with gpurun instead of docker.
#
#     tests/devcontainer.sh target/debug/gpurun
#
# It needs node and npm. The program and the tree of the base image are cached outside the repository.
set -euo pipefail
gpurun=$(realpath "$1")
version=0.89.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpurun
work=$(mktemp -d -p /var/tmp)
export GPURUN_ROOT=$work/root GPURUN_RUN=$work/run DEVCONTAINER_CALLS=$work/calls
cleanup() {
    local ids point
    ids=$("$gpurun" ps -aq) || true
    # shellcheck disable=SC2086
    [ -z "$ids" ] || "$gpurun" rm -f $ids >/dev/null || true
    awk -v dir="$work/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | while read -r point; do umount -l "$point" || true; done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

cli=$cache/devcontainers-$version/node_modules/@devcontainers/cli/devcontainer.js
if [ ! -f "$cli" ]; then
    npm install --silent --no-audit --no-fund --prefix "$cache/devcontainers-$version.new" "@devcontainers/cli@$version"
    rm -rf "$cache/devcontainers-$version"
    mv "$cache/devcontainers-$version.new" "$cache/devcontainers-$version"
fi
base=$cache/packaging-bookworm.tar
if [ ! -s "$base" ]; then
    mkdir -p "$cache"
    mmdebstrap --quiet --variant=minbase --include=nftables,ca-certificates bookworm "${base%.tar}.new.tar"
    mv "${base%.tar}.new.tar" "$base"
fi

# What the editor calls, one line each, for the messages below.
cat >"$work/docker" <<SH
#!/bin/sh
printf '%s\n' "\$*" >>"\$DEVCONTAINER_CALLS"
exec "$gpurun" "\$@"
SH
chmod 755 "$work/docker"
devcontainer() {
    local command=$1
    shift
    node "$cli" "$command" --docker-path "$work/docker" --docker-compose-path "$work/docker" "$@"
}

"$gpurun" import "$base" localhost/base:1 >/dev/null
mkdir "$work/user"
printf 'FROM localhost/base:1\nRUN useradd -m -u 1000 -s /bin/bash dev\n' >"$work/user/Dockerfile"
"$gpurun" build -q --network none -t localhost/dev:1 "$work/user" >/dev/null

# A workspace: its name, its devcontainer.json, and more files of .devcontainer as pairs of name and text.
workspace() {
    local dir=$work/workspaces/$1/.devcontainer
    mkdir -p "$dir"
    printf '%s\n' "$2" >"$dir/devcontainer.json"
    shift 2
    while [ "$#" -gt 0 ]; do
        printf "$2" >"$dir/$1"
        shift 2
    done
    chown -R 1000:1000 "${dir%/*}"
}
workspace image '{ "image": "localhost/dev:1", "remoteUser": "dev", "containerEnv": {"LAB": "cgroups"}, "runArgs": ["--network=none"],
    "postCreateCommand": "id -un >created", "mounts": ["source=cache,target=/cache,type=volume"] }'
workspace dockerfile '{ "build": {"dockerfile": "Dockerfile", "args": {"WHAT": "argument"}}, "remoteUser": "dev",
    "containerEnv": {"LAB": "cgroups"}, "postCreateCommand": "cat /built >created",
    "runArgs": ["--network=none", "--init", "--cap-add=SYS_PTRACE", "--security-opt", "seccomp=unconfined"] }' \
    Dockerfile 'ARG WHAT\nFROM localhost/dev:1 AS first\nARG WHAT\nRUN --network=none echo "$WHAT" >/built\nFROM first\n'
workspace compose '{ "dockerComposeFile": "compose.yaml", "service": "app", "workspaceFolder": "/workspaces/compose", "remoteUser": "dev",
    "postCreateCommand": "cat /built >created" }' \
    compose.yaml 'services:\n  app:\n    build: { context: . }\n    network_mode: none\n    environment: { LAB: cgroups }\n    volumes: ["..:/workspaces/compose"]\n    command: sleep infinity\n  other:\n    image: localhost/dev:1\n    network_mode: none\n    command: sleep infinity\n' \
    Dockerfile 'FROM localhost/dev:1\nRUN --network=none echo composed >/built\n'

for name in image dockerfile compose; do
    echo "-- $name"
    folder=$work/workspaces/$name
    : >"$work/calls"
    if ! devcontainer up --workspace-folder "$folder" >"$work/result" 2>"$work/log"; then
        tail -n 20 "$work/log" >&2
        fail "$name: up; its calls:" "$(cat "$work/calls")"
    fi
    grep -q '"outcome":"success"' "$work/result" || fail "$name: $(cat "$work/result")"
    id=$(sed -n 's/.*"containerId":"\([0-9a-f]*\)".*/\1/p' "$work/result")
    [ "$("$gpurun" inspect -f '{{.State.Status}}' "$id")" = running ] || fail "$name: the container does not run"
    case $name in
        image) want=dev ;;
        dockerfile) want=argument ;;
        compose) want=composed ;;
    esac
    [ "$(cat "$folder/created")" = "$want" ] || fail "$name: postCreateCommand: $(cat "$folder/created")"
    [ "$(stat -c %u "$folder/created")" = 1000 ] || fail "$name: the owner of what it wrote"
    code=0
    # shellcheck disable=SC2016
    told=$(devcontainer exec --workspace-folder "$folder" sh -c 'echo "$(id -un) $PWD $LAB"; exit 3' 2>"$work/log") || code=$?
    [ "$told,$code" = "dev /workspaces/$name cgroups,3" ] || fail "$name: exec: $told, code $code: $(tail -n 5 "$work/log")"
    # A second `up` finds the container.
    devcontainer up --workspace-folder "$folder" 2>/dev/null | grep -q "\"containerId\":\"$id\"" || fail "$name: a second up"
    # It is started again when it was stopped.
    "$gpurun" stop -t 1 "$id" >/dev/null
    devcontainer up --workspace-folder "$folder" 2>/dev/null | grep -q "\"containerId\":\"$id\"" || fail "$name: up after a stop"
    [ "$("$gpurun" inspect -f '{{.State.Status}}' "$id")" = running ] || fail "$name: up does not start a stopped container"
    devcontainer up --remove-existing-container --workspace-folder "$folder" >"$work/result" 2>/dev/null || fail "$name: up --remove-existing-container"
    [ "$(sed -n 's/.*"containerId":"\([0-9a-f]*\)".*/\1/p' "$work/result")" != "$id" ] || fail "$name: the container is not replaced"
done
echo "devcontainer: all checks passed"
