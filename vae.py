"""VAE: Kingma, Welling, Auto-Encoding Variational Bayes, ICLR 2014, arxiv.org/abs/1312.6114

In go images; out come a code z and a decoder that draws images from it. --model vae is the paper;
ae is the plain autoencoder, nae one whose code is normalised, both with two neurons in the middle.
Written to runs/vae-<data>: curves, reconstructions, samples, t-SNE, an SVM on the codes, FID, the
likelihood by importance sampling, a report.

  ae:   mean over pixels of (x - Dec(z))^2, z = Enc(x)
  nae:  the same, z = (Enc(x) - mean) / std, both over the batch, exact over train afterwards
  vae:  L(x) = -E_q(z|x)[log p(x|z)] + beta KL(q(z|x) || N(0, I)), q(z|x) = N(mu, diag sigma^2)
        one z a step (vae_loss); the first term a sum over pixels, the KL one over latents, in
        nats an image, the mean over the batch
  vae --iwae K: -log 1/K sum_k w_k, w_k = p(x|z_k) p(z_k) / q(z_k|x) (Burda et al. 2016)

bernoulli_log_likelihood, gaussian_log_likelihood, kl_divergence and log_mean_exp are the
formulas by themselves. With --likelihood bernoulli on grey pixels the first term is the expectation
over images binarised at random, a bound on their likelihood and not on the grey image's; --binarize
(on for MNIST) draws them, afresh at every step and once from the seed for all that is measured.

  python vae.py                  # MNIST, 784-400-20: an NLL of 94.0 nats, a quarter of an hour
  python vae.py --arch conv      # 86.3 nats, an hour on one busy core
  python vae.py --model nae      # Fashion-MNIST, two neurons, the plain ae beside it; see README
  python vae.py --hidden 200 200 --activation tanh --z-dim 50       # the net of Burda et al.

Departures: Adam with a cosine for the paper's Adagrad; ReLU by default, where the paper has tanh;
the decoder's output starts at the mean image (Burda et al.); a tenth of train, 5,000 of MNIST, is
validation and chooses the epoch. nae and its ae start from the same weights and see the same
batches; its saved epoch is the one that suits nae.
"""
import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, batches, load as load_data, pick
from eval import (SideBySideRun as Run, accelerate, adam, binarize, binarized, checkpoint, columns,
                  confusion, decay, decode, descend, encode, fid, filled, flags, grid, load_nets,
                  make_rng, nll, number, over, parse, percent, run_command, sample, scatter,
                  svm_report, tsne_points)

TITLES = {"ae": "Autoencoder", "nae": "Normalised autoencoder", "vae": "VAE"}
PHOTOS = ("faces", "yaleb")
SMOKE = dict(data="digits", epochs=2, nll_k=50, nll_n=100)


def presets(args):
    """What a flag is where it is not typed, by --model, --arch and --data."""
    vae, conv = args["model"] == "vae", args["arch"] == "conv"
    data = "fashion" if not vae and args["data"] == "mnist" else args["data"]
    return dict(data=data, hidden=[512] if conv else [400] if vae else [512, 128, 32],
                z_dim=2 if not vae else 32 if conv else 20,
                epochs=300 if data in PHOTOS else 100 if conv else 50)


# %% Networks


class Encoder(nn.Module):
    """x (B, C, H, W) -> (mu, logvar) of q(z|x) for the vae, else (z,); each (B, Z).

    arch fc: the layers of args["hidden"]. conv: halves the picture to 8 pixels or fewer first."""

    def __init__(self, shape, args):
        super().__init__()
        act = {"relu": nn.ReLU, "tanh": nn.Tanh}[args["activation"]]
        maps = conv_maps(shape, args["arch"])
        downs = [part for pair in zip(maps, maps[1:])       # side 28, 14, 7
                 for part in (nn.Conv2d(*pair, 4, 2, 1), act())]
        widths = [maps[-1] * (shape[1] >> len(maps) - 1)**2, *args["hidden"]]
        layers = [part for pair in zip(widths, widths[1:]) for part in (nn.Linear(*pair), act())]
        self.heads = 2 if args["model"] == "vae" else 1
        self.net = nn.Sequential(*downs, nn.Flatten(), *layers,     # (B, 32 * 7 * 7), (B, 512)
                                 nn.Linear(widths[-1], self.heads * args["z_dim"]))
        self.norm = (nn.BatchNorm1d(args["z_dim"], eps=1e-8, affine=False)
                     if args["model"] == "nae" else nn.Identity())

    def forward(self, x):
        return self.norm(self.net(x)).chunk(self.heads, 1)


class Decoder(nn.Module):
    """z (..., Z) -> logits of pixels (..., C, H, W); their sigmoid is the image in [0, 1]."""

    def __init__(self, shape, args):
        super().__init__()
        act = {"relu": nn.ReLU, "tanh": nn.Tanh}[args["activation"]]
        maps = conv_maps(shape, args["arch"])[::-1]
        side = shape[1] >> len(maps) - 1
        widths = [args["z_dim"], *args["hidden"][::-1], maps[0] * side**2]
        layers = [part for pair in zip(widths, widths[1:]) for part in (nn.Linear(*pair), act())]
        shaped = nn.Unflatten(1, (maps[0], side, side))     # fc: the picture itself
        ups = [part for pair in zip(maps, maps[1:])         # side 7, 14, 28
               for part in (nn.ConvTranspose2d(*pair, 4, 2, 1), act())]
        (ups or layers).pop()                               # the last: no activation, and no bias
        (ups or layers)[-1].bias = None                     # but the picture's
        self.net = nn.Sequential(*layers, shaped, *ups)
        self.bias = nn.Parameter(torch.zeros(*shape))       # train starts it at the mean image

    def forward(self, z):
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]) + self.bias


def conv_maps(shape, arch):
    """Numbers of feature maps, the picture's channels first, for fc nothing more: 1, 16, 32."""
    maps, side = [shape[0]], shape[1]
    while arch == "conv" and side > 8 and side % 2 == 0:
        maps, side = [*maps, 8 * 2 ** len(maps)], side // 2
    if arch == "conv" and side > 16:
        raise DataError(f"--arch conv cannot halve {shape[1]} pixels to 16 or fewer; choose "
                        "another --image-size, such as 28, 32 or 64.")
    return maps


def build(shape, args):
    """{"enc": Encoder, "dec": Decoder} for images of `shape` (C, H, W), or DataError; for nae also
    "ae_enc", "ae_dec", the plain autoencoder with the same first weights, unless --ae gives it."""
    nets, beside = {}, args["model"] == "nae" and not args["ae"]
    for prefix, model in {"": args["model"], **({"ae_": "ae"} if beside else {})}.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args["seed"])
            for name, net in (("enc", Encoder), ("dec", Decoder)):
                nets[prefix + name] = net(shape, {**args, "model": model})
    return nets


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt, by the names of `build`."""
    return load_nets(path, "vae", build, device)


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


def gaussian_log_likelihood(x, mean, sigma):
    """log p(x|z) in nats (...), a density, of pixels x (..., C, H, W) under N(mean, sigma^2)."""
    squared = ((x - mean) / sigma).square().flatten(-3).sum(-1)
    return -0.5 * squared - x[0].numel() * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


def log_mean_exp(x, dim=0):
    """log of the mean of exp(x) along `dim`, without overflow."""
    return x.logsumexp(dim) - math.log(x.shape[dim])


def likelihood(args):
    """log p(x|z) as a function of x (B, C, H, W) and logits (K, B, C, H, W): (K, B) nats."""
    if args.likelihood == "bernoulli":
        return bernoulli_log_likelihood
    return lambda x, logits: gaussian_log_likelihood(x, logits.sigmoid(), args.sigma)


def vae_loss(enc, dec, x, noise, log_likelihood, beta=1.0, iwae=None):
    """(loss, -log p(x|z), KL), means over the batch in nats an image: the negative bound, or that
    of Burda et al. with `iwae`. x (B, C, H, W), noise (K, B, Z) from N(0, I), K samples of z."""
    mu, logvar = (part.to(x.dtype) for part in enc(x))      # of --amp's bfloat16
    z = mu + (0.5 * logvar).exp() * noise                   # (K, B, Z)
    log_p = log_likelihood(x, dec(z).to(x.dtype))           # (K, B)
    recon, kl = -log_p.mean(), kl_divergence(mu, logvar).sum(1).mean()
    if iwae:                                                # log p(z) - log q(z|x): 2 pi cancels
        log_w = log_p + 0.5 * (noise.square() + logvar - z.square()).sum(-1)
        return torch.stack([-log_mean_exp(log_w).mean(), recon, kl])
    return torch.stack([recon + beta * kl, recon, kl])


def ae_loss(enc, dec, x):
    """Mean squared error a pixel."""
    return F.mse_loss(dec(enc(x)[0]).to(x.dtype).sigmoid(), x)


def losses(models, x, rng, args, of_vae=vae_loss, of_ae=ae_loss):
    """What is logged of a batch x (B, C, H, W): vae_loss's three terms, or each model's ae_loss."""
    if args.model != "vae":
        return torch.stack([of_ae(enc, dec, x) for enc, dec in models])
    noise = torch.randn(args.iwae or 1, len(x), args.z_dim, generator=rng, device=x.device)
    return of_vae(*models[0], x, noise, likelihood(args), args.beta, args.iwae)


def couples(nets):
    """[(enc, dec)] of the model, and of the ae beside nae."""
    return [(nets[p + "enc"], nets[p + "dec"]) for p in ("", "ae_") if p + "enc" in nets]


# %% Training


def train(run, data, seen):
    """Trains; best.pt is the epoch with the lowest validation loss. seen: the splits as everything
    but training sees them, binarised once where --binarize is on."""
    args, device, split = run.args, run.device, data.train
    nets = {name: net.to(device) for name, net in build(run.shape, vars(args)).items()}
    models, vae = couples(nets), args.model == "vae"
    for _, dec in models:
        dec.bias.data = split.mean_image().clamp(0.001, 0.999).logit()
    opt = adam(*nets.values(), lr=args.lr)
    rng = torch.Generator(device).manual_seed(args.seed)
    cast, *fast = accelerate(args, device, vae_loss, ae_loss)
    names = ("loss", "recon", "kl") if vae else ("mse", "ae_mse")[:len(models)]
    ten = seen["test"].images(pick(data.test.y, 10, args.seed))
    batch = min(args.batch_size, len(split))
    steps = len(split) // batch
    done = run.resume(nets, opt=opt, rng=rng)
    if not done:
        settle(nets, split)
        run.kept["before training"] = rebuild(*models[0], ten)
    for epoch in range(done, args.epochs):
        for net in nets.values():
            net.train()
        terms = []
        for i, index in enumerate(batches(split, batch, rng)):
            decay([opt], args.lr, (epoch + i / steps) / args.epochs)
            x = binarize(split.images(index), rng) if args.binarize else split.images(index)
            with cast():
                term = losses(models, x, rng, args, *fast)
            descend([term[0] if vae else term.sum()], [opt])
            terms.append(term.detach())
            run.progress(epoch, i + 1, steps)
        settle(nets, split)
        if epoch == 0:
            run.kept["after epoch 1"] = rebuild(*models[0], ten)
        run.kept["after the last"] = rebuild(*models[0], ten)
        means = run.means(names, terms)
        for key in ("val", "test"):                         # test is drawn and chooses nothing
            means |= zip((key, "ae_" + key)[:len(models)], held_out(models, seen[key], args))
        run.log(steps * batch, **means)
        run.save(means["val"], nets, opt=opt, rng=rng)


def settle(nets, split):
    """Eval mode; nae's norm gets the exact statistics over train, which running ones lag behind."""
    for net in nets.values():
        net.eval()
    norm, net = nets["enc"].norm, nets["enc"].net
    if isinstance(norm, nn.BatchNorm1d):
        code, = encode(lambda x: [net(x)], split)
        norm.running_mean.copy_(code.mean(0))
        norm.running_var.copy_(code.var(0, correction=0))


def held_out(models, split, args):
    """losses over a split, with seeded z."""
    return over(split, lambda x, rng: losses(models, x, rng, args), args.seed).tolist()


@torch.no_grad()
def rebuild(enc, dec, x):
    """Images (N, C, H, W) in [0, 1] from the codes of x, the means of q(z|x) for the vae."""
    return dec(enc(x)[0]).sigmoid()


# %% Evaluation


def off_support(prior, train, test):
    """The share of draws `prior` (N, Z) that lie farther from the nearest train code than 99 % of
    the test codes do: there the decoder has never been."""
    from sklearn.neighbors import NearestNeighbors
    nearest = NearestNeighbors(n_neighbors=1).fit(train.cpu().numpy())
    far, usual = (torch.from_numpy(nearest.kneighbors(code.cpu().numpy())[0][:, 0])
                  for code in (prior, test))
    return (far > usual.quantile(0.99)).float().mean().item()


def draw_plane(run, name, decode, train, test, data):
    """The figures of 2-D codes, train and test (N, 2): the plane, and decode(z) all over it."""
    run.figure(f"plane_{name}", scatter({f"{name}, test codes": (
        test.cpu().numpy(), data.test.y, data.classes)}, run.args.seed, ticks=True),
        "Where the test images lie. N(0, I), from which samples are drawn, fills a disc of radius "
        "2 to 3 around the origin.")
    across, up = train.quantile(torch.linspace(0.02, 0.98, 20, device=train.device), 0).T
    images = decode(torch.cartesian_prod(up.flip(0), across).flip(1)).unflatten(0, (20, 20))
    run.figure(f"decoded_{name}", grid(images, xlabel="first neuron", ylabel="second neuron"),
               "The same plane decoded, at 20 x 20 percentiles of the train codes, from 2 to 98.")


def tell_vae(run, classes, r):
    """On the likelihood, the samples and the codes of vae.py; classes: the set's names."""
    args, vae = run.args, run.args.model == "vae"
    if vae:
        density = (f"a Gaussian density, sigma {args.sigma:g}" if args.likelihood == "gaussian" else
                   "Bernoulli, with pixels binarised at random" if args.binarize else
                   "Bernoulli on grey pixels: bounds on the likelihood of images binarised at "
                   "random, not of the grey ones")
        header = "", "nats an image", "standard error", "bits/dim"
        run.table("Likelihood of test images", header, [
            ("negative bound", r["test_elbo"], "", ""), ("-log p(x|z)", r["test_recon"], "", ""),
            ("KL", r["test_kl"], "", ""),
            *((f"NLL, {q['k']:,} samples of z, {q['n']:,} images", q["nats"], q["stderr"],
               q["bits_per_dim"]) for q in (r["nll"], r["nll_all"]))],
            f"The likelihood is {density}.")
        run.say(f"The likelihood is {density}. The bound is {{test_elbo:.2f}} nats an image, of "
                "which {test_kl:.2f} are the KL; {nll.k} samples give an NLL of {nll:nats}. "
                f"{{active_units}} of {args.z_dim:,} latents are active (variance of the mean "
                "above 0.01).", r)
    sides = {args.model: r} | ({"ae": r["beside"]} if r["beside"] else {})
    run.side_by_side("Samples and reconstructions of test images", sides, {
        "squared error a pixel": "test_mse", "Frechet distance of samples": "fid.value",
        "Frechet distance of reconstructions": "fid_recon.value",
        "of as many train images": "fid.floor"},
        "".join(filled(r, "Features: {fid.features}; {fid.n} samples.")))
    for name, side in sides.items():
        means, deviations = (f"{min(side[key]):.2f} to {max(side[key]):.2f}"
                             for key in ("code_mean", "code_std"))
        run.say(f"{name}: the codes have means of {means} and deviations of {deviations}; of the "
                "draws from N(0, I) {off_support:%} fall where no code lies (1 % of test codes "
                "do).", side)
    if r["beside"] and r["fid"]:
        nearer = r["fid"]["value"] < r["beside"]["fid"]["value"]
        run.say(f"The samples of nae are {'nearer to' if nearer else 'farther from'} real images "
                "than those of ae (Frechet distance {fid.value:.0f} and {beside.fid.value:.0f}). "
                "Both are drawn from N(0, I), and only a code held to mean 0 and variance 1 lies "
                "there; two moments do not make it a Gaussian.", r)
    if r["fid"]:
        ratio = r["fid"]["value"] / r["fid_recon"]["value"]
        run.say(f"Samples are {ratio:.1f} times as far from real images as reconstructions, whose "
                "squared error is {test_mse:.4f} a pixel: "
                + ("the same quality." if ratio < 1.25 else "another quality. The decoder draws "
                   "what the encoder gives it better than what N(0, I) does."), r)
    for kernel in ("linear", "rbf")[1 - vae:]:
        s = r[f"svm_{kernel}"]
        run.table(f"SVM on the codes, {kernel} kernel", ("class", "precision", "recall", "F1"), [
            (name, *map(percent, scores)) for name, *scores in
            zip(classes, s["precision"], s["recall"], s["f1"])],
            f"Accuracy on test images: {percent(s['accuracy'])}."
            + " The codes are the means of q(z|x) of grey pixels." * vae)


@torch.no_grad()
def evaluate(run, data, seen, nets):
    """The figures and measurements of each model, from best.pt; fills the report."""
    args, seed, test, vae = run.args, run.args.seed, data.test, run.args.model == "vae"
    points, n, shows = (200, 300, 5000) if args.smoke else (2000, 10_000, 100_000)
    if args.ae:
        nets |= {"ae_" + name: net for name, net in load(args.ae, run.device).items()}
    rng, ten = make_rng(seed, "samples", run.device), pick(test.y, 10, seed)
    noise = torch.randn(n, args.z_dim, generator=rng, device=run.device)
    rows, drawn, found = {"original": test.images(ten)}, {}, {}
    for name, (enc, dec) in [*zip((args.model, "ae"), couples(nets))][::-1]:    # its own last
        with run.doing(f"codes, samples and FID of {name}"):
            codes = {key: encode(enc, split) for key, split in seen.items()}
            z = {key: sample(tuple(code) if vae else code[0], rng) for key, code in codes.items()}
            rebuilt, drawn[name] = (decode(dec, code).sigmoid() for code in
                                    (codes["test"][0], noise))
            rows[name] = rebuilt[ten]
            found[name] = {
                "test_mse": (rebuilt - test.images(slice(None))).square().mean().item(),
                "code_mean": z["train"].mean(0).tolist(), "code_std": z["train"].std(0).tolist(),
                "off_support": off_support(noise, z["train"], z["test"]),
                **{key: fid(args.fid, data, args.data_dir, images, seed, shows) for key, images in
                   (("fid", drawn[name]), ("fid_recon", rebuilt))}}
        if args.z_dim == 2:
            draw_plane(run, name, lambda code: dec(code).sigmoid(), z["train"], z["test"], data)
    results = found[args.model] | {"beside": found.get("ae") if args.model == "nae" else None}

    with run.doing("figures"):
        run.figure("curves", columns(run.history, {
            "negative bound, nats": ["loss", "val", "test"], "-log p(x|z), nats": ["recon"],
            "KL, nats": ["kl"]} if vae else {
            f"{name}, squared error a pixel": [prefix + key for key in ("mse", "val", "test")]
            for name, prefix in ((args.model, ""), ("ae", "ae_"))
            if prefix + "mse" in run.history[0]}),
            "Train, validation and test should fall together; validation chose the epoch.")
        run.figure("reconstructions", grid(torch.stack([*rows.values()]), list(rows)),
                   "Ten test images above what their codes give back.")
        kept = {"original": rows["original"]} | {name: images.to(run.device)
                                                 for name, images in run.kept.items()}
        run.figure("learning", grid(torch.stack([*kept.values()]), list(kept)),
                   "The same images as training goes on.")
        run.figure("samples", grid(torch.stack([x[:10] for x in drawn.values()]), list(drawn)),
                   "Ten draws of z from N(0, I), decoded; the same z in every row.")
        run.figure("samples_100", grid(drawn[args.model][:100].unflatten(0, (-1, 10))),
                   "A hundred draws: how many are likely images, and is every class there?")
    with run.doing("t-SNE"):
        shown = ({"mean of z": codes["test"][0]} if vae else {}) | {"z": z["test"]}
        placed = {name: tsne_points(code, seed, points) for name, code in shown.items()}
        run.figure("tsne", scatter({name: (xy, test.y[i], data.classes)
                                    for name, (xy, i) in placed.items()}, seed),
                   "Classes apart: the code tells them apart, though training never saw one.")
    with run.doing("SVM"):
        grey = [(encode(enc, split)[0], split.y) for split in (data.train, test)]
        for kernel in ("linear", "rbf") if vae else ("rbf",):       # 2 neurons mix the classes
            results[f"svm_{kernel}"] = svm_report(*grey, kernel, seed,
                                                  20_000 if args.z_dim == 2 else None)
        run.figure("confusion", confusion(results["svm_rbf"]["confusion"], data.classes),
                   "What an SVM with an RBF kernel takes the test codes for.")
    if vae:
        with run.doing("likelihood"):
            bound = argparse.Namespace(**{**vars(args), "beta": 1.0, "iwae": None})
            results |= zip(("test_elbo", "test_recon", "test_kl"),
                           held_out([(enc, dec)], seen["test"], bound))
            mu, logvar = codes["test"]
            results["active_units"] = int((mu.var(0) > 0.01).sum())
            for key, index, k in (("nll", pick(test.y, args.nll_n, seed), args.nll_k),
                                  ("nll_all", slice(None), min(100, args.nll_k))):
                results[key] = nll(seen["test"].images(index), mu[index], logvar[index],
                                   lambda x, z: likelihood(args)(x, dec(z)), k, seed=seed)
    tell_vae(run, data.classes, results)
    run.finish(f"{TITLES[args.model]} on {args.data}", results)


# %% Command line


def main(argv=None):
    parser, groups = flags("vae", __doc__,
                           data="mnist", epochs=50, batch_size=128, lr=1e-3, fid=True,
                           nll=(5000, 1000))
    add = groups["model"].add_argument
    add("--model", choices=TITLES, default="vae", help="(default: vae)")
    add("--arch", choices=("fc", "conv"), default="fc", help="(default: fc)")
    add("--hidden", type=number(int, low=1, high=65536), nargs="+", metavar="N", help="widths of "
        "Enc's hidden layers, Dec's are the same reversed (default: 400; conv: 512; ae, nae: 512 "
        "128 32)")
    add("--activation", choices=("relu", "tanh"), default="relu", help="(default: relu)")
    add("--z-dim", type=number(int, low=1, high=4096),
        help="numbers in z (default: 20; conv: 32; ae, nae: 2)")
    add("--ae", metavar="PATH", help="nae: best.pt of a --model ae run, in place of training one")
    add = groups["objective"].add_argument
    add("--beta", type=number(float, low=0), default=1.0, help="weight of the KL (default: 1)")
    add("--likelihood", choices=("bernoulli", "gaussian"),
        help="of pixels (default: bernoulli; colour sets and photographs: gaussian)")
    add("--sigma", type=number(float, above=0), default=0.1,
        help="the Gaussian's deviation, on pixels in [0, 1] (default: 0.1)")
    add("--binarize", action=argparse.BooleanOptionalAction,
        help="draw pixels as 0 or 1 (default: mnist with bernoulli)")
    add("--iwae", type=number(int, low=1, high=10_000), metavar="K",
        help="train on the bound of K samples")
    args = parse(parser, argv, lambda args: presets(vars(args)), SMOKE)
    if args.iwae and args.beta != 1:
        parser.error("--iwae is a bound by itself: leave --beta at 1")
    if args.ae and args.model != "nae":
        parser.error("--ae is the autoencoder beside --model nae")
    if args.weights:
        load(args.weights)                                  # before a folder is made
    run = Run("vae", args)
    data = load_data(args.data, args.data_dir, args.image_size, args.limit, args.seed)
    if args.likelihood is None:
        gaussian = len(data.train.x[0]) == 3 or args.data.partition(":")[0] in (
            *PHOTOS, "multipie")
        args.likelihood = "gaussian" if gaussian else "bernoulli"
    if args.binarize is None:
        args.binarize = (args.model, args.data, args.likelihood) == ("vae", "mnist", "bernoulli")
    build(data.train.x.shape[1:], vars(args))               # refuses a size before a folder is made
    if args.ae:
        given = checkpoint(args.ae, "vae")
        if [given["args"]["model"], given["args"]["z_dim"], *given["shape"]] != [
                "ae", args.z_dim, *data.train.x.shape[1:]]:
            raise DataError(f"{args.ae} is no --model ae run of the same images and --z-dim.")
    data = run.begin(data)
    seen = {name: binarized(split, args.seed) if args.binarize else split
            for name, split in data.splits().items()}
    if not args.weights:
        train(run, data, seen)
    evaluate(run, data, seen, run.best_nets(load))


if __name__ == "__main__":
    run_command(main)
