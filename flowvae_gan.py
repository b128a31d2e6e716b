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

  python flowvae_gan.py                       # MNIST, all four
  python flowvae_gan.py --model gan --data fashion
  python flowvae_gan.py --data svhn --width 64

Departures: Enc is Dis's trunk, Dec is Gen, all of DCGAN's shapes (28 pixels end in 3x3), half as
wide (--width 64 is theirs); a VAE's output starts at the mean image. The flow is 8 couplings of
MLPs with scales bounded by 2 tanh, and the identity at first; for a tenth of training the KL's
weight rises from 0 to 1, since a code may die under a joint flow. Dis is to give real images 0.9,
which holds it back. VAE and flow: Adam 1e-3; GAN: 2e-4, beta1 0.5, all on a cosine. Saved are each
VAE's epoch of the lowest validation loss and the GAN's last.
"""
import argparse
import contextlib
import copy
import itertools
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from data import batches, load as load_data
from eval import (Run, accelerate, binarize, binarized, checkpoint, classifier, command_line,
                  curves, decay, decode, encode, fid, flags, grid, log_normal, nll, number, parse,
                  percent, pick, restore, sample)

NAMES = {"vae": "VAE", "flow_joint": "joint flow", "flow_after": "flow after", "gan": "GAN"}
SMOKE = dict(data="digits", limit=800, epochs=2, width=8, nll_k=20, nll_n=50)


# Networks


def sides(size):
    """Sides of the maps, halved to 4 pixels or fewer: 32, 16, 8, 4 or 28, 14, 7, 3."""
    found = [size]
    while found[-1] > 4:
        found.append(found[-1] // 2)
    return found


def trunk(shape, args):
    """Layers from images (B, C, H, W) to (B, 2 Z), DCGAN's discriminator but for its last one."""
    side, maps, layers = sides(shape[1]), shape[0], []
    for i in range(len(side) - 1):                          # side 28, 14, 7, 3
        layers += [nn.Conv2d(maps, args["width"] * 2**i, 4, 2, 1),
                   *([nn.BatchNorm2d(args["width"] * 2**i)] if i else []),
                   nn.LeakyReLU(0.2)]
        maps = args["width"] * 2**i
    return [*layers, nn.Conv2d(maps, 2 * args["z_dim"], side[-1]), nn.Flatten()]


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2."""

    def __init__(self, shape, args):
        super().__init__()
        self.net = nn.Sequential(*trunk(shape, args))

    def forward(self, x):
        return self.net(2 * x - 1).chunk(2, 1)


class Discriminator(nn.Module):
    """x (B, C, H, W) -> logits of x being real (B,): Enc's shapes and one layer more."""

    def __init__(self, shape, args):
        super().__init__()
        self.net = nn.Sequential(*trunk(shape, args), nn.LeakyReLU(0.2),
                                 nn.Linear(2 * args["z_dim"], 1))

    def forward(self, x):
        return self.net(2 * x - 1)[:, 0]


class Decoder(nn.Module):
    """z (..., Z) -> logits of pixels (..., C, H, W); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, args):
        super().__init__()
        side = sides(shape[1])[::-1]
        maps = [args["width"] * 2**i for i in range(len(side) - 1)][::-1] + [shape[0]]
        layers = [nn.Unflatten(1, (-1, 1, 1)), nn.ConvTranspose2d(args["z_dim"], maps[0], side[0])]
        for i in range(len(side) - 1):                      # side 3, 7, 14, 28
            layers += [nn.BatchNorm2d(maps[i]), nn.ReLU(),
                       nn.ConvTranspose2d(maps[i], maps[i + 1], 4, 2, 1, side[i + 1] - 2 * side[i])]
        layers[-1].bias = None                              # but the picture's, which train starts
        self.bias = nn.Parameter(torch.zeros(*shape))       # at the mean image for a VAE
        self.net = nn.Sequential(*layers)
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


def build(shape, args):
    """The networks by name: vae_enc, vae_dec, flow_joint_enc, flow_joint_dec, flow_joint_flow,
    flow_after_flow (to the VAE's codes), gan_dec (Gen), gan_disc, as --model and --flow-fit say.
    Both VAEs start from the same weights."""
    nets = {}
    for name in models(args):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args["seed"])
            if name != "flow_after":
                other, kind = ("disc", Discriminator) if name == "gan" else ("enc", Encoder)
                nets |= {f"{name}_dec": Decoder(shape, args).apply(dcgan_init),
                         f"{name}_{other}": kind(shape, args).apply(dcgan_init)}
            if name.startswith("flow"):
                nets[f"{name}_flow"] = RealNVP(args["z_dim"], args["couplings"])
    return nets


def models(args):
    """Names of the models to train; a flow that is fitted after needs the VAE."""
    flows = [f"flow_{fit}" for fit in ("joint", "after")
             if "flow" in args["model"] and fit in args["flow_fit"]]
    vae = ["vae"] * ("vae" in args["model"] or "flow_after" in flows)
    return [*vae, *flows, *(["gan"] * ("gan" in args["model"]))]


def parts_of(nets, name):
    """(enc, dec, flow) of a model, None for what it has not; flow_after has those of the VAE."""
    home = "vae" if name == "flow_after" else name
    return nets.get(f"{home}_enc"), nets[f"{home}_dec"], nets.get(f"{name}_flow")


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt by the names of `build`, ready for
    use."""
    content = checkpoint(path, "flowvae_gan")
    nets = build(content["shape"], content["args"])
    return {k: restore(n, content["nets"].get(k), path).to(device).eval() for k, n in nets.items()}


# Objective


def bernoulli_log_likelihood(x, logits):
    """log p(x|z) in nats (...) of pixels x (..., C, H, W) in [0, 1] under Bernoullis with these
    logits; on grey pixels the expectation over images binarised at random."""
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
    edge = torch.where(x < 0.5 / 255, below, above)
    outer = (x < 0.5 / 255) | (x > 254.5 / 255)
    return torch.where(outer, edge, inner).flatten(-3).sum(-1)


def log_likelihood(dec, x, logits, args):
    """log p(x|z) (...) by --likelihood."""
    if args.likelihood == "bernoulli":
        return bernoulli_log_likelihood(x, logits)
    return logistic_log_likelihood(x, logits, dec.log_scale)


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, elementwise."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def kl_to_flow(mu, logvar, z, flow):
    """An estimate (B,) of KL(q(z|x) || p(z)) from one z (B, Z): E_q[log q] in closed form, log p at
    z, since a flow's has none."""
    return -0.5 * (1 + math.log(2 * math.pi) + logvar).sum(-1) - flow.log_prob(z)


def vae_loss(enc, dec, flow, x, noise, args, autocast):
    """(-log p(x|z), KL to N(0, I) or to the flow), means in nats an image; noise (B, Z)."""
    with autocast():
        mu, logvar = enc(x)
    mu, logvar = mu.to(x.dtype), logvar.to(x.dtype)         # of --amp's bfloat16
    z = mu + (0.5 * logvar).exp() * noise
    with autocast():
        logits = dec(z)
    recon = -log_likelihood(dec, x, logits.to(x.dtype), args).mean()
    kl = kl_to_flow(mu, logvar, z, flow) if flow else kl_divergence(mu, logvar).sum(-1)
    return torch.stack([recon, kl.mean()])


def generate(gen, disc, z, autocast):
    """(-log Dis(Gen(z)), a mean in nats; the images Gen(z))."""
    with autocast():
        made = gen(z).sigmoid()
        logits = disc(made)
    return F.softplus(-logits.float()).mean(), made


def judge(disc, x, made, autocast, target=1.0):
    """(Dis's cross entropy, and what it gives x and made), means; `target` is what x is to get: 1
    for -log Dis(x) - log(1 - Dis(made)), less so that Dis does not grow too sure."""
    with autocast():                                        # apart, for batch norm's statistics
        real, fake = disc(x).float(), disc(made).float()
    loss = F.softplus(real) - target * real                 # cross entropy with the target
    return torch.stack([loss.mean() + F.softplus(fake).mean(), real.sigmoid().mean(),
                        fake.sigmoid().mean()])


# Training

COLUMNS = {"vae": ("recon", "kl"), "flow_joint": ("recon", "kl"),
           "gan": ("gen", "dis", "d_real", "d_fake")}       # of the log, after the model's name


def gan_step(gen, disc, opts, x, z, autocast, generate=generate, judge=judge, target=1.0):
    """Gen, whose images Dis judges without learning from it, then Dis on the same images."""
    disc.requires_grad_(False)
    gen_loss, made = generate(gen, disc, z, autocast)
    opts[0].zero_grad()
    gen_loss.backward()
    opts[0].step()
    disc.requires_grad_(True)
    terms = judge(disc, x, made.detach(), autocast, target)
    opts[1].zero_grad()
    terms[0].backward()
    opts[1].step()
    return torch.cat([gen_loss[None], terms]).detach()


def train(run, data, seen):
    """Trains the models in turn, an epoch each, on draws of their own; best.pt holds the epoch of
    each VAE with the lowest validation loss, the GAN's last, and the flow fitted after. seen: the
    splits as the VAEs are measured on them, binarised once where --binarize is on."""
    args, device, split = run.args, run.device, data.train
    best = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    print("weights:", ", ".join(f"{name} {weights(net):,}" for name, net in best.items()))
    for name in ("vae_dec", "flow_joint_dec"):
        if name in best:
            best[name].bias.data = split.images(slice(None)).mean(0).clamp(0.001, 0.999).logit()
    now, trained = copy.deepcopy(best), [name for name in models(vars(args)) if name in COLUMNS]
    rngs = {name: torch.Generator(device).manual_seed(args.seed) for name in trained}
    ten = torch.randn(10, args.z_dim, generator=torch.Generator().manual_seed(args.seed)).to(device)
    fused, opts = device.type != "mps", {}
    for name in trained:
        owned = [net.parameters() for key, net in now.items() if key.startswith(name)]
        opts[name] = ([torch.optim.Adam(p, args.gan_lr, (0.5, 0.999), fused=fused) for p in owned]
                      if name == "gan" else
                      [torch.optim.Adam(itertools.chain(*owned), args.lr, fused=fused)])
    parts = {**{f"now_{name}": net for name, net in now.items()},
             **{f"rng_{name}": rng for name, rng in rngs.items()},
             **{f"opt_{name}_{i}": opt for name in trained for i, opt in enumerate(opts[name])}}
    cast, loss, *adversary = accelerate(args, device, vae_loss, generate, judge)
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    for epoch in range(run.resume(best, **parts), args.epochs):
        row = {}
        for m, name in enumerate(trained):
            start, rng, terms, gan = time.perf_counter(), rngs[name], [], name == "gan"
            enc, dec, flow = parts_of(now, name)
            for net in now.values():
                net.train()
            for i, index in enumerate(batches(split, batch, rng)):
                done = (epoch + i / steps) / args.epochs
                decay(opts[name], args.gan_lr if gan else args.lr, done)
                x = split.images(index)
                noise = torch.randn(batch, args.z_dim, generator=rng, device=device)
                if gan:
                    term = gan_step(dec, now["gan_disc"], opts[name], x, noise, cast, *adversary,
                                    args.real_target)
                else:
                    x = binarize(x, rng) if args.binarize else x
                    term = loss(enc, dec, flow, x, noise, args, cast)
                    opts[name][0].zero_grad()
                    (term[0] + min(1, done / args.warm_up) * term[1]).backward()
                    opts[name][0].step()
                terms.append(term.detach())
                run.progress(epoch, m * steps + i + 1, len(trained) * steps)
            row |= run.means([f"{name}_{column}" for column in COLUMNS[name]], terms)
            for net in now.values():
                net.eval()
            if gan:                                         # as many images of train as of val
                for key, some in (("train", slice(len(data.val))), ("val", slice(None))):
                    seen_by = decode(now["gan_disc"], getattr(data, key).images(some))
                    row[f"gan_{key}"] = seen_by.sigmoid().mean().item()
            else:
                row[f"{name}_val"] = held_out(enc, dec, flow, seen["val"], args)
            if gan or all(row[f"{name}_val"] < past[f"{name}_val"] for past in run.history):
                for key in best:
                    if key.startswith(name):
                        best[key].load_state_dict(now[key].state_dict())
            if epoch == 0 or (epoch + 1) % 10 == 0:
                run.kept[f"{NAMES[name]}, epoch {epoch + 1}"] = draw(dec, flow, ten)
            row[f"{name}_seconds"] = time.perf_counter() - start
        run.log(len(trained) * steps * batch, **row)
        run.save(-epoch, best, **parts)                     # every epoch is the lowest so far
    if "flow_after_flow" in best:
        with run.doing("flow on the codes of the finished VAE"):
            codes = [encode(best["vae_enc"].eval(), seen[key]) for key in ("train", "val")]
            best["flow_after_flow"], run.kept["flow_after"] = fit_flow(*codes, args)
        run.save(-args.epochs, best, **parts)


def fit_flow(train, val, args):
    """A flow fitted to codes, (mu (N, Z), logvar (N, Z)) each, by maximum likelihood of z ~ q(z|x)
    drawn afresh at every step; the epoch with the lowest loss on val. Returns it and its curve
    (epochs, 3): -log p(z) in nats on train and on val, and seconds."""
    device, n, batch = train[0].device, len(train[0]), min(args.batch_size, len(train[0]))
    rng, curve, lowest = torch.Generator(device).manual_seed(args.seed), [], math.inf
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        flow = RealNVP(args.z_dim, args.couplings).to(device)
    val, best = sample(tuple(val), rng), copy.deepcopy(flow)
    opt = torch.optim.Adam(flow.parameters(), args.lr, fused=device.type != "mps")
    for epoch in range(args.epochs):
        start, losses = time.perf_counter(), []
        for i, index in enumerate(torch.randperm(n, generator=rng, device=device).split(batch)):
            decay([opt], args.lr, (epoch + i * batch / n) / args.epochs)
            loss = -flow.log_prob(sample(tuple(part[index] for part in train), rng)).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.detach())
        with torch.no_grad():
            found = -flow.log_prob(val).mean().item()
        if found < lowest:
            lowest, best = found, copy.deepcopy(flow)
        curve.append([torch.stack(losses).mean().item(), found, time.perf_counter() - start])
    return best, torch.tensor(curve)


@torch.no_grad()
def held_out(enc, dec, flow, split, args):
    """A VAE's loss over a split, in nats an image, with seeded z."""
    rng, total = torch.Generator(split.x.device).manual_seed(args.seed), 0
    for i in torch.arange(len(split), device=split.x.device).split(500):
        noise = torch.randn(len(i), args.z_dim, generator=rng, device=i.device)
        terms = vae_loss(enc, dec, flow, split.images(i), noise, args, contextlib.nullcontext)
        total += terms.sum() * len(i) / len(split)
    return total.item()


@torch.no_grad()
def draw(dec, flow, u):
    """Images (N, C, H, W) in [0, 1] of u (N, Z) from N(0, I), by way of the flow, if any."""
    return decode(dec, flow.inverse(u) if flow else u).sigmoid()


@torch.no_grad()
def interpolate(flow, a, b, steps=10):
    """Codes (steps, N, Z) on a straight line from a to b (N, Z), of the flow's base space where
    there is one: mapped there, divided, mapped back."""
    a, b = (flow(z)[0] if flow else z for z in (a, b))
    t = torch.linspace(0, 1, steps, device=a.device)[:, None, None]
    u = (1 - t) * a + t * b
    return flow.inverse(u) if flow else u


def weights(net):
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters()) if net else 0


# Evaluation


@torch.no_grad()
def evaluate(run, data, seen, nets):
    """The figures and measurements of every model, from best.pt; fills the report."""
    args, seed, test = run.args, run.args.seed, seen["test"]
    n, shows = (300, 5000) if args.smoke else (10_000, 150_000)
    rng = torch.Generator(run.device).manual_seed(seed)
    u = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    some = torch.randperm(len(test), generator=rng, device=run.device)
    pairs = some[:min(200, len(test) // 2 * 2)].chunk(2)
    some, fitted = pick(test.y, args.nll_n, seed), run.kept.get("flow_after")
    results, strips, drawn = dict.fromkeys(NAMES), {}, {}
    with run.doing("classifier"):
        sees, results["real_class_acc"] = classifier(data, args.data_dir, shows)
    for name in models(vars(args)):
        if name == "flow_after" and fitted is None:         # stopped before: --resume fits it
            continue
        enc, dec, flow = parts_of(nets, name)
        home = "vae" if name == "flow_after" else name
        with run.doing(f"samples, FID and interpolations of {NAMES[name]}"):
            images = draw(dec, flow, u)
            mu, logvar = encode(enc, test) if enc else (u, None)
            codes = interpolate(flow, *(mu[side % len(mu)] for side in pairs))  # (10, 100, Z)
            strip = decode(dec, codes.flatten(0, 1)).sigmoid().unflatten(0, codes.shape[:2])
            drawn[name] = images[:30].unflatten(0, (3, 10))
            strips[name] = strip[:, :3].transpose(0, 1)     # (3, 10, C, H, W)
            way = (strip[1:] - strip[:-1]).flatten(2).norm(dim=2)
            results[name] = {
                "params": weights(dec) + weights(enc or nets["gan_disc"]),
                "flow_params": weights(flow), "nll": None,
                "seconds": sum(row[f"{home}_seconds"] for row in run.history)
                + (fitted[:, 2].sum().item() if name == "flow_after" else 0),
                "fid": fid(args.fid, data, args.data_dir, images, seed, shows),
                "spread": (images.var(0).sum() / data.test.images(slice(None)).var(0).sum()).item(),
                "jump": (way.max(0).values / way.mean(0).clamp(min=1e-9)).mean().item(),
                "sure": sees(strip[1:-1].flatten(0, 1)).softmax(1).max(1).values.mean().item()}
        if enc:
            with run.doing(f"likelihood of {NAMES[name]}"):
                results[name]["test_bound"] = held_out(enc, dec, flow, test, args)
                results[name]["nll"] = nll(
                    test.images(some), mu[some], logvar[some],
                    lambda x, z: log_likelihood(dec, x, dec(z), args), args.nll_k, seed=seed,
                    prior=flow)
    with run.doing("figures"):
        history = [row | {f"{name}_train": row[f"{name}_recon"] + row[f"{name}_kl"]
                          for name in trained_vaes(row)} for row in run.history]
        panels = {f"{NAMES[name]}: loss, nats": [f"{name}_train", f"{name}_val"]
                  for name in trained_vaes(history[0])}
        if panels:
            panels["KL, nats"] = [f"{name}_kl" for name in trained_vaes(history[0])]
        if "gan" in drawn:
            panels |= {"GAN: losses, nats": ["gan_gen", "gan_dis"],
                       "what Dis gives, training": ["gan_d_real", "gan_d_fake"],
                       "real images, afterwards": ["gan_train", "gan_val"]}
        run.figure("curves", curves(history, panels),
                   "Validation above train at the end is overfitting; of Dis, where it gives new "
                   "images less than those of train. A GAN's losses say nothing of its images.")
        if fitted is not None:
            run.figure("curves_flow_after", curves(
                [{"epoch": i, "train": a, "val": b} for i, (a, b, _) in
                 enumerate(fitted.tolist(), 1)], {"-log p(z), nats": ["train", "val"]}),
                "The flow on the codes of the finished VAE.")
        order = sorted((key for key in run.kept if ", epoch" in key),
                       key=lambda key: [*NAMES.values()].index(key.partition(",")[0]))
        run.figure("learning", grid(torch.stack([run.kept[key].cpu() for key in order]), order),
                   "The same ten draws of each model as training goes on.")
        for key, rows, text in (
                ("samples", drawn, "Thirty draws of each model. Likely images, of all classes?"),
                ("interpolations", strips, "Ten points on lines between two codes: of test images "
                 "for the VAEs, in the flow's base space where there is one, of random z for the "
                 "GAN. Is every step an image, or a double exposure of two?")):
            run.figure(key, grid(torch.cat([*rows.values()]), [
                NAMES[name] * (i == len(part) // 2) for name, part in rows.items()
                for i in range(len(part))]), text)
    tell(run, results)
    run.finish(f"VAE, flow prior and GAN on {args.data}", results)


def trained_vaes(row):
    """Names of the VAEs of a row of the log."""
    return [name for name in ("vae", "flow_joint") if f"{name}_kl" in row]


def tell(run, r):
    """The report's tables and observations, from the numbers that results.json holds."""
    there, last = {name: r[name] for name in NAMES if r[name]}, run.history[-1]
    sizes = [m["params"] for m in there.values()]
    run.table("Compared", ("", "weights", "flow's", "Frechet distance", "floor", "NLL, nats",
                           "standard error", "bits/dim", "bound, nats", "seconds"), [
        (NAMES[name], m["params"], m["flow_params"],
         *((m["fid"] or {}).get(key) for key in ("value", "floor")),
         *((m["nll"] or {}).get(key) for key in ("nats", "stderr", "bits_per_dim")),
         m.get("test_bound"), round(m["seconds"])) for name, m in there.items()],
        "Weights: Enc and Dec, or Gen and Dis. Floor: as many train images. Bound: one z an image, "
        "on all test images. A GAN has no likelihood.")
    run.table("Samples and interpolations", ("", "variance of samples, test images: 1",
                                             "longest step, mean: 1", "certainty"), [
        (NAMES[name], m["spread"], m["jump"], percent(m["sure"])) for name, m in there.items()],
        "Of the nine steps between 100 pairs; certainty: a LeNet's largest probability, mean over "
        f"the eight images between. It names {percent(r['real_class_acc'])} of real test images.")
    run.say(f"The models have {min(sizes):,} to {max(sizes):,} weights, the flow's "
            f"{max(m['flow_params'] for m in there.values()):,} apart.")
    for name in trained_vaes(last):
        train, val, kl = (last[f"{name}_{key}"] for key in ("recon", "val", "kl"))
        run.say(f"{NAMES[name]}: in the last epoch {train + kl:.1f} nats on train and {val:.1f} on "
                f"validation images, the KL {kl:.1f}" + (": z is dead." if kl < 0.5 else "."))
    for name in ("flow_joint", "flow_after"):
        if r["vae"] and r[name]:
            gain = r["vae"]["nll"]["nats"] - r[name]["nll"]["nats"]
            run.say(f"{NAMES[name]}: NLL {r[name]['nll']['nats']:.2f} nats, {abs(gain):.2f} "
                    f"{'better' if gain > 0 else 'worse'} than with N(0, I), on the same images"
                    + (". KL(q(z) || N(0, I)) is the most it could gain." if "after" in name else
                       "; here q(z|x) could adapt to it."))
    if all(m["fid"] for m in there.values()):
        order = sorted(there, key=lambda name: there[name]["fid"]["value"])
        run.say("Samples, the nearest to real images first (Frechet distance): " + ", ".join(
            f"{NAMES[name]} {there[name]['fid']['value']:.1f}" for name in order)
            + f"; as many train images {there[order[0]]['fid']['floor']:.1f}.")
    sure, even = (f(there, key=lambda name: there[name][key])
                  for f, key in ((max, "sure"), (min, "jump")))
    run.say(f"Between two codes {NAMES[sure]} shows the clearest classes (certainty "
            f"{percent(there[sure]['sure'])}), {NAMES[even]} moves most evenly (longest step "
            f"{there[even]['jump']:.2f} times the mean).")
    if r["gan"]:
        won = last["gan_d_real"] > 0.95 > 0.05 > last["gan_d_fake"]
        run.say(f"GAN: in training Dis gave real images {percent(last['gan_d_real'])} and samples "
                f"{percent(last['gan_d_fake'])}: "
                + ("it has won, and teaches Gen little." if won else "neither side has won.")
                + f" Afterwards it gives train images {percent(last['gan_train'])}, new ones "
                f"{percent(last['gan_val'])}."
                + f" Samples vary {percent(r['gan']['spread'])} as much as real images"
                + (": they have collapsed." if r["gan"]["spread"] < 0.3 else "."))


def main(argv=None):
    parser, groups = flags(__doc__, data="mnist", epochs=30, batch_size=128, lr=1e-3, fid=True)
    add = groups["model"].add_argument
    for name, choices in (("model", ("vae", "flow", "gan")), ("flow-fit", ("joint", "after"))):
        add(f"--{name}", nargs="+", choices=choices, default=list(choices),
            help=f"(default: {' '.join(choices)})")
    for name, default, text in (("width", 32, "maps next to the image (DCGAN: 64)"),
                                ("z-dim", 32, "numbers in z"),
                                ("couplings", 8, "layers of the flow")):
        add(f"--{name}", type=number(int, low=1, high=4096), default=default, metavar="N",
            help=f"{text} (default: {default})")
    add = groups["objective"].add_argument
    add("--likelihood", choices=("bernoulli", "logistic"),
        help="of pixels, for the VAEs (default: bernoulli, colour: logistic)")
    add("--binarize", action=argparse.BooleanOptionalAction, help="draw pixels as 0 or 1, for the "
        "VAEs (default: mnist with bernoulli)")
    add("--warm-up", type=number(float, above=0, high=1), default=0.1, metavar="SHARE",
        help="of training in which the KL's weight rises from 0 to 1 (default: 0.1)")
    add("--real-target", type=number(float, above=0, high=1), default=0.9, metavar="P",
        help="what Dis is to give real images (default: 0.9, one-sided smoothing; plain: 1)")
    for name, low, value, text in (("k", 1, 1000, "samples an image"), ("n", 2, 500, "images")):
        add(f"--nll-{name}", type=number(int, low=low), default=value, metavar=name.upper(),
            help=f"{text} of the likelihood's estimate (default: {value:,})")
    groups["optimisation"].add_argument("--gan-lr", type=number(float, above=0), default=2e-4,
                                        help="step size of Gen and Dis (default: 2e-4)")
    args = parse(parser, argv, "flowvae_gan", {}, SMOKE)
    run = Run("flowvae_gan", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if args.likelihood is None:
        args.likelihood = "bernoulli" if data.train.x.shape[1] == 1 else "logistic"
    if args.binarize is None:
        args.binarize = (args.data, args.likelihood) == ("mnist", "bernoulli")
    run.begin(data)
    data = data.to(run.device)
    seen = {name: binarized(split, args.seed) if args.binarize else split
            for name, split in data.splits().items()}
    if not args.eval_only:
        train(run, data, seen)
    evaluate(run, data, seen, run.best_nets(load))


if __name__ == "__main__":
    command_line(main)
