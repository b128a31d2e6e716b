"""VAE-GAN: Larsen, Sonderby, Larochelle, Winther, ICML 2016, https://arxiv.org/abs/1512.09300

Input: images. Output: a code z and a decoder that draws images from it: a VAE whose reconstruction
error is measured in the features of a discriminator instead of in pixels.

x~ = Dec(z) with z ~ q(z|x) of Enc; x_p = Dec(z_p) with z_p ~ N(0, I). Section 2 (Eq. 5 to 10) has
    L_prior = KL(q(z|x) || N(0, I))
    L_Dis_l = -E_q log N(Dis_l(x); Dis_l(x~), I)
    L_GAN   = log Dis(x) + log(1 - Dis(x~)) + log(1 - Dis(x_p))
and in Algorithm 1 each network minimizes a loss of its own (in print the sign of L_GAN is wrong):
    Enc: L_prior + L_Dis_l        Dec: gamma L_Dis_l + L_GAN        Dis: -L_GAN
vaegan_losses computes the terms. With --loss gan Enc minimizes L_prior - log Dis(x~): no term
compares x~ with x, so such a model cannot reconstruct. vae_losses is the VAE for comparison.

Loss terms are nats per image: sums over latents or features, means over images. Dis_l is the output
of a layer before its batch norm and activation: with --arch conv the second strided convolution, as
in the authors' code, with fc the second linear layer.

    python vaegan.py                # Fashion-MNIST, fully connected, 10 minutes on one core
    python vaegan.py --arch conv    # the paper's kind of network, 77 minutes
    python vaegan.py --loss gan --hidden 512 128 32 --z-dim 2           # L_prior + L_GAN alone

Departures from the paper:
- Dec minimizes -log Dis of its images, which has a gradient while Dis wins; the paper's
  log(1 - Dis) has none. x~ and x_p together weigh as much as x.
- Batch norm has separate statistics for z and z_p in Dec, and for x and its two fakes in Dis; the
  authors' Dis sees all images in one batch and soon recognizes samples by that.
- Adam with a cosine schedule instead of RMSProp; with --arch conv Dis aims at 0.9 for real images.
"""
import torch
import torch.nn.functional as F
from torch import nn

from data import batches, load as load_data, pick
from eval import (Run, classifier, common_flags, cosine, curves, decode, encode, fid, grid,
                  load_networks, make_rng, number, parse, percent, run_command, set_lr)

NAMES = {"vae": "VAE", "vaegan": "VAE-GAN"}
PRESETS = {"fc": dict(z_dim=20, lr=1e-3, gamma=1e-2, real_label=1.0),
           "conv": dict(z_dim=32, lr=3e-4, gamma=1e-3, real_label=0.9)}
SMOKE = dict(data="digits", limit=800, batch_size=16, epochs=25, gamma=0.1)

# %% Networks


def mlp(width_in, hidden, width_out):
    """Fully connected layers with ReLU between them."""
    layers = []
    for width in hidden:
        layers += [nn.Linear(width_in, width), nn.ReLU()]
        width_in = width
    return nn.Sequential(*layers, nn.Linear(width_in, width_out))


class MLPEncoder(nn.Module):
    """x (B, C, H, H) -> mu (B, Z), logvar (B, Z) of q(z|x)."""

    def __init__(self, shape, hidden, z_dim):
        super().__init__()
        self.net = mlp(shape.numel(), hidden, 2 * z_dim)

    def forward(self, x):
        return self.net(2 * x.flatten(1) - 1).chunk(2, 1)


class MLPDecoder(nn.Module):
    """z (B, Z) -> logits of pixels (B, C, H, H); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, hidden, z_dim):
        super().__init__()
        self.shape = shape
        self.net = mlp(z_dim, hidden[::-1], shape.numel())

    def forward(self, z):
        return self.net(z).unflatten(1, self.shape)


class MLPDiscriminator(nn.Module):
    """x (B, C, H, H) -> logits (B,) that x is real, features Dis_l(x) (B, F); two layers of F."""

    def __init__(self, shape, width):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(shape.numel(), width), nn.LeakyReLU(0.2),
                                      nn.Linear(width, width))
        self.top = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, x):
        features = self.features(2 * x.flatten(1) - 1)
        return self.top(features)[:, 0], features


def conv(maps_in, maps_out):
    """A convolution to half the size: (B, maps_in, H, H) -> (B, maps_out, (H + 1) // 2, ...)."""
    return nn.Conv2d(maps_in, maps_out, 5, 2, 2, bias=False)


def conv_transpose(maps_in, maps_out, size):
    """The transpose of `conv`, to maps of size x size."""
    return nn.ConvTranspose2d(maps_in, maps_out, 5, 2, 2, 1 - size % 2, bias=False)


class ConvEncoder(nn.Module):
    """x (B, C, H, H) -> mu (B, Z), logvar (B, Z). w = 64 is the authors' network for 32 pixels."""

    def __init__(self, shape, w, z_dim):
        super().__init__()
        side = (shape[1] + 7) // 8
        self.net = nn.Sequential(
            conv(shape[0], w), nn.BatchNorm2d(w), nn.ReLU(),                    # (B, w, 14, 14)
            conv(w, 2 * w), nn.BatchNorm2d(2 * w), nn.ReLU(),                   # (B, 2w, 7, 7)
            conv(2 * w, 4 * w), nn.BatchNorm2d(4 * w), nn.ReLU(),               # (B, 4w, 4, 4)
            nn.Flatten(), nn.Linear(4 * w * side**2, 16 * w, bias=False), nn.BatchNorm1d(16 * w),
            nn.ReLU(), nn.Linear(16 * w, 2 * z_dim))

    def forward(self, x):
        return self.net(2 * x - 1).chunk(2, 1)


class ConvDecoder(nn.Module):
    """z (B, Z) -> logits of pixels (B, C, H, H)."""

    def __init__(self, shape, w, z_dim):
        super().__init__()
        size = shape[1]
        side = (size + 7) // 8                              # 28, 14, 7, 4 in reverse
        self.net = nn.Sequential(
            nn.Linear(z_dim, 4 * w * side**2, bias=False), nn.Unflatten(1, (4 * w, side, side)),
            nn.BatchNorm2d(4 * w), nn.ReLU(),
            conv_transpose(4 * w, 3 * w, (size + 3) // 4), nn.BatchNorm2d(3 * w), nn.ReLU(),
            conv_transpose(3 * w, 2 * w, (size + 1) // 2), nn.BatchNorm2d(2 * w), nn.ReLU(),
            conv_transpose(2 * w, w // 2, size), nn.BatchNorm2d(w // 2), nn.ReLU(),
            nn.Conv2d(w // 2, shape[0], 5, 1, 2))                               # (B, C, 28, 28)

    def forward(self, z):
        return self.net(z)


class ConvDiscriminator(nn.Module):
    """x (B, C, H, H) -> logits (B,) that x is real, features Dis_l(x) (B, F)."""

    def __init__(self, shape, w):
        super().__init__()
        side = (shape[1] + 7) // 8
        act = nn.LeakyReLU(0.2)
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], w // 2, 5, 1, 2), act,                          # (B, w/2, 28, 28)
            conv(w // 2, 2 * w), nn.BatchNorm2d(2 * w), act,                    # (B, 2w, 14, 14)
            conv(2 * w, 3 * w))                                                 # (B, 3w, 7, 7)
        self.top = nn.Sequential(
            nn.BatchNorm2d(3 * w), act,
            conv(3 * w, 4 * w), nn.BatchNorm2d(4 * w), act,                     # (B, 4w, 4, 4)
            nn.Flatten(), nn.Linear(4 * w * side**2, 8 * w, bias=False), nn.BatchNorm1d(8 * w),
            act, nn.Linear(8 * w, 1))

    def forward(self, x):
        features = self.features(2 * x - 1)
        return self.top(features)[:, 0], features.flatten(1)


def build(shape, args):
    """{model: {"enc", "dec"}} for images of `shape` (C, H, W), with "disc" for the VAE-GAN; Enc and
    Dec of both models start from the same weights."""
    shape = torch.Size(shape)
    models = {}
    for model in args["model"]:
        with torch.random.fork_rng(devices=[]):             # leaves a notebook's generator alone
            torch.manual_seed(args["seed"])
            if args["arch"] == "fc":
                enc = MLPEncoder(shape, args["hidden"], args["z_dim"])
                dec = MLPDecoder(shape, args["hidden"], args["z_dim"])
                disc = MLPDiscriminator(shape, args["hidden"][0])
            else:
                enc = ConvEncoder(shape, args["width"], args["z_dim"])
                dec = ConvDecoder(shape, args["width"], args["z_dim"])
                disc = ConvDiscriminator(shape, args["width"])
        models[model] = {"enc": enc, "dec": dec}
        if model == "vaegan":
            models[model]["disc"] = disc
    return models


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt: {"vae": {"enc", "dec"}, ...}."""
    return load_networks(path, "vaegan", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,) of mu and logvar (B, Z)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def vae_losses(enc, dec, x, noise):
    """-log p(x|z), pixels x (B, C, H, W) in [0, 1] as Bernoullis, and KL, means over images in
    nats; noise (B, Z) from N(0, I)."""
    mu, logvar = enc(x)
    mu = mu.to(x.dtype)                                     # from bfloat16 with --amp
    logvar = logvar.to(x.dtype)
    logits = dec(mu + (0.5 * logvar).exp() * noise).to(x.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return cross_entropy / len(x), kl_divergence(mu, logvar).mean()


def vaegan_losses(enc, dec, disc, x, noise, z_p, real_label):
    """The terms of Algorithm 1, means over images x (B, C, H, W), by name, and the probabilities
    d_real, d_recon and d_sample that Dis assigns; noise and z_p (B, Z) from N(0, I); real_label:
    the target of Dis for x."""
    mu, logvar = enc(x)
    mu = mu.to(x.dtype)
    logvar = logvar.to(x.dtype)
    z = mu + (0.5 * logvar).exp() * noise
    recon = dec(z).to(x.dtype).sigmoid()                    # batch norm: apart from the samples
    sample = dec(z_p).to(x.dtype).sigmoid()
    real, features = disc(x)
    fake, fake_features = disc(torch.cat([recon, sample]))
    real = real.to(x.dtype)
    fake = fake.to(x.dtype)
    difference = (features - fake_features[:len(x)]).to(x.dtype)
    return {"prior": kl_divergence(mu, logvar).mean(),
            "dis_l": 0.5 * (difference**2).sum(1).mean(),   # without the constant of the Gaussian
            "dis_real": F.binary_cross_entropy_with_logits(real, torch.full_like(real, real_label)),
            "dis_fake": F.softplus(fake).mean(),            # -log(1 - Dis)
            "dec_gan": F.softplus(-fake).mean(),            # -log Dis
            "enc_gan": F.softplus(-fake[:len(x)]).mean(),   # -log Dis(x~)
            "d_real": real.sigmoid().mean(), "d_recon": fake[:len(x)].sigmoid().mean(),
            "d_sample": fake[len(x):].sigmoid().mean()}


# %% Training


@torch.no_grad()
def validation_loss(enc, dec, split, z_dim, seed):
    """-log p(x|z), with a seeded z, and KL in nats: means over a split."""
    rng = make_rng(seed, "validation", split.device)
    total = torch.zeros(2, device=split.device)
    for idx in torch.arange(len(split), device=split.device).split(500):
        x = split.images(idx)
        noise = torch.randn(len(x), z_dim, generator=rng, device=split.device)
        recon, kl = vae_losses(enc, dec, x, noise)
        total += torch.stack([recon, kl]) * len(x) / len(split)
    return total.tolist()


def train_vae(run, data):
    """Trains "vae". The best epoch has the lowest loss on validation images."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))["vae"]
    enc = nets["enc"].to(device)
    dec = nets["dec"].to(device)
    if args.compile:
        enc.compile()
        dec.compile()
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=args.lr,
                           fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    for epoch in range(run.resume("vae", enc=enc, dec=dec, opt=opt, rng=rng), args.epochs):
        enc.train()
        dec.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            set_lr(opt, args.lr * cosine((epoch + step / run.steps_per_epoch) / args.epochs))
            x = data.train.images(idx)
            noise, _ = torch.randn(2, len(x), args.z_dim, generator=rng, device=device)
            with autocast:
                recon, kl = vae_losses(enc, dec, x, noise)
            loss = recon + args.beta * kl
            opt.zero_grad()
            loss.backward()
            opt.step()
            run.track(recon=recon, prior=kl, train=loss)
        enc.eval()
        dec.eval()
        val_recon, val_kl = validation_loss(enc, dec, data.val, args.z_dim, args.seed)
        val = val_recon + args.beta * val_kl
        run.end_epoch(val, val_recon=val_recon, val_prior=val_kl, val=val)


def train_vaegan(run, data):
    """Trains "vaegan", from the same weights and batches. The last epoch is kept, because a loss
    against an adversary does not rank epochs."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))["vaegan"]
    modules = nn.ModuleDict(nets).to(device)
    enc = nets["enc"]
    dec = nets["dec"]
    disc = nets["disc"]
    if args.compile:
        enc.compile()
        dec.compile()
        disc.compile()
    opt = torch.optim.Adam(modules.parameters(), lr=args.lr, betas=(0.5, 0.999),
                           fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    for epoch in range(run.resume("vaegan", **nets, opt=opt, rng=rng), args.epochs):
        modules.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            set_lr(opt, args.lr * cosine((epoch + step / run.steps_per_epoch) / args.epochs))
            x = data.train.images(idx)
            noise, z_p = torch.randn(2, len(x), args.z_dim, generator=rng, device=device)
            with autocast:
                terms = vaegan_losses(enc, dec, disc, x, noise, z_p, args.real_label)
            loss_enc = terms["prior"] + terms["dis_l"]
            loss_dec = args.gamma * terms["dis_l"] + terms["dec_gan"]
            loss_disc = terms["dis_real"] + terms["dis_fake"]
            if args.loss == "gan":
                loss_enc = terms["prior"] + terms["enc_gan"]
                loss_dec = terms["dec_gan"]

            # Algorithm 1: all gradients at the same weights, each network's from its own loss
            # only. Adam treats each weight by itself, so one optimizer updates all networks.
            opt.zero_grad()
            loss_enc.backward(inputs=list(enc.parameters()), retain_graph=True)
            loss_dec.backward(inputs=list(dec.parameters()), retain_graph=True)
            loss_disc.backward(inputs=list(disc.parameters()))
            opt.step()
            run.track(**terms)
        modules.eval()
        val_recon, val_kl = validation_loss(enc, dec, data.val, args.z_dim, args.seed)
        run.end_epoch(val_recon=val_recon, val_prior=val_kl)


# %% Evaluation


def measure(run, data, nets, net, prior, lenet_images, lenets):
    """(reconstructions of the test images, samples, results) of one model; net: a classifier or
    None."""
    args = run.args
    x = data.test.images(slice(None))
    mu, logvar = encode(nets["enc"], data.test)
    recon = decode(nets["dec"], mu).sigmoid()
    samples = decode(nets["dec"], prior).sigmoid()
    recognized = None
    if net is not None:
        recognized = (net.predict(recon) == data.test.y).float().mean().item()
    results = {
        "test_kl": kl_divergence(mu, logvar).mean().item(),
        "recon_mse": ((recon - x)**2).mean().item(),
        "recon_class_acc": recognized,
        "variance_ratio": (samples.var(0).sum() / x.var(0).sum()).item(),
        "fid": fid(args.fid, data, args.data_dir, samples, args.seed, lenet_images, lenets),
        "fid_recon": fid(args.fid, data, args.data_dir, recon, args.seed, lenet_images, lenets)}
    return recon, samples, results


def draw_curves(run):
    """The curves of what is minimized, and of what Dis assigns to images."""
    panels = {"KL, nats per image": {"VAE, validation": ("vae", "val_prior"),
                                     "VAE-GAN, validation": ("vaegan", "val_prior")},
              "-log p(x|z), nats per image": {"VAE, train": ("vae", "recon"),
                                              "VAE, validation": ("vae", "val_recon")},
              "L_Dis_l, nats per image": {"VAE-GAN": ("vaegan", "dis_l")},
              "L_GAN, nats": {"Dis on real images": ("vaegan", "dis_real"),
                              "Dis on fakes": ("vaegan", "dis_fake"),
                              "Dec, -log Dis of fakes": ("vaegan", "dec_gan")}}
    if run.args.loss == "gan":
        panels["L_GAN, nats"]["Enc, -log Dis of x~"] = ("vaegan", "enc_gan")
        del panels["L_Dis_l, nats per image"]
    run.figure("curves", curves(run.history, panels), "Every loss term that is minimized. L_Dis_l "
               "compares reconstructions in features of Dis, which keep changing: it may rise "
               "while images get better.")
    run.report_curve("VAE: the loss", "train", "val", "vae")
    if run.rows("vaegan"):
        run.figure("discriminator", curves(run.history, {"probability that Dis assigns": {
            "real images": ("vaegan", "d_real"), "reconstructions": ("vaegan", "d_recon"),
            "samples": ("vaegan", "d_sample")}}),
            f"Means over train. If Dis assigns nearly {run.args.real_label} to real images and 0 "
            "to the others, it has won and teaches Dec little.")


def report_models(run, models, results):
    """The table of both models, and what their numbers mean."""
    rows = []
    for model in models:
        r = results[model]
        distances = (None, None, None)
        if r["fid"]:
            distances = (r["fid"], r["fid_recon"], r["fid"]["floor"])
        rows.append((NAMES[model], r["recon_mse"], percent(r["recon_class_acc"]), r["test_kl"],
                     r["variance_ratio"], *distances))
    run.table("On test images", (
        "", "squared error per pixel of reconstructions", "class recognized in reconstructions",
        "KL, nats per image", "variance of samples / of test images",
        "Frechet distance of samples", "of reconstructions", "of real train images"), rows,
        f"The mean image has a squared error of {results['mean_image_mse']:.4f}; the class is "
        f"recognized in {percent(results['real_class_acc'])} of the test images. A variance "
        "below 1: samples vary less than real images. Compare reconstructions only at similar KL, "
        "because a code that holds more nats allows better ones; --beta changes the KL of the VAE.")
    if len(rows) == 2 and results["vaegan"]["fid"]:
        vae = results["vae"]["fid"]["value"]
        gan = results["vaegan"]["fid"]["value"]
        nearer = "nearer to" if gan < vae else "farther from"
        r = results["vaegan"]
        run.note(f"Reconstructions of the VAE-GAN have a squared error of {r['recon_mse']:.4f} per "
                 f"pixel (VAE {results['vae']['recon_mse']:.4f}), and the class is recognized in "
                 f"{percent(r['recon_class_acc'])} ({percent(results['vae']['recon_class_acc'])}); "
                 f"the codes hold {r['test_kl']:.0f} and {results['vae']['test_kl']:.0f} nats.")
        run.note(f"Samples of the VAE-GAN are {nearer} real images than those of the VAE: Frechet "
                 f"distance {gan:.1f} and {vae:.1f}.")
    if "vaegan" not in models:
        return
    r = results["vaegan"]
    if run.args.loss == "gan":
        run.note("L_prior + L_GAN ask that a reconstruction looks real, not that it looks like its "
                 f"image: the squared error is {r['recon_mse']:.4f} (mean image "
                 f"{results['mean_image_mse']:.4f}), the class is right in "
                 f"{percent(r['recon_class_acc'])}. Such a model draws, but cannot reconstruct.")
    elif r["test_kl"] < 0.5:
        run.note(f"z is unused (KL {r['test_kl']:.2g} nats): raise --gamma.")
    if run.rows("vaegan"):
        last = run.rows("vaegan")[-1]
        verdict = "it has not won"
        if last["d_real"] > 0.95 * run.args.real_label and last["d_sample"] < 0.1:
            verdict = "it has won and teaches Dec little (try a lower --lr)"
        run.note(f"In the last epoch Dis assigns {percent(last['d_real'])} to train images (its "
                 f"target is {percent(run.args.real_label)}), {percent(last['d_recon'])} to "
                 f"reconstructions and {percent(last['d_sample'])} to samples: {verdict}.")


@torch.no_grad()
def evaluate(run, data, models):
    """Figures and measurements of the trained models; writes the report."""
    args = run.args
    lenet_images, lenets, n = (10_000, 1, 300) if args.smoke else (100_000, 3, 10_000)
    rng = make_rng(args.seed, "samples", run.device)
    prior = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    idx = pick(data.test.y, 10, args.seed)
    x = data.test.images(slice(None))
    mean_image = (data.train or data.test).mean_image()
    summary = {}
    results = {"vae": None, "vaegan": None, "real_class_acc": None, "summary": summary,
               "mean_image_mse": ((x - mean_image)**2).mean().item(), "paper": None}
    net = None
    if data.train is not None:
        run.stage("classifier")
        net, results["real_class_acc"] = classifier(data, args.data_dir, lenet_images)
    recon_rows = [x[idx]]
    sample_rows = []
    for model, nets in models.items():
        name = NAMES[model]
        run.stage(f"reconstructions, samples and Frechet distances of the {name}")
        recon, samples, r = measure(run, data, nets, net, prior, lenet_images, lenets)
        results[model] = r
        recon_rows.append(recon[idx])
        sample_rows.append(samples[:10])
        run.figure(f"samples_100_{model}", grid(samples[:100].unflatten(0, (10, 10))),
                   f"A hundred draws of the {name}. Are they sharp, likely, and of all classes?")
        summary[f"{name} KL in nats"] = r["test_kl"]
        summary[f"{name} squared error per pixel"] = r["recon_mse"]
        if net is not None:
            summary[f"{name} recognized in %"] = 100 * r["recon_class_acc"]
        if r["fid"]:
            summary[f"{name} distance of samples"] = r["fid"]["value"]
            summary[f"{name} distance of reconstructions"] = r["fid_recon"]["value"]
    run.stage("figures")
    names = [NAMES[model] for model in models]
    run.figure("reconstructions", grid(torch.stack(recon_rows), ["original", *names]),
               "Ten test images above what each model makes of their codes, the means of q(z|x).")
    run.figure("samples", grid(torch.stack(sample_rows), names),
               "Ten draws of z from N(0, I), decoded; the same z for each model.")
    draw_curves(run)
    report_models(run, models, results)
    run.finish(f"VAE-GAN on {args.data}", results)


# %% Command line


def main(argv=None):
    parser = common_flags("vaegan", __doc__, epochs=15, batch_size=64, lr=1e-3, data="fashion",
                          fid=True, presets=PRESETS)
    add = parser.add_argument
    add("--model", nargs="+", choices=("vae", "vaegan"), default=["vae", "vaegan"],
        help="trained one after the other")
    add("--arch", choices=("fc", "conv"), default="fc", help="of all networks")
    add("--hidden", nargs="+", type=number(int, low=1, high=65536), default=[400], metavar="N",
        help="fc: widths of Enc's layers; Dec has them in reverse, Dis the first one twice")
    add("--width", type=number(int, low=2, high=4096), default=16,
        help="conv: maps of Enc's first layer, which the others follow; the paper's: 64")
    add("--z-dim", type=number(int, low=1, high=4096), default=20, help="size of z")
    add("--loss", choices=("full", "gan"), default="full",
        help="full: the paper's; gan: L_prior + L_GAN, without L_Dis_l")
    add("--gamma", type=number(float, low=0), default=0.01, help="weight of L_Dis_l for Dec")
    add("--real-label", type=number(float, above=0, high=1), default=1.0,
        help="target of Dis for real images")
    add("--beta", type=number(float, low=0), default=1.0, help="weight of the KL of the VAE")
    args = parse(parser, argv, lambda args: PRESETS[args.arch], SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    run = Run("vaegan", args, data)
    if not args.weights:
        if "vae" in args.model:
            train_vae(run, run.data)
        if "vaegan" in args.model:
            train_vaegan(run, run.data)
    evaluate(run, run.data, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
