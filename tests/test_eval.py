"""eval.py against closed forms and counts: probes, likelihood, Frechet distance, figures, files."""

import argparse
import io
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import eval as evaluation
from conftest import ROOT, similar
from data import DataError, Dataset, Split, load, torchvision
from eval import (
    Codes,
    balanced_accuracy,
    classifier,
    code_map,
    confusion,
    curves,
    fid,
    frechet,
    grid,
    inception,
    inception_input,
    leaks,
    log_marginal,
    main,
    make_rng,
    neighbour_accuracy,
    nll,
    number,
    percent,
    predictor,
    probe,
    probe_codes,
    random_subset,
    scatter,
    shown,
    svm_scores,
    swap_grid,
    tsne,
)

RNG = torch.Generator().manual_seed(0)


def blobs(n, classes=4, width=6, spread=0.1):
    """Codes (n, width) in well separated clusters, and their classes."""
    y = torch.arange(n) % classes
    centres = 3 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    return centres[y] + spread * torch.randn(n, width, generator=RNG), y


# what a code holds


def probed(code, y, **options):
    """The class probe of a code's first half on its second half; y (N,)."""
    half = len(y) // 2
    if isinstance(code, tuple):
        train = tuple(part[:half] for part in code)
        test = tuple(part[half:] for part in code)
    else:
        train, test = code[:half], code[half:]
    return probe(train, test, {"class": (y[:half], y[half:])}, steps=150, **options)["class"]


def test_probe_reads_what_is_there_and_nothing_where_nothing_is():
    x, y = blobs(800)
    seen = probed(x, y)
    assert seen["train"] > 0.99 and seen["hits"].shape == (400,) and seen["hits"].mean() > 0.99
    blind = probed(torch.randn(800, 6, generator=RNG), y)["hits"]
    assert abs(blind.mean() - 0.25) < 0.08 and set(blind.tolist()) == {0.0, 1.0}


def test_probe_of_a_sampled_code_is_the_mean_over_draws_of_what_can_be_known():
    """Two classes at -1 and 1 under noise of deviation 1: Phi(1) is the best there is."""
    y = torch.arange(800) % 2
    mu = 2.0 * y[:, None] - 1
    hits = probed((mu, torch.zeros_like(mu)), y)["hits"]
    best = Normal(0.0, 1.0).cdf(torch.tensor(1.0)).item()
    assert hits.mean().item() == pytest.approx(best, abs=0.03)
    shares = 20 * hits
    torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-4)  # twenty draws
    deviation = math.sqrt(best * (1 - best) / 20)
    assert hits.std().item() == pytest.approx(deviation, rel=0.3)
    once = probed((mu, torch.zeros_like(mu)), y, draws=1)["hits"]
    assert set(once.tolist()) == {0.0, 1.0}
    assert probed(mu, y)["hits"].min() == 1  # the mean shows what the noise hides


def test_probe_reports_chance_and_the_majority_of_train_on_test():
    x, _ = blobs(100)
    y, t = torch.tensor([0] * 70 + [1] * 20 + [2] * 10), torch.tensor([1] * 75 + [0] * 25)
    result = probe(x, x, {"a": (y, t), "b": (1 - y.clamp(max=1), t)}, steps=2)
    assert result["a"]["chance"] == pytest.approx(1 / 3) and result["a"]["majority"] == 0.25
    assert result["b"]["chance"] == 0.5 and result["b"]["majority"] == 0.75


def test_same_seed_same_probe_and_training_leaves_the_global_generator_alone():
    x, y = blobs(200)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    code = x, torch.zeros_like(x)
    first, second = (probe(code, code, {"c": (y, y)}, seed=3, steps=20)["c"] for _ in range(2))
    assert first["train"] == second["train"] and torch.equal(first["hits"], second["hits"])
    assert torch.equal(before, torch.get_rng_state())


def test_balanced_accuracy_and_its_error_are_a_plain_computation_and_near_the_jackknife():
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(30), 12)
    y = rng.choice([0, 1, 3], size=360, p=[0.7, 0.2, 0.1])  # class 2 is not there
    hits = (rng.random(360) < 0.3 + 0.6 * rng.random(30)[unit]).astype(float)

    def mean(rows):
        return np.mean([hits[rows & (y == c)].mean() for c in (0, 1, 3)])

    found, error = balanced_accuracy(*map(torch.tensor, (hits.astype("float32"), y, unit)))
    assert found == pytest.approx(mean(y >= 0), abs=1e-5)
    total = 0.0
    for u in range(30):
        part = 0.0
        for i in np.flatnonzero(unit == u):
            mine = y == y[i]
            part += (hits[i] - hits[mine].mean()) / (3 * mine.sum())
        total += part**2
    assert error == pytest.approx(math.sqrt(30 / 29 * total), rel=1e-4)
    without = np.array([mean(unit != u) for u in range(30)])
    jackknife = math.sqrt(29 / 30 * ((without - without.mean()) ** 2).sum())
    assert error == pytest.approx(jackknife, rel=0.1)
    images = balanced_accuracy(*map(torch.tensor, (hits.astype("float32"), y, np.arange(360))))
    assert images[0] == found and images[1] < error  # images of one unit resemble each other
    one = balanced_accuracy(*map(torch.tensor, (hits.astype("float32"), y, 0 * unit)))
    assert one == (found, None)


@pytest.mark.parametrize(
    "value, stderr, null, null_stderr, expected",
    [
        (0.29, 0.05, 0.2, None, False),
        (0.31, 0.05, 0.2, None, True),
        (0.29, 0.03, 0.2, 0.04, False),  # errors add up as squares: 0.05
        (0.31, 0.03, 0.2, 0.04, True),
        (0.1, 0.01, 0.2, 0.01, False),  # far below is no leak
        (0.21, None, 0.2, None, True),
        (0.2, None, 0.2, None, False),
    ],
)
def test_a_code_leaks_beyond_two_standard_errors_only(value, stderr, null, null_stderr, expected):
    assert leaks(value, stderr, null, null_stderr) is expected


def poses(classes=5, poses=20):
    """The smallest set in which a pose alone tells about the class: one image per class and pose,
    a fifth of them, other poses for each class, held out as test."""
    y = torch.arange(classes).repeat_interleave(poses)
    pose = torch.arange(poses).repeat(classes)
    test = (pose + y) % classes == 0
    x = torch.zeros(len(y), 1, 8, 8, dtype=torch.uint8)
    train, test = (Split(x[rows], y[rows], {"pose": pose[rows]}) for rows in (~test, test))
    names = {"pose": [f"pose {k}" for k in range(poses)]}
    return Dataset("poses", [f"class {k}" for k in range(classes)], train, None, test, None, names)


def note_taker():
    """What probe_codes needs of a Run."""
    run = SimpleNamespace(args=SimpleNamespace(seed=0), notes=[], tables=[])
    run.note = run.notes.append
    run.table = lambda *table: run.tables.append(table)
    return run


@pytest.mark.parametrize("leak", [False, True])
def test_a_code_of_the_pose_alone_scores_the_null_and_not_chance(leak):
    """In train no pose goes with the class that test asks for, so that chance is out of reach."""
    data = poses()
    codes = {}
    for name, split in data.splits().items():
        s = torch.nn.functional.one_hot(split.y, 5).float()
        z = torch.nn.functional.one_hot(split.factors["pose"], 20).float()
        if leak:
            z = torch.cat([z, 5 * s], 1)
        codes[name] = Codes(z, torch.full_like(z, -6.0), s)
    run = note_taker()
    r = probe_codes(run, data, codes, steps=200)
    assert r["chance"] == pytest.approx(0.2) and r["z_null_acc"] < 0.05
    assert r["s_test_acc"] > 0.95 and r["s_test_stderr"] < 0.1
    assert (r["z_test_acc"] > 0.9) if leak else (abs(r["z_test_acc"] - r["z_null_acc"]) < 0.05)
    found = leaks(r["z_test_acc"], r["z_test_stderr"], r["z_null_acc"], r["z_null_stderr"])
    assert found is leak
    pose = r["factors"]["pose"]
    assert pose["chance"] == pytest.approx(1 / 20) and pose["z_mean"] > 0.9 > 0.3 > pose["s"]
    keys = {"s", "z", "z_mean"}
    assert set(pose) == keys | {f"{key}_stderr" for key in keys} | {"chance", "majority"}
    assert r["active_dims"] > 0 and r["test_kl"] > 0 and json.dumps(r) and len(run.tables) == 2


def test_without_a_pose_there_is_no_null():
    data = poses()
    for split in data.splits().values():
        split.factors = {}
    data.factors = {}
    codes = {}
    for name, split in data.splits().items():
        code = torch.nn.functional.one_hot(split.y, 5).float()
        codes[name] = Codes(code, torch.zeros_like(code), code)
    r = probe_codes(note_taker(), data, codes, steps=5)
    assert r["z_null_acc"] is r["z_null_stderr"] is None and r["factors"] == {}


def test_predictor_r2_is_one_for_a_map_and_about_zero_for_noise():
    x = torch.randn(2000, 3, generator=RNG)
    target = torch.stack([x[:, 0] + x[:, 1], x[:, 2].sin()], 1)
    r2, predicted = predictor((x[:1500], target[:1500]), (x[1500:], target[1500:]), steps=600)
    assert r2 > 0.97
    error = (predicted - target[1500:]).square().sum()
    constant = (target[:1500].mean(0) - target[1500:]).square().sum()
    assert r2 == pytest.approx(1 - (error / constant).item(), abs=1e-6)
    noise = torch.randn(2000, 2, generator=RNG)
    assert predictor((x[:1500], noise[:1500]), (x[1500:], noise[1500:]), steps=100)[0] < 0.05


def test_another_purpose_of_a_seed_gives_other_draws_and_the_same_one_the_same():
    def draws(*given):
        return torch.rand(50, generator=make_rng(*given))

    first = draws(0, "training")
    assert torch.equal(first, draws(0, "training"))
    for other in (draws(0, "validation"), draws(1, "training"), draws(0, "")):
        assert (first - other).abs().max() > 0.1
    before = torch.get_rng_state()
    make_rng(0, "training")
    assert torch.equal(before, torch.get_rng_state())


def test_classifiers_of_five_seeds_agree_on_digits(tmp_path):
    data = load("digits", tmp_path)
    scores = [classifier(data, tmp_path, lenet_images=6000, seed=seed)[1] for seed in range(5)]
    assert min(scores) > 0.9 and max(scores) - min(scores) <= 0.02 + 1 / len(data.test), scores


def test_classifier_is_cached_by_its_recipe_and_a_damaged_cache_is_rebuilt(tmp_path, capsys):
    data = load("digits", tmp_path)
    net, accuracy = classifier(data, tmp_path, lenet_images=3000)
    right = net.predict(data.test.x) == data.test.y
    assert accuracy == pytest.approx(right.float().mean().item())
    floats = net.predict(data.test.images(slice(None)))
    assert (net.predict(data.test.x) == floats).float().mean() > 0.99
    (path,) = tmp_path.glob("*lenet*.pt")
    assert path.name.startswith(f"lenet{evaluation.LENET_RECIPE}-digits-")
    stamp = path.stat().st_mtime_ns
    assert classifier(data, tmp_path, lenet_images=3000)[1] == pytest.approx(accuracy, abs=0.01)
    assert path.stat().st_mtime_ns == stamp
    for damaged in (path.read_bytes()[:500], b"", pickle.dumps(print)):
        path.write_bytes(damaged)
        assert classifier(data, tmp_path, lenet_images=3000)[1] == pytest.approx(accuracy, abs=0.01)
        assert "damaged" in capsys.readouterr().out and path.stat().st_size > 10_000


def test_tsne_is_seeded_and_keeps_clusters_apart():
    x, y = blobs(120)
    a, b = tsne(x, 0), tsne(x, 0)
    assert a.shape == (120, 2) and np.array_equal(a, b)
    centres = np.stack([a[y.numpy() == c].mean(0) for c in range(4)])
    nearest = np.linalg.norm(a[:, None] - centres, axis=2).argmin(1)
    assert (nearest == y.numpy()).mean() > 0.95


# Codes that a collapsed or a diverged model gives; scikit-learn crashes on some, without a word.
ODD_CODES = """
import torch
def code(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
ODD = {
    "constant": torch.zeros(200, 8),
    "constant tenth": torch.full((359, 2), 0.1),
    "nearly constant": torch.full((359, 2), 0.1) + 1e-9 * code(359, 2),
    "one dimension": code(200, 1),
    "one constant dimension": torch.ones(200, 1),
    "a line": code(200, 1) * torch.ones(1, 8),
    "three points": code(3, 8).repeat(60, 1),
    "four points": code(4, 8).repeat(50, 1),
    "nan": torch.full((50, 8), float("nan")),
    "some nan": torch.where(code(50, 8) > 1, float("nan"), code(50, 8)),
    "inf": torch.where(code(50, 8) > 1, float("inf"), code(50, 8)),
    "huge": 1e38 * code(50, 8),
    "tiny": 1e-38 * code(50, 8),
    "one outlier": torch.cat([torch.zeros(50, 8), torch.full((1, 8), 1e30)]),
    **{f"{n} rows": code(n, 8) for n in (1, 2, 3, 4, 5, 7)},
}
"""


def draws_in_a_subprocess(code, **environment):
    """Runs Python code in a process of its own, which may crash; no warnings."""
    env = {**os.environ, **environment, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_tsne_and_its_figure_survive_every_code():
    code = ODD_CODES + """
import io, warnings
import numpy as np
from eval import scatter, tsne
for name, rows in ODD.items():
    print(name, flush=True)
    points = tsne(rows, 0)
    assert points.shape == (len(rows), 2), (name, points.shape)
    assert isinstance(points, np.ndarray) and np.isfinite(points).all(), name
    y = torch.arange(len(rows)) % 3
    scatter({name: (points, y, ["a", "b", "c"])}).savefig(io.BytesIO(), format="png")
"""
    done = draws_in_a_subprocess(code)
    assert done.returncode == 0, (done.stdout.split("\n")[-2], done.stderr[-2000:])


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no_such_one"])
def test_a_figure_is_drawn_whatever_backend_the_environment_names(backend):
    code = """
import io, torch
from eval import confusion, curves, grid, scatter
grid(torch.rand(1, 2, 1, 8, 8), ["a"]).savefig(io.BytesIO(), format="png")
confusion({"t": [[1, 0], [0, 1]]}, "ab").savefig(io.BytesIO(), format="png")
"""
    done = draws_in_a_subprocess(code, MPLBACKEND=backend)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]


def pixels(figure):
    """The sheet that a grid figure shows."""
    return np.asarray(figure.axes[0].images[0].get_array())


def test_grid_shows_images_in_order_and_outlines_mistakes_in_red():
    images = (
        torch.tensor([0.0, 0.25, 0.5, 1.0, 0.75, 0.125]).view(2, 3, 1, 1, 1).expand(2, 3, 1, 8, 8)
    )
    red = torch.zeros(2, 3, dtype=torch.bool)
    red[1, 2] = True
    sheet = pixels(grid(images, ["a", "b"], red=red))
    side = 8 * 12
    for r in range(2):
        for c in range(3):
            y, x = 14 + r * (side + 14), 14 + c * (side + 14)
            assert (
                sheet[y : y + side, x : x + side] == round(images[r, c, 0, 0, 0].item() * 255)
            ).all()
            outline = sheet[y - 3, x + 10].tolist()
            assert (outline == [220, 0, 0]) == bool(red[r, c])


def test_scatter_colours_twelve_classes_at_most():
    points, y = np.random.default_rng(0).normal(size=(300, 2)), torch.arange(300) % 30
    figure = scatter({"many": (points, y, [f"c{i}" for i in range(30)])})
    assert len(figure.axes[0].get_legend().get_texts()) == 12


def test_scatter_draws_one_legend_for_neighbours_with_the_same_names():
    points, y = np.random.default_rng(0).normal(size=(300, 2)), torch.arange(300) % 2
    panels = {"s": (points, y, ["a", "b"]), "z": (points, y, ["a", "b"])}
    figure = scatter({**panels, "pose": (points, y, ["c", "d"])})
    assert [axis.get_legend() is not None for axis in figure.axes] == [False, True, True]


NAMES = ["caf\udce9", "\U0001f600", "\u6f22\u5b57", "w" * 170, "_hidden", "", "a\nb", "100 %"]
NAMES += ["$x_1", "n" * 170, "\\frac{", "\x00"]


@pytest.mark.parametrize("draw", ["scatter", "confusion"])
def test_any_class_name_is_drawn_without_a_warning_and_told_from_the_others(draw):
    n = min(len(NAMES), 12) if draw == "scatter" else len(NAMES)
    names = NAMES[-n:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if draw == "scatter":
            figure = scatter({"s": (torch.rand(n, 2, generator=RNG), torch.arange(n), names)})
            texts = figure.axes[0].get_legend().get_texts()
        else:
            figure = confusion({"t": np.ones((n, n), int)}, names)
            texts = figure.axes[0].get_yticklabels()
        figure.savefig(io.BytesIO(), format="png")
    labels = [text.get_text() for text in texts]
    assert len(set(labels)) == n and max(map(len, labels)) < 60, labels
    assert labels[names.index("$x_1")].strip() == "\\$x_1"


def test_figures_survive_values_that_are_constant_or_not_finite():
    nan = torch.full((2, 3, 1, 8, 8), math.nan)
    figures = [grid(nan), grid(nan + math.inf), grid(-nan[:1, :1])]
    images, codes = nan[0], nan[0, :, 0, 0]  # (3, 1, 8, 8), (3, 8)

    def dec(z, s):
        return images[:1].expand(len(z), -1, -1, -1)

    figures.append(swap_grid(dec, images, codes, images[:2], codes[:2]))
    rows = [{"epoch": k + 1, "a": math.nan, "b": 1.0} for k in range(2)]
    for history in (rows, rows[:1]):
        figures.append(curves(history, {"t": {"a": "a", "b": "b", "c": "not there"}}, {"t": 0.5}))
    figures.append(curves(rows, {"t": {"a": "not there"}}))
    figures.append(scatter({"s": (np.full((4, 2), np.nan), torch.zeros(4).long(), ["a"])}))
    figures.append(confusion({"t": np.zeros((3, 3), int)}, "abc"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures:
            figure.savefig(io.BytesIO(), format="png")


def test_curves_draw_the_columns_that_are_there_under_their_labels():
    history = [{"epoch": k, "a": 1.0 / k, "b": k} for k in (1, 2, 3)]
    figure = curves(history, {"one": {"x": "a", "y": "b"}, "two": {"z": "gone"}}, {"one": 0.5})
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["x", "y"]
    lines = axis.get_lines()
    assert lines[0].get_ydata().tolist() == [row["a"] for row in history]
    assert lines[1].get_xdata().tolist() == [1, 2, 3] and lines[2].get_ydata()[0] == 0.5
    assert axis.get_ylabel() == "one"


def test_number_refuses_what_is_out_of_range_or_not_finite():
    assert number(int, low=1)("3") == 3 and number(float, above=0)("1e-3") == 1e-3
    for kind, bounds, text in (
        (int, {"low": 1}, "0"),
        (int, {"low": 1}, "1.5"),
        (float, {"above": 0}, "0"),
        (float, {"above": 0}, "nan"),
        (float, {"low": 0}, "inf"),
        (int, {"high": 3}, "4"),
    ):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            number(kind, **bounds)(text)


def test_percent_and_shown():
    assert percent(0.9815) == "98.2 %" and percent(0.0031) == "0.31 %" and percent(None) == "–"
    assert shown(None) == "–" and shown(12345) == "12,345" and shown(0.123456) == "0.1235"
    distance = {"value": 14.683, "spread": 1.4921, "relative": 0.2345}
    assert shown(distance) == "14.7 ± 1.5 (0.23)"
    assert shown({**distance, "spread": None}) == "14.68 (0.23)"
    assert shown({**distance, "spread": 0.0}) == "14.68 (0.23)"


@pytest.mark.parametrize("names", [["s predicted from z"], ["W" * 6], ["target,\nsource only"]])
def test_the_names_at_the_left_of_a_grid_are_not_cut(names):
    buffer = io.BytesIO()
    grid(torch.ones(4, 10, 3, 32, 32), names).savefig(buffer, format="png", dpi=160)
    sheet = np.asarray(Image.open(buffer).convert("L"))
    assert (sheet[:, :2] == 255).all() and (sheet < 100).any()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svm_scores_are_what_scikit_learn_counts(kernel):
    from sklearn import metrics
    from sklearn.svm import SVC

    x, y = blobs(400, classes=5, spread=2.5)
    y_test = y[200:].clone()
    y_test[y_test == 2] = 3  # a class that is predicted but never there
    result = svm_scores((x[:200], y[:200]), (x[200:], y_test), kernel)
    mean, scale = x[:200].mean(0), x[:200].std(0, correction=0)
    svc = SVC(kernel=kernel).fit((x[:200] - mean) / scale, y[:200])
    guess = svc.predict((x[200:] - mean) / scale)
    scores = metrics.precision_recall_fscore_support(y_test, guess, zero_division=0)
    assert 0.4 < result["accuracy"] < 0.99
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(y_test, guess))
    macro = metrics.precision_recall_fscore_support(
        y_test, guess, average="macro", zero_division=0
    )
    for k, name in enumerate(("precision", "recall", "f1-score")):
        found = [result["classes"][str(c)][name] for c in range(5)]
        assert found == pytest.approx(scores[k].tolist())
        assert result["classes"]["macro avg"][name] == pytest.approx(macro[k])
    assert result["confusion"] == metrics.confusion_matrix(y_test, guess).tolist()
    assert json.loads(json.dumps(result)) == result and result["classes"]["2"]["recall"] == 0
    few = svm_scores((x[:200], y[:200]), (x[200:], y_test), kernel, points=20)
    assert few != result and few == svm_scores((x[:200], y[:200]), (x[200:], y_test), kernel, 0, 20)


def linear_vae(n, orthogonal, prior=None, d=20, z=5, noise=0.7):
    """A VAE whose p(x) is known: z ~ N(0, I) or prior, x ~ N(Wz + b, noise^2 I); float64.

    Returns (x, mu, logvar, log_likelihood), log_marginal's arguments, with the diagonal of the
    posterior's precision for q (q is the posterior where W is orthogonal), p(x) and the posterior's
    covariance."""
    rng = torch.Generator().manual_seed(2)
    w, b = (torch.randn(d, k, generator=rng, dtype=torch.float64) for k in (z, 1))
    if orthogonal:
        w = torch.linalg.qr(w).Q * torch.linspace(0.5, 2, z)
    loc, scale = prior or (torch.zeros(z).double(), torch.ones(z).double())
    covariance = w @ (scale**2).diag() @ w.T + noise**2 * torch.eye(d).double()
    marginal = MultivariateNormal(b[:, 0] + w @ loc, covariance)
    x = marginal.loc + torch.randn(n, d, generator=rng, dtype=torch.float64) @ (
        torch.linalg.cholesky(covariance).T
    )
    precision = (scale**-2).diag() + w.T @ w / noise**2
    shift = loc / scale**2 + (x - b[:, 0]) @ w / noise**2
    mu = torch.linalg.solve(precision, shift.T).T
    logvar = -precision.diag().log().expand_as(mu)

    def log_likelihood(x, z):
        return Normal(z @ w.T + b[:, 0], noise).log_prob(x).sum(-1)

    return (x, mu, logvar, log_likelihood), marginal, torch.linalg.inv(precision)


def log_p(arguments, k, **options):
    """log_marginal without the effective sample size."""
    return log_marginal(*arguments, k, **options)[0]


def test_every_log_weight_is_log_p_of_x_where_q_is_the_posterior():
    arguments, marginal, _ = linear_vae(45, orthogonal=True)
    exact = marginal.log_prob(arguments[0])
    for seed, k in ((0, 1), (1, 60), (2, 60)):
        found, size = log_marginal(*arguments, k, seed=seed)
        torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)
        torch.testing.assert_close(size, torch.full_like(size, k), rtol=1e-9, atol=0)


def test_a_prior_with_log_prob_takes_the_place_of_the_normal():
    loc, scale = torch.linspace(-1, 2, 5).double(), torch.linspace(0.3, 2, 5).double()
    arguments, marginal, _ = linear_vae(25, orthogonal=True, prior=(loc, scale))
    found = log_p(arguments, 3, prior=Independent(Normal(loc, scale), 1))
    torch.testing.assert_close(found, marginal.log_prob(arguments[0]), atol=1e-9, rtol=0)
    assert (log_p(arguments, 3) - found).abs().min() > 0.01


def test_the_bound_rises_with_k_from_the_elbo_to_log_p_of_x():
    arguments, marginal, posterior = linear_vae(2000, orthogonal=False)
    x, mu, logvar, log_likelihood = arguments
    q = MultivariateNormal(mu, (0.5 * logvar).exp().diag_embed().square())
    gap = kl_divergence(q, MultivariateNormal(mu, posterior))  # log p(x) - ELBO
    exact = marginal.log_prob(x)
    bounds = {k: log_p(arguments, k) for k in (1, 5, 50)}
    error = (bounds[1] - exact).std() / math.sqrt(len(x))
    assert (bounds[1] - (exact - gap)).mean().abs() < 4 * error
    means = [(exact - gap).mean(), bounds[5].mean(), bounds[50].mean(), exact.mean()]
    assert means == sorted(means) and means[2] - means[1] > 5 * error
    few = slice(0, 200)
    tight = log_p((x[few], mu[few], logvar[few], log_likelihood), 5000)
    assert (tight - exact[few]).mean().abs() < 0.01


def test_the_effective_sample_size_is_that_of_the_weights_and_falls_with_a_poor_q():
    arguments, _, _ = linear_vae(20, orthogonal=False)
    x, mu, logvar, log_likelihood = arguments
    draws = []

    def watched(images, z):
        draws.append(z)
        return log_likelihood(images, z)

    _, size = log_marginal(x, mu, logvar, watched, 25)
    z = torch.cat(draws)  # (25, 20, Z)
    prior = Independent(Normal(torch.zeros_like(mu), 1.0), 1)
    q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    w = (log_likelihood(x, z) + prior.log_prob(z) - q.log_prob(z)).softmax(0)
    torch.testing.assert_close(size, 1 / (w**2).sum(0), rtol=1e-9, atol=0)
    assert (1 <= size).all() and (size <= 25).all()
    wide = log_marginal(x, mu, logvar + 3, log_likelihood, 1000)[1].mean()
    assert wide < log_marginal(x, mu, logvar, log_likelihood, 1000)[1].mean()


def test_the_seed_decides_and_a_constant_of_ten_thousand_nats_passes_through():
    arguments, _, _ = linear_vae(25, orthogonal=False)
    plain = log_p(arguments, 100)
    assert torch.equal(plain, log_p(arguments, 100))
    assert not torch.equal(plain, log_p(arguments, 100, seed=1))
    *codes, log_likelihood = arguments
    for constant in (1e4, -1e4):
        found = log_p((*codes, lambda x, z: log_likelihood(x, z) + constant), 100)
        torch.testing.assert_close(found, plain + constant, atol=1e-8, rtol=0)


def test_memory_does_not_grow_with_k():
    (*codes, log_likelihood), _, _ = linear_vae(25, orthogonal=False)
    largest = []

    def watched(x, z):
        largest[-1] = max(largest[-1], z.numel())
        return log_likelihood(x, z)

    for k in (100, 1000):
        largest.append(0)
        log_marginal(*codes, watched, k)
    assert largest[0] == largest[1]


def test_nll_counts_nats_bits_and_its_standard_error():
    arguments, marginal, _ = linear_vae(100, orthogonal=True)
    result = nll(*arguments, k=3)
    exact = -marginal.log_prob(arguments[0]).numpy()
    assert result["nats"] == pytest.approx(exact.mean(), abs=1e-9)
    assert result["bits_per_dim"] == pytest.approx(exact.mean() / 20 / np.log(2))
    assert result["stderr"] == pytest.approx(exact.std(ddof=1) / 10) and result["n"] == 100
    assert result["k"] == 3 and result["ess"] == pytest.approx(3)
    assert nll(*arguments, k=3, discrete=False)["bits_per_dim"] is None  # of a density
    one = nll(*arguments, k=3, n=1)
    assert one["stderr"] is None and one["n"] == 1 and json.dumps(one)


def test_the_images_of_the_nll_are_a_sample_of_all_images():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)  # not as many of each class
    cost = torch.tensor([54.0, 90.0, 118.0])[y]  # nats depend on the class
    means = []
    for seed in range(2000):
        idx = random_subset(len(y), 25, seed)
        assert len(idx.unique()) == 25
        means.append(cost[idx].mean())
    means = torch.stack(means)
    error = means.std() / math.sqrt(len(means))
    assert (means.mean() - cost.mean()).abs() < 4 * error
    assert error < 0.2  # equally many of each class would be off by 17
    assert torch.equal(random_subset(5, 9).sort().values, torch.arange(5))


def test_neighbour_accuracy_is_the_vote_of_scikit_learn_without_the_point_itself():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    points, y = blobs(60, classes=3, width=2, spread=0.8)
    scores = cross_val_score(KNeighborsClassifier(5), points, y, cv=LeaveOneOut())
    assert 0.4 < scores.mean() < 1
    assert neighbour_accuracy(points, y) == pytest.approx(scores.mean())


def test_a_code_map_draws_the_plane_or_t_sne():
    _, y = blobs(60, classes=3)
    drawn = {}
    run = argparse.Namespace(args=argparse.Namespace(seed=0), classes=["x", "y", "z"])
    run.figure = lambda name, figure, caption: drawn.update(name=name, figure=figure, text=caption)
    for width, name in ((1, "tsne"), (2, "plane"), (5, "tsne")):
        codes, _ = blobs(60, classes=3, width=width, spread=0.01)
        shares = code_map(run, {"a": codes, "b": torch.zeros(60, width)}, y, 100)
        assert shares["a"] == 1 and shares["b"] < 0.6  # clusters, and a dead encoder
        assert drawn["name"] == name
        assert "a 100.0 %; b" in drawn["text"] and "33.3 %" in drawn["text"]
        assert [axes.get_title() for axes in drawn["figure"].axes] == ["a", "b"]
        axes = drawn["figure"].axes[0]
        assert bool(axes.get_xlabel()) == (width == 2)
        points = np.concatenate([part.get_offsets() for part in axes.collections])
        assert len(points) == 60
        if width == 2:
            assert sorted(points[:, 0]) == pytest.approx(sorted(codes[:, 0].tolist()), abs=1e-6)


def covariances(d=40, rank=None, seed=3):
    """Two feature matrices (2 d or rank + 1, d) of unequal scales, as numpy."""
    rng = np.random.default_rng(seed)
    rows = 2 * d if rank is None else rank + 1
    return [rng.normal(size=(rows, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d) for _ in "ab"]


def moments(x):
    return torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False))


def low_rank_frechet(x, y):
    """The distance by the singular values of X Y': no covariance, no root of one."""
    a, b = ((part - part.mean(0)) / math.sqrt(len(part) - 1) for part in (x, y))
    trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * trace


def test_frechet_has_its_closed_forms():
    x, y = covariances()
    (mean, cov), other = moments(x), moments(y)
    assert frechet(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
    v = torch.linspace(-1, 2, 40).double()
    assert frechet(mean, cov, mean + v, cov) == pytest.approx((v @ v).item(), abs=1e-6)
    scaled = 0.5**2 * (cov.trace() + mean @ mean).item()
    assert frechet(mean, cov, *moments(1.5 * x)) == pytest.approx(scaled)
    a, b = (torch.rand(40, generator=RNG, dtype=torch.float64) for _ in "ab")
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet(mean, a.diag(), mean, b.diag()) == pytest.approx(expected)
    there = frechet(mean, cov, *other)
    assert frechet(*other, mean, cov) == pytest.approx(there, rel=1e-9)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    assert frechet(*moments(x @ q), *moments(y @ q)) == pytest.approx(there, rel=1e-9)


def test_frechet_agrees_with_scipys_sqrtm_and_is_right_at_lower_ranks():
    x, y = covariances()
    (mean1, cov1), (mean2, cov2) = moments(x), moments(y)
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real.trace()
    expected = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root
    assert frechet(mean1, cov1, mean2, cov2) == pytest.approx(expected.item(), rel=1e-8)
    x_low, y_low = covariances(rank=15, seed=4)
    for pair in ((x, y_low), (x_low, y), (x_low, y_low)):
        expected = low_rank_frechet(*pair)
        assert frechet(*moments(pair[0]), *moments(pair[1])) == pytest.approx(expected, rel=1e-6)
    assert frechet(*moments(x_low), *moments(x_low)) == pytest.approx(0, abs=1e-3)
    dead = torch.zeros(40, dtype=torch.float64)
    assert frechet(dead, dead.diag(), mean1, 0 * cov1) == pytest.approx((mean1 @ mean1).item())


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A folder with random weights under the name of torchvision's, and torchvision's network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision().models.inception_v3(weights=None, aux_logits=True, init_weights=False)
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data *= 6**0.5  # PyTorch's own would fade out over so many ReLUs
    folder = tmp_path_factory.mktemp("inception")
    torch.save(net.state_dict(), folder / "inception_v3_google-0cc3c7bd.pth")
    net.fc = torch.nn.Identity()
    return folder, net.eval()


@torch.no_grad()
def test_inception_features_are_torchvisions_own_forward_pass(random_inception):
    from torchvision.transforms.v2 import functional as transforms

    folder, theirs = random_inception
    x = torch.randint(256, (2, 3, 64, 64), generator=RNG, dtype=torch.uint8)
    resized = transforms.resize(x.float() / 255, [32, 32], antialias=True)
    expected = theirs(transforms.resize(resized, [299, 299], antialias=False) * 2 - 1)
    ours = inception(folder)
    found = ours(inception_input(x))
    assert found.shape == (2, 2048) and found.std(0).mean() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    alone = ours(inception_input(x[1:]))
    torch.testing.assert_close(alone, found[1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_inception_statistics_do_not_know_grey_from_its_copy_or_uint8_from_float(random_inception):
    grey = torch.randint(256, (3, 1, 28, 28), generator=RNG, dtype=torch.uint8)
    colour = grey.expand(-1, 3, -1, -1)
    torch.testing.assert_close(inception_input(grey), inception_input(colour), rtol=0, atol=1e-5)
    measure, name = evaluation.extractor("inception", None, random_inception[0], "cpu")
    assert "Inception" in name and "2,048" in name and "32" in name and "299" in name
    for a, b in zip(measure(grey), measure(colour.float() / 255)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())


def test_inception_names_the_address_and_the_place_where_weights_are_missing_or_damaged(
    tmp_path, monkeypatch
):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match="no network") as error:
        inception(tmp_path)
    sentence = str(error.value)
    address = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
    assert address in sentence and str(tmp_path) in sentence and "\n" not in sentence
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    path.write_bytes(pickle.dumps(print, 2))  # code, which must not run
    with pytest.raises(DataError, match="damaged"):
        inception(tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits and a folder with a LeNet of them that saw few images."""
    folder = tmp_path_factory.mktemp("digits")
    data = load("digits", folder)
    return data, folder, classifier(data, folder, 5000)[0]


def test_fid_is_zero_for_the_test_images_and_has_a_floor(digits):
    data, folder, net = digits
    same = fid("lenet", data, folder, data.test.x, lenet_images=5000)
    assert same["value"] < 1e-4 * same["floor"] and same["n"] == len(data.test)
    noise = torch.rand(200, 1, 28, 28, generator=RNG)
    result = fid("lenet", data, folder, noise, lenet_images=5000)
    assert set(result) == {"value", "spread", "relative", "floor", "features", "n"}
    assert result["value"] > 10 * result["floor"] > 0 and result["features"].startswith("LeNet")
    assert result["spread"] is None and result["relative"] > same["relative"] >= 0
    again = fid("lenet", data, folder, (noise * 255).round().byte(), lenet_images=5000)
    assert similar(result, again, 1e-4)
    with torch.no_grad():
        features = [
            net.features(x.float() / 255).double().numpy()
            for x in ((noise * 255).round(), data.test.x)
        ]
    assert result["value"] == pytest.approx(low_rank_frechet(*features), rel=1e-4)
    assert fid("none", data, folder, noise) is None and json.dumps(result)


def test_fid_refuses_fewer_images_than_features_with_the_number(digits):
    data, folder, _ = digits
    with pytest.raises(DataError, match="^127 images are too few for 128 features"):
        fid("lenet", data, folder, data.train.x[:127])
    with pytest.raises(DataError, match=f"^{len(data.test)} test images .* 2,048 features"):
        fid("inception", data, folder, data.train.x[:1].expand(3000, -1, -1, -1))


@pytest.fixture
def sides(digits, tmp_path, monkeypatch):
    """150 digits as a folder of images of 28 pixels and one of 40, in the folder of the test."""
    data, folder, _ = digits
    monkeypatch.setattr(
        evaluation, "classifier", lambda data, data_dir, *_: classifier(data, data_dir, 5000)
    )
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(data.test.x[:150]):
        image = Image.fromarray(image[0].numpy())
        for name, size, mode in (("small", 28, "L"), ("large", 40, "RGB")):
            path = tmp_path / name / ("even" if i % 2 == 0 else "odd/deep") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert(mode).resize((size, size)).save(path)
    return ["--data-dir", str(folder)]


def distance(capsys, *words):
    main(["fid", *words])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    return float(lines["distance"]), lines


def test_the_fid_command_takes_folders_and_sets(digits, sides, capsys):
    data, folder, _ = digits
    expected = fid("lenet", data, folder, data.test.x[:150], lenet_images=5000)
    value, lines = distance(capsys, "small", "digits", *sides)
    assert value == pytest.approx(expected["value"], rel=1e-2)
    assert float(lines["floor"].split()[0]) == pytest.approx(expected["floor"], rel=1e-2)
    assert lines["images"] == "150 of small"
    same = distance(capsys, "digits", "digits", *sides)[0]
    assert same < 1e-3 * expected["floor"]
    blurred, _ = distance(capsys, "large", "digits", *sides)
    assert blurred > 0


def test_a_confusion_matrix_shows_its_counts_or_with_many_classes_shades():
    matrix = 50 * torch.eye(3, dtype=torch.long)
    matrix[0, 1] = 5
    both = confusion({"linear": matrix.tolist(), "RBF": (2 * matrix).tolist()}, ["$x_0", "b", "c"])
    assert [axes.get_title() for axes in both.axes] == ["linear", "RBF"]
    axes = both.axes[0]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert len(cells) == 9 and cells[1, 0] == "5" and cells[0, 1] == "0"  # column predicted, row true
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted label", "True label")
    both.savefig(io.BytesIO())  # $ is no formula
    many = confusion({"t": np.eye(30, dtype=int)}, [f"class {k}" for k in range(30)])
    assert len(many.axes[0].texts) == 0 and len(many.axes[0].get_yticklabels()) == 30
