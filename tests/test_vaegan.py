"""vaegan.py against torch.distributions and a plain way of writing Algorithm 1, and its runs."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import vaegan
from conftest import run_main
from data import batches, load
from eval import make_rng

ARGS = {"arch": "fc", "hidden": [9], "width": 4, "z_dim": 3, "seed": 0, "model": ["vaegan"]}
FIGURES = {"curves", "discriminator", "reconstructions", "samples"}


def networks(shape=(1, 8, 8), **changes):
    """Encoder, decoder and discriminator in float64."""
    nets = vaegan.build(shape, {**ARGS, **changes})["vaegan"]
    return [net.double() for net in nets.values()]


def draws(n=6):
    """x (n, 1, 8, 8) in [0, 1], noise and z_p (n, 3)."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 8, 8, generator=rng, dtype=torch.float64)
    noise = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    z_p = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    return x, noise, z_p


# the networks


@pytest.mark.parametrize("size", [28, 32, 45, 64])
@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_networks_take_every_size_and_give_images_back(arch, size):
    enc, dec, disc = networks((3, size, size), arch=arch)
    mu, logvar = enc(torch.rand(2, 3, size, size, dtype=torch.float64))
    assert mu.shape == logvar.shape == (2, 3)
    assert dec(mu).shape == (2, 3, size, size) and disc(dec(mu))[0].shape == (2,)


def test_hidden_are_the_layers_of_the_encoder_and_in_reverse_of_the_decoder():
    enc, dec, _ = networks(hidden=[20, 10, 5])
    for net, sizes in ((enc, [64, 20, 10, 5, 6]), (dec, [3, 5, 10, 20, 64])):
        layers = [part for part in net.modules() if isinstance(part, torch.nn.Linear)]
        assert [layers[0].in_features, *[layer.out_features for layer in layers]] == sizes


def test_features_are_a_strided_convolution_of_the_authors_size():
    disc = networks((3, 32, 32), arch="conv", width=64)[2]
    logits, features = disc(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    assert logits.shape == (2,) and features.shape == (2, 8 * 8 * 192)
    assert features.min() < 0  # neither batch norm's nor an activation's


@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_both_models_start_from_the_same_weights(arch):
    models = vaegan.build((1, 28, 28), {**ARGS, "arch": arch, "model": ["vae", "vaegan"]})
    for name in ("enc", "dec"):
        pairs = zip(models["vae"][name].parameters(), models["vaegan"][name].parameters())
        assert all(torch.equal(a, b) for a, b in pairs)


# the objective


def test_vae_losses_are_those_of_torch_distributions():
    enc, dec, _ = networks()
    x, noise, _ = draws()
    mu, logvar = enc(x)
    q = Normal(mu, (0.5 * logvar).exp())
    logits = dec(q.mean + q.stddev * noise)
    density = Independent(Bernoulli(logits=logits, validate_args=False), 3)
    recon, kl = vaegan.vae_losses(enc, dec, x, noise)
    torch.testing.assert_close(recon, -density.log_prob(x).mean())
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean())


@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_vaegan_losses_equal_a_plain_evaluation_of_the_papers_formulas(arch):
    enc, dec, disc = networks(arch=arch)
    x, noise, z_p = draws()
    terms = vaegan.vaegan_losses(enc, dec, disc, x, noise, z_p, 0.9)
    mu, logvar = enc(x)
    q = Normal(mu, (0.5 * logvar).exp())
    recon = dec(q.mean + q.stddev * noise).sigmoid()
    sample = dec(z_p).sigmoid()
    real, features = disc(x)  # a batch of its own for batch norm, as the fakes are
    fake, fake_features = disc(torch.cat([recon, sample]))
    gaussian = Independent(Normal(fake_features[:6], 1.0), 1)
    constant = features.shape[1] / 2 * math.log(2 * math.pi)
    p_real = real.sigmoid()
    p_fake = fake.sigmoid()
    want = {
        "prior": kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean(),
        "dis_l": (-gaussian.log_prob(features) - constant).mean(),
        "dis_real": -(0.9 * p_real.log() + 0.1 * (1 - p_real).log()).mean(),
        "dis_fake": -(1 - p_fake).log().mean(),  # both kinds together weigh as much as x
        "dec_gan": -p_fake.log().mean(),
        "enc_gan": -p_fake[:6].log().mean(),
        "d_real": p_real.mean(),
        "d_recon": p_fake[:6].mean(),
        "d_sample": p_fake[6:].mean(),
    }
    assert set(terms) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(terms[name], value)


@pytest.mark.parametrize("loss", ["full", "gan"])
def test_the_first_step_follows_the_gradient_of_each_networks_own_loss(loss, tmp_path):
    """After one step of Adam with beta1 = 0.5 the first moment is half of the gradient. Each
    network's loss is computed anew here, and differentiated for that network alone."""
    argv = "--smoke --limit 64 --epochs 1 --batch-size 64 --model vaegan --gamma 0.3".split()
    argv += ["--loss", loss, "--real-label", "0.9", "--fid", "none"]
    folder = tmp_path / "run"
    assert run_main(vaegan, *argv, "--data-dir", tmp_path / "d", "--out", folder) == 0
    saved = torch.load(folder / "last.pt", weights_only=True)
    train = load("digits", tmp_path / "d", 28, 64, 0).train
    enc, dec, disc = vaegan.build(saved["shape"], saved["args"])["vaegan"].values()
    rng = make_rng(0, "training")
    x = train.images(next(batches(train, min(64, len(train)), rng)))
    noise, z_p = torch.randn(2, len(x), saved["args"]["z_dim"], generator=rng)

    def bce(logits, label):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    mu, logvar = enc(x)
    q = Normal(mu, (0.5 * logvar).exp())
    recon = dec(q.mean + q.stddev * noise).sigmoid()
    sample = dec(z_p).sigmoid()
    prior = kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
    llike = 0.5 * ((disc(x)[1] - disc(recon)[1]) ** 2).sum(1).mean()
    real = disc(x)[0]
    fake = torch.cat([disc(recon)[0], disc(sample)[0]])
    losses = {
        "enc": prior + (llike if loss == "full" else bce(fake[: len(x)], 1.0)),
        "dec": (0.3 * llike if loss == "full" else 0.0) + bce(fake, 1.0),
        "disc": bce(real, 0.9) + bce(fake, 0.0),
    }
    moments = [part["exp_avg"] for part in
               saved["models"]["vaegan"]["parts"]["opt"]["state"].values()]
    for name, net in (("enc", enc), ("dec", dec), ("disc", disc)):
        weights = list(net.parameters())
        grads = torch.autograd.grad(losses[name], weights, retain_graph=True)
        for grad in grads:
            tolerance = 1e-3 * grad.abs().max().item() + 1e-7
            torch.testing.assert_close(2 * moments.pop(0), grad, rtol=0, atol=tolerance)
    assert not moments


def test_both_models_see_the_same_batches(tmp_path, monkeypatch):
    seen = []
    for name in ("vae_losses", "vaegan_losses"):
        real = getattr(vaegan, name)

        def recorded(*args, real=real, place=-2 if name == "vae_losses" else 3):
            if args[0].training:
                seen.append(args[place])
            return real(*args)

        monkeypatch.setattr(vaegan, name, recorded)
    argv = "--smoke --limit 100 --epochs 2 --fid none".split()
    assert run_main(vaegan, *argv, "--data-dir", tmp_path, "--out", tmp_path / "run") == 0
    half = len(seen) // 2
    assert half > 2 and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:]))


# the runs


def test_smoke_measures_both_models_and_says_what_dis_assigns(smoke):
    folder, _ = smoke("vaegan")
    r = json.loads((folder / "results.json").read_text())
    for model in ("vae", "vaegan"):
        assert r[model]["fid"]["value"] > 0 < r[model]["recon_mse"]
        assert r[model]["recon_class_acc"] > 0.5  # the pictures show something
    assert "In the last epoch Dis assigns" in (folder / "report.html").read_text()
    nets = vaegan.load(folder / "best.pt")
    assert set(nets["vae"]) == {"enc", "dec"} and set(nets["vaegan"]) == {"enc", "dec", "disc"}


def test_loss_gan_alone_says_what_it_cannot_do_and_draws_no_curve_of_dis_l(tmp_path):
    argv = "--smoke --epochs 2 --hidden 20 10 --z-dim 2 --limit 400 --fid none".split()
    argv += ["--loss", "gan", "--model", "vaegan", "--data-dir", tmp_path]
    assert run_main(vaegan, *argv, "--out", tmp_path / "run") == 0
    assert "cannot reconstruct" in (tmp_path / "run" / "report.html").read_text()
    r = json.loads((tmp_path / "run" / "results.json").read_text())
    assert r["vae"] is None and r["vaegan"]["fid"] is None
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == FIGURES | {"samples_100_vaegan"}


def test_a_checkpoint_whose_second_model_was_never_trained_loads_the_first(smoke, tmp_path):
    content = torch.load(smoke("vaegan")[0] / "best.pt", weights_only=True)
    del content["nets"]["vaegan"]
    torch.save(content, tmp_path / "best.pt")
    assert set(vaegan.load(tmp_path / "best.pt")) == {"vae"}
