"""Disentangling with an adversary: Mathieu et al., NIPS 2016, https://arxiv.org/abs/1611.03383

Input: images with class labels. Output: two codes per image. s (specified) is meant to hold the
class and nothing else, z (unspecified) the rest.

x_1 and x_2 of one class y, z_i ~ q(z|x_i), z' ~ N(0, I) or the z of another image (section 3):
    L_swap = |x_1 - Dec(z_1, s_2)|^2, and 1 and 2 exchanged;  L_own = |x_1 - Dec(z_1, s_1)|^2
    L_adv  = -log Disc(Dec(z', s_1), y)
    L_Disc = -log Disc(x_1, y) - log(1 - Disc(Dec(z', s_1), y))
Enc and Dec minimize recon_weight L_swap + own_weight L_own + kl_weight KL(q(z|x) || N(0, I)) +
adv_weight L_adv, Disc minimizes L_Disc / 2. reconstruct_and_swap computes the first three terms
and the decoded images, cross_entropy the logarithms. The paper adds L_adv because L_swap does not
stop z from encoding the class. Measured, L_adv makes swaps realistic, but z predicts no less.

Loss terms are sums over pixels or latents and means over images. In this unit the authors' weights
are 4, 2, 0.6, 0.01 C H W: z then holds 35 nats and predicts 97 % of the digits, with ours 6 and 26.

    python mathieu.py                   # MNIST, about an hour on one core
    python mathieu.py --data yaleb      # the person in s, the light in z
    python mathieu.py --adv-weight 0    # the ablation: distance of swapped images 22.5, not 0.8

Departures from the paper:
- z' comes from N(0, I) for half of the images; in the authors' code that path trains nothing.
- Enc computes z without looking at s, as in the authors' code; in the paper z depends on s.
- All networks use Adam and are smaller than the authors'. The step size falls on a cosine to
  lr_floor of its start, and Disc's is disc_lr times as large, so that the adversary settles.
- best.pt is the last epoch, because a loss against an adversary does not rank epochs.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import batches, load as load_data, need_pairs, pairs, pick
from eval import (Run, classifier, common_flags, cosine, curves, decode, draw_codes, encode_splits,
                  fid, grid, load_networks, make_rng, number, parse, percent, probe_codes,
                  run_command, set_lr)

PRESETS = {"digits": dict(epochs=100), "yaleb": dict(s_dim=64, z_dim=64, epochs=100, lr_floor=0.1),
           "faces": dict(s_dim=64, z_dim=64, epochs=500), "multipie": dict(s_dim=64, z_dim=64),
           "sprites": dict(s_dim=64, z_dim=64, disc_lr=0.2, disc_noise=0.5),
           "sprites2015": dict(s_dim=64, z_dim=64, epochs=35)}
SMOKE = dict(data="digits", limit=640, batch_size=32, epochs=15)
REAL_LABEL = 0.95           # in place of 1, for L_Disc and L_adv, as in the authors' code

# %% Networks


class Encoder(nn.Module):
    """x (B, C, H, H) -> mu (B, Z) and logvar (B, Z) of q(z|x), and s (B, S)."""

    def __init__(self, channels, size, z_dim, s_dim):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.Conv2d(16, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.Conv2d(32, 64, 5, 2, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
            nn.Flatten())
        width = 64 * ((size + 7) // 8)**2                   # sides of the maps: 28, 14, 7, 4
        self.mu = nn.Linear(width, z_dim)
        self.logvar = nn.Linear(width, z_dim)
        self.s = nn.Linear(width, s_dim)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h), self.s(h)


class Decoder(nn.Module):
    """z (B, Z), s (B, S) -> images (B, C, H, H) in [0, 1]."""

    def __init__(self, channels, size, z_dim, s_dim):
        super().__init__()
        size1 = (size + 1) // 2                             # 14, 7, 4 for 28 pixels
        size2 = (size + 3) // 4
        size3 = (size + 7) // 8
        self.up = nn.Sequential(
            nn.Linear(z_dim + s_dim, 64 * size3**2), nn.Unflatten(1, (64, size3, size3)),
            nn.BatchNorm2d(64), nn.ReLU(True),                                  # (B, 64, 4, 4)
            nn.ConvTranspose2d(64, 32, 5, 2, 2, 1 - size2 % 2, bias=False),
            nn.BatchNorm2d(32), nn.ReLU(True),                                  # (B, 32, 7, 7)
            nn.ConvTranspose2d(32, 16, 5, 2, 2, 1 - size1 % 2, bias=False),
            nn.BatchNorm2d(16), nn.ReLU(True),                                  # (B, 16, 14, 14)
            nn.ConvTranspose2d(16, channels, 5, 2, 2, 1 - size % 2),
            nn.Sigmoid())                                                       # (B, C, 28, 28)

    def forward(self, z, s):
        return self.up(torch.cat([z, s], 1))


class Discriminator(nn.Module):
    """Images x (B, C, H, H) and classes y (B,) -> logits (B,) that x is a real image of class y.

    An embedding of the class is added to the maps of each layer."""

    def __init__(self, channels, size, n_classes):
        super().__init__()
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.embeddings = nn.ModuleList()
        for maps in (16, 32, 64):
            self.convs.append(nn.Conv2d(channels, maps, 5, 2, 2))
            # Statistics of the batch, which is all real or all decoded; no running ones.
            self.norms.append(nn.BatchNorm2d(maps, track_running_stats=False))
            embedding = nn.Embedding(n_classes, maps * 4 * 4)
            nn.init.normal_(embedding.weight, std=0.1)      # N(0, 1) would drown the image
            self.embeddings.append(embedding)
            channels = maps
        self.head = nn.Linear(64 * ((size + 7) // 8)**2, 1)

    def forward(self, x, y):
        for conv, norm, embedding in zip(self.convs, self.norms, self.embeddings):
            x = conv(x)                                     # (B, 16, 14, 14), (B, 32, 7, 7), ...
            maps = embedding(y).unflatten(1, (-1, 4, 4))    # (B, 16, 4, 4)
            x = x + F.interpolate(maps, x.shape[2:])
            x = F.leaky_relu(norm(x), 0.2)
        return self.head(x.flatten(1))[:, 0]


def build(shape, args):
    """{"enc", "dec"} for images of `shape` (C, H, W), and "disc" if adv_weight is not 0."""
    channels, size, _ = shape
    with torch.random.fork_rng(devices=[]):                 # leaves a notebook's generator alone
        torch.manual_seed(args["seed"])
        nets = {"enc": Encoder(channels, size, args["z_dim"], args["s_dim"]),
                "dec": Decoder(channels, size, args["z_dim"], args["s_dim"])}
        if args["adv_weight"] > 0:
            nets["disc"] = Discriminator(channels, size, args["n_classes"])
    return nets


def load(path, device="cpu"):
    """The trained {"enc": Encoder, "dec": Decoder, "disc": Discriminator} of a checkpoint such as
    RUN/best.pt, without "disc" if no adversary was trained."""
    return load_networks(path, "mathieu", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,) of mu and logvar (B, Z)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def squared_error(recon, x):
    """Squared error of images (B, C, H, W), summed over pixels, the mean over images."""
    return F.mse_loss(recon, x, reduction="sum") / len(x)


def cross_entropy(logits, target):
    """-target log Disc - (1 - target) log(1 - Disc) in nats, the mean over logits (B,) of Disc."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def add_noise(images, sigma, rng):
    """Images with Gaussian noise, which hides details from Disc that are too fine for a decoder."""
    if sigma == 0:
        return images
    return images + sigma * torch.randn(images.shape, generator=rng, device=images.device)


def reconstruct_and_swap(enc, dec, x, noise, prior):
    """Encodes each image once and decodes all images of a step in one batch.

    x (2B, C, H, W): B images, then for each of them a partner of the same class; noise (2B, Z) and
    prior (B // 2, Z) from N(0, I). Returns L_swap, L_own, the KL in nats, and the images for Disc
    (B, C, H, W) with the s of the first B and z' from `prior` for half of them, that of the
    preceding image for the others."""
    half = len(x) // 2
    mu, logvar, s = enc(x)                                  # (2B, Z), (2B, Z), (2B, S)
    mu = mu.to(x.dtype)                                     # from bfloat16 with --amp
    logvar = logvar.to(x.dtype)
    z = mu + (0.5 * logvar).exp() * noise
    partner_s = s.roll(half, 0)                             # row i has the s of its partner
    other_z = torch.cat([prior, z[:half].roll(1, 0)[len(prior):]])
    out = dec(torch.cat([z, z[:half], other_z]), torch.cat([partner_s, s[:half], s[:half]]))
    swapped, own, fake = out.to(x.dtype).split([2 * half, half, half])
    return (squared_error(swapped, x), squared_error(own, x[:half]),
            kl_divergence(mu, logvar).mean(), fake)


# %% Training


@torch.no_grad()
def validation(enc, dec, split, pool, seed, net=None):
    """L_swap and KL of a split, means over its images, each with a sampled z and the s of another
    image of the class from `pool`, a Split; and the swap accuracy: how often the classifier `net`
    recognizes the class of s, decoded with the mean of z of another class (0 without `net`)."""
    rng = make_rng(seed, "validation", split.device)
    total = torch.zeros(2, device=split.device)
    hits = 0
    swaps = 0
    for idx in torch.randperm(len(split), generator=rng, device=split.device).split(500):
        x = split.images(idx)
        y = split.y[idx]
        mu, logvar, _ = enc(x)
        _, _, s = enc(pool.images(pairs(split, idx, rng, pool)))
        z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=rng, device=mu.device)
        swap = squared_error(dec(z, s), x)
        kl = kl_divergence(mu, logvar).mean()
        total += torch.stack([swap, kl]) * len(x) / len(split)
        if net is not None:
            predicted = net.predict(dec(mu.roll(1, 0), s))  # z of the preceding image
            other = y.roll(1) != y
            hits += int((predicted == y)[other].sum())
            swaps += int(other.sum())
    return [*total.tolist(), hits / max(1, swaps)]


def train(run, data, classifier_net):
    """Trains the networks; best.pt is the last epoch. classifier_net measures the swap accuracy of
    each epoch and has no part in the training."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))
    for net in nets.values():
        net.to(device)
        if args.compile:
            net.compile()
    enc = nets["enc"]
    dec = nets["dec"]
    disc = nets.get("disc")                                 # None without an adversary
    weights = [*enc.parameters(), *dec.parameters()]
    adam = dict(lr=args.lr, betas=(0.5, 0.999), fused=device.type != "mps")
    opt = torch.optim.Adam(weights, **adam)
    rng = make_rng(args.seed, "training", device)
    parts = {**nets, "opt": opt, "rng": rng}
    if disc is not None:
        opt_disc = torch.optim.Adam(disc.parameters(), **adam)
        parts["opt_disc"] = opt_disc
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)

    for epoch in range(run.resume(**parts), args.epochs):
        enc.train()
        dec.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            progress = (epoch + step / run.steps_per_epoch) / args.epochs
            lr = args.lr * (args.lr_floor + (1 - args.lr_floor) * cosine(progress))
            set_lr(opt, lr)
            partners = pairs(data.train, idx, rng)
            x = data.train.images(torch.cat([idx, partners]))                   # (2B, C, H, W)
            y = data.train.y[idx]
            noise = torch.randn(len(x), args.z_dim, generator=rng, device=device)
            prior = torch.randn(len(y) // 2, args.z_dim, generator=rng, device=device)

            # Enc and Dec: reconstruct with one's own and the partner's s, and deceive Disc.
            with autocast:
                swap, own, kl, fake = reconstruct_and_swap(enc, dec, x, noise, prior)
                loss = args.recon_weight * swap + args.own_weight * own + args.kl_weight * kl
                if disc is not None:
                    adv = cross_entropy(disc(add_noise(fake, args.disc_noise, rng), y), REAL_LABEL)
                    loss = loss + args.adv_weight * adv
            opt.zero_grad()
            loss.backward(inputs=weights)
            opt.step()
            run.track(swap=swap, own=own, kl=kl)

            # Disc: tell real images of the class from the decoded ones.
            if disc is not None:
                set_lr(opt_disc, lr * args.disc_lr)
                real = add_noise(x[:len(y)], args.disc_noise, rng)
                fake = add_noise(fake.detach(), args.disc_noise, rng)
                with autocast:
                    real_logits = disc(real, y)
                    fake_logits = disc(fake, y)
                loss_fake = cross_entropy(fake_logits, 0.0)
                loss_disc = (cross_entropy(real_logits, REAL_LABEL) + loss_fake) / 2
                opt_disc.zero_grad()
                loss_disc.backward()
                opt_disc.step()
                unsmoothed = (cross_entropy(real_logits.detach(), 1.0) + loss_fake) / 2
                run.track(adv=adv, disc=loss_disc, disc_unsmoothed=unsmoothed,
                          real_acc=(real_logits > 0).float().mean(),
                          fake_acc=(fake_logits < 0).float().mean())

        enc.eval()
        dec.eval()
        swap, kl, accuracy = validation(enc, dec, data.val, data.train, args.seed, classifier_net)
        run.end_epoch(val_swap=swap, val_kl=kl, val_swap_acc=accuracy)


# %% Evaluation

# Column of the log: its name, by how much it may change, and where its mean must lie.
SETTLED = {"adv": ("adversarial loss of Enc and Dec, nats", 0.05, 0.0, math.inf),
           "disc": ("loss of Disc, nats per term", 0.05, 0.0, math.inf),
           "disc_unsmoothed": ("loss of Disc if its labels are 1 and 0, nats", 0.05, 0.3, math.inf),
           "real_acc": ("accuracy of Disc on real images", 0.03, 0.45, 0.95),
           "fake_acc": ("accuracy of Disc on decoded images", 0.03, 0.45, 0.95)}


def convergence(history, lr_floor):
    """{column: {mean, change, holds}} over the last fifth of the log, n epochs, and whether the
    adversary has settled: None with fewer than 15 epochs, False if lr_floor is below 0.1, since
    every curve is flat at a vanishing step size. change: the slope of a fitted line times n."""
    n = len(history) // 5
    found = {}
    for column, (_, limit, low, high) in SETTLED.items():
        values = np.array([row[column] for row in history[-max(n, 1):]])
        mean = float(values.mean())
        found[column] = {"mean": mean, "change": None, "holds": None}
        if n >= 3:
            change = n * float(np.polyfit(np.arange(n), values, 1)[0])
            holds = low <= mean <= high and abs(change) < limit
            found[column].update(change=change, holds=holds)
    if n < 3:
        return found, None
    return found, lr_floor >= 0.1 and all(part["holds"] for part in found.values())


def report_adversary(run, results):
    """The adversary's curves, its last fifth in a table, and whether it has settled."""
    results.update(adversary=None, converged=None)
    if "disc" not in run.history[-1]:
        run.note("No adversary was trained.")
        return
    run.figure("adversary", curves(run.history, {
        "loss per term, nats": {"Enc and Dec": "adv", "Disc": "disc"},
        "accuracy of Disc": {"real images": "real_acc", "decoded images": "fake_acc"},
        "class of s recognized": {"validation, z of another class": "val_swap_acc"}},
        chance={"loss per term, nats": math.log(2), "accuracy of Disc": 0.5}),
        "A settled adversary has flat curves away from 100 %. The grey lines are where Disc can "
        "only guess: ln 2 = 0.69 nats and 50 %.")
    found, converged = convergence(run.history, run.args.lr_floor)
    results.update(adversary=found, converged=converged)
    rows = []
    for column, (name, limit, low, high) in SETTLED.items():
        part = found[column]
        bounds = f"{low} to {high}"
        if high == math.inf:
            bounds = f"above {low}" if low > 0 else None
        rows.append((name, part["mean"], bounds, part["change"], limit))
    run.table("Has the adversary settled?", ("over the last fifth of the epochs", "mean",
              "must lie in", "change", "limit"), rows,
              "Change: the slope of a fitted line times the epochs of the last fifth. Disc is "
              f"trained with labels of {REAL_LABEL} and 0.")
    verdict = {True: "has settled: every mean and change is within its limits in the table",
               False: "has not settled: a mean or a change is outside its limits in the table",
               None: "shows nothing yet, since fewer than 15 epochs were trained"}
    if run.args.lr_floor < 0.1:
        verdict[False] = ("cannot be judged: the step size falls below a tenth of its start "
                          "(--lr-floor), and then every curve becomes flat")
    run.note(f"Over the last fifth of the epochs the adversary {verdict[converged]}.")


def report_swaps(run, data, code, dec, net, prior, results, lenet_images):
    """The share of images with a swapped s in which the classifier `net` recognizes the class of s,
    and their Frechet distance from real ones; z: the mean of another image's, or `prior` (N, Z)."""
    y = data.test.y
    rng = make_rng(run.args.seed, "swaps", run.device)
    giver = torch.randperm(len(y), generator=rng, device=run.device)
    results["fid_floor"] = None
    for name, z in (("swap", code.mu), ("prior", prior)):
        images = decode(dec, z, code.s[giver])
        right = (net.predict(images) == y[giver])[y != y[giver]]
        results[f"{name}_class_acc"] = right.sum().item() / max(1, len(right))
        results[f"{name}_fid"] = None
        if len(y) > 128:                                    # the number of features
            found = fid("lenet", data, run.args.data_dir, images, run.args.seed, lenet_images)
            results.update({f"{name}_fid": found["value"], "fid_floor": found["floor"]})
    verdict = "the decoder takes the class from s"
    if results["swap_class_acc"] < 0.5 * results["real_class_acc"]:
        verdict = "the decoder does not take the class from s alone"
    run.note(f"The class of s is recognized in {percent(results['swap_class_acc'])} of the images "
             f"with the z of another class (real images {percent(results['real_class_acc'])}): "
             f"{verdict}. With z from N(0, I) it is in {percent(results['prior_class_acc'])}.")
    if results["swap_fid"] is not None:
        run.note("Frechet distances from test images, in features of a LeNet: "
                 f"{results['swap_fid']:.1f} with the z of another image, "
                 f"{results['prior_fid']:.1f} with z from N(0, I), {results['fid_floor']:.1f} of "
                 "training images. Compare runs with and without the adversary.")


@torch.no_grad()
def evaluate(run, data, nets):
    """Figures, probes and the adversary's stability, from the last epoch; writes the report."""
    args = run.args
    test = data.test
    enc = nets["enc"]
    dec = nets["dec"]
    steps, points, lenet_images = (200, 300, 10_000) if args.smoke else (2000, 2000, 100_000)
    recon, kl, _ = validation(enc, dec, test, data.train or test, args.seed)
    results = {"test_recon": recon, "test_kl": kl, "summary": None, "paper": None}
    report_adversary(run, results)
    run.figure("curves", curves(run.history, {
        "squared error per image": {"partner's s, train": "swap", "own s, train": "own",
                                    "partner's s, validation": "val_swap"},
        "KL, nats per image": {"train": "kl", "validation": "val_kl"}}),
        "A partner is another image of the class, for validation one of train. Train and "
        "validation should stay together. A KL near zero means that z is unused.")
    run.report_curve("The squared error with a partner's s", "swap", "val_swap")
    run.stage("codes and samples")
    codes = encode_splits(enc, data)
    code = codes["test"]
    rng = make_rng(args.seed, "samples", run.device)
    idx = pick(test.y, 10, args.seed)
    partners = pairs(test, idx, rng)
    rows = torch.stack([test.images(idx), dec(code.mu[idx], code.s[idx]),
                        test.images(partners), dec(code.mu[idx], code.s[partners])])
    run.figure("reconstructions", grid(rows, ["original", "own s", "partner", "partner's s"]),
               "From the mean of z. With the s of a partner, another image of the class, an image "
               "should look as with its own.")
    prior = torch.randn(max(64, len(test)), args.z_dim, generator=rng, device=run.device)
    samples = dec(prior[:8].repeat_interleave(len(idx), 0), code.s[idx].repeat(8, 1))
    rows = torch.cat([test.images(idx)[None], samples.unflatten(0, (8, len(idx)))])
    run.figure("samples", grid(rows, ["s from"] + [f"z {k}" for k in range(1, 9)]),
               "z 1 to z 8 are draws from N(0, I). Each column should be of one class, each row "
               "of one style.")
    styles = dec(prior[:63], code.s[idx[-1:]].expand(63, -1))
    rows = torch.cat([test.images(idx[-1:]), styles]).unflatten(0, (8, 8))
    run.figure("styles", grid(rows), "The first image is a test image. The others have its s and "
               "draws of z from N(0, I): it should be one class in many styles.")
    net = None
    if data.train is not None:
        run.stage("probes")
        results.update(probe_codes(run, data, codes, steps))
        run.stage("classifier and Frechet distance")
        net, results["real_class_acc"] = classifier(data, args.data_dir, lenet_images)
        report_swaps(run, data, code, dec, net, prior[:len(test)], results, lenet_images)
        results["summary"] = {
            "s in %": 100 * results["s_test_acc"], "sampled z in %": 100 * results["z_test_acc"],
            "mean of z in %": 100 * results["z_mean_test_acc"],
            "chance in %": 100 * results["chance"], "KL in nats": kl,
            "active dimensions": results["active_dims"], "squared error": recon,
            "class of s in swaps in %": 100 * results["swap_class_acc"],
            "Frechet distance of swaps": results["swap_fid"]}
    run.stage("swap grids, interpolations, t-SNE")
    draw_codes(run, data, codes, dec, net, points)
    if args.data == "mnist" and args.adv_weight > 0 and args.s_dim == args.z_dim == 16:
        results["paper"] = "s 98.52 %, z 66.83 % (a port of it, Jha et al., Table 1)"
    run.finish(f"Disentangling with an adversary on {args.data}", results)


# %% Command line


def main(argv=None):
    parser = common_flags("mathieu", __doc__, epochs=20, batch_size=128, lr=2e-3, presets=PRESETS)
    add = parser.add_argument
    add("--s-dim", type=number(int, low=1, high=4096), default=16, help="size of s")
    add("--z-dim", type=number(int, low=1, high=4096), default=16, help="size of z")
    add("--recon-weight", type=number(float, above=0), default=0.35, help="weight of L_swap")
    add("--own-weight", type=number(float, low=0), default=0.05, help="weight of L_own")
    add("--kl-weight", type=number(float, low=0), default=1.0, help="weight of the KL")
    add("--adv-weight", type=number(float, low=0), default=1.0, help="of L_adv; 0: no adversary")
    add("--disc-lr", type=number(float, above=0), default=0.5, help="step size of Disc / --lr")
    add("--disc-noise", type=number(float, low=0), default=0.0,
        help="standard deviation of noise on the images that Disc sees, pixels in [0, 1]")
    add("--lr-floor", type=number(float, low=0, high=1), default=0.2, help="last step size / --lr")
    args = parse(parser, argv, PRESETS, SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if not args.weights:
        need_pairs(data.train, data.classes)
    args.n_classes = len(data.classes)                      # of Disc's embeddings
    run = Run("mathieu", args, data)
    if not args.weights:
        run.stage("classifier")
        net, _ = classifier(run.data, args.data_dir, 10_000 if args.smoke else 100_000)
        run.stage()
        train(run, run.data, net)
    evaluate(run, run.data, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
