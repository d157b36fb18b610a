#!/usr/bin/env bash
# The main job on a real image: tests/jupyter.sh IMAGE.tar
#
# A host of its own (store, run directory, network namespace), and a second machine on a wire from which a person opens the notebook.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=$(realpath "$1")
if [ -z "${GPURUN_TEST_BINARY:-}" ]; then cargo build --quiet --locked; fi
gpurun=$(realpath "${GPURUN_TEST_BINARY:-${CARGO_TARGET_DIR:-target}/debug/gpurun}")
dir=$(mktemp -d /var/tmp/gpurun-jupyter.XXXXXX)
here=gpurun-jup-$$ there=gpurun-jup-$$-out
export GPURUN_ROOT=$dir/root GPURUN_RUN=$dir/run
on() { nsenter --net="/run/netns/$1" "${@:2}"; }
run() { on "$here" "$gpurun" "$@"; }
cleanup() {
    kill ${index:-} ${script:-} 2>/dev/null || true
    for id in $(run ps -aq --no-trunc 2>/dev/null); do run rm -f "$id" >/dev/null || true; done
    ip netns delete "$here" 2>/dev/null || true
    ip netns delete "$there" 2>/dev/null || true
    awk -v dir="$dir" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | xargs -r umount -l
    rm -rf "$dir"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { [ "$2" = "$3" ] || fail "$1: expected \`$2\`, got \`$3\`"; echo "ok: $1"; }

ip netns add "$here" && ip netns add "$there"
ip -n "$here" link set lo up && ip -n "$there" link set lo up
ip -n "$here" link add wire type veth peer name wire netns "$there"
ip -n "$here" addr add 192.0.2.1/24 dev wire && ip -n "$here" link set wire up
ip -n "$there" addr add 192.0.2.2/24 dev wire && ip -n "$there" link set wire up

run image load "$archive"
mkdir "$dir/share"
chown 1234:1234 "$dir/share"
echo "open sesame" >"$dir/password"
chmod 600 "$dir/password"

# As a person with uid 1234 behind sudo.
url=$(cd "$dir/share" && SUDO_UID=1234 SUDO_GID=1234 run --image jupyter --name lab --mem 1g --cpus 1.5 --cpuset-cpus 0-1 -v "$PWD":/work/share -p 8888:8888 -d --password-file "$dir/password")
expect "the URL" "http://127.0.0.1:8888/" "$url"
expect "1+1 by password, on this host" 2 "$(on "$here" python3 tests/notebook.py "$url" password "$dir/password" 1+1)"
expect "6*7 by password, from another machine" 42 "$(on "$there" python3 tests/notebook.py http://192.0.2.1:8888/ password "$dir/password" 6*7)"
expect "the limits in the kernel's environment" "1073741824 1.5 2" \
    "$(on "$here" python3 tests/notebook.py "$url" password "$dir/password" 'import os; print(os.environ["MEM_LIMIT"], os.environ["CPU_LIMIT"], os.environ["OMP_NUM_THREADS"])')"
on "$here" python3 tests/notebook.py "$url" password "$dir/password" 'open("/work/share/from-notebook", "w").write("x"); 0' >/dev/null
[ -f "$dir/share/from-notebook" ] || fail "a file written by the notebook is not on the host"
expect "its owner is the person behind sudo" 1234 "$(stat -c %u "$dir/share/from-notebook")"
if grep -rlE "open sesame" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | grep -v "/$$/" | grep -q .; then fail "the password stands on a command line or in an environment"; fi
echo "ok: the password is on no command line and in no environment"
run exec lab jupyter --version >/dev/null && echo "ok: exec in it"
# The kernel is killed at the limit, and ps says why.
on "$here" timeout 60 python3 tests/notebook.py "$url" password "$dir/password" 'x = b"1" * (3 << 30)' >/dev/null 2>&1 || true
for _ in $(seq 100); do run ps -a | grep -q OOMKilled && break; sleep 0.1; done
run ps -a | grep -q OOMKilled || fail "ps does not tell of the OOM kill"
echo "ok: ps tells of the OOM kill"
run logs lab 2>&1 | grep -q "the kernel killed .*: the container's memory limit of 1 GiB was reached" || fail "the log does not tell whose limit it was"
echo "ok: the log tells which process, and whose limit it was"
run stop lab >/dev/null
expect "it is stopped" "exited" "$(run inspect lab | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["State"]["Status"])')"
run rm lab >/dev/null

url=$(run --image jupyter --name tok -d)
case $url in http://127.0.0.1:8888/?token=*) echo "ok: a token URL on loopback" ;; *) fail "not a token URL: $url" ;; esac
second=$(run --image jupyter --name tok2 -d)
case $second in http://127.0.0.1:8889/?token=*) echo "ok: the next free port" ;; *) fail "not the next port: $second" ;; esac
expect "1+1 by token" 2 "$(on "$here" python3 tests/notebook.py "$url" token - 1+1)"
run commit tok kept >/dev/null && run image unpack kept "$dir/kept"
expect "a committed notebook knows no token and no key of the running one" "" \
    "$(find "$dir/kept" -path '*/jupyter/runtime/*'; grep -rlF "${url#*token=}" "$dir/kept/home" "$dir/kept/root" "$dir/kept/etc" "$dir/kept/run" || true)"
if on "$there" timeout 3 bash -c 'exec 3<>/dev/tcp/192.0.2.1/8888' 2>/dev/null; then fail "a launch without -p is open to the network"; fi
echo "ok: without -p it is for this host only"
run rm -f tok tok2 >/dev/null

# Ctrl-c before Jupyter answers.
(exec nsenter --net="/run/netns/$here" "$gpurun" --image jupyter --name early >/dev/null 2>"$dir/early") &
early=$!
until [ "$(run inspect -f '{{.State.Running}}' early 2>/dev/null)" = true ] || ! kill -0 "$early"; do sleep 0.05; done
kill -INT "$early"
wait "$early" && code=0 || code=$?
expect "an interrupted launch ends with 130" 130 "$code"
grep -q "the launch was interrupted before Jupyter answered" "$dir/early" || fail "an interrupted launch says: $(cat "$dir/early")"
expect "its container has ended" exited "$(run inspect -f '{{.State.Status}}' early)"
run rm early >/dev/null
run --image jupyter --name late --ready-timeout 0 -d >/dev/null 2>"$dir/late" && fail "a launch without time to start succeeds"
grep -q "hint: give it more time with .--ready-timeout SECONDS.*; .gpurun logs late. shows" "$dir/late" || fail "a late launch says: $(cat "$dir/late")"
run rm late >/dev/null
echo "ok: a launch that is too late says what to do"

hash=$(run token --algorithm sha256 --password-file "$dir/password")
url=$(run --image jupyter --rm --name hashed -d --password-hash "$hash" -p 127.0.0.1:9000:8888)
expect "1+1 by a password known as a hash" 2 "$(on "$here" python3 tests/notebook.py "$url" password "$dir/password" 1+1)"
run stop hashed >/dev/null

url=$(run --image jupyter --rm --name based -d --jupyter-arg=--ServerApp.base_url=/alice -p 127.0.0.1:9000:8888)
expect "the URL has the person's base_url" "http://127.0.0.1:9000/alice/" "${url%%\?*}"
expect "and a kernel answers below it" 2 "$(on "$here" python3 tests/notebook.py "$url" token - 1+1)"
run stop based >/dev/null
. tests/jupyter/owners.sh
. tests/jupyter/browser.sh
. tests/jupyter/sharing.sh
# The servers that images of the CUDA 10 days have: the classic notebook, which knows none of today's settings.
mkdir "$dir/old"
cat >"$dir/old/Containerfile" <<'EOF'
FROM jupyter
USER root
ARG PACKAGES
RUN --mount=type=cache,target=/root/.cache/pip python3 -m venv /opt/old && /opt/old/bin/pip install --quiet --no-compile --disable-pip-version-check $PACKAGES
USER jovyan
ENV PATH=/opt/old/bin:/usr/local/bin:/usr/bin:/bin
CMD ["jupyter-notebook"]
EOF
old() { # VERSION PACKAGES…: by password, by token, by a hash of its day; refused without
    local version=$1
    "$gpurun" build --quiet --host-ca --network host -t old --build-arg "PACKAGES=notebook==$*" "$dir/old" >/dev/null || fail "an image with notebook $version does not build"
    expect "it is notebook $version" "$version" "$(run run --rm --network none old jupyter-notebook --version 2>/dev/null)"
    url=$(run --image old --rm --name old -d --password-file "$dir/password" -p 127.0.0.1:9000:8888)
    expect "notebook $version: 1+1 by password" 2 "$(on "$here" python3 tests/notebook.py "$url" password "$dir/password" 1+1)"
    expect "notebook $version: closed without it" 403 "$(on "$here" python3 -c 'import sys, urllib.request, urllib.error
try: print(urllib.request.urlopen(sys.argv[1] + "api/contents").status)
except urllib.error.HTTPError as error: print(error.code)' "$url")"
    run stop old >/dev/null
    url=$(run --image old --rm --name old -d -p 127.0.0.1:9000:8888)
    expect "notebook $version: 1+1 by token" 2 "$(on "$here" python3 tests/notebook.py "$url" token - 1+1)"
    run stop old >/dev/null
    url=$(run --image old --rm --name old -d --password-hash "$(run token --algorithm sha1 --password-file "$dir/password")" -p 127.0.0.1:9000:8888)
    expect "notebook $version: 1+1 by a sha1 hash" 2 "$(on "$here" python3 tests/notebook.py "$url" password "$dir/password" 1+1)"
    run stop old >/dev/null
}
old 6.5.7
old 6.0.3 'traitlets<5 tornado<6.2 jinja2<3.1 markupsafe<2.1 jupyter_client<7 ipykernel<6.0 ipython<8 nbconvert<6 pyzmq<25 jupyter_core<4.12 mistune<1 jsonschema<4 nbformat<5.2 setuptools<60'
expect "nothing is left" "" "$(run ps -aq)"
