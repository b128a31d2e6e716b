"""eval.py against closed forms and counts: probes, likelihood, Frechet distance, figures, files."""

import hashlib
import io
import json
import math
import pickle
import subprocess
import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import eval as evaluation
from conftest import reporter
from data import DataError, load, torchvision
from eval import (
    classes_of,
    classifier,
    command_line,
    confusion,
    fid,
    filled,
    frechet,
    grid,
    inception,
    inception_input,
    log_marginal,
    main,
    nll,
    number,
    percent,
    pick,
    predictor,
    probe,
    sample,
    save,
    scatter,
    shown,
    statistics,
    svm_report,
    tsne,
    write,
)

RNG = torch.Generator().manual_seed(0)


def blobs(n, classes=4, width=6, spread=0.1):
    """Codes (n, width) in well separated clusters, and their classes."""
    y = torch.arange(n) % classes
    centres = 3 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    return centres[y] + spread * torch.randn(n, width, generator=RNG), y


def test_probe_reads_what_is_there_and_nothing_where_nothing_is():
    x, y = blobs(800)
    noise = torch.randn(800, 6, generator=RNG)
    half = slice(0, 400), slice(400, 800)
    seen = probe(x[half[0]], x[half[1]], {"class": (y[half[0]], y[half[1]])}, steps=150)["class"]
    assert seen["train"] > 0.99 and seen["test"] > 0.99
    blind = probe(noise[half[0]], noise[half[1]], {"class": (y[half[0]], y[half[1]])}, steps=150)[
        "class"
    ]
    assert abs(blind["test"] - 0.25) < 0.08


def test_probe_on_a_sampled_code_sees_the_noise_that_the_mean_hides():
    mu, y = blobs(800, spread=0.0)
    labels = {"class": (y[:400], y[400:])}
    drowned = (mu, torch.full_like(mu, 8.0))  # sigma = e^4 against distances of about 10
    assert (
        probe(
            (drowned[0][:400], drowned[1][:400]),
            (drowned[0][400:], drowned[1][400:]),
            labels,
            steps=150,
        )["class"]["test"]
        < 0.45
    )
    assert probe(mu[:400], mu[400:], labels, steps=150)["class"]["test"] == 1


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
    first, second = (probe(x, x, {"c": (y, y)}, seed=3, steps=20) for _ in range(2))
    assert first == second and torch.equal(before, torch.get_rng_state())


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


def test_sample_has_the_mean_and_variance_of_q():
    mu, logvar = torch.tensor([[1.0, -2.0]]).expand(200_000, 2), torch.tensor([[0.0, 1.0]]).expand(
        200_000, 2
    )
    z = sample((mu, logvar), torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0.03, rtol=0)
    assert sample(mu, None) is mu


def test_classifier_learns_is_cached_and_a_damaged_cache_is_rebuilt(tmp_path, capsys):
    data = load("digits", tmp_path)
    net, accuracy = classifier(data, tmp_path, shows=12_000)
    assert accuracy > 0.9
    assert accuracy == pytest.approx(
        (classes_of(net, data.test.x) == data.test.y).float().mean().item()
    )
    assert torch.equal(classes_of(net, data.test.x), classes_of(net, data.test.images(slice(None))))
    (path,) = tmp_path.glob("lenet-*.pt")
    stamp = path.stat().st_mtime_ns
    again, same = classifier(data, tmp_path, shows=12_000)
    assert same == accuracy and path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:500])
    assert classifier(data, tmp_path, shows=12_000)[1] == accuracy
    assert "damaged" in capsys.readouterr().out


def test_tsne_is_seeded_and_keeps_clusters_apart():
    x, y = blobs(150)
    (a, i), (b, j) = tsne(x, 0, 120), tsne(x, 0, 120)
    assert len(a) == 120 and np.array_equal(a, b) and torch.equal(i, j)
    labels = y[i].numpy()
    centres = np.stack([a[labels == c].mean(0) for c in range(4)])
    nearest = np.linalg.norm(a[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.95


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


def test_number_refuses_what_is_out_of_range_or_not_finite():
    import argparse

    assert number(int, low=1)("3") == 3 and number(float, above=0)("1e-3") == 1e-3
    for kind, bounds, text in (
        (int, {"low": 1}, "0"),
        (int, {"low": 1}, "1.5"),
        (float, {"above": 0}, "0"),
        (float, {"above": 0}, "nan"),
        (float, {"low": 0}, "inf"),
        (int, {"high": 3}, "4"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            number(kind, **bounds)(text)


def test_percent_and_shown():
    assert percent(0.9815) == "98.2 %" and percent(0.0031) == "0.31 %" and percent(None) == "–"
    assert shown(None) == "–" and shown(12345) == "12,345" and shown(0.123456) == "0.1235"


def test_a_sentence_is_filled_with_numbers_and_left_out_where_one_is_missing():
    r = {"a": {"b": 0.12345, "c": None, "shares": [0.5, 0.002]}, "n": 5000, "d": -1.0}
    r |= {"acc": 0.815, "acc_std": 0.014, "nll": {"nats": 94.026, "stderr": 0.51}}
    assert filled(r, "{a.b} {a.b:.2f} {a.b:%} {a.shares:min%}") == ["0.1235 0.12 12.3 % 0.20 %"]
    assert filled(r, "{n} of {d:+.1f}", "{a.c}", "{gone}") == ["5,000 of -1.0"]
    assert filled(r, "{acc:±}; {nll:nats}") == ["81.5 % ± 1.4; 94.03 ± 0.51"]
    run = reporter()
    run.say("plain {n}"), run.say("{n}", r), run.say("{a.c}", r)
    assert run.sentences == ["plain {n}", "5,000"]
    run.side_by_side("T", {"x": r["a"], "none": None, "y": {"b": 0.5}}, {"share": "b:%", "C": "c"})
    rows = [["share", "12.3 %", "50.0 %"], ["C", "–", "–"]]
    assert run.tables == [("T", ("", "x", "y"), rows, "")]


@pytest.mark.parametrize("names", [["s predicted from z"], ["W" * 6], ["target,\nsource only"]])
def test_the_names_at_the_left_of_a_grid_are_not_cut(names):
    buffer = io.BytesIO()
    grid(torch.ones(4, 10, 3, 32, 32), names).savefig(buffer, format="png", dpi=160)
    sheet = np.asarray(Image.open(buffer).convert("L"))
    assert (sheet[:, :2] == 255).all() and (sheet < 100).any()


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save(path, {"a": 1})
    old = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError):
        write(path, b"new")
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def a_run(folder, **changed):
    """A Run with just the arguments that Run reads."""
    args = dict(data="folder:<b>", device="cpu", out=folder and str(folder), seed=0, epochs=1)
    args |= dict.fromkeys(("resume", "eval_only", "overwrite", "smoke", "amp", "compile"), False)
    args |= dict(command="python <i>", **changed)
    return evaluation.Run("cyclevae", SimpleNamespace(**args))


def test_a_folder_in_which_another_process_trains_is_refused_until_that_one_is_gone(tmp_path):
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX)"
    path = tmp_path / "args.json"
    path.write_text("{}")
    words = [sys.executable, "-c", hold + "; print(flush=True); time.sleep(60)", path]
    other = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(DataError, match="Another run is training"):
            a_run(tmp_path, overwrite=True).begin(load("digits", tmp_path, limit=200))
        assert path.read_text() == "{}"
    finally:
        other.kill()
        other.wait()
    a_run(tmp_path, overwrite=True).begin(load("digits", tmp_path, limit=200))
    assert json.loads(path.read_text())["script"] == "cyclevae"


def test_two_runs_begun_at_once_take_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load("digits", tmp_path, limit=200)
    first, second = a_run(None), a_run(None)
    assert first.folder == second.folder  # both chose before either began
    first.begin(data), second.begin(data)
    assert [str(run.folder) for run in (first, second)] == [
        "runs/cyclevae-folder-b-",
        "runs/cyclevae-folder-b--2",
    ]


def test_the_report_escapes_every_string_from_outside(tmp_path):
    run = a_run(tmp_path)
    run.say("<u>")
    run.table("<s>", ("<a>",), [("<p>",)], "<q>")
    (
        run.figure("x", grid(torch.zeros(1, 1, 1, 8, 8)), "<em>")
        if (tmp_path / "figures").mkdir() is None
        else None
    )
    run.finish("<title>", {})
    report = (tmp_path / "report.html").read_text()
    for tag in ("<b>", "<i>", "<u>", "<s>", "<a>", "<q>", "<em>", "<title><title>"):
        assert tag not in report
    assert json.loads((tmp_path / "results.json").read_text())["data"] == "folder:<b>"


def test_results_name_the_card(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    run.finish("", {})
    assert json.loads((tmp_path / "results.json").read_text())["device"] == "cpu"
    run.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    run.finish("", {})
    assert json.loads((tmp_path / "results.json").read_text())["device"] == "cuda (Card 1)"


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svm_report_is_what_scikit_learn_counts(kernel):
    from sklearn import metrics
    from sklearn.svm import SVC

    x, y = blobs(400, classes=5, spread=2.5)
    y_test = y[200:].clone()
    y_test[y_test == 2] = 3  # a class that is predicted but never there
    result = svm_report((x[:200], y[:200]), (x[200:], y_test), kernel)
    mean, scale = x[:200].mean(0), x[:200].std(0, correction=0)
    svc = SVC(kernel=kernel).fit((x[:200] - mean) / scale, y[:200])
    guess = svc.predict((x[200:] - mean) / scale)
    scores = metrics.precision_recall_fscore_support(y_test, guess, zero_division=0)
    assert 0.4 < result["accuracy"] < 0.99
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(y_test, guess))
    for name, expected in zip(("precision", "recall", "f1"), scores):
        assert result[name] == pytest.approx(expected.tolist())
    assert result["confusion"] == metrics.confusion_matrix(y_test, guess).tolist()
    assert json.loads(json.dumps(result)) == result and result["recall"][2] == 0
    few = svm_report((x[:200], y[:200]), (x[200:], y_test), kernel, points=20)
    assert few != result and few == svm_report((x[:200], y[:200]), (x[200:], y_test), kernel, 0, 20)


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


def test_every_log_weight_is_log_p_of_x_where_q_is_the_posterior():
    arguments, marginal, _ = linear_vae(45, orthogonal=True)
    exact = marginal.log_prob(arguments[0])
    for seed in range(3):
        for found in log_marginal(*arguments, ks=(1, 60), seed=seed).values():
            torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)


def test_a_prior_with_log_prob_takes_the_place_of_the_normal():
    loc, scale = torch.linspace(-1, 2, 5).double(), torch.linspace(0.3, 2, 5).double()
    arguments, marginal, _ = linear_vae(25, orthogonal=True, prior=(loc, scale))
    prior = Independent(Normal(loc, scale), 1)
    found = log_marginal(*arguments, ks=(3,), prior=prior)[3]
    torch.testing.assert_close(found, marginal.log_prob(arguments[0]), atol=1e-9, rtol=0)
    assert (log_marginal(*arguments, ks=(3,))[3] - found).abs().min() > 0.01


def test_the_bound_rises_with_k_from_the_elbo_to_log_p_of_x():
    arguments, marginal, posterior = linear_vae(2000, orthogonal=False)
    x, mu, logvar, _ = arguments
    q = MultivariateNormal(mu, (0.5 * logvar).exp().diag_embed().square())
    gap = kl_divergence(q, MultivariateNormal(mu, posterior))  # log p(x) - ELBO
    exact = marginal.log_prob(x)
    bounds = log_marginal(*arguments, ks=(1, 5, 50))
    error = (bounds[1] - exact).std() / math.sqrt(len(x))
    assert (bounds[1] - (exact - gap)).mean().abs() < 4 * error
    means = [(exact - gap).mean(), bounds[5].mean(), bounds[50].mean(), exact.mean()]
    assert means == sorted(means) and means[2] - means[1] > 5 * error
    few = slice(0, 200)
    tight = log_marginal(*(part[few] for part in (x, mu, logvar)), arguments[3], ks=(5000,))[5000]
    assert (tight - exact[few]).mean().abs() < 0.01


def test_neither_chunk_nor_ks_changes_anything_and_the_seed_does():
    arguments, _, _ = linear_vae(45, orthogonal=False)
    expected = log_marginal(*arguments, ks=(7, 130), chunk=130)
    for chunk in (1, 7, 50, 60, 1000):
        found = log_marginal(*arguments, ks=(130, 7), chunk=chunk)
        for k in (7, 130):
            torch.testing.assert_close(found[k], expected[k], atol=1e-11, rtol=0)
    torch.testing.assert_close(log_marginal(*arguments, ks=(7,))[7], expected[7])
    assert not torch.equal(log_marginal(*arguments, ks=(7,), seed=1)[7], expected[7])


def test_a_constant_of_ten_thousand_nats_passes_through():
    (*codes, log_likelihood), _, _ = linear_vae(25, orthogonal=False)
    plain = log_marginal(*codes, log_likelihood, ks=(100,))[100]
    for constant in (1e4, -1e4):
        found = log_marginal(*codes, lambda x, z: log_likelihood(x, z) + constant, ks=(100,))[100]
        torch.testing.assert_close(found, plain + constant, atol=1e-8, rtol=0)


def test_log_weights_ignore_autocast_and_memory_ignores_k():
    (*codes, log_likelihood), _, _ = linear_vae(25, orthogonal=False)
    codes, largest = [part.float() for part in codes], []

    def watched(x, z):
        largest[-1] = max(largest[-1], z.numel())
        return log_likelihood(x.double(), z.double()).float()

    for k in (100, 1000):
        largest.append(0)
        plain = log_marginal(*codes, watched, ks=(k,))[k]
    assert largest[0] == largest[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_marginal(*codes, watched, ks=(1000,))[1000], plain)


def test_nll_counts_nats_bits_and_its_standard_error_on_a_balanced_subset():
    arguments, marginal, _ = linear_vae(100, orthogonal=True)
    result = nll(*arguments, k=3)
    exact = -marginal.log_prob(arguments[0]).numpy()
    assert result["nats"] == pytest.approx(exact.mean(), abs=1e-9)
    assert result["bits_per_dim"] == pytest.approx(exact.mean() / 20 / np.log(2))
    assert result["stderr"] == pytest.approx(exact.std(ddof=1) / 10) and result["n"] == 100
    one = nll(*(part[:1] for part in arguments[:3]), arguments[3], k=3)
    assert one["stderr"] is None and json.dumps(one)
    labels = torch.randint(10, (5000,), generator=RNG)
    assert labels[pick(labels, 300, 0)].bincount().tolist() == [30] * 10


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


def test_statistics_are_numpys_in_any_batches_and_under_a_large_mean():
    x = np.random.default_rng(0).normal(size=(500, 12)) @ np.diag(np.arange(1, 13)) + 1e6
    for size in (1, 64, 500):
        mean, cov = statistics(torch.from_numpy(x).split(size))
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(cov, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-8)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A folder with random weights under the name of torchvision's, and torchvision's network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision().models.inception_v3(weights=None, aux_logits=True, init_weights=False)
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data *= 6**0.5  # PyTorch's own would fade out over so many ReLUs
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    folder = tmp_path_factory.mktemp("inception")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    (folder / f"inception_v3_google-{digest}.pth").write_bytes(buffer.getvalue())
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
    assert torch.equal(inception_input(grey), inception_input(colour))
    measure, name = evaluation.extractor("inception", None, random_inception[0], "cpu")
    assert "Inception" in name and "2,048" in name and "32" in name and "299" in name
    for a, b in zip(measure(grey), measure(colour.float() / 255)):
        assert torch.equal(a, b)


def test_inception_names_the_address_and_the_place_where_weights_are_missing_or_damaged(
    tmp_path, monkeypatch
):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match="no network") as error:
        inception(tmp_path)
    sentence = str(error.value)
    address = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
    assert address in sentence and str(tmp_path) in sentence and "\n" not in sentence
    content = pickle.dumps(print, 2)  # code, under a name with the right checksum
    for digest in ("0cc3c7bd", hashlib.sha256(content).hexdigest()[:8]):
        path = tmp_path / f"inception_v3_google-{digest}.pth"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            inception(tmp_path)
        path.unlink()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits and a folder with a LeNet of them that saw few images."""
    folder = tmp_path_factory.mktemp("digits")
    data = load("digits", folder)
    return data, folder, classifier(data, folder, 5000)[0]


def test_fid_is_zero_for_the_test_images_and_has_a_floor(digits):
    data, folder, net = digits
    same = fid("lenet", data, folder, data.test.x, shows=5000)
    assert same["value"] == pytest.approx(0, abs=1e-3) and same["n"] == len(data.test)
    noise = torch.rand(200, 1, 28, 28, generator=RNG)
    result = fid("lenet", data, folder, noise, shows=5000)
    assert result["value"] > 10 * result["floor"] > 0 and result["features"].startswith("LeNet")
    assert result == fid("lenet", data, folder, (noise * 255).round().byte(), shows=5000)
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
    """The same 150 digits as a folder of colour images of 40 pixels and as .npz, in the folder of
    the test."""
    data, folder, _ = digits
    monkeypatch.setattr(
        evaluation, "classifier", lambda data, data_dir, shows: classifier(data, data_dir, 5000)
    )
    monkeypatch.chdir(tmp_path)
    x = data.test.x[:150]
    np.savez("x.npz", images=x.permute(0, 2, 3, 1).numpy())
    for i, image in enumerate(x):
        path = tmp_path / "images" / ("even" if i % 2 == 0 else "odd/deep") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).convert("RGB").resize((40, 40)).save(path)
    return ["--data-dir", str(folder)]


def distance(capsys, *words):
    main(["fid", *words])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    return float(lines["distance"]), lines


def test_the_fid_command_takes_folders_npz_files_and_sets(digits, sides, capsys):
    data, folder, _ = digits
    expected = fid("lenet", data, folder, data.test.x[:150], shows=5000)
    for pair in (("x.npz", "digits"), ("digits", "x.npz")):
        value, lines = distance(capsys, *pair, *sides)
        assert value == pytest.approx(expected["value"], rel=1e-3)
        assert float(lines["floor"].split()[0]) == pytest.approx(expected["floor"], rel=1e-3)
        counts = lines["images"].split(", ")
        assert sorted(counts) == ["150 of x.npz", f"{len(data.test)} of digits"]
        assert lines["features"] == "LeNet of digits, 128"
    assert distance(capsys, "digits", "digits", *sides)[0] == pytest.approx(0, abs=1e-3)
    blurred, lines = distance(capsys, "images", "x.npz", "--data", "digits", *sides)
    assert 0 < blurred < expected["value"] and lines["floor"].startswith("none")


def test_bad_input_of_the_fid_command_is_one_sentence(sides, capsys):
    np.savez("code.npz", images=np.array([print], dtype=object))
    np.savez("float.npz", images=np.zeros((200, 28, 28, 1)))
    np.savez("other.npz", pictures=np.zeros((200, 28, 28, 1), np.uint8))
    with open("cut.npz", "wb") as file:
        file.write(open("x.npz", "rb").read()[:300])
    for words, why in (
        (["code.npz", "digits"], "allow_pickle=False"),
        (["float.npz", "digits"], "float64"),
        (["other.npz", "digits"], "images is not"),
        (["cut.npz", "digits"], "cut.npz is truncated or damaged"),
        (["nowhere", "digits"], "nowhere is no set"),
        (["images", "x.npz"], "--features inception"),
        (["images", "digits", "--features", "inception"], "2,048"),
        (["images", "x.npz", "--data", "digit"], "no set 'digit'"),
        (["images"], "fid two sides"),
        (["images", "digits", "--features", "lenets"], "--features"),
    ):
        with pytest.raises(SystemExit) as ended:
            command_line(lambda: main(["fid", *words, *sides]))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
        assert why in error


def test_a_confusion_matrix_of_thirty_classes_draws_the_twenty_most_confused():
    matrix = torch.eye(30, dtype=torch.long) * 50
    for k in range(0, 20, 2):
        matrix[k, k + 1], matrix[k, 29] = 5, 1  # 0 to 19 are confused, and 29 with the even ones
    figure = confusion(matrix.tolist(), [f"$x_{k}" for k in range(30)])
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 20 == len(set(names)) and "$x_29" in names and "$x_25" not in names
    assert names == [text.get_text() for text in axes.get_xticklabels()]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert cells[names.index("$x_1"), names.index("$x_0")] == "5\n9 %"  # column predicted, row true
    figure.savefig(io.BytesIO())  # $ is no formula
    assert len(confusion(np.eye(3, dtype=int), "abc").axes[0].get_yticklabels()) == 3
