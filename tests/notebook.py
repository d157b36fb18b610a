"""Opens a notebook server as a person would: logs in over HTTP, runs one cell in a kernel, prints what it answers.

    notebook.py URL password FILE CODE      log in with the password in FILE
    notebook.py URL token - CODE            URL holds the token

With `--create` behind CODE, it first creates a notebook, as the first click on "Python 3" does, and prints its name.

Needs nothing but Python: a small WebSocket client (RFC 6455) is below.
"""

import base64
import http.cookiejar
import json
import os
import select
import socket
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid


class Server:
    """A logged-in visitor."""

    def __init__(self, url):
        self.parts = urllib.parse.urlsplit(url)
        self.base = f"http://{self.parts.netloc}{self.parts.path}"
        self.token = urllib.parse.parse_qs(self.parts.query).get("token", [None])[0]
        self.cookies = http.cookiejar.CookieJar()
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)]
        self.opener = urllib.request.build_opener(*handlers)

    def ask(self, path, data=None, form=False):
        """One request; JSON in, JSON out (a form for the login)."""
        headers = {}
        if self.token:
            headers["Authorization"] = f"token {self.token}"
        xsrf = next((cookie.value for cookie in self.cookies if cookie.name == "_xsrf"), None)
        if data is not None and form:
            data = urllib.parse.urlencode({**data, "_xsrf": xsrf or ""}).encode()
        elif data is not None:
            headers |= {"Content-Type": "application/json", "X-XSRFToken": xsrf or ""}
            data = json.dumps(data).encode()
        request = urllib.request.Request(urllib.parse.urljoin(self.base, path), data, headers)
        with self.opener.open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith((b"{", b"[")) else text

    def refused(self, path):
        """Whether a visitor without a login is sent away."""
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.parse.urljoin(self.base, path), timeout=30)
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        return False

    def run(self, code):
        """Runs a cell in a fresh kernel; what it prints and answers."""
        kernel = self.ask("api/kernels", {})["id"]
        try:
            return self.execute(kernel, code)
        finally:
            request = urllib.request.Request(urllib.parse.urljoin(self.base, f"api/kernels/{kernel}"), method="DELETE")
            if self.token:
                request.add_header("Authorization", f"token {self.token}")
            for cookie in self.cookies:
                if cookie.name == "_xsrf":
                    request.add_header("X-XSRFToken", cookie.value)
            self.opener.open(request, timeout=30)

    def execute(self, kernel, code):
        channel = WebSocket(self, f"api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}")
        wait_for_output(channel)
        message = channel.request("execute_request", {
            "code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True,
        })
        said = []
        while True:
            answer = json.loads(channel.receive())
            if answer["parent_header"].get("msg_id") != message:
                continue
            kind, content = answer["msg_type"], answer["content"]
            if kind == "stream":
                said.append(content["text"])
            elif kind == "execute_result":
                said.append(content["data"]["text/plain"])
            elif kind == "error":
                raise SystemExit("the cell failed: " + content["evalue"])
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(said).strip()


def wait_for_output(channel):
    """Waits until what a kernel prints arrives here.

    The server subscribes to a kernel's output while the kernel already works. Servers before notebook 6.2 do not wait until this is done: what the
    kernel prints before is lost. So this asks for the kernel's name until the state of such a request has arrived.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        message = channel.request("kernel_info_request", {})
        while channel.has_data(1):
            answer = json.loads(channel.receive())
            if answer["msg_type"] == "status" and answer["parent_header"].get("msg_id") == message and answer["content"]["execution_state"] == "idle":
                return
    raise SystemExit("the kernel's output did not arrive within 60 s")


class WebSocket:
    """As much of RFC 6455 as a kernel's channel needs."""

    def __init__(self, server, path):
        host, port = server.parts.hostname, server.parts.port or 80
        self.session = uuid.uuid4().hex
        self.socket = socket.create_connection((host, port), timeout=60)
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in server.cookies)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {server.parts.path}{path} HTTP/1.1", f"Host: {server.parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Cookie: {cookies}"]
        if server.token:
            lines.append(f"Authorization: token {server.token}")
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            byte = self.socket.recv(1)
            if not byte:
                raise SystemExit("the server closed the connection")
            head += byte
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise SystemExit("no websocket: " + head.decode(errors="replace").splitlines()[0])

    def send(self, text, opcode=1):
        data, mask = text.encode() if isinstance(text, str) else text, os.urandom(4)
        size = len(data)
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        self.socket.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def request(self, kind, content):
        """A message to the kernel; its id."""
        message = uuid.uuid4().hex
        self.send(json.dumps({
            "header": {"msg_id": message, "msg_type": kind, "username": "", "session": self.session, "version": "5.3", "date": ""},
            "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [], "content": content,
        }))
        return message

    def has_data(self, seconds):
        """Whether something arrives within this time."""
        return bool(select.select([self.socket], [], [], seconds)[0])

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise SystemExit("the kernel's channel was closed")
            data += more
        return data

    def receive(self):
        text = b""
        while True:
            first, second = self.exactly(2)
            size = second & 0x7F
            if size == 126:
                size = struct.unpack("!H", self.exactly(2))[0]
            elif size == 127:
                size = struct.unpack("!Q", self.exactly(8))[0]
            data = self.exactly(size)
            opcode = first & 0x0F
            if opcode == 9:
                self.send(data, 10)
            elif opcode in (0, 1, 2):
                text += data
                if first & 0x80:
                    return text


def main():
    url, how, file, code, *create = sys.argv[1:]
    server = Server(url)
    if not server.refused("api/contents"):
        raise SystemExit("the server shows its files to anybody")
    if how == "password":
        server.ask("login")
        with open(file) as secret:
            server.ask("login", {"password": secret.readline().rstrip("\n")}, form=True)
    server.ask("api/contents")
    if create == ["--create"]:
        print(server.ask("api/contents", {"type": "notebook"})["path"])
    print(server.run(code))


main()
