"""Claims of speed, each measured against its slow version: python tests/bench.py [--threads 2]

Every row runs the two in turn on the same threads and prints the median of at least five ratios.
The slow versions stand here, written from what the papers' released code does.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cyclevae  # noqa: E402
from data import batches, load, pairs  # noqa: E402


def ratio(slow, fast, rounds=9, calls=4):
    """The median over `rounds` of time(slow) / time(fast), and both median times in seconds."""
    times = []
    for _ in range(rounds + 1):  # the first round warms up and is dropped
        pair = []
        for step in (slow, fast):
            start = time.perf_counter()
            for _ in range(calls):
                step()
            pair.append((time.perf_counter() - start) / calls)
        times.append(pair)
    return (
        statistics.median(a / b for a, b in times[1:]),
        *(statistics.median(column) for column in zip(*times[1:])),
    )


def authors_cycle_step(
    enc, dec, opt, opt_reverse, x, noise, x_reverse, z, weights=(2.0, 0.6, 10.0)
):
    """One iteration as the cycle-VAE authors' code does it: each image of a pair passes the encoder
    by itself, KL and squared error go back one by one (four backward calls, and the reverse
    cycle's), s is detached behind the encoder's graph only, and the reverse cycle computes
    gradients of the decoder that nobody uses.

    Arguments as for cyclevae.step; losses in the same units, so that the gradients are the same.
    """
    recon_weight, kl_weight, reverse_weight = weights
    half = len(x) // 2
    opt.zero_grad()
    codes = []
    for part, eps in zip(x.split(half), noise.split(half)):
        mu, logvar, s = enc(part)
        kl = kl_weight * 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum() / len(x)
        kl.backward(retain_graph=True)
        codes.append((mu + (0.5 * logvar).exp() * eps, s))
    for i, part in enumerate(x.split(half)):
        out = dec(codes[i][0], codes[1 - i][1])
        (recon_weight * (out - part).square().sum() / len(x)).backward(retain_graph=i == 0)
    opt.step()

    opt_reverse.zero_grad()
    mus = []
    for part in x_reverse.split(half):
        _, _, s = enc(part)
        mus.append(enc(dec(z, s.detach()))[0])
    (reverse_weight * (mus[0] - mus[1]).abs().sum(1).mean()).backward()
    opt_reverse.step()


def our_cycle_step(*arguments, weights=(2.0, 0.6, 10.0), amp=False):
    """The same iteration as cyclevae.py does it."""

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False)

    cyclevae.step(*arguments, weights, autocast)


def cycle_parts(shape, dim, fused, norm=None, dtype=torch.float32, seed=0):
    """Networks and both optimisers; `norm` in place of cyclevae's instance norm."""
    ours, cyclevae.instance_norm = cyclevae.instance_norm, norm or cyclevae.instance_norm
    torch.manual_seed(seed)
    nets = cyclevae.build(shape, {"z_dim": dim, "s_dim": dim, "leak": 0.2})
    cyclevae.instance_norm = ours
    enc, dec = (net.to(dtype) for net in nets.values())
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], 1e-3, fused=fused)
    return enc, dec, opt, torch.optim.Adam(enc.parameters(), 1e-3, fused=fused)


def cycle_draws(shape, dim, batch=64, dtype=torch.float32, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.rand(2 * batch, *shape, generator=rng, dtype=dtype),
        torch.randn(2 * batch, dim, generator=rng, dtype=dtype),
        torch.rand(2 * batch, *shape, generator=rng, dtype=dtype),
        torch.randn(batch, dim, generator=rng, dtype=dtype),
    )


def tracked_norm(channels):
    """The authors' instance norm: with running statistics, which they never use."""
    return nn.InstanceNorm2d(channels, track_running_stats=True)


def bench_cyclevae():
    for name, shape, dim in (("mnist 28x28", (1, 28, 28), 16), ("sprites 32x32", (3, 32, 32), 64)):
        draws = cycle_draws(shape, dim)
        slow, fast = cycle_parts(shape, dim, False, tracked_norm), cycle_parts(shape, dim, True)
        for amp in (False, True):
            r, a, b = ratio(
                lambda: authors_cycle_step(*slow, *draws),
                lambda: our_cycle_step(*fast, *draws, amp=amp),
            )
            row(
                f"cyclevae step, {name}{', --amp' if amp else ''}",
                "the authors' way, float32",
                a,
                b,
                r,
            )
        plain = cycle_parts(shape, dim, True, nn.InstanceNorm2d)
        r, a, b = ratio(
            lambda: our_cycle_step(*plain, *draws), lambda: our_cycle_step(*fast, *draws)
        )
        row(f"group norm for instance norm, {name}", "nn.InstanceNorm2d", a, b, r)


def bench_data():
    """What batches, pairs, gathers and draws add to a step on one fixed batch."""
    data = load("sprites", limit=6400)
    parts, split = cycle_parts((3, 32, 32), 64, True), data.train
    draws, rng = cycle_draws((3, 32, 32), 64), torch.Generator().manual_seed(0)

    def indices():
        while True:
            yield from batches(split, 64, rng)

    stream = indices()

    def with_data():
        index = next(stream)
        x = split.images(torch.cat([index, pairs(split, index, rng)]))
        reverse = split.images(torch.randint(len(split), (128,), generator=rng))
        our_cycle_step(
            *parts,
            x,
            torch.randn(128, 64, generator=rng),
            reverse,
            torch.randn(64, 64, generator=rng),
        )

    r, a, b = ratio(with_data, lambda: our_cycle_step(*parts, *draws), rounds=15)
    print(
        f"{'data cost of a cyclevae step, sprites':44s} {100 * (1 - 1 / r):.1f} % "
        f"(1 - the step on one fixed batch / the step, {1e3 * a:.1f} ms)"
    )


def row(what, baseline, slow, fast, r):
    times = f"{1e3 * slow:.1f} ms / {1e3 * fast:.1f} ms"
    print(f"{what:44s} {r:.2f} times as fast as {baseline} ({times})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    bench_cyclevae()
    bench_data()
