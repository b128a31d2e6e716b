"""flowvae_gan.py against autograd's Jacobian, integrals and closed forms, and its run."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import flowvae_gan
from conftest import run_main
from data import batches, load
from eval import make_rng, nll

RNG = torch.Generator().manual_seed(0)
ARGS = {
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
    for part in net.nets:
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
    fresh = flowvae_gan.RealNVP(5, 8).double()
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
    counts = []
    for model, names in (("vae", "enc dec"), ("flow_joint", "enc dec"), ("gan", "gen disc")):
        parts = [nets[model][name] for name in names.split()]
        counts.append(sum(flowvae_gan.n_weights(part) for part in parts))
    vae, flow_vae, gan = counts
    assert abs(vae - gan) < 0.1 * min(vae, gan) and vae == flow_vae
    if width == 4:
        x = torch.rand(2, *shape)
        dec = nets["vae"]["dec"]
        mu, logvar = nets["vae"]["enc"](x)
        assert mu.shape == logvar.shape == (2, z_dim) and nets["gan"]["disc"](x).shape == (2,)
        assert nets["gan"]["gen"](mu).shape == dec(mu).shape == x.shape
        assert dec(torch.stack([mu] * 3)).shape == (3, *x.shape)


def test_dcgans_shapes_have_the_known_number_of_weights():
    gen = flowvae_gan.Decoder((3, 32, 32), 64, 100)
    # ours has a bias per pixel and 3 scales as well
    assert flowvae_gan.n_weights(gen) == 1_068_928 + 3072 + 3


# the objectives


def test_both_vaes_start_from_the_same_weights_and_the_first_flow_loss_is_the_vaes():
    nets = flowvae_gan.build((1, 28, 28), ARGS)
    autocast = torch.autocast("cpu", enabled=False)
    x, noise = torch.rand(2000, 1, 28, 28), torch.randn(2000, 4)
    losses = []
    for model in ("vae", "flow_joint"):
        enc, dec, flow = (nets[model].get(name) for name in ("enc", "dec", "flow"))
        with torch.no_grad():
            losses.append(flowvae_gan.vae_losses(enc, dec, flow, x, noise, "bernoulli", autocast))
    (recon, kl), (flow_recon, flow_kl) = losses
    torch.testing.assert_close(recon, flow_recon)
    torch.testing.assert_close(kl, flow_kl, atol=0.2, rtol=0)  # the second KL is sampled


def test_gan_losses_are_the_papers_logarithms():
    real, fake = randn(2, 50)
    loss_gen, loss_disc = flowvae_gan.gan_losses(real, fake, 1.0)
    torch.testing.assert_close(loss_gen.double(), -fake.sigmoid().log().mean(), rtol=1e-5, atol=0)
    want = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(loss_disc.double(), want, rtol=1e-5, atol=0)
    smooth = flowvae_gan.gan_losses(real, fake, 0.9)[1] - loss_disc
    # the target moves by 0.1 from log Dis to log(1 - Dis), a difference of one logit
    torch.testing.assert_close(smooth.double(), 0.1 * real.mean(), rtol=1e-3, atol=1e-5)


def test_the_first_step_of_the_gan_follows_the_gradient_of_each_networks_own_loss(tmp_path):
    """After one step of Adam with beta1 = 0.5 the first moment is half of the gradient."""
    argv = "--smoke --limit 64 --epochs 1 --batch-size 64 --model gan --fid none".split()
    folder = tmp_path / "run"
    assert run_main(flowvae_gan, *argv, "--data-dir", tmp_path / "d", "--out", folder) == 0
    saved = torch.load(folder / "last.pt", weights_only=True)
    train = load("digits", tmp_path / "d", 28, 64, 0).train
    gen, disc = flowvae_gan.build(saved["shape"], saved["args"])["gan"].values()
    gen.bias.data = torch.logit(train.mean_image().clamp(0.001, 0.999))
    rng = make_rng(0, "training")
    x = train.images(next(batches(train, min(64, len(train)), rng)))
    z = torch.randn(len(x), saved["args"]["z_dim"], generator=rng)

    def bce(logits, label):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    fake = gen(z).sigmoid()
    losses = (bce(disc(fake), 1.0), bce(disc(x), 0.9) + bce(disc(fake), 0.0))
    state = saved["models"]["gan"]["parts"]["opt"]["state"]
    place = 0
    for loss, net in zip(losses, (gen, disc)):
        weights = list(net.parameters())
        grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        for weight, grad in zip(weights, grads):
            if grad is not None:  # the scale of the logistics is not used
                tolerance = 1e-3 * grad.abs().max().item() + 1e-7
                torch.testing.assert_close(2 * state[place]["exp_avg"], grad, rtol=0,
                                           atol=tolerance)
            place += 1


def test_spherical_interpolation_keeps_norms_and_ends_and_moves_at_one_speed():
    a, b = randn(2, 3, 5)
    b = b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)
    path = flowvae_gan.slerp(a, b, torch.linspace(0, 1, 12, dtype=torch.float64))
    assert path.shape == (12, 3, 5)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(path.norm(dim=2), a.norm(dim=1).expand(12, 3))
    steps = path.diff(dim=0).norm(dim=2)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


# the runs


def test_smoke_measures_every_model(smoke):
    folder, _ = smoke("flowvae_gan")
    r = json.loads((folder / "results.json").read_text())
    for model in ("vae", "flow_joint", "flow_after", "gan"):
        assert {"weights", "flow_weights", "fid", "nll", "seconds"} < set(r[model])
        assert r[model]["fid"]["value"] > 0 and r[model]["seconds"] > 0
        assert (r[model]["nll"] is None) == (model == "gan")
    assert r["vae"]["flow_weights"] == r["gan"]["flow_weights"] == 0
    assert r["flow_after"]["flow_weights"] > 0 and r["flow_after"]["gain"]["nats"] > -1
    report = (folder / "report.html").read_text()
    assert "the non-saturating loss" in report and "They compare models on this data set" in report
    for model in ("vae", "gan"):
        assert f"({r[model]['fid']['relative']:.2g})" in report


def test_a_flow_is_fitted_again_if_its_vae_trains_on_and_not_otherwise(tmp_path):
    argv = "--smoke --limit 100 --width 4 --model flow --flow-fit after --fid none".split()
    argv += ["--data-dir", tmp_path / "d", "--nll-k", 2, "--nll-n", 4]

    def fitted(*more):
        assert run_main(flowvae_gan, *more, "--out", tmp_path / "run") == 0
        content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
        rows = [row for row in content["history"] if row["model"] == "flow_after"]
        return rows, content["nets"]["flow_after"]["flow"]

    rows, first = fitted(*argv, "--epochs", 2)
    again, second = fitted("--resume")
    assert len(rows) == 2 and rows == again
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values()))
    longer, _ = fitted("--resume", "--epochs", 3)
    assert len(longer) == 3 and longer[0]["train"] != rows[0]["train"]


def test_a_flow_fitted_to_codes_gets_their_likelihood(tmp_path, monkeypatch):
    """Codes of which q(z) is known: the loss on validation comes down to their entropy."""
    def encode(enc, split):
        rng = torch.Generator().manual_seed(len(split))
        mu = 3 + 0.5 * torch.randn(len(split), 4, generator=rng)
        return mu, torch.full_like(mu, -20.0)

    monkeypatch.setattr(flowvae_gan, "encode", encode)
    monkeypatch.setattr(flowvae_gan, "evaluate", lambda *_: None)
    argv = "--smoke --limit 1700 --width 4 --z-dim 4 --model flow --flow-fit after --lr 5e-3"
    argv = [*argv.split(), "--epochs", 15, "--data-dir", tmp_path]
    assert run_main(flowvae_gan, *argv, "--out", tmp_path / "run") == 0
    history = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"]
    lowest = min(row["val"] for row in history if row["model"] == "flow_after")
    entropy = Independent(Normal(torch.zeros(4), 0.5), 1).entropy().item()
    assert entropy - 0.3 < lowest < entropy + 0.4


def test_colour_takes_the_logistic_and_a_gan_alone_has_no_likelihood(tmp_path):
    flags = ["--smoke", "--data", "sprites", "--limit", "300", "--epochs", "1", "--width", "4"]
    flags += ["--fid", "none", "--nll-k", "2", "--nll-n", "4", "--data-dir", tmp_path]
    flow = ["--model", "flow", "--flow-fit", "joint"]
    assert run_main(flowvae_gan, *flags, *flow, "--out", tmp_path / "f") == 0
    r = json.loads((tmp_path / "f" / "results.json").read_text())
    assert r["args"]["likelihood"] == "logistic" and r["vae"] is r["gan"] is None
    bits = r["flow_joint"]["nll"]["nats"] / 3072 / math.log(2)
    assert math.isclose(r["flow_joint"]["nll"]["bits_per_dim"], bits) and 1 < bits < 12
    assert run_main(flowvae_gan, *flags, "--model", "gan", "--out", tmp_path / "g") == 0
    r = json.loads((tmp_path / "g" / "results.json").read_text())
    assert r["flow_after"] is None and r["gan"]["nll"] is None
