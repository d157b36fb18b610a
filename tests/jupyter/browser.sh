# The notebook in a real browser on the second machine. Sourced by tests/jupyter.sh, behind owners.sh.

mkdir "$dir/index"
# Not by `on`: $! would be the function's shell, and the server would outlive it.
nsenter --net="/run/netns/$here" python3 tests/jupyter/index.py "$dir/index" 192.0.2.1 8443 2>/dev/null &
index=$!
until [ -e "$dir/index/ready" ]; do kill -0 $index || fail "the package index does not start"; sleep 0.1; done
# As a lab's administrator sets it up: an index of its own, behind a certificate of its own.
lab=(env SSL_CERT_FILE="$dir/index/ca.pem" PIP_INDEX_URL=https://192.0.2.1:8443/simple)
browse() { # NAME OWNER URL HOW FILE STEPS…
    local name=$1 owner=$2
    shift 2
    on "$there" env GPURUN_SCREENSHOT="${GPURUN_SCREENSHOTS:-$dir}/browser.png" python3 tests/jupyter/browser.py "$@" save 'terminal=id >from-terminal' ||
        fail "$name: in the browser"
    for _ in $(seq 100); do [ -s "$dir/files/from-terminal" ] && break; sleep 0.1; done
    expect "$name: whose the terminal's file is" "$owner" "$(stat -c %u:%g "$dir/files/from-terminal")"
    expect "$name: whose the notebook is" "$owner" "$(stat -c %u:%g "$dir/files/Untitled.ipynb")"
    grep -q "print(6" "$dir/files/Untitled.ipynb" || fail "$name: the notebook was not saved"
    run stop own >/dev/null
}
pip=('cell=%pip install gpurun-test-package=>Successfully installed' 'cell=import gpurun_test_package as p; p.ANSWER=>from the index of the lab')

# By password, as the caller behind sudo.
shared 1500:1500
url=$(SUDO_UID=1500 SUDO_GID=1500 on "$here" "${lab[@]}" "$gpurun" --image jupyter --rm --name own -d --host-ca --password-file "$dir/password" -v "$dir/files:/work/share" -p 9000:8888 2>/dev/null)
browse "the caller's directory" 1500:1500 "${url/127.0.0.1/192.0.2.1}" password "$dir/password" 'cell=print(6*7)=>42' "${pip[@]}"
# By token, as root with the directory of a user, and as a user that the image does not know.
shared 1234:1235
url=$(on "$here" "${lab[@]}" "$gpurun" --image jupyter --rm --name own -d --host-ca -u 1001 -v "$dir/files:/work/share" -p 9000:8888 2>/dev/null)
browse "a third user's directory" 1234:1235 "${url/127.0.0.1/192.0.2.1}" token - 'cell=print(6*7)=>42' "${pip[@]}"
# Root's own directory: the notice's command makes it the notebook's.
shared 0:0
launch -v "$dir/files:/work/share" >/dev/null
run stop own >/dev/null
bash -c "$(sed -n 's/.*run `\(chown [^`]*\)`.*/\1/p' "$dir/notices")"
url=$(run --image jupyter --rm --name own -d -v "$dir/files:/work/share" -p 9000:8888 2>/dev/null)
browse "root's directory, given away" 1000:1000 "${url/127.0.0.1/192.0.2.1}" token - 'cell=print(6*7)=>42'
kill $index
