"""Headless Chromium over its DevTools protocol, through a pair of pipes: nothing but Python's own library.

A `Browser` owns the process and a folder for its profile; a `Page` is one tab that has kept, since it was
opened, every request it made, every console message and every error. Single-threaded: events are filed
while an answer is awaited.
"""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time


class Browser:
    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="page-profile-")
        to_read, self.write_fd = os.pipe()
        self.read_fd, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers and events to 4.
        high = [os.dup2(fd, n) for fd, n in ((to_read, 63), (to_write, 64))]

        def place():
            os.dup2(63, 3)
            os.dup2(64, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             "--disable-background-networking", "--disable-component-update", "--no-first-run", "--mute-audio",
             "--disable-dev-shm-usage", "--force-color-profile=srgb", "--user-data-dir=" + self.profile,
             "about:blank"],
            pass_fds=(3, 4), preexec_fn=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (to_read, to_write, *high):
            os.close(fd)
        self.buffer, self.last_id, self.answers, self.pages = b"", 0, {}, {}

    def receive(self, limit_s):
        """Files one message, or returns False after limit_s."""
        end = time.monotonic() + limit_s
        while b"\0" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.read_fd], [], [], left)[0]:
                return False
            got = os.read(self.read_fd, 1 << 20)
            if not got:
                raise RuntimeError("the browser ended")
            self.buffer += got
        raw, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(raw)
        if "id" in message:
            self.answers[message["id"]] = message
        elif message.get("sessionId") in self.pages:
            self.pages[message["sessionId"]].event(message["method"], message["params"])
        return True

    def call(self, method, params=None, session=None, limit_s=30):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + limit_s
        while self.last_id not in self.answers:
            if time.monotonic() > end:
                raise TimeoutError(method)
            self.receive(end - time.monotonic())
        answer = self.answers.pop(self.last_id)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url, width=1280, height=860, dark=False, phone=False):
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(domain + ".enable")
        page.call("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone})
        page.colours("dark" if dark else "light")
        page.load("Page.navigate", {"url": url})
        return page

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired, OSError):
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.requests, self.complaints = [], []

    def call(self, method, params=None, **more):
        return self.browser.call(method, params, self.session, **more)

    def load(self, method, params=None):
        """Navigates or reloads, and waits for the new document."""
        self.js("window.left = true")
        self.call(method, params)
        self.until("!window.left && document.readyState === 'complete'")

    def event(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append("console: " + " ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append("exception: " + details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append("log: " + params["entry"]["text"] + " " + params["entry"].get("url", ""))

    def js(self, expression):
        """The value of a JavaScript expression (awaited)."""
        got = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in got:
            raise AssertionError(expression + ": " + got["exceptionDetails"].get("exception", {}).get("description", "?"))
        return got["result"].get("value")

    def until(self, expression, limit_s=15):
        """Waits until the expression is true."""
        end = time.monotonic() + limit_s
        while not self.js(expression):
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit_s} s: {expression}\n{self.js('document.body.innerText')}")
            self.browser.receive(0.03)

    def key(self, key, text="", modifiers=0, code=0):
        base = {"key": key, "code": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", "text": text, **base})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **base})

    def type(self, text):
        self.call("Input.insertText", {"text": text})

    def click(self, selector):
        """A real click in the middle of the element, which must be what lies there."""
        at = self.js(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            if (!e) return null; e.scrollIntoView({{block: 'center'}});
            const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;
            const hit = document.elementFromPoint(x, y);
            return hit && (e.contains(hit) || hit.contains(e)) ? [x, y] : null; }})()""")
        if not at:
            raise AssertionError("nothing to click: " + selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1})

    def colours(self, scheme):
        self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def network(self, bytes_per_s=-1, latency_ms=0, offline=False):
        self.call("Network.emulateNetworkConditions",
                  {"offline": offline, "latency": latency_ms, "downloadThroughput": bytes_per_s, "uploadThroughput": -1})

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", {"format": "png"})["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))
