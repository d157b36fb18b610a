"""A package index with one package, over HTTPS: index.py DIRECTORY ADDRESS PORT

Makes a certificate authority (DIRECTORY/ca.pem) that no system knows, and serves `gpurun-test-package` for pip.
"""

import base64
import hashlib
import http.server
import os
import ssl
import subprocess
import sys
import zipfile

directory, address, port = sys.argv[1:]
os.chdir(directory)
name = "gpurun_test_package"
wheel = f"simple/gpurun-test-package/{name}-1.0-py3-none-any.whl"
os.makedirs(os.path.dirname(wheel), exist_ok=True)
files = {
    f"{name}.py": "ANSWER = 'installed from the index of the lab'\n",
    f"{name}-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: gpurun-test-package\nVersion: 1.0\n",
    f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
digest = lambda text: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
files[f"{name}-1.0.dist-info/RECORD"] = record + f"{name}-1.0.dist-info/RECORD,,\n"
with zipfile.ZipFile(wheel, "w") as archive:
    for path, text in files.items():
        archive.writestr(path, text)
with open("simple/gpurun-test-package/index.html", "w") as page:
    page.write(f'<a href="{os.path.basename(wheel)}">{os.path.basename(wheel)}</a>')
openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab", "-addext", f"subjectAltName=IP:{address}"]
subprocess.run([*openssl, "-keyout", "key.pem", "-out", "ca.pem"], check=True, capture_output=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("ca.pem", "key.pem")
server = http.server.ThreadingHTTPServer((address, int(port)), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
open("ready", "w").close()
server.serve_forever()
