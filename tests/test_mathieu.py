"""mathieu.py against torch.distributions, autograd and plain evaluations, and its runs."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import mathieu
from conftest import run_main

ARGS = {"z_dim": 5, "s_dim": 7, "arch": "small", "adv_weight": 1.0, "discriminator": "class"}
ARGS["seed"] = 0


def parts(seed=0, size=28, **changes):
    """Networks in float64, batch norm not at its start, and what a step of 4 pairs takes."""
    torch.manual_seed(seed)
    nets = mathieu.build((1, size, size), 3, {**ARGS, "seed": seed, **changes})
    for net in nets.values():
        net.double()
    draws = {
        "x": torch.rand(8, 1, size, size, dtype=torch.float64),
        "noise": torch.randn(8, 5, dtype=torch.float64),
        "prior": torch.randn(2, 5, dtype=torch.float64),
    }
    with torch.no_grad():
        mathieu.generate(nets["enc"], nets["dec"], **draws)
    return nets, draws, torch.tensor([0, 2, 1, 2])


def one_step(nets, draws, y, rates, weights=(0.3, 1.1, 0.2, 0.7), optimiser=torch.optim.SGD):
    """mathieu.step with these step sizes of Enc and Dec, and of Disc; returns its terms."""
    enc, dec, disc = nets.values()
    owned = [*enc.parameters(), *dec.parameters()], [*disc.parameters()]
    opts = [optimiser(group, lr=rate) for group, rate in zip(owned, rates)]
    x, noise, prior = draws.values()
    return mathieu.step(nets.values(), opts, x, y, noise, prior, weights, contextlib.nullcontext)


def weights_of(net):
    return [p.detach().clone() for p in net.parameters()]


def unchanged(net, before):
    return all(torch.equal(p, b) for p, b in zip(net.parameters(), before))


# networks


@pytest.mark.parametrize("arch", ["small", "big"])
@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (60, 3), (64, 1), (45, 1)])
def test_networks_take_every_size_and_give_images_back(size, channels, arch):
    shape, x = (channels, size, size), torch.rand(3, channels, size, size)
    for kind in ("class", "pair"):
        nets = mathieu.build(shape, 4, {**ARGS, "arch": arch, "discriminator": kind})
        mu, logvar, s = nets["enc"](x)
        assert mu.shape == logvar.shape == (3, 5) and s.shape == (3, 7)
        out = nets["dec"](mu, s)
        assert out.shape == x.shape and 0 <= out.min() and out.max() <= 1
        assert nets["disc"](out, torch.tensor([0, 1, 3]), x).shape == (3,)


@pytest.mark.parametrize("size, plan", [(28, "small"), (45, "small"), (64, "big"), (31, "big")])
def test_sides_are_those_of_the_encoders_maps(size, plan):
    enc, seen = mathieu.Encoder((1, size, size), 2, 2, plan), [size]
    for layer in enc.trunk:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    enc(torch.rand(2, 1, size, size))
    assert mathieu.sides(size, mathieu.ARCH[plan][0]) == seen


def test_the_class_discriminator_hears_the_class_and_the_pair_discriminator_the_image():
    nets, draws, y = parts()
    x, beside = draws["x"].split(4)
    by_class, by_pair = nets["disc"], parts(discriminator="pair")[0]["disc"]
    wrong = (y + 1) % 3
    assert not torch.allclose(by_class(x, y, beside), by_class(x, wrong, beside), atol=1e-3)
    torch.testing.assert_close(by_class(x, y, beside), by_class(x, y, x))
    assert not torch.allclose(by_pair(x, y, beside), by_pair(x, y, x), atol=1e-3)
    torch.testing.assert_close(by_pair(x, y, beside), by_pair(x, wrong, beside))


# the objective


def test_kl_divergence_is_that_of_torch_distributions():
    mu, logvar = torch.randn(2, 6, 5, dtype=torch.float64)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(mathieu.kl_divergence(mu, logvar), want)


def test_generate_equals_a_plain_evaluation_of_its_formulas():
    nets, draws, _ = parts()
    enc, dec = (nets[name].eval() for name in ("enc", "dec"))  # an image by itself
    x, noise, prior = draws.values()
    q, s = [], []
    for image in x:
        mu, logvar, code = enc(image[None])
        q.append(Normal(mu, (0.5 * logvar).exp()))
        s.append(code)
    z = [d.mean + d.stddev * eps for d, eps in zip(q, noise)]
    want = [
        sum(((dec(z[i], s[(i + 4) % 8])[0] - x[i]) ** 2).sum() for i in range(8)) / 8,
        sum(kl_divergence(d, Normal(0.0, 1.0)).sum() for d in q) / 8,
        sum(((dec(z[i], s[i])[0] - x[i]) ** 2).sum() for i in range(4)) / 4,
    ]
    strange = [prior[:1], prior[1:], z[1], z[2]]
    made = torch.cat([dec(code, s[i]) for i, code in enumerate(strange)])
    *terms, images = mathieu.generate(enc, dec, x, noise, prior)
    torch.testing.assert_close(terms, want)
    torch.testing.assert_close(images, made)
    assert len(mathieu.generate(enc, dec, x, noise)[3]) == 0


@pytest.mark.parametrize("kind", ["class", "pair"])
def test_a_step_reports_the_cross_entropies_and_accuracies_of_a_plain_evaluation(kind):
    nets, draws, y = parts(discriminator=kind)
    enc, dec, disc = nets.values()
    x, beside = draws["x"].split(4)
    with torch.no_grad():
        *terms, made = mathieu.generate(enc, dec, **draws)
        real = disc(x, y, beside).float().sigmoid()
        fake = disc(made, y, x).float().sigmoid()
    loss_g = -(0.95 * fake.log() + 0.05 * (1 - fake).log()).mean()
    on_real = -(0.95 * real.log() + 0.05 * (1 - real).log()).mean()
    want = [loss_g, (on_real - (1 - fake).log().mean()) / 2]
    want += [(real > 0.5).float().mean(), (fake < 0.5).float().mean()]
    found = one_step(nets, draws, y, rates=(0.1, 0.1))
    torch.testing.assert_close(found[:3], torch.stack(terms).to(found.dtype))
    torch.testing.assert_close(found[3:], torch.stack(want).to(found.dtype), rtol=1e-5, atol=1e-6)


def test_each_step_moves_only_the_weights_that_it_owns():
    nets, draws, y = parts()
    enc, dec, disc = nets.values()
    state = {k: v.clone() for k, v in disc.state_dict().items()}
    before = weights_of(enc), weights_of(dec)
    one_step(nets, draws, y, rates=(0.1, 0.0))
    assert all(torch.equal(v, state[k]) for k, v in disc.state_dict().items())
    assert not unchanged(enc, before[0]) and not unchanged(dec, before[1])

    nets, draws, y = parts()
    enc, dec, disc = nets.values()
    before = [weights_of(net) for net in nets.values()]
    one_step(nets, draws, y, rates=(0.0, 0.1))
    assert unchanged(enc, before[0]) and unchanged(dec, before[1])
    assert all(p.grad.abs().sum() > 0 for p in disc.head.parameters())
    assert not unchanged(disc, before[2])


def test_gradients_are_those_of_the_two_objectives_by_themselves():
    weights = (0.3, 1.1, 0.2, 0.7)
    nets, draws, y = parts()
    enc, dec, disc = nets.values()
    x, beside = draws["x"].split(4)
    owned = [*enc.parameters(), *dec.parameters()]
    *terms, made = mathieu.generate(enc, dec, **draws)
    fake = torch.nn.functional.logsigmoid(disc(made, y, x).float())
    no_fake = torch.nn.functional.logsigmoid(-disc(made, y, x).float())
    terms.append(-(0.95 * fake + 0.05 * no_fake).mean())
    objective = sum(w * t for w, t in zip(weights, terms))
    want = torch.autograd.grad(objective, owned, retain_graph=True, allow_unused=True)
    on_made, _ = mathieu.adversary(disc, made.detach(), y, x, 0.0)
    on_real, _ = mathieu.adversary(disc, x, y, beside, 0.95)
    want_disc = torch.autograd.grad((on_made + on_real) / 2, [*disc.parameters()])

    nets, draws, y = parts()
    one_step(nets, draws, y, rates=(0.0, 0.0), weights=weights)
    enc, dec, disc = nets.values()
    for parameter, grad in zip([*enc.parameters(), *dec.parameters()], want):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
    for parameter, grad in zip(disc.parameters(), want_disc):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_a_step_encodes_once_decodes_once_and_gives_the_passing_discriminator_no_gradients():
    nets, draws, y = parts()
    calls, grads = [], []
    for name in ("enc", "dec", "disc"):
        nets[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    nets["disc"].head.weight.register_hook(grads.append)
    one_step(nets, draws, y, rates=(0.1, 0.1))
    assert calls == ["enc", "dec", "disc", "disc", "disc"]
    assert len(grads) == 1  # of its own loss, not of what it passes on to Dec


# settled


def log_of(n, loss_g=0.8, loss_d=0.6, real=0.7, fake=0.7, drift=0.0, noise=0.01):
    """A log of 5 n epochs whose last n scatter by +noise, -noise, -noise, +noise and drift."""
    sign = [noise * (1, -1, -1, 1)[i % 4] + drift * i / n for i in range(n)]
    values = zip(mathieu.SERIES, (loss_g, loss_d, real, fake))
    last = {key: [value + part for part in sign] for key, value in values}
    early = [dict.fromkeys(mathieu.SERIES, 9.0) for _ in range(4 * n)]  # not looked at
    return early + [{key: last[key][i] for key in last} for i in range(n)]


def test_settled_is_true_for_noise_and_false_for_a_drift():
    found, sentence = mathieu.settled(log_of(8), mathieu.SERIES)
    assert found["settled"] is True and "has settled" in sentence
    assert found["loss_g"] == pytest.approx(0.8) and found["d_fake_acc"] == pytest.approx(0.7)
    found, sentence = mathieu.settled(log_of(8, drift=0.1), mathieu.SERIES)
    assert found["settled"] is False and "loss_g drifts by +0.1 " in sentence


@pytest.mark.parametrize("drift", [0.009, 0.0105, 0.0115, 0.013])
def test_settled_compares_the_fitted_lines_rise_with_the_scatter_about_it(drift):
    log = log_of(12, drift=drift)
    y = np.array([row["loss_d"] for row in log[-12:]])
    slope, level = np.polyfit(np.arange(12), y, 1)
    spread = math.sqrt(((y - level - slope * np.arange(12)) ** 2).sum() / 10)
    assert mathieu.settled(log, mathieu.SERIES)[0]["settled"] is bool(12 * abs(slope) <= spread)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"real": 0.98}, "d_real_acc"),
        ({"fake": 0.45}, "d_fake_acc"),
        ({"loss_d": 0.2}, "loss_d is not above"),
    ],
)
def test_settled_is_false_where_a_discriminator_won_or_is_dead(changes, word):
    found, sentence = mathieu.settled(log_of(8, **changes), mathieu.SERIES)
    assert found["settled"] is False and word in sentence


def test_settled_is_none_without_an_adversary_or_with_too_few_epochs():
    found, sentence = mathieu.settled([{"swap": 1.0}] * 40, mathieu.SERIES)
    assert set(found) == {*mathieu.SERIES, "settled"} and not any(found.values())
    assert "No adversary" in sentence
    found, sentence = mathieu.settled(log_of(2), mathieu.SERIES)
    assert found["settled"] is None and found["loss_d"] == pytest.approx(0.6)


# the runs


def test_smoke_tells_s_from_z_and_whether_the_adversary_settled(smoke):
    folder, _ = smoke("mathieu")
    results = json.loads((folder / "results.json").read_text())
    assert results["settled"] in (True, False)
    assert "settled" in (folder / "report.html").read_text()
    assert results["s_test_acc"] > 0.5 > results["z_test_acc"]  # it learns even here


def test_the_networks_of_a_checkpoint_code_each_image_by_itself(smoke):
    nets, x = mathieu.load(smoke("mathieu")[0] / "best.pt"), torch.rand(2, 1, 28, 28)
    mu, _, s = nets["enc"](x)
    mu = mu.detach()
    tolerance = 1000 * torch.finfo(mu.dtype).eps * mu.abs().max().item()
    torch.testing.assert_close(mu[:1], nets["enc"](x[:1])[0].detach(), rtol=0, atol=tolerance)
    assert nets["dec"](mu, s).shape == x.shape


def test_without_an_adversary_there_is_no_discriminator_and_its_keys_are_null(tmp_path):
    args = ["--smoke", "--limit", "200", "--epochs", "1", "--adv-weight", "0"]
    assert run_main(mathieu, *args, "--data-dir", tmp_path, "--out", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(results[key] is None for key in (*mathieu.SERIES, "settled"))
    assert not (tmp_path / "run" / "figures" / "adversary.png").exists()
    assert set(mathieu.load(tmp_path / "run" / "best.pt")) == {"enc", "dec"}
    assert "loss_d" not in (tmp_path / "run" / "log.csv").read_text()
