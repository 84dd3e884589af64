#!/usr/bin/env python3
"""What the daemon does when its device breaks under it (fault.cu): with requests running, and idle.
Clients must get an error, never half an answer as if it were whole; the process must end with the
exit status for a lost device, soon; the card must serve a new process.

    fault.py BUILD_DIR"""
import http.client, json, os, signal, socket, subprocess, sys, tempfile, threading, time

BUILD = os.path.abspath(sys.argv[1])
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXIT_DEVICE, SOON_S = 70, 10
NO_DEVICE = "no CUDA device"


def say(text):
    print("fault: " + text, flush=True)


class Daemon:
    def __init__(self, folder):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.trigger = os.path.join(folder, "break")
        self.log = open(os.path.join(folder, "log"), "w+")
        environment = dict(os.environ, LD_PRELOAD=os.path.join(BUILD, "gpu-fault.so"), BITDELTA_FAULT=self.trigger)
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "bitdeltad"), "--device", "cuda", "--base", os.path.join(ROOT, "demo/base"),
             "--listen", "127.0.0.1:%d" % self.port], stderr=self.log, env=environment)
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            try:
                if self.call("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        self.end()
        said = self.said()
        if NO_DEVICE in said:
            print("skipped: " + NO_DEVICE)
            sys.exit(0)
        sys.exit("fault: the daemon does not start:\n" + said)

    def end(self):
        """However a case ends: a daemon left alone would keep all memory of the card."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def call(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON_S)
        c.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        r = c.getresponse()
        return r.status, r.read().decode()

    def complete(self, **more):
        return self.call("POST", "/v1/completions", dict(model="base", prompt="The", max_tokens=8, temperature=0, **more))

    def break_device(self):
        open(self.trigger, "w").close()

    def expect_end(self, since):
        try:
            status = self.process.wait(SOON_S)
        except subprocess.TimeoutExpired:
            sys.exit("fault: still running %d s after the device broke:\n%s" % (SOON_S, self.said()))
        if status != EXIT_DEVICE or "fault: " not in self.said():
            sys.exit("fault: exit status %d, not %d:\n%s" % (status, EXIT_DEVICE, self.said()))
        say("exit status %d after %.2f s" % (status, time.monotonic() - since))


def with_requests_running(d):
    """Streams one after the other from four clients until each was told of the end."""
    whole, broken, wrong, lock = [], [], [], threading.Lock()

    def client():
        while True:
            try:
                status, text = d.call("POST", "/v1/completions", {
                    "model": "base", "prompt": "The", "max_tokens": 300, "ignore_eos": True, "stream": True})
            except (OSError, http.client.HTTPException) as e:
                status, text = 0, repr(e)
            ended = "[DONE]" in text and '"error"' not in text
            with lock:
                (whole if status == 200 and ended else broken).append((status, text[-300:]))
                if status == 200 and not ended and '"error"' not in text:
                    wrong.append(text[-300:])
            if not ended:
                return

    clients = [threading.Thread(target=client) for _ in range(4)]
    for c in clients:
        c.start()
    time.sleep(1)
    since = time.monotonic()
    d.break_device()
    for c in clients:
        c.join()
    if not whole or len(broken) != len(clients) or wrong:
        sys.exit("fault: %d whole, broken: %s, cut without an error: %s" % (len(whole), broken, wrong))
    say("%d streams whole before, then each of %d clients an error: %s" % (len(whole), len(broken), broken[0]))
    d.expect_end(since)


def while_idle(d):
    """Nothing runs when the device breaks: the next request finds out."""
    status, text = d.complete()
    if status != 200:
        sys.exit("fault: status %d before anything broke: %s" % (status, text))
    d.break_device()
    time.sleep(0.5)
    since = time.monotonic()
    status, text = d.complete()
    if status < 500:
        sys.exit("fault: status %d after the device broke: %s" % (status, text))
    say("idle, then a request: status %d %s" % (status, text.strip()))
    d.expect_end(since)


def again(d):
    """The card is as it was."""
    status, text = d.complete()
    d.process.terminate()
    if status != 200 or d.process.wait(SOON_S) != 0:
        sys.exit("fault: a new process does not serve: %d %s\n%s" % (status, text, d.said()))
    say("a new process serves")


signal.signal(signal.SIGTERM, lambda *_: sys.exit("fault: told to stop"))
for case in (with_requests_running, while_idle, again):
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(folder)
        try:
            case(daemon)
        finally:
            daemon.end()
