"""DANN: Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky,
Domain-Adversarial Training of Neural Networks, JMLR 17, 2016, arxiv.org/abs/1505.07818

In go images with a class from a source domain and images without one from a target domain; out
comes a classifier for the target. Target labels score it, and train the upper bound "train on
target"; nothing else sees them, and nothing is chosen by them.

  E = mean of L_y over the source - lambda (mean of L_d over the source + over the target)   (10)
  L_y = -log G_y(G_f(x))_y          L_d = d log 1 / G_d(G_f(x)) + (1 - d) log 1 / (1 - G_d(G_f(x)))
The features G_f and the label head G_y descend E, the domain head G_d ascends it (11 to 15).

  algorithm_1         --task moons, Fig. 2: line by line, by hand; lambda multiplies G_d's step too
  objective, reverse  --task images, Table 2: backpropagation through the reversal (16, 17), where
                      alone lambda_p stands; --domain-weight 2 is the sum in (10), 1 its half, the
                      mean over all 128 images
  step_size           mu_p = mu_0 / (1 + 10 p)^0.75, mu_0 = 0.01, p the share of training done
                      (5.2.2)
  lambda_p            2 / (1 + exp(-10 p)) - 1 (5.2.2); with --ramp 0.25 p runs through in the first
                      quarter, as it does in the first fifth of the authors' released Office run
  proxy_a_distance    2 (1 - 2 epsilon), epsilon the error of telling domains apart (3)

  python dann.py --seeds 10                     # moons, 20 s: NN 82 %, DANN 93 % of the target
  python dann.py --seeds 10 --decay linear      # the same, settled: 94 %
  python dann.py --task images --model dann --ramp 0.25       # MNIST to MNIST-M, 27 minutes: 82 %
  python dann.py --task images --arch bn --domain-weight 2 --epochs 12      # 24 minutes: 90 %

Departures. Moons: none; the constants, the 150 points in all (the text: 150 a class) and the random
numbers are those of the authors' script, and the seeds train at once. Images: where the paper is
silent, PyTorch's initialisation, 40 epochs of the source, 32 x 32 with MNIST padded, each domain's
own mean subtracted (--mean shared: one), the mean of both domain losses, and Fig. 4b padded by 2,
without which its third convolution does not fit. The network is scored, not the paper's SVM on top
of it; Fig. 4b has no l2 restriction, and dropout 0.5 in the heads alone. Not the paper's: "DANN,
averaged weights", a mean over the last tenth of training, which takes out the swing from step to
step; --clip; and --arch bn, batch norm behind every layer but the last and dropout of whole maps,
as in the programs that report 84 to 91 %.
"""
import copy
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, Dataset, Split, batches, load as load_data, moons, pick
from eval import (SideBySideRun as Run, accelerate, checkpoint, classes_of, columns, filled, flags,
                  grid, number, parse, percent, restore, run_command, scatter, spread,
                  tsne_points)

MODELS = {"source_only": "source only", "dann": "DANN", "target_only": "train on target",
          "average": "DANN, averaged weights"}
SMOKE = dict(source="digits", target="digitsm", limit=400, epochs=3)


def presets(args):
    """What a flag is where it is not typed, by --task, --source and --target."""
    sets = args["source"], args["target"]
    return dict(data="moons") if args["task"] == "moons" else dict(
        data="-".join(Path(name).name for name in sets), epochs=40, lr=0.01,
        decay="none" if sets[0] == "svhn" else "paper", image_size=32,
        arch="svhn" if "svhn" in sets else "mnist")


# %% Networks


class Shallow(nn.Module):
    """Section 4.1: x (N, 2) -> G_y (2, N), G_d (1, N), 1 for the source, and G_f (hidden, N).

    Vectors are columns, as on the page; the seeds, where given, are the first dimension of all."""

    def __init__(self, hidden, *seeds):
        super().__init__()
        for name, shape in dict(W=(hidden, 2), b=(hidden, 1), V=(2, hidden), c=(2, 1),
                                u=(hidden, 1), d=(1, 1)).items():
            self.register_buffer(name, torch.zeros(*seeds, *shape, dtype=torch.float64))

    def forward(self, x):
        f = (self.b + self.W @ x.double().T).sigmoid()
        return (self.c + self.V @ f).softmax(-2), (self.d + self.u.mT @ f).sigmoid(), f


class Net(nn.Module):
    """Fig. 4a (arch mnist; bn: with batch norm and dropout) or 4b (svhn), behind the subtraction of
    a mean: x (B, 1 or 3, H, W) in [0, 1] of domain 0, the source, or 1 -> logits (B, K)."""

    def __init__(self, arch, size, classes):
        super().__init__()
        maps, heads, critics, padding, drop = (32, 48), (100, 100), (100,), 0, 0
        pools, side = [nn.MaxPool2d(2)] * 2, ((size - 4) // 2 - 4) // 2         # 32, 28, 14, 10, 5
        if arch == "svhn":
            maps, heads, critics, padding, drop = (64, 64, 128), (3072, 2048), (1024, 1024), 2, 0.5
            pools = nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2), nn.Identity()
            side = ((size - 1) // 2 - 1) // 2                                   # 32, 15, 7, 7
        norms = (nn.BatchNorm1d, nn.BatchNorm2d) if arch == "bn" else (nn.Identity, nn.Identity)

        def head(*widths):
            layers = [part for before, after in zip(widths, widths[1:]) for part in (
                nn.Linear(before, after), norms[0](after), nn.ReLU(True), nn.Dropout(drop))]
            return nn.Sequential(*layers[:-3])              # logits: nothing behind the last

        layers, flat = [], maps[-1] * side**2               # 48 * 5 * 5 = 1,200 of 32 pixels
        for before, after, pool in zip((3, *maps), maps, pools):      # ReLU, pool: the same, slower
            layers += [nn.Conv2d(before, after, 5, padding=padding), norms[1](after), pool,
                       nn.ReLU(True)]
        if arch == "bn":
            layers.insert(-2, nn.Dropout2d())               # of whole maps, before the last pool
        self.features = nn.Sequential(*layers, nn.Flatten())          # G_f
        self.label, self.domain = head(flat, *heads, classes), head(flat, *critics, 1)  # G_y, G_d
        self.register_buffer("mean", torch.zeros(2, 3, 1, 1))         # of each domain

    def code(self, x, domain):
        return self.features(x - self.mean[domain])         # grey becomes colour here

    def forward(self, x, domain):
        return self.label(self.code(x, domain))


def named(args):
    """{name in MODELS: what checkpoints call that network, a name a seed} of those in --model."""
    chosen = args.get("model", MODELS)                      # older checkpoints hold all
    return {name: [name + f"_{k}" * (k > 0) for k in range(args["seeds"])] for name in MODELS
            if name in chosen or name == "average" and "dann" in chosen}


def load(path, device="cpu", every=False):
    """The trained networks of a checkpoint such as RUN/best.pt: Shallow "nn" and "dann", or Net
    "source_only", "dann", "target_only" and "average", those of --model, of the first seed or of
    every one. Raises DataError where it is no checkpoint of this script."""
    content = checkpoint(path, "dann")
    args, saved = content["args"], content["nets"]
    try:
        if args["task"] == "moons":
            device = "cpu"                                  # float64, which mps has not
            nets = {name: Shallow(args["hidden"], *[args["seeds"]] * every)
                    for name in ("nn", "dann")}
            saved = {k: {name: v if every else v[0] for name, v in s.items()}
                     for k, s in saved.items()}
        else:
            nets = {key: Net(args["arch"], content["shape"][1], content["n_classes"])
                    for keys in named(args).values() for key in (keys if every else keys[:1])}
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise DataError(f"{path} is damaged: its weights do not fit its arguments.") from None
    return {k: restore(net, saved.get(k), path).to(device).eval() for k, net in nets.items()}


# %% Objective


def algorithm_1(net, source, target, draws, lam, mu, adversarial=True):
    """Lines 6 to 40, one pass over the source; the numbers are the page's. Changes net in place.

    draws (n, seeds): the j of line 24. adversarial=False is the standard NN of the authors' code:
    without lines 21, 22, 30 and 31 (the text leaves out 22 and 31 alone). G_d is 1 for the source
    here, and 1 for the target in L_d above."""
    W, b, V, c, u, d = (getattr(net, name).numpy() for name in "WbVcud")
    x_source, x_target = (part.x.double().numpy()[..., None] for part in (source, target))
    e = np.eye(2)[..., None]

    def sigm(a):
        return 1 / (1 + np.exp(-a))

    def T(a):
        return a.swapaxes(-1, -2)

    for x, y, j in zip(x_source, source.y.tolist(), draws):           # x (2, 1)
        f = sigm(b + W @ x)                                 # 8, G_f(x_i)
        o = np.exp(c + V @ f)
        o /= o.sum(-2, keepdims=True)                       # 9, G_y(G_f(x_i)), a softmax
        dc = -(e[y] - o)                                    # 11
        dV = dc @ T(f)                                      # 12
        db = (T(V) @ dc) * f * (1 - f)                      # 13
        dW = db @ T(x)                                      # 14
        g = sigm(d + T(u) @ f)                              # 17, G_d(G_f(x_i))
        dd = lam * (1 - g)                                  # 18
        du = lam * (1 - g) * f                              # 19
        if adversarial:
            tmp = lam * (1 - g) * u * f * (1 - f)           # 20
            db = db + tmp                                   # 21
            dW = dW + tmp @ T(x)                            # 22
        x = x_target[j]                                     # 24, x_j (seeds, 2, 1)
        f = sigm(b + W @ x)                                 # 25
        g = sigm(d + T(u) @ f)                              # 26
        dd = dd - lam * g                                   # 27
        du = du - lam * g * f                               # 28
        if adversarial:
            tmp = -lam * g * u * f * (1 - f)                # 29
            db = db + tmp                                   # 30
            dW = dW + tmp @ T(x)                            # 31
        W -= mu * dW                                        # 33 to 36: G_f and G_y go down
        V -= mu * dV
        b -= mu * db
        c -= mu * dc
        u += mu * du                                        # 38 and 39: G_d goes up
        d += mu * dd


def reverse(x, lam):
    """R(x) = x (16), dR/dx = -I (17), here times the lambda_p of section 5.2."""
    return x.detach() - lam * (x - x.detach())


def objective(net, x, y, x_target, lam):
    """L_y of the source, L_d of both domains (half the sum in (10)) and the domain accuracy, means.

    x (B, 1 or 3, H, W) and x_target (B', ..) in [0, 1], y (B,); losses in nats. All minimise L_y +
    --domain-weight L_d: `reverse` turns G_f's part of the gradient round."""
    code, code_target = net.code(x, 0), net.code(x_target, 1)         # apart, for batch norm
    label = F.cross_entropy(net.label(code).to(x.dtype), y)
    g, g_target = (net.domain(reverse(f, lam)).to(x.dtype) for f in (code, code_target))
    domain = (F.softplus(g).mean() + F.softplus(-g_target).mean()) / 2        # of logits; d = 0, 1
    return label, domain, (g < 0).float().mean() / 2 + (g_target > 0).float().mean() / 2


def step_size(mu, decay, p):
    """mu_p at p in [0, 1], the share of training done (section 5.2.2)."""
    return mu * {"none": 1, "linear": 1 - p, "paper": (1 + 10 * p) ** -0.75}[decay]


def lambda_p(p):
    """From 0 at p = 0 to nearly 1 (section 5.2.2)."""
    return 2 / (1 + math.exp(-10 * p)) - 1


# %% Training


@np.errstate(over="ignore", invalid="ignore")               # Run.check puts it into a sentence
def train_moons(run, source, target):
    """Trains NN and DANN, every seed at once; best.pt is the last epoch. run.kept: accuracies on
    the target after the last 100 epochs (seeds, 100), the latest first."""
    args, bound = run.args, math.sqrt(6 / (run.args.hidden + 2))
    net = Shallow(args.hidden, args.seeds)
    draws = np.empty((args.epochs, args.points, args.seeds), int)
    for k in range(args.seeds):                             # the order of the authors' code
        rng = np.random.RandomState(args.seed + k)
        for start in net.W[k], net.V[k]:                    # line 3
            start.copy_(torch.from_numpy(rng.uniform(-bound, bound, start.shape)))
        draws[..., k] = rng.randint(args.points, size=draws.shape[:2])          # line 24
    nets = {"nn": net, "dann": copy.deepcopy(net)}
    for epoch in range(run.resume(nets), args.epochs):
        mu, terms = step_size(args.lr, args.decay, epoch / args.epochs), {}
        for name, net in nets.items():
            algorithm_1(net, source, target, draws[epoch], args.lam, mu, name == "dann")
            found = scores(net, source, target)
            before = run.kept.get(name, found["target"][:, None][:, :0])
            run.kept[name] = torch.cat([found["target"][:, None], before[:, :99]], 1)
            terms |= {f"{name}_{key}": value.mean().item() for key, value in found.items()}
        run.log(args.points * args.seeds, **terms)
        run.save(-epoch, nets)


def scores(net, source, target):
    """Of each seed: the label loss, the label accuracies and the accuracy of the domain head."""
    (o, g, _), (o_target, g_target, _) = net(source.x), net(target.x)
    return {"loss": -o[..., source.y, torch.arange(len(source))].log().mean(-1),
            "source": (o.argmax(-2) == source.y).double().mean(-1),
            "target": (o_target.argmax(-2) == target.y).double().mean(-1),
            "domain": torch.cat([g > 0.5, g_target <= 0.5], -1).double().mean((-2, -1))}


def step(nets, opt, x, y, x_target, y_target, lam, weight, clip, autocast, objective=objective):
    """One step of each net {name: Net}, on its part of the batch; `clip` is for the DANN. Returns
    the names and values of their label losses, L_d and the domain accuracy, on the device."""
    terms = {}
    with autocast():
        if "source_only" in nets:
            terms["source_only_loss"] = F.cross_entropy(nets["source_only"](x, 0).to(x.dtype), y)
        if "dann" in nets:
            label, domain, right = objective(nets["dann"], x, y, x_target, lam)
            terms |= {"dann_loss": label, "domain": domain}
        if "target_only" in nets:
            logits = nets["target_only"](x_target, 1).to(x.dtype)
            terms["target_only_loss"] = F.cross_entropy(logits, y_target)
    opt.zero_grad()                                         # no weight belongs to two of the nets
    sum(weight * term if key == "domain" else term for key, term in terms.items()).backward()
    if "dann" in nets:
        terms["domain_acc"] = right
        if clip:
            nn.utils.clip_grad_norm_(nets["dann"].parameters(), clip)
    opt.step()
    return list(terms), torch.stack([*terms.values()]).detach()


def train_images(run, source, target):
    """Trains the networks of --model, of each seed, from the same weights, and averages the DANN's;
    best.pt is the last epoch."""
    args, device, half = run.args, run.device, min(run.args.batch_size // 2, len(source.train))
    means = torch.stack([part.train.mean_image().mean((1, 2)).expand(3)      # of the channels
                         for part in (source, target)])
    nets, opts, rngs, names = {}, {}, {}, named(vars(args))
    for k in range(args.seeds):
        torch.manual_seed(args.seed + k)
        net = Net(args.arch, args.image_size, run.n_classes)
        net.mean[:, :, 0, 0] = means if args.mean == "domain" else means.mean(0)
        if device.type != "mps":                            # whose batch norm goes wrong by it
            net.to(memory_format=torch.channels_last)       # a step takes a third less
        net.to(device)
        own = {name: copy.deepcopy(net) for name in names}
        nets |= {names[name][k]: net for name, net in own.items()}
        opts[f"opt_{k}"] = torch.optim.SGD(
            [p for name, net in own.items() if name != "average" for p in net.parameters()],
            args.lr, momentum=0.9, fused=True if device.type != "mps" else None)
        rngs[f"rng_{k}"] = torch.Generator(device).manual_seed(args.seed + k)
    fast, steps = accelerate(args, device, objective), len(source.train) // half
    some = pick(target.test.y, 2000, args.seed)             # watched, and chooses nothing
    watched = Split(target.test.x[some], target.test.y[some])
    for epoch in range(run.resume(nets, **opts, **rngs), args.epochs):
        terms = []
        for k, (opt, rng) in enumerate(zip(opts.values(), rngs.values())):
            own = {name: nets[keys[k]].train() for name, keys in names.items()}
            average = own.pop("average", None)
            pair = [[w for w in net.state_dict().values() if w.is_floating_point()]
                    for net in (average, own.get("dann")) if net]
            torch.manual_seed(args.seed + k + args.seeds * epoch)     # for dropout
            others = (t for _ in itertools.count() for t in batches(target.train, half, rng))
            for i, (s, t) in enumerate(zip(batches(source.train, half, rng), others)):
                p = (epoch + i / steps) / args.epochs
                lam = lambda_p(min(1, p / args.ramp))
                opt.param_groups[0]["lr"] = step_size(args.lr, args.decay, p)
                columns, values = step(own, opt, source.train.images(s), source.train.y[s],
                                       target.train.images(t), target.train.y[t],
                                       torch.full((), lam, device=device),        # for --compile
                                       args.domain_weight, args.clip, *fast)
                terms.append(values)
                if average:                                 # a mean over the last tenth
                    torch._foreach_lerp_(*pair, 1 / max(1, (p - 0.9) * args.epochs * steps))
                run.progress(epoch, k * steps + i + 1, args.seeds * steps)
        row = run.means(columns, terms) | ({"lambda": lam} if "dann" in names else {})
        for name, keys in names.items():
            row[f"{name}_target"] = sum(accuracy(nets[k], watched, 1) for k in keys) / args.seeds
        run.log(2 * half * steps * args.seeds, **row)
        run.save(-epoch, nets, **opts, **rngs)


@torch.no_grad()
def accuracy(net, split, domain):
    """The share of a split's images, of domain 0 or 1, that Net names rightly."""
    net.eval()
    return (classes_of(lambda x: net(x, domain), split.x) == split.y).float().mean().item()


# %% Evaluation


def over_seeds(found):
    """{key: mean, key_std: deviation, key_min: the worst} of {key: a list of one number a seed};
    deviation and worst are None for one seed."""
    return {**{key: float(np.mean(v)) for key, v in found.items()},
            **{f"{key}_std": float(np.std(v, ddof=1)) if len(v) > 1 else None
               for key, v in found.items()},
            **{f"{key}_min": min(v) if len(v) > 1 else None for key, v in found.items()}}


def proxy_a_distance(source, target, seed=0):
    """2 (1 - 2 error) of telling two domains apart by their codes (N, d) and (N', d): linear SVMs
    over a range of C learn on one half, and the smallest error on the other half counts (Ganin et
    al. 2016, section 5.1.5). 2: always told apart, 0: never.

    As in the authors' code that half also chooses C, and an error above 1/2 counts as its
    complement. Here dimensions are standardised, and C ends at 1, not 1e4, where the SVM takes
    minutes and changes nothing."""
    from sklearn.svm import LinearSVC
    x = torch.cat([source, target]).cpu()
    x = ((x - x.mean(0)) / (x.std(0) + 1e-6)).numpy()
    d, rng, n = np.arange(len(x)) < len(source), np.random.RandomState(seed), len(source)
    learn, test = map(np.concatenate, zip(*(np.array_split(start + rng.permutation(size), 2)
                                            for start, size in ((0, n), (n, len(target))))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # the largest C do not converge
        errors = [1 - LinearSVC(C=c, dual=True, max_iter=100, random_state=seed)
                  .fit(x[learn], d[learn]).score(x[test], d[test]) for c in np.logspace(-5, 0, 6)]
    return 2 * (1 - 2 * float(min(min(error, 1 - error) for error in errors)))


def draw_domains(run, codes, points, seed):
    """The figure tsne_domains: {title: (codes (N, d) of one domain, (N', d) of the other)}, a panel
    each, both domains embedded together, `points` of either."""
    panels = {}
    for title, (source, target) in codes.items():
        xy, index = tsne_points(torch.cat([source[:points], target[:points]]), seed, None)
        domain = (index >= len(source[:points])).long()
        panels[title] = xy, domain, ["source", "target"]
    run.figure("tsne_domains", scatter(panels), "Features of test images of both domains, embedded "
               "together: adaptation should bring them to the same places.")


def draw_moons(run, nets, source, target):
    """The figures moons, the points by domain and class, and panels, Fig. 2 of Ganin et al. 2016: a
    row of four panels for each of {name: net}, + and - the source's classes, dots the target, the
    letters at the points nearest to the paper's.

    net(x (N, 2)) -> class probabilities (2, N), the probability of the source (1, N), hidden
    neurons (D, N); source, target: Splits."""
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    points, kinds = torch.cat([source.x, target.x]), torch.cat([source.y, target.y + 2])
    words = [f"{domain}, {moon}" for domain in ("source", "target") for moon in ("upper", "lower")]
    run.figure("moons", scatter({"twin moons": (points.numpy(), kinds, words)}, ticks=True),
               "The target is a draw of its own, turned by 35 degrees.")
    near = torch.tensor([(-2.4, -1.6), (-1.2, 0.4), (0.8, -0.5), (2.5, 1.5)], dtype=points.dtype)
    letters = dict(zip("ABCD", torch.cdist(near, points).argmin(1).tolist()))
    low, high = source.x.min(0).values.tolist(), source.x.max(0).values.tolist()
    across, up = (np.arange(k * a, k * b, 0.02) for k, a, b in zip((1.1, 1.5), low, high))
    mesh = np.meshgrid(across, up)
    mesh_points = torch.from_numpy(np.stack(mesh, -1).reshape(-1, 2))
    titles = ("Label classification", "Representation PCA", "Domain classification",
              "Hidden neurons")
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    for (name, net), row in zip(nets.items(), figure.subplots(len(nets), 4, squeeze=False)):
        o, g, hidden = (part.reshape(-1, len(up), len(across)) for part in net(mesh_points))
        pca = PCA(2).fit_transform(net(points)[2].T)        # its signs are arbitrary:
        pca *= np.sign(pca[letters["B"]] - pca[letters["C"]]) * [-1, 1]       # B above left of C
        for axis, title, xy in zip(row, titles, (points.numpy(), pca, points.numpy(), points)):
            axis.set_title(title)
            axis.tick_params(labelsize=8)
            for k, marker, colour in (0, "+", "#dd0000"), (1, "_", "#007700"):
                axis.scatter(*xy[:len(source)][source.y == k].T, 40, colour, marker=marker)
            axis.scatter(*xy[len(source):].T, 9, "black")
            if axis in row[:2]:
                axis.margins(0.15)
                for letter, i in letters.items():
                    axis.annotate(letter, xy[i], (-20 if letter in "AC" else 20, 22),
                                  textcoords="offset points", color="blue", fontsize=15,
                                  ha="center", va="center",
                                  arrowprops=dict(arrowstyle="fancy", color="blue", shrinkA=6))
        for axis, share, colours in ((row[0], o[0], ("#66bb66", "#ff8888")),
                                     (row[2], g[0], ("#999999", "#8888ff"))):
            axis.contourf(*mesh, share, [0, 0.5, 1], colors=colours, alpha=0.6, zorder=0)
            axis.contour(*mesh, share, [0.5], colors="black", linewidths=3)
        for k, neuron in enumerate(hidden):
            row[3].contour(*mesh, neuron, [0.5], colors=f"C{k % 10}")
        row[0].set_ylabel(name.upper(), fontsize=15)
    run.figure("panels", figure, "Fig. 2. The NN should cut A and D wrongly, put A beside B and C "
               "beside D, and find the turn with its domain regressor (blue: the source, black: "
               "the target) and its hidden neurons; the DANN should do none of this.")


# Accuracies on the target: of NN and DANN on so many moons of each domain, the authors' script,
# mean of five seeds; of source only, DANN and train on target, Ganin et al. 2016, Table 2.
SCRIPT = {150: (0.823, 0.945), 300: (0.779, 0.882)}
TABLE_2 = {("mnist", "mnistm"): (0.5225, 0.7666, 0.9596),
           ("svhn", "mnist"): (0.5490, 0.7385, 0.9942)}


def tell_moons(run, r):
    """On the twin moons of dann.py."""
    script = dict(zip(("nn", "dann"), SCRIPT.get(r["points"], ())))
    run.table("Accuracies", ("", "source", "target", "target, mean of the last 100 epochs",
                             "domain", "target, worst seed", "target, authors' script"), [
        (name.upper(), *(spread(r[name], key) for key in
                         ("source", "target", "target_last100", "domain")),
         percent(r[name]["target_min"]), percent(script.get(name))) for name in ("nn", "dann")],
              f"After the last epoch, {r['seeds']} seed"
              + "s, ± their deviation" * (r["seeds"] > 1)
              + ". Of the authors' script five seeds, run by us.")
    run.say("On the turned moons the DANN is right at {dann.target:±}, the NN at {nn.target:±}; "
            "their domain regressors at {dann.domain:%} and {nn.domain:%} (chance 50 %).", r)


def tell_dann(run, names, found, r):
    """On the images of dann.py. names: {network: words}; found: {network: {"source", "target": a
    list of one accuracy a seed}}."""
    args, chance = run.args, math.log(2)
    paper = TABLE_2.get((args.source, args.target), ()) if args.arch != "bn" else ()
    theirs = dict(zip(names, paper))
    gap = (paper[1] - paper[0]) / (paper[2] - paper[0]) if paper else None
    run.table("Table 2, accuracies", ("", "target, paper", "target", "worst seed", "source"), [
        *((names[name], percent(theirs.get(name)), spread(r[name], "target"),
           percent(r[name]["target_min"]), spread(r[name], "source")) for name in found),
        ("gap covered", percent(gap), percent(r["gap_covered"]), "", "")],
        f"Last epoch, {args.seeds} seed{'s, ± their deviation' * (args.seeds > 1)}. The gap "
        "covered is (DANN - source only) / (train on target - source only), from these accuracies"
        + ("; the paper prints 52.9 %, which does not follow from its own."
           if paper and args.target == "mnistm" else "."))
    run.say("Rightly named of the target's test images: " + "; ".join(
        f"{names[name]} {spread(r[name], 'target')}" for name in found) + "."
        + "".join(filled(r, " Adaptation covers {gap_covered:%} of the gap.")))
    if not r["dann"]:
        return
    loss = run.history[-1]["domain"]
    run.say("The domain heads are right at {domain_acc:%} of test images (chance 50 %), their loss "
            f"in the last epoch of training is {loss:.3f} (chance {chance:.3f}). The proxy "
            "A-distance (2: domains always told apart) of the first seed's features is "
            "{pad_dann:.2f}"
            + (", without adaptation {pad_source_only:.2f}." if r["source_only"] else "."), r)
    dead = r["dead_features"]["dann"]
    if max(dead) > 0.1:
        run.say(f"Of its features {percent(dead[0])} are 0 for every image of the source, "
                f"{percent(dead[1])} for every one of the target: ReLUs that are switched off, and "
                "learn no more.")
    if loss > 2 * chance:
        run.say("That loss is far above chance: the features run away from the domain head instead "
                "of mixing the domains. Lower --lr or --domain-weight.")
    if r["domain_acc"] > 0.9:
        run.say("The domains are still told apart: adaptation needs more --epochs, or more "
                "--domain-weight.")
    for k, dann in enumerate(found["dann"]["source"]):
        plain = r["source_only"] and found["source_only"]["source"][k]
        if dann < (0.9 * plain if plain else 0.5):
            beside = f", {percent(plain)} without adaptation" if plain else ""
            run.say(f"Seed {args.seed + k} collapsed, or stopped early: its DANN names only "
                    f"{percent(dann)} of the source{beside}. Lower --lr or --domain-weight, or "
                    "raise --epochs.")


@torch.no_grad()
def evaluate_moons(run, source, target, nets):
    """Fig. 2 of the first seed, and the accuracies of every one."""
    args, r = run.args, {"seeds": run.args.seeds, "points": run.args.points}
    with run.doing("figures"):
        draw_moons(run, load(run.best), source, target)
        run.figure("curves", columns(run.history[::len(run.history) // -50][::-1], {
            key: [f"{name}_{key}" for name in nets] for key in ("source", "target", "domain")},
            chance={"domain": 0.5}), "Accuracies, and grey what chance gives. At a constant step "
            "size the DANN's on the target swings by some points from epoch to epoch.")
    for name, net in nets.items():
        found = {**scores(net, source, target), "target_last100": run.kept[name].mean(1)}
        r[name] = over_seeds({key: found[key].tolist() for key in
                              ("source", "target", "target_last100", "domain")})
    tell_moons(run, r)
    run.finish(f"Domain-adversarial training on twin moons, {args.points} points", r)


@torch.no_grad()
def evaluate_images(run, source, target, nets):
    """Table 2 over all seeds; Fig. 5 and the proxy A-distance of the first seed's features."""
    args, seed, sets = run.args, run.args.seed, (source.test, target.test)
    r = {"seeds": args.seeds, **dict.fromkeys((*MODELS, "gap_covered", "domain_acc",
                                               "pad_source_only", "pad_dann"))}
    with run.doing("accuracies"):
        found = {name: {side: [accuracy(nets[key], split, domain) for key in keys]
                        for domain, (side, split) in enumerate(zip(("source", "target"), sets))}
                 for name, keys in named(vars(args)).items()}
        r |= {name: over_seeds(values) for name, values in found.items()}
    if all(r[name] for name in MODELS):
        low, dann, high, _ = (r[name]["target"] for name in MODELS)
        r["gap_covered"] = (dann - low) / (high - low) if high > low else None
    with run.doing("features, proxy A-distance, t-SNE"):
        some = [pick(split.y, 100 if args.smoke else 2000, seed) for split in sets]

        def codes(net):                                     # (n, d) of the source, of the target
            return [torch.cat([net.code(split.images(i), domain) for i in index.split(500)])
                    for domain, (split, index) in enumerate(zip(sets, some))]

        told = [(nets[name].domain(code) > 0) == domain for name in nets if name.startswith("dann")
                for domain, code in enumerate(codes(nets[name]))]
        if told:
            r["domain_acc"] = torch.cat(told).float().mean().item()
        both = {name: codes(nets[name]) for name in ("source_only", "dann") if name in nets}
        r |= {f"pad_{name}": proxy_a_distance(*pair, seed) for name, pair in both.items()}
        r["dead_features"] = {name: [(code.amax(0) <= 0).float().mean().item() for code in pair]
                              for name, pair in both.items()}     # of the source, of the target
        if both:
            draw_domains(run, {MODELS[name]: pair for name, pair in both.items()},
                         50 if args.smoke else 500, seed)
    with run.doing("figures"):
        run.figure("curves", columns(run.history, {
            "label loss": [f"{name}_loss" for name in MODELS], "domain loss": ["domain"],
            "domain head": ["domain_acc", "lambda"],
            "accuracy on the target": [f"{name}_target" for name in list(MODELS)[:3]]},
            chance={"domain loss": math.log(2), "domain head": 0.5}),
            "Grey is chance (ln 2 = 0.69 for the loss), which a healthy domain head comes near as "
            "lambda rises. 2,000 test images of the target are watched; they choose nothing.")
        if both:
            ten = [pick(split.y, min(10, *map(len, sets)), seed + 1) for split in sets]
            x, x_target = (split.images(i).expand(-1, 3, -1, -1) for split, i in zip(sets, ten))
            wrong = [nets[name](x_target, 1).argmax(1) != target.test.y[ten[1]] for name in both]
            run.figure("domains", grid(
                torch.stack([x, *[x_target] * len(both)]),
                ["source", *(f"target,\n{MODELS[name]}" for name in both)],
                red=torch.stack([torch.zeros_like(wrong[0]), *wrong]).cpu()),
                "Test images of both domains. Red: named wrongly.")
    tell_dann(run, MODELS, found, r)
    run.finish(f"Domain-adversarial training, {args.source} to {args.target}", r)


def read(name, args):
    """A set with all of train (no epoch is chosen), padded or cropped to --image-size, not resized
    (the pictures of folder:PATH are)."""
    size = args.image_size if name.startswith("folder:") else None
    data = load_data(name, args.data_dir, size, args.limit, args.seed, val=False)
    gap = args.image_size - data.train.x.shape[-1]
    edges = [gap // 2, gap - gap // 2] * 2                  # left, right, above, below
    for part in data.splits().values() if gap else ():
        part.x = F.pad(part.x, edges)
    return data


# %% Command line


def main(argv=None):
    parser, groups = flags("dann", __doc__, None, epochs=500, batch_size=128, lr=0.05)
    add = groups["data"].add_argument
    add("--task", choices=("moons", "images"), default="moons", help="(default: moons)")
    add("--points", type=number(int, low=20, high=10_000), default=150,
        help="moons: points of each domain (default: 150, as in Fig. 2; the text's are 300)")
    add("--source", default="mnist", metavar="NAME", help="images: a set of data.py, or "
        "folder:PATH (default: mnist)")
    add("--target", default="mnistm", metavar="NAME", help="images: one with the same classes "
        "(default: mnistm)")
    add = groups["model"].add_argument
    add("--model", nargs="+", choices=list(MODELS)[:3], default=list(MODELS)[:3],
        help="images: the networks to train (default: all three)")
    add("--hidden", type=number(int, low=1, high=1000), default=15, help="moons: (default: 15)")
    add("--arch", choices=("mnist", "svhn", "bn"), default="mnist", help="images: Fig. 4a, 4b, or "
        "4a with batch norm and dropout (default: svhn for that set, else mnist)")
    add = groups["objective"].add_argument
    add("--lam", type=number(float, low=0), default=6.0, help="moons: lambda (default: 6)")
    add("--domain-weight", type=number(float, low=0), default=1.0,
        help="images: of the mean L_d, for G_d and G_f (default: 1; 2: the sum of (10))")
    add("--ramp", type=number(float, above=0, high=1), default=1.0,
        help="images: share of training in which lambda_p rises (default: 1)")
    add("--clip", type=number(float, above=0),
        help="images: cut the norm of the DANN's gradient to this (default: no)")
    add("--mean", choices=("domain", "shared"), default="domain",
        help="images: subtract each domain's mean or one of both (default: domain)")
    add = groups["optimisation"].add_argument
    add("--decay", choices=("none", "linear", "paper"), default="none", help="of the step size: to "
        "0, or mu_p (default: none, as in Algorithm 1; images: paper; from svhn: none)")
    groups["run"].add_argument("--seeds", type=number(int, low=1, high=1000), default=1,
                               help="repeat with so many seeds, from --seed on (default: 1)")
    args = parse(parser, argv, lambda args: presets(vars(args)), SMOKE)
    if args.task == "moons":
        args.device = "cpu"
    if args.weights:
        load(args.weights)                                  # before a folder is made
    run = Run("dann", args)
    if args.task == "moons":
        train, evaluate = train_moons, evaluate_moons
        source, target = moons(args.points, dtype=torch.float64)      # as the authors' script
        run.begin(Dataset("moons", ["upper", "lower"], source, None, target))
    else:
        train, evaluate = train_images, evaluate_images
        if args.arch == "bn" and args.batch_size < 4:
            raise DataError("--arch bn needs a --batch-size of 4 or more, two images a domain.")
        source, target = read(args.source, args), read(args.target, args)
        if source.classes != target.classes:
            raise DataError(f"{args.source} and {args.target} have different classes; choose two "
                            "sets with the same.")
        source, target = run.begin(source), target.to(run.device)
    if not args.weights:
        train(run, source, target)
    evaluate(run, source, target, run.best_nets(lambda *where: load(*where, every=True)))


if __name__ == "__main__":
    run_command(main)
