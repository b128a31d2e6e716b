"""A VAE, the same VAE with a RealNVP prior, and a GAN of the same size, compared.

VAE: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114; RealNVP: Dinh et al. 2017,
https://arxiv.org/abs/1605.08803; GAN: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661, with
the networks of DCGAN, https://arxiv.org/abs/1511.06434. Input: images. Output: decoders that draw
images from z.

    VAE:   E_q(z|x)[-log p(x|z)] + KL(q(z|x) || N(0, I)), q(z|x) = N(mu, sigma^2)
    flow:  E_q(z|x)[-log p(x|z) + log q(z|x) - log p(z)],
           log p(z) = log N(f(z); 0, I) + log|det df/dz|; f is RealNVP.forward
    GAN:   Dis minimizes -log Dis(x) - log(1 - Dis(Gen(z))), Gen minimizes -log Dis(Gen(z)),
           the non-saturating loss
vae_losses computes the first two (E_q[log q] in closed form, log p(z) at one z), gan_losses the
third. --flow-fit joint trains the flow with its VAE; after fits it to the codes of the finished
VAE and lowers the negative bound by at most KL(q(z) || N(0, I)), q(z): the mean of q(z|x).

Loss terms are nats per image: sums over pixels or latents, means over images. Pixels are Bernoullis
(grey) or logistics cut into 256 bins (colour). On MNIST the VAEs see pixels drawn as 0 or 1: afresh
in each step, and once for every likelihood that is measured.

    python flowvae_gan.py --epochs 12           # MNIST, all models, 65 minutes on one core
    python flowvae_gan.py --data svhn --width 64

Departures from the papers:
- Enc has the layers of Dis, Dec those of Gen: DCGAN's shapes at half the width. What Dec and Gen
  draw starts at the mean image.
- The flow has 8 coupling layers, each with an MLP, scales by exp(-2) to exp(2), and starts as the
  identity. The KL weight rises from 0 over a tenth of training, because with a joint flow z may
  stay unused.
- Dis aims at 0.9 for real images (one-sided label smoothing). Gen and Dis are updated together,
  from one batch of samples; the papers update Dis first. The step size falls to 0 on a cosine.
"""
import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn

from data import Split, batches, load as load_data
from eval import (Run, classifier, common_flags, cosine, curves, decode, encode, fid, grid,
                  load_networks, log_marginal, make_rng, mean_and_stderr, number, parse, percent,
                  run_command, set_lr)

NAMES = {"vae": "VAE", "flow_joint": "joint flow", "flow_after": "flow fitted after", "gan": "GAN"}
SMOKE = dict(data="digits", limit=800, batch_size=32, epochs=12, width=8, gan_lr=1e-3, nll_k=20,
             nll_n=50)

# %% Networks


def dcgan_init(module):
    """Weights ~ N(0, 0.02^2), those of batch norm ~ N(1, 0.02^2), as in DCGAN's code."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def trunk(shape, width, z_dim):
    """Layers from images (B, C, H, H) to (B, 2 Z): DCGAN's discriminator with 2 Z outputs."""
    channels, size, _ = shape
    layers = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]           # (B, 32, 14, 14)
    size = size // 2
    while size > 4:                                         # (B, 64, 7, 7), (B, 128, 3, 3)
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width),
                   nn.LeakyReLU(0.2)]
        width = 2 * width
        size = size // 2
    return nn.Sequential(*layers, nn.Conv2d(width, 2 * z_dim, size), nn.Flatten())


class Encoder(nn.Module):
    """x (B, C, H, H) -> mu (B, Z), logvar (B, Z) of q(z|x)."""

    def __init__(self, shape, width, z_dim):
        super().__init__()
        self.net = trunk(shape, width, z_dim).apply(dcgan_init)

    def forward(self, x):
        return self.net(2 * x - 1).chunk(2, 1)


class Discriminator(nn.Module):
    """x (B, C, H, H) -> logits (B,) that x is real; the layers of Enc and one more."""

    def __init__(self, shape, width, z_dim):
        super().__init__()
        self.net = nn.Sequential(trunk(shape, width, z_dim), nn.LeakyReLU(0.2),
                                 nn.Linear(2 * z_dim, 1)).apply(dcgan_init)

    def forward(self, x):
        return self.net(2 * x - 1)[:, 0]


class Decoder(nn.Module):
    """z (..., Z) -> logits of pixels (..., C, H, H); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, width, z_dim):
        super().__init__()
        channels, size, _ = shape
        sizes = [size]                                      # 28, 14, 7, 3
        maps = [channels]                                   # 1, 32, 64, 128
        while sizes[-1] > 4:
            maps.append(width * 2**(len(maps) - 1))
            sizes.append(sizes[-1] // 2)
        layers = [nn.Unflatten(1, (-1, 1, 1)),
                  nn.ConvTranspose2d(z_dim, maps[-1], sizes[-1], bias=False)]   # (B, 128, 3, 3)
        for i in reversed(range(len(sizes) - 1)):           # (B, 64, 7, 7), (B, 32, 14, 14), ...
            padding = sizes[i] - 2 * sizes[i + 1]
            layers += [nn.BatchNorm2d(maps[i + 1]), nn.ReLU(),
                       nn.ConvTranspose2d(maps[i + 1], maps[i], 4, 2, 1, padding, bias=False)]
        self.net = nn.Sequential(*layers).apply(dcgan_init)
        self.bias = nn.Parameter(torch.zeros(shape))        # training starts it at the mean image
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), -3.0))       # of the logistics

    def forward(self, z):
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) + self.bias


class RealNVP(nn.Module):
    """The prior p(z): f maps z (..., Z) to u, which is N(0, I). Each coupling layer leaves every
    other latent unchanged and predicts scale and shift of the rest from them (section 3)."""

    def __init__(self, z_dim, couplings, hidden=128):
        super().__init__()
        masks = (torch.arange(z_dim) + torch.arange(couplings)[:, None]) % 2
        self.register_buffer("masks", masks.float())        # 1: unchanged
        self.nets = nn.ModuleList()
        for _ in range(couplings):
            last = nn.Linear(hidden, 2 * z_dim)
            nn.init.zeros_(last.weight)                     # the identity at first
            nn.init.zeros_(last.bias)
            self.nets.append(nn.Sequential(nn.Linear(z_dim, hidden), nn.SiLU(),
                                           nn.Linear(hidden, hidden), nn.SiLU(), last))

    def scale_shift(self, k, z):
        """s and t (..., Z) of coupling k, |s| <= 2, both 0 for what it leaves unchanged."""
        s, t = self.nets[k](self.masks[k] * z).chunk(2, -1)
        return (1 - self.masks[k]) * 2 * s.tanh(), (1 - self.masks[k]) * t

    def forward(self, z):
        """u (..., Z) of z (..., Z), and log|det du/dz| (...), one number per image."""
        log_det = 0
        for k in range(len(self.nets)):
            s, t = self.scale_shift(k, z)
            z = (z - t) * (-s).exp()
            log_det = log_det - s.sum(-1)
        return z, log_det

    def inverse(self, u):
        """z (..., Z) of u (..., Z): a sample of the prior if u is one of N(0, I)."""
        for k in reversed(range(len(self.nets))):
            s, t = self.scale_shift(k, u)                   # the unchanged latents determine both
            u = u * s.exp() + t
        return u

    def log_prob(self, z):
        """log p(z) in nats, (...) of z (..., Z)."""
        u, log_det = self(z)
        log_normal = -0.5 * (u**2 + math.log(2 * math.pi)).sum(-1)              # log N(u; 0, I)
        return log_normal + log_det


def build(shape, args):
    """{"vae": {"enc", "dec"}, "flow_joint": {"enc", "dec", "flow"}, "flow_after": {"flow"}, "gan":
    {"gen", "disc"}} for images of `shape` (C, H, W). Both VAEs start from the same weights."""
    sizes = (shape, args["width"], args["z_dim"])
    models = {}
    for model in NAMES:
        with torch.random.fork_rng(devices=[]):             # leaves a notebook's generator alone
            torch.manual_seed(args["seed"])
            nets = {}
            if model in ("vae", "flow_joint"):
                nets["enc"] = Encoder(*sizes)
                nets["dec"] = Decoder(*sizes)
            if model in ("flow_joint", "flow_after"):
                nets["flow"] = RealNVP(args["z_dim"], args["couplings"])
            if model == "gan":
                nets["gen"] = Decoder(*sizes)
                nets["disc"] = Discriminator(*sizes)
        models[model] = nets
    return models


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt, {model: networks} as in `build`."""
    return load_networks(path, "flowvae_gan", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)) in nats, (B,) of mu and logvar (B, Z)."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def kl_to_flow(mu, logvar, z, flow):
    """An estimate (B,) of KL(q(z|x) || p(z)) from one z (B, Z): E_q[log q] in closed form, log p(z)
    at z, because there is none for a flow."""
    return -0.5 * (1 + math.log(2 * math.pi) + logvar).sum(1) - flow.log_prob(z)


def logistic_log_likelihood(x, logits, log_scale):
    """log p(x|z) in nats, (...) of x (..., C, H, W), whole multiples of 1/255, under logistics with
    mean sigmoid(logits), cut into 256 bins around those; the outer two reach to infinity.

    A bin from a to b, in units of the scale, has sigmoid(b) - sigmoid(a), which is
    sigmoid(b) sigmoid(-a) (1 - exp(a - b)), exact also far from the mean."""
    scale = log_scale.exp()
    middle = (x - logits.sigmoid()) / scale
    half = 0.5 / 255 / scale
    below = F.logsigmoid(middle + half)
    above = F.logsigmoid(half - middle)
    inner = below + above + torch.log(-torch.expm1(-2 * half))
    log_p = inner.where(x > 0.5 / 255, below).where(x < 254.5 / 255, above)
    return log_p.flatten(-3).sum(-1)


def log_likelihood(dec, x, logits, likelihood):
    """log p(x|z) in nats, (...) of x in [0, 1] and logits, both (..., C, H, W)."""
    if likelihood == "logistic":
        return logistic_log_likelihood(x, logits, dec.log_scale)
    bce = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return -bce.flatten(-3).sum(-1)


def vae_losses(enc, dec, flow, x, noise, likelihood, autocast):
    """-log p(x|z) and KL to N(0, I), or to the flow unless it is None: means over images in nats.
    x (B, C, H, W), noise (B, Z) from N(0, I)."""
    with autocast:                                          # likelihood and flow stay in float32
        mu, logvar = enc(x)
        mu = mu.to(x.dtype)
        logvar = logvar.to(x.dtype)
        z = mu + (0.5 * logvar).exp() * noise
        logits = dec(z).to(x.dtype)
    recon = -log_likelihood(dec, x, logits, likelihood)
    if flow is None:
        kl = kl_divergence(mu, logvar)
    else:
        kl = kl_to_flow(mu, logvar, z, flow)
    return recon.mean(), kl.mean()


def gan_losses(real, fake, real_label):
    """Losses of Gen and Dis in nats from Dis's logits of real images and of Gen(z), (B,) each.
    real_label: the target of Dis for real images."""
    real = real.float()
    fake = fake.float()
    loss_real = F.binary_cross_entropy_with_logits(real, torch.full_like(real, real_label))
    return F.softplus(-fake).mean(), loss_real + F.softplus(fake).mean()


# %% Training


def binarize(x, rng):
    """Pixels (...) drawn as 0 or 1 with their brightness in [0, 1] as probability."""
    return (torch.rand(x.shape, generator=rng, device=x.device) < x).float()


def measured_split(split, args):
    """The split as the VAEs are measured on it: with --binarize pixels drawn once, as 0 or 255."""
    if not args.binarize:
        return split
    rng = make_rng(args.seed, "binarize", split.device)
    parts = [255 * binarize(part.float() / 255, rng) for part in split.x.split(5000)]
    return Split(torch.cat(parts).byte(), split.y, split.factors)


def draw(dec, flow, u):
    """Images (N, C, H, W) of draws u (N, Z) from N(0, I), through the flow unless it is None."""
    z = u
    if flow is not None:
        z = flow.inverse(u)
    return decode(dec, z).sigmoid()


@torch.no_grad()
def snapshot(run, model, epoch, dec, flow=None):
    """Keeps ten samples of the first and of every tenth epoch, from the same draws of N(0, I)."""
    if epoch == 0 or (epoch + 1) % 10 == 0:
        rng = make_rng(run.args.seed, "snapshot")
        u = torch.randn(10, run.args.z_dim, generator=rng).to(run.device)
        run.kept[f"{NAMES[model]}, epoch {epoch + 1}"] = draw(dec, flow, u).cpu()


@torch.no_grad()
def validation_loss(nets, split, args):
    """The bound of a VAE in nats per image, with a seeded z, the mean over a split."""
    rng = make_rng(args.seed, "validation", split.device)
    autocast = torch.autocast(split.device.type, enabled=False)
    total = 0
    for idx in torch.arange(len(split), device=split.device).split(500):
        noise = torch.randn(len(idx), args.z_dim, generator=rng, device=split.device)
        recon, kl = vae_losses(nets["enc"], nets["dec"], nets.get("flow"), split.images(idx), noise,
                               args.likelihood, autocast)
        total += (recon + kl) * len(idx) / len(split)
    return total.item()


def train_vae(run, data, model):
    """Trains "vae" or "flow_joint". The best epoch has the lowest bound on validation."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))[model]
    modules = nn.ModuleDict(nets).to(device)
    enc = nets["enc"]
    dec = nets["dec"]
    flow = nets.get("flow")
    if args.compile:                                        # not the flow: log_prob is called
        enc.compile()
        dec.compile()
    dec.bias.data = data.train.mean_image().clamp(0.001, 0.999).logit()
    val = measured_split(data.val, args)
    opt = torch.optim.Adam(modules.parameters(), lr=args.lr, fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    for epoch in range(run.resume(model, **nets, opt=opt, rng=rng), args.epochs):
        modules.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            progress = (epoch + step / run.steps_per_epoch) / args.epochs
            set_lr(opt, args.lr * cosine(progress))
            kl_weight = 1.0
            if progress < args.kl_warmup:
                kl_weight = progress / args.kl_warmup
            x = data.train.images(idx)
            if args.binarize:
                x = binarize(x, rng)
            noise = torch.randn(len(x), args.z_dim, generator=rng, device=device)
            recon, kl = vae_losses(enc, dec, flow, x, noise, args.likelihood, autocast)
            loss = recon + kl_weight * kl
            opt.zero_grad()
            loss.backward()
            opt.step()
            run.track(recon=recon, kl=kl, train=recon + kl)
        modules.eval()
        snapshot(run, model, epoch, dec, flow)
        val_loss = validation_loss(nets, val, args)
        run.end_epoch(score=val_loss, val=val_loss)


def fit_flow(run, data):
    """Fits "flow_after" to the codes of the finished VAE, by maximum likelihood of a fresh z ~
    q(z|x) in each step. The best epoch has the highest likelihood of codes of validation images."""
    args = run.args
    device = run.device
    enc = load(run.best, device)["vae"]["enc"]
    mu, logvar = encode(enc, measured_split(data.train, args))
    val_mu, val_logvar = encode(enc, measured_split(data.val, args))
    noise = torch.randn(val_mu.shape, generator=make_rng(args.seed, "flow", device), device=device)
    val_z = val_mu + (0.5 * val_logvar).exp() * noise
    flow = build(run.shape, vars(args))["flow_after"]["flow"].to(device)
    opt = torch.optim.Adam(flow.parameters(), lr=args.lr, fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    for epoch in range(run.resume("flow_after", flow=flow, opt=opt, rng=rng), args.epochs):
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            set_lr(opt, args.lr * cosine((epoch + step / run.steps_per_epoch) / args.epochs))
            noise = torch.randn(len(idx), args.z_dim, generator=rng, device=device)
            loss = -flow.log_prob(mu[idx] + (0.5 * logvar[idx]).exp() * noise).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            run.track(train=loss)
        with torch.no_grad():
            val_loss = -flow.log_prob(val_z).mean().item()
        run.end_epoch(score=val_loss, val=val_loss)


def train_gan(run, data):
    """Trains "gan". The last epoch is kept: a loss against an adversary does not rank epochs."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))["gan"]
    gen = nets["gen"].to(device)
    disc = nets["disc"].to(device)
    if args.compile:
        gen.compile()
        disc.compile()
    gen.bias.data = data.train.mean_image().clamp(0.001, 0.999).logit()
    of_gen = list(gen.parameters())
    of_disc = list(disc.parameters())
    opt = torch.optim.Adam(of_gen + of_disc, lr=args.gan_lr, betas=(0.5, 0.999),
                           fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    idx_train = torch.randperm(len(data.train), generator=make_rng(args.seed, "d_train"))
    idx_train = idx_train[:len(data.val)].to(device)        # as many as in validation
    for epoch in range(run.resume("gan", **nets, opt=opt, rng=rng), args.epochs):
        gen.train()
        disc.train()
        for step, idx in enumerate(batches(data.train, args.batch_size, rng)):
            set_lr(opt, args.gan_lr * cosine((epoch + step / run.steps_per_epoch) / args.epochs))
            z = torch.randn(len(idx), args.z_dim, generator=rng, device=device)
            with autocast:
                real = disc(data.train.images(idx))         # batch norm: apart from the fakes
                fake = disc(gen(z).sigmoid())
            loss_gen, loss_disc = gan_losses(real, fake, args.real_label)
            opt.zero_grad()
            loss_gen.backward(inputs=of_gen, retain_graph=True)
            loss_disc.backward(inputs=of_disc)
            opt.step()                                      # Adam treats each weight by itself
            run.track(loss_gen=loss_gen, loss_disc=loss_disc, d_real=real.sigmoid().mean(),
                      d_fake=fake.sigmoid().mean())
        gen.eval()
        disc.eval()
        snapshot(run, "gan", epoch, gen)
        d_train = decode(disc, data.train.images(idx_train)).sigmoid().mean().item()
        d_val = decode(disc, data.val.images(slice(None))).sigmoid().mean().item()
        run.end_epoch(d_train=d_train, d_val=d_val)


def train(run, data):
    """Trains the models one after the other, except those that are finished. A flow is fitted
    again if its VAE trains on."""
    models = run.args.model
    after = "flow" in models and "after" in run.args.flow_fit
    if "vae" in models or after:
        if len(run.rows("vae")) < run.args.epochs:
            run.drop("flow_after")
        train_vae(run, data, "vae")
    if "flow" in models and "joint" in run.args.flow_fit:
        train_vae(run, data, "flow_joint")
    if after:
        fit_flow(run, data)
    if "gan" in models:
        train_gan(run, data)


# %% Evaluation

OBJECTIVES = [
    ("VAE", "Enc: q(z|x), Dec: p(x|z)", "E_q[-log p(x|z)] + KL(q(z|x) || N(0, I))"),
    ("joint flow", "Enc, Dec, and RealNVP: the prior p(z)",
     "E_q[-log p(x|z) + log q(z|x) - log p(z)]"),
    ("flow fitted after", "RealNVP: the prior p(z); Enc and Dec of the VAE", "E_q[-log p(z)]"),
    ("GAN", "Gen: draws images from z, Dis: probability that an image is real",
     "Dis: -r log Dis(x) - (1 - r) log(1 - Dis(x)) - log(1 - Dis(Gen(z))), r = --real-label; "
     "Gen: -log Dis(Gen(z)), the non-saturating loss")]


def n_weights(net):
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())


def slerp(a, b, t):
    """Spherical interpolation (T, N, Z) between draws a and b (N, Z) of N(0, I) at t (T,) in
    [0, 1]: unlike a straight line it stays at norms that draws have."""
    t = t[:, None, None]
    if a.shape[1] == 1:                                     # no direction to turn in
        return (1 - t) * a + t * b
    angle = F.cosine_similarity(a, b, dim=1)[:, None].clamp(-0.9999, 0.9999).arccos()
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def measure_likelihood(run, test, nets, idx):
    """log p (n,) of the test images idx in nats, and the NLL: {nats, stderr, bits_per_dim, ...}."""
    args = run.args
    dec = nets["dec"]
    mu, logvar = encode(nets["enc"], test)
    log_p, sizes = log_marginal(
        test.images(idx), mu[idx], logvar[idx],
        lambda x, z: log_likelihood(dec, x, dec(z), args.likelihood), args.nll_k, args.seed,
        nets.get("flow"))
    nats, stderr = mean_and_stderr(-log_p)
    bits = nats / (math.prod(run.shape) * math.log(2))
    return log_p, {"nats": nats, "stderr": stderr, "bits_per_dim": bits, "n": len(log_p),
                   "ess": sizes.mean().item()}


def report_curves(run):
    """The learning curves, and a verdict on each model."""
    panels = {
        "negative bound, nats": {"VAE, train": ("vae", "train"), "VAE, validation": ("vae", "val"),
                                 "joint flow, train": ("flow_joint", "train"),
                                 "joint flow, validation": ("flow_joint", "val")},
        "KL, nats": {"VAE": ("vae", "kl"), "joint flow": ("flow_joint", "kl")},
        "flow fitted after: -log p(z), nats": {"train": ("flow_after", "train"),
                                               "validation": ("flow_after", "val")},
        "GAN: losses, nats": {"Gen": ("gan", "loss_gen"), "Dis": ("gan", "loss_disc")},
        "probability that Dis assigns": {"train": ("gan", "d_real"),
                                         "samples": ("gan", "d_fake"),
                                         "train, running averages": ("gan", "d_train"),
                                         "validation, running averages": ("gan", "d_val")}}
    run.report_curve("VAE: the negative bound", "train", "val", "vae")
    run.report_curve("Joint flow: the negative bound", "train", "val", "flow_joint")
    run.report_curve("Flow fitted after: -log p(z) of codes", "train", "val", "flow_after")
    run.figure("curves", curves(run.history, panels), "A validation loss that rises while "
               "train falls is overfitting. At first the KL weighs little (--kl-warmup) and is "
               "large. The losses of a GAN do not measure its images. Running averages: of batch "
               "norm, after each epoch; compare the two only with each other.")
    rows = run.rows("gan")
    if rows:
        last = rows[-1]
        verdict = "neither side has won"
        if last["d_real"] > 0.95 * run.args.real_label and last["d_fake"] < 0.05:
            verdict = "Dis has won and teaches Gen little"
        run.note(f"GAN: in the last epoch Dis assigns {percent(last['d_real'])} to train images "
                 f"(its target is {percent(run.args.real_label)}) and {percent(last['d_fake'])} to "
                 f"samples: {verdict}. With the running averages of batch norm it assigns "
                 f"{percent(last['d_train'])} to train and {percent(last['d_val'])} to validation "
                 "images; if the first is far larger, Dis overfits.")


def report_models(run, results):
    """One table of all models, and a comparison in words. Returns the summary."""
    args = run.args
    rows = []
    distances = {}
    clear = []
    summary = {}
    for model, r in results.items():
        name = NAMES[model]
        nll = {}
        if r["nll"] is not None:
            nll = r["nll"]
            summary[f"{name} NLL in nats"] = nll["nats"]
        if r["fid"] is not None:
            distances[name] = r["fid"]["value"]
            summary[f"{name} distance"] = r["fid"]["value"]
            floor = r["fid"]["floor"]
        rows.append((name, r["fid"], nll.get("nats"), nll.get("stderr"), nll.get("ess"),
                     nll.get("bits_per_dim"), r["missing_classes"], r["weights"],
                     r["flow_weights"], round(r["seconds"])))
        if r["confidence"] is not None:
            clear.append(f"{name} {percent(r['confidence'])} and {percent(r['confidence_ends'])}")
        if "gain" in r:
            run.note(f"Against the VAE with N(0, I) the {name} changes the NLL of the same images "
                     f"by {-r['gain']['nats']:+.2f} ± {r['gain']['stderr']:.2f} nats (±: over "
                     "images, not seeds).")
    pixels = "drawn as 0 or 1" if args.binarize else "as they are"
    run.table("Comparison", ("model", "Frechet distance", "NLL, nats", "standard error",
                             "effective samples", "bits/dim", "missing classes", "weights",
                             "flow weights", "seconds"), rows,
              f"NLL: {args.likelihood}, pixels {pixels}, {args.nll_k:,} samples of z, at most "
              f"{args.nll_n:,} test images; it is an upper bound, looser where few of the samples "
              "count. A class is missing if samples have less than a tenth of its share of real "
              "images. Seconds: of training.")
    run.table("Objectives", ("model", "parts", "minimized, in nats per image"), OBJECTIVES)
    if distances:
        order = sorted(distances, key=distances.get)
        ranking = ", ".join(f"{name} {distances[name]:.1f}" for name in order)
        run.note(f"Samples, the nearest to real images first: {ranking} (Frechet distance, "
                 f"{floor:.1f} for as many train images; its ± is in the table).")
    if clear:
        run.note("How sure the classifier is of its first choice, between two draws and at them: "
                 f"{', '.join(clear)}. A lower first number means that images between draws mix "
                 "classes.")
    return summary


@torch.no_grad()
def evaluate(run, data, models):
    """Figures and measurements of all models; writes the report."""
    args = run.args
    n, lenet_images, lenets = (300, 10_000, 1) if args.smoke else (10_000, 100_000, 3)
    test = measured_split(data.test, args)
    rng = make_rng(args.seed, "samples", run.device)
    u = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    path = slerp(u[:100], u[100:200], torch.linspace(0, 1, 12, device=run.device))
    idx = torch.randperm(len(test), generator=rng, device=run.device)[:args.nll_n]
    report_curves(run)
    net = None
    real_class_acc = None
    if data.train is not None:
        run.stage("classifier")
        net, real_class_acc = classifier(data, args.data_dir, lenet_images)
    share = data.test.y.bincount(minlength=len(data.classes)) / len(data.test)
    results = {}
    log_p = {}
    names = []
    sample_rows = []
    strip_rows = []
    for model, nets in models.items():
        run.stage(f"{NAMES[model]}: samples, interpolations, likelihood")
        if model == "flow_after":
            nets = {**models["vae"], **nets}
        dec = nets["gen"] if model == "gan" else nets["dec"]
        flow = nets.get("flow")
        samples = draw(dec, flow, u)
        strips = draw(dec, flow, path.flatten(0, 1)).unflatten(0, (12, 100))
        names += ["", NAMES[model], ""]
        sample_rows.append(samples[:30].unflatten(0, (3, 10)))
        strip_rows.append(strips[:, :3].transpose(0, 1))    # (3, 12, C, H, W)
        seconds = sum(row["seconds"] for row in run.rows(model))
        if model == "flow_after":                           # its VAE is part of it
            seconds += sum(row["seconds"] for row in run.rows("vae"))
        weights = {part: n_weights(nets[part]) for part in nets}
        flow_weights = weights.pop("flow", 0)
        results[model] = {
            "weights": sum(weights.values()), "flow_weights": flow_weights,
            "seconds": seconds,
            "fid": fid(args.fid, data, args.data_dir, samples, args.seed, lenet_images, lenets),
            "missing_classes": None, "confidence": None, "confidence_ends": None, "nll": None}
        if net is not None:
            counts = net.predict(samples).bincount(minlength=len(data.classes))
            results[model]["missing_classes"] = int((counts < 0.1 * n * share).sum())
            confidence = net(strips.flatten(0, 1)).softmax(1).amax(1).view(12, 100)
            results[model]["confidence"] = confidence[1:-1].mean().item()
            results[model]["confidence_ends"] = confidence[[0, -1]].mean().item()
        if model != "gan":
            log_p[model], results[model]["nll"] = measure_likelihood(run, test, nets, idx)
        if flow is not None and "vae" in models:
            gain, stderr = mean_and_stderr(log_p[model] - log_p["vae"])
            results[model]["gain"] = {"nats": gain, "stderr": stderr, "n": len(idx)}
    run.stage("figures")
    gaps = range(2, len(names), 3)
    run.figure("learning", grid(torch.stack(list(run.kept.values())), list(run.kept)),
               "The same ten draws of each model as training goes on (the flow fitted after has "
               "the decoder of the VAE).")
    run.figure("samples", grid(torch.cat(sample_rows), names, gap_below=gaps), "Thirty draws of "
               "each model. Are they likely images, and is every class there?")
    run.figure("interpolations", grid(torch.cat(strip_rows), names, gap_after=(0, 10),
                                      gap_below=gaps),
               "Left and right two draws, between them ten points on the arc that joins them in "
               "the space of N(0, I). Is every step an image, or two images in one?")
    summary = report_models(run, results)
    run.finish(f"VAE, flow prior and GAN on {args.data}",
               {**dict.fromkeys(NAMES), **results, "real_class_acc": real_class_acc,
                "summary": summary, "paper": None})


# %% Command line


def main(argv=None):
    parser = common_flags("flowvae_gan", __doc__, epochs=30, batch_size=128, lr=1e-3, fid=True)
    add = parser.add_argument
    add("--model", nargs="+", choices=("vae", "flow", "gan"), default=["vae", "flow", "gan"],
        help="trained one after the other")
    add("--flow-fit", nargs="+", choices=("joint", "after"), default=["joint", "after"],
        help="joint: trained with its VAE; after: fitted to the codes of the finished VAE")
    add("--width", type=number(int, low=1, high=4096), default=32, help="maps next to the image")
    add("--z-dim", type=number(int, low=1, high=4096), default=32, help="size of z")
    add("--couplings", type=number(int, low=1, high=4096), default=8, help="layers of the flow")
    add("--kl-warmup", type=number(float, low=0, high=1), default=0.1,
        help="share of training in which the KL weight rises from 0")
    add("--real-label", type=number(float, above=0, high=1), default=0.9,
        help="target of Dis for real images")
    add("--likelihood", choices=("bernoulli", "logistic"),
        help="of pixels, for the VAEs (default: bernoulli; colour: logistic)")
    add("--binarize", action=argparse.BooleanOptionalAction,
        help="draw pixels as 0 or 1, for the VAEs (default: MNIST with bernoulli)")
    add("--gan-lr", type=number(float, above=0), default=2e-4, help="step size of Gen and Dis")
    add("--nll-k", type=number(int, low=1), default=5000, help="samples of z per image of the NLL")
    add("--nll-n", type=number(int, low=2), default=500, help="test images of the NLL")
    args = parse(parser, argv, {}, SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if args.likelihood is None:
        args.likelihood = "bernoulli" if data.shape[0] == 1 else "logistic"
    if args.binarize is None:
        args.binarize = args.data == "mnist" and args.likelihood == "bernoulli"
    run = Run("flowvae_gan", args, data)
    if not args.weights:
        train(run, run.data)
    evaluate(run, run.data, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
