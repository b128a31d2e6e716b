"""Disentangling with an adversary: Mathieu et al., NIPS 2016, arxiv.org/abs/1611.03383

In go images with a class. Out come two codes: s (specified), meant for the class and nothing else,
and z (unspecified), for the rest. Written to runs/mathieu-<data>: pictures, probes, a report.

x1, x2 of one class y, z ~ q(z|x), z' from N(0, I) or of another image:
  L_swap = |x1 - Dec(z1, s2)|^2, and 1 and 2 exchanged;  L_own = |x1 - Dec(z1, s1)|^2
  L_adv = -log Disc(Dec(z', s1), y);  L_Disc = -log Disc(x1, y) - log(1 - Disc(Dec(z', s1), y))
  L = recon_weight L_swap + own_weight L_own + kl_weight KL(q(z|x)||N(0, I)) + adv_weight L_adv
`generate` has the first two and the KL, `adversary` the logarithms. L moves Enc and Dec, L_Disc
Disc. L_swap alone is content with a z that tells all; L_adv wants the class of s whatever z says.

A term is a sum over pixels in [0, 1] or latents, a mean over images; the KL and the logarithms are
nats. In this unit the released weights are swap 4, own 2, KL 0.6, adversary 0.01 C H W. In Jha et
al.'s port, 2 for squared error to 1 for the KL, z holds 19 nats and gives away 66.8 % of the
digits. Here z is scarcer, and drops the class first.

  python mathieu.py                    # MNIST, 28 minutes on a core: s 99.4 %, sampled z 27.5 %
  python mathieu.py --adv-weight 0     # the ablation: no adversary, 16 minutes
  python mathieu.py --data yaleb       # 26 minutes: the person from s 99.0 %, the light in z
  python mathieu.py --data sprites     # 40 minutes: the person from s 100 %, from sampled z 0.05 %

Departures: z' is from the prior for half of the images (that path of the released code trains
nothing); logvar is log sigma^2 throughout (theirs is log sigma in the KL's gradient); z does not
see s (as released; the paper's does); Adam for all with a falling step size; a tenth of train,
5,000 of MNIST, is held out for the curves. `small` is three 5x5 convolutions; `big` the released
networks, but for dropout, the grey frame around 28 pixels (maps end at 3x3, theirs at 4x4) and
Disc's norms, here one behind every convolution, after the class is added. As released, Disc and
L_adv aim at 0.95 for real. --discriminator pair is Jha et al.'s.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from data import batches, load as load_data, need_pairs, pairs, pick
from eval import (SideBySideRun as Run, accelerate, adam, classes_of, classifier, columns, decay,
                  decode, descend, draw_codes, encode_splits, flags, grid, held_out, load_nets,
                  make_rng, number, parse, percent, probe_codes, run_command)

# What a flag is where it is not typed. Small sets need many epochs.
PRESETS = {name: dict(s_dim=64, z_dim=64, epochs=epochs) for name, epochs in
           (("faces", 500), ("yaleb", 100), ("multipie", 20), ("sprites", 20),
            ("sprites2015", 35))} | {"digits": dict(epochs=100)}
SMOKE = dict(data="digits", limit=640, batch_size=32, epochs=15)

# %% Networks: convolutions (kernel, stride, maps) of Enc, which Dec takes backwards, and of Disc,
# where the last entry says whether the class comes in there. `big` is the released network.
ARCH = {"small": ([(5, 2, 16), (5, 2, 32), (5, 2, 64)],
                  [(5, 2, 16, True), (5, 2, 32, True), (5, 2, 64, True)]),
        "big": ([(3, 1, 16), (3, 1, 16), (2, 2, 32), (3, 1, 32), (2, 2, 64), (3, 1, 64),
                 (2, 2, 128), (3, 1, 128)],
                [(3, 1, 16, False), (2, 2, 16, True), (2, 2, 32, False), (3, 1, 32, True),
                 (2, 2, 64, False), (3, 1, 64, True), (3, 1, 64, False)])}


def sides(size, plan):
    """Sides of the maps, from the image's to the last layer's: 28, 14, 7, 4 for `small`."""
    found = [size]
    for kernel, stride, *_ in plan:
        found.append((found[-1] + (kernel - 1) // 2 * 2 - kernel) // stride + 1)
    return found


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2, and s (B, S)."""

    def __init__(self, shape, z_dim, s_dim, arch):
        super().__init__()
        plan, layers, channels = ARCH[arch][0], [], shape[0]
        for kernel, stride, maps in plan:                   # side 28, 14, 7, 4 or 64, 32, 16, 8
            layers += [nn.Conv2d(channels, maps, kernel, stride, (kernel - 1) // 2, bias=False),
                       nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
            channels = maps
        self.trunk = nn.Sequential(*layers, nn.Flatten())   # (B, flat)
        flat = channels * sides(shape[1], plan)[-1] ** 2
        self.mu, self.logvar = nn.Linear(flat, z_dim), nn.Linear(flat, z_dim)
        self.s = nn.Linear(flat, s_dim)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h), self.s(h)


class Decoder(nn.Module):
    """z (B, Z), s (B, S) -> images (B, C, H, W) in [0, 1]."""

    def __init__(self, shape, z_dim, s_dim, arch):
        super().__init__()
        plan, side = ARCH[arch][0], sides(shape[1], ARCH[arch][0])
        widths = [shape[0], *(maps for _, _, maps in plan)]
        top = (widths[-1], side[-1], side[-1])
        # One linear layer on [z, s] is the sum of two, as released.
        layers = [nn.Linear(z_dim + s_dim, top[0] * side[-1] ** 2), nn.Unflatten(1, top)]
        if arch == "small":                                 # the released network goes on without
            layers += [nn.BatchNorm2d(top[0]), nn.ReLU(inplace=True)]
        for i, (kernel, stride, _) in reversed(list(enumerate(plan))):  # side 4, 7, 14, 28
            odd = side[i] - (side[i + 1] - 1) * stride + (kernel - 1) // 2 * 2 - kernel
            layers += [nn.ConvTranspose2d(widths[i + 1], widths[i], kernel, stride,
                                          (kernel - 1) // 2, odd, bias=i == 0),
                       nn.BatchNorm2d(widths[i]), nn.ReLU(inplace=True)]
        self.up = nn.Sequential(*layers[:-2], nn.Sigmoid())  # no norm behind the last

    def forward(self, z, s):
        return self.up(torch.cat([z, s], 1))


class Discriminator(nn.Module):
    """Images x (B, C, H, W) -> logits (B,) that they are real and of the class of y (B,), whose
    embeddings are added to the maps, or, where `pair`, of the class of the images `beside`."""

    def __init__(self, shape, n_classes, arch, pair):
        super().__init__()
        plan, self.pair, channels = ARCH[arch][1], pair, shape[0] * (1 + pair)
        self.convs, self.norms, self.embeds = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for kernel, stride, maps, conditioned in plan:
            self.convs.append(nn.Conv2d(channels, maps, kernel, stride, (kernel - 1) // 2))
            # The statistics are the batch's, of real images or of made ones; none are kept.
            self.norms.append(nn.BatchNorm2d(maps, track_running_stats=False))
            table = 0.1 * torch.randn(n_classes, 16 * maps)  # N(0, 1) would drown the image
            self.embeds.append(nn.Embedding.from_pretrained(table, freeze=False)
                               if conditioned and not pair else None)
            channels = maps
        self.head = nn.Linear(channels * sides(shape[1], plan)[-1] ** 2, 1)

    def forward(self, x, y, beside):
        h = torch.cat([x, beside], 1) if self.pair else x
        for conv, norm, embed in zip(self.convs, self.norms, self.embeds):
            h = conv(h)
            if embed:                                       # (B, maps, 4, 4), blown up to h's size
                h = h + F.interpolate(embed(y).unflatten(1, (-1, 4, 4)), h.shape[2:])
            h = F.leaky_relu(norm(h), 0.2)
        return self.head(h.flatten(1))[:, 0]


def build(shape, n_classes, args):
    """{"enc": Encoder, "dec": Decoder} and, where an adversary plays, "disc": Discriminator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args["seed"])
        nets = {"enc": Encoder(shape, args["z_dim"], args["s_dim"], args["arch"]),
                "dec": Decoder(shape, args["z_dim"], args["s_dim"], args["arch"])}
        if args["adv_weight"]:
            pair = args["discriminator"] == "pair"
            nets["disc"] = Discriminator(shape, n_classes, args["arch"], pair)
    return nets


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt, by the names of `build`."""
    return load_nets(path, "mathieu", build, device, ("shape", "n_classes", "args"))


# %% Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, elementwise (Kingma, Welling, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def generate(enc, dec, x, noise, prior=None):
    """Encodes all images once and decodes all that a step needs in one pass.

    x (2B, C, H, W): B images, then for each a partner of its class; noise (2B, Z) and prior (P, Z),
    P <= B, from N(0, I). Returns three means over images: squared error with the partner's s, KL in
    nats, squared error of the first B with their own s; and, for the adversary, B images with the s
    of the first B and z from `prior` for P of them, from the image before for the others."""
    mu, logvar, s = enc(x)                                  # (2B, Z), (2B, Z), (2B, S)
    mu, logvar = mu.to(x.dtype), logvar.to(x.dtype)         # of --amp's bfloat16
    z, half = mu + (0.5 * logvar).exp() * noise, len(x) // 2
    zs, ss = [z, z[:half]], [s.roll(half, 0), s[:half]]     # half a turn: everyone the partner's s
    if prior is not None:
        zs, ss = [*zs, prior, z[:half].roll(1, 0)[len(prior):]], [*ss, s[:half]]
    out = dec(torch.cat(zs), torch.cat(ss)).to(x.dtype)     # (4B, C, H, W), 3B without prior
    swap = F.mse_loss(out[:2 * half], x, reduction="sum") / len(x)
    own = F.mse_loss(out[2 * half:3 * half], x[:half], reduction="sum") / half
    return swap, kl_divergence(mu, logvar).sum(1).mean(), own, out[3 * half:]


def adversary(disc, images, y, beside, target):
    """Disc's cross entropy with the target that the images are real, in nats, and its logits."""
    logits = disc(images, y, beside).float()                # (B,)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target)), logits


# %% Training

SERIES = ("loss_g", "loss_d", "d_real_acc", "d_fake_acc")   # the adversary's columns of the log


def step(nets, opts, x, y, noise, prior, weights, autocast, generate=generate,
         adversary=adversary):
    """One step of Enc and Dec, then one of Disc on the images that it has just judged.

    opts: Adam of Enc and Dec, and of Disc; y (B,); weights: of swap, kl, own and loss_g; the rest
    is what `generate` takes. Returns its terms and, where an adversary plays, SERIES, unweighted
    and still on the device; loss_d is the mean of Disc's two terms."""
    (enc, dec, *disc), half = nets, len(x) // 2
    with autocast():
        *terms, made = generate(enc, dec, x, noise, prior if disc else None)
        terms += [adversary(d, made, y, x[:half], 0.95)[0] for d in disc]
    descend([sum(weight * term for weight, term in zip(weights, terms))], opts[:1])
    for d in disc:
        with autocast():                                    # apart, for batch norm's statistics
            loss_real, real = adversary(d, x[:half], y, x[half:], 0.95)
            loss_made, fake = adversary(d, made.detach(), y, x[:half], 0.0)
        loss = (loss_real + loss_made) / 2
        descend([loss], opts[1:])
        terms += [loss, (real > 0).float().mean(), (fake < 0).float().mean()]
    return torch.stack(terms).detach()


def train(run, data):
    """Trains the networks; best.pt is the last epoch, since a loss against an adversary does not
    tell a better epoch from a worse one."""
    args, device, split = run.args, run.device, data.train
    nets = build(run.shape, run.n_classes, vars(args))
    enc, dec, *disc = (net.to(device) for net in nets.values())
    opts = [adam(*owned, lr=args.lr, beta1=0.5) for owned in ([enc, dec], disc) if owned]
    rng = torch.Generator(device).manual_seed(args.seed)
    parts = {"rng": rng, **dict(zip(("opt", "opt_disc"), opts))}
    weights = args.recon_weight, args.kl_weight, args.own_weight, args.adv_weight
    fast = accelerate(args, device, generate, adversary)
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    for epoch in range(run.resume(nets, **parts), args.epochs):
        terms = []
        enc.train(), dec.train()
        for i, index in enumerate(batches(split, batch, rng)):
            decay(opts, args.lr, (epoch + i / steps) / args.epochs)
            x = split.images(torch.cat([index, pairs(split, index, rng)]))
            noise = torch.randn(2 * batch, args.z_dim, generator=rng, device=device)
            prior = torch.randn(batch // 2, args.z_dim, generator=rng, device=device)
            terms.append(step(nets.values(), opts, x, split.y[index], noise, prior, weights, *fast))
            run.progress(epoch, i + 1, steps)
        means = run.means(("swap", "kl", "own", *SERIES), terms)
        val_swap, val_kl = held_out(generate, enc, dec, data.val, args.seed, data.train)
        run.log(steps * batch, **means, val_swap=val_swap, val_kl=val_kl)
        run.save(-epoch, nets, **parts)                     # every epoch is the lowest so far


# %% Evaluation


def settled(history, series):
    """Whether an adversary came to rest: ({series and "settled": value}, a sentence that says why).

    series: the log's columns generator's loss, discriminator's loss a term, its accuracies on real
    and made images. The values are means over the last fifth of the log, n epochs. "settled" is
    True where none drifts (slope of its line times n) by more than it scatters (deviation from that
    line, n - 2 degrees of freedom), both accuracies lie between 0.5 and 0.95 and the
    discriminator's loss is above 0.3; ln 2 is the equilibrium. None: n < 3, or no adversary."""
    if series[0] not in history[-1]:
        return dict.fromkeys((*series, "settled")), "No adversary played."
    n = len(history) // 5
    rows = torch.tensor([[row[key] for key in series] for row in history[-max(n, 1):]]).double()
    found = dict(zip(series, mean := rows.mean(0).tolist()))
    if n < 3:
        return {**found, "settled": None}, "Fewer than 15 epochs do not show whether it settled."
    t = torch.arange(n).double()[:, None] - (n - 1) / 2
    slope = (t * rows).sum(0) / t.square().sum()
    width = ((rows - rows.mean(0) - t * slope).square().sum(0) / (n - 2)).sqrt()
    flaws = [f"{key} drifts by {drift:+.2g} and scatters by {scatter:.2g}" for key, drift, scatter
             in zip(series, (n * slope).tolist(), width.tolist()) if abs(drift) > scatter + 1e-9]
    flaws += [f"{key} is not between 50 % and 95 %" for key, share in zip(series[2:], mean[2:])
              if not 0.5 <= share <= 0.95]
    flaws += [f"{series[1]} is not above 0.3"] * (mean[1] <= 0.3)
    return {**found, "settled": not flaws}, (
        f"Over the last {n} epochs the discriminator knew {percent(mean[2])} of the real and "
        f"{percent(mean[3])} of the made images at a loss of {mean[1]:.2f} a term, the generator's "
        f"was {mean[0]:.2f}; equilibrium is 50 % and ln 2 = 0.69. The adversary "
        + (f"has not settled: {', '.join(flaws)}." if flaws else "has settled."))


@torch.no_grad()
def evaluate(run, data, nets):
    """The figures, then the probes, from best.pt; fills the report."""
    args, (enc, dec, *disc), test = run.args, nets.values(), data.test
    steps, points, shows = (200, 300, 5000) if args.smoke else (2000, 2000, 100_000)
    rng = make_rng(args.seed, "samples", run.device)
    prior = torch.randn(max(64, len(test)), args.z_dim, generator=rng, device=run.device)
    with run.doing("codes"):
        codes = encode_splits(enc, data)
        mu, s = codes["test"].mu, codes["test"].s
    with run.doing("figures"):
        run.figure("curves", columns(run.history, {
            "squared error an image": ["swap", "own", "val_swap"],
            "KL, nats an image": ["kl", "val_kl"]}),
            "Train and validation should stay together. A KL near zero means that z is dead.")
        if disc:
            run.figure("adversary", columns(run.history, {
                "loss a term, nats": SERIES[:2], "accuracy of Disc": SERIES[2:]},
                chance={"loss a term, nats": math.log(2), "accuracy of Disc": 0.5}),
                "Settled is flat. Grey is equilibrium, where Disc can only guess: ln 2 = 0.69, a "
                "little more for Enc and Dec, since they aim at 0.95. At 100 % Disc teaches "
                "nothing.")
        ten = pick(test.y, 10, args.seed)
        mates = pairs(test, ten, rng)
        rows = test.images(ten), dec(mu[ten], s[ten]), test.images(mates), dec(mu[ten], s[mates])
        run.figure("reconstructions", grid(
            torch.stack(rows), ["original", "own s", "partner", "partner's s"]),
            "From the mean of z. With the s of a partner, another image of the class, each should "
            "look as with its own.")
        made = dec(prior[:8].repeat_interleave(len(ten), 0), s[ten].repeat(8, 1))
        run.figure("samples", grid(torch.cat([test.images(ten)[None], made.unflatten(0, (8, -1))]),
                                   ["s from"], ylabel="z from the prior, one a row"),
                   "Each column should be of one class, each row in one style.")
        made = torch.cat([test.images(ten[-1:]), dec(prior[:63], s[ten[-1:]].expand(63, -1))])
        run.figure("styles", grid(made.unflatten(0, (8, 8))), "At the top left a test image, then "
                   "its s with z from the prior: one class in many styles.")
    with run.doing("probes"):
        series, sentence = settled(run.history, SERIES)
        results = {"test_recon": held_out(generate, enc, dec, test, args.seed, data.train)[0],
                   **probe_codes(run, data, codes, steps), **series}
    with run.doing("classifier"):
        judge, results["real_class_acc"] = classifier(data, args.data_dir, shows)
        giver = torch.randperm(len(test), generator=rng, device=run.device)
        other = test.y != test.y[giver]
        for key, z in (("swap", mu), ("prior", prior[:len(test)])):
            right = other & (classes_of(judge, decode(dec, z, s[giver])) == test.y[giver])
            results[f"{key}_class_acc"] = (right.sum() / other.sum().clamp(min=1)).item()
    with run.doing("swap grids, interpolations, t-SNE"):
        draw_codes(run, data, codes, dec, judge, points)
    run.say("A LeNet sees the class of s in {swap_class_acc:%} of the images made with the mean of "
            "z of another class, in {prior_class_acc:%} with z from the prior, in "
            "{real_class_acc:%} of real ones. A probe reads z's own class from that mean in "
            "{z_mean_test_acc:%}: what it knows and the images do not show, the decoder ignores.",
            results)
    run.say(sentence)
    run.finish(f"Disentangling with an adversary on {args.data}", results)


# %% Command line


def main(argv=None):
    parser, groups = flags("mathieu", __doc__, data="mnist", epochs=20, batch_size=128, lr=2e-3)
    add = groups["model"].add_argument
    for name, released in (("s", 64), ("z", 512)):
        add(f"--{name}-dim", type=number(int, low=1, high=4096), default=16,
            help=f"numbers in {name} (default: 16; faces, sprites: 64; released: {released})")
    add("--arch", choices=("small", "big"), default="small",
        help="three 5x5 convolutions, or the released networks (default: small)")
    add("--discriminator", choices=("class", "pair"), default="class",
        help="told the class, the paper's, or shown another image of it (default: class)")
    add = groups["objective"].add_argument
    for name, default, text in (("recon", 0.35, "squared error with the partner's s"),
                                ("own", 0.05, "squared error with the image's own s"),
                                ("kl", 1.0, "the KL"),
                                ("adv", 1.0, "the adversary's cross entropy, 0: none plays")):
        add(f"--{name}-weight", default=default, help=f"of {text} (default: {default:g})",
            type=number(float, **(dict(above=0) if name == "recon" else dict(low=0))))
    args = parse(parser, argv, PRESETS, SMOKE)
    if args.weights:
        load(args.weights)                                  # before a folder is made
    run = Run("mathieu", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    need_pairs(data.train, data.classes)
    data = run.begin(data)
    if not args.weights:
        train(run, data)
    evaluate(run, data, run.best_nets(load))


if __name__ == "__main__":
    run_command(main)
