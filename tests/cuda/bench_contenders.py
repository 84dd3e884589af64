"""What else could serve T fine-tunes in one decode step, on this card, at the shapes of Llama-2-7B.

Every contender computes the 128 linears of a step for T tenants of one row each, replayed from a
CUDA graph; weights are random, distinct and far larger than the L2. 8 of the 32 layers are made and
the time is multiplied by 4, so that all of it fits the card at T = 64.

  base       cuBLAS, FP16, the base alone: M = T
  published  base, plus the BitDelta paper's product: one program for each output tile and tenant
             unpacks 32-bit words to +-1 in registers, every element loading the word that it is
             in, and multiplies them with x on the tensor core; scale and sum follow in one
             element-wise kernel. Written in Triton after the published description; block sizes,
             warps and stages are tuned here
  spread     the same with each word loaded once and spread over its 32 elements: what the
             published algorithm reaches with the best change that we found for it
  rank r     base, plus low-rank pairs of rank r: two batched products, the better of two layouts
  separate   T whole FP16 models: T times cuBLAS with M = 1, over four models' weights in turn

Usage: bench_contenders.py [BENCH_LINEAR]. With the program, its figures (`quick`) stand beside these
in the same table. Results are checked against float64 before they are timed. Needs PyTorch and
Triton; without them, or without a card, it says so and succeeds.
"""

import re
import statistics
import subprocess
import sys

try:
    import torch
    import triton
    import triton.language as tl
except ImportError as missing:
    print(f"skipped: the contenders need PyTorch and Triton ({missing})")
    sys.exit(0)

LAYERS, SCALE, COUNTS, RANKS = 8, 4, (1, 4, 16, 64), (16, 64, 128)
KINDS = (("qkv", 12288, 4096), ("o", 4096, 4096), ("gate+up", 22016, 4096), ("down", 4096, 11008))
MATRICES = [kind for _ in range(LAYERS) for kind in range(len(KINDS))]


# ---- the published product ----------------------------------------------------------------------


@triton.jit
def signs_product(x, bits, y, n_out, n_in, WORDS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
    """y [T, N] = x [T, K] times +-1; bits [T, K / 32, N], bit i of word w is column 32 w + i.
    WORDS: a word is loaded once and spread over 32 columns, else each column loads its word."""
    tenant = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * OUT + tl.arange(0, OUT)
    rows = tl.arange(0, 16)  # the least that the tensor core takes; the first is real
    x += tenant * n_in
    bits += tenant * (n_in // 32) * n_out
    total = tl.zeros((16, OUT), tl.float32)
    for first in range(0, n_in, IN):
        k = first + tl.arange(0, IN)
        part = tl.load(x + rows[:, None] * n_in + k[None, :], mask=(rows < 1)[:, None], other=0.0)
        if WORDS:
            at = first // 32 + tl.arange(0, IN // 32)
            word = tl.load(bits + at[:, None] * n_out + n[None, :])
            bit = (word[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
            bit = tl.reshape(bit, (IN, OUT))
        else:
            word = tl.load(bits + (k // 32)[:, None] * n_out + n[None, :])
            bit = (word >> (k % 32)[:, None]) & 1
        total = tl.dot(part, (2 * bit - 1).to(tl.float16), total)
    one = tl.sum(tl.where((rows < 1)[:, None], total, 0.0), axis=0)
    tl.store(y + tenant * n_out + n, one.to(tl.float16))


def launch_signs(x, bits, y, choice):
    words, out, n_in, warps, stages = choice
    grid = (bits.shape[2] // out, x.shape[0])
    signs_product[grid](x, bits, y, bits.shape[2], x.shape[1], WORDS=words, OUT=out, IN=n_in,
                        num_warps=warps, num_stages=stages)


CHOICES = (  # outputs, columns, warps, stages
    (64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 4, 4), (128, 128, 4, 3),
    (128, 128, 8, 3), (256, 64, 8, 4), (32, 256, 4, 3), (32, 64, 2, 4),
)


def tune_signs(model, words):
    """The best choice for each kind of matrix at T = 16."""
    best = {}
    for kind, (_, n_out, n_in) in enumerate(KINDS):
        x, bits = model.x[kind][:16], model.bits[kind][:16]
        y = torch.empty(16, n_out, dtype=torch.float16, device="cuda")
        ms = {}
        for choice in ((words, *c) for c in CHOICES):
            try:
                launch_signs(x, bits, y, choice)
                ms[choice] = timed(lambda: launch_signs(x, bits, y, choice), 5)
            except triton.runtime.errors.OutOfResources:
                continue
        best[kind] = min(ms, key=ms.get)
    return best


# ---- measuring ----------------------------------------------------------------------------------


def timed(run, repeats=15):
    """Median milliseconds of a replayed graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    ms = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        ms.append(start.elapsed_time(end))
    return statistics.median(ms)


@triton.jit
def read_all(p, n, out, BLOCK: tl.constexpr):
    """Every program reads blocks of 8-byte words in turn; keeps the sum alive."""
    total = tl.zeros((BLOCK,), tl.int64)
    for i in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        total += tl.load(p + i.to(tl.int64) + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


def ceilings(model):
    words = model.all_bits.view(torch.int64)
    out = torch.empty(132 * 16, dtype=torch.int64, device="cuda")
    ms = min(
        timed(lambda: read_all[(132 * per,)](words, words.numel(), out, BLOCK=4096, num_warps=8), 5)
        for per in (2, 4, 8)
    )
    a = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    gemm_ms = timed(lambda: torch.matmul(a, a.T), 9)
    return words.numel() * 8 / ms / 1e6, 2 * 8192**3 / gemm_ms / 1e9


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


# ---- contenders ---------------------------------------------------------------------------------


class Model:
    """Random weights of LAYERS layers; of one kind, all layers' signs stand in one tensor."""

    def __init__(self):
        make = dict(dtype=torch.float16, device="cuda")
        self.w = [torch.randn(KINDS[k][1], KINDS[k][2], **make) * 0.02 for k in MATRICES]
        most = COUNTS[-1]
        sizes = [most * n_in // 32 * n_out for _, n_out, n_in in KINDS for _ in range(LAYERS)]
        self.all_bits = torch.randint(-(2**31), 2**31, (sum(sizes),), dtype=torch.int32, device="cuda")
        pieces = self.all_bits.split(sizes)
        shape = [(most, n_in // 32, n_out) for _, n_out, n_in in KINDS]
        self.signs = [pieces[k * LAYERS + i // len(KINDS)].view(shape[k])
                      for i, k in enumerate(MATRICES)]
        self.bits = self.signs[: len(KINDS)]
        self.x = [torch.randn(most, n_in, **make) for _, _, n_in in KINDS]
        self.scale = torch.rand(most, 1, **make) * 0.002
        self.y = [torch.empty(most, n_out, **make) for _, n_out, _ in KINDS]
        self.d = [torch.empty(most, n_out, **make) for _, n_out, _ in KINDS]

    def base(self, count):
        for i, k in enumerate(MATRICES):
            torch.matmul(self.x[k][:count], self.w[i].T, out=self.y[k][:count])

    def with_signs(self, count, best):
        for i, k in enumerate(MATRICES):
            y, d = self.y[k][:count], self.d[k][:count]
            torch.matmul(self.x[k][:count], self.w[i].T, out=y)
            launch_signs(self.x[k][:count], self.signs[i][:count], d, best[k])
            torch.addcmul(y, d, self.scale[:count], out=y)

    def check_signs(self, best):
        """All tenants of the last layer's matrices, some outputs of each."""
        self.with_signs(COUNTS[-1], best)
        shifts = torch.arange(32, device="cuda")[None, None, :]
        for k, (name, n_out, n_in) in enumerate(KINDS):
            i = len(MATRICES) - len(KINDS) + k
            at = torch.randint(0, n_out, (32,), device="cuda")
            words = self.signs[i][:, :, at].transpose(1, 2)  # [T, outputs, K / 32]
            sign = ((words[..., None] >> shifts) & 1).double() * 2 - 1
            x = self.x[k].double()
            want = x @ self.w[i][at].T.double()
            want += torch.einsum("tnk,tk->tn", sign.flatten(2), x) * self.scale.double()
            error = relative(self.y[k][:, at], want)
            assert error < 2e-3, f"signs, {name}: relative error {error:.1e}"


def separate_ms(model):
    """One model's step at M = 1, from four models' weights."""
    models = [model.w] + [[w.clone() for w in model.w] for _ in range(3)]

    def run():
        for weights in models:
            for i, k in enumerate(MATRICES):
                torch.matmul(model.x[k][:1], weights[i].T, out=model.y[k][:1])

    return timed(run) / len(models)


def low_rank_ms(model, rank, count):
    """The better of A as [T, r, K] with B as [T, N, r], and of both transposed."""
    make = dict(dtype=torch.float16, device="cuda")
    a = [torch.randn(count, rank, KINDS[k][2], **make) * 0.02 for k in MATRICES]
    b = [torch.randn(count, KINDS[k][1], rank, **make) * 0.02 for k in MATRICES]
    best = []
    for transposed in (False, True):
        down = [m.transpose(1, 2).contiguous() if transposed else m.transpose(1, 2) for m in a]
        up = [m.transpose(1, 2).contiguous() if transposed else m.transpose(1, 2) for m in b]

        def run():
            for i, k in enumerate(MATRICES):
                x, y = model.x[k][:count], model.y[k][:count]
                torch.matmul(x, model.w[i].T, out=y)
                u = torch.bmm(x[:, None], down[i])
                y[:, None].baddbmm_(u, up[i])

        run()
        for k in range(len(KINDS)):
            i = len(MATRICES) - len(KINDS) + k
            x = model.x[k][:count].double()
            u = torch.einsum("tk,trk->tr", x, a[i].double())
            want = x @ model.w[i].T.double() + torch.einsum("tr,tnr->tn", u, b[i].double())
            error = relative(model.y[k][:count], want)
            assert error < 2e-3, f"rank {rank}, {KINDS[k][0]}: relative error {error:.1e}"
        best.append(timed(run))
    return min(best)


def ours(program):
    """{T: ms} of the fused linear, from `bench_linear quick T...`."""
    done = subprocess.run([program, "quick", *map(str, COUNTS)], capture_output=True, text=True)
    rows = re.findall(r"^ *(\d+) +([0-9.]+) +[0-9.]+%", done.stdout, re.MULTILINE)
    if done.returncode or len(rows) != len(COUNTS):
        sys.exit(f"{program} quick failed or prints another table:\n{done.stdout}{done.stderr}")
    return {int(t): float(ms) for t, ms in rows}


def main():
    if not torch.cuda.is_available():
        print("skipped: no CUDA device for the contenders")
        return
    mine = ours(sys.argv[1]) if len(sys.argv) > 1 else {}
    torch.manual_seed(1)
    model = Model()
    rate, flops = ceilings(model)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; "
          f"read rate {rate:.0f} GB/s, FP16 product {flops:.0f} TFLOP/s")
    best = {name: tune_signs(model, name == "spread") for name in ("published", "spread")}
    for name, choices in best.items():
        model.check_signs(choices)
        print(f"{name}: " + "; ".join("{} {} x {}, {} warps, {} stages".format(
            KINDS[k][0], *choice[1:]) for k, choice in choices.items()))
    one = separate_ms(model) * SCALE
    names = ["base", "published", "spread", *(f"rank {r}" for r in RANKS), "separate"]
    print("T".rjust(4) + "".join(n.rjust(11) for n in (*names, "ours")), " published/ours separate/ours")
    for count in COUNTS:
        ms = [timed(lambda: model.base(count)) * SCALE,
              *(timed(lambda: model.with_signs(count, b)) * SCALE for b in best.values()),
              *(low_rank_ms(model, rank, count) * SCALE for rank in RANKS), one * count]
        line = f"{count:4d}" + "".join(f"{m:11.2f}" for m in ms)
        if count in mine:
            line += f"{mine[count]:11.2f} {ms[1] / mine[count]:14.1f} {ms[-1] / mine[count]:13.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
