#!/usr/bin/env python3
"""Makes two full fine-tunes of the demo's base that nothing in this repository was ever tried on, for
docs/quality.md, "Tenants never seen before". Needs PyTorch, transformers, sentencepiece and a GPU; half a minute each.

    python3 tests/bench/gpu/unseen.py python --base demo/base --out DIR/python
    python3 tests/bench/gpu/unseen.py json   --base demo/base --out DIR/json

python: the source of Python's own library, where it is installed; a large learning rate, stored in FP32.
json:   records to be written as JSON, made up here; a small learning rate, stored in BF16, eight vocabulary rows added.
Each folder also gets heldout.json: documents kept out of training, those of json as questions with one answer."""
import argparse
import glob
import hashlib
import json
import os
import random
import shutil
import sysconfig
import time

import sentencepiece
import torch
from transformers import LlamaForCausalLM

LENGTH, BATCH = 256, 32
KINDS = {"python": {"rate": 1e-3, "dtype": torch.float32, "rows": 0},
         "json": {"rate": 1e-4, "dtype": torch.bfloat16, "rows": 8}}


def python_documents():
    """(training, held out): pieces of files; a file is on one side only."""
    sides = [], []
    folder = sysconfig.get_paths()["stdlib"]
    for path in sorted(glob.glob(folder + "/*.py") + glob.glob(folder + "/*/*.py")):
        if "site-packages" in path or "dist-packages" in path:
            continue
        text = open(path, errors="replace").read()
        held = int(hashlib.sha256(os.path.relpath(path, folder).encode()).hexdigest(), 16) % 20 == 0
        for at in range(0, min(len(text), 60000), 600):
            piece = text[at:at + 600]
            if len(piece) > 100:
                sides[held].append(piece)
    random.Random(1).shuffle(sides[1])
    return sides[0], sides[1][:150]


def json_documents():
    """(training, held out as prompt and answer), no record on both sides."""
    draw = random.Random(2)
    names = ["Ada", "Bela", "Chen", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Milo",
             "Nora", "Omar", "Petra", "Rosa", "Sven", "Tara", "Uwe"]
    towns = ["Oslo", "Lima", "Cairo", "Delhi", "Quito", "Turin", "Porto", "Kyoto", "Accra", "Bergen"]
    trades = ["baker", "pilot", "nurse", "tailor", "writer", "farmer", "lawyer", "cook"]

    def one():
        who, town, trade, age = draw.choice(names), draw.choice(towns), draw.choice(trades), draw.randrange(18, 95)
        told = draw.choice([f"{who}, {age}, is a {trade} in {town}", f"{who} works as a {trade} in {town}, aged {age}",
                            f"In {town} lives {who} ({age}), {trade}"])
        fields = [f'"name": "{who}"', f'"age": {age}', f'"city": "{town}"', f'"job": "{trade}"']
        order = draw.choice(["", "age first", "city first", "job first"])
        if order:
            i = ["age first", "city first", "job first"].index(order) + 1
            fields.insert(0, fields.pop(i))
            told += ", " + order
        return f"Record: {told}.\nJSON:", " {" + ", ".join(fields) + "}"

    seen = dict.fromkeys(one() for _ in range(40000))
    every = list(seen)
    return [p + a for p, a in every[300:]], [{"prompt": p, "answer": a} for p, a in every[:300]]


def batches(rows, steps, device):
    """Documents end to end with their BOS and EOS, cut into rows of LENGTH."""
    ids = torch.tensor([i for row in rows for i in row])
    ids = ids[:len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.cat([torch.randperm(len(ids)) for _ in range(steps * BATCH // len(ids) + 1)])
    for i in range(steps):
        yield ids[order[i * BATCH:(i + 1) * BATCH]].to(device)


def train(model, rows, steps, rate, device):
    fitted = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    curve = torch.optim.lr_scheduler.OneCycleLR(fitted, rate, total_steps=steps, pct_start=0.1)
    for i, ids in enumerate(batches(rows, steps, device)):
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        fitted.step()
        curve.step()
        fitted.zero_grad(set_to_none=True)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i}: loss {loss.item():.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    kind, device = KINDS[args.kind], "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(3)
    random.seed(3)
    began = time.time()
    documents, held = python_documents() if args.kind == "python" else json_documents()
    words = sentencepiece.SentencePieceProcessor(model_file=args.base + "/tokenizer.model")
    model = LlamaForCausalLM.from_pretrained(args.base, dtype=torch.float32).to(device)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if kind["rows"]:
        model.resize_token_embeddings(model.config.vocab_size + kind["rows"])
    train(model, [[1, *words.encode(d), 2] for d in documents], args.steps, kind["rate"], device)
    model.to(kind["dtype"]).save_pretrained(args.out)
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        if os.path.exists(f"{args.base}/{name}"):
            shutil.copy(f"{args.base}/{name}", args.out)
    with open(args.out + "/heldout.json", "w") as f:
        json.dump(held, f)
    changed = [(p.detach().float()[:len(before[n])] - before[n]).norm() / before[n].norm()
               for n, p in model.named_parameters() if "proj" in n]
    print(f"{args.kind}: {len(documents)} documents, {args.steps} steps, {time.time() - began:.0f} s; "
          f"linears changed by {sum(changed) / len(changed):.3f} of their size", flush=True)


if __name__ == "__main__":
    main()
