#!/usr/bin/env python3
"""Makes a base of Llama-2-7B's shape with random weights, and a fine-tune of it: every matrix moved by
noise of 5 % of its size, half of that (in energy) of rank 16. The base is written in FP16, the
fine-tune in BF16, in shards of two layers. Needs PyTorch and 27 GB; a CUDA device makes it quick.

    pair.py DIR [LAYERS]     makes DIR/base and DIR/fine"""
import concurrent.futures, json, os, struct, sys
import torch

DIM, FFN, HEADS, VOCAB, RANK, MOVED = 4096, 11008, 32, 32000, 16, 0.05
LAYERS = int(sys.argv[2]) if len(sys.argv) > 2 else 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": DIM,
          "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "num_key_value_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 4096,
          "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
          "rope_theta": 10000.0, "tie_word_embeddings": False}


def names():
    """Shards, each a list of (name, shape)."""
    shard = [("model.embed_tokens.weight", (VOCAB, DIM)), ("lm_head.weight", (VOCAB, DIM)),
             ("model.norm.weight", (DIM,))]
    for layer in range(LAYERS):
        if layer % 2 == 0 and layer:
            yield shard
            shard = []
        p = "model.layers.%d." % layer
        shard += [(p + "self_attn.%s_proj.weight" % x, (DIM, DIM)) for x in "qkvo"]
        shard += [(p + "mlp.gate_proj.weight", (FFN, DIM)), (p + "mlp.up_proj.weight", (FFN, DIM)),
                  (p + "mlp.down_proj.weight", (DIM, FFN)),
                  (p + "input_layernorm.weight", (DIM,)),
                  (p + "post_attention_layernorm.weight", (DIM,))]
    yield shard


def made(shape, seed):
    """A tensor of the base and the same of the fine-tune."""
    g = torch.Generator(DEVICE).manual_seed(seed)
    if len(shape) == 1:
        base = torch.ones(shape, device=DEVICE)
        return base, base + 0.01 * torch.randn(shape, device=DEVICE, generator=g)
    size = 0.02 if shape[1] == DIM else 0.012
    base = size * torch.randn(shape, device=DEVICE, generator=g)
    noise = torch.randn(shape, device=DEVICE, generator=g)
    pair = (torch.randn((shape[0], RANK), device=DEVICE, generator=g) @
            torch.randn((RANK, shape[1]), device=DEVICE, generator=g))
    return base, base + size * MOVED * 0.5 ** 0.5 * (noise + pair / RANK ** 0.5)


def write(path, tensors, kind):
    header, at = {}, 0
    for name, x in tensors:
        end = at + x.numel() * 2
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, x in tensors:
            f.write(memoryview(x.contiguous().view(torch.int16).cpu().numpy()).cast("B"))


def main(root):
    shards = list(names())
    indexes = [{}, {}]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        waiting = []
        for i, shard in enumerate(shards):
            pairs = [(n, made(s, i * 1000 + j)) for j, (n, s) in enumerate(shard)]
            for m, (name, kind, dtype) in enumerate([("base", "F16", torch.float16),
                                                     ("fine", "BF16", torch.bfloat16)]):
                os.makedirs(os.path.join(root, name), exist_ok=True)
                file = "model-%05d-of-%05d.safetensors" % (i + 1, len(shards))
                tensors = [(n, x[m].to(dtype)) for n, x in pairs]
                indexes[m].update({n: file for n, _ in tensors})
                waiting.append(pool.submit(write, os.path.join(root, name, file), tensors, kind))
        for w in waiting:
            w.result()
    for m, (name, dtype) in enumerate([("base", "float16"), ("fine", "bfloat16")]):
        with open(os.path.join(root, name, "config.json"), "w") as f:
            json.dump(dict(CONFIG, torch_dtype=dtype), f)
        with open(os.path.join(root, name, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {}, "weight_map": indexes[m]}, f)


main(sys.argv[1])
