"""inference-perf: a short streaming load spread over four tenants. No request may fail, and each tenant's share is answered."""
import json
import os
import subprocess
import sys
import tempfile

from daemon import BASE, Daemon

SHARES = {"math": 0.5, "sql": 0.25, "kjv": 0.125, "chat": 0.125}
RATE, SECONDS = 20, 8


def config(url, out):
    lengths = {"min": 8, "max": 48, "mean": 24, "std_dev": 8, "total_count": RATE * SECONDS}
    return {
        "api": {"type": "completion", "streaming": True},
        "data": {"type": "random", "input_distribution": lengths, "output_distribution": lengths},
        "load": {"type": "poisson", "stages": [{"rate": RATE, "duration": SECONDS}], "num_workers": 1,
                 "lora_traffic_split": [{"name": name, "split": share} for name, share in SHARES.items()]},
        "server": {"type": "vllm", "model_name": "base", "base_url": url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": BASE},
        "storage": {"local_storage": {"path": out}},
    }


def read(folder, name):
    with open(os.path.join(folder, name)) as f:
        return json.load(f)


with Daemon() as daemon, tempfile.TemporaryDirectory() as folder:
    out, file = os.path.join(folder, "out"), os.path.join(folder, "config.yml")
    with open(file, "w") as f:
        json.dump(config(daemon.url, out), f)  # JSON is YAML
    program = os.path.join(os.path.dirname(sys.executable), "inference-perf")
    r = subprocess.run([program, "--config_file", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
                       env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if r.returncode != 0:
        sys.exit(r.stdout[-6000:] + "\naccept: inference-perf failed")
    whole = read(out, "summary_lifecycle_metrics.json")
    good, bad = whole["successes"]["count"], whole["failures"]["count"]
    assert bad == 0 and good > RATE * SECONDS / 2, (good, bad)
    shares = {name: read(out, f"adapter_{name}_lifecycle_metrics.json")["successes"]["count"] for name in SHARES}
    assert sum(shares.values()) == good and min(shares.values()) > 0, shares
    print(f"pass  inference-perf: {good} streams of {len(SHARES)} tenants, none failed ({shares})", flush=True)
