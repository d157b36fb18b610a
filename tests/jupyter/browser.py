"""Uses a notebook as a person does, in a real browser: Chromium, driven over the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

    browser.py URL token - [STEP…]          URL holds the token
    browser.py URL password FILE [STEP…]    log in with the password in FILE

After the login it clicks "Python 3" in the launcher, which creates a notebook, and then does the steps, in their order:

    cell=CODE=>TEXT     type CODE into the next cell, run it, and wait until its output contains TEXT
    save                save the notebook (as Untitled.ipynb)
    terminal=LINE       open a terminal and type LINE
    refused             (instead of all others) the browser refuses the certificate of the page

GPURUN_BROWSER_FLAGS adds flags of Chromium. GPURUN_SCREENSHOT names a file for a picture of the last state; it is written after a failure, too. Needs chromium and chromedriver.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Seconds for a page to load or a cell to run, on a machine that does other things as well.
PATIENCE = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
CONTROL, SHIFT, ENTER = "\ue009", "\ue008", "\ue007"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000"]


class WebDriverError(Exception):
    """What the driver answered."""


class Browser:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="gpurun-browser.")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(os.path.join(self.dir, "log"), "w+")
        self.driver = subprocess.Popen(["chromedriver", f"--port={self.port}"], stdout=self.log, stderr=self.log)
        self.session = None
        until("the driver answers", lambda: self.command("GET", "/status")["ready"])
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, *os.environ.get("GPURUN_BROWSER_FLAGS", "").split(), f"--user-data-dir={self.dir}/profile"]}
        answer = self.command("POST", "/session", {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}})
        self.session = answer["sessionId"]

    def close(self):
        if self.session:
            self.command("DELETE", f"/session/{self.session}")
        self.driver.terminate()
        self.driver.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def command(self, method, path, body=None):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise WebDriverError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def do(self, method, path, body=None):
        return self.command(method, f"/session/{self.session}{path}", body)

    def all(self, selector):
        return [item[ELEMENT] for item in self.do("POST", "/elements", {"using": "css selector", "value": selector})]

    def text(self, selector):
        """The texts of all elements, also of those that are scrolled out of sight."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join('\\n')"
        return self.do("POST", "/execute/sync", {"script": script, "args": [selector]})

    def find(self, selector):
        return until(f"`{selector}` is on the page", lambda: self.all(selector))[0]

    def click(self, selector):
        """Clicks the first element that is visible, as soon as nothing covers it any more."""
        def attempt():
            visible = [element for element in self.all(selector) if self.do("GET", f"/element/{element}/displayed")]
            if visible:
                self.do("POST", f"/element/{visible[0]}/click")
            return bool(visible)
        until(f"`{selector}` can be clicked", attempt)

    def write(self, selector, text):
        def attempt():
            elements = self.all(selector)
            if elements:
                self.do("POST", f"/element/{elements[-1]}/value", {"text": text})
            return bool(elements)
        until(f"`{selector}` takes text", attempt)

    def keys(self, *keys):
        """Presses the keys together, where the focus is."""
        actions = [{"type": "keyDown", "value": key} for key in keys] + [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def type(self, text):
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.do("GET", "/screenshot")))


def until(what, condition):
    """Waits for a condition; what the page does not have yet is no failure."""
    end = time.monotonic() + PATIENCE
    last = None
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except (WebDriverError, urllib.error.URLError, ConnectionError) as error:
            last = error
        time.sleep(0.1)
    raise SystemExit(f"not within {PATIENCE} s: {what}" + (f" ({last})" if last else ""))


def log_in(browser, url, how, file):
    browser.do("POST", "/url", {"url": url})
    if how == "password":
        with open(file) as secret:
            browser.write("#password_input", secret.readline().rstrip("\n"))
        browser.click("#login_submit")
    browser.find("#jp-main-dock-panel")


def no_dialog(browser):
    """An error that Jupyter shows is the answer, and not a reason to wait."""
    if text := browser.text(".jp-Dialog-content"):
        raise SystemExit(f"Jupyter shows a dialog: {text}")


def create(browser):
    browser.click('.jp-LauncherCard[data-category="Notebook"][title^="Python 3"]')

    def ready():
        no_dialog(browser)
        # The status bar; the notebook's own indicator is idle before there is a kernel.
        return "| Idle" in browser.text("#jp-bottom-panel")
    until("the notebook has a kernel", ready)


def cell(browser, code, expected):
    outputs = ".jp-NotebookPanel .jp-Notebook .jp-OutputArea-output"
    # Typed as one text: the editor would close brackets and quotes itself, so that they are typed over.
    browser.click(".jp-NotebookPanel .jp-Notebook .jp-Cell.jp-mod-active .cm-content")
    browser.type(code)
    browser.keys(SHIFT, ENTER)

    def answered():
        no_dialog(browser)
        text = browser.text(outputs)
        if "Traceback" in text or "ERROR:" in text:
            raise SystemExit(f"the cell `{code}` failed: {text}")
        return expected in text
    until(f"the cell `{code}` answers `{expected}`", answered)


def save(browser):
    browser.keys(CONTROL, "s")

    def saved():
        # The first time it asks for a name.
        if accept := browser.all(".jp-Dialog .jp-mod-accept"):
            if "Untitled" in browser.text(".jp-Dialog-header") or browser.all(".jp-Dialog .jp-new-name-input, .jp-Dialog input"):
                browser.do("POST", f"/element/{accept[0]}/click")
                return False
            no_dialog(browser)
        return not browser.all(".jp-Dialog") and not browser.all(".jp-NotebookPanel.jp-mod-dirty, .lm-TabBar-tab.jp-mod-dirty")
    until("the notebook is saved", saved)


def terminal(browser, line):
    browser.click(".lm-TabBar-addButton")
    browser.click('.jp-LauncherCard[title="Start a new terminal session"]')
    until("the terminal has a prompt", lambda: browser.all(".jp-Terminal:not(.lm-mod-hidden) .xterm-helper-textarea"))
    browser.click(".jp-Terminal:not(.lm-mod-hidden) .xterm-screen")
    browser.write(".jp-Terminal:not(.lm-mod-hidden) .xterm-helper-textarea", line + ENTER)


def refused(browser, url):
    """The navigation fails, or the browser shows its warning."""
    mark = "ERR_CERT_AUTHORITY_INVALID"
    try:
        browser.do("POST", "/url", {"url": url})
    except WebDriverError as error:
        if mark in str(error):
            return
        raise
    until("the browser refuses the certificate", lambda: mark in browser.do("GET", "/source"))


def main():
    url, how, file, *steps = sys.argv[1:]
    browser = Browser()
    try:
        if steps == ["refused"]:
            return refused(browser, url)
        log_in(browser, url, how, file)
        create(browser)
        for step in steps:
            name, _, rest = step.partition("=")
            if name == "cell":
                cell(browser, *rest.split("=>"))
            elif name == "save":
                save(browser)
            elif name == "terminal":
                terminal(browser, rest)
            else:
                raise SystemExit(f"there is no step `{step}`")
    finally:
        if picture := os.environ.get("GPURUN_SCREENSHOT"):
            browser.screenshot(picture)
        browser.close()


main()
