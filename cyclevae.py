"""Cycle-consistent VAE: Jha, Anand, Singh, Veeravasarapu, ECCV 2018, arxiv.org/abs/1804.10469

In go images with a class. Out come two codes: s (specified) for the class and nothing else, and
z (unspecified) for the rest. All that training is told is which images share a class. Written to
runs/cyclevae-<data>: swap grid, interpolations, t-SNE, probes and prediction networks, a report.

Forward cycle, x1 and x2 of one class, z_i ~ q(z|x_i), each rebuilt with the other's s:
  L_forward = sum over i of recon_weight |x_i - Dec(z_i, s_j)|^2 + kl_weight KL(q(z|x_i) || N(0, I))
Reverse cycle, one z ~ N(0, I) decoded with the s of two images of any class, s detached:
  L_reverse = reverse_weight |mu(Dec(z, s_1)) - mu(Dec(z, s_2))|_1
forward_cycle and reverse_cycle below. L_forward moves Enc and Dec; L_reverse has its own Adam, on
Enc alone.

Weights: a term here is a sum over pixels or latents and a mean over images; squared error with
weight 2 is a Gaussian's nats at variance 1/4. The authors' code divides (D = C H W, d_z latents):
  2/(B D) sum |x - x'|^2 + 3/(B D) sum KL    times D:    2 |x - x'|^2 + 3 KL, an image
  10/(B d_z) sum |mu_1 - mu_2|               times d_z:  10 |mu_1 - mu_2|_1, an image
A factor on a loss that has its own Adam cancels: only 2 : 3 counts, and the 10 is inert.

  python cyclevae.py                   # our sprites, no download
  python cyclevae.py --data mnist      # the paper's Table 1

Departures: pairs are drawn anew all the time (the authors' loader repeats the first third of an
epoch's); the step size falls as a cosine (theirs tenfold at epoch 80 of 100); the reverse cycle
draws its images uniformly; both directions of a pair share one pass (the same gradients, see
tests/bench.py); instance norm has no running statistics. The networks for 32, 60 and 64 pixels
are ours: the authors released those for 28.
"""
import torch
from torch import nn

from data import DataError, batches, load as load_data, need_pairs, pairs
from eval import (Run, accelerate, checkpoint, classes_of, classifier, command_line, cosine, curves,
                  flags, grid, interpolation_grid, number, parse, percent, predictor, probe,
                  restore, sample, scatter, swap_grid, tsne)

# What a flag is where it is not typed; MNIST as the authors set it, but for the epochs.
PRESETS = {"mnist": dict(s_dim=16, z_dim=16, kl_weight=3.0, lr=1e-4, epochs=40)}
SMOKE = dict(data="sprites", limit=640, epochs=2)

# Networks: the authors' for 28 pixels; the others have one more layer or another padding

# pixels: (padding of the 5x5 convolutions, of each 4x4 transposed one, side of the smallest map)
LAYERS = {28: (1, (0, 0, 1), 2), 32: (2, (1, 1, 1), 4),
          60: (1, (0, 0, 0, 1), 2), 64: (2, (1, 1, 1, 1), 4)}


def instance_norm(channels):
    """Instance norm without weights or running statistics, written as the faster group norm."""
    return nn.GroupNorm(channels, channels, affine=False)


def authors_init(module):
    """N(0, 0.05) weights and zero biases, but for the transposed convolutions (released code)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.05)
        nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """x (B, C, H, W) -> mu (B, Z), logvar (B, Z) of q(z|x), always log sigma^2, and s (B, S)."""

    def __init__(self, shape, z_dim, s_dim):
        super().__init__()
        padding, up, side = LAYERS[shape[1]]
        widths = [shape[0], *(16 * 2**i for i in range(len(up)))]
        layers = []
        for before, after in zip(widths, widths[1:]):       # side 28: 13, 6, 2; 32: 16, 8, 4
            layers += [nn.Conv2d(before, after, 5, 2, padding), instance_norm(after), nn.ReLU()]
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

    def __init__(self, shape, z_dim, s_dim):
        super().__init__()
        _, up, side = LAYERS[shape[1]]
        half = 16 * 2 ** (len(up) - 1)                      # so many maps from z, as many from s
        self.z = nn.Sequential(nn.Linear(z_dim, half * side**2), nn.LeakyReLU(0.2))
        self.s = nn.Sequential(nn.Linear(s_dim, half * side**2), nn.LeakyReLU(0.2))
        widths = [2 * half, *(half // 2**i for i in range(1, len(up))), shape[0]]
        layers = [nn.Unflatten(1, (2 * half, side, side))]
        for before, after, padding in zip(widths, widths[1:], up):  # side 2: 6, 14, 28; 4: 8, ..
            layers += [nn.ConvTranspose2d(before, after, 4, 2, padding), instance_norm(after),
                       nn.LeakyReLU(0.2)]
        self.up = nn.Sequential(*layers[:-2], nn.Sigmoid())  # no norm behind the last
        self.apply(authors_init)

    def forward(self, z, s):
        return self.up(torch.cat([self.z(z), self.s(s)], 1))


def build(shape, args):
    """{"enc": Encoder, "dec": Decoder} for images of `shape` (C, H, W), or DataError."""
    if shape[1] not in LAYERS:
        raise DataError(f"cyclevae.py has networks for {', '.join(map(str, LAYERS))} pixels, not "
                        f"{shape[1]}; choose one with --image-size.")
    return {"enc": Encoder(shape, args["z_dim"], args["s_dim"]),
            "dec": Decoder(shape, args["z_dim"], args["s_dim"])}


def load(path, device="cpu"):
    """The trained {"enc": Encoder, "dec": Decoder} of a checkpoint such as RUN/best.pt."""
    content = checkpoint(path, "cyclevae")
    nets = build(content["shape"], content["args"])
    return {k: restore(net, content["nets"][k], path).to(device) for k, net in nets.items()}


# Objective


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, elementwise."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def forward_cycle(enc, dec, x, noise):
    """Rebuilds each image from its own z and its partner's s.

    x (2B, C, H, W): B images, then for each a partner of its class; noise (2B, Z) from N(0, I).
    Returns two means over the 2B images: squared error an image, KL in nats an image."""
    mu, logvar, s = enc(x)                                  # (2B, Z), (2B, Z), (2B, S)
    mu, logvar = mu.float(), logvar.float()
    z = mu + (0.5 * logvar).exp() * noise
    out = dec(z, s.roll(len(x) // 2, 0))                    # half a turn: everyone the partner's s
    recon = (out.float() - x).square().flatten(1).sum(1).mean()
    return recon, kl_divergence(mu, logvar).sum(1).mean()


def reverse_cycle(enc, dec, x, z):
    """One z with the s of two images must come back as one z: |mu_1 - mu_2|, summed over latents.

    x (2B, C, H, W): B images, then B others of any class; z (B, Z) from N(0, I). Only Enc is
    stepped, and s is detached, so that nothing before the second encoding needs a gradient. The
    means are compared with each other, not with z: a constant mu would do, and only L_forward
    stands against that."""
    with torch.no_grad():
        out = dec(torch.cat([z, z]), enc.s(enc.trunk(x)))
    mu1, mu2 = enc.mu(enc.trunk(out)).float().chunk(2)
    return (mu1 - mu2).abs().sum(1).mean()


# Training


def train(run, data):
    """Trains Enc and Dec; best.pt is the epoch with the lowest L_forward on validation pairs."""
    args, device, split = run.args, run.device, data.train
    torch.manual_seed(args.seed)
    nets = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    enc, dec = nets.values()
    fused = device.type != "mps"
    opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=args.lr, fused=fused)
    opt_reverse = torch.optim.Adam(enc.parameters(), lr=args.lr, fused=fused)
    rng = torch.Generator(device).manual_seed(args.seed)
    autocast, forward, reverse = accelerate(args, device, forward_cycle, reverse_cycle)
    steps = max(1, len(split) // args.batch_size)
    for epoch in range(run.resume(nets, opt=opt, opt_reverse=opt_reverse, rng=rng), args.epochs):
        terms = []
        for step, index in enumerate(batches(split, args.batch_size, rng)):
            cosine([opt, opt_reverse], args.lr, (epoch + step / steps) / args.epochs)
            x = split.images(torch.cat([index, pairs(split, index, rng)]))
            noise = torch.randn(len(x), args.z_dim, generator=rng, device=device)
            with autocast():
                recon, kl = forward(enc, dec, x, noise)
            opt.zero_grad()
            (args.recon_weight * recon + args.kl_weight * kl).backward()
            opt.step()

            index = torch.randint(len(split), (len(x),), generator=rng, device=device)
            z = torch.randn(len(x) // 2, args.z_dim, generator=rng, device=device)
            with autocast():
                cycle = reverse(enc, dec, split.images(index), z)
            opt_reverse.zero_grad()
            (args.reverse_weight * cycle).backward()
            opt_reverse.step()

            terms.append(torch.stack([recon, kl, cycle]).detach())
            run.progress(epoch, step + 1, steps)
        recon, kl, cycle = torch.stack(terms).mean(0).tolist()      # the only reading of the epoch
        val_recon, val_kl = test_forward(enc, dec, data.val, args.seed)
        val = args.recon_weight * val_recon + args.kl_weight * val_kl
        run.log(steps * args.batch_size, recon=recon, kl=kl, reverse=cycle, val_recon=val_recon,
                val_kl=val_kl, val=val)
        run.save(val, nets, opt=opt, opt_reverse=opt_reverse, rng=rng)


@torch.no_grad()
def test_forward(enc, dec, split, seed):
    """forward_cycle's two terms over a split, with a seeded partner and z for each image."""
    device, total = split.x.device, 0
    rng = torch.Generator(device).manual_seed(seed)
    index = torch.arange(len(split), device=device)
    for i, partner in zip(index.split(250), pairs(split, index, rng).split(250)):
        noise = torch.randn(2 * len(i), enc.mu.out_features, generator=rng, device=device)
        x = split.images(torch.cat([i, partner]))
        total += torch.stack(forward_cycle(enc, dec, x, noise)) * len(i) / len(split)
    return total.tolist()


# Evaluation


def encode(enc, split):
    """mu (N, Z), logvar (N, Z) and s (N, S) of a whole split."""
    index = torch.arange(len(split), device=split.x.device)
    parts = [enc(split.images(i)) for i in index.split(500)]
    return [torch.cat(part) for part in zip(*parts)]


def pick(labels, n, seed):
    """Indices of at most n seeded rows, no two of one label; labels (N,) int64."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = {label: i for i, label in zip(order.tolist(), labels.cpu()[order].tolist())}
    return torch.tensor([*rows.values()][:n], device=labels.device)


@torch.no_grad()
def evaluate(run, data, nets):
    """The figures, then the probes and prediction networks, from best.pt; fills the report."""
    args, (enc, dec), seed = run.args, nets.values(), run.args.seed
    train, test, new = data.train, data.test, data.unseen or data.test
    steps, points = (200, 300) if args.smoke else (2000, 2000)
    with run.doing("codes"):
        (mu, logvar, s), (mu_test, logvar_test, s_test), (mu_new, logvar_new, s_new) = (
            encode(enc, split) for split in (train, test, new))
        kl = kl_divergence(mu_test, logvar_test).mean(0)    # (Z,)
        rng = torch.Generator(run.device).manual_seed(seed)
        z_test = sample((mu_test, logvar_test), rng)
    # Factors that a class has one value of (hair colour of a person) should be in s, others in z.
    value = torch.zeros(len(data.classes), dtype=torch.long, device=run.device)
    of_class = {name: bool((value.scatter(0, train.y, f)[train.y] == f).all())
                for name, f in train.factors.items()}
    of_image = [name for name in of_class if not of_class[name]]

    with run.doing("figures"):
        run.figure("curves", curves(run.history, {
            "squared error an image": ["recon", "val_recon"], "KL, nats an image": ["kl", "val_kl"],
            "reverse cycle, L1 of the means": ["reverse"]}),
            "Train and validation should stay together. A KL near zero means that z is dead, and "
            "then a small reverse term means nothing.")
        for name, split, means, codes, who in (
                ("swap_grid", test, mu_test, s_test, "test images of the training classes"),
                ("swap_grid_unseen", data.unseen, mu_new, s_new, "people never trained on")):
            if split is not None:
                look = [split.factors[f] for f in of_image] or [split.y]
                look = sum(f * 1000**k for k, f in enumerate(look))
                columns, rows = pick(split.y, 8, seed), pick(look, 8, seed + 1)
                run.figure(name, swap_grid(dec, split.images(columns), codes[columns],
                                           split.images(rows), means[rows]),
                           f"From {who}: a column should show the class of the image above it, a "
                           "row what is left of it in all else, such as pose, light or slant.")
        for k, pair in enumerate(pick(test.y, 6, seed + 2).split(2), 1):
            run.figure(f"interpolation_{k}", interpolation_grid(dec, mu_test[pair], s_test[pair]),
                       "Two test images top left and bottom right. Along a row only s moves, down "
                       "a column only z, on the diagonal both; every step should look likely.")

    with run.doing("t-SNE"):
        placed = {name: tsne(code, seed, points) for name, code in
                  (("s", s_test), ("z, sampled", z_test), ("z, mean", mu_test))}
        run.figure("tsne_class", scatter({f"{name}, by class": (xy, test.y[i], data.classes)
                                          for name, (xy, i) in placed.items()}, seed),
                   "s should show a cluster a class, sampled z (the paper's) none; the mean of z "
                   "shows what the noise of q(z|x) hides.")
        xy, i = placed["z, mean"]
        few = [name for name in of_image if len(data.factors[name]) <= 12][:3]
        if few:
            run.figure("tsne_factors", scatter({
                f"z, mean, by {name}": (xy, test.factors[name][i], data.factors[name])
                for name in few}, seed), "The same places, coloured by what z should hold.")

    with run.doing("probes"):
        known, fresh = ({"s": (s, s_test), "z": ((mu, logvar), (mu_test, logvar_test)),
                         "z_mean": (mu, mu_test)},
                        {"s": (s, s_new), "z": ((mu, logvar), (mu_new, logvar_new)),
                         "z_mean": (mu, mu_new)})
        label = {"class": (train.y, test.y)}
        by_class = {k: probe(*codes, label, seed, steps)["class"] for k, codes in known.items()}
        labels = {name: (f, new.factors[name]) for name, f in train.factors.items()}
        found = {k: probe(*codes, labels, seed, steps) for k, codes in fresh.items() if labels}
        factors = {name: {**{k: found[k][name]["test"] for k in found},
                          "majority": found["s"][name]["majority"]} for name in labels}

    with run.doing("prediction networks"):
        s_to_z_r2, z_guess = predictor((s, mu), (s_test, mu_test), seed, steps)
        z_to_s_r2, s_guess = predictor((mu, s), (mu_test, s_test), seed, steps)
    with run.doing("classifier"):
        judge, real_acc = classifier(data, args.data_dir, epochs=2 if args.smoke else 6)
        decoded = {"decoded": (mu_test, s_test), "s predicted from z": (mu_test, s_guess),
                   "z predicted from s": (z_guess, s_test)}
        right = {name: torch.cat([classes_of(judge, dec(*part)) for part in
                                  zip(z.split(500), code.split(500))]) == test.y
                 for name, (z, code) in decoded.items()}
        acc = {name: hits.float().mean().item() for name, hits in right.items()}
        ten = pick(test.y, 10, seed + 3)
        rows = [test.images(ten), *(dec(z[ten], code[ten]) for z, code in decoded.values())]
        wrong = [torch.zeros(len(ten), dtype=bool), *(~hits[ten].cpu() for hits in right.values())]
        run.figure("prediction_networks", grid(torch.stack(rows), ["original", *decoded],
                                               red=torch.stack(wrong)),
                   "Red: a classifier of real images sees another class than the original's. It "
                   "should where s was predicted from z, which should not know, and should not "
                   "where z was predicted from s: the same class, in an average pose.")

    results = {"test_recon": test_forward(enc, dec, test, seed)[0], "test_kl": kl.sum().item(),
               "live_dims": int((kl > 0.01).sum()),
               **{f"{k}_{part}_acc": by_class[k][part] for k in by_class
                  for part in ("train", "test")},
               "chance": by_class["s"]["chance"], "majority": by_class["s"]["majority"],
               "factors": factors, "s_to_z_r2": s_to_z_r2, "z_to_s_r2": z_to_s_r2,
               "s_to_z_class_acc": acc["z predicted from s"],
               "z_to_s_class_acc": acc["s predicted from z"],
               "decoded_class_acc": acc["decoded"], "real_class_acc": real_acc}
    tell(run, data, results, of_class)
    run.finish(f"Cycle-consistent VAE on {args.data}", results)


def tell(run, data, r, of_class):
    """The report's tables and observations, each from the numbers `r` that results.json holds."""
    run.table("Objective on test images", ("", "value"), [
        ("squared error an image (swapped s, sampled z)", r["test_recon"]),
        ("KL, nats an image", r["test_kl"]), ("live dimensions (0.01 nats)", r["live_dims"])])
    run.table("Class, as an MLP reads it", ("code", "train", "test", "chance", "majority"), [
        (name, *(percent(r[key]) for key in (f"{k}_train_acc", f"{k}_test_acc", "chance",
                                             "majority")))
        for name, k in (("s", "s"), ("z, sampled", "z"), ("z, mean", "z_mean"))],
        "The paper's table is of sampled z.")
    where = "people never trained on" if data.unseen is not None else "test images"
    if r["factors"]:
        run.table(f"Factors, on {where}", ("factor", "should be in", "s", "z, sampled", "z, mean",
                                           "majority"), [
            (name, "s" if of_class[name] else "z",
             *(percent(f[k]) for k in ("s", "z", "z_mean", "majority")))
            for name, f in r["factors"].items()])
    run.table("Prediction networks", ("", "R2 on test", "class recognised after decoding"), [
        ("z from s", f"{r['s_to_z_r2']:.3f}", percent(r["s_to_z_class_acc"])),
        ("s from z", f"{r['z_to_s_r2']:.3f}", percent(r["z_to_s_class_acc"])),
        ("nothing predicted", "", percent(r["decoded_class_acc"])),
        ("real test images", "", percent(r["real_class_acc"]))],
        "R2 of the constant predictor is 0. Classes are those that a LeNet trained on real train "
        "images sees.")
    run.say(f"s gives away the class of {percent(r['s_test_acc'])} of the test images, sampled z of "
            f"{percent(r['z_test_acc'])} ({r['z_test_acc'] / r['chance']:.1f} times chance), the "
            f"mean of z of {percent(r['z_mean_test_acc'])}.")
    for name, f in r["factors"].items():
        inside, outside = ("s", "z") if of_class[name] else ("z_mean", "s")
        run.say(f"{name.replace('_', ' ').capitalize()}: {percent(f[inside])} from "
                f"{'s' if inside == 's' else 'the mean of z'}, where it belongs; "
                f"{'sampled z' if outside == 'z' else 's'}, where it does not, is "
                f"{100 * (f[outside] - f['majority']):.1f} points above the majority.")
    run.say(f"Predicted from s, z keeps {percent(max(0, r['s_to_z_r2']))} of its variance and "
            f"{percent(r['s_to_z_class_acc'])} of the decoded images their class; predicted from "
            f"z, s keeps {percent(max(0, r['z_to_s_r2']))} and {percent(r['z_to_s_class_acc'])} "
            f"(decoded as they are: {percent(r['decoded_class_acc'])}).")


def main(argv=None):
    parser, groups = flags(__doc__, data="sprites", epochs=10, batch_size=64, lr=1e-3)
    add = groups["model"].add_argument
    for name in ("--s-dim", "--z-dim"):
        add(name, type=number(int, low=1, high=4096), default=64, help="(default: 64; mnist: 16)")
    add = groups["objective"].add_argument
    add("--recon-weight", type=number(float, above=0), default=2.0,
        help="(default: 2, the paper's)")
    add("--kl-weight", type=number(float, low=0), default=3.0,
        help="(default: 3, the paper's)")
    add("--reverse-weight", type=number(float, low=0), default=10.0,
        help="(default: 10, the paper's) inert: its own Adam divides it out, and only 0 differs, "
             "which switches the reverse cycle off")
    args = parse(parser, argv, "cyclevae", PRESETS, SMOKE)
    run = Run("cyclevae", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    build(data.train.x.shape[1:], vars(args))               # refuses a size before a folder is made
    need_pairs(data.train, data.classes)
    run.begin(data)
    data = data.to(run.device)
    if not args.eval_only:
        train(run, data)
    evaluate(run, data, run.best_nets(load))


if __name__ == "__main__":
    command_line(main)
