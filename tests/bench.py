"""Claims of speed, each measured against its slow version: python tests/bench.py [--threads 2]

Every row runs the two in turn on the same threads and prints the median of at least five ratios.
The slow versions stand here, written from what the papers' released code does.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says when it starts and stops

import scipy.linalg  # noqa: E402
import threadpoolctl  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cyclevae  # noqa: E402
import dann  # noqa: E402
import eval as evaluation  # noqa: E402
import flowvae_gan  # noqa: E402
import mathieu  # noqa: E402
import vae  # noqa: E402
import vaegan  # noqa: E402
from data import DataError, Split, batches, load, pairs, torchvision  # noqa: E402


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


def our_cycle_step(
    enc, dec, opt, opt_reverse, x, noise, x_reverse, z, weights=(2.0, 0.6, 10.0), amp=False
):
    """The same iteration as the loop in cyclevae.train does it."""
    recon_weight, kl_weight, reverse_weight = weights
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False)
    with autocast:
        recon, kl = cyclevae.forward_cycle(enc, dec, x, noise)
    loss = recon_weight * recon + kl_weight * kl
    opt.zero_grad()
    loss.backward()
    opt.step()
    with autocast:
        reverse = cyclevae.reverse_cycle(enc, dec, x_reverse, z)
    loss = reverse_weight * reverse
    opt_reverse.zero_grad()
    loss.backward()
    opt_reverse.step()


def cycle_parts(shape, dim, fused, norm=None, seed=0):
    """Networks and both optimisers; `norm` in place of cyclevae's instance norm."""
    ours, cyclevae.instance_norm = cyclevae.instance_norm, norm or cyclevae.instance_norm
    nets = cyclevae.build(shape, {"z_dim": dim, "s_dim": dim, "seed": seed})
    cyclevae.instance_norm = ours
    enc, dec = nets.values()
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


def flops_of(step):
    """Floating point operations of the products and convolutions of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def sgemm_rate(n=1024, calls=20):
    """Floating point operations a second of a product of two n x n matrices, the median of five."""
    a, b = torch.randn(2, n, n)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            a @ b
        rates.append(2 * n**3 * calls / (time.perf_counter() - start))
    return statistics.median(rates)


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
            if not amp:
                flops = flops_of(lambda: our_cycle_step(*fast, *draws))
                share = 100 * flops / b / sgemm_rate()
                print(
                    f"{f'cyclevae step, {name}':44s} {flops / 1e9:.1f} GFLOP at {share:.0f} % of "
                    "this machine's sgemm rate",
                    flush=True,
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


def mnist_vae(arch):
    """vae.py's networks for MNIST: the IWAE paper's MLP, or the convolutional pair."""
    hidden, z_dim = ([200, 200], 50) if arch == "fc" else ([512], 32)
    options = dict(arch=arch, hidden=hidden, z_dim=z_dim, activation="tanh", seed=0)
    nets = vae.build((1, 28, 28), {**options, "model": ["vae"]})["vae"]
    return nets["enc"], nets["dec"]


@torch.no_grad()
def usual_log_marginal(enc, dec, x, k, rng):
    """log p_k(x) (N,) as vae_vampprior and others compute it: an image at a time, repeated 100
    times and encoded again for every 100 samples, log p(x|z) from probabilities, log q from z, all
    k log weights kept till the end. Both normal densities lack their log 2 pi, which cancels."""
    found = []
    for image in x:
        log_w = []
        for _ in range(k // 100):
            batch = image.expand(100, *image.shape)
            mu, logvar = enc(batch)
            z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=rng)
            p = dec(z).sigmoid().clamp(1e-5, 1 - 1e-5)
            log_p = (batch * p.log() + (1 - batch) * (1 - p).log()).flatten(1).sum(1)
            log_q = -0.5 * (logvar + (z - mu).square() / logvar.exp()).sum(1)
            log_w.append(log_p - 0.5 * z.square().sum(1) - log_q)
        found.append(torch.cat(log_w).logsumexp(0) - math.log(k))
    return torch.stack(found)


def our_log_marginal(enc, dec, x, k):
    with torch.no_grad():
        mu, logvar = enc(x)
    return evaluation.log_marginal(
        x, mu, logvar, lambda x, z: vae.bernoulli_log_likelihood(x, dec(z)), k
    )[0]


def peak_memory(call):
    """The most bytes of tensors that were alive at once within call()."""
    kind = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kind, profile_memory=True) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def bench_eval():
    x = (torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    for arch in ("fc", "conv"):
        nets = mnist_vae(arch)
        r, a, b = ratio(
            lambda: usual_log_marginal(*nets, x, 500, torch.Generator().manual_seed(0)),
            lambda: our_log_marginal(*nets, x, 500),
            calls=1,
        )
        row(f"log p_k(x), 20 images, k = 500, {arch}", "encoding every 100 samples", a, b, r)
        few, many = (peak_memory(lambda: our_log_marginal(*nets, x, k)) for k in (500, 5000))
        print(f"  its tensors take {few / 1e6:.1f} MB at k = 500, {many / 1e6:.1f} MB at k = 5,000")

    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10_000, 2048, generator=rng, dtype=torch.float64) for _ in "xy")
    mean, cov1, cov2 = torch.zeros(2048), x.T.cov(), y.T.cov()

    def usual():
        root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real.trace()
        return (cov1.trace() + cov2.trace()).item() - 2 * root

    def ours():
        return evaluation.frechet(mean, cov1, mean, cov2)

    with threadpoolctl.threadpool_limits(torch.get_num_threads()):  # scipy brings its own BLAS
        r, a, b = ratio(usual, ours, rounds=5, calls=1)
    row("Frechet distance of 2,048 features", "scipy's sqrtm", a, b, r)


def bench_vae(data_dir):
    """An epoch of the 784-400-20 VAE on MNIST: a DataLoader over torchvision's set with ToTensor,
    Adam's loop and a loss read every step, against a loop as vae.train has it."""
    try:
        root, data = Path(data_dir), load("mnist", data_dir)
    except DataError as error:
        return print(f"epoch of the 784-400-20 VAE: left out ({error})")
    torchvision()
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    shape = (1, 28, 28)
    options = dict(model=["vae"], arch="fc", hidden=[400], z_dim=20, activation="relu", seed=0)
    nets = [vae.build(shape, options)["vae"] for _ in range(2)]
    usual, ours = ([part["enc"], part["dec"]] for part in nets)
    parameters = [[p for net in nets for p in net.parameters()] for nets in (usual, ours)]
    opt, fused = (torch.optim.Adam(p, 1e-3, fused=f) for p, f in zip(parameters, (False, True)))
    images = torch.utils.data.Subset(
        MNIST(root, transform=ToTensor(), download=True), range(len(data.train))
    )
    loaders = [
        torch.utils.data.DataLoader(images, 128, shuffle=True, drop_last=True, num_workers=n)
        for n in (0, 2)
    ]
    rng, args = torch.Generator().manual_seed(0), argparse.Namespace(likelihood="bernoulli")

    def usual_epoch(loader):
        total, (enc, dec) = 0.0, usual
        for x, _ in loader:
            mu, logvar = enc(x)
            z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
            bce = nn.functional.binary_cross_entropy(dec(z).sigmoid(), x, reduction="sum")
            loss = (bce - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()) / len(x)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item()

    def our_epoch():
        terms = []
        for index in batches(data.train, 128, rng):
            x = data.train.images(index)  # grey, as there
            recon, kl = vae.vae_losses(*ours, x, torch.randn(len(x), 20, generator=rng), args)
            fused.zero_grad()
            (recon + kl).backward()
            fused.step()
            terms.append(torch.stack([recon, kl]).detach())
        torch.stack(terms).mean(0).tolist()

    rows = [
        (*ratio(lambda: usual_epoch(loader), our_epoch, rounds=5, calls=1), workers)
        for loader, workers in zip(loaders, ("no workers", "2 workers"))
    ]
    r, a, b, workers = min(rows)  # the faster of the two
    row("epoch of the 784-400-20 VAE, MNIST", f"a DataLoader with {workers}", a, b, r)


def adams(*nets):
    """An Adam for each, fused, with the betas of networks that play against each other."""
    return [torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.999), fused=True) for net in nets]


def bench_mathieu(shape=(1, 28, 28), batch=128):
    """A step as the loop of mathieu.train takes it, and one that decodes each use by itself, makes
    the images for Disc again, and computes gradients of Disc that only Enc and Dec cause."""
    args = {"z_dim": 16, "s_dim": 16, "adv_weight": 1.0, "n_classes": 10, "seed": 0}
    enc, dec, disc = mathieu.build(shape, args).values()
    weights = [*enc.parameters(), *dec.parameters()]
    opt, opt_disc = adams(nn.ModuleList([enc, dec]), disc)
    x, noise = torch.rand(2 * batch, *shape), torch.randn(2 * batch, 16)
    prior, y = torch.randn(batch // 2, 16), torch.randint(10, (batch,))
    x1, x2 = x.chunk(2)
    entropy = mathieu.cross_entropy

    def encode(image, eps):
        mu, logvar, s = enc(image)
        return mu + (0.5 * logvar).exp() * eps, s, mathieu.kl_divergence(mu, logvar).mean()

    def plain():
        z1, s1, kl1 = encode(x1, noise[:batch])
        z2, s2, kl2 = encode(x2, noise[batch:])
        other_z = torch.cat([prior, z1.roll(1, 0)[batch // 2 :]])
        swap = (mathieu.squared_error(dec(z1, s2), x1) + mathieu.squared_error(dec(z2, s1), x2)) / 2
        own = mathieu.squared_error(dec(z1, s1), x1)
        adv = entropy(disc(dec(other_z, s1), y), 0.95)
        opt.zero_grad()
        (0.35 * swap + 0.05 * own + (kl1 + kl2) / 2 + adv).backward()
        opt.step()
        with torch.no_grad():
            z1, s1, _ = encode(x1, noise[:batch])
            fake = dec(torch.cat([prior, z1.roll(1, 0)[batch // 2 :]]), s1)
        opt_disc.zero_grad()
        ((entropy(disc(x1, y), 0.95) + entropy(disc(fake, y), 0.0)) / 2).backward()
        opt_disc.step()

    def ours():
        swap, own, kl, fake = mathieu.reconstruct_and_swap(enc, dec, x, noise, prior)
        adv = entropy(disc(fake, y), 0.95)
        opt.zero_grad()
        (0.35 * swap + 0.05 * own + kl + adv).backward(inputs=weights)
        opt.step()
        opt_disc.zero_grad()
        loss_fake = entropy(disc(fake.detach(), y), 0.0)
        ((entropy(disc(x1, y), 0.95) + loss_fake) / 2).backward()
        opt_disc.step()

    r, a, b = ratio(plain, ours)
    row("mathieu step, mnist 28x28", "a pass for every use, unused gradients", a, b, r)


def bench_dann(data_dir, n=3200, half=64):
    """An epoch of DANN on n images of either domain: beside the arithmetic of its steps alone, and
    beside a DataLoader that opens a PNG file an image, the net as one first writes it."""
    torchvision()
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    args = argparse.Namespace(
        source="digits", target="digitsm", data="", data_dir=data_dir, image_size=32, limit=n,
        seed=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        domains = [dann.read(name, args).train for name in ("digits", "digitsm")]
        index = [torch.arange(n) % len(split) for split in domains]
        domains = [Split(s.x[i].expand(-1, 3, -1, -1), s.y[i]) for s, i in zip(domains, index)]
        for name, split in zip("st", domains):
            for i, (image, y) in enumerate(zip(split.x, split.y.tolist())):
                path = Path(folder, name, str(y), f"{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        torch.manual_seed(0)
        plain = dann.Net(32, 10)
        ours = dann.Net(32, 10).to(memory_format=torch.channels_last)
        opts = [
            torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=net is ours)
            for net in (plain, ours)
        ]

        def step(net, opt, x, y, x_target):
            logits, logits_source, _ = net(x, 0, 0.5)
            _, logits_target, _ = net(x_target, 1, 0.5)
            label = nn.functional.cross_entropy(logits, y)
            loss = label + dann.domain_loss(logits_source, logits_target)
            opt.zero_grad()
            loss.backward()
            opt.step()

        def files(workers):
            loaders = [
                torch.utils.data.DataLoader(
                    ImageFolder(str(Path(folder, name)), lambda image: pil_to_tensor(image) / 255),
                    half, shuffle=True, num_workers=workers,
                )
                for name in "st"
            ]  # fmt: skip
            for (x, y), (x_target, _) in zip(*loaders):
                step(plain, opts[0], x, y, x_target)

        rng = torch.Generator().manual_seed(0)
        fixed = [split.images(torch.arange(half)) for split in domains]

        def epoch():
            for s, t in zip(*(batches(split, half, rng) for split in domains)):
                source, target = domains
                step(ours, opts[1], source.images(s), source.y[s], target.images(t))

        def bare():
            for _ in range(n // half):
                step(ours, opts[1], fixed[0], domains[0].y[:half], fixed[1])

        r, a, b = ratio(epoch, bare, calls=1)
        print(f"{'epoch of DANN, 32x32':44s} {r:.3f} times its arithmetic on one fixed batch")
        rows = [
            (*ratio(lambda: files(workers), epoch, rounds=5, calls=1), workers)
            for workers in (0, 2)
        ]
        r, a, b, workers = min(rows)
        row("epoch of DANN, 32x32", f"PNG files in a DataLoader, {workers} workers", a, b, r)


def bench_vaegan(shape=(1, 28, 28), batch=64):
    """A step as the loop of vaegan.train takes it, and one that makes every network's loss anew and
    goes back through all three networks."""
    for arch, z_dim in (("fc", 20), ("conv", 32)):
        args = {"arch": arch, "hidden": [400], "width": 16, "z_dim": z_dim, "seed": 0}
        nets = list(vaegan.build(shape, {**args, "model": ["vaegan"]})["vaegan"].values())
        weights = [list(net.parameters()) for net in nets]
        opts = adams(*nets)
        opt = torch.optim.Adam(sum(weights, []), 1e-3, (0.5, 0.999), fused=True)
        x, (noise, z_p) = torch.rand(batch, *shape), torch.randn(2, batch, z_dim)

        def losses():
            terms = vaegan.vaegan_losses(*nets, x, noise, z_p, 1.0)
            return (
                terms["prior"] + terms["dis_l"],
                0.01 * terms["dis_l"] + terms["dec_gan"],
                terms["dis_real"] + terms["dis_fake"],
            )

        def plain():
            for i, own in enumerate(opts):
                loss = losses()[i]
                for net in nets:
                    net.zero_grad()
                loss.backward()
                own.step()

        def ours():
            all_losses = losses()
            opt.zero_grad()
            for loss, own in zip(all_losses, weights):
                loss.backward(inputs=own, retain_graph=loss is not all_losses[-1])
            opt.step()

        r, a, b = ratio(plain, ours)
        row(f"vaegan step, {arch}, mnist 28x28", "three passes, unused gradients", a, b, r)


def bench_gan(shape=(1, 28, 28), batch=128):
    """A step as the loop of flowvae_gan.train_gan takes it, and one that makes the fakes twice and
    computes gradients of the other network."""
    args = {"width": 32, "z_dim": 32, "model": ["gan"], "couplings": 8, "flow_fit": [], "seed": 0}
    gen, disc = flowvae_gan.build(shape, args)["gan"].values()
    of_gen, of_disc = list(gen.parameters()), list(disc.parameters())
    opts = adams(gen, disc)
    opt = torch.optim.Adam(of_gen + of_disc, 1e-3, (0.5, 0.999), fused=True)
    x, z = torch.rand(batch, *shape), torch.randn(batch, 32)

    def plain():
        for i, own in enumerate(opts):
            gen.zero_grad()
            disc.zero_grad()
            flowvae_gan.gan_losses(disc(x), disc(gen(z).sigmoid()), 0.9)[i].backward()
            own.step()

    def ours():
        loss_gen, loss_disc = flowvae_gan.gan_losses(disc(x), disc(gen(z).sigmoid()), 0.9)
        opt.zero_grad()
        loss_gen.backward(inputs=of_gen, retain_graph=True)
        loss_disc.backward(inputs=of_disc)
        opt.step()

    r, a, b = ratio(plain, ours)
    row("GAN step, mnist 28x28", "fakes made twice, unused gradients", a, b, r)


TRAIN = """
import sys, {script} as script
script.evaluate = script.evaluate_images = lambda *_: None
script.main(sys.argv[1:])
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
RUNS = {  # as a user types them, but for the set
    "cyclevae": ["--data", "mnist"],
    "mathieu": ["--data", "mnist"],
    "vae": ["--data", "mnist"],
    "dann": ["--task", "images"],
    "vaegan": ["--data", "mnist"],
    "flowvae_gan": ["--data", "mnist", "--model", "vae"],
}


def trained(script, data_dir, limit, epochs=1, **environment):
    """A process that trains on so many images and does not evaluate: (seconds until it has its
    data, seconds an epoch, images a second, peak memory in MB)."""
    with tempfile.TemporaryDirectory() as out:
        words = [*RUNS[script], "--limit", limit, "--epochs", epochs, "--out", out]
        words += ["--data-dir", Path(data_dir).resolve(), "--overwrite"]
        start = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, "-c", TRAIN.format(script=script), *map(str, words)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | environment,
        )
        run.stdout.readline()  # the line with the size of the set
        began = time.perf_counter() - start
        peak = run.stdout.read().split()[-2]  # kB; getrusage has the parent's where that is more
        assert run.wait() == 0, f"{script} ended with status {run.returncode}"
        with open(Path(out) / "log.csv") as file:
            rows = list(csv.DictReader(file))
    keys = ("seconds", "images_per_second")
    seconds, speed = (statistics.mean(float(line[key]) for line in rows) for key in keys)
    return began, seconds, speed, int(peak) / 1024


def bench_runs(data_dir):
    """Start-up, images a second and peak memory of a tenth of MNIST's images and of all.

    What a script holds is its peak where glibc gives every large tensor back to the system once it
    is freed. As it comes it keeps them for later, more with every step, which saves time."""
    for name in ("mnist", "mnistm"):  # their caches are made but once, and not by these processes
        for limit in (6000, 60_000):
            load(name, data_dir, limit=limit)
    for script in RUNS:
        (start, short, speed, _), (_, long, _, peak) = (
            trained(script, data_dir, limit, epochs) for limit, epochs in ((6000, 3), (60_000, 1))
        )
        low, high = (
            trained(script, data_dir, limit, MALLOC_MMAP_THRESHOLD_="131072")[3]
            for limit in (6000, 60_000)
        )
        print(
            f"{script:11s} starts in {start:.1f} s, {speed:,.0f} images/s, peaks at {peak:,.0f} MB;"
            f" with ten times the images an epoch takes {long / short:.1f} times as long, what "
            f"it holds grows from {low:,.0f} by {high - low:,.0f} MB",
            flush=True,
        )


def row(what, baseline, slow, fast, r):
    times = f"{1e3 * slow:.1f} ms / {1e3 * fast:.1f} ms"
    print(f"{what:44s} {r:.2f} times as fast as {baseline} ({times})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data-dir", default="data", help="where MNIST lies")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    info = Path("/proc/cpuinfo")
    amx = "with" if info.exists() and "amx_bf16" in info.read_text() else "without"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {amx} AMX (for --amp)")
    bench_cyclevae()
    bench_data()
    bench_eval()
    bench_vae(arguments.data_dir)
    bench_dann(arguments.data_dir)
    bench_mathieu()
    bench_vaegan()
    bench_gan()
    bench_runs(arguments.data_dir)
