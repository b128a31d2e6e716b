"""VAE-GAN: Larsen, Sonderby, Larochelle, Winther, ICML 2016, arxiv.org/abs/1512.09300

In go images; out come a code z and a decoder that draws images from it, a VAE whose error is not
taken in pixels but in what a discriminator sees. Written to runs/vaegan-<data>: samples and
reconstructions beside those of a VAE of the same Enc and Dec, which trains on the same batches;
curves of every term, D(x), D(reconstruction), D(sample), FID, a report.

x~ = Dec(z), z ~ q(z|x) of Enc; x_p = Dec(z_p), z_p ~ N(0, I); section 2 (Eq. 5 to 10) has
  L_prior = KL(q(z|x) || N(0, I))                                          kl_divergence
  L_Dis_l = -E_q log N(Dis_l(x); Dis_l(x~), I)                             dis_llike
  L_GAN   = log Dis(x) + log(1 - Dis(x~)) + log(1 - Dis(x_p))              gan
and Algorithm 1 is `step`: one pass through each network, then each goes down a loss of its own
  Enc: L_prior + L_Dis_l      Dec: gamma L_Dis_l + L_GAN      Dis: -L_GAN
so that Enc gets no gradient of L_GAN, Dis none of L_Dis_l, and gamma touches Dec alone. (In print
L_GAN has the other sign in both.) With --loss gan Enc goes down L_prior - log Dis(x~): no term is
left that compares x~ with x. Terms are nats an image: a sum over latents or features, a mean over
images. Dis_l is what the paper's code takes: the strided convolution that has 7 or 8 pixels a side
at 28, 32 and 64, before its batch norm and activation (fc: the second layer).

  python vaegan.py              # Fashion-MNIST, fully connected, 6 minutes: distance 66, VAE's 92
  python vaegan.py --arch conv  # the paper's kind of network, 72 minutes: distance 8, VAE's 78
  python vaegan.py --loss gan   # L_prior + L_GAN alone, which cannot reconstruct
  python vaegan.py --arch conv --data yaleb --width 64 --z-dim 128      # the authors' networks

Departures: Dec goes down -log Dis of its images, which teaches while Dis still wins; the paper's
log(1 - Dis) does not. x~ and x_p together weigh as much as x (as in the authors' code); their
released scripts show Dis x_p alone: --fakes samples. There gamma is 1e-6 to 1e-5 for a sum over
12,288 or 16,384 features; ours has fewer. Adam with beta1 0.5 and a cosine for RMSProp, PyTorch's
first weights, no weight decay; --width 64 gives the authors' networks, but with LeakyReLU in Dis.
Batch norm sees z and z_p apart in Dec, as theirs, and x apart from x~ and x_p in Dis, where theirs
sees all together and Dis soon knows samples by that; with --arch conv Dis is to give x 0.9, not 1
(--real-target). --gate is the authors' rule that holds Dis or Dec back. The VAE beside has
Bernoulli pixels and beta1 0.9.
"""
import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from data import batches, load as load_data, pick
from eval import (SideBySideRun as Run, accelerate, adam, class_shares, classes_of, classifier,
                  collapsed, columns, decay, decode, descend, encode, fid, filled, flags, grid,
                  load_nets, make_rng, number, over, parse, run_command)

NAMES = {"vae": "VAE", "vaegan": "VAE-GAN"}
# What a flag is where it is not typed, by --arch
PRESETS = {"fc": dict(width=400, z_dim=20, lr=1e-3, gamma=1e-2, real_target=1.0),
           "conv": dict(width=16, z_dim=32, lr=3e-4, gamma=1e-3, real_target=0.9)}
SMOKE = dict(data="digits", limit=800, epochs=2)

# %% Networks: of width 64 the paper's for 64 pixels, and its authors' for 32


def sides(size):
    """Sides of the maps as three convolutions halve them: 28, 14, 7, 4 or 64, 32, 16, 8."""
    return [-(-size // 2**k) for k in range(4)]


def halving(size, maps, width, out, act):
    """Layers from images of `size` pixels to `out` numbers: the side is halved with each step from
    one of the numbers of `maps` to the next, then comes a layer of `width` neurons."""
    layers = []
    for before, after in zip(maps, maps[1:]):               # side 28, 14, 7, 4
        layers += [nn.Conv2d(before, after, 5, 2, 2, bias=False), nn.BatchNorm2d(after), act]
    return [*layers, nn.Flatten(), nn.Linear(maps[-1] * sides(size)[3] ** 2, width, bias=False),
            nn.BatchNorm1d(width), act, nn.Linear(width, out)]


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2."""

    def __init__(self, shape, args):
        super().__init__()
        w, out, act = args["width"], 2 * args["z_dim"], nn.ReLU()
        self.net = nn.Sequential(*(
            [nn.Flatten(), nn.Linear(math.prod(shape), w), act, nn.Linear(w, out)]
            if args["arch"] == "fc" else
            halving(shape[1], [shape[0], w, 2 * w, 4 * w], 16 * w, out, act)))

    def forward(self, x):
        return self.net(2 * x - 1).chunk(2, 1)


class Decoder(nn.Module):
    """z (B, Z) -> logits of pixels (B, C, H, W); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, args):
        super().__init__()
        w, z_dim, up = args["width"], args["z_dim"], sides(shape[1])[::-1]
        if args["arch"] == "fc":
            self.net = nn.Sequential(nn.Linear(z_dim, w), nn.ReLU(), nn.Linear(w, math.prod(shape)),
                                     nn.Unflatten(1, tuple(shape)))
            return
        maps = [4 * w, (4 if shape[1] >= 64 else 3) * w, 2 * w, w // 2]
        layers = [nn.Linear(z_dim, maps[0] * up[0] ** 2, bias=False),
                  nn.Unflatten(1, (maps[0], up[0], up[0])), nn.BatchNorm2d(maps[0]), nn.ReLU()]
        for before, after, side, twice in zip(maps, maps[1:], up, up[1:]):      # side 4, 7, 14, 28
            layers += [nn.ConvTranspose2d(before, after, 5, 2, 2, twice - 2 * side + 1, bias=False),
                       nn.BatchNorm2d(after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(w // 2, shape[0], 5, 1, 2))

    def forward(self, z):
        return self.net(z)


class Discriminator(nn.Module):
    """x (B, C, H, W) -> logits of x being real (B,), features Dis_l(x) (B, F)."""

    def __init__(self, shape, args):
        super().__init__()
        w, act, large = args["width"], nn.LeakyReLU(0.2), shape[1] >= 64
        if args["arch"] == "fc":
            depth, layers = 4, [nn.Flatten(), nn.Linear(math.prod(shape), w), act, nn.Linear(w, w),
                                act, nn.Linear(w, 1)]
        else:                                               # side 28, 28, 14, 7, 4
            maps = [w // 2, 2 * w, (4 if large else 3) * w, 4 * w]
            depth, layers = 9 if large else 6, [nn.Conv2d(shape[0], w // 2, 5, 1, 2), act,
                                                *halving(shape[1], maps, 8 * w, 1, act)]
        self.l, self.top = nn.Sequential(*layers[:depth]), nn.Sequential(*layers[depth:])

    def forward(self, x):
        features = self.l(2 * x - 1)
        return self.top(features)[:, 0], features.flatten(1)


def build(shape, args):
    """{"enc": Encoder, "dec": Decoder, "disc": Discriminator} for images of `shape` (C, H, W) and,
    with --baseline, "vae_enc", "vae_dec" with the same first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args["seed"])
        nets = {"enc": Encoder(shape, args), "dec": Decoder(shape, args),
                "disc": Discriminator(shape, args)}
    if args["baseline"]:
        nets |= {"vae_" + name: copy.deepcopy(nets[name]) for name in ("enc", "dec")}
    return nets


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt, by the names of `build`."""
    return load_nets(path, "vaegan", build, device)


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


def dis_llike(features, rebuilt):
    """-log N(Dis_l(x); Dis_l(x~), I) of features (B, F), but for its constant, in nats an image:
    half the squared error, a sum over features."""
    return 0.5 * (features - rebuilt).square().sum(1).mean()


def gan(real, fake, target=1.0):
    """Cross entropies in nats from logits: of real images (B,) and of fakes (B,) or (2B,) as Dis
    has to see them, whose sum is -L_GAN (fakes of both kinds together weigh as much as x), and of
    the fakes as Dec wants them seen, -log Dis. `target` is what Dis is to give real images."""
    dis_real = F.binary_cross_entropy_with_logits(real, torch.full_like(real, target))
    return dis_real, F.softplus(fake).mean(), F.softplus(-fake).mean()


def gate(dis_real, dis_fake, equilibrium=0.68, margin=0.35):
    """(whether Dec moves, whether Dis moves), 0-d bool on the device, from Dis's two terms in nats:
    Dis rests where it knows either kind too well, Dec where Dis knows either too badly; where both
    would rest, both move. The rule and its two numbers are the authors' released code's."""
    costs = torch.stack([dis_real, dis_fake]).detach()
    dec, dis = (costs <= equilibrium + margin).all(), (costs >= equilibrium - margin).all()
    return dec | ~dis, dis | ~dec


def forward(enc, dec, disc, x, noise, z_p, fakes="both", target=1.0):
    """Every image once through every network.

    x (B, C, H, W); noise, z_p (B, Z) from N(0, I). Returns the terms by name, means over images:
    D(.) in [0, 1], `pixels` the squared error, `enc_gan` -log Dis(x~), for --loss gan."""
    mu, logvar = (part.to(x.dtype) for part in enc(x))      # of --amp's bfloat16
    z = mu + (0.5 * logvar).exp() * noise
    made = torch.cat([dec(z), dec(z_p)]).to(x.dtype).sigmoid()      # apart, for batch norm
    (real, features), (fake, rebuilt) = ([part.to(x.dtype) for part in disc(images)]
                                         for images in (x, made))
    recon, sample = fake.chunk(2)
    shown = {"both": fake, "samples": sample, "recon": recon}[fakes]
    dis_real, dis_fake, dec_gan = gan(real, shown, target)
    return {"prior": kl_divergence(mu, logvar).sum(1).mean(),
            "dis_llike": dis_llike(features, rebuilt[:len(x)]),
            "dis_real": dis_real, "dis_fake": dis_fake, "dec_gan": dec_gan,
            "enc_gan": F.softplus(-recon).mean(),
            "pixels": F.mse_loss(made[:len(x)], x, reduction="sum") / len(x),
            "d_real": real.sigmoid().mean(), "d_recon": recon.sigmoid().mean(),
            "d_sample": sample.sigmoid().mean()}


def objectives(t, args):
    """What Enc, Dec and Dis minimise, 0-d, from the terms t of `forward`."""
    dis = t["dis_real"] + t["dis_fake"]                     # -L_GAN
    pixels = args.pixel_weight * t["pixels"]
    if args.loss == "gan":
        return t["prior"] + t["enc_gan"] + pixels, t["dec_gan"] + pixels, dis
    return (t["prior"] + t["dis_llike"] + pixels,
            args.gamma * t["dis_llike"] + t["dec_gan"] + pixels, dis)


def vae_terms(enc, dec, x, noise):
    """(2,) of the VAE: -log p(x|z), pixels x (B, C, H, W) as Bernoullis, and the KL, means in nats
    an image; noise (B, Z)."""
    mu, logvar = (part.to(x.dtype) for part in enc(x))
    logits = dec(mu + (0.5 * logvar).exp() * noise).to(x.dtype)
    recon = -bernoulli_log_likelihood(x, logits)
    return torch.stack([recon.mean(), kl_divergence(mu, logvar).sum(1).mean()])


# %% Training


def step(nets, opts, x, noise, z_p, args, autocast, forward=forward):
    """Algorithm 1 once: all gradients at the weights as they are, each network's of its own loss
    only, then three steps. Returns the terms of `forward` by name and, with --gate, what moved."""
    with autocast():
        t = forward(*nets, x, noise, z_p, args.fakes, args.real_target)
    moves = gate(t["dis_real"], t["dis_fake"]) if args.gate else (None, None)
    descend(objectives(t, args), opts, (None, *moves))
    if args.gate:
        t |= {"dec_moves": moves[0], "dis_moves": moves[1]}
    return {name: value.detach() for name, value in t.items()}


def train(run, data):
    """Trains the VAE-GAN and the VAE beside it; best.pt is the last epoch, since a loss against an
    adversary does not tell a better epoch from a worse one."""
    args, device, split = run.args, run.device, data.train
    nets = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    three, vae = [*nets.values()][:3], [*nets.values()][3:]
    opts = [adam(net, lr=args.lr, beta1=0.5) for net in three]
    opts += [adam(*vae, lr=args.lr)] if vae else []
    rng = torch.Generator(device).manual_seed(args.seed)
    parts = dict(zip(("opt_enc", "opt_dec", "opt_disc", "opt_vae"), opts)) | {"rng": rng}
    cast, of_gan, of_vae = accelerate(args, device, forward, vae_terms)
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    for epoch in range(run.resume(nets, **parts), args.epochs):
        for net in nets.values():
            net.train()
        terms = []
        for i, index in enumerate(batches(split, batch, rng)):
            decay(opts, args.lr, (epoch + i / steps) / args.epochs)
            x = split.images(index)
            noise, z_p = torch.randn(2, batch, args.z_dim, generator=rng, device=device)
            t = step(three, opts[:3], x, noise, z_p, args, cast, of_gan)
            if vae:
                with cast():
                    both = of_vae(*vae, x, noise)
                descend([both.sum()], opts[3:])
                t |= dict(zip(("vae_recon", "vae_kl"), both.detach()))
            terms.append(torch.stack([value.float() for value in t.values()]))
            run.progress(epoch, i + 1, steps)
        means = run.means(list(t), terms)
        means["val_pixels"] = held_out(*three[:2], data.val)
        if vae:
            means["vae_val_pixels"] = held_out(*vae, data.val)
        run.log(steps * batch, **means)
        run.save(-epoch, nets, **parts)                     # every epoch is the lowest so far


def held_out(enc, dec, split):
    """Squared error an image of a split, from the mean of z; leaves both in eval mode."""
    enc.eval(), dec.eval()
    return over(split, lambda x, _: F.mse_loss(dec(enc(x)[0]).sigmoid(), x, reduction="sum")
                / len(x), 0).item()


# %% Evaluation


def tell_vaegan(run, r):
    """On reconstructions and samples of vaegan.py, and on what Dis sees."""
    g, v = r["vaegan"], r["vae"]
    run.side_by_side("On test images", {"VAE": v, "VAE-GAN": g}, {
        "class recognised in reconstructions": "recon_class_acc:%",
        "squared error a pixel of reconstructions": "recon_mse", "KL, nats an image": "test_kl",
        "variance of samples, of test images: 1": "spread",
        "rarest class among samples": "class_shares:min%",
        "Frechet distance of samples": "fid.value", "of as many train images": "fid.floor",
        "Frechet distance of reconstructions": "fid_recon.value",
        "of train images for test": "fid_recon.floor"},
        " ".join(filled(r, "Features: {vaegan.fid.features}; {vaegan.fid.n} samples.",
                        "The mean train image has a squared error of {mean_image_mse}; of the test "
                        "images themselves {real_class_acc:%} are recognised.")))
    if v and g["fid"]:
        nearer = g["fid"]["value"] < v["fid"]["value"]
        run.say(f"The VAE-GAN's samples are {'nearer to' if nearer else 'farther from'} real "
                "images than those of the VAE of the same Enc and Dec: Frechet distance "
                "{vaegan.fid.value:.1f} and {vae.fid.value:.1f}, as many train images "
                "{vaegan.fid.floor:.1f}.", r)
    if v:
        run.say(f"In pixels the {'VAE' if v['recon_mse'] < g['recon_mse'] else 'VAE-GAN'} "
                "reconstructs better (squared error {vae.recon_mse:.4f} and, VAE-GAN, "
                "{vaegan.recon_mse:.4f}); the class is recognised in {vae.recon_class_acc:%} and "
                "{vaegan.recon_class_acc:%}.", r)
    if run.args.loss == "gan" and not run.args.pixel_weight:
        run.say("L_prior + L_GAN ask that a reconstruction look real, not that it look like its "
                "image: the squared error is {vaegan.recon_mse:.4f}, that of the mean image "
                "{mean_image_mse:.4f}, the class right in {vaegan.recon_class_acc:%}, and z holds "
                "{vaegan.test_kl:.2g} nats. Such a model cannot reconstruct; it draws.", r)
    elif g["test_kl"] < 0.5:
        run.say("z is dead (KL {test_kl:.2g} nats): raise --gamma or --pixel-weight.", g)
    won = r["d_real"] > 0.9 > 0.1 > r["d_sample"]
    run.say("Dis gives test images {d_real:%}, reconstructions {d_recon:%}, samples {d_sample:%}: "
            + ("it has won and teaches Dec little (try --gate, a lower --lr)." if won else
               "it has lost." if r["d_sample"] > r["d_real"] else "neither side has won."), r)
    if collapsed(g):
        run.say("Samples have collapsed: they vary {spread:%} as much as real images, and a LeNet "
                "sees the rarest class in {class_shares:min%} of them.", g)


@torch.no_grad()
def evaluate(run, data, nets):
    """The figures and measurements of both models, from best.pt; fills the report."""
    args, seed, test = run.args, run.args.seed, data.test
    n, shows = (300, 5000) if args.smoke else (10_000, 100_000)
    rng, ten = make_rng(seed, "samples", run.device), pick(test.y, 10, seed)
    z_p = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    x, drawn, rows, results = test.images(slice(None)), {}, {}, {"vae": None}
    with run.doing("classifier"):
        judge, results["real_class_acc"] = classifier(data, args.data_dir, shows)
    for key in ("vae", "vaegan")[not args.baseline:]:
        with run.doing(f"reconstructions, samples and FID of the {NAMES[key]}"):
            enc, dec = (nets["vae_" * (key == "vae") + name] for name in ("enc", "dec"))
            mu, logvar = encode(enc, test)
            recon, drawn[key] = decode(dec, mu).sigmoid(), decode(dec, z_p).sigmoid()
            rows[NAMES[key]] = recon[ten]
            right = classes_of(judge, recon) == test.y
            results[key] = {
                "recon_mse": (recon - x).square().mean().item(),
                "test_kl": kl_divergence(mu, logvar).sum(1).mean().item(),
                "recon_class_acc": right.float().mean().item(),
                "spread": (drawn[key].var(0).sum() / x.var(0).sum()).item(),
                "class_shares": class_shares(judge, drawn[key], len(data.classes)),
                "fid": fid(args.fid, data, args.data_dir, drawn[key], seed, shows),
                "fid_recon": fid(args.fid, data, args.data_dir, recon, seed, shows)}
    results["mean_image_mse"] = (x - data.train.mean_image()).square().mean().item()
    for key, images in (("d_real", x), ("d_recon", recon), ("d_sample", drawn["vaegan"])):
        logits = decode(lambda part: nets["disc"](part)[0], images)
        results[key] = logits.sigmoid().mean().item()
    with run.doing("figures"):
        run.figure("curves", columns(run.history, {
            "L_Dis_l, nats an image": ["dis_llike"], "KL, nats an image": ["prior", "vae_kl"],
            "L_GAN's parts, nats": ["dis_real", "dis_fake", "dec_gan", "enc_gan"],
            "squared error an image": ["pixels", "val_pixels", "vae_val_pixels"],
            "-log p(x|z) of the VAE, nats": ["vae_recon"]}),
            "The first is in features that keep changing: it may rise while images get better.")
        run.figure("discriminator", columns(run.history, {
            "how real Dis finds them": ["d_real", "d_recon", "d_sample"],
            "share of steps that moved": ["dec_moves", "dis_moves"]}),
            "D(x), D(x~), D(x_p), means over train. At 1, 0 and 0 Dis has won and teaches nothing.")
        run.figure("reconstructions", grid(torch.stack([x[ten], *rows.values()]),
                                           ["original", *rows]),
                   "Ten test images above what each model makes of their codes (the mean of z).")
        run.figure("samples", grid(torch.stack([images[:10] for images in drawn.values()]),
                                   [*rows]), "Ten draws from N(0, I), the same for both, decoded.")
        for key, images in drawn.items():
            run.figure(f"samples_100_{key}", grid(images[:100].unflatten(0, (10, 10))),
                       f"A hundred draws of the {NAMES[key]}: sharp, likely, and of all classes?")
    tell_vaegan(run, results)
    run.finish(f"VAE-GAN on {args.data}", results)


# %% Command line


def main(argv=None):
    parser, groups = flags("vaegan", __doc__,
                           data="fashion", epochs=15, batch_size=64, lr=1e-3, fid=True)
    add = groups["model"].add_argument
    add("--arch", choices=("fc", "conv"), default="fc",
        help="fully connected as in vae.py, or the paper's, where --lr is 3e-4 (default: fc)")
    add("--width", type=number(int, low=2, high=65536), help="neurons of each layer; conv: "
        "maps of Enc's first, which the others follow (default: 400; conv: 16; the paper's: 64)")
    add("--z-dim", type=number(int, low=1, high=4096),
        help="numbers in z (default: 20; conv: 32; the paper's: 128)")
    add("--baseline", action=argparse.BooleanOptionalAction, default=True,
        help="a VAE of the same Enc and Dec beside it (default: yes)")
    add = groups["objective"].add_argument
    add("--loss", choices=("full", "gan"), default="full",
        help="full: the paper's; gan: L_prior + L_GAN, without L_Dis_l (default: full)")
    add("--gamma", type=number(float, low=0),
        help="of L_Dis_l, a sum over features, beside -log Dis (default: 0.01; conv: 0.001)")
    add("--fakes", choices=("both", "samples", "recon"), default="both",
        help="what Dis is shown and Dec judged by beside x: x~ and x_p, x_p or x~ (default: both)")
    add("--real-target", type=number(float, above=0, high=1),
        help="what Dis is to give real images (default: 1; conv: 0.9)")
    add("--gate", action=argparse.BooleanOptionalAction, default=False, help="Dis rests where its "
        "term of x or of fakes is below 0.33 nats, Dec where one is above 1.03; the authors' with "
        "--real-target 1 (default: no)")
    add("--pixel-weight", type=number(float, low=0), default=0.0,
        help="of the squared error an image, for Enc and Dec (default: 0, the paper's)")
    args = parse(parser, argv, lambda args: PRESETS[args.arch], SMOKE)
    if args.weights:
        load(args.weights)                                  # before a folder is made
    run = Run("vaegan", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    data = run.begin(data)
    if not args.weights:
        train(run, data)
    evaluate(run, data, run.best_nets(load))


if __name__ == "__main__":
    run_command(main)
