"""Domain-adversarial training (DANN): Ganin et al., JMLR 2016, https://arxiv.org/abs/1505.07818

Input: images with class labels from a source domain, images without labels from a target domain.
Output: a classifier for the target. Target labels train only the upper bound "train on target".
The accuracy on 2,000 target test images is in the log, but chooses nothing: the last epoch is kept.

    E   = mean of L_y over the source - lambda (mean of L_d over the source + over the target)
    L_y = -log G_y(G_f(x))_y,   L_d = -d log G_d(G_f(x)) - (1 - d) log(1 - G_d(G_f(x)))
Features G_f and label head G_y minimize E, the domain head G_d maximizes it (Eq. 10 to 15); d is 0
for the source and 1 for the target.

--task moons (Fig. 2): algorithm_1 is Algorithm 1 line by line; lambda also multiplies the steps of
G_d. --task images (Table 2): domain_loss is L_d, and lambda stands only in reverse_gradient, the
layer of Eq. 16 and 17; lambda_p and mu_p (step size) are the schedules of section 5.2.2.

    python dann.py --seeds 10                     # moons, 2 minutes: NN 82.5 %, DANN 93.0 %
    python dann.py --task images                  # MNIST to MNIST-M, 70 minutes: DANN 79 to 82 %
    python dann.py --task images --model dann --ramp 0.25             # 40 minutes: 81 to 86 %
    python dann.py --task images --model dann --arch bn --domain-weight 2 --epochs 20        # 93 %

Departures from the paper:
- Moons: 150 points per domain as in the authors' script, not the 300 of the text (which give 78
  and 87 %); constants and random numbers are the script's as well. The target accuracy swings from
  epoch to epoch, so the report gives its mean over the last 100 epochs first.
- Images: the domain loss is the mean over both domains, half of the sum in E, because training is
  more stable; --domain-weight 2 gives the sum.
  Each domain's own mean is subtracted (--mean shared: one for both). MNIST is padded to 32 pixels.
  The network is scored; the paper replaces its last layer by a linear SVM.
- --ramp 0.25 (lambda rises in the first quarter of training) was chosen without target labels, in
  runs of ten epochs, by source accuracy, domain loss and proxy A-distance.
- "Averaged weights" are the mean over the last tenth of training. --arch bn adds batch norm and
  dropout, as some programs do that report 84 to 92 %.
"""
import copy
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from data import DataError, Dataset, Split, batches, load as load_data, moons, pick
from eval import (Run, checkpoint, common_flags, curves, encode, grid, load_networks, make_rng,
                  new_figure, number, parse, percent, run_command, scatter, set_lr, tsne,
                  without_flags)

NAMES = {"source_only": "source only", "dann": "DANN", "average": "DANN, averaged weights",
         "target_only": "train on target"}
PRESETS = {"moons": dict(epochs=500, lr=0.05, decay="none"),
           "images": dict(epochs=40, lr=0.01, decay="paper", image_size=32)}
SMOKE = dict(source="digits", target="digitsm", limit=300, batch_size=32, epochs=30,
             lr=0.03, domain_weight=0.3, points=800)

# %% Networks


class Shallow(nn.Module):
    """The network of section 4.1, for S seeds at once: points x (N, 2) -> class probabilities
    (S, N, 2), probability (S, N) of the source, hidden neurons (S, N, hidden)."""

    def __init__(self, hidden, seeds):
        super().__init__()
        sizes = dict(W=(hidden, 2), b=(hidden,), V=(2, hidden), c=(2,), u=(hidden,), d=(1,))
        for name, size in sizes.items():
            zeros = torch.zeros((seeds,) + size, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(zeros, requires_grad=False))

    def forward(self, x):
        f = torch.sigmoid(x.double() @ self.W.mT + self.b[:, None])
        o = torch.softmax(f @ self.V.mT + self.c[:, None], 2)
        g = torch.sigmoid((f * self.u[:, None]).sum(2) + self.d)
        return o, g, f


class Net(nn.Module):
    """Fig. 4a: x (B, 1 or 3, H, H) in [0, 1], all of domain 0 (source) or 1 (target) -> logits of
    the classes (B, K), logits (B,) that x is from the target, features (B, 1200 for 32 pixels)."""

    def __init__(self, size, n_classes):
        super().__init__()
        width = 48 * ((size - 12) // 4)**2
        self.features = nn.Sequential(                      # ReLU behind pooling: same and faster
            nn.Conv2d(3, 32, 5), nn.MaxPool2d(2), nn.ReLU(True),                # (B, 32, 14, 14)
            nn.Conv2d(32, 48, 5), nn.MaxPool2d(2), nn.ReLU(True),               # (B, 48, 5, 5)
            nn.Flatten())                                                       # (B, 1200)
        self.label = nn.Sequential(
            nn.Linear(width, 100), nn.ReLU(True),
            nn.Linear(100, 100), nn.ReLU(True),
            nn.Linear(100, n_classes))
        self.domain = nn.Sequential(
            nn.Linear(width, 100), nn.ReLU(True), nn.Linear(100, 1))
        self.register_buffer("mean", torch.zeros(2, 3, 1, 1))                   # of each domain

    def forward(self, x, domain, lam=0.0):
        f = self.features(x - self.mean[domain])            # grey becomes colour here
        return self.label(f), self.domain(reverse_gradient(f, lam))[:, 0], f


class BatchNormNet(Net):
    """Fig. 4a with batch norm after each layer but the last and dropout of whole maps."""

    def __init__(self, size, n_classes):
        super().__init__(size, n_classes)
        width = 48 * ((size - 12) // 4)**2
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.ReLU(True),
            nn.Conv2d(32, 48, 5), nn.BatchNorm2d(48), nn.Dropout2d(), nn.MaxPool2d(2),
            nn.ReLU(True), nn.Flatten())
        self.label = nn.Sequential(
            nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU(True),
            nn.Linear(100, 100), nn.BatchNorm1d(100), nn.ReLU(True),
            nn.Linear(100, n_classes))
        self.domain = nn.Sequential(
            nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU(True), nn.Linear(100, 1))


def build(shape, args):
    """{"nn": {"net": Shallow}, "dann": ...} for the moons, {"source_only": {"net": Net}, ...} for
    images, where "dann" also has its averaged weights, {"average": AveragedModel}."""
    if args["task"] == "moons":
        return {model: {"net": Shallow(args["hidden"], args["seeds"])} for model in ("nn", "dann")}
    kind = {"mnist": Net, "bn": BatchNormNet}[args["arch"]]
    models = {}
    for model in args["model"]:
        with torch.random.fork_rng(devices=[]):             # leaves a notebook's generator alone
            torch.manual_seed(args["seed"])                 # all models start alike
            models[model] = {"net": kind(shape[1], args["n_classes"])}
    if "dann" in models:
        models["dann"]["average"] = AveragedModel(models["dann"]["net"])
    return models


def load(path, device="cpu"):
    """The trained networks of a checkpoint such as RUN/best.pt: {"dann": {"net": ...}, ...}."""
    return load_networks(path, "dann", build, device)


# %% Objective


def algorithm_1(net, k, source, target, draws, lam, mu, adversarial=True):
    """Lines 6 to 40 of Algorithm 1, one pass over the source, for seed k of a Shallow, in place.

    draws (n,): the j of line 24. adversarial=False is the standard NN of the authors' code, without
    lines 21, 22, 30 and 31 (the text: 22 and 31). G_d is 1 for the source here, unlike in L_d."""
    from scipy.special import expit as sigm
    W, b, V, c, u, d = [weight[k].numpy() for weight in net.parameters()]       # views
    x_target = target.x.double().numpy()
    e = np.eye(2)
    for x, y, j in zip(source.x.double().numpy(), source.y.tolist(), draws):
        f = sigm(b + W @ x)                                 # 8, G_f(x_i)
        o = np.exp(c + V @ f)
        o = o / o.sum()                                     # 9, G_y(G_f(x_i)), a softmax
        dc = -(e[y] - o)                                    # 11
        dV = dc[:, None] * f                                # 12
        db = (V.T @ dc) * f * (1 - f)                       # 13
        dW = db[:, None] * x                                # 14
        g = sigm(d + u @ f)                                 # 17, G_d(G_f(x_i))
        dd = lam * (1 - g)                                  # 18
        du = lam * (1 - g) * f                              # 19
        if adversarial:
            tmp = lam * (1 - g) * u * f * (1 - f)           # 20
            db = db + tmp                                   # 21
            dW = dW + tmp[:, None] * x                      # 22
        x = x_target[j]                                     # 24
        f = sigm(b + W @ x)                                 # 25
        g = sigm(d + u @ f)                                 # 26
        dd = dd - lam * g                                   # 27
        du = du - lam * g * f                               # 28
        if adversarial:
            tmp = -lam * g * u * f * (1 - f)                # 29
            db = db + tmp                                   # 30
            dW = dW + tmp[:, None] * x                      # 31
        W -= mu * dW                                        # 33 to 36: G_f and G_y go down
        V -= mu * dV
        b -= mu * db
        c -= mu * dc
        u += mu * du                                        # 38 and 39: G_d goes up
        d += mu * dd


def reverse_gradient(x, lam):
    """The gradient reversal layer: R(x) = x (Eq. 16), dR/dx = -lam I (Eq. 17, times lam)."""
    return x.detach() - lam * (x - x.detach())


def domain_loss(logits_source, logits_target):
    """The mean of L_d over both domains in nats. Logits (B,) of images of the source and of the
    target say how likely an image is from the target."""
    return (F.softplus(logits_source).mean() + F.softplus(-logits_target).mean()) / 2


def lambda_p(p):
    """lambda at p, the share of training that is done: from 0 to nearly 1."""
    return 2 / (1 + math.exp(-10 * p)) - 1


def mu_p(mu_0, p, decay):
    """The step size at p: mu_0, falling linearly to 0, or ("paper") mu_p of section 5.2.2."""
    if decay == "paper":
        return mu_0 / (1 + 10 * p)**0.75
    return mu_0 * (1 - p) if decay == "linear" else mu_0


# %% Training


@np.errstate(over="ignore", invalid="ignore")               # end_epoch raises a DataError
def train_moons(run, source, target, model):
    """Trains "nn" or "dann" with all seeds; best.pt is the last epoch. run.kept[model] (100, S):
    the accuracies on the target after each of the last 100 epochs."""
    args = run.args
    net = Shallow(args.hidden, args.seeds)
    bound = math.sqrt(6 / (args.hidden + 2))
    draws = np.empty((args.seeds, args.epochs, args.points), int)
    for k in range(args.seeds):                             # in the order of the authors' script
        rng = np.random.RandomState(args.seed + k)
        net.W[k] = torch.from_numpy(rng.uniform(-bound, bound, (args.hidden, 2)))       # line 3
        net.V[k] = torch.from_numpy(rng.uniform(-bound, bound, (2, args.hidden)))
        draws[k] = rng.randint(args.points, size=(args.epochs, args.points))            # line 24
    for epoch in range(run.resume(model, net=net), args.epochs):
        mu = mu_p(args.lr, epoch / args.epochs, args.decay)
        for k in range(args.seeds):
            algorithm_1(net, k, source, target, draws[k, epoch], args.lam, mu, model == "dann")
        found = score_moons(net, source, target)
        earlier = run.kept.get(model, torch.empty(0, args.seeds, dtype=torch.float64))
        run.kept[model] = torch.cat([earlier, found["target"][None]])[-100:]
        means = {key: values.mean().item() for key, values in found.items()}
        run.end_epoch(images=2 * args.points * args.seeds, **means)


def read(name, args):
    """Loads a set without validation images, since the last epoch is kept. Images are padded or
    cropped to --image-size, and not resized (except folder:PATH)."""
    size = args.image_size if name.startswith("folder:") else None
    data = load_data(name, args.data_dir, size, args.limit, args.seed, val=False)
    gap = args.image_size - data.shape[1]
    for split in data.splits().values():
        split.x = F.pad(split.x, [gap // 2, gap - gap // 2, gap // 2, gap - gap // 2])
    return data


def sample(split, n, seed):
    """A Split of n seeded images, of different classes while there are any left."""
    idx = pick(split.y, n, seed)
    return Split(split.x[idx], split.y[idx])


def train_images(run, source, target, model):
    """Trains one network. All of them start from the same weights and see the same batches; best.pt
    is the last epoch."""
    args = run.args
    device = run.device
    nets = build(run.shape, vars(args))[model]
    net = nets["net"]
    net.mean[0] = source.train.mean_image().mean((1, 2), keepdim=True)          # (C, 1, 1)
    net.mean[1] = target.train.mean_image().mean((1, 2), keepdim=True)
    if args.mean == "shared":
        net.mean[:] = net.mean.mean(0)
    net.to(device)
    if device.type != "mps":                                # batch norm is wrong there
        net.to(memory_format=torch.channels_last)           # a step takes a third less
    if model == "dann":
        nets["average"].module.to(device)                   # its counter stays on the CPU
    if args.compile:
        net.compile()
    opt = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, fused=device.type != "mps")
    rng = make_rng(args.seed, "training", device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)
    half = min(max(2, args.batch_size // 2), len(source.train))     # 64 images per domain
    run.steps_per_epoch = len(source.train) // half
    watched = sample(target.test, 2000, args.seed)

    for epoch in range(run.resume(model, **nets, opt=opt, rng=rng), args.epochs):
        net.train()
        torch.manual_seed(make_rng(args.seed, f"dropout, epoch {epoch}").initial_seed())
        for step, idx in enumerate(batches(source.train, half, rng)):
            p = (epoch + step / run.steps_per_epoch) / args.epochs
            set_lr(opt, mu_p(args.lr, p, args.decay))
            lam = torch.full((), lambda_p(min(1, p / args.ramp)), device=device)
            idx_target = torch.randint(len(target.train), (half,), generator=rng, device=device)
            with autocast:
                if model == "target_only":
                    y = target.train.y[idx_target]
                    logits, _, _ = net(target.train.images(idx_target), 1)
                else:
                    y = source.train.y[idx]
                    logits, logits_source, _ = net(source.train.images(idx), 0, lam)
                if model == "dann":
                    _, logits_target, _ = net(target.train.images(idx_target), 1, lam)
            label = F.cross_entropy(logits.float(), y)
            loss = label
            run.track(label=label)
            if model == "dann":
                domain = domain_loss(logits_source.float(), logits_target.float())
                loss = label + args.domain_weight * domain
                right = (logits_source < 0).float().mean() + (logits_target > 0).float().mean()
                run.track(domain=domain, domain_acc=right / 2, lam=lam)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if model == "dann":                             # the mean over the last tenth
                nets["average"].update_parameters(net)
                if p < 0.9:                                 # until then it is a copy
                    nets["average"].n_averaged.zero_()
        net.eval()
        images = run.steps_per_epoch * half
        if model == "dann":
            images = 2 * images                             # from both domains
        run.end_epoch(images=images, target_acc=accuracy(net, watched, 1))


# %% Evaluation


def score_moons(net, source, target):
    """Of each seed (S,): label loss in nats, accuracies on both domains and of the domain head."""
    o, g, _ = net(source.x)
    o_target, g_target, _ = net(target.x)
    return {"loss": -o[:, torch.arange(len(source)), source.y].log().mean(1),
            "source": (o.argmax(2) == source.y).double().mean(1),
            "target": (o_target.argmax(2) == target.y).double().mean(1),
            "domain": torch.cat([g > 0.5, g_target <= 0.5], 1).double().mean(1)}


def predict(net, split, domain):
    """Logits of the classes (N, K) and of the target domain (N,), and features (N, F)."""
    return encode(lambda x: net(x, domain), split)


def accuracy(net, split, domain):
    """The share of a split's images, of domain 0 or 1, whose class the network predicts."""
    return (predict(net, split, domain)[0].argmax(1) == split.y).float().mean().item()


def spread(shares):
    """Shares of several seeds as text: their mean ± their deviation."""
    if len(shares) < 2:
        return percent(shares[0])
    return f"{percent(float(np.mean(shares)))} ± {100 * np.std(shares, ddof=1):.1f}"


@torch.no_grad()
def with_target_statistics(net, split):
    """A copy of a network whose batch norms use statistics of target images, without labels."""
    net = copy.deepcopy(net)
    for layer in net.eval().modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_running_stats()
            layer.momentum = None                           # the mean over all batches
            layer.train()
    n_batches = math.ceil(len(split) / 500)                 # of equal size, none of one image
    for idx in torch.arange(len(split), device=split.device).tensor_split(n_batches):
        net(split.images(idx), 1)
    return net.eval()


def proxy_a_distance(source, target, seed=0):
    """2 (1 - 2 error) of linear SVMs that tell features (N, F) of two domains apart: 2 if they
    always can, 0 if they are right half of the time (Eq. 3, section 5.1.5); None if a feature is
    not finite.

    SVMs with several C are fitted on one half of the standardized features. The smallest error on
    the other half counts; one above 1/2 counts as its complement, as in the authors' code."""
    from sklearn.model_selection import train_test_split
    from sklearn.svm import LinearSVC
    x = torch.cat([source, target]).double()
    if not x.isfinite().all():
        return None
    x = ((x - x.mean(0)) / (x.std(0) + 1e-6)).cpu().numpy()
    d = np.repeat([0, 1], [len(source), len(target)])
    x, x_test, d, d_test = train_test_split(x, d, test_size=0.5, random_state=seed, stratify=d)
    scores = []
    for C in np.logspace(-5, 0, 6):
        score = LinearSVC(C=C, dual=False, tol=0.01).fit(x, d).score(x_test, d_test)
        scores += [score, 1 - score]
    return 2 * (2 * max(scores) - 1)


def draw_panels(run, nets, source, target):
    """The figure panels: Fig. 2 for the first seed, a row for the NN and a row for the DANN."""
    from sklearn.decomposition import PCA
    points = torch.cat([source.x, target.x])
    kinds = torch.cat([source.y, torch.full_like(target.y, 2)])
    near = torch.tensor([(-2.4, -1.6), (-1.2, 0.4), (0.8, -0.5), (2.5, 1.5)], dtype=points.dtype)
    letters = torch.cdist(near, points).argmin(1).tolist()  # the points A to D
    offsets = ((18, 10), (-24, -26), (18, 12), (-32, 8))    # of the labels
    x1, x2 = torch.meshgrid(torch.linspace(-3.6, 3.6, 300), torch.linspace(-2.9, 2.9, 250),
                            indexing="xy")
    mesh = torch.stack([x1.flatten(), x2.flatten()], 1)
    figure, axes = new_figure(3.4, 3, 8, columns=4)
    for row, model in enumerate(("nn", "dann")):
        o, g, f = nets[model]["net"](mesh)
        label, representation, domain, neurons = axes[4 * row:4 * row + 4]
        label.set_title(f"{model.upper()}: label classification")
        representation.set_title("representation, PCA")
        domain.set_title("domain classification")
        neurons.set_title("hidden neurons")
        label.contourf(x1, x2, o[0, :, 0].view_as(x1), [0, 0.5, 1], colors=("#a8d8a8", "#ffb3b3"))
        domain.contourf(x1, x2, g[0].view_as(x1), [0, 0.5, 1], colors=("#c8c8c8", "#b3b3ff"))
        for k, neuron in enumerate(f[0].T):
            if neuron.min() < 0.5 < neuron.max():           # else its line is outside
                neurons.contour(x1, x2, neuron.view_as(x1), [0.5], colors=f"C{k % 10}")
        _, _, hidden = nets[model]["net"](points)
        pca = PCA(2).fit_transform(F.pad(hidden[0], [0, 1]))                # also of one neuron
        for axis in (label, representation, domain, neurons):
            xy = pca if axis is representation else points
            for kind, style in enumerate(("r+", "g_", "k.")):
                axis.plot(xy[kinds == kind, 0], xy[kinds == kind, 1], style, markersize=5)
        for axis, xy in ((label, points), (representation, pca)):
            for letter, k, offset in zip("ABCD", letters, offsets):
                axis.annotate(letter, xy[k], offset, textcoords="offset points", color="blue",
                              bbox={"boxstyle": "round", "fc": "white"},
                              arrowprops={"arrowstyle": "->", "color": "blue"})
        representation.margins(0.15)
    run.figure("panels", figure, "Fig. 2. Source: + upper moon, - lower moon. Dots: target. Red "
               "and green: predicted moon. Blue and grey: predicted domain, source and target. "
               "Lines: where a hidden neuron is 1/2. The NN should be wrong at A and D, and its "
               "domain classification should show the rotation; not so the DANN.")


@torch.no_grad()
def evaluate_moons(run, source, target, nets):
    """Accuracies of all seeds, and Fig. 2 of the first."""
    args = run.args
    results = {"seeds": args.seeds, "points": args.points, "summary": {}, "paper": None}
    if args.points == 150:
        results["paper"] = "DANN, last epoch 92.3 ± 5.1 % (the authors' script, ten seeds)"
    last = f"the last {min(100, args.epochs)} epochs"
    rows = []
    for model, name in (("nn", "NN"), ("dann", "DANN")):
        found = score_moons(nets[model]["net"], source, target)
        found["target_last100"] = run.kept[model].mean(0)
        r = {key: values.tolist() for key, values in found.items()}
        results[model] = r
        results["summary"][f"{name}, {last} in %"] = (100 * found["target_last100"]).tolist()
        results["summary"][f"{name}, last epoch in %"] = (100 * found["target"]).tolist()
        rows.append((name, spread(r["target_last100"]), spread(r["target"]), spread(r["source"]),
                     spread(r["domain"])))
    run.note(f"On the rotated moons the DANN is right on {rows[1][1]} of the points, the NN on "
             f"{rows[0][1]} (mean of {last}).")
    run.table("Accuracies", ("", f"target, mean of {last}", "target, last epoch", "source",
              "domain head"), rows, f"{args.seeds} seeds, ± standard deviation. Chance: 50 %.")
    points = torch.cat([source.x, target.x])
    kinds = torch.cat([source.y, target.y + 2])
    names = ["source, upper", "source, lower", "target, upper", "target, lower"]
    run.figure("moons", scatter({"twin moons": (points, kinds, names)}, axes_names=("x1", "x2")),
               "The target is another draw of the moons, rotated by 35 degrees.")
    draw_panels(run, nets, source, target)
    panels = {"accuracy, source": {"NN": ("nn", "source"), "DANN": ("dann", "source")},
              "accuracy, target": {"NN": ("nn", "target"), "DANN": ("dann", "target")},
              "accuracy, domain head": {"NN": ("nn", "domain"), "DANN": ("dann", "domain")}}
    run.figure("curves", curves(run.history, panels, {"accuracy, domain head": 0.5}), "Means over "
               "the seeds. At a constant step size the DANN swings on the target.")
    run.finish(f"Domain-adversarial training on twin moons, {args.points} points", results)


# Source only, DANN, train on target (Table 2).
TABLE_2 = {("mnist", "mnistm"): {"source_only": 0.5225, "dann": 0.7666, "target_only": 0.9596},
           ("svhn", "mnist"): {"source_only": 0.5490, "dann": 0.7385, "target_only": 0.9942}}


def gap_covered(r):
    """(DANN - source only) / (train on target - source only) of accuracies by model, or None."""
    if {"source_only", "dann", "target_only"} <= r.keys() and r["target_only"] > r["source_only"]:
        return (r["dann"] - r["source_only"]) / (r["target_only"] - r["source_only"])
    return None


def report_accuracies(run, source, target, nets, distances):
    """Table 2. Returns the results: per model the accuracies on both domains, with --arch bn also
    that on the target with batch norm statistics of target images."""
    args = run.args
    results = {"seeds": 1, "summary": {}, "paper": None, "proxy_a_distance": distances}
    paper = {}
    if args.arch == "mnist" and (args.source, args.target) in TABLE_2:
        paper = TABLE_2[args.source, args.target]
        results["paper"] = ", ".join(f"{NAMES[k]} {percent(v)}" for k, v in paper.items())
    results.update(dict.fromkeys(NAMES))
    shares = {}
    rows = []
    for model in nets:
        for part, net in nets[model].items():
            key = model if part == "net" else part
            r = {"source": accuracy(net, source.test, 0), "target": accuracy(net, target.test, 1),
                 "target_statistics": None}
            if args.arch == "bn":
                adapted = with_target_statistics(net, target.train)
                r["target_statistics"] = accuracy(adapted, target.test, 1)
            results[key] = r
            shares[key] = r["target"]
            results["summary"][f"{NAMES[key]} in %"] = 100 * shares[key]
            rows.append((NAMES[key], percent(paper.get(key)), percent(r["target"]),
                         percent(r["source"]), distances.get(key)))
            if args.arch == "bn":
                name = f"{NAMES[key]}, target statistics"
                results["summary"][f"{name} in %"] = 100 * r["target_statistics"]
                rows.append((name, None, percent(r["target_statistics"]), None, None))
    sentence = ", ".join(f"{row[0]} {row[2]}" for row in rows)
    gap = gap_covered(shares)
    results["gap_covered"] = gap
    if gap is not None:
        rows.append(("gap covered", percent(gap_covered(paper)), percent(gap), "", ""))
        sentence += f"; adaptation covers {percent(gap)} of the gap"
    run.note(f"Accuracy on the target's test images: {sentence}.")
    note = ("The network is scored, in the paper a linear SVM on its features. Averaged weights: "
            "the mean over the last tenth of training. Proxy A-distance: 2 if a linear SVM always "
            "recognizes the domain of features, 0 if it is right half of the time.")
    if args.arch == "bn":
        note += " Target statistics: batch norm with those of the target's training images."
    run.table("Table 2, accuracies", ("", "target, paper", "target", "source", "proxy A-distance"),
              rows, note)
    return results


def report_domain_head(run, row, share):
    """Reads the domain head's last epoch, a row of the log. share: the accuracy on the source."""
    verdict = "the features hide part of the domain from it"
    if row["domain"] > 2 * math.log(2) or share < 0.5:
        verdict = "the DANN has collapsed: lower --lr or --domain-weight"
    elif row["domain_acc"] > 0.9:
        verdict = "it still tells the domains apart: raise --epochs or --domain-weight"
    run.note(f"In the last epoch the domain head is right on {percent(row['domain_acc'])} of the "
             f"training images (chance 50 %), with a loss of {row['domain']:.3f} (chance 0.693); "
             f"{verdict}.")


@torch.no_grad()
def evaluate_images(run, source, target, nets):
    """Table 2, proxy A-distances, Fig. 5, curves, and images with their predictions."""
    args = run.args
    run.stage("features, proxy A-distance, t-SNE")
    some = sample(source.test, 2000, args.seed)
    some_target = sample(target.test, 2000, args.seed)
    n = min(10, len(some), len(some_target))
    images = [some.images(slice(n)).expand(-1, 3, -1, -1)]
    red = [torch.zeros(n, dtype=torch.bool)]
    row_names = ["source"]
    distances = {}
    embedded = {}
    for model in nets:
        net = nets[model]["net"]
        logits, _, f_target = predict(net, some_target, 1)
        images.append(some_target.images(slice(n)).expand(-1, 3, -1, -1))
        red.append((logits.argmax(1) != some_target.y)[:n].cpu())
        row_names.append(f"target,\n{NAMES[model]}")
        if model != "target_only":
            _, _, f = predict(net, some, 0)
            distances[model] = proxy_a_distance(f, f_target, args.seed)
            points = tsne(torch.cat([f[:500], f_target[:500]]), args.seed)
            domain = torch.arange(len(points)) >= len(f[:500])
            embedded[NAMES[model]] = (points, domain.long(), ["source", "target"])
    run.stage("accuracies")
    results = report_accuracies(run, source, target, nets, distances)
    if "dann" in nets:
        report_domain_head(run, run.rows("dann")[-1], results["dann"]["source"])
    if embedded:
        run.figure("tsne_domains", scatter(embedded), "Features of test images, both domains "
                   "embedded together (Fig. 5): adaptation should bring them to the same places.")
    lines = {"label loss, nats": {NAMES[model]: (model, "label") for model in nets},
             "accuracy, target": {NAMES[model]: (model, "target_acc") for model in nets},
             "domain loss, nats": {"DANN": ("dann", "domain")},
             "domain head": {"accuracy": ("dann", "domain_acc"), "lambda": ("dann", "lam")}}
    chance = {"domain loss, nats": math.log(2), "domain head": 0.5}
    run.figure("curves", curves(run.history, lines, chance), "Grey: a domain head that guesses; "
               "the closer its loss and accuracy come, the less the features tell the domain. The "
               "accuracy on the target, of 2,000 test images, chooses nothing.")
    run.figure("domains", grid(torch.stack(images), row_names, red=torch.stack(red)),
               "Source images, and the same target images once per model. Red: the model predicts "
               "the wrong class (the source images are not marked). Ten images do not rank models.")
    run.finish(f"Domain-adversarial training, {args.source} to {args.target}", results)


# %% Command line


def main(argv=None):
    parser = common_flags("dann", __doc__, epochs=500, batch_size=128, lr=0.05, data=None,
                          presets=PRESETS)
    add = parser.add_argument
    add("--task", choices=("moons", "images"), default="moons", help="Fig. 2 or Table 2")
    add("--seeds", type=number(int, low=1, high=1000), default=1,
        help="how many, from --seed on; images: a run folder for each")
    add("--points", type=number(int, low=20, high=10_000), default=150, help="moons: per domain")
    add("--hidden", type=number(int, low=1, high=1000), default=15, help="moons: hidden neurons")
    add("--lam", type=number(float, low=0), default=6.0, help="moons: lambda")
    add("--source", default="mnist", metavar="NAME", help="images: a set, or folder:PATH")
    add("--target", default="mnistm", metavar="NAME", help="images: a set with the same classes")
    models = ["source_only", "dann", "target_only"]
    add("--model", nargs="+", choices=models, default=models, help="images: one after the other")
    add("--arch", choices=("mnist", "bn"), default="mnist", help="images: Fig. 4a, or batch norm")
    add("--domain-weight", type=number(float, low=0), default=1.0,
        help="images: weight of the domain loss, the mean of L_d over both domains")
    add("--ramp", type=number(float, above=0, high=1), default=1.0,
        help="images: share of training in which lambda rises")
    add("--mean", choices=("domain", "shared"), default="domain",
        help="images: subtract each domain's own mean, or one mean of both")
    add("--decay", choices=("none", "linear", "paper"), default="none",
        help="schedule of the step size: none, linear to 0, or mu_p of section 5.2.2")
    args = parse(parser, argv, lambda args: PRESETS[args.task], SMOKE)
    if args.weights:
        load(args.weights)                                  # raises before a folder exists
    if args.task == "moons":
        if args.device not in ("auto", "cpu"):
            raise DataError(f"--task moons runs on the CPU: leave out --device {args.device}.")
        args.device = "cpu"                                 # numpy, float64
        args.data = "moons"
        source, target = moons(args.points, dtype=torch.float64)
        run = Run("dann", args, Dataset("moons", ["upper", "lower"], source, None, target))
        if not args.weights:
            train_moons(run, source, target, "nn")
            train_moons(run, source, target, "dann")
        evaluate_moons(run, source, target, load(run.best))
        return

    if args.seeds > 1:                                      # a run with its own folder for each
        words = without_flags(sys.argv[1:] if argv is None else argv, "--seeds", "--seed", "--out")
        for seed in range(args.seed, args.seed + args.seeds):
            out = ["--out", f"{args.out}-{seed}"] if args.out else []
            main([*words, "--seed", seed, *out])
        return
    args.data = f"{Path(args.source).name}-{Path(args.target).name}"
    source = read(args.source, args)
    target = read(args.target, args)
    if source.classes != target.classes:
        raise DataError(f"{args.source} and {args.target} need the same classes.")
    source.fingerprint += target.fingerprint                # so that --resume notices a change
    if args.weights and checkpoint(args.weights, "dann")["fingerprint"] != source.fingerprint:
        raise DataError(f"{args.data} has other files or classes than in training: leave out "
                        "--limit and restore what was added, removed or renamed.")
    args.n_classes = len(source.classes)
    run = Run("dann", args, source)
    print(target, flush=True)
    target = target.to(run.device)
    if not args.weights:
        for model in args.model:
            train_images(run, run.data, target, model)
    evaluate_images(run, run.data, target, load(run.best, run.device))


if __name__ == "__main__":
    run_command(main)
