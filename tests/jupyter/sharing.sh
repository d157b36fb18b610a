# A notebook on a shared machine: its URL again, its time, and HTTPS. Sourced by tests/jupyter.sh, behind browser.sh.

contains() { case $2 in *"$3"*) echo "ok: $1" ;; *) fail "$1: no \`$3\` in: $2" ;; esac; }
# The kernels, or a new one without a client: URL [BODY]
kernels() { on "$here" python3 -c 'import sys, urllib.parse as p, urllib.request as r
url = sys.argv[1]; token = p.parse_qs(p.urlsplit(url).query)["token"][0]
body = sys.argv[2].encode() if len(sys.argv) > 2 else None
print(r.urlopen(r.Request(p.urljoin(url, "api/kernels"), body, {"Authorization": "token " + token})).read().decode())' "$@"; }

url=$(run --image jupyter --name again -d)
expect "the URL again" "$url" "$(run url again 2>/dev/null)"
expect "the URL as JSON, with its login" "$url token" "$(run url --json again | python3 -c 'import json, sys; all = json.load(sys.stdin); print(all["url"], all["login"])')"
run stop again >/dev/null
contains "no URL of a stopped notebook" "$(run url again 2>&1 || true)" "container \`again\` is not running"
run start again >/dev/null
expect "after a start, it waits for Jupyter, and the URL works" 2 "$(on "$here" python3 tests/notebook.py "$(run url again 2>/dev/null)" token - 1+1)"
run pause again >/dev/null
contains "why there is no URL" "$(run url --ready-timeout 1 again 2>&1 || true)" "gpurun resume again"
run rm -f again >/dev/null

# A busy kernel that uses no CPU, whose browser is closed; and a forgotten notebook with an idle kernel and an open port.
busy=$(run --image jupyter --name busy -d --idle-timeout 15s)
nsenter --net="/run/netns/$here" python3 tests/notebook.py "$busy" token - 'import time; time.sleep(1000)' >/dev/null 2>&1 &
script=$!
for _ in $(seq 600); do kernels "$busy" | grep -q '"busy"' && break; sleep 0.1; done
kill -9 $script
wait $script 2>/dev/null || true
expect "the kernel is busy without a browser" 1 "$(kernels "$busy" | grep -c '"busy"')"
forgotten=$(run --image jupyter --name forgotten -d --idle-timeout 15s --password-file "$dir/password" -p 127.0.0.1:9001:8888)
expect "1+1 in the notebook that will be forgotten" 2 "$(on "$here" python3 tests/notebook.py "$forgotten" password "$dir/password" 1+1)"
for _ in $(seq 1200); do [ "$(run ps -q --filter name=forgotten)" ] || break; sleep 0.1; done
contains "a forgotten notebook is stopped" "$(run ps -a --filter name=forgotten)" " idle-timeout "
contains "its log says so beforehand" "$(run logs forgotten 2>&1)" "this container is idle and will be stopped in"
expect "a busy kernel is not idle" busy "$(run ps --filter name=busy --format '{{.Names}}')"
if run logs busy 2>&1 | grep -q "is idle"; then fail "a busy kernel got a warning"; fi
if run logs busy 2>&1 | grep -q "GET /api/kernels"; then fail "gpurun's questions are in Jupyter's log"; fi
run rm -f busy forgotten >/dev/null
url=$(run --image jupyter --name idle -d --idle-timeout 15s)
kernels "$url" {} >/dev/null
for _ in $(seq 1200); do [ "$(run ps -q --filter name=idle)" ] || break; sleep 0.1; done
contains "an idle kernel does not keep it" "$(run ps -a --filter name=idle)" " idle-timeout "
run rm -f idle >/dev/null

# HTTPS, from the second machine. The generated certificate has the addresses of this host.
check() { on "$there" python3 -c 'import ssl, sys, urllib.request as r
context = ssl.create_default_context(cafile=sys.argv[1])
print(r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=context)).open(sys.argv[2] + "/api").status)' "$1" https://192.0.2.1:9000; }
contains "without --tls, a warning" "$(run --image jupyter --rm --name plain -d -p 9000:8888 2>&1 >/dev/null)" "cross the network unencrypted"
run stop plain >/dev/null
url=$(run --image jupyter --name own -d -p 9000:8888 --tls 2>"$dir/notices")
if grep -q unencrypted "$dir/notices"; then fail "a warning in spite of --tls"; fi
case $url in https://127.0.0.1:9000/?token=*) echo "ok: an https URL" ;; *) fail "not an https URL: $url" ;; esac
id=$(run inspect -f '{{.Id}}' own)
certificate=$GPURUN_ROOT/containers/$id/tls-cert.pem
fingerprint=$(openssl x509 -in "$certificate" -noout -fingerprint -sha256 | cut -d= -f2)
contains "the fingerprint is printed" "$(tr -d ' \n' <"$dir/notices")" "SHA-256$fingerprint"
expect "the names of the generated certificate" 200 "$(check "$certificate")"
expect "the owner and the mode of the key" "1000 600" "$(stat -c '%u %a' "$GPURUN_RUN/$id/jupyter/key.pem")"
run stop own >/dev/null && run start own >/dev/null
url=$(run url own 2>"$dir/notices")
contains "the same certificate after a start" "$(tr -d ' \n' <"$dir/notices")" "$fingerprint"
pin=$(openssl x509 -in "$certificate" -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64)
on "$there" env GPURUN_BROWSER_FLAGS="--ignore-certificate-errors-spki-list=$pin" python3 tests/jupyter/browser.py "${url/127.0.0.1/192.0.2.1}" token - 'cell=print(6*7)=>42' ||
    fail "HTTPS in the browser"
echo "ok: HTTPS in the browser, which accepts no other certificate"
if on "$there" python3 tests/jupyter/browser.py "${url/127.0.0.1/192.0.2.1}" token - refused 2>/dev/null; then echo "ok: a browser that does not know the certificate refuses it"; else fail "a browser without the certificate"; fi
run rm -f own >/dev/null
# A certificate of the lab.
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -addext subjectAltName=IP:192.0.2.1 -keyout "$dir/lab.key" -out "$dir/lab.pem" 2>/dev/null
url=$(cd "$dir" && run --image jupyter --rm --name own -d -p 9000:8888 --tls-cert lab.pem --tls-key lab.key --password-file password 2>/dev/null)
expect "a certificate of the lab" 200 "$(check "$dir/lab.pem")"
run stop own >/dev/null
contains "a key that does not fit" "$(run --image jupyter --rm -d --tls-cert "$dir/lab.pem" --tls-key "$dir/lab.pem" 2>&1 || true)" "contains no private key"
