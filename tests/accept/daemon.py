"""The daemon under acceptance: started on a free port with the demo's models, stopped at the end."""
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
BASE = os.path.join(ROOT, "demo", "base")
TENANTS = os.path.join(ROOT, "demo", "tenants")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    """with Daemon("--option", "value") as d: d.url, d.admin"""

    def __init__(self, *options, key=None):
        self.options, self.key = list(options), key

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        port, admin = free_port(), free_port()
        self.url, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        if self.key:
            path = os.path.join(self.folder.name, "keys")
            with open(path, "w") as f:
                f.write(self.key + "\n")
            self.options += ["--api-key-file", path]
        self.log = open(os.path.join(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "bitdeltad"), "--base", BASE, "--deltas", TENANTS, "--listen", f"127.0.0.1:{port}",
             "--admin", f"127.0.0.1:{admin}", "--log-level", "warn", *self.options], stderr=self.log)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url + "/health")
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        self.__exit__(None, None, None)
        sys.exit("accept: the daemon does not start")

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(20)
        self.log.seek(0)
        said = self.log.read()
        self.folder.cleanup()
        if status != 0 or error[0]:
            print(said[-4000:], file=sys.stderr)
        if status != 0 and not error[0]:
            sys.exit(f"accept: the daemon ended with status {status}")


def run(tests):
    """Runs the functions, prints a line each; the first failure ends it with its traceback."""
    for test in tests:
        start = time.monotonic()
        test()
        print(f"pass  {test.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
