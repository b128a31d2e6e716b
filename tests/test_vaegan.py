"""vaegan.py against torch.distributions and a plain way of writing Algorithm 1, and its run."""

import argparse
import contextlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

import eval as evaluation
import vaegan
from conftest import ROOT, reporter, run_main

RNG = torch.Generator().manual_seed(0)
FIGURES = {"curves", "discriminator", "reconstructions", "samples"}
ARGS = {"arch": "fc", "width": 9, "z_dim": 3, "seed": 0, "baseline": False}


def randn(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def nets(shape=(1, 8, 8), **changes):
    return [net.double() for net in vaegan.build(shape, {**ARGS, **changes}).values()]


def flags(**changes):
    given = {"loss": "full", "gamma": 0.3, "fakes": "both", "gate": False, "pixel_weight": 0.0}
    return argparse.Namespace(**{**given, "real_target": 1.0, **changes})


def gradients(three, x, noise, z_p, **changes):
    """{name: the gradients one `step` gives each network}; the weights stay."""
    opts = [torch.optim.SGD(net.parameters(), 0.0) for net in three]
    vaegan.step(three, opts, x, noise, z_p, flags(**changes), contextlib.nullcontext)
    return {
        name: [p.grad.clone() for p in net.parameters()]
        for name, net in zip(("enc", "dec", "disc"), three)
    }


def same(a, b):
    return all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in zip(a, b, strict=True))


def draws(n=6):
    return randn(n, 1, 8, 8).sigmoid(), randn(n, 3), randn(n, 3)


def test_terms_are_those_of_torch_distributions():
    f, g, mu, logvar = randn(5, 7), randn(5, 7), randn(5, 3), randn(5, 3)
    density = Independent(Normal(g, 1.0), 1)
    constant = 7 / 2 * math.log(2 * math.pi)
    want = (-density.log_prob(f) - constant).mean()
    torch.testing.assert_close(vaegan.dis_llike(f, g), want)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), 1.0))
    torch.testing.assert_close(vaegan.kl_divergence(mu, logvar), want)


def test_gan_is_minus_the_logarithms_of_the_paper_with_fakes_weighing_as_much_as_x():
    real, recon, sample = randn(3, 50)
    dis_real, dis_fake, dec = vaegan.gan(real, torch.cat([recon, sample]))
    torch.testing.assert_close(dis_real, -real.sigmoid().log().mean())
    fake = torch.cat([recon, sample]).sigmoid()
    torch.testing.assert_close(dis_fake, -(1 - fake).log().mean())
    torch.testing.assert_close(dec, -fake.log().mean())
    softer, *_ = vaegan.gan(real, fake, target=0.9)
    want = -(0.9 * real.sigmoid().log() + 0.1 * (1 - real.sigmoid()).log()).mean()
    torch.testing.assert_close(softer, want)


@pytest.mark.parametrize("arch", ["fc", "conv"])
@pytest.mark.parametrize("fakes", ["both", "samples", "recon"])
def test_a_step_gives_each_network_the_gradient_of_its_own_loss(fakes, arch):
    three, (x, noise, z_p) = nets(arch=arch), draws()
    got = gradients(three, x, noise, z_p, fakes=fakes, real_target=0.9)
    enc, dec, disc = three

    def terms():  # the plain way: everything afresh for every network
        mu, logvar = enc(x)
        made = [dec(mu + (0.5 * logvar).exp() * noise).sigmoid(), dec(z_p).sigmoid()]
        logits, features = disc(torch.cat(made))  # a batch of its own for batch norm, as x is
        prior = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0 * mu, 1.0)).sum() / 6
        llike = 0.5 * (disc(x)[1] - features[:6]).square().sum() / 6
        return prior, llike, {"both": logits, "samples": logits[6:], "recon": logits[:6]}[fakes]

    def bce(logits, real):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    prior, llike, _ = terms()
    assert same(got["enc"], torch.autograd.grad(prior + llike, list(enc.parameters())))
    _, llike, fake = terms()
    assert same(
        got["dec"], torch.autograd.grad(0.3 * llike + bce(fake, 1.0), list(dec.parameters()))
    )
    loss = bce(disc(x)[0], 0.9) + bce(terms()[2], 0.0)
    assert same(got["disc"], torch.autograd.grad(loss, list(disc.parameters())))


def test_enc_gets_no_gradient_of_the_gan_term_unless_the_loss_is_gan():
    three, given = nets(), draws()
    before = gradients(three, *given), gradients(three, *given, loss="gan")
    for p in three[2].top.parameters():  # all that L_GAN has and Dis_l has not
        p.data += 0.5
    after = gradients(three, *given), gradients(three, *given, loss="gan")
    assert same(before[0]["enc"], after[0]["enc"])
    assert not same(before[0]["dec"], after[0]["dec"])
    assert not same(before[1]["enc"], after[1]["enc"])


def test_gamma_scales_the_decoder_only_and_dis_sees_nothing_of_dis_llike():
    three, given = nets(), draws()
    low, high, gan = (
        gradients(three, *given, **changes)
        for changes in ({"gamma": 0.0}, {"gamma": 2.0}, {"loss": "gan"})
    )
    assert same(low["enc"], high["enc"]) and not same(low["dec"], high["dec"])
    assert same(low["disc"], high["disc"]) and same(low["disc"], gan["disc"])
    assert same(low["dec"], gan["dec"])


def test_pixel_weight_adds_the_squared_error_to_enc_and_dec():
    three, (x, noise, z_p) = nets(), draws()
    enc, dec, _ = three
    plain, weighted = (gradients(three, x, noise, z_p, pixel_weight=w) for w in (0.0, 0.7))
    mu, logvar = enc(x)
    made = dec(mu + (0.5 * logvar).exp() * noise).sigmoid()
    error = 0.7 * (made - x).square().sum() / len(x)
    for name, net in (("enc", enc), ("dec", dec)):
        extra = torch.autograd.grad(error, list(net.parameters()), retain_graph=True)
        assert same(weighted[name], [a + b for a, b in zip(plain[name], extra)])
    assert same(weighted["disc"], plain["disc"])


@pytest.mark.parametrize("size, count", [(32, 8 * 8 * 192), (64, 8 * 8 * 256)])
def test_features_are_a_strided_convolution_s_before_its_norm_as_in_the_authors_code(size, count):
    disc = vaegan.Discriminator((3, size, size), {**ARGS, "arch": "conv", "width": 64})
    assert disc.l[-1].stride == (2, 2) and isinstance(disc.top[0], torch.nn.BatchNorm2d)
    logits, features = disc(torch.rand(2, 3, size, size))
    assert logits.shape == (2,) and features.shape == (2, count)


@pytest.mark.parametrize("size", [28, 32, 45, 64])
@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_networks_take_every_size_and_give_images_back(arch, size):
    enc, dec, disc = nets((3, size, size), arch=arch, width=4)
    mu, logvar = enc(torch.rand(2, 3, size, size, dtype=torch.float64))
    assert mu.shape == logvar.shape == (2, 3)
    assert dec(mu).shape == (2, 3, size, size) and disc(dec(mu))[0].shape == (2,)


def test_the_vae_beside_starts_from_the_same_weights():
    built = vaegan.build((1, 8, 8), {**ARGS, "baseline": True})
    for name in ("enc", "dec"):
        for a, b in zip(built[name].parameters(), built["vae_" + name].parameters()):
            assert torch.equal(a, b)


def test_the_gate_holds_back_who_is_ahead_and_never_both():
    def moves(real, fake):
        return tuple(v.item() for v in vaegan.gate(torch.tensor(real), torch.tensor(fake)))

    assert moves(0.7, 0.7) == (True, True)
    assert moves(0.2, 0.7) == moves(0.7, 0.2) == (True, False)  # Dis is ahead and rests
    assert moves(1.2, 0.7) == moves(0.7, 1.2) == (False, True)  # Dec is ahead and rests
    assert moves(0.2, 1.2) == (True, True)  # both would rest


@pytest.mark.parametrize("kind", ["Adam", "fused", "RMSprop"])
def test_a_skipped_update_leaves_weights_and_moments_and_one_that_goes_is_the_plain_one(kind):
    def optimiser(p):
        if kind == "RMSprop":
            return torch.optim.RMSprop([p], 0.1)
        return torch.optim.Adam([p], 0.1, fused=kind == "fused")

    gated, plain = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    opt, opt_plain = optimiser(gated), optimiser(plain)
    for go in (False, True, False, False, True, True):
        grad = torch.randn(4, generator=RNG)
        before = {"p": gated.detach().clone()} | {
            k: v.clone() for k, v in opt.state.get(gated, {}).items()
        }
        evaluation.move(opt, [grad * (1 if go else math.nan)], torch.tensor(go))
        after = {"p": gated.detach()} | opt.state[gated]
        if go:
            evaluation.move(opt_plain, [grad])
        else:
            assert all(torch.equal(after[k], v) for k, v in before.items())
        if opt_plain.state:
            torch.testing.assert_close(gated, plain, rtol=1e-5, atol=1e-6)
            for key, value in opt_plain.state[plain].items():
                torch.testing.assert_close(opt.state[gated][key], value, rtol=1e-5, atol=1e-6)


def test_a_gradient_laid_out_otherwise_in_memory_is_the_same_step():
    """As torch.compile lays out those of convolutions."""
    weights = [torch.nn.Parameter(torch.ones(3, 4, 2, 2)) for _ in range(2)]
    grad = torch.randn(3, 4, 2, 2, generator=RNG)
    for p, own in zip(weights, (grad, grad.to(memory_format=torch.channels_last))):
        evaluation.move(torch.optim.Adam([p], 0.1, fused=True), [own])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, ["nearer", "neither"]),
        ({"d_real": 0.99, "d_sample": 0.01}, ["has won"]),
        ({"d_real": 0.2, "d_sample": 0.6}, ["has lost"]),
        ({"spread": 0.1}, ["collapsed"]),
        ({"class_shares": [0.005, 0.995]}, ["collapsed"]),
        ({"test_kl": 0.1}, ["dead"]),
        ({"loss": "gan"}, ["cannot reconstruct"]),
    ],
)
def test_the_report_says_what_the_numbers_show(changes, words):
    """From a measured run, where nothing collapsed, with numbers changed."""
    measured = (ROOT / "assets" / "results" / "vaegan-fashion-results.json").read_text()
    r = json.loads(measured)
    args = argparse.Namespace(loss=changes.get("loss", "full"), pixel_weight=0)
    for key, value in changes.items():
        (r if key in r else r["vaegan"])[key] = value
    run = reporter(args=args)
    vaegan.tell_vaegan(run, r)
    said = " ".join(run.notes)
    assert all(word in said for word in words), said
    assert ("collapsed" in said) == (not {"spread", "class_shares"}.isdisjoint(changes))


# the runs


def test_smoke_measures_both_models_and_what_dis_sees(smoke):
    r = json.loads((smoke("vaegan")[0] / "results.json").read_text())
    for model in ("vae", "vaegan"):
        assert {"fid", "recon_mse", "test_kl"} < set(r[model])
        assert r[model]["fid"]["value"] > 0 < r[model]["recon_mse"]
    assert all(0 <= r[key] <= 1 for key in ("d_real", "d_recon", "d_sample"))


def test_loss_gan_without_a_baseline_says_what_it_cannot_do(tmp_path):
    flags = ["--smoke", "--arch", "fc", "--width", "20", "--limit", "400", "--fid", "none"]
    flags += ["--loss", "gan", "--no-baseline", "--fakes", "samples", "--data-dir", tmp_path]
    assert run_main(vaegan, *flags, "--out", tmp_path / "run") == 0
    assert "cannot reconstruct" in (tmp_path / "run" / "report.html").read_text()
    r = json.loads((tmp_path / "run" / "results.json").read_text())
    assert r["vae"] is None and r["vaegan"]["fid"] is None
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == FIGURES | {"samples_100_vaegan"}
