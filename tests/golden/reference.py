#!/usr/bin/env python3
"""Reference results for the golden tests: a Llama forward pass in NumPy, FP32, written apart from the C code.

    reference.py check  MODELS_DIR                  compare with golden.json of a models folder (made by
                                                    Hugging Face transformers): proves this script right
    reference.py make OUT.json BASE_DIR NAME=FILE   write cases for the base (named "base") and for the
                                                    tenant files given, read by docs/format.md

Needs numpy; with `make`, prompts are taken from tests/golden/prompts.json as token ids."""
import json
import os
import struct
import sys

import numpy as np

DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I32": np.int32}


def read_safetensors(path):
    data = open(path, "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    header, tensors = json.loads(data[8:8 + n]), {}
    for key, t in header.items():
        if key != "__metadata__":
            a, b = t["data_offsets"]
            tensors[key] = np.frombuffer(data[8 + n + a:8 + n + b], DTYPES[t["dtype"]]).reshape(t["shape"])
    return header.get("__metadata__", {}), tensors


def load(folder):
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            for key, t in read_safetensors(os.path.join(folder, name))[1].items():
                tensors[key] = t.astype(np.float32)
    return json.load(open(os.path.join(folder, "config.json"))), tensors


def signs(tiles, n, k):
    """Sign bits in 16 x 256 tiles -> [n, k] of +1, -1 (docs/format.md, "Tiles")."""
    words = tiles.view("<u4").reshape(tiles.shape[0], tiles.shape[1], 8, 4, 4)  # g, t, slot
    out = np.empty((tiles.shape[0] * 16, tiles.shape[1] * 256), np.float32)
    for slot in range(4):  # (row g, word t), (row g+8, word t), (row g, word t+4), (row g+8, word t+4)
        row, word = slot % 2 * 8, slot // 2 * 4
        for t in range(4):
            w = words[:, :, :, t, slot]
            bits = (w[..., None] >> np.arange(32, dtype=np.uint32) & 1).astype(np.float32) * 2 - 1
            for g in range(8):
                for j in range(tiles.shape[1]):
                    first = j * 256 + (word + t) * 32
                    out[row + g::16, first:first + 32] = bits[:, j, g]
    return out[:n, :k]


def difference(tensors, part, shape):
    total, p = np.zeros(shape, np.float32), 0
    while f"{part}.plane{p}.bits" in tensors:
        plane = f"{part}.plane{p}"
        scaled = signs(tensors[plane + ".bits"], *shape) * tensors[plane + ".row"][:, None]
        total += scaled * tensors[plane + ".col"] if plane + ".col" in tensors else scaled
        p += 1
    if part + ".lora_a" in tensors:
        total += tensors[part + ".lora_b"].astype(np.float32) @ tensors[part + ".lora_a"].astype(np.float32)
    return total


def load_tenant(base, path):
    """A tenant file on top of a loaded base, merged in FP32."""
    meta, t = read_safetensors(path)
    tenant, w = json.loads(meta["tenant"]), dict(base[1])
    matrices = {part: part + ".weight" for part in tenant["parts"]}
    matrices.update({"embed": "model.embed_tokens.weight", "head": "lm_head.weight"})
    for part, name in matrices.items():
        if part + ".dense" in t:
            w[name] = t[part + ".dense"].astype(np.float32)
        else:
            w[name] = w[name] + difference(t, part, w[name].shape)
        if part + ".row_ids" in t:
            ids = t[part + ".row_ids"]
            more = np.zeros((max(int(ids.max()) + 1 - len(w[name]), 0), w[name].shape[1]), np.float32)
            w[name] = np.concatenate([w[name], more])
            w[name][ids] = t[part + ".rows"]
    for i, norm in enumerate(t["norm"]):
        kind = "post_attention_layernorm" if i % 2 else "input_layernorm"
        last = i == len(t["norm"]) - 1
        w["model.norm.weight" if last else f"model.layers.{i // 2}.{kind}.weight"] = norm
    return tenant["config"], w


def rope(config, n):
    head = config["head_dim"]
    p = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    inv = (1.0 / np.float32(p["rope_theta"]) ** (np.arange(0, head, 2, dtype=np.float32) / head)).astype(np.float32)
    if p.get("rope_type", p.get("type", "default")) == "linear":
        inv = inv / np.float32(p["factor"])
    angle = np.outer(np.arange(n, dtype=np.float32), inv)
    return np.cos(angle), np.sin(angle)


def logits(model, ids):
    """ids [n] -> logits [n, V]"""
    config, w = model
    n, eps = len(ids), np.float32(config["rms_norm_eps"])
    heads, kv_heads, head = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    cos, sin = rope(config, n)
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def rotate(x):  # [heads, n, head]
        a, b = x[..., :head // 2], x[..., head // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    h = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        x = norm(h, w[p + "input_layernorm.weight"])
        q, k, v = ((x @ w[p + f"self_attn.{c}_proj.weight"].T).reshape(n, -1, head).transpose(1, 0, 2) for c in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(t, heads // kv_heads, 0) for t in (k, v))
        s = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(head)) + mask
        s = np.exp(s - s.max(-1, keepdims=True))
        s /= s.sum(-1, keepdims=True)
        h = h + (s @ v).transpose(1, 0, 2).reshape(n, -1) @ w[p + "self_attn.o_proj.weight"].T
        x = norm(h, w[p + "post_attention_layernorm.weight"])
        gate, up = x @ w[p + "mlp.gate_proj.weight"].T, x @ w[p + "mlp.up_proj.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(h, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def logprobs(model, ids):
    x = logits(model, ids).astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def case(model, ids, n_greedy):
    """One golden case. EOS ends the greedy continuation and is not part of it."""
    lp = logprobs(model, ids)
    top = np.argsort(-lp[-1], kind="stable")[:5]
    out = {"ids": ids,
           "prompt_logprobs": [None] + [round(float(lp[i, ids[i + 1]]), 6) for i in range(len(ids) - 1)],
           "top5": [[int(t), round(float(lp[-1, t]), 6)] for t in top],
           "greedy_ids": [], "greedy_logprob_and_margin": []}
    eos, more = model[0]["eos_token_id"], list(ids)
    for _ in range(n_greedy):
        last = logprobs(model, more)[-1]
        first, second = np.argsort(-last, kind="stable")[:2]
        if first == eos:
            break
        out["greedy_ids"].append(int(first))
        out["greedy_logprob_and_margin"].append([round(float(last[first]), 6), round(float(last[first] - last[second]), 6)])
        more.append(int(first))
    return out


def check(models):
    golden = json.load(open(os.path.join(models, "golden.json")))
    for name in ("base", "math", "kjv", "chat", "long", "long_900"):
        model, worst, same, all_ids = load(os.path.join(models, name.split("_")[0])), 0.0, 0, 0
        for g in golden[name]:
            ours = case(model, g["ids"], len(g["greedy_ids"]) if len(g["ids"]) < 100 else 4)
            worst = max([worst] + [abs(a - b) for a, b in zip(ours["prompt_logprobs"][1:], g["prompt_logprobs"][1:])])
            same += sum(a == b for a, b in zip(ours["greedy_ids"], g["greedy_ids"]))
            all_ids += len(ours["greedy_ids"])
        print(f"{name}: worst prompt log-probability difference {worst:.2e}, greedy ids equal {same}/{all_ids}")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "check":
        return check(sys.argv[2])
    if len(sys.argv) < 4 or sys.argv[1] != "make":
        sys.exit(__doc__)
    prompts = json.load(open(os.path.join(os.path.dirname(__file__), "prompts.json")))
    base = load(sys.argv[3])
    models = {"base": base}
    for argument in sys.argv[4:]:
        name, path = argument.split("=", 1)
        models[name] = load_tenant(base, path)
    result = {}
    for name, model in models.items():
        result[name] = [case(model, ids, 24) for ids in prompts["all"] + prompts.get(name, [])]
        print(name, len(result[name]), "cases")
    with open(sys.argv[2], "w") as f:  # a case a line, so that a change can be read
        f.write("{" + ",\n".join(json.dumps(name) + ": [\n " + ",\n ".join(map(json.dumps, cases)) + "]"
                                 for name, cases in result.items()) + "}\n")


if __name__ == "__main__":
    main()
