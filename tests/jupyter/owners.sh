# Whose the files are that a notebook writes to the host, and what it can do with them. Sourced by tests/jupyter.sh.

# A shared directory of this owner, empty.
shared() { # OWNER
    rm -rf "$dir/files"
    mkdir "$dir/files"
    chown "$1" "$dir/files"
}
# Launches in it with the password; the notices go to $dir/notices.
launch() { # FLAGS…
    run --image jupyter --rm --name own -d --password-file "$dir/password" -p 127.0.0.1:9000:8888 "$@" 2>"$dir/notices"
}
cell() { on "$here" python3 tests/notebook.py http://127.0.0.1:9000/ password "$dir/password" "$1"; }
attack() { # NAME OWNER FLAGS…: what the container's user and its root try leaves nothing
    local name=$1 owner=$2
    shift 2
    echo "a program" >"$dir/files/existing"
    chown "$owner" "$dir/files/existing"
    launch -v "$dir/files:/work/share" "$@" >/dev/null || fail "$name: $(cat "$dir/notices")"
    cell 'open("from-notebook", "w").write("x"); 0' >/dev/null
    expect "$name: whose the notebook's file is" "$owner" "$(stat -c %u:%g "$dir/files/from-notebook")"
    for user in 0 1000; do
        # What one of them made is not in the way of the next.
        find "$dir/files" -mindepth 1 ! -name existing ! -name from-notebook -delete
        run exec -i -u "$user" own python3 - /work/share <tests/jupyter/attack.py >/dev/null || fail "$name: the attack as $user did not run"
        expect "$name: what uid $user can leave on the host" harmless "$(python3 tests/jupyter/harmless.py "$dir/files" "$owner")"
    done
    run stop own >/dev/null
}
shared 1000:1000
SUDO_UID=1000 SUDO_GID=1000 attack "the caller has the image user's number" 1000:1000
shared 1000:1000
SUDO_UID=1000 SUDO_GID=1000 attack "the notebook is root, the caller is not" 1000:1000 -u 0
shared 1234:1235
attack "root shares the directory of a user, as an unknown user" 1234:1235 -u 1001

# A directory that cannot be written is reported, and the command in the notice helps.
shared 0:0
launch -v "$dir/files:/work/share" >/dev/null
expect "root's directory cannot be written" "no" "$(cell 'import os; print("yes" if os.access(".", os.W_OK) else "no")')"
run stop own >/dev/null
grep -q "cannot write to .*belongs to root .*uid 1000" "$dir/notices" || fail "no notice about root's directory: $(cat "$dir/notices")"
command=$(sed -n 's/.*run `\(chown [^`]*\)`.*/\1/p' "$dir/notices")
bash -c "$command" || fail "the notice's command fails: $command"
launch -v "$dir/files:/work/share" >/dev/null
expect "after the notice's command it can" "yes" "$(cell 'open("x", "w"); print("yes")')"
run stop own >/dev/null

# A home that cannot be written: HOME is elsewhere, and Jupyter and IPython work.
home() { # NAME NOTICE FLAGS…
    local name=$1 notice=$2
    shift 2
    launch "$@" >/dev/null || fail "$name: $(cat "$dir/notices")"
    grep -q "$notice" "$dir/notices" || fail "$name: no notice with \`$notice\`: $(cat "$dir/notices")"
    expect "$name: HOME can be written" "yes" \
        "$(cell 'import os, tempfile; open(os.environ["HOME"] + "/x", "w"); tempfile.TemporaryFile(); open("in-the-first-directory", "w"); print("yes")')"
    run stop own >/dev/null
}
shared 0:0
install -d -o 1000 -g 1000 "$dir/mine"
home "a user without an entry in /etc/passwd" "uid 12345 has no entry" -u 12345
home "root's directory is the home" "belongs to root, and the notebook's user (uid 1000)" -v "$dir/mine:/work/share" -v "$dir/files:/home/jovyan"
home "a read-only root directory" "is read-only" --read-only

# The configuration in a mounted home was written for another place.
shared 1234:1235
mkdir "$dir/files/.jupyter"
cat >"$dir/files/.jupyter/jupyter_server_config.py" <<'CONFIG'
c.ServerApp.base_url = "/hub/alice/"
c.ServerApp.certfile = "/nowhere/cert.pem"
c.ServerApp.allow_origin = "https://hub.example"
c.ServerApp.allow_remote_access = False
c.ServerApp.sock = "/tmp/jupyter.sock"
c.ServerApp.port = 9999
c.ServerApp.identity_provider_class = "jupyter_server.auth.identity.LegacyIdentityProvider"
CONFIG
echo '{"NotebookApp": {"base_url": "/old/", "certfile": "/nowhere/cert.pem", "password": ""}}' >"$dir/files/.jupyter/jupyter_notebook_config.json"
expect "the URL where a mounted home has another base_url" "http://127.0.0.1:9000/" "$(launch -v "$dir/files:/home/jovyan")"
expect "and it answers there" 2 "$(cell 1+1)"
run stop own >/dev/null
expect "an argument that would hide the server is refused" 2 "$(launch --jupyter-arg=--ServerApp.certfile=/x.pem; echo $?)"

# What a launch shows: progress, and the announcement last. Jupyter's log knows nothing of gpurun's own requests.
on "$here" script -qefc "$gpurun --image jupyter --rm --name own --password-file $dir/password -p 9000:8888" "$dir/screen" </dev/null >/dev/null &
script=$!
for _ in $(seq 1200); do
    if grep -q "^ctrl-c stops \|^error" "$dir/screen" 2>/dev/null || ! kill -0 $script 2>/dev/null; then break; fi
    sleep 0.1
done
grep -q "^ctrl-c stops " "$dir/screen" || fail "no announcement on the terminal within two minutes"
run logs own >"$dir/log" 2>&1
on "$here" python3 tests/notebook.py http://127.0.0.1:9000/ password "$dir/password" 1+1 >/dev/null || fail "the notebook on the terminal does not answer"
run stop own >/dev/null
wait $script || true
grep -q "waiting for Jupyter" "$dir/screen" || fail "no progress on the terminal"
shown=$(tr -d '\r' <"$dir/screen" | grep -n "Serving notebooks\|is ready" | cut -d: -f1 | tr '\n' ' ')
[ "$(tr -d '\r' <"$dir/screen" | grep "Serving notebooks\|is ready" | tail -1 | grep -c "is ready")" -eq 1 ] || fail "the announcement is not last: $shown"
echo "ok: the announcement comes last"
expect "requests of gpurun, and URLs, in Jupyter's log" "" "$(grep -E ' 40[13] |gpurun=|https?://|logged in|wrote error|Forbidden' "$dir/log" || true)"
