"""Cycle-consistent VAE: Jha, Anand, Singh, Veeravasarapu, ECCV 2018, arxiv.org/abs/1804.10469

In go images with a class. Out come two codes: s (specified), meant for the class and nothing else,
and z (unspecified), for the rest. All that training is told is which images share a class. Written
to runs/cyclevae-<data>: swap grids, interpolations, t-SNE, probes, prediction networks, a report.

Forward cycle, x1 and x2 of one class, z_i ~ q(z|x_i), each rebuilt with the other's s:
  L_forward = mean over i of recon_weight |x_i - Dec(z_i, s_j)|^2 + kl_weight KL(q(z|x_i)||N(0, I))
Reverse cycle, one z ~ N(0, I) decoded with the s of two images of any class, s detached:
  L_reverse = reverse_weight |mu(Dec(z, s_1)) - mu(Dec(z, s_2))|_1
forward_cycle and reverse_cycle below. L_forward moves Enc and Dec; L_reverse has its own Adam, on
Enc alone.

Weights: a term here is a sum over pixels or latents and a mean over images; squared error with
weight 2 is a Gaussian's nats at variance 1/4. The authors' code divides (D = C H W, d_z latents):
  2/(B D) sum |x - x'|^2 + 3/(B D) sum KL    times D:    2 |x - x'|^2 + 3 KL, an image
  10/(B d_z) sum |mu_1 - mu_2|               times d_z:  10 |mu_1 - mu_2|_1, an image
A factor on a loss with an Adam of its own cancels (up to its eps): 2 : 3 counts, the 10 is inert.

  python cyclevae.py                 # 8 minutes on two cores: s names 99.7 %, sampled z 0.1 %
  python cyclevae.py --data mnist    # 83 minutes on one: s 98.7 %, sampled z 16.3 %, Table 1

Departures: pairs are drawn anew all the time, never an image with itself (the authors' loader
freezes those of its first pass, 313 steps, for all epochs); the step size falls as a cosine
unless --decay step (MNIST, Fashion-MNIST) asks for theirs; a tenth of train, on MNIST 5,000, is
validation and chooses the epoch; the reverse cycle draws its images uniformly; both directions of a
pair share one pass (the same gradients, tests/bench.py); instance norm has no running statistics.
Nets for 32, 60 and 64 pixels are ours: the authors released those for 28.
"""
import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, batches, load as load_data, need_pairs, pairs
from eval import (Run, accelerate, adam, classes_of, classifier, command_line, curves, decay,
                  descend, draw_swaps, draw_tsne, encode, flags, grid, held_out, kl_divergence,
                  load_nets, number, parse, percent, pick, predictor, probe_codes, tell_codes)

# What a flag is where it is not typed; MNIST as the authors set it. Small sets need many epochs.
AS_RELEASED = dict(s_dim=16, z_dim=16, lr=1e-4, epochs=100, leak=0.0, decay="step")
PRESETS = {"mnist": AS_RELEASED, "fashion": AS_RELEASED,
           "digits": dict(s_dim=16, z_dim=16, epochs=100), "faces": dict(epochs=500),
           "yaleb": dict(epochs=100), "sprites2015": dict(kl_weight=0.6, epochs=35)}
SMOKE = dict(data="sprites", limit=640, epochs=2)

# Networks: the authors' for 28 pixels; the others have one more layer or another padding

# pixels: (padding of the 5x5 convolutions, of each 4x4 transposed one, side of the smallest map)
LAYERS = {28: (1, (0, 0, 1), 2), 32: (2, (1, 1, 1), 4),
          60: (1, (0, 0, 0, 1), 2), 64: (2, (1, 1, 1, 1), 4)}


def instance_norm(channels):
    """Instance norm, no weights, no running statistics: group norm with a channel a group."""
    return nn.GroupNorm(channels, channels, affine=False)


def authors_init(module):
    """Deviation 0.05, zero biases; as released, transposed convolutions keep PyTorch's own."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.05)
        nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2, and s (B, S)."""

    def __init__(self, shape, z_dim, s_dim):
        super().__init__()
        padding, up, side = LAYERS[shape[1]]
        widths = [shape[0], *(16 * 2**i for i in range(len(up)))]
        layers, relu = [], nn.ReLU(inplace=True)
        for before, after in zip(widths, widths[1:]):       # side 28, 13, 6, 2 or 32, 16, 8, 4
            layers += [nn.Conv2d(before, after, 5, 2, padding), instance_norm(after), relu]
        self.trunk = nn.Sequential(*layers, nn.Flatten())   # (B, 64 side^2), 128 from 60 pixels on
        flat = widths[-1] * side**2
        self.mu, self.logvar = nn.Linear(flat, z_dim), nn.Linear(flat, z_dim)
        self.s = nn.Linear(flat, s_dim)
        self.apply(authors_init)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h), self.s(h)


class Decoder(nn.Module):
    """z (B, Z), s (B, S) -> images (B, C, H, W) in [0, 1]."""

    def __init__(self, shape, z_dim, s_dim, leak=0.2):
        super().__init__()
        _, up, side = LAYERS[shape[1]]
        half = 16 * 2 ** (len(up) - 1)                      # so many maps from z, as many from s
        leaky = nn.LeakyReLU(leak, inplace=True)
        self.z = nn.Sequential(nn.Linear(z_dim, half * side**2), leaky)
        self.s = nn.Sequential(nn.Linear(s_dim, half * side**2), leaky)
        widths = [2 * half, *(half // 2**i for i in range(1, len(up))), shape[0]]
        layers = [nn.Unflatten(1, (2 * half, side, side))]
        for before, after, padding in zip(widths, widths[1:], up):  # side 2, 6, 14, 28 or 4, 8, ..
            layers += [nn.ConvTranspose2d(before, after, 4, 2, padding), instance_norm(after),
                       leaky]
        self.up = nn.Sequential(*layers[:-2], nn.Sigmoid())  # no norm behind the last
        self.apply(authors_init)

    def forward(self, z, s):
        return self.up(torch.cat([self.z(z), self.s(s)], 1))


def build(shape, args):
    """{"enc": Encoder, "dec": Decoder} for images of `shape` (C, H, W), or DataError."""
    if shape[1] not in LAYERS:
        raise DataError(f"cyclevae.py has networks for {', '.join(map(str, LAYERS))} pixels, not "
                        f"{shape[1]}; choose one with --image-size.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args["seed"])
        return {"enc": Encoder(shape, args["z_dim"], args["s_dim"]),
                "dec": Decoder(shape, args["z_dim"], args["s_dim"], args["leak"])}


def load(path, device="cpu"):
    """The trained {"enc": Encoder, "dec": Decoder} of a checkpoint such as RUN/best.pt."""
    return load_nets(path, "cyclevae", build, device)


# Objective


def forward_cycle(enc, dec, x, noise):
    """Rebuilds each image from its own z and its partner's s.

    x (2B, C, H, W): B images, then for each a partner of its class; noise (2B, Z) from N(0, I).
    Returns two means over the 2B images: squared error an image, KL in nats an image."""
    mu, logvar, s = enc(x)                                  # (2B, Z), (2B, Z), (2B, S)
    mu, logvar = mu.to(x.dtype), logvar.to(x.dtype)         # of --amp's bfloat16
    z = mu + (0.5 * logvar).exp() * noise
    out = dec(z, s.roll(len(x) // 2, 0))                    # half a turn: everyone the partner's s
    recon = F.mse_loss(out.to(x.dtype), x, reduction="sum") / len(x)
    return recon, kl_divergence(mu, logvar).sum(1).mean()


def reverse_cycle(enc, dec, x, z):
    """One z with the s of two images must come back as one z: |mu_1 - mu_2|, summed over latents.

    x (2B, C, H, W): B images, then B others of any class; z (B, Z) from N(0, I). Only Enc is
    stepped, and s is detached, so that nothing before the second encoding needs a gradient. The
    means are compared with each other, not with z: a constant mu would do, and only L_forward
    stands against that."""
    with torch.no_grad():
        out = dec(torch.cat([z, z]), enc.s(enc.trunk(x)))
    mu1, mu2 = enc.mu(enc.trunk(out)).to(z.dtype).chunk(2)
    return (mu1 - mu2).abs().sum(1).mean()


# Training


def step(enc, dec, opt, opt_reverse, x, noise, x_reverse, z, weights, autocast,
         forward=forward_cycle, reverse=reverse_cycle):
    """Both cycles once, on what the two functions above take; weights of squared error, KL and
    reverse cycle. Returns the three terms unweighted, still on the device."""
    with autocast():
        recon, kl = forward(enc, dec, x, noise)
    descend([weights[0] * recon + weights[1] * kl], [opt])
    with autocast():
        cycle = reverse(enc, dec, x_reverse, z)             # with the encoder as it is by now
    descend([weights[2] * cycle], [opt_reverse])
    return torch.stack([recon, kl, cycle]).detach()


def train(run, data):
    """Trains Enc and Dec; best.pt is the epoch with the lowest L_forward on validation pairs."""
    args, device, split = run.args, run.device, data.train
    nets = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    enc, dec = nets.values()
    parts = {"opt": adam(enc, dec, lr=args.lr), "opt_reverse": adam(enc, lr=args.lr),
             "rng": torch.Generator(device).manual_seed(args.seed)}
    opt, opt_reverse, rng = parts.values()
    weights = args.recon_weight, args.kl_weight, args.reverse_weight
    fast = accelerate(args, device, forward_cycle, reverse_cycle)
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    for epoch in range(run.resume(nets, **parts), args.epochs):
        terms = []
        for i, index in enumerate(batches(split, batch, rng)):
            decay([opt, opt_reverse], args.lr, (epoch + i / steps) / args.epochs, args.decay)
            x = split.images(torch.cat([index, pairs(split, index, rng)]))
            noise = torch.randn(2 * batch, args.z_dim, generator=rng, device=device)
            index = torch.randint(len(split), (2 * batch,), generator=rng, device=device)
            z = torch.randn(batch, args.z_dim, generator=rng, device=device)
            terms.append(step(enc, dec, opt, opt_reverse, x, noise, split.images(index), z, weights,
                              *fast))
            run.progress(epoch, i + 1, steps)
        means = run.means(("recon", "kl", "reverse"), terms)
        val_recon, val_kl = held_out(forward_cycle, enc, dec, data.val, args.seed)
        val = args.recon_weight * val_recon + args.kl_weight * val_kl
        run.log(steps * batch, **means, val_recon=val_recon, val_kl=val_kl, val=val)
        run.save(val, nets, **parts)


# Evaluation


@torch.no_grad()
def evaluate(run, data, nets):
    """The figures, then the probes and prediction networks, from best.pt; fills the report."""
    args, (enc, dec), seed, test = run.args, nets.values(), run.args.seed, data.test
    steps, points, shows = (200, 300, 5000) if args.smoke else (2000, 2000, 150_000)
    with run.doing("codes"):
        codes = {name: encode(enc, split) for name, split in data.splits().items()}
        (mu, _, s), (mu_test, _, s_test) = codes["train"], codes["test"]
    with run.doing("figures"):
        run.figure("curves", curves(run.history, {
            "squared error an image": ["recon", "val_recon"], "KL, nats an image": ["kl", "val_kl"],
            "reverse cycle, L1 of the means": ["reverse"]}),
            "Train and validation should stay together. A KL near zero means that z is dead, and "
            "then a small reverse term means nothing.")
        draw_swaps(run, data, codes, dec)
    with run.doing("t-SNE"):
        draw_tsne(run, data, codes["test"], points)
    with run.doing("probes"):
        results = {"test_recon": held_out(forward_cycle, enc, dec, test, seed)[0],
                   **probe_codes(data, codes, seed, steps)}
    with run.doing("prediction networks"):
        results["s_to_z_r2"], z_guess = predictor((s, mu), (s_test, mu_test), seed, steps)
        results["z_to_s_r2"], s_guess = predictor((mu, s), (mu_test, s_test), seed, steps)
    with run.doing("classifier"):
        judge, results["real_class_acc"] = classifier(data, args.data_dir, shows)
        ten = pick(test.y, 10, seed + 3)
        rows, wrong = [test.images(ten)], [torch.zeros(len(ten), dtype=torch.bool)]
        for key, z, code in (("decoded", mu_test, s_test), ("z_to_s", mu_test, s_guess),
                             ("s_to_z", z_guess, s_test)):
            parts = zip(z.split(500), code.split(500))
            right = torch.cat([classes_of(judge, dec(*part)) for part in parts]) == test.y
            results[f"{key}_class_acc"] = right.float().mean().item()
            rows.append(dec(z[ten], code[ten]))
            wrong.append(~right[ten].cpu())
        run.figure("prediction_networks", grid(
            torch.stack(rows), ["original", "decoded", "s predicted from z", "z predicted from s"],
            red=torch.stack(wrong)),
            "Red: a classifier of real images sees another class than the original's. Expect red "
            "where s was predicted from z, which should not know the class, and as much of it in "
            "the last row as in the plain reconstructions of the second.")
    tell_codes(run, data, results)
    run.table("Prediction networks", ("", "R2 on test", "class recognised after decoding"), [
        ("z from s", results["s_to_z_r2"], percent(results["s_to_z_class_acc"])),
        ("s from z", results["z_to_s_r2"], percent(results["z_to_s_class_acc"])),
        ("nothing predicted", "", percent(results["decoded_class_acc"])),
        ("real test images", "", percent(results["real_class_acc"]))],
        "R2 of the constant predictor is 0. The classes are what a LeNet, trained on real train "
        "images, sees.")
    run.say("s explains {s_to_z_r2:%} of the variance of z.", results)
    run.say("z explains {z_to_s_r2:%} of the variance of s.", results)
    run.say("Of the decoded images {decoded_class_acc:%} are recognised, of those with s predicted "
            "from z {z_to_s_class_acc:%}, with z predicted from s {s_to_z_class_acc:%}, of real "
            "ones {real_class_acc:%}.", results)
    run.finish(f"Cycle-consistent VAE on {args.data}", results)


def main(argv=None):
    parser, groups = flags(__doc__, data="sprites", epochs=6, batch_size=64, lr=1e-3)
    add = groups["model"].add_argument
    for name in ("s", "z"):
        add(f"--{name}-dim", type=number(int, low=1, high=4096), default=64,
            help=f"numbers in {name} (default: 64; digits and clothes: 16)")
    add("--leak", type=number(float, low=0, high=1), default=0.2, help="slope of Dec's LeakyReLU "
        "below 0 (default: 0.2, as in the released code; mnist: 0, as in the released weights)")
    add = groups["objective"].add_argument
    add("--recon-weight", type=number(float, above=0), default=2.0,
        help="(default: 2, the paper's)")
    add("--kl-weight", type=number(float, low=0), default=3.0,
        help="(default: 3, the paper's for MNIST and right for our sprites; sprites2015: 0.6)")
    add("--reverse-weight", type=number(float, low=0), default=10.0,
        help="(default: 10, the paper's) inert: the reverse cycle's own Adam divides it out, and "
             "only 0 differs, which switches that cycle off")
    groups["optimisation"].add_argument("--decay", choices=("cosine", "step"), default="cosine",
        help="of the step size; step: tenfold after 80 %% of the epochs, as the authors' "
             "(default: cosine; mnist, fashion: step)")
    args = parse(parser, argv, "cyclevae", PRESETS, SMOKE)
    run = Run("cyclevae", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    build(data.train.x.shape[1:], vars(args))               # refuses a size before a folder is made
    need_pairs(data.train, data.classes)
    data = run.begin(data)
    if not args.eval_only:
        train(run, data)
    evaluate(run, data, run.best_nets(load))


if __name__ == "__main__":
    command_line(main)
