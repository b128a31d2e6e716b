"""VAE: Kingma and Welling, ICLR 2014, https://arxiv.org/abs/1312.6114, beside two autoencoders

Input: images. Output: for each model of --model a code z per image, and a decoder that draws images
from codes. The models are trained one after the other and compared.

    vae:  L(x) = E_q(z|x)[-log p(x|z)] + beta KL(q(z|x) || N(0, I)), q(z|x) = N(mu, sigma^2)
    ae:   L(x) = |x - Dec(z)|^2, z = Enc(x)
    nae:  the same with z = (Enc(x) - mean) / std, both over the batch in training, over the
          whole training set afterwards
vae_losses computes the terms of the first with one z per image, by kl_divergence (appendix B) and
log_likelihood (appendix C). squared_error is the second.

Loss terms are nats or squared errors per image: sums over pixels and latents, means over images.
--binarize draws pixels as 0 or 1: afresh in each step of training, once for the codes and
likelihoods that are measured; squared errors and distances compare with the grey images. Without it
the loss bounds the likelihood of such drawn images, not of the grey ones.

    python vae.py                    # MNIST, 784-400-20: NLL 93.6 nats, a quarter of an hour
    python vae.py --arch conv        # 86.0 nats, 45 minutes on one core
    python vae.py --model ae nae vae --data fashion --z-dim 2   # 50 minutes, three models
    python vae.py --hidden 200 200 --activation tanh --z-dim 50 --epochs 1000 --lr 0.002
The last, with --nll-n 10000, is Burda et al.'s network: 86.7 nats in 80 minutes, theirs 86.76.

Departures from the paper:
- Adam with a cosine schedule instead of Adagrad; ReLU by default instead of tanh; sigma of the
  Gaussian likelihood is a flag and not learned.
- The decoder's output bias starts at the mean image (Burda et al.).
- A tenth of the training set (of MNIST 5,000 images) is for validation and chooses the epoch.
"""
import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, Split, batches, load as load_data, pick
from eval import (Run, code_map, common_flags, cosine, curves, decode, encode, fid, grid,
                  load_networks, make_rng, nll, number, parse, percent, run_command, set_lr,
                  svm_report)

NAMES = {"vae": "VAE", "ae": "AE", "nae": "normalized AE"}
SMOKE = dict(data="digits", epochs=20, batch_size=16, nll_k=200, nll_n=100)

# %% Networks


def mlp(width, hidden, activation):
    """A list of fully connected layers, each with an activation: `width` inputs, then `hidden`."""
    layers = []
    for hidden_width in hidden:
        layers += [nn.Linear(width, hidden_width), activation()]
        width = hidden_width
    return layers


class MLPEncoder(nn.Module):
    """x (B, C, H, H) -> n_codes codes (B, Z) in a tuple: mu and logvar of q(z|x), or z."""

    def __init__(self, shape, hidden, z_dim, activation, n_codes):
        super().__init__()
        self.n_codes = n_codes
        self.net = nn.Sequential(
            nn.Flatten(), *mlp(math.prod(shape), hidden, activation),           # (B, 400)
            nn.Linear(hidden[-1], n_codes * z_dim))                             # (B, 40)

    def forward(self, x):
        return self.net(x).chunk(self.n_codes, 1)


class MLPDecoder(nn.Module):
    """z (..., Z) -> logits of pixels (..., C, H, H); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, hidden, z_dim, activation):
        super().__init__()
        self.net = nn.Sequential(
            *mlp(z_dim, list(reversed(hidden)), activation),                    # (B, 400)
            nn.Linear(hidden[0], math.prod(shape), bias=False),                 # (B, 784)
            nn.Unflatten(1, tuple(shape)))                                      # (B, 1, 28, 28)
        self.bias = nn.Parameter(torch.zeros(*shape))       # training starts it at the mean image

    def forward(self, z):
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) + self.bias


class ConvEncoder(nn.Module):
    """MLPEncoder with two convolutions in front."""

    def __init__(self, shape, hidden, z_dim, activation, n_codes):
        super().__init__()
        self.n_codes = n_codes
        channels, size, _ = shape
        self.net = nn.Sequential(
            nn.Conv2d(channels, 16, 4, 2, 1), activation(),                     # (B, 16, 14, 14)
            nn.Conv2d(16, 32, 4, 2, 1), activation(), nn.Flatten(),             # (B, 32 * 7 * 7)
            *mlp(32 * (size // 4)**2, hidden, activation),                      # (B, 512)
            nn.Linear(hidden[-1], n_codes * z_dim))                             # (B, 64)

    def forward(self, x):
        return self.net(x).chunk(self.n_codes, 1)


class ConvDecoder(nn.Module):
    """MLPDecoder with two transposed convolutions behind."""

    def __init__(self, shape, hidden, z_dim, activation):
        super().__init__()
        channels, size, _ = shape
        self.net = nn.Sequential(
            *mlp(z_dim, [*reversed(hidden), 32 * (size // 4)**2], activation),  # (B, 32 * 7 * 7)
            nn.Unflatten(1, (32, size // 4, size // 4)),                        # (B, 32, 7, 7)
            nn.ConvTranspose2d(32, 16, 4, 2, 1), activation(),                  # (B, 16, 14, 14)
            nn.ConvTranspose2d(16, channels, 4, 2, 1, bias=False))              # (B, 1, 28, 28)
        self.bias = nn.Parameter(torch.zeros(*shape))

    def forward(self, z):
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) + self.bias


def build(shape, args):
    """{model: {"enc", "dec"}} for images of `shape` (C, H, W). All decoders start from the same
    weights, and those encoders that have the same layers. Raises DataError if conv cannot halve."""
    if args["arch"] == "conv" and shape[1] % 4 > 0:
        raise DataError(f"--arch conv halves images twice and {shape[1]} pixels do not allow that; "
                        "choose another --image-size, such as 28, 32 or 64.")
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[args["activation"]]
    size = (shape, args["hidden"], args["z_dim"], activation)
    models = {}
    for model in args["model"]:
        n_codes = 2 if model == "vae" else 1
        with torch.random.fork_rng(devices=[]):             # leaves a notebook's generator alone
            torch.manual_seed(args["seed"])
            if args["arch"] == "conv":
                nets = {"dec": ConvDecoder(*size), "enc": ConvEncoder(*size, n_codes)}
            else:
                nets = {"dec": MLPDecoder(*size), "enc": MLPEncoder(*size, n_codes)}
        if model == "nae":
            nets["enc"].net.append(nn.BatchNorm1d(args["z_dim"], eps=1e-8, affine=False))
        models[model] = nets
    return models


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt: {"vae": {"enc", "dec"}, ...}."""
    return load_networks(path, "vae", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,) of mu and logvar (B, Z)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def bernoulli_log_likelihood(x, logits):
    """log p(x|z) in nats, (...) of pixels x in [0, 1] and logits, both (..., C, H, W): the sum of
    x log p + (1 - x) log(1 - p)."""
    bce = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return -bce.flatten(-3).sum(-1)


def log_likelihood(x, logits, args):
    """log p(x|z) in nats, (...): of Bernoulli pixels, or the density of Gaussian ones (--sigma)."""
    if args.likelihood == "bernoulli":
        return bernoulli_log_likelihood(x, logits)
    squared = (((x - logits.sigmoid()) / args.sigma)**2).flatten(-3).sum(-1)
    return -0.5 * squared - x[0].numel() * (math.log(args.sigma) + 0.5 * math.log(2 * math.pi))


def vae_losses(enc, dec, x, noise, args):
    """-log p(x|z) and KL in nats, means over the images x (B, C, H, W); noise (B, Z): N(0, I)."""
    mu, logvar = enc(x)
    mu = mu.to(x.dtype)                                     # from bfloat16 with --amp
    logvar = logvar.to(x.dtype)
    z = mu + (0.5 * logvar).exp() * noise
    logits = dec(z).to(x.dtype)
    return -log_likelihood(x, logits, args).mean(), kl_divergence(mu, logvar).mean()


def squared_error(enc, dec, x):
    """|x - Dec(Enc(x))|^2 of ae and nae, summed over pixels, the mean over images."""
    z, = enc(x)
    return F.mse_loss(dec(z).to(x.dtype).sigmoid(), x, reduction="sum") / len(x)


# %% Training


def binarize(x, rng):
    """Pixels (...) drawn as 0 or 1 with their brightness in [0, 1] as probability."""
    return (torch.rand(x.shape, generator=rng, device=x.device) < x).float()


def measured_splits(data, args):
    """{name: split} as they are measured: with --binarize their pixels are drawn once."""
    splits = data.splits()
    if args.binarize:
        for name, split in splits.items():
            rng = make_rng(args.seed, f"binarize {name}", split.device)
            parts = [255 * binarize(x.float() / 255, rng) for x in split.x.split(5000)]
            splits[name] = Split(torch.cat(parts).byte(), split.y, split.factors)
    return splits


@torch.no_grad()
def set_statistics(model, enc, split):
    """Eval mode; nae's codes get mean 0 and variance 1 over a split, exactly."""
    enc.eval()
    if model == "nae":
        norm = enc.net[-1]
        norm.reset_running_stats()                          # the identity
        z, = encode(enc, split)
        norm.running_mean.copy_(z.mean(0))
        norm.running_var.copy_(z.var(0, correction=0))


@torch.no_grad()
def keep_images(run, model, when, enc, dec, x):
    """Keeps images and their reconstructions, from the mean of q(z|x), for the figure learning."""
    run.kept["original"] = x.cpu()
    run.kept[f"{NAMES[model]}:\n{when}"] = dec(enc(x)[0]).sigmoid().cpu()


@torch.no_grad()
def validation_loss(model, enc, dec, split, args):
    """Means over a split: -log p(x|z), with a seeded z, and KL; squared error and 0 without q."""
    rng = make_rng(args.seed, "validation", split.device)
    total = torch.zeros(2, device=split.device)
    for idx in torch.arange(len(split), device=split.device).split(500):
        x = split.images(idx)
        if model == "vae":
            noise = torch.randn(len(x), args.z_dim, generator=rng, device=split.device)
            recon, kl = vae_losses(enc, dec, x, noise, args)
        else:
            recon = squared_error(enc, dec, x)
            kl = torch.zeros_like(recon)
        total += torch.stack([recon, kl]) * len(x) / len(split)
    return total.tolist()


def train(run, data, measured, model):
    """Trains one model. best.pt holds the epoch with the lowest validation loss."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))[model]
    enc = nets["enc"].to(device)
    dec = nets["dec"].to(device)
    dec.bias.data = data.train.mean_image().clamp(0.001, 0.999).logit()
    if args.compile:
        enc.compile()
        dec.compile()
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=args.lr,
                           fused=device.type != "mps")      # one kernel for all weights
    rng = make_rng(args.seed, "images", device)             # the same batches for each model
    rng_noise = make_rng(args.seed, "noise", device)        # which only the vae draws
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    shown = measured["test"].images(pick(data.test.y, 10, args.seed))

    start = run.resume(model, enc=enc, dec=dec, opt=opt, rng=rng, rng_noise=rng_noise)
    if start == 0:
        set_statistics(model, enc, measured["train"])
        keep_images(run, model, "before training", enc, dec, shown)
    for epoch in range(start, args.epochs):
        enc.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            set_lr(opt, args.lr * cosine((epoch + step / run.steps_per_epoch) / args.epochs))
            x = data.train.images(idx)                      # (B, C, H, W)
            if args.binarize:
                x = binarize(x, rng)
            with autocast:
                if model == "vae":
                    noise = torch.randn(len(x), args.z_dim, generator=rng_noise, device=device)
                    recon, kl = vae_losses(enc, dec, x, noise, args)
                    loss = recon + args.beta * kl
                    run.track(recon=recon, kl=kl, loss=loss)
                else:
                    loss = squared_error(enc, dec, x)
                    run.track(loss=loss)
            opt.zero_grad()
            loss.backward()
            opt.step()

        set_statistics(model, enc, measured["train"])
        if epoch == 0:
            keep_images(run, model, "after epoch 1", enc, dec, shown)
        keep_images(run, model, "at the end", enc, dec, shown)
        val_recon, val_kl = validation_loss(model, enc, dec, measured["val"], args)
        test_recon, test_kl = validation_loss(model, enc, dec, measured["test"], args)
        val = val_recon + args.beta * val_kl
        run.end_epoch(score=val, val=val, test=test_recon + args.beta * test_kl)


# %% Evaluation


def off_support(prior, train, test, active):
    """The share of codes `prior` (n, Z) that lie farther from the nearest code of train (N, Z) than
    99 % of the codes of test do: the decoder was not trained there. Only latents in the mask
    `active` (Z,) count: the others are N(0, 1) whatever the image is."""
    from sklearn.neighbors import NearestNeighbors
    if not active.any():
        return 0.0
    nearest = NearestNeighbors(n_neighbors=1).fit(train[:, active].cpu().numpy())
    usual, _ = nearest.kneighbors(test[:, active].cpu().numpy())
    distance, _ = nearest.kneighbors(prior[:, active].cpu().numpy())
    return float((distance > np.quantile(usual, 0.99)).mean())


def likelihood(run, test, nets, mu, logvar):
    """Bound and NLL of the vae: adds a finding and a table to the report, returns the results."""
    args = run.args
    recon, kl = validation_loss("vae", nets["enc"], nets["dec"], test, args)
    r = {"test_negative_elbo": recon + kl, "test_recon": recon, "test_kl": kl}
    rows = []
    for key, k in (("nll_100", min(100, args.nll_k)), ("nll", args.nll_k)):
        q = nll(test.images(slice(None)), mu, logvar,
                lambda x, z: log_likelihood(x, nets["dec"](z), args), k, args.nll_n,
                args.likelihood == "bernoulli", args.seed)
        r[key] = q
        rows.append((k, q["nats"], q["stderr"], q["ess"], q["bits_per_dim"]))
    pixels = "drawn as 0 or 1" if args.binarize else "as they are"
    run.table("Likelihood of test images", ("samples of z", "NLL, nats per image", "standard error",
                                            "effective samples", "bits/dim"), rows,
              f"Likelihood: {args.likelihood}, pixels {pixels}. Of {q['n']:,} random images; the "
              "error is over images, not trainings. Each estimate is, in expectation, an upper "
              "bound that falls with more samples of z (--nll-k).")
    run.note(f"VAE: the negative bound of all test images is {recon + kl:.2f} nats per image, of "
             f"which {kl:.2f} are the KL; the NLL is {q['nats']:.2f} ± {q['stderr']:.2f}, of "
             f"{q['n']:,} random ones, whose bound may be another.")
    return r


def measure(run, data, measured, model, nets, prior):
    """Reconstructions of the test images, samples (decoded from the codes `prior`), codes of the
    test images and results of one model; None for what needs training images without them."""
    args = run.args
    test = data.test
    rng = make_rng(args.seed, "codes", run.device)
    codes = {}
    z = {}
    for name, split in measured.items():
        codes[name] = encode(nets["enc"], split)
        z[name] = codes[name][0]
        if model == "vae":                                  # a draw from q(z|x)
            noise = torch.randn(z[name].shape, generator=rng, device=run.device)
            z[name] = z[name] + (0.5 * codes[name][1]).exp() * noise
    mu = codes["test"][0]
    recon = decode(nets["dec"], mu).sigmoid()
    samples = decode(nets["dec"], prior).sigmoid()
    r = {"off_support": None, "svm_linear": None, "svm_rbf": None,
         "test_mse": ((recon - test.images(slice(None)))**2).mean().item(),
         "code_mean": z["test"].mean(0).tolist(), "code_std": z["test"].std(0).tolist()}
    active = torch.ones_like(mu[0], dtype=torch.bool)
    if model == "vae":
        active = mu.var(0) > 0.01                           # Burda et al. 2016
        r.update(likelihood(run, measured["test"], nets, mu, codes["test"][1]))
    r["active_units"] = int(active.sum())
    lenet_images, lenets = (10_000, 1) if args.smoke else (100_000, 3)
    r["fid"] = fid(args.fid, data, args.data_dir, samples, args.seed, lenet_images, lenets)
    r["fid_recon"] = fid(args.fid, data, args.data_dir, recon, args.seed, lenet_images, lenets)
    if data.train is not None:
        r["off_support"] = off_support(prior, z["train"], z["test"], active)
        points = 10_000 if args.z_dim < 3 else None         # where classes overlap: slow
        r.update(svm_report(run, NAMES[model], (codes["train"][0], data.train.y), (mu, test.y),
                            points))
    return recon, samples, mu, r


def report_models(run, models, results):
    """The table of all models, and which of several is best at what and why."""
    rows = []
    for model in models:
        r = results[model]
        distances = (None, None, None)
        if r["fid"] is not None:
            distances = (r["fid"], r["fid"]["floor"], r["fid_recon"])
        means = f"{min(r['code_mean']):.2f} to {max(r['code_mean']):.2f}"
        deviations = f"{min(r['code_std']):.2f} to {max(r['code_std']):.2f}"
        rows.append((NAMES[model], *distances, r["test_mse"], means, deviations, r["active_units"],
                     percent(r["off_support"])))
    run.table("Models on test images", (
        "model", "Frechet distance of samples", "of real train images", "of reconstructions",
        "squared error per pixel", "mean of codes", "their standard deviation", "active latents",
        "draws off the codes"), rows, "Codes of the VAE are draws from q(z|x) here. Active, for "
        "the VAE: the mean of q(z|x) has a variance above 0.01. Off the codes: draws from N(0, I) "
        "farther from the nearest training code than 99 % of the test codes, in active latents; "
        "the decoder was not trained there.")
    if len(rows) == 1:
        return
    best = min(models, key=lambda model: results[model]["test_mse"])
    run.note(f"The {NAMES[best]} reconstructs best: its squared error per pixel is "
             f"{results[best]['test_mse']:.4f}.")
    if rows[0][1] is None:
        return
    order = sorted(models, key=lambda model: results[model]["fid"]["value"])
    ranking = ", ".join(f"{NAMES[m]} {results[m]['fid']['value']:.1f}" for m in order)
    first = results[order[0]]
    last = results[order[-1]]
    cause = "for a reason that the codes do not show"
    if last["off_support"] > first["off_support"] + 0.05:
        cause = "because more of its samples come from codes far from any training code"
    elif max(last["code_std"]) > 2:
        cause = "because its codes spread wider than N(0, I), which covers only their middle"
    run.note(f"Frechet distance of samples: {ranking} ({rows[0][2]:.1f} for train images). The "
             f"{NAMES[order[-1]]} is farthest from real images, {cause}: "
             f"{percent(last['off_support'])} of the draws from N(0, I) lie off its codes, whose "
             f"standard deviation is up to {max(last['code_std']):.1f}; of the {NAMES[order[0]]} "
             f"{percent(first['off_support'])} and {max(first['code_std']):.1f}.")


@torch.no_grad()
def evaluate(run, data, measured, models):
    """Figures and measurements of the trained models; writes the report."""
    args = run.args
    n, points = (300, 200) if args.smoke else (10_000, 2000)
    rng = make_rng(args.seed, "samples", run.device)
    prior = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    chosen = pick(data.test.y, 10, args.seed)
    summary = {}
    results = {"vae": None, "ae": None, "nae": None, "summary": summary, "paper": None}
    codes = {}
    panels = {}
    recon_rows = {"original": data.test.images(chosen)}
    sample_rows = {}
    for model, nets in models.items():
        name = NAMES[model]
        run.stage(f"{name}: codes, likelihood, samples, Frechet distances, SVM")
        recon, samples, codes[name], r = measure(run, data, measured, model, nets, prior)
        results[model] = r
        recon_rows[f"{name}:\nreconstructions"] = recon[chosen]
        sample_rows[f"{name}:\nsamples"] = samples[:10]
        run.figure(f"samples_100_{model}", grid(samples[:100].unflatten(0, (10, 10))), "A hundred "
                   f"samples of the {name}. Are they likely images, and is every class there?")
        if args.z_dim == 2:
            t = torch.linspace(0.02, 0.98, 20, device=run.device)
            x, y = codes[name].quantile(t, dim=0).T
            plane = torch.cartesian_prod(y.flip(0), x).flip(1)                  # (400, 2)
            images = decode(nets["dec"], plane).sigmoid().unflatten(0, (20, 20))
            figure = grid(images, xlabel="first latent", ylabel="second latent")
            run.figure(f"decoded_{model}", figure, f"The code plane of the {name}, decoded at "
                       "percentiles 2 to 98 of test codes.")
        panels[f"{name}: loss"] = {"train": (model, "loss"), "validation": (model, "val"),
                                   "test": (model, "test")}
        panels[f"{name}: KL, nats"] = {"train": (model, "kl")}
        run.report_curve(f"{name}: the loss", "loss", "val", model)
        label = "" if len(models) == 1 else f"{name} "
        if model == "vae":
            summary[f"{label}NLL in nats"] = r["nll"]["nats"]
        summary[f"{label}squared error per pixel"] = r["test_mse"]
        if r["fid"] is not None:
            summary[f"{label}distance of samples"] = r["fid"]["value"]
        if r["svm_rbf"] is not None:
            summary[f"{label}SVM in %"] = 100 * r["svm_rbf"]["accuracy"]
    run.stage("figures")
    run.figure("curves", curves(run.history, panels), "Losses per image, in nats (VAE) or "
               "squared errors, should fall together; the KL rises as z comes into use. Noise in "
               "a batch's mean raises the training loss of a normalized AE. The best epoch on "
               "validation is kept.")
    rows = {**recon_rows, **sample_rows}
    run.figure("reconstructions_and_samples", grid(torch.stack(list(rows.values())), list(rows)),
               "Ten test images, what each model makes of their codes, and ten samples, of which "
               "those of a column have the same z from N(0, I)."
               + (" The images are encoded with pixels drawn as 0 or 1." if args.binarize else ""))
    run.figure("learning", grid(torch.stack(list(run.kept.values())), list(run.kept)),
               "Ten test images during training. Before training every code gives nearly the mean "
               "training image, where the decoder's output bias starts.")
    accuracies = code_map(run, codes, data.test.y, points)
    for model in models:
        results[model]["neighbour_acc"] = accuracies[NAMES[model]]
    report_models(run, models, results)
    if args.data == "mnist" and args.hidden == [200, 200] and "vae" in models:
        results["paper"] = "86.76 nats (Burda et al. 2016, one layer, z of 50)"
    run.finish(f"Autoencoders on {args.data}", results)


# %% Command line


def preset(args):
    """Defaults that depend on --model, --arch and --data."""
    values = dict(hidden=[400], z_dim=20, epochs=50)
    if args.arch == "conv":
        values = dict(hidden=[512], z_dim=32, epochs=100)
    if "ae" in args.model or "nae" in args.model:
        values.update(data="fashion", z_dim=2)
        if args.arch == "fc":
            values["hidden"] = [512, 128, 32]
    if args.data in ("faces", "yaleb"):
        values["epochs"] = 300
    return values


def main(argv=None):
    parser = common_flags("vae", __doc__, epochs=50, batch_size=128, lr=1e-3, fid=True)
    parser.epilog = "presets of --epochs (what is typed wins): conv 100; faces and yaleb 300"
    add = parser.add_argument
    add("--model", nargs="+", choices=("vae", "ae", "nae"), default=["vae"],
        help="trained one after the other; with ae or nae --data is fashion (default: vae)")
    add("--arch", choices=("fc", "conv"), default="fc", help="conv: with two convolutions")
    add("--hidden", nargs="+", type=number(int, low=1, high=65536), metavar="N",
        help="hidden layers (default: 400; ae, nae and vae beside them 512 128 32; conv 512)")
    add("--activation", choices=("relu", "tanh"), default="relu", help="of hidden layers")
    add("--z-dim", type=number(int, low=1, high=4096),
        help="latents (default: 20; conv 32; ae, nae and vae beside them 2)")
    add("--beta", type=number(float, low=0), default=1.0, help="weight of the KL")
    add("--likelihood", choices=("bernoulli", "gaussian"),
        help="of pixels given z (default: bernoulli; colour sets and photographs gaussian)")
    add("--sigma", type=number(float, above=0), default=0.1,
        help="standard deviation of the Gaussian likelihood, pixels in [0, 1]")
    add("--binarize", action=argparse.BooleanOptionalAction,
        help="draw pixels as 0 or 1 (default: for --model vae on MNIST with bernoulli)")
    add("--nll-k", type=number(int, low=1), default=5000, help="samples of z per image for the NLL")
    add("--nll-n", type=number(int, low=2), default=1000, help="test images for the NLL")
    args = parse(parser, argv, preset, SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if args.likelihood is None:
        photographs = args.data.partition(":")[0] in ("faces", "yaleb", "multipie")
        args.likelihood = "gaussian" if photographs or data.shape[0] == 3 else "bernoulli"
    if args.binarize is None:
        args.binarize = (args.model, args.data, args.likelihood) == (["vae"], "mnist", "bernoulli")
    build(data.shape, vars(args))                           # raises for a size, likewise
    run = Run("vae", args, data)
    measured = measured_splits(run.data, args)
    if not args.weights:
        for model in args.model:
            train(run, run.data, measured, model)
    evaluate(run, run.data, measured, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
