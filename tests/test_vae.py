"""vae.py against torch.distributions and closed forms, and what it promises of a run."""

import argparse
import json
import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import vae
from conftest import run_main
from eval import encode

RNG = torch.Generator().manual_seed(0)
FIGURES = {"curves", "reconstructions", "learning", "samples", "samples_100", "tsne", "confusion"}
ARGS = {
    "model": "vae",
    "arch": "fc",
    "hidden": [7],
    "activation": "tanh",
    "z_dim": 3,
    "seed": 0,
    "ae": None,
}


def randn(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def nets(shape=(1, 8, 8), **changes):
    return [net.double() for net in vae.build(shape, {**ARGS, **changes}).values()]


def test_kl_is_that_of_torch_distributions():
    mu, logvar = randn(2, 5, 3)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1.0))
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), want)


def test_log_likelihoods_are_those_of_torch_distributions():
    x, logits = randn(4, 1, 8, 8).sigmoid(), randn(2, 4, 1, 8, 8)
    hard = (x > 0.5).double()
    want = Independent(Bernoulli(logits=logits), 3).log_prob(hard)
    torch.testing.assert_close(vae.bernoulli_log_likelihood(hard, logits), want)
    want = Independent(Normal(logits.sigmoid(), 0.3), 3).log_prob(x)
    torch.testing.assert_close(vae.gaussian_log_likelihood(x, logits.sigmoid(), 0.3), want)


def test_grey_pixels_give_the_expectation_over_binarised_ones():
    x, logits = torch.tensor([[[[0.3, 0.8]]]]), torch.tensor([[[[0.5, -1.0]]]])
    want = sum(
        (0.3 if a else 0.7)
        * (0.8 if b else 0.2)
        * vae.bernoulli_log_likelihood(torch.tensor([[[[a, b]]]]), logits)
        for a in (0.0, 1.0)
        for b in (0.0, 1.0)
    )
    torch.testing.assert_close(vae.bernoulli_log_likelihood(x, logits), want)


def test_log_mean_exp_neither_overflows_nor_depends_on_the_scale():
    x = randn(6, 2)
    torch.testing.assert_close(vae.log_mean_exp(x), x.exp().mean(0).log())
    torch.testing.assert_close(vae.log_mean_exp(x + 1e4) - 1e4, x.exp().mean(0).log())


def test_the_bound_is_a_plain_evaluation_of_its_formula():
    enc, dec = nets()
    x, noise = randn(5, 1, 8, 8).sigmoid(), randn(1, 5, 3)
    loss, recon, kl = vae.vae_loss(enc, dec, x, noise, vae.bernoulli_log_likelihood, beta=0.7)
    want_recon = want_kl = 0
    for i in range(5):
        mu, logvar = enc(x[i : i + 1])
        q = Normal(mu, (0.5 * logvar).exp())
        p = dec(q.mean + q.stddev * noise[0, i]).sigmoid()[0]
        want_recon -= (x[i] * p.log() + (1 - x[i]) * (1 - p).log()).sum() / 5
        want_kl += kl_divergence(q, Normal(torch.zeros_like(mu), 1.0)).sum() / 5
    torch.testing.assert_close(recon, want_recon)
    torch.testing.assert_close(kl, want_kl)
    torch.testing.assert_close(loss, want_recon + 0.7 * want_kl)


def test_the_iwae_bound_is_the_log_mean_of_weights_and_at_one_sample_an_elbo():
    enc, dec = nets()
    x, noise = randn(5, 1, 8, 8).sigmoid(), randn(4, 5, 3)
    mu, logvar = enc(x)
    q = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    z = q.mean + q.stddev * noise
    prior = Independent(Normal(torch.zeros_like(mu), 1.0), 1)
    log_w = vae.bernoulli_log_likelihood(x, dec(z)) + prior.log_prob(z) - q.log_prob(z)
    loss = vae.vae_loss(enc, dec, x, noise, vae.bernoulli_log_likelihood, iwae=4)[0]
    torch.testing.assert_close(loss, -log_w.exp().mean(0).log().mean())
    one = vae.vae_loss(enc, dec, x, noise[:1], vae.bernoulli_log_likelihood, iwae=1)[0]
    torch.testing.assert_close(one, -log_w[0].mean())


def test_nae_codes_have_mean_0_and_variance_1_over_a_batch_and_exactly_over_train():
    from data import Split

    built = vae.build((1, 8, 8), {**ARGS, "model": "nae"})
    x = torch.randint(256, (300, 1, 8, 8), generator=RNG, dtype=torch.uint8)
    split = Split(x, torch.arange(300) % 3)
    (code,) = built["enc"].train()(split.images(slice(0, 64)))
    torch.testing.assert_close(code.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(code.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    vae.settle(built, split)
    (code,) = encode(built["enc"], split)
    torch.testing.assert_close(code.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(code.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    alone = built["enc"](split.images(slice(0, 1)))[0]
    torch.testing.assert_close(alone, code[:1], rtol=1e-4, atol=1e-4)  # no batch mates


def test_nae_and_its_ae_start_from_the_same_weights():
    built = vae.build((1, 8, 8), {**ARGS, "model": "nae"})
    for name in ("enc", "dec"):
        for a, b in zip(built[name].parameters(), built["ae_" + name].parameters()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("size", [28, 32, 60, 64])
@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_networks_take_every_size_and_give_images_back(arch, size):
    enc, dec = nets((3, size, size), arch=arch)
    mu, logvar = enc(torch.rand(2, 3, size, size, dtype=torch.float64))
    assert mu.shape == logvar.shape == (2, 3)
    assert dec(mu).shape == (2, 3, size, size)
    assert dec(torch.stack([mu, mu, mu])).shape == (3, 2, 3, size, size)


def test_784_400_20_has_the_known_number_of_weights():
    enc, dec = nets((1, 28, 28), hidden=[400], z_dim=20)
    assert sum(p.numel() for net in (enc, dec) for p in net.parameters()) == 652_824


def test_held_out_weighs_a_short_last_batch_as_it_should():
    from data import Split

    enc, dec = (net.float() for net in nets(model="ae"))
    x = torch.randint(256, (730, 1, 8, 8), generator=RNG, dtype=torch.uint8)
    split, args = Split(x, torch.zeros(730)), argparse.Namespace(model="ae", seed=0)
    (mse,) = vae.held_out([(enc, dec)], split, args)
    want = (dec(enc(split.images(slice(None)))[0]).sigmoid() - x / 255).square().mean().item()
    assert math.isclose(mse, want, rel_tol=1e-5)


# the runs


def test_smoke_s_numbers_fit_together(smoke):
    r = json.loads((smoke("vae")[0] / "results.json").read_text())
    assert "LeNet" in r["fid"]["features"] and r["nll"]["k"] == r["args"]["nll_k"] == 50
    assert len(r["code_mean"]) == len(r["code_std"]) == 20 and 0 <= r["off_support"] <= 1
    assert math.isclose(r["test_elbo"], r["test_recon"] + r["test_kl"], rel_tol=1e-5)
    assert math.isclose(r["nll"]["bits_per_dim"], r["nll"]["nats"] / 784 / math.log(2))


def test_nae_trains_ae_beside_it_or_takes_one_that_is_given(tmp_path):
    flags = "--data digits --limit 400 --batch-size 32 --device cpu --fid none".split()
    flags += ["--epochs", "2", "--data-dir", tmp_path]
    assert run_main(vae, "--model", "nae", *flags, "--smoke", "--out", tmp_path / "nae") == 0
    r = json.loads((tmp_path / "nae" / "results.json").read_text())
    assert set("test_mse fid code_mean code_std off_support svm_rbf".split()) < set(r)
    assert r["fid"] is None and len(r["code_mean"]) == 2
    assert all(abs(m) < 1e-3 for m in r["code_mean"])
    assert all(abs(s - 1) < 2e-3 for s in r["code_std"])
    assert {"test_mse", "off_support"} < set(r["beside"])
    figures = {path.stem for path in (tmp_path / "nae" / "figures").glob("*.png")}
    plane = {f"{what}_{name}" for what in ("plane", "decoded") for name in ("ae", "nae")}
    assert figures == FIGURES | plane
    assert run_main(vae, "--model", "ae", *flags, "--smoke", "--out", tmp_path / "ae") == 0
    ae = json.loads((tmp_path / "ae" / "results.json").read_text())
    assert ae["test_mse"] == pytest.approx(r["beside"]["test_mse"], rel=1e-3)  # the same training
    given = ["--ae", tmp_path / "ae" / "best.pt", "--out", tmp_path / "given"]
    assert run_main(vae, "--model", "nae", *flags, "--smoke", *given) == 0
    r = json.loads((tmp_path / "given" / "results.json").read_text())
    assert r["beside"]["test_mse"] == pytest.approx(ae["test_mse"], rel=1e-5)
    assert set(vae.load(tmp_path / "given" / "best.pt")) == {"enc", "dec"}
