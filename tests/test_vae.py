"""vae.py against torch.distributions and closed forms, and what it promises of a run."""

import argparse
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import vae
from conftest import ROOT
from eval import checkpoint, command_line, encode

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
TINY = ["--data", "digits", "--limit", "400", "--batch-size", "32", "--device", "cpu"]
TINY += ["--fid", "none"]


def randn(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def nets(shape=(1, 8, 8), **changes):
    return [net.double() for net in vae.build(shape, {**ARGS, **changes}).values()]


def run_main(*argv):
    """The exit status of main(argv) as the command line runs it."""
    try:
        command_line(lambda: vae.main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code
    return 0


def test_kl_is_that_of_torch_distributions_with_and_without_a_prior():
    mu, logvar, prior_mu, prior_logvar = randn(4, 5, 3)
    q, prior = (
        Normal(mu, (0.5 * logvar).exp()),
        Normal(prior_mu, (0.5 * prior_logvar).exp()),
    )
    torch.testing.assert_close(
        vae.kl_divergence(mu, logvar, prior_mu, prior_logvar), kl_divergence(q, prior)
    )
    torch.testing.assert_close(
        vae.kl_divergence(mu, logvar), kl_divergence(q, Normal(torch.zeros_like(mu), 1.0))
    )


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
    torch.testing.assert_close(alone, code[:1])  # no batch mates


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


# the run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One --smoke run from the command line, offline: (folder, seconds, output)."""
    base = tmp_path_factory.mktemp("smoke")
    start = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "vae.py"), "--smoke", "--device", "cpu"),
            *("--out", str(base / "run"), "--data-dir", str(base / "data")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return base / "run", time.perf_counter() - start, done.stdout


def test_smoke_writes_every_figure_and_key_and_says_that_it_is_one(smoke):
    folder, _, output = smoke
    assert {path.stem for path in folder.glob("figures/*.png")} == FIGURES
    assert "smoke run" in (folder / "report.html").read_text()
    assert output.strip().splitlines()[-1].endswith("report.html")
    r = json.loads((folder / "results.json").read_text())
    keys = "test_elbo test_recon test_kl active_units nll fid svm_linear svm_rbf"
    assert set(keys.split()) < set(r) and r["smoke"] is True
    assert set(r["nll"]) == {"nats", "bits_per_dim", "k", "n", "stderr"}
    assert set(r["fid"]) == {"value", "floor", "features", "n"} and "LeNet" in r["fid"]["features"]
    assert set(r["svm_rbf"]) == {"accuracy", "precision", "recall", "f1", "confusion"}
    assert len(r["code_mean"]) == len(r["code_std"]) == 20 and 0 <= r["off_support"] <= 1
    assert math.isclose(r["test_elbo"], r["test_recon"] + r["test_kl"], rel_tol=1e-5)
    assert math.isclose(r["nll"]["bits_per_dim"], r["nll"]["nats"] / 784 / math.log(2))


def test_nae_trains_ae_beside_it_or_takes_one_that_is_given(tmp_path):
    flags = [*TINY, "--epochs", "2", "--data-dir", tmp_path]
    assert run_main("--model", "nae", *flags, "--smoke", "--out", tmp_path / "nae") == 0
    r = json.loads((tmp_path / "nae" / "results.json").read_text())
    assert set("test_mse fid code_mean code_std off_support svm_rbf".split()) < set(r)
    assert r["fid"] is None and len(r["code_mean"]) == 2
    assert all(abs(m) < 1e-3 for m in r["code_mean"])
    assert all(abs(s - 1) < 2e-3 for s in r["code_std"])
    assert {"test_mse", "off_support"} < set(r["beside"])
    figures = {path.stem for path in (tmp_path / "nae" / "figures").glob("*.png")}
    plane = {f"{what}_{name}" for what in ("plane", "decoded") for name in ("ae", "nae")}
    assert figures == FIGURES | plane
    assert run_main("--model", "ae", *flags, "--smoke", "--out", tmp_path / "ae") == 0
    ae = json.loads((tmp_path / "ae" / "results.json").read_text())
    assert ae["test_mse"] == pytest.approx(r["beside"]["test_mse"], rel=1e-5)  # the same training
    given = ["--ae", tmp_path / "ae" / "best.pt", "--out", tmp_path / "given"]
    assert run_main("--model", "nae", *flags, "--smoke", *given) == 0
    r = json.loads((tmp_path / "given" / "results.json").read_text())
    assert r["beside"]["test_mse"] == ae["test_mse"]
    assert set(vae.load(tmp_path / "given" / "best.pt")) == {"enc", "dec"}


def train_only(monkeypatch, *argv):
    monkeypatch.setattr(vae, "evaluate", lambda *_: None)
    return run_main(*argv)


def test_resume_is_bit_exact_with_the_pictures_of_earlier_epochs(monkeypatch, tmp_path):
    flags = [*TINY, "--binarize", "--data-dir", tmp_path, "--epochs", "2"]
    assert train_only(monkeypatch, *flags, "--out", tmp_path / "whole") == 0
    real_log, calls = vae.Run.log, []

    def interrupted(self, *args, **terms):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the second epoch, before it is saved
        return real_log(self, *args, **terms)

    monkeypatch.setattr(vae.Run, "log", interrupted)
    assert train_only(monkeypatch, *flags, "--out", tmp_path / "halves") == 130
    monkeypatch.setattr(vae.Run, "log", real_log)
    assert train_only(monkeypatch, "--resume", "--out", tmp_path / "halves") == 0
    whole, halves = (checkpoint(tmp_path / n / "last.pt", "vae") for n in ("whole", "halves"))
    for part in ("nets", "kept"):
        assert whole[part].keys() == halves[part].keys()
    for name, state in whole["nets"].items():
        assert all(torch.equal(value, halves["nets"][name][k]) for k, value in state.items())
    assert list(whole["kept"]) == ["before training", "after epoch 1", "after the last"]
    assert all(torch.equal(value, halves["kept"][k]) for k, value in whole["kept"].items())
    assert torch.equal(whole["parts"]["rng"], halves["parts"]["rng"])


def test_eval_only_repeats_the_numbers(smoke):
    before = json.loads((smoke[0] / "results.json").read_text())
    assert run_main("--eval-only", "--out", smoke[0]) == 0
    after = json.loads((smoke[0] / "results.json").read_text())
    leave = {"seconds", "threads"}
    assert all(after[k] == before[k] for k in before.keys() - leave)


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch, tmp_path, capsys):
    real, calls = vae.vae_loss, []

    def breaks(*args):
        calls.append(1)
        return real(*args) * (math.nan if len(calls) == 15 else 1)

    monkeypatch.setattr(vae, "vae_loss", breaks)
    monkeypatch.setattr(vae.losses, "__defaults__", (breaks, vae.ae_loss))
    flags = [*TINY, "--data-dir", tmp_path, "--epochs", "3", "--out", tmp_path / "run"]
    assert train_only(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert "is not finite in epoch 2" in error and error.count("\n") == 1
    assert checkpoint(tmp_path / "run" / "last.pt", "vae")["epoch"] == 1


@pytest.mark.parametrize("name", ["mnist", "faces", "svhn"])
def test_real_sets_run_from_pixels_to_report(name, data_dir, tmp_path):
    extra = ["--fid", "none"] if name != "mnist" else []
    flags = ["--smoke", "--data", name, "--limit", "1500", "--data-dir", data_dir, *extra]
    assert run_main(*flags, "--out", tmp_path / "run") == 0
    r = json.loads((tmp_path / "run" / "results.json").read_text())
    assert r["data"] == name and r["svm_rbf"]["accuracy"] > 0.1
