"""flowvae_gan.py against autograd's Jacobian, integrals and closed forms, and its run."""

import argparse
import contextlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import flowvae_gan
from conftest import ROOT, reporter, run_main
from data import DataError
from eval import nll

RNG = torch.Generator().manual_seed(0)
ARGS = {
    "model": ["vae", "flow", "gan"],
    "flow_fit": ["joint", "after"],
    "width": 4,
    "z_dim": 4,
    "couplings": 4,
    "seed": 0,
}


def randn(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


def flow(z_dim=5, couplings=4, scale=0.15):
    """A flow that is not the identity."""
    net = flowvae_gan.RealNVP(z_dim, couplings, hidden=16).double()
    for p in net.parameters():
        p.data += scale * randn(*p.shape)
    return net


def affine(z_dim):
    """A flow whose scales and shifts do not depend on z, and log N of what it maps to N(0, I)."""
    net = flow(z_dim, 2)
    for k, part in enumerate(net.nets):
        torch.nn.init.zeros_(part[-1].weight)
        part[-1].bias.data = randn(2 * z_dim)
    zero = torch.zeros(z_dim, dtype=torch.float64)
    mean = net.inverse(zero)
    deviation = net.inverse(zero + 1) - mean
    return net, mean, deviation


# the flow


def test_the_flow_is_inverted_and_starts_as_the_identity():
    z = randn(3, 7, 5)
    net = flow(scale=0.25)
    u, _ = net(z)
    assert (u - z).abs().max() > 0.1
    torch.testing.assert_close(net.inverse(u), z, atol=1e-9, rtol=0)
    single = flow(scale=0.15).float()
    torch.testing.assert_close(
        single.inverse(single(z.float())[0]), z.float(), atol=1e-4, rtol=1e-4
    )
    fresh = flowvae_gan.RealNVP(5).double()
    u, log_det = fresh(z)
    torch.testing.assert_close(u, z)
    torch.testing.assert_close(log_det, torch.zeros(3, 7).double())
    want = Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)
    torch.testing.assert_close(fresh.log_prob(z), want)


def test_a_fresh_flow_learns_scales_and_shifts_of_every_latent():
    net = flowvae_gan.RealNVP(5, 4).double()
    net.log_prob(randn(8, 5)).sum().backward()
    for k, part in enumerate(net.nets):
        moved = (1 - net.masks[k]).repeat(2).bool()
        assert (part[-1].bias.grad[moved] != 0).all()


def test_the_log_determinant_is_autograd_s_once_an_image_and_scales_are_bounded():
    net, z = flow(), randn(6, 5)
    _, log_det = net(z)
    assert log_det.shape == (6,)
    for row, value in zip(z, log_det):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v)[0], row)
        torch.testing.assert_close(value, torch.linalg.slogdet(jacobian)[1], atol=1e-9, rtol=0)
    s, _ = net.scale_shift(0, 1e6 * z)
    assert s.abs().max() <= 2


def test_the_density_of_the_flow_integrates_to_one():
    net = flow(2, 4, 0.12)
    side = torch.linspace(-15, 15, 751, dtype=torch.float64)
    with torch.no_grad():
        total = net.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.04**2
    assert abs(total.item() - 1) < 1e-3


def test_samples_of_the_flow_have_its_density():
    net = flow(2, 4, 0.15)
    with torch.no_grad():
        z = net.inverse(randn(200_000, 2))
        side = torch.linspace(-12, 12, 601, dtype=torch.float64)
        points = torch.cartesian_prod(side, side)
        mass = net.log_prob(points).exp() * 0.04**2
    torch.testing.assert_close(z.mean(0), mass @ points, atol=0.02, rtol=0)


def test_an_affine_flow_is_a_gaussian_with_the_closed_form_s_likelihood():
    net, mean, deviation = affine(3)
    prior = Independent(Normal(mean, deviation), 1)
    z = 4 * randn(9, 3)
    torch.testing.assert_close(net.log_prob(z), prior.log_prob(z))
    # x = W z + noise, W with orthogonal columns: the posterior is known and every weight is p(x)
    w = torch.linalg.qr(randn(6, 3))[0] * torch.tensor([2.0, 1.0, 0.5])
    x, sigma = randn(4, 6), 0.4
    precision = w.square().sum(0) / sigma**2 + deviation**-2
    mu = ((x @ w) / sigma**2 + mean / deviation**2) / precision
    logvar = -precision.log().expand_as(mu)
    found = nll(
        x,
        mu,
        logvar,
        lambda x, z: Independent(Normal(z @ w.T, sigma), 1).log_prob(x),
        k=7,
        prior=net,
    )
    cov = w * deviation**2 @ w.T + sigma**2 * torch.eye(6).double()
    want = -MultivariateNormal(w @ mean, cov).log_prob(x).mean().item()
    assert math.isclose(found["nats"], want, rel_tol=1e-9)


def test_kl_to_an_affine_flow_is_in_expectation_that_between_gaussians():
    net, mean, deviation = affine(3)
    mu, logvar = randn(2, 3), 0.3 * randn(2, 3)
    z = mu + (0.5 * logvar).exp() * randn(100_000, 2, 3)
    got = flowvae_gan.kl_to_flow(mu, logvar, z, net)
    q = Normal(mu, (0.5 * logvar).exp())
    want = kl_divergence(q, Normal(mean.expand(2, 3), deviation.expand(2, 3))).sum(1)
    error = got.std(0) / len(z) ** 0.5
    assert ((got.mean(0) - want).abs() < 5 * error).all()


# likelihoods and networks


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
@pytest.mark.parametrize("logit", [-30.0, -3.0, 0.2, 30.0])
def test_the_discretised_logistic_sums_to_one_over_256_values(logit, log_scale):
    x = (torch.arange(256).double() / 255).reshape(256, 1, 1, 1)
    logits = torch.full_like(x, logit)
    log_p = flowvae_gan.logistic_log_likelihood(x, logits, torch.tensor([[[log_scale]]]).double())
    assert math.isclose(log_p.exp().sum().item(), 1, rel_tol=1e-9)
    mean, scale = torch.tensor(logit).double().sigmoid(), math.exp(log_scale)
    cdf = ((torch.arange(257).double() - 0.5) / 255 - mean).div(scale).sigmoid()
    cdf[0], cdf[-1] = 0, 1
    near = cdf.diff() > 1e-9  # where the plain difference still has digits
    torch.testing.assert_close(log_p[near], cdf.diff().log()[near], rtol=1e-5, atol=1e-5)


def test_far_from_the_mean_the_logistic_is_finite_and_has_a_gradient_in_float32():
    x = torch.tensor([0.0, 1.0, 100 / 255]).reshape(3, 1, 1, 1)
    logits = torch.tensor([40.0, -40.0, 40.0]).reshape(3, 1, 1, 1).requires_grad_()
    scale = torch.tensor([[[-7.0]]]).requires_grad_()
    log_p = flowvae_gan.logistic_log_likelihood(x, logits, scale)
    log_p.sum().backward()
    assert log_p.isfinite().all() and scale.grad.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 45, 45), (3, 64, 64)])
@pytest.mark.parametrize("z_dim, width", [(8, 4), (32, 32)])
def test_models_have_as_many_weights_within_a_tenth_and_take_every_size(shape, z_dim, width):
    nets = flowvae_gan.build(shape, {**ARGS, "z_dim": z_dim, "width": width})
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    vae, gan = (
        sum(count[f"{a}_{b}"] for b in ("dec", c)) for a, c in (("vae", "enc"), ("gan", "disc"))
    )
    assert abs(vae - gan) < 0.1 * min(vae, gan)
    assert vae == count["flow_joint_enc"] + count["flow_joint_dec"]
    if width == 4:
        x = torch.rand(2, *shape)
        mu, logvar = nets["vae_enc"](x)
        assert mu.shape == logvar.shape == (2, z_dim) and nets["gan_disc"](x).shape == (2,)
        assert nets["gan_dec"](mu).shape == nets["vae_dec"](mu).shape == x.shape
        assert nets["vae_dec"](torch.stack([mu] * 3)).shape == (3, *x.shape)


def test_dcgan_s_shapes_have_the_known_number_of_weights():
    gen = flowvae_gan.Decoder((3, 32, 32), {"z_dim": 100, "width": 64})
    # DCGAN's have no biases; ours have 256 + 128 + 64, one a pixel, and 3 scales
    assert sum(p.numel() for p in gen.parameters()) == 1_068_928 + 448 + 3072 + 3


def test_both_vaes_start_from_the_same_weights_and_the_first_flow_loss_is_the_vae_s():
    nets = flowvae_gan.build((1, 28, 28), ARGS)
    args = argparse.Namespace(likelihood="bernoulli")
    x, noise = torch.rand(2000, 1, 28, 28), torch.randn(2000, 4)
    losses = [
        flowvae_gan.vae_loss(
            *flowvae_gan.parts_of(nets, name), x, noise, args, contextlib.nullcontext
        )
        for name in ("vae", "flow_joint")
    ]
    torch.testing.assert_close(losses[0][0], losses[1][0])
    torch.testing.assert_close(*losses, atol=0.2, rtol=0)  # the second KL is sampled


def test_a_gan_step_moves_each_by_its_own_loss():
    torch.manual_seed(0)
    nets = flowvae_gan.build((1, 8, 8), {**ARGS, "model": ["gan"]})
    gen, disc = (nets[f"gan_{part}"].double() for part in ("dec", "disc"))
    x, z = randn(6, 1, 8, 8).sigmoid(), randn(6, 4)
    opts = [torch.optim.SGD(net.parameters(), 0.0) for net in (gen, disc)]
    terms = flowvae_gan.gan_step(gen, disc, opts, x, z, contextlib.nullcontext, target=0.9)
    got = [[p.grad for p in net.parameters() if p.grad is not None] for net in (gen, disc)]

    def bce(images, real):
        logits = disc(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    made = gen(z).sigmoid()
    want_gen, want_dis = bce(made, 1.0), bce(x, 0.9) + bce(made.detach(), 0.0)
    torch.testing.assert_close(
        terms[:2].double(), torch.stack([want_gen, want_dis]).detach(), atol=1e-5, rtol=1e-5
    )
    for loss, net, grads in ((want_gen, gen, got[0]), (want_dis, disc, got[1])):
        weights = [p for name, p in net.named_parameters() if name != "log_scale"]
        for a, b in zip(torch.autograd.grad(loss, weights), grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("with_flow", [False, True])
def test_an_interpolation_begins_and_ends_at_its_points_and_is_a_line_in_the_base_space(with_flow):
    net, a, b = flow() if with_flow else None, randn(3, 5), randn(3, 5)
    codes = flowvae_gan.interpolate(net, a, b)
    assert codes.shape == (10, 3, 5)
    torch.testing.assert_close(codes[0], a)
    torch.testing.assert_close(codes[-1], b)
    line = net(codes)[0] if with_flow else codes
    steps = line.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-5, rtol=0)
    assert not with_flow or not torch.allclose(codes.diff(dim=0)[0], codes.diff(dim=0)[1])
    dec = flowvae_gan.Decoder((1, 28, 28), {**ARGS, "z_dim": 5}).double().eval()
    for k, end in ((0, a), (-1, b)):
        torch.testing.assert_close(dec(codes)[k], dec(end))


def test_a_flow_fitted_to_codes_gets_their_likelihood():
    args = argparse.Namespace(batch_size=100, seed=0, z_dim=2, couplings=4, epochs=12, lr=5e-3)
    logvar = torch.full((2000, 2), -20.0)
    train, val = ([(3 + 0.5 * randn(2000, 2)).float(), logvar] for _ in range(2))

    def fresh():
        torch.manual_seed(0)
        return flowvae_gan.RealNVP(2, 4)

    fitted, curve = flowvae_gan.fit_flow(fresh(), train, val, args)
    truth = Independent(Normal(torch.full((2,), 3.0), 0.5), 1)
    want = -truth.log_prob(val[0]).mean().item()
    assert curve.shape == (12, 3) and want - 0.05 < curve[:, 1].min().item() < want + 0.1
    again, _ = flowvae_gan.fit_flow(fresh(), train, val, args)
    assert all(torch.equal(p, q) for p, q in zip(fitted.parameters(), again.parameters()))


def test_a_flow_whose_loss_is_not_finite_is_a_sentence():
    args = argparse.Namespace(batch_size=100, seed=0, epochs=3, lr=1e-3)
    codes = [torch.full((200, 2), math.nan), torch.zeros(200, 2)]
    with pytest.raises(DataError, match="not finite in its epoch 1"):
        flowvae_gan.fit_flow(flowvae_gan.RealNVP(2, 4), codes, codes, args)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, ["has not won", "GAN 22.9"]),
        ({"gan_d_real": 0.89, "gan_d_fake": 0.01}, ["has won"]),
        ({"spread": 0.1}, ["collapsed"]),
        ({"class_shares": [0.001, 0.999]}, ["collapsed"]),
        ({"vae_kl": 0.1}, ["dead"]),
    ],
)
def test_the_report_says_what_the_numbers_show(changes, words):
    """From a measured run, where nothing collapsed, with numbers changed."""
    r = json.loads((ROOT / "assets" / "results" / "flowvae_gan-mnist-results.json").read_text())
    row = {"epoch": 12, "gan_d_real": 0.76, "gan_d_fake": 0.14, "gan_train": 0.6, "gan_val": 0.6}
    for name in ("vae", "flow_joint"):
        row |= {f"{name}_train": 95.0, f"{name}_val": 96.0, f"{name}_kl": 30.0}
    for key, value in changes.items():
        (row if key in row else r["gan"])[key] = value
    run = reporter(args=argparse.Namespace(**r["args"]), history=[row])
    flowvae_gan.tell_flowvae_gan(run, flowvae_gan.NAMES, r)
    said = " ".join(run.notes)
    assert all(word in said for word in words), said
    for word, keys in (("collapsed", {"spread", "class_shares"}), ("dead", {"vae_kl"})):
        assert (word in said) == (not keys.isdisjoint(changes))


# the runs


def test_smoke_measures_every_model_and_tells_its_weights(smoke):
    folder, output = smoke("flowvae_gan")
    assert "weights" in output and "vae_enc" in output
    r = json.loads((folder / "results.json").read_text())
    for name in ("vae", "flow_joint", "flow_after", "gan"):
        assert {"params", "flow_params", "fid", "nll", "seconds"} < set(r[name])
        assert r[name]["fid"]["value"] > 0 and (r[name]["nll"] is None) == (name == "gan")
    assert r["vae"]["flow_params"] == r["gan"]["flow_params"] == 0 < r["flow_after"]["flow_params"]


def test_colour_takes_the_logistic_and_a_gan_alone_has_no_likelihood(tmp_path):
    flags = ["--smoke", "--data", "sprites", "--limit", "300", "--epochs", "1", "--width", "4"]
    flags += ["--fid", "none", "--nll-k", "2", "--nll-n", "4", "--data-dir", tmp_path]
    assert (
        run_main(
            flowvae_gan, *flags, "--model", "flow", "--flow-fit", "joint", "--out", tmp_path / "f"
        )
        == 0
    )
    r = json.loads((tmp_path / "f" / "results.json").read_text())
    assert r["args"]["likelihood"] == "logistic" and r["vae"] is r["gan"] is None
    bits = r["flow_joint"]["nll"]["nats"] / 3072 / math.log(2)
    assert math.isclose(r["flow_joint"]["nll"]["bits_per_dim"], bits) and 1 < bits < 12
    assert run_main(flowvae_gan, *flags, "--model", "gan", "--out", tmp_path / "g") == 0
    r = json.loads((tmp_path / "g" / "results.json").read_text())
    assert r["flow_after"] is None and r["gan"]["nll"] is None
