"""A VAE, the same VAE with a flow for a prior, and a GAN, with as many weights each, compared.

Kingma, Welling, ICLR 2014, arxiv.org/abs/1312.6114; RealNVP: Dinh, Sohl-Dickstein, Bengio, ICLR
2017, arxiv.org/abs/1605.08803; GAN: Goodfellow et al., NIPS 2014, arxiv.org/abs/1406.2661, with the
networks of Radford et al. (DCGAN), ICLR 2016, arxiv.org/abs/1511.06434. In go images; out come
decoders that draw them. Written to runs/flowvae_gan-<data>: curves, samples as training goes on,
interpolations, and one table with Frechet distance, likelihood, weights and seconds.

  vae:   E_q(z|x)[-log p(x|z)] + KL(q(z|x) || N(0, I)), q(z|x) = N(mu, diag sigma^2)
  flow:  E_q(z|x)[-log p(x|z) + log q(z|x) - log p(z)], log p(z) = log N(f(z); 0, I) + log|det f'|
         f: RealNVP.forward, one determinant an image; samples are f^-1(u), u ~ N(0, I). log p(z)
         is taken at one z a step, E_q[log q] in closed form (kl_to_flow)
  gan:   Dis -log Dis(x) - log(1 - Dis(Gen(z))), Gen -log Dis(Gen(z)), the non-saturating loss

--flow-fit joint trains the flow with its VAE, after fits it to the codes of the finished VAE, which
gains at most KL(q(z) || N(0, I)), q(z) the mean of q(z|x) over images. Terms are nats an image, a
mean over the batch. Pixels are Bernoullis (grey) or logistics cut into 256 bins (colour: bits/dim
count). On MNIST they are drawn as 0 or 1 for the VAEs, at every step and once for what is measured.

  python flowvae_gan.py --epochs 12           # MNIST, all four, 45 minutes on a core: see README
  python flowvae_gan.py --model gan --data fashion
  python flowvae_gan.py --data svhn --width 64

Departures: Enc is Dis's trunk, Dec is Gen, all of DCGAN's shapes (28 pixels end in 3x3), half as
wide (--width 64 is theirs); what Dec and Gen draw starts at the mean image. The flow is 8 couplings
of MLPs with scales bounded by 2 tanh, and the identity at first; for a tenth of training the KL's
weight rises from 0 to 1, since a code may die under a joint flow. Dis is to give real images 0.9,
which holds it back. VAE and flow: Adam 1e-3; GAN: 2e-4, beta1 0.5, all on a cosine. Saved are each
VAE's epoch of the lowest validation loss and the GAN's last. Lines between codes are straight, for
the GAN too.
"""
import argparse
import contextlib
import copy
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, batches, load as load_data, pick
from eval import (SideBySideRun as Run, accelerate, adam, binarize, binarized, class_shares,
                  classifier, collapsed, columns, decay, decode, descend, encode, fid, filled,
                  flags, grid, load_nets, log_marginal, log_normal, make_rng, mean_nats, number,
                  over, parse, percent, run_command, sample)

NAMES = {"vae": "VAE", "flow_joint": "joint flow", "flow_after": "flow after", "gan": "GAN"}
PARTS = {"vae": ("dec", "enc"), "flow_joint": ("dec", "enc", "flow"), "flow_after": ("flow",),
         "gan": ("dec", "disc")}                            # of each model; dec of the GAN is Gen
SMOKE = dict(data="digits", limit=800, epochs=2, width=8, nll_k=20, nll_n=50)


# %% Networks


def stages(shape, args):
    """[(side, maps)] from the image to 4 pixels or fewer: (28, 1), (14, 32), (7, 64), (3, 128)."""
    found = [(shape[1], shape[0])]
    while found[-1][0] > 4:
        found.append((found[-1][0] // 2, args["width"] * 2 ** (len(found) - 1)))
    return found


def trunk(shape, args):
    """Layers from images (B, C, H, W) to (B, 2 Z), DCGAN's discriminator but for its last one."""
    way, layers = stages(shape, args), []
    for (_, before), (_, after) in zip(way, way[1:]):       # side 28, 14, 7, 3
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    del layers[1]                                           # no norm behind the first
    return [*layers, nn.Conv2d(way[-1][1], 2 * args["z_dim"], way[-1][0]), nn.Flatten()]


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2."""

    def __init__(self, shape, args):
        super().__init__()
        self.net = nn.Sequential(*trunk(shape, args)).apply(dcgan_init)

    def forward(self, x):
        return self.net(2 * x - 1).chunk(2, 1)


class Discriminator(nn.Module):
    """x (B, C, H, W) -> logits of x being real (B,): Enc's shapes and one layer more."""

    def __init__(self, shape, args):
        super().__init__()
        self.net = nn.Sequential(*trunk(shape, args), nn.LeakyReLU(0.2),
                                 nn.Linear(2 * args["z_dim"], 1)).apply(dcgan_init)

    def forward(self, x):
        return self.net(2 * x - 1)[:, 0]


class Decoder(nn.Module):
    """z (..., Z) -> logits of pixels (..., C, H, W); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, args):
        super().__init__()
        way = stages(shape, args)[::-1]
        layers = [nn.Unflatten(1, (-1, 1, 1)), nn.ConvTranspose2d(args["z_dim"], *way[0][::-1])]
        for (side, before), (twice, after) in zip(way, way[1:]):        # side 3, 7, 14, 28
            layers += [nn.BatchNorm2d(before), nn.ReLU(),
                       nn.ConvTranspose2d(before, after, 4, 2, 1, twice - 2 * side)]
        layers[-1].bias = None                              # but the picture's, which train starts
        self.bias = nn.Parameter(torch.zeros(*shape))       # at the mean image
        self.net = nn.Sequential(*layers).apply(dcgan_init)
        self.log_scale = nn.Parameter(torch.full((shape[0], 1, 1), -3.0))   # of the logistics

    def forward(self, z):
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) + self.bias


def dcgan_init(module):
    """As released: deviation 0.02 around 0, for batch norm's gains around 1."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)


class RealNVP(nn.Module):
    """The prior p(z): f maps z (..., Z) to u, which is N(0, I), by couplings that keep every other
    latent and scale and shift the rest by what they see in those; the next keeps the rest."""

    def __init__(self, z_dim, couplings=8, hidden=128):
        super().__init__()
        masks = (torch.arange(z_dim) + torch.arange(couplings)[:, None]) % 2
        self.register_buffer("masks", masks.float())        # 1: kept
        self.nets = nn.ModuleList(nn.Sequential(
            nn.Linear(z_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * z_dim)) for _ in range(couplings))
        for net in self.nets:                               # the identity at first
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)

    def scale_shift(self, k, z):
        """s and t (..., Z) of coupling k, |s| <= 2, both 0 for what it keeps."""
        s, t = self.nets[k](self.masks[k] * z).chunk(2, -1)
        return (1 - self.masks[k]) * 2 * s.tanh(), (1 - self.masks[k]) * t

    def forward(self, z):
        """u (..., Z) of z (..., Z), and log|det du/dz| (...), one number an image."""
        log_det = 0
        for k in range(len(self.nets)):
            s, t = self.scale_shift(k, z)
            z, log_det = (z - t) * (-s).exp(), log_det - s.sum(-1)
        return z, log_det

    def inverse(self, u):
        """z (..., Z) of u (..., Z): a sample of the prior where u is one of N(0, I)."""
        for k in reversed(range(len(self.nets))):
            s, t = self.scale_shift(k, u)                   # what k keeps is the same in u and z
            u = u * s.exp() + t
        return u

    def log_prob(self, z):
        """log p(z) in nats (...)."""
        u, log_det = self(z)
        return log_normal(u) + log_det


def models(args):
    """Names of the models to train; a flow that is fitted after needs the VAE."""
    flows = [f"flow_{fit}" for fit in args["flow_fit"] if "flow" in args["model"]]
    wanted = {*args["model"], *flows, "vae" if "flow_after" in flows else None}
    return [name for name in NAMES if name in wanted]


def build(shape, args):
    """The networks by name, such as vae_enc and flow_joint_flow: PARTS of the models that --model
    and --flow-fit name. Both VAEs start from the same weights."""
    make = {"dec": Decoder, "enc": Encoder, "disc": Discriminator,
            "flow": lambda *_: RealNVP(args["z_dim"], args["couplings"])}
    nets = {}
    for name in models(args):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args["seed"])
            nets |= {f"{name}_{part}": make[part](shape, args) for part in PARTS[name]}
    return nets


def parts_of(nets, name):
    """(enc, dec, flow) of a model, None for what it has not; flow_after has those of the VAE."""
    home = "vae" if name == "flow_after" else name
    return [nets[key] if key in nets else None
            for key in (f"{home}_enc", f"{home}_dec", f"{name}_flow")]


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt, by the names of `build`."""
    return load_nets(path, "flowvae_gan", build, device)


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, elementwise (Kingma, Welling, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def bernoulli_log_likelihood(x, logits):
    """log p(x|z) in nats (...) of pixels x (..., C, H, W) in [0, 1] under Bernoullis with these
    logits: the sum of x log p + (1 - x) log(1 - p), from logits, where log(0) does not occur. On
    grey pixels the expectation over images binarised at random."""
    bce = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return -bce.flatten(-3).sum(-1)


def logistic_log_likelihood(x, logits, log_scale):
    """log p(x|z) in nats (...) of x (..., C, H, W), whole multiples of 1/255, under logistics with
    mean sigmoid(logits), cut into 256 bins around those; the outer two reach to infinity.

    A bin from a to b, in units of the scale: sigmoid(b) - sigmoid(a), which is
    sigmoid(b) sigmoid(-a) (1 - exp(a - b)), exact also far from the mean."""
    scale = log_scale.exp()
    middle, half = (x - logits.sigmoid()) / scale, 0.5 / 255 / scale
    below, above = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
    inner = below + above + torch.log(-torch.expm1(-2 * half))
    log_p = inner.where(x > 0.5 / 255, below).where(x < 254.5 / 255, above)
    return log_p.flatten(-3).sum(-1)


def log_likelihood(dec, x, logits, args):
    """log p(x|z) (...) by --likelihood."""
    if args.likelihood == "bernoulli":
        return bernoulli_log_likelihood(x, logits)
    return logistic_log_likelihood(x, logits, dec.log_scale)


def kl_to_flow(mu, logvar, z, flow):
    """An estimate (B,) of KL(q(z|x) || p(z)) from one z (B, Z): E_q[log q] in closed form, log p at
    z, since a flow's has none."""
    return -0.5 * (1 + math.log(2 * math.pi) + logvar).sum(-1) - flow.log_prob(z)


def vae_loss(enc, dec, flow, x, noise, args, autocast):
    """(-log p(x|z), KL to N(0, I) or to the flow), means in nats an image; noise (B, Z)."""
    with autocast():                                        # the flow is float32 with --amp, too
        mu, logvar = (part.to(x.dtype) for part in enc(x))
        z = mu + (0.5 * logvar).exp() * noise
        logits = dec(z).to(x.dtype)
    recon = -log_likelihood(dec, x, logits, args).mean()
    kl = kl_to_flow(mu, logvar, z, flow) if flow else kl_divergence(mu, logvar).sum(-1)
    return torch.stack([recon, kl.mean()])


def gan_losses(gen, disc, x, z, target=1.0):
    """What Gen and Dis minimise, in nats, and what Dis gives x (B, C, H, W) and Gen(z), z (B, Z),
    in [0, 1]: four means over images. `target` is what x is to get: 1 for -log Dis(x) -
    log(1 - Dis(Gen(z))), less so that Dis does not grow too sure."""
    real, fake = disc(x).float(), disc(gen(z).sigmoid()).float()    # apart, for batch norm
    dis = F.softplus(real) - target * real + F.softplus(fake)       # cross entropies, (B,)
    return torch.stack([part.mean() for part in
                        (F.softplus(-fake), dis, real.sigmoid(), fake.sigmoid())])


# %% Training


def gan_step(gen, disc, opts, x, z, autocast, losses=gan_losses, target=1.0):
    """One pass of x and Gen(z) through Dis; Gen and Dis each go down their own loss."""
    with autocast():
        terms = losses(gen, disc, x, z, target)
    descend(terms[:2], opts)
    return terms.detach()


def train(run, data, seen):
    """Trains the models in turn, an epoch each, on draws of their own. seen: the splits as the VAEs
    are measured on them, binarised once where --binarize is on."""
    args, device, split = run.args, run.device, data.train
    best = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    print("weights:", ", ".join(f"{name} {weights(net):,}" for name, net in best.items()))
    mean = split.mean_image().clamp(0.001, 0.999).logit()
    for dec in (net for name, net in best.items() if name.endswith("dec")):
        dec.bias.data = mean.clone()
    now, opts = nn.ModuleDict(copy.deepcopy(best)), {}
    parts = {f"now_{name}": net for name, net in now.items()}
    trained = [name for name in models(vars(args)) if name != "flow_after"]
    for name in trained:                                    # one Adam a VAE, Gen and Dis one each
        gan, own = name == "gan", [now[f"{name}_{part}"] for part in PARTS[name]]
        opts[name] = ([adam(net, lr=args.gan_lr, beta1=0.5) for net in own] if gan else
                      [adam(*own, lr=args.lr)])
        parts |= {f"opt_{name}_{i}": opt for i, opt in enumerate(opts[name])}
        parts[f"rng_{name}"] = torch.Generator(device).manual_seed(args.seed)
    ten = torch.randn(10, args.z_dim, generator=torch.Generator().manual_seed(args.seed)).to(device)
    cast, loss, adversary = accelerate(args, device, vae_loss, gan_losses)
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    done = run.resume(best, **parts)
    run.kept.pop("flow_after", None)                        # of a VAE that trains on
    for epoch in range(done, args.epochs):
        row = {}
        for m, name in enumerate(trained):
            start, rng, terms, gan = time.perf_counter(), parts[f"rng_{name}"], [], name == "gan"
            enc, dec, flow = parts_of(now.train(), name)
            for i, index in enumerate(batches(split, batch, rng)):
                share = (epoch + i / steps) / args.epochs
                decay(opts[name], args.gan_lr if gan else args.lr, share)
                x = split.images(index)
                noise = torch.randn(batch, args.z_dim, generator=rng, device=device)
                if gan:
                    term = gan_step(dec, now["gan_disc"], opts[name], x, noise, cast, adversary,
                                    args.real_target)
                else:
                    x = binarize(x, rng) if args.binarize else x
                    term = loss(enc, dec, flow, x, noise, args, cast)
                    beta = 1 if share >= args.warm_up else share / args.warm_up
                    descend([term[0] + beta * term[1]], opts[name])
                terms.append(term.detach())
                run.progress(epoch, m * steps + i + 1, len(trained) * steps)
            columns = ("gen", "dis", "d_real", "d_fake") if gan else ("recon", "kl")
            row |= run.means([f"{name}_{column}" for column in columns], terms)
            now.eval()
            if gan:
                for key in ("train", "val"):                # as many images of train as of val
                    x = getattr(data, key).images(slice(len(data.val)))
                    row[f"gan_{key}"] = decode(now["gan_disc"], x).sigmoid().mean().item()
            else:
                row[f"{name}_train"] = row[f"{name}_recon"] + row[f"{name}_kl"]
                row[f"{name}_val"] = held_out(enc, dec, flow, seen["val"], args)
            if gan or all(row[f"{name}_val"] < past[f"{name}_val"] for past in run.history):
                for part in PARTS[name]:
                    best[f"{name}_{part}"].load_state_dict(now[f"{name}_{part}"].state_dict())
            if epoch == 0 or (epoch + 1) % 10 == 0:
                z = flow.inverse(ten) if flow else ten
                run.kept[f"{NAMES[name]}, epoch {epoch + 1}"] = decode(dec, z).sigmoid()
            row[f"{name}_seconds"] = time.perf_counter() - start
        run.log(len(trained) * steps * batch, **row)
        run.save(-epoch, best, **parts)                     # every epoch is the lowest so far
    if "flow_after_flow" in best:
        with run.doing("flow on the codes of the finished VAE"):
            codes = [encode(best["vae_enc"].eval(), seen[key]) for key in ("train", "val")]
            fresh = copy.deepcopy(now["flow_after_flow"])
            best["flow_after_flow"], run.kept["flow_after"] = fit_flow(fresh, *codes, args)
        run.save(0.5 - args.epochs, best, **parts)


def fit_flow(flow, train, val, args):
    """Fits a flow to codes, (mu (N, Z), logvar (N, Z)) each, by maximum likelihood of z ~ q(z|x)
    drawn afresh at every step. Returns it as of the epoch with the lowest loss on val, and its
    curve (epochs, 3): -log p(z) in nats on train and on val, and seconds."""
    device, n, batch = train[0].device, len(train[0]), min(args.batch_size, len(train[0]))
    rng, curve = torch.Generator(device).manual_seed(args.seed), []
    opt = adam(flow, lr=args.lr)
    val = sample(tuple(val), rng)
    for epoch in range(args.epochs):
        start, losses = time.perf_counter(), []
        for i, index in enumerate(torch.randperm(n, generator=rng, device=device).split(batch)):
            decay([opt], args.lr, (epoch + i * batch / n) / args.epochs)
            loss = -flow.log_prob(sample(tuple(part[index] for part in train), rng)).mean()
            descend([loss], [opt])
            losses.append(loss.detach())
        with torch.no_grad():
            found = [torch.stack(losses).mean().item(), -flow.log_prob(val).mean().item()]
        if not all(map(math.isfinite, found)):
            raise DataError(f"The flow's loss is not finite in its epoch {epoch + 1}: lower --lr; "
                            "the VAE's checkpoint stays.")
        if all(found[1] < row[1] for row in curve):
            best = copy.deepcopy(flow)
        curve.append([*found, time.perf_counter() - start])
    return best, torch.tensor(curve)


def held_out(enc, dec, flow, split, args):
    """A VAE's loss over a split, in nats an image, with seeded z."""
    def loss(x, rng):
        noise = torch.randn(len(x), args.z_dim, generator=rng, device=x.device)
        return vae_loss(enc, dec, flow, x, noise, args, contextlib.nullcontext).sum()
    return over(split, loss, args.seed).item()


def weights(net):
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())


# %% Evaluation


def tell_flowvae_gan(run, names, r):
    """On the models of flowvae_gan.py beside each other; names: {model: words}."""
    args, there = run.args, {name: r[name] for name in names if r[name]}
    first = next(iter(there.values()))
    judge = first["fid"]                                    # None with --fid none
    pixels = ("logistics in 256 bins" if args.likelihood == "logistic" else
              f"Bernoullis on {'binarised' if args.binarize else 'grey'} pixels")
    run.side_by_side("Compared", {names[name]: m for name, m in there.items()}, {
        "weights of Enc and Dec, or Gen and Dis": "params", "of the flow": "flow_params",
        "Frechet distance of samples": "fid.value", "of as many train images": "fid.floor",
        "NLL, nats": "nll.nats", "standard error": "nll.stderr", "bits/dim": "nll.bits_per_dim",
        "bound, nats": "test_bound", "variance of samples, of test images: 1": "spread",
        "longest step between two codes, mean: 1": "jump",
        "certainty between two codes": "sure:%", "seconds": "seconds:,.0f"},
        " ".join([*filled(first, f"Likelihood: {pixels}; NLL: {{nll.k}} z an image, {{nll.n}} test "
                          "images; bound: one z, all of them."),
                  "Between two codes: the nine steps of up to 100 pairs; certainty: a LeNet's "
                  "largest probability, mean over the eight images between. It names "
                  f"{percent(r['real_class_acc'])} of real test images.",
                  *filled(first, "Features: {fid.features}; {fid.n} samples.")]))
    for name in ("vae", "flow_joint"):
        if r[name]:
            row = min(run.history, key=lambda row: row[f"{name}_val"])
            run.say(f"{names[name]}: in epoch {{epoch:d}}, its best, {{{name}_train:.1f}} nats on "
                    f"train and {{{name}_val:.1f}} on validation images, the KL "
                    f"{{{name}_kl:.1f}}" + (": z is dead." if row[f"{name}_kl"] < 0.5 else "."),
                    row)
    for name in ("flow_joint", "flow_after"):
        if r["vae"] and r[name]:
            bound = r["vae"]["test_bound"] - r[name]["test_bound"]
            run.say(f"{names[name]}: NLL {{nll.nats:.2f}} nats, {{gain.nats:+.2f}}"
                    + "".join(filled(r[name], " ± {gain.stderr:.2f}"))
                    + " nats of log p(x) against N(0, I) on the same images; in the bound "
                    f"{bound:+.2f}"
                    + (", which KL(q(z) || N(0, I)) is at least." if name == "flow_after" else
                       "; here q(z|x) could adapt to the flow."), r[name])
    if judge:
        order = sorted(there, key=lambda name: there[name]["fid"]["value"])
        run.say("Samples, the nearest to real images first (Frechet distance): " + ", ".join(
            f"{names[name]} {there[name]['fid']['value']:.1f}" for name in order)
            + f"; as many train images {judge['floor']:.1f}.")
    sure = max(there, key=lambda name: there[name]["sure"])
    even = min(there, key=lambda name: there[name]["jump"])
    run.say(f"Between two codes {names[sure]} shows the clearest classes (certainty "
            f"{{{sure}.sure:%}}), {names[even]} moves most evenly (longest step "
            f"{{{even}.jump:.2f}} times the mean).", r)
    if r["gan"]:
        last = run.history[-1]
        won = last["gan_d_real"] > 0.95 * args.real_target and last["gan_d_fake"] < 0.05
        run.say("GAN: in training Dis gave real images {gan_d_real:%} and samples {gan_d_fake:%}: "
                f"it has {'won, and teaches Gen little' if won else 'not won'}. Afterwards it "
                "gives train images {gan_train:%}, new ones {gan_val:%}. Samples vary {spread:%} "
                "as much as real images, and a LeNet sees the rarest class in "
                "{class_shares:min%} of them"
                + (": they have collapsed." if collapsed(r["gan"]) else "."), last | r["gan"])


@torch.no_grad()
def interpolate(flow, a, b, steps=10):
    """Codes (steps, N, Z) on a straight line from a to b (N, Z), of the flow's base space where
    there is one: mapped there, divided, mapped back."""
    a, b = (flow(z)[0] if flow else z for z in (a, b))
    t = torch.linspace(0, 1, steps, device=a.device)[:, None, None]
    u = (1 - t) * a + t * b
    return flow.inverse(u) if flow else u


@torch.no_grad()
def evaluate(run, data, seen, nets):
    """The figures and measurements of every model, from best.pt; fills the report."""
    args, seed, test, fitted = run.args, run.args.seed, seen["test"], run.kept.get("flow_after")
    n, shows = (300, 5000) if args.smoke else (10_000, 100_000)
    rng, some = make_rng(seed, "samples", run.device), pick(test.y, args.nll_n, seed)
    u = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    order, half = torch.randperm(len(test), generator=rng, device=run.device), len(test) // 2
    ends = order[:2 * min(100, half)].chunk(2)              # of 100 lines between codes
    variance = data.test.images(slice(None)).var(0).sum()
    results, strips, drawn, log_p = dict.fromkeys(NAMES), {}, {}, {}
    with run.doing("classifier"):
        sees, results["real_class_acc"] = classifier(data, args.data_dir, shows)
    for name in models(vars(args)):
        if name == "flow_after" and fitted is None:         # --resume fits a flow that is missing
            continue
        enc, dec, flow = parts_of(nets, name)
        with run.doing(f"samples, FID and interpolations of {NAMES[name]}"):
            images = decode(dec, flow.inverse(u) if flow else u).sigmoid()
            mu, logvar = encode(enc, test) if enc else (u, None)
            codes = interpolate(flow, *(mu[end % len(mu)] for end in ends))     # (10, 100, Z)
            strip = decode(dec, codes.flatten(0, 1)).sigmoid().unflatten(0, codes.shape[:2])
            way = strip.diff(dim=0).flatten(2).norm(dim=2)  # (9, 100)
            drawn[name] = images[:30].unflatten(0, (3, 10))
            strips[name] = strip[:, :3].transpose(0, 1)     # (3, 10, C, H, W)
            after = name == "flow_after"
            seconds = sum(row["vae_seconds" if after else f"{name}_seconds"] for row in run.history)
            results[name] = {
                "params": weights(dec) + weights(enc or nets["gan_disc"]),
                "flow_params": weights(flow) if flow else 0, "nll": None,
                "seconds": seconds + (fitted[:, 2].sum().item() if after else 0),
                "fid": fid(args.fid, data, args.data_dir, images, seed, shows),
                "spread": (images.var(0).sum() / variance).item(),
                "class_shares": class_shares(sees, images, len(data.classes)),
                "jump": (way.max(0).values / way.mean(0).clamp(min=1e-9)).mean().item(),
                "sure": sees(strip[1:-1].flatten(0, 1)).softmax(1).max(1).values.mean().item()}
        if enc:
            with run.doing(f"likelihood of {NAMES[name]}"):
                log_p[name] = log_marginal(
                    test.images(some), mu[some], logvar[some],
                    lambda x, z: log_likelihood(dec, x, dec(z), args), (args.nll_k,), seed,
                    flow)[args.nll_k]
                results[name] |= {"test_bound": held_out(enc, dec, flow, test, args), "nll": {
                    **mean_nats(-log_p[name], math.prod(run.shape)), "k": args.nll_k}}
                if flow and "vae" in log_p:                 # of the same images and draws
                    results[name]["gain"] = mean_nats(log_p[name] - log_p["vae"])
    with run.doing("figures"):
        run.figure("curves", columns(run.history, {
            "VAE: loss, nats": ["vae_train", "vae_val"],
            "joint flow: loss, nats": ["flow_joint_train", "flow_joint_val"],
            "KL, nats": ["vae_kl", "flow_joint_kl"], "GAN: losses, nats": ["gan_gen", "gan_dis"],
            "what Dis gives, training": ["gan_d_real", "gan_d_fake"],
            "real images, afterwards": ["gan_train", "gan_val"]}),
                   "Validation above train at the end is overfitting; of Dis, where it gives new "
                   "images less than those of train. A GAN's losses say nothing of its images.")
        if fitted is not None:
            rows = [{"epoch": i, "train": a, "val": b} for i, (a, b, _) in enumerate(fitted, 1)]
            run.figure("curves_flow_after", columns(rows, {"-log p(z), nats": ["train", "val"]}),
                       "The flow on the codes of the finished VAE.")
        kept = [key for name in NAMES.values() for key in run.kept if key.startswith(name + ", ")]
        run.figure("learning", grid(torch.stack([run.kept[key].cpu() for key in kept]), kept),
                   "The same ten draws of each model as training goes on.")
        names = [label for name in drawn for label in ("", NAMES[name], "")]
        run.figure("samples", grid(torch.cat([*drawn.values()]), names),
                   "Thirty draws of each model. Likely images, of all classes?")
        run.figure("interpolations", grid(torch.cat([*strips.values()]), names),
                   "Ten points on lines between two codes: of test images for the VAEs, in the "
                   "flow's base space where there is one, of random z for the GAN. Is every step "
                   "an image, or a double exposure of two?")
    tell_flowvae_gan(run, NAMES, results)
    run.finish(f"VAE, flow prior and GAN on {args.data}", results)


# %% Command line


def main(argv=None):
    parser, groups = flags("flowvae_gan", __doc__,
                           data="mnist", epochs=30, batch_size=128, lr=1e-3, fid=True,
                           nll=(1000, 500))
    add, whole = groups["model"].add_argument, number(int, low=1, high=4096)
    add("--model", nargs="+", choices=("vae", "flow", "gan"), default=["vae", "flow", "gan"],
        help="(default: vae flow gan)")
    add("--flow-fit", nargs="+", choices=("joint", "after"), default=["joint", "after"],
        help="(default: joint after)")
    add("--width", type=whole, default=32, help="maps next to the image (default: 32; DCGAN: 64)")
    add("--z-dim", type=whole, default=32, help="numbers in z (default: 32)")
    add("--couplings", type=whole, default=8, help="layers of the flow (default: 8)")
    add = groups["objective"].add_argument
    add("--warm-up", type=number(float, low=0, high=1), default=0.1,
        help="share of training in which the KL's weight rises from 0 to 1 (default: 0.1)")
    add("--real-target", type=number(float, above=0, high=1), default=0.9,
        help="what Dis is to give real images (default: 0.9; plain: 1)")
    add("--likelihood", choices=("bernoulli", "logistic"),
        help="of pixels, for the VAEs (default: bernoulli, colour: logistic)")
    add("--binarize", action=argparse.BooleanOptionalAction, help="draw pixels as 0 or 1, for the "
        "VAEs (default: mnist with bernoulli)")
    groups["optimisation"].add_argument("--gan-lr", type=number(float, above=0), default=2e-4,
                                        help="step size of Gen and Dis (default: 0.0002)")
    args = parse(parser, argv, {}, SMOKE)
    if args.weights:
        load(args.weights)                                  # before a folder is made
    run = Run("flowvae_gan", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if args.likelihood is None:
        args.likelihood = "bernoulli" if data.train.x.shape[1] == 1 else "logistic"
    if args.binarize is None:
        args.binarize = (args.data, args.likelihood) == ("mnist", "bernoulli")
    data = run.begin(data)
    seen = {name: binarized(split, args.seed) if args.binarize else split
            for name, split in data.splits().items()}
    if not args.weights:
        train(run, data, seen)
    evaluate(run, data, seen, run.best_nets(load))


if __name__ == "__main__":
    run_command(main)
