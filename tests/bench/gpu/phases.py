#!/usr/bin/env python3
"""Runs a command of the tool in a terminal of its own; prints how long each phase of its progress bar
took, the most memory that it held and that the first GPU had in use. What the tool prints besides
comes behind.

    phases.py bitdelta compress --device cuda ..."""
import os, pty, re, shutil, signal, subprocess, sys, threading, time

BAR = re.compile(r"\r?([a-z][a-z ]{2,20}?) *\[[#.]{30}\] +(\d+) %")
peak = {"device": 0, "host": 0}
ended = threading.Event()


def watch(pid):
    query = ["nvidia-smi", "-i", os.environ.get("CUDA_VISIBLE_DEVICES") or "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while not ended.wait(0.2):
        try:
            if shutil.which("nvidia-smi"):
                used = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
                peak["device"] = max(peak["device"], int(used))
            with open("/proc/%d/status" % pid) as f:
                text = f.read()
            for name in ("RssAnon", "VmHWM"):
                peak[name] = max(peak.get(name, 0),
                                 int(re.search(name + r":\s+(\d+)", text).group(1)) >> 10)
        except (OSError, AttributeError, IndexError, ValueError):
            pass


def tell(phase, before):
    name, began, end, first, last = phase
    rate = (last - first) / (end - began) if end > began else 0
    print("%-14s %7.1f s" % (name, end - before) +
          ("   (%.2f %% a second)" % rate if rate else ""), flush=True)


def finish(*_):
    if phase:
        tell(phase, before)
    print("%-14s %7.1f s" % ("all", time.time() - start))
    print("device %d MiB; host %s MiB of its own, %s MiB with mapped files" %
          (peak["device"], peak.get("RssAnon"), peak.get("VmHWM")))
    print(re.sub(r"[\r ]{2,}", " ", rest).strip()[-4000:], flush=True)
    ended.set()
    if _:
        os.kill(pid, signal.SIGKILL)
        os._exit(1)


pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
threading.Thread(target=watch, args=(pid,), daemon=True).start()
signal.signal(signal.SIGTERM, finish)
start = before = time.time()
phase, rest = None, ""  # name, first and last time it was seen, and what part of it was done then
while True:
    try:
        chunk = os.read(terminal, 65536).decode(errors="replace")
    except OSError:
        break
    if not chunk:
        break
    for piece in re.split(r"(?=\r)", chunk):
        m, now = BAR.match(piece), time.time()
        if m and (not phase or m.group(1) != phase[0]):
            if phase:
                tell(phase, before)
                before = phase[2]
            phase = [m.group(1), now, now, float(m.group(2)), 0]
        if m:
            phase[2], phase[4] = now, float(m.group(2))
        elif piece.strip():
            rest += piece
_, status = os.waitpid(pid, 0)
finish()
sys.exit(os.waitstatus_to_exitcode(status))
