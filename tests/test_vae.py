"""vae.py against torch.distributions, autograd and closed forms, and what it promises of a run."""

import argparse
import csv
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import vae
from conftest import run_main
from data import Split, load
from eval import checkpoint, encode

RNG = torch.Generator().manual_seed(0)
ARGS = {"model": ["vae"], "arch": "fc", "hidden": [7], "activation": "tanh", "z_dim": 3, "seed": 0}
BERNOULLI = argparse.Namespace(likelihood="bernoulli", z_dim=3, seed=0)
GAUSSIAN = argparse.Namespace(likelihood="gaussian", sigma=0.3, z_dim=3, seed=0)


def randn(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def networks(model="vae", shape=(1, 8, 8), **changes):
    """Encoder and decoder in float64."""
    nets = vae.build(shape, {**ARGS, "model": [model], **changes})[model]
    return nets["enc"].double(), nets["dec"].double()


def random_split(n, size=8):
    x = torch.randint(256, (n, 1, size, size), generator=RNG, dtype=torch.uint8)
    return Split(x, torch.arange(n) % 3)


# the objective


def test_kl_divergence_is_that_of_torch_distributions():
    mu, logvar = randn(5, 3), randn(5, 3)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), want)


def test_log_likelihoods_are_those_of_torch_distributions():
    x, logits = randn(4, 1, 8, 8).sigmoid(), 5 * randn(2, 4, 1, 8, 8)
    binary = (x > 0.5).double()
    want = Independent(Bernoulli(logits=logits), 3).log_prob(binary)
    torch.testing.assert_close(vae.bernoulli_log_likelihood(binary, logits), want)
    want = Independent(Normal(logits.sigmoid(), 0.3), 3).log_prob(x)
    torch.testing.assert_close(vae.log_likelihood(x, logits, GAUSSIAN), want)


def test_grey_pixels_give_the_mean_over_binarized_ones():
    x, logits = torch.tensor([[[0.3, 0.8]]]), torch.tensor([[[0.5, -1.0]]])
    want = 0
    for a, share_a in ((0.0, 0.7), (1.0, 0.3)):
        for b, share_b in ((0.0, 0.2), (1.0, 0.8)):
            binary = torch.tensor([[[a, b]]])
            want += share_a * share_b * vae.bernoulli_log_likelihood(binary, logits)
    torch.testing.assert_close(vae.bernoulli_log_likelihood(x, logits), want)


@pytest.mark.parametrize("args", [BERNOULLI, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_the_bound_is_a_plain_evaluation_of_its_formula(args):
    enc, dec = networks()
    x, noise = randn(5, 1, 8, 8).sigmoid(), randn(5, 3)
    recon, kl = vae.vae_losses(enc, dec, x, noise, args)
    want_recon = want_kl = 0
    for i in range(5):
        mu, logvar = enc(x[i : i + 1])
        q = Normal(mu, (0.5 * logvar).exp())
        p = dec(q.mean + q.stddev * noise[i])[0].sigmoid()
        log_p = (x[i] * p.log() + (1 - x[i]) * (1 - p).log()).sum()
        if args.likelihood == "gaussian":
            log_p = Normal(p, args.sigma).log_prob(x[i]).sum()
        want_recon -= log_p / 5
        want_kl += kl_divergence(q, Normal(0.0, 1.0)).sum() / 5
    torch.testing.assert_close(recon, want_recon)
    torch.testing.assert_close(kl, want_kl)


def test_gradients_pass_through_the_sampled_code():
    """The gradient of E_q[f(z)] by reparameterization, against that of its closed form."""

    class Square(nn.Module):  # -log p(x|z) + constant is (x - z)^2 / (2 sigma^2) for z in [0, 1]
        def forward(self, z):
            return z.clamp(1e-6, 1 - 1e-6).logit()[:, :, None, None]

    parameters = torch.tensor([0.5, -5.0], requires_grad=True)  # mu, logvar of one latent
    x = torch.full((200_000, 1, 1, 1), 0.3)
    noise = torch.randn(len(x), 1, generator=RNG)
    args = argparse.Namespace(likelihood="gaussian", sigma=0.3)
    enc = lambda x: parameters.expand(len(x), 2).chunk(2, 1)  # noqa: E731
    recon, _ = vae.vae_losses(enc, Square(), x, noise, args)
    recon.backward()
    mu, logvar = parameters.detach()
    want = torch.stack([(mu - 0.3) / 0.09, 0.5 * logvar.exp() / 0.09])
    torch.testing.assert_close(parameters.grad, want, rtol=0.02, atol=0)  # of 200,000 draws


def test_squared_error_is_the_sum_over_pixels_and_the_mean_over_images():
    enc, dec = networks("ae")
    x = randn(5, 1, 8, 8).sigmoid()
    want = ((dec(enc(x)[0]).sigmoid() - x) ** 2).sum() / 5
    torch.testing.assert_close(vae.squared_error(enc, dec, x), want)


def test_bfloat16_networks_leave_likelihood_and_kl_in_float32():
    nets = vae.build((1, 8, 8), ARGS)["vae"]
    x, noise = randn(64, 1, 8, 8).sigmoid().float(), randn(64, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        recon, kl = vae.vae_losses(nets["enc"], nets["dec"], x, noise, BERNOULLI)
    assert recon.dtype == kl.dtype == torch.float32
    want = vae.vae_losses(nets["enc"], nets["dec"], x, noise, BERNOULLI)
    torch.testing.assert_close((recon, kl), want, rtol=2**-8, atol=2**-8)  # of the networks alone


# the networks


@pytest.mark.parametrize("size", [28, 32, 60, 64])
@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_networks_take_every_size_and_give_images_back(arch, size):
    enc, dec = networks(shape=(3, size, size), arch=arch)
    mu, logvar = enc(torch.rand(2, 3, size, size, dtype=torch.float64))
    assert mu.shape == logvar.shape == (2, 3)
    assert dec(mu).shape == (2, 3, size, size)
    assert dec(torch.stack([mu, mu, mu])).shape == (3, 2, 3, size, size)


def test_784_400_20_has_the_known_number_of_weights():
    nets = networks(shape=(1, 28, 28), hidden=[400], z_dim=20)
    assert sum(p.numel() for net in nets for p in net.parameters()) == 652_824


def test_nae_codes_have_mean_0_and_variance_1_over_a_batch_and_exactly_over_train():
    enc, _ = networks("nae")
    split = random_split(700)
    (z,) = enc.train()(split.images(slice(0, 64)).double())
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3).double(), atol=1e-4, rtol=0)
    enc = enc.float()
    vae.set_statistics("nae", enc, split)
    (z,) = encode(enc, split)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    (alone,) = enc(split.images(slice(0, 1)))  # without a batch
    torch.testing.assert_close(alone, z[:1], rtol=1e-4, atol=1e-4)


def test_models_start_from_the_same_weights_where_their_networks_are_the_same():
    models = vae.build((1, 8, 8), {**ARGS, "model": ["vae", "ae", "nae"]})
    for model in ("vae", "nae"):
        for a, b in zip(models[model]["dec"].parameters(), models["ae"]["dec"].parameters()):
            assert torch.equal(a, b)
    weights = {model: list(nets["enc"].parameters()) for model, nets in models.items()}
    assert all(torch.equal(a, b) for a, b in zip(weights["ae"], weights["nae"]))
    assert torch.equal(weights["vae"][0], weights["ae"][0])  # the hidden layer


def test_validation_loss_weighs_a_short_last_batch_as_it_should():
    enc, dec = (net.float() for net in networks("ae"))
    split = random_split(730)
    error, kl = vae.validation_loss("ae", enc, dec, split, BERNOULLI)
    x = split.images(slice(None))
    want = ((dec(enc(x)[0]).sigmoid() - x) ** 2).sum().item() / 730
    assert math.isclose(error, want, rel_tol=1e-5) and kl == 0


def test_binarized_pixels_have_the_brightness_as_their_mean():
    x = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat(20_000, 1)
    drawn = vae.binarize(x, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (x[0] * (1 - x[0]) / len(x)).sqrt()
    assert ((drawn.mean(0) - x[0]).abs() <= 4 * error).all()


def test_with_binarize_every_split_is_drawn_once_from_the_seed():
    data = load("digits", "nowhere")
    args = argparse.Namespace(binarize=True, seed=3)
    splits, again = vae.measured_splits(data, args), vae.measured_splits(data, args)
    for name, split in splits.items():
        assert set(split.x.unique().tolist()) == {0, 255}
        assert torch.equal(split.x, again[name].x) and torch.equal(split.y, data.splits()[name].y)
    assert vae.measured_splits(data, argparse.Namespace(binarize=False))["test"] is data.test


# coverage of the codes


def test_off_support_is_the_share_of_draws_where_no_code_lies():
    train = torch.rand(5000, 2, generator=RNG)  # a square
    test = torch.rand(1000, 2, generator=RNG)
    both = torch.tensor([True, True])
    inside = torch.rand(400, 2, generator=RNG)
    prior = torch.cat([inside, inside + 3])  # and as many elsewhere
    assert vae.off_support(prior, train, test, both) == pytest.approx(0.5, abs=0.02)
    assert vae.off_support(test, train, test, both) == pytest.approx(0.01, abs=2e-3)


def test_off_support_does_not_depend_on_inactive_latents():
    active = torch.tensor([True, True])
    codes = [0.5 * randn(n, 2) for n in (500, 2000, 500)]
    codes[0] = 2 * codes[0]  # the prior
    want = vae.off_support(*codes, active)
    assert 0.1 < want < 0.9
    for inactive in (1, 12):
        wide = [torch.cat([code, randn(len(code), inactive)], 1) for code in codes]
        mask = torch.cat([active, torch.zeros(inactive, dtype=torch.bool)])
        assert vae.off_support(*wide, mask) == want
    assert vae.off_support(*codes, ~active) == 0  # nothing is off where nothing is held


# the runs


def run(tmp_path, name, *argv):
    """results.json of a run on 700 digits."""
    flags = "--data digits --limit 700 --batch-size 32 --device cpu --epochs 2 --smoke".split()
    out = tmp_path / name
    assert run_main(vae, *flags, "--data-dir", tmp_path / "d", "--out", out, *argv) == 0
    return json.loads((out / "results.json").read_text())


def figures(folder):
    return {path.stem for path in (folder / "figures").glob("*.png")}


def test_the_numbers_of_a_smoke_run_fit_together(smoke):
    r = json.loads((smoke("vae")[0] / "results.json").read_text())
    vae_r = r["vae"]
    assert r["ae"] is None and r["nae"] is None
    assert "LeNet" in vae_r["fid"]["features"] and vae_r["nll"]["k"] == r["args"]["nll_k"]
    assert len(vae_r["code_mean"]) == len(vae_r["code_std"]) == 20
    assert 0 < vae_r["active_units"] <= 20 and 0 <= vae_r["off_support"] <= 1
    assert vae_r["test_negative_elbo"] == pytest.approx(vae_r["test_recon"] + vae_r["test_kl"])
    q = vae_r["nll"]
    assert q["bits_per_dim"] == pytest.approx(q["nats"] / 784 / math.log(2))
    assert 1 <= q["ess"] <= q["k"] and vae_r["nll_100"]["n"] == q["n"] == 100
    assert vae_r["neighbour_acc"] > 0.3 and vae_r["svm_linear"]["accuracy"] > 0.8
    report = (smoke("vae")[0] / "report.html").read_text()
    assert "macro average" in report and f"{100 * vae_r['neighbour_acc']:.1f} %" in report
    assert r["summary"]["NLL in nats"] == q["nats"]  # one model: labels without its name


def test_several_models_see_the_same_batches_and_are_compared(tmp_path, monkeypatch):
    batches, seen = vae.batches, []

    def recorded(split, size, rng):
        for idx in batches(split, size, rng):
            seen.append(idx.tolist())
            yield idx

    monkeypatch.setattr(vae, "batches", recorded)
    r = run(tmp_path, "three", "--model", "ae", "nae", "vae", "--binarize", "--hidden", 64, 16)
    steps = len(seen) // 3
    assert seen[:steps] == seen[steps : 2 * steps] == seen[2 * steps :]
    assert all(abs(mean) < 0.3 for mean in r["nae"]["code_mean"])  # of test
    assert all(abs(std - 1) < 0.3 for std in r["nae"]["code_std"])
    folder = tmp_path / "three"
    shared = {"curves", "reconstructions_and_samples", "learning", "plane"}
    models = {"confusion_AE", "confusion_normalized_AE", "confusion_VAE"}
    for model in ("ae", "nae", "vae"):
        models |= {f"samples_100_{model}", f"decoded_{model}"}
    assert figures(folder) == shared | models
    assert "nll" in r["vae"] and "nll" not in r["ae"]
    assert "VAE NLL in nats" in r["summary"] and "AE squared error per pixel" in r["summary"]
    assert set(vae.load(folder / "best.pt")) == {"ae", "nae", "vae"}
    report = (folder / "report.html").read_text()
    order = sorted(("ae", "nae", "vae"), key=lambda model: r[model]["fid"]["value"])
    names = [vae.NAMES[model] for model in order]
    assert f"The {names[2]} is farthest from real images" in report
    assert report.index(f"{names[0]} {r[order[0]]['fid']['value']:.1f}, {names[1]}") > 0

    alone = run(tmp_path, "alone", "--model", "ae", "--binarize", "--hidden", 64, 16)
    assert alone["ae"]["test_mse"] == pytest.approx(r["ae"]["test_mse"], rel=1e-4)


def test_each_model_keeps_its_own_best_epoch_and_resume_skips_finished_ones(tmp_path, capsys):
    folder = tmp_path / "two"
    run(tmp_path, "two", "--model", "vae", "ae", "--hidden", 16, "--fid", "none")
    content = checkpoint(folder / "best.pt", "vae")
    for model in ("vae", "ae"):
        rows = [row for row in content["history"] if row["model"] == model]
        assert [row["epoch"] for row in rows] == [1, 2]
        best = min(rows, key=lambda row: row["val"])
        assert content["epoch"][model] == best["epoch"]
    with open(folder / "log.csv") as file:
        log = list(csv.DictReader(file))
    assert [row["model"] for row in log] == ["vae", "vae", "ae", "ae"]
    weights = vae.load(folder / "best.pt")["ae"]["enc"].state_dict()
    capsys.readouterr()
    assert run_main(vae, "--resume", "--out", folder) == 0
    assert "epoch 2/2" not in capsys.readouterr().out
    again = vae.load(folder / "best.pt")["ae"]["enc"].state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("model", ["vae", "ae"])
def test_one_latent_runs_through_the_whole_evaluation(model, tmp_path):
    r = run(tmp_path, "one", "--model", model, "--z-dim", 1, "--hidden", 16, "--fid", "none")
    assert len(r[model]["code_mean"]) == 1 and 0 <= r[model]["neighbour_acc"] <= 1
    assert "tsne" in figures(tmp_path / "one")


def test_a_density_has_no_bits_per_dim(tmp_path):
    r = run(tmp_path, "g", "--likelihood", "gaussian", "--hidden", 16, "--fid", "none")
    assert r["vae"]["nll"]["bits_per_dim"] is None and r["vae"]["nll"]["nats"] is not None


@pytest.mark.parametrize(
    "argv, want",
    [
        ("", dict(data="mnist", hidden=[400], z_dim=20, epochs=50)),
        ("--arch conv", dict(data="mnist", hidden=[512], z_dim=32, epochs=100)),
        ("--model nae", dict(data="fashion", hidden=[512, 128, 32], z_dim=2, epochs=50)),
        ("--model vae ae --arch conv", dict(data="fashion", hidden=[512], z_dim=2, epochs=100)),
        ("--model ae --data mnist --z-dim 5", dict(data="mnist", hidden=[512, 128, 32], z_dim=5)),
        ("--data faces", dict(data="faces", hidden=[400], epochs=300)),
        ("--smoke --model ae", dict(data="digits", z_dim=2, hidden=[512, 128, 32])),
        ("--smoke --epochs 3", dict(data="digits", epochs=3, z_dim=20)),
    ],
)
def test_what_is_typed_wins_over_smoke_which_wins_over_the_preset(argv, want, monkeypatch):
    class Stop(Exception):
        pass

    def stop(name, *_):
        raise Stop(name)

    found = {}
    parse = vae.parse
    monkeypatch.setattr(vae, "load_data", stop)
    monkeypatch.setattr(vae, "parse", lambda *a: found.setdefault("args", parse(*a)))
    with pytest.raises(Stop):
        vae.main(argv.split())
    assert {key: getattr(found["args"], key) for key in want} == want
