"""Cycle-consistent VAE: Jha et al., ECCV 2018, https://arxiv.org/abs/1804.10469

Input: images with class labels. Output: two codes per image. s (specified) is meant to hold the
class and nothing else, z (unspecified) the rest. Training only uses which images share a class.

Forward cycle (Eq. 3), x_1 and x_2 of one class, z_i ~ q(z|x_i), each decoded with the other's s:
    L_forward = mean_i recon_weight |x_i - Dec(z_i, s_j)|^2 + kl_weight KL(q(z|x_i) || N(0, I))
Reverse cycle (Eq. 4), one z ~ N(0, I) decoded with the s of two images of any class:
    L_reverse = |mu(Dec(z, s_1)) - mu(Dec(z, s_2))|_1
forward_cycle and reverse_cycle compute them. L_forward updates encoder and decoder, L_reverse
updates the encoder only, with its own Adam.

Loss terms are sums over pixels or latents and means over images. The authors' code divides by the
number of pixels D; multiplied by D its forward loss is 2 |x - x'|^2 + 3 KL. Their reverse loss has
a weight of 10, which its own Adam cancels; here reverse_weight / 10 scales the steps of that Adam.

    python cyclevae.py                  # sprites, 10 minutes on two cores: s 100 %, z 0.03 %
    python cyclevae.py --data mnist     # Table 1, about two hours on one core
    python cyclevae.py --smoke          # everything once, in half a minute

Departures from the paper:
- Pairs are drawn anew in each epoch; the authors' loader keeps the pairs of its first pass.
- The step size follows a cosine (MNIST: the authors' steps). reverse_weight is 2 on sprites.
- The KL weight rises from 0 over the first 30 % of training; with the full weight from the start
  most dimensions of z stay unused on sprites. MNIST has no warm-up.
- A tenth of train (of MNIST 5,000 images) is held out: best.pt has the lowest L_forward on it.
- The networks for 32 and 64 pixels are ours; the authors released those for 28.
"""
import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, batches, load as load_data, need_pairs, pairs, pick
from eval import (Run, classifier, common_flags, cosine, curves, decode, draw_codes, encode_splits,
                  grid, load_networks, make_rng, number, parse, percent, predictor, probe_codes,
                  run_command, set_lr)

AUTHORS = dict(s_dim=16, z_dim=16, lr=1e-4, epochs=100, kl_warmup=0.0, schedule="step")
PRESETS = {"mnist": AUTHORS, "fashion": AUTHORS, "digits": dict(s_dim=16, z_dim=16, epochs=100),
           "yaleb": dict(epochs=100), "faces": dict(epochs=500), "sprites": dict(reverse_weight=2),
           "sprites2015": dict(reverse_weight=2, kl_weight=0.6, epochs=35, kl_warmup=0.0)}
SMOKE = dict(data="sprites", limit=640, epochs=14, batch_size=16, lr=3e-3, kl_weight=0.05)

# %% Networks


def instance_norm(channels):
    """Instance norm without weights or running statistics: group norm, one channel per group."""
    return nn.GroupNorm(channels, channels, affine=False)


def authors_init(module):
    """Weights ~ N(0, 0.05^2) and zero biases, except in transposed convolutions, as released."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.05)
        nn.init.zeros_(module.bias)


class Encoder28(nn.Module):
    """The authors' encoder: x (B, C, 28, 28) -> mu (B, Z), logvar (B, Z), s (B, S)."""

    def __init__(self, channels, z_dim, s_dim):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 1), instance_norm(16), nn.ReLU(True),  # (B, 16, 13, 13)
            nn.Conv2d(16, 32, 5, 2, 1), instance_norm(32), nn.ReLU(True),        # (B, 32, 6, 6)
            nn.Conv2d(32, 64, 5, 2, 1), instance_norm(64), nn.ReLU(True),        # (B, 64, 2, 2)
            nn.Flatten())                                                        # (B, 256)
        self.mu = nn.Linear(256, z_dim)
        self.logvar = nn.Linear(256, z_dim)
        self.s = nn.Linear(256, s_dim)
        self.apply(authors_init)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h), self.s(h)


class Decoder28(nn.Module):
    """The authors' decoder: z (B, Z), s (B, S) -> images (B, C, 28, 28) in [0, 1]. Their released
    weights were trained with ReLU, their released code has LeakyReLU."""

    def __init__(self, channels, z_dim, s_dim):
        super().__init__()
        self.z = nn.Sequential(nn.Linear(z_dim, 256), nn.ReLU())
        self.s = nn.Sequential(nn.Linear(s_dim, 256), nn.ReLU())
        self.up = nn.Sequential(
            nn.Unflatten(1, (128, 2, 2)),
            nn.ConvTranspose2d(128, 32, 4, 2), instance_norm(32), nn.ReLU(True),  # (B, 32, 6, 6)
            nn.ConvTranspose2d(32, 16, 4, 2), instance_norm(16), nn.ReLU(True),   # (B, 16, 14, 14)
            nn.ConvTranspose2d(16, channels, 4, 2, 1), nn.Sigmoid())              # (B, C, 28, 28)
        self.apply(authors_init)

    def forward(self, z, s):
        return self.up(torch.cat([self.z(z), self.s(s)], 1))


class Encoder(nn.Module):
    """Our encoder for 32 and 64 pixels: x (B, C, H, H) -> mu (B, Z), logvar (B, Z), s (B, S)."""

    def __init__(self, channels, size, z_dim, s_dim):
        super().__init__()
        layers = [nn.Conv2d(channels, 32, 4, 2, 1), instance_norm(32), nn.ReLU(True)]
        maps = 32                                           # (B, 32, 16, 16)
        while size > 8:                                     # (B, 64, 8, 8), (B, 128, 4, 4)
            layers += [nn.Conv2d(maps, 2 * maps, 3, 2, 1), instance_norm(2 * maps), nn.ReLU(True)]
            maps = 2 * maps
            size = size // 2
        self.trunk = nn.Sequential(*layers, nn.Flatten())   # (B, 2048)
        self.mu = nn.Linear(maps * 16, z_dim)
        self.logvar = nn.Linear(maps * 16, z_dim)
        self.s = nn.Linear(maps * 16, s_dim)
        self.apply(authors_init)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h), self.s(h)


class Decoder(nn.Module):
    """Our decoder for 32 and 64 pixels: z (B, Z), s (B, S) -> images (B, C, H, H) in [0, 1].

    Which colour s gives to a pixel depends on z, so both pass a hidden layer together. The last
    map is a mask: outside it the image is one learned background."""

    def __init__(self, channels, size, z_dim, s_dim):
        super().__init__()
        maps = 4 * size                                     # 128 for 32 pixels
        self.hidden = nn.Sequential(nn.Linear(z_dim + s_dim, 512), nn.LeakyReLU(0.2),
                                    nn.Linear(512, maps * 16))
        self.direct = nn.Linear(z_dim + s_dim, maps * 16)
        layers = [nn.LeakyReLU(0.2), nn.Unflatten(1, (maps, 4, 4)),                # (B, 128, 4, 4)
                  nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1), instance_norm(maps // 2)]
        while maps > 64:                                    # (B, 64, 8, 8), (B, 32, 16, 16)
            maps = maps // 2
            layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1)]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(32, 4 * channels + 4, 3, 1, 1), nn.PixelShuffle(2)]
        self.up = nn.Sequential(*layers, nn.Sigmoid())                         # (B, C + 1, 32, 32)
        self.background = nn.Parameter(torch.zeros(channels, size, size))
        self.apply(authors_init)

    def forward(self, z, s):
        codes = torch.cat([z, s], 1)
        out = self.up(self.hidden(codes) + self.direct(codes))
        mask = out[:, -1:]
        return mask * out[:, :-1] + (1 - mask) * self.background.sigmoid()


def build(shape, args):
    """{"enc", "dec"} for images of `shape` (C, H, W). Raises DataError for other sizes."""
    channels, size, _ = shape
    if size not in (28, 32, 64):
        raise DataError(f"cyclevae.py has networks for 28, 32 and 64 pixels, not for {size}; "
                        "choose one with --image-size.")
    with torch.random.fork_rng(devices=[]):                 # leaves a notebook's generator alone
        torch.manual_seed(args["seed"])
        if size == 28:
            enc = Encoder28(channels, args["z_dim"], args["s_dim"])
            dec = Decoder28(channels, args["z_dim"], args["s_dim"])
        else:
            enc = Encoder(channels, size, args["z_dim"], args["s_dim"])
            dec = Decoder(channels, size, args["z_dim"], args["s_dim"])
    return {"enc": enc, "dec": dec}


def load(path, device="cpu"):
    """The trained {"enc": Encoder, "dec": Decoder} of a checkpoint such as RUN/best.pt."""
    return load_networks(path, "cyclevae", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,) of mu and logvar (B, Z)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def squared_error(recon, x):
    """Squared error of images (B, C, H, W), summed over pixels, the mean over images."""
    return F.mse_loss(recon, x, reduction="sum") / len(x)


def forward_cycle(enc, dec, x, noise):
    """Rebuilds each image from its own z and its partner's s (section 3.2).

    x (2B, C, H, W): B images, then for each of them a partner of the same class; noise (2B, Z) from
    N(0, I). Returns squared error and KL in nats, means over the 2B images."""
    mu, logvar, s = enc(x)                                  # (2B, Z), (2B, Z), (2B, S)
    mu = mu.to(x.dtype)                                     # from bfloat16 with --amp
    logvar = logvar.to(x.dtype)
    z = mu + (0.5 * logvar).exp() * noise
    partner_s = s.roll(len(x) // 2, 0)                      # row i has the s of its partner
    recon = dec(z, partner_s)
    return squared_error(recon.to(x.dtype), x), kl_divergence(mu, logvar).mean()


def reverse_cycle(enc, dec, x, z):
    """L1 distance of the means of two images that are decoded from one z (section 3.3).

    x (2B, C, H, W): B images and B others, of any class; z (B, Z) from N(0, I). The decoded images
    carry no gradient, since only the encoder is updated and s is detached. The means are compared
    with each other and not with z; a constant mean would minimize this loss, but not L_forward."""
    with torch.no_grad():
        _, _, s = enc(x)
        images = dec(torch.cat([z, z]), s)
    mu, _, _ = enc(images)
    mu1, mu2 = mu.to(z.dtype).chunk(2)
    return (mu1 - mu2).abs().sum(1).mean()


# %% Training


@torch.no_grad()
def validation_loss(enc, dec, split, pool, seed):
    """Squared error and KL of a split's images, decoded with a sampled z and the s of an image of
    the same class from the split `pool`, never the image itself; means over the split."""
    rng = make_rng(seed, "validation", split.device)
    total = torch.zeros(2, device=split.device)
    for idx in torch.arange(len(split), device=split.device).split(500):
        x = split.images(idx)
        mu, logvar, _ = enc(x)
        _, _, s = enc(pool.images(pairs(split, idx, rng, pool)))            # of a partner
        z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=rng, device=mu.device)
        recon = squared_error(dec(z, s), x)
        kl = kl_divergence(mu, logvar).mean()
        total += torch.stack([recon, kl]) * len(idx) / len(split)
    return total.tolist()


def train(run, data):
    """Trains encoder and decoder. best.pt is the epoch with the lowest L_forward on validation."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))
    enc = nets["enc"].to(device)
    dec = nets["dec"].to(device)
    if args.compile:
        enc.compile()
        dec.compile()
    fused = device.type != "mps"                            # one kernel for all weights
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=args.lr, fused=fused)
    opt_reverse = torch.optim.Adam(enc.parameters(), lr=args.lr, fused=fused)
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)

    start = run.resume(enc=enc, dec=dec, opt=opt, opt_reverse=opt_reverse, rng=rng)
    for epoch in range(start, args.epochs):
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            progress = (epoch + step / run.steps_per_epoch) / args.epochs
            lr = args.lr * cosine(progress)
            if args.schedule == "step":                     # the authors': a tenth after 80 %
                lr = args.lr if progress < 0.8 else 0.1 * args.lr
            set_lr(opt, lr)
            set_lr(opt_reverse, lr * args.reverse_weight / 10)
            kl_weight = args.kl_weight
            if progress < args.kl_warmup:
                kl_weight = args.kl_weight * progress / args.kl_warmup

            # Forward cycle: rebuild each image from its own z and the s of another of its class.
            partners = pairs(data.train, idx, rng)
            x = data.train.images(torch.cat([idx, partners]))                   # (2B, C, H, W)
            noise = torch.randn(len(x), args.z_dim, generator=rng, device=device)
            with autocast:
                recon, kl = forward_cycle(enc, dec, x, noise)
            loss = args.recon_weight * recon + kl_weight * kl
            opt.zero_grad()
            loss.backward()
            opt.step()
            run.track(recon=recon, kl=kl)

            # Reverse cycle: one z decoded with two s must be encoded to one z. Updates Enc only.
            if args.reverse_weight > 0:
                idx = torch.randint(len(data.train), (len(x),), generator=rng, device=device)
                z = torch.randn(len(x) // 2, args.z_dim, generator=rng, device=device)
                with autocast:
                    reverse = reverse_cycle(enc, dec, data.train.images(idx), z)
                opt_reverse.zero_grad()
                reverse.backward()
                opt_reverse.step()
                run.track(reverse=reverse)

        val_recon, val_kl = validation_loss(enc, dec, data.val, data.train, args.seed)
        score = args.recon_weight * val_recon + args.kl_weight * val_kl
        run.end_epoch(score=score, val_recon=val_recon, val_kl=val_kl, val=score)


# %% Evaluation


def prediction_networks(run, data, codes, dec, net, results, steps):
    """Predicts z from s and s from z, decodes the predictions, and marks the images whose class
    the classifier does not recognize any more. Counts swaps: z of an image, s of another class."""
    test = data.test
    train_code = codes["train"]
    code = codes["test"]
    seed = run.args.seed
    z_r2, z_predicted = predictor((train_code.s, train_code.mu), (code.s, code.mu), seed, steps)
    s_r2, s_predicted = predictor((train_code.mu, train_code.s), (code.mu, code.s), seed, steps)
    recognized = {}
    images = {}
    for name, z, s in (("decoded", code.mu, code.s), ("s_to_z", z_predicted, code.s),
                       ("z_to_s", code.mu, s_predicted)):
        images[name] = decode(dec, z, s)
        recognized[name] = net.predict(images[name]) == test.y
        results[f"{name}_class_acc"] = recognized[name].float().mean().item()
    rng = make_rng(seed, "swaps", run.device)
    giver = torch.randperm(len(test), generator=rng, device=run.device)     # of s
    right = net.predict(decode(dec, code.mu, code.s[giver])) == test.y[giver]
    right = right[test.y != test.y[giver]]
    results["swap_class_acc"] = right.sum().item() / max(1, len(right))
    results["s_to_z_r2"] = z_r2
    results["z_to_s_r2"] = s_r2
    chosen = pick(test.y, 10, seed + 3)
    rows = torch.stack([test.images(chosen), images["decoded"][chosen], images["z_to_s"][chosen],
                        images["s_to_z"][chosen]])
    red = torch.zeros(4, len(chosen), dtype=torch.bool)
    for row, name in ((2, "z_to_s"), (3, "s_to_z")):
        red[row] = (recognized["decoded"] & ~recognized[name])[chosen].cpu()
    names = ["original", "reconstruction", "s predicted from z", "z predicted from s"]
    run.figure("prediction_networks", grid(rows, names, red=red), "Red: the classifier recognizes "
               "the class of the reconstruction, but not of this image (no mark where it does not "
               "recognize the reconstruction either). Expect red in the row 's predicted from z', "
               "because z should not hold the class, and a lost pose or style in the row below it, "
               "because s should not hold them.")
    run.table("Prediction networks", ("decoded from", "R2 on test", "class recognized"), [
        ("z and s", None, percent(results["decoded_class_acc"])),
        ("z, and s of an image of another class", None, percent(results["swap_class_acc"])),
        ("z predicted from s, and s", z_r2, percent(results["s_to_z_class_acc"])),
        ("z, and s predicted from z", s_r2, percent(results["z_to_s_class_acc"])),
        ("real test images", None, percent(results["real_class_acc"]))],
        "R2 is 0 for predicting the mean of the training codes. Classes are recognized by a LeNet "
        "that was trained on real images.")
    run.note(f"The class is recognized in {percent(results['decoded_class_acc'])} of the "
             f"reconstructions, that of s in {percent(results['swap_class_acc'])} of images with "
             f"the z of another class, and {percent(results['real_class_acc'])} of real images.")
    if z_r2 is not None:
        verdict = "s holds part of z" if z_r2 > 0.1 else "s holds little of z"
        run.note(f"An MLP predicts the mean of z from s with R2 {z_r2:.2f}: {verdict}.")
    chance = results["chance"]
    stderr = (chance * (1 - chance) / len(test))**0.5
    verdict = "within two standard errors, so the class does not leak into the mean of z"
    if results["z_to_s_class_acc"] > chance + 2 * stderr:
        verdict = "more than two standard errors above, so part of it is in the mean of z"
    run.note("With s predicted from z the class is recognized in "
             f"{percent(results['z_to_s_class_acc'])} (chance {percent(chance)}): {verdict}.")


@torch.no_grad()
def evaluate(run, data, nets):
    """Figures, probes and prediction networks of the best epoch; writes the report."""
    args = run.args
    enc = nets["enc"]
    dec = nets["dec"]
    steps, points, lenet_images = (100, 150, 10_000) if args.smoke else (1500, 2000, 100_000)
    run.figure("curves", curves(run.history, {
        "squared error per image": {"train": "recon", "validation": "val_recon"},
        "KL, nats per image": {"train": "kl", "validation": "val_kl"},
        "reverse cycle, L1 distance": {"train": "reverse"}}),
        "Train and validation should stay together. A KL near zero means that z is unused, and "
        "then a small reverse term means nothing.")
    run.report_curve("The squared error", "recon", "val_recon")
    run.stage("codes")
    codes = encode_splits(enc, data)
    test_recon, test_kl = validation_loss(enc, dec, data.test, data.train or data.test, args.seed)
    results = {"test_recon": test_recon, "test_kl": test_kl, "summary": None, "paper": None}
    run.table("Objective on test images", ("", "value"), [
        ("squared error per image (s of a training image, sampled z)", test_recon),
        ("KL, nats per image", test_kl)])
    net = None
    if data.train is not None:
        run.stage("probes")
        results.update(probe_codes(run, data, codes, steps))
        run.stage("classifier")
        net, results["real_class_acc"] = classifier(data, args.data_dir, lenet_images)
    run.stage("swap grids, interpolations, t-SNE")
    draw_codes(run, data, codes, dec, net, points)
    if data.train is not None:
        run.stage("prediction networks")
        prediction_networks(run, data, codes, dec, net, results, steps)
        results["summary"] = {
            "s in %": 100 * results["s_test_acc"], "sampled z in %": 100 * results["z_test_acc"],
            "mean of z in %": 100 * results["z_mean_test_acc"],
            "chance in %": 100 * results["chance"], "KL in nats": test_kl,
            "active dimensions": results["active_dims"],
            "squared error": test_recon, "recognized in %": 100 * results["decoded_class_acc"],
            "class of s in swaps in %": 100 * results["swap_class_acc"]}
    if args.data == "mnist" and args.s_dim == args.z_dim == 16:
        results["paper"] = "s 98.35 %, z 17.56 % (Table 1)"
    run.finish(f"Cycle-consistent VAE on {args.data}", results)


# %% Command line


def main(argv=None):
    parser = common_flags("cyclevae", __doc__, epochs=6, batch_size=64, lr=1e-3, data="sprites",
                          presets=PRESETS)
    add = parser.add_argument
    add("--s-dim", type=number(int, low=1, high=4096), default=64, help="size of s")
    add("--z-dim", type=number(int, low=1, high=4096), default=64, help="size of z")
    add("--recon-weight", type=number(float, above=0), default=2.0, help="of the squared error")
    add("--kl-weight", type=number(float, low=0), default=3.0, help="of the KL")
    add("--kl-warmup", type=number(float, low=0, high=1), default=0.3,
        help="share of training in which the KL weight rises from 0")
    add("--reverse-weight", type=number(float, low=0), default=10.0,
        help="of the reverse cycle, which takes steps of lr * weight / 10; 0 leaves it out")
    add("--schedule", choices=("cosine", "step"), default="cosine",
        help="of the step size; step: a tenth of it after 80 %% of the epochs")
    args = parse(parser, argv, PRESETS, SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    build(data.shape, vars(args))                           # raises likewise
    if not args.weights:
        need_pairs(data.train, data.classes)
    run = Run("cyclevae", args, data)
    if not args.weights:
        train(run, run.data)
    evaluate(run, run.data, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
