"""mathieu.py against torch.distributions, autograd and plain evaluations, and its runs."""

import json
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import mathieu
from conftest import run_main
from data import Split, batches, load, pairs
from eval import make_rng

ARGS = {"z_dim": 5, "s_dim": 7, "adv_weight": 1.0, "n_classes": 3, "seed": 0}


def networks(size=28, **changes):
    """Encoder, decoder and discriminator in float64."""
    nets = mathieu.build((1, size, size), {**ARGS, **changes})
    return [net.double() for net in nets.values()]


def draws():
    """x (2B, ...), noise (2B, Z), prior (B // 2, Z) of a step of 4 pairs, and y (B,)."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(8, 1, 28, 28, generator=rng, dtype=torch.float64)
    noise = torch.randn(8, 5, generator=rng, dtype=torch.float64)
    prior = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    return x, noise, prior, torch.tensor([0, 2, 1, 2])


# the networks


@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (60, 3), (64, 1), (45, 1)])
def test_networks_take_every_size_and_give_images_back(size, channels):
    x = torch.rand(3, channels, size, size)
    nets = mathieu.build((channels, size, size), ARGS)
    mu, logvar, s = nets["enc"](x)
    assert mu.shape == logvar.shape == (3, 5) and s.shape == (3, 7)
    out = nets["dec"](mu, s)
    assert out.shape == x.shape and 0 <= out.min() and out.max() <= 1
    assert nets["disc"](out, torch.tensor([0, 1, 2])).shape == (3,)


def test_the_discriminator_depends_on_the_class():
    _, _, disc = networks()
    x, _, _, y = draws()
    logits = disc(x[:4], y)
    assert (logits - disc(x[:4], (y + 1) % 3)).abs().min() > 1e-3


# the objective


def test_kl_divergence_is_that_of_torch_distributions():
    mu, logvar = torch.randn(2, 6, 5, dtype=torch.float64)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(mathieu.kl_divergence(mu, logvar), want)


@pytest.mark.parametrize("target", [0.0, 0.95, 1.0])
def test_cross_entropy_is_the_expected_code_length_of_a_label(target):
    logits = torch.randn(6)
    disc = Bernoulli(logits=logits)
    want = -(target * disc.log_prob(torch.ones(6)) + (1 - target) * disc.log_prob(torch.zeros(6)))
    torch.testing.assert_close(mathieu.cross_entropy(logits, target), want.mean())


def test_reconstruct_and_swap_equals_a_plain_evaluation_of_its_formulas():
    enc, dec, _ = networks()
    x, noise, prior, _ = draws()
    mathieu.reconstruct_and_swap(enc, dec, x, noise, prior)  # moves batch norm from its start
    enc.eval()
    dec.eval()  # now each image can be computed by itself
    q, s = [], []
    for image in x:
        mu, logvar, code = enc(image[None])
        q.append(Normal(mu, (0.5 * logvar).exp()))
        s.append(code)
    z = [d.mean + d.stddev * eps for d, eps in zip(q, noise)]
    want_swap = sum(((dec(z[i], s[(i + 4) % 8])[0] - x[i]) ** 2).sum() for i in range(8)) / 8
    want_own = sum(((dec(z[i], s[i])[0] - x[i]) ** 2).sum() for i in range(4)) / 4
    want_kl = sum(kl_divergence(d, Normal(0.0, 1.0)).sum() for d in q) / 8
    want_fake = [dec(prior[:1], s[0]), dec(prior[1:], s[1]), dec(z[1], s[2]), dec(z[2], s[3])]
    swap, own, kl, fake = mathieu.reconstruct_and_swap(enc, dec, x, noise, prior)
    torch.testing.assert_close(swap, want_swap)
    torch.testing.assert_close(own, want_own)
    torch.testing.assert_close(kl, want_kl)
    torch.testing.assert_close(fake, torch.cat(want_fake))


def test_the_first_step_follows_the_gradient_of_each_players_own_loss(tmp_path):
    """After one step of Adam with beta1 = 0.5 the first moment is half of the gradient."""
    argv = "--smoke --limit 64 --epochs 1 --batch-size 64".split()
    folder = tmp_path / "run"
    assert run_main(mathieu, *argv, "--data-dir", tmp_path / "d", "--out", folder) == 0
    saved = torch.load(folder / "last.pt", weights_only=True)
    args = saved["args"]
    train = load("digits", tmp_path / "d", 28, 64, 0).train
    nets = mathieu.build(saved["shape"], args)
    enc, dec, disc = nets["enc"], nets["dec"], nets["disc"]

    rng = make_rng(0, "training")
    idx = next(batches(train, min(64, len(train)), rng))
    x = train.images(torch.cat([idx, pairs(train, idx, rng)]))
    y = train.y[idx]
    half = len(y)
    noise = torch.randn(2 * half, args["z_dim"], generator=rng)
    prior = torch.randn(half // 2, args["z_dim"], generator=rng)
    mu, logvar, s = enc(x)
    q = Normal(mu, (0.5 * logvar).exp())
    z = q.mean + q.stddev * noise
    other_z = torch.cat([prior, z[:half].roll(1, 0)[half // 2 :]])
    out = dec(torch.cat([z, z[:half], other_z]),
              torch.cat([s[half:], s[:half], s[:half], s[:half]]))
    swap = ((out[: 2 * half] - x) ** 2).sum() / (2 * half)
    own = ((out[2 * half : 3 * half] - x[:half]) ** 2).sum() / half
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum() / (2 * half)
    fake = out[3 * half :]

    def entropy(images, label):
        real = Bernoulli(logits=disc(images, y))
        return -(label * real.log_prob(torch.ones(half))
                 + (1 - label) * real.log_prob(torch.zeros(half))).mean()

    loss = 0.35 * swap + 0.05 * own + kl + entropy(fake, 0.95)
    weights = [*enc.parameters(), *dec.parameters()]
    want = torch.autograd.grad(loss, weights, retain_graph=True)
    loss_disc = (entropy(x[:half], 0.95) + entropy(fake.detach(), 0.0)) / 2
    want_disc = torch.autograd.grad(loss_disc, list(disc.parameters()))
    parts = saved["models"][""]["parts"]
    for name, grads in (("opt", want), ("opt_disc", want_disc)):
        state = parts[name]["state"]
        assert len(state) == len(grads)
        for moments, grad in zip(state.values(), grads):
            tolerance = 1e-3 * grad.abs().max().item() + 1e-6
            torch.testing.assert_close(2 * moments["exp_avg"], grad, rtol=0, atol=tolerance)


def test_validation_draws_partners_from_the_pool_and_counts_the_class_of_s():
    """Images are constants and s is the image, so that every number is known."""
    y = torch.tensor([0, 1])
    val = Split(torch.tensor([200, 100], dtype=torch.uint8).view(2, 1, 1, 1), y)
    pool = Split(torch.tensor([50, 50, 0, 0], dtype=torch.uint8).view(4, 1, 1, 1),
                 torch.tensor([0, 0, 1, 1]))

    class Net:
        def predict(self, images):  # 50 is class 0, black is class 1
            return (images[:, 0, 0, 0] < 0.1).long()

    def enc(x):
        return torch.zeros(len(x), 1), torch.full((len(x), 1), -50.0), x.flatten(1)

    def dec(z, s):
        return s[:, :, None, None]

    swap, kl, accuracy = mathieu.validation(enc, dec, val, pool, 0, Net())
    want = ((200 - 50) ** 2 + 100**2) / 2 / 255**2
    assert swap == pytest.approx(want, rel=1e-4) and kl == pytest.approx(24.5, rel=1e-4)
    assert accuracy == 1.0


# has the adversary settled?


def log_of(n, drift=0.0, noise=0.01, **changes):
    """A log of 5 n epochs, of which the last n scatter by `noise` and drift by `drift`."""
    values = {"adv": 0.8, "disc": 0.6, "disc_unsmoothed": 0.55, "real_acc": 0.7, "fake_acc": 0.7}
    values.update(changes)
    history = [dict.fromkeys(values, 9.0) for _ in range(4 * n)]  # not looked at
    for i in range(n):
        part = noise * (1, -1, -1, 1)[i % 4] + drift * i / n
        history.append({name: value + part for name, value in values.items()})
    return history


def test_noise_is_settled_whatever_its_size_and_a_drift_is_not():
    for noise in (0.001, 0.02):
        found, converged = mathieu.convergence(log_of(8, noise=noise), 0.2)
        assert converged is True and found["adv"]["mean"] == pytest.approx(0.8)
    found, converged = mathieu.convergence(log_of(8, drift=0.1), 0.2)
    assert converged is False and not found["disc"]["holds"]


def test_the_change_is_that_of_the_least_squares_line():
    rng = np.random.default_rng(0)
    history = log_of(12)
    for row in history:
        row["adv"] = rng.normal()
    values = [row["adv"] for row in history[-12:]]
    t = np.arange(12)
    slope = np.cov(t, values)[0, 1] / np.var(t, ddof=1)
    found, _ = mathieu.convergence(history, 0.2)
    assert found["adv"]["change"] == pytest.approx(12 * slope)


@pytest.mark.parametrize("changes, column", [({"real_acc": 0.97}, "real_acc"),
                                             ({"fake_acc": 0.42}, "fake_acc"),
                                             ({"disc_unsmoothed": 0.28}, "disc_unsmoothed")])
def test_a_discriminator_that_wins_or_gives_up_is_not_settled(changes, column):
    found, converged = mathieu.convergence(log_of(8, **changes), 0.2)
    assert converged is False
    assert [name for name in found if not found[name]["holds"]] == [column]


def test_a_step_size_that_vanishes_and_too_few_epochs_show_nothing():
    assert mathieu.convergence(log_of(8), 0.05)[1] is False
    assert mathieu.convergence(log_of(2), 0.2)[1] is None


# the runs


def test_smoke_separates_s_from_z_and_reports_on_the_adversary(smoke):
    folder, _ = smoke("mathieu")
    results = json.loads((folder / "results.json").read_text())
    assert results["converged"] in (True, False)
    assert "settled" in (folder / "report.html").read_text()
    assert results["s_test_acc"] > 0.5 > results["z_test_acc"]  # it learns even here
    assert results["swap_class_acc"] > 0.5
    assert 0 < results["swap_fid"] < math.inf and 0 < results["fid_floor"] < math.inf


def test_the_networks_of_a_checkpoint_code_each_image_by_itself(smoke):
    nets = mathieu.load(smoke("mathieu")[0] / "best.pt")
    x = torch.rand(2, 1, 28, 28)
    mu, _, s = nets["enc"](x)
    mu = mu.detach()
    tolerance = 1000 * torch.finfo(mu.dtype).eps * mu.abs().max().item()
    torch.testing.assert_close(mu[:1], nets["enc"](x[:1])[0].detach(), rtol=0, atol=tolerance)
    assert nets["dec"](mu, s).shape == x.shape


def test_without_an_adversary_there_is_no_discriminator_and_its_keys_are_null(tmp_path):
    args = ["--smoke", "--limit", "200", "--epochs", "1", "--adv-weight", "0"]
    assert run_main(mathieu, *args, "--data-dir", tmp_path, "--out", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["adversary"] is None and results["converged"] is None
    assert not (tmp_path / "run" / "figures" / "adversary.png").exists()
    assert set(mathieu.load(tmp_path / "run" / "best.pt")) == {"enc", "dec"}
    assert "disc" not in (tmp_path / "run" / "log.csv").read_text()
