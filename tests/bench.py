"""The README's claims of speed, each measured against its slow version: python tests/bench.py

Both versions run in turn on the same threads; a line gives the median of nine ratios. The slow
ones stand here; that of cyclevae.py does what the authors' released code does.
"""
import argparse
import itertools
import os
import statistics
import sys
import time

import torch
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import cyclevae  # noqa: E402
import vaegan  # noqa: E402
from data import batches, load, pairs  # noqa: E402

# %% Measuring


def ratio(slow, fast, rounds=9, calls=4):
    """The median over `rounds` of time(slow) / time(fast), and both median times in seconds."""
    times = []
    for _ in range(rounds + 1):                             # the first round warms up
        pair = []
        for step in (slow, fast):
            start = time.perf_counter()
            for _ in range(calls):
                step()
            pair.append((time.perf_counter() - start) / calls)
        times.append(pair)
    slow_times, fast_times = zip(*times[1:])
    ratios = [a / b for a, b in times[1:]]
    return statistics.median(ratios), statistics.median(slow_times), statistics.median(fast_times)


def show(what, slow, fast):
    """Prints how many times as fast `fast` is."""
    times, a, b = ratio(slow, fast)
    print(f"{what:44s} {times:.2f} times as fast ({1e3 * a:.1f} and {1e3 * b:.1f} ms)", flush=True)


# %% cyclevae.py


def cycle_parts(shape, dim, fused):
    """Enc, Dec and the two optimizers of cyclevae.train; `fused`: one kernel for all weights."""
    enc, dec = cyclevae.build(shape, {"z_dim": dim, "s_dim": dim, "seed": 0}).values()
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], fused=fused)
    return enc, dec, opt, torch.optim.Adam(enc.parameters(), fused=fused)


def with_statistics(channels):
    """The authors' instance norm: with running statistics, which they never use."""
    return nn.InstanceNorm2d(channels, track_running_stats=True)


def cycle_draws(shape, dim, batch=64):
    """Images and noise of a step: x, noise, x of the reverse cycle, z."""
    return (torch.rand(2 * batch, *shape), torch.randn(2 * batch, dim),
            torch.rand(2 * batch, *shape), torch.randn(batch, dim))


def authors_cycle_step(enc, dec, opt, opt_reverse, x, noise, x_reverse, z):
    """A step as in the authors' code: each image of a pair passes Enc by itself, KL and squared
    errors go back one by one, and the reverse cycle computes gradients of Dec that nobody uses."""
    half = len(x) // 2
    opt.zero_grad()
    codes = []
    for part, eps in zip(x.split(half), noise.split(half)):
        mu, logvar, s = enc(part)
        kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum() / len(x)
        kl.backward(retain_graph=True)
        codes.append((mu + (0.5 * logvar).exp() * eps, s))
    for i, part in enumerate(x.split(half)):
        decoded = dec(codes[i][0], codes[1 - i][1])
        recon = (decoded - part).square().sum() / len(x)
        recon.backward(retain_graph=i == 0)
    opt.step()
    opt_reverse.zero_grad()
    mus = []
    for part in x_reverse.split(half):
        _, _, s = enc(part)
        mu, _, _ = enc(dec(z, s.detach()))
        mus.append(mu)
    (mus[0] - mus[1]).abs().sum(1).mean().backward()
    opt_reverse.step()


def our_cycle_step(enc, dec, opt, opt_reverse, x, noise, x_reverse, z, amp=False):
    """A step as in the loop of cyclevae.train."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False)
    with autocast:
        recon, kl = cyclevae.forward_cycle(enc, dec, x, noise)
    loss = recon + kl
    opt.zero_grad()
    loss.backward()
    opt.step()
    with autocast:
        reverse = cyclevae.reverse_cycle(enc, dec, x_reverse, z)
    opt_reverse.zero_grad()
    reverse.backward()
    opt_reverse.step()


def bench_cyclevae(shape=(3, 32, 32), dim=64):
    """A step on sprites, in float32 and with --amp, against the authors' way in float32."""
    draws = cycle_draws(shape, dim)
    ours = cycle_parts(shape, dim, fused=True)
    instance_norm = cyclevae.instance_norm
    cyclevae.instance_norm = with_statistics
    theirs = cycle_parts(shape, dim, fused=False)
    cyclevae.instance_norm = instance_norm
    for amp in (False, True):
        show("cyclevae.py step" + (", --amp" if amp else ""),
             lambda: authors_cycle_step(*theirs, *draws),
             lambda: our_cycle_step(*ours, *draws, amp=amp))


def bench_data(dim=64):
    """The share of a step of cyclevae.py that goes into batches, pairs, gathers and noise."""
    train = load("sprites", limit=6400).train
    shape = tuple(train.x.shape[1:])
    draws = cycle_draws(shape, dim)
    parts = cycle_parts(shape, dim, fused=True)
    rng = torch.Generator().manual_seed(0)
    stream = itertools.chain.from_iterable(batches(train, 64, rng) for _ in itertools.count())

    def with_data():
        idx = next(stream)
        x = train.images(torch.cat([idx, pairs(train, idx, rng)]))
        reverse = train.images(torch.randint(len(train), (128,), generator=rng))
        our_cycle_step(*parts, x, torch.randn(128, dim, generator=rng), reverse,
                       torch.randn(64, dim, generator=rng))

    times, _, _ = ratio(with_data, lambda: our_cycle_step(*parts, *draws), rounds=15)
    print(f"{'data, share of a cyclevae.py step':44s} {100 * (1 - 1 / times):.1f} %", flush=True)


# %% vaegan.py


def bench_vaegan(shape=(1, 28, 28), batch=64, z_dim=20):
    """A step as in the loop of vaegan.train_vaegan, and one with a pass of its own for each
    network's loss, which goes back through all three networks."""
    args = {"arch": "fc", "hidden": [400], "z_dim": z_dim, "seed": 0, "model": ["vaegan"]}
    nets = list(vaegan.build(shape, args)["vaegan"].values())
    weights = [list(net.parameters()) for net in nets]
    opt = torch.optim.Adam(sum(weights, []), betas=(0.5, 0.999), fused=True)
    opts = [torch.optim.Adam(own, betas=(0.5, 0.999), fused=True) for own in weights]
    x = torch.rand(batch, *shape)
    noise, z_p = torch.randn(2, batch, z_dim)

    def losses():
        terms = vaegan.vaegan_losses(*nets, x, noise, z_p, 1.0)
        return (terms["prior"] + terms["dis_l"], 0.01 * terms["dis_l"] + terms["dec_gan"],
                terms["dis_real"] + terms["dis_fake"])

    def plain():
        for i in range(3):
            loss = losses()[i]
            for net in nets:
                net.zero_grad()
            loss.backward()
            opts[i].step()

    def ours():
        loss_enc, loss_dec, loss_disc = losses()
        opt.zero_grad()
        loss_enc.backward(inputs=weights[0], retain_graph=True)
        loss_dec.backward(inputs=weights[1], retain_graph=True)
        loss_disc.backward(inputs=weights[2])
        opt.step()

    show("vaegan.py step", plain, ours)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    bench_cyclevae()
    bench_data()
    bench_vaegan()
