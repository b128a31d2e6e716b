"""cyclevae.py against autograd, the authors' slower step, and what its smoke run shows."""

import json

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import bench
import cyclevae
from data import Split

ARGS = {"z_dim": 5, "s_dim": 7, "seed": 0}


def networks(shape=(1, 28, 28)):
    """Encoder and decoder in float64, with 5 and 7 latents."""
    nets = cyclevae.build(shape, ARGS)
    return nets["enc"].double(), nets["dec"].double()


def draws(shape=(1, 28, 28), pairs=3):
    """What a step takes: x (2B, ...), noise (2B, Z), images of the reverse cycle, its z (B, Z)."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(2 * pairs, *shape, generator=rng, dtype=torch.float64)
    noise = torch.randn(2 * pairs, 5, generator=rng, dtype=torch.float64)
    x_reverse = torch.rand(2 * pairs, *shape, generator=rng, dtype=torch.float64)
    z = torch.randn(pairs, 5, generator=rng, dtype=torch.float64)
    return x, noise, x_reverse, z


# the objective


@pytest.mark.parametrize("size", [28, 32, 64])
def test_networks_take_every_size_and_give_images_back(size):
    nets = cyclevae.build((3, size, size), ARGS)
    mu, logvar, s = nets["enc"](torch.rand(2, 3, size, size))
    assert mu.shape == logvar.shape == (2, 5) and s.shape == (2, 7)
    out = nets["dec"](mu, s)
    assert out.shape == (2, 3, size, size) and 0 <= out.min() and out.max() <= 1


def test_the_28_pixel_networks_have_the_papers_number_of_weights():
    nets = cyclevae.build((1, 28, 28), {"z_dim": 16, "s_dim": 16, "seed": 0})
    sizes = [sum(p.numel() for p in net.parameters()) for net in nets.values()]
    assert sizes == [76_848, 82_737]  # the released networks.py at 16/16


def test_instance_norm_is_torchs_in_both_modes():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    want = torch.nn.functional.instance_norm(x)
    norm = cyclevae.instance_norm(6)
    torch.testing.assert_close(norm(x), want)
    torch.testing.assert_close(norm.eval()(x), want)
    assert not norm.state_dict()  # neither weights nor running statistics


def test_kl_divergence_is_that_of_torch_distributions():
    mu, logvar = torch.randn(2, 4, 5, dtype=torch.float64)
    want = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(cyclevae.kl_divergence(mu, logvar), want)


def test_forward_cycle_equals_a_plain_evaluation_of_its_formula():
    enc, dec = networks()
    x, noise, _, _ = draws()
    recon, kl = cyclevae.forward_cycle(enc, dec, x, noise)
    want_recon = 0.0
    want_kl = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        mu, logvar, _ = enc(x[i : i + 1])
        _, _, s = enc(x[partner : partner + 1])
        q = Normal(mu, (0.5 * logvar).exp())
        want_kl += kl_divergence(q, Normal(0.0, 1.0)).sum() / 6
        out = dec(q.mean + q.stddev * noise[i], s)
        want_recon += ((out[0] - x[i]) ** 2).sum() / 6
    torch.testing.assert_close(recon, want_recon)
    torch.testing.assert_close(kl, want_kl)


def test_one_step_has_the_gradients_of_the_authors_five_backward_calls():
    x, noise, x_reverse, z = draws()
    steps = []
    for step in (bench.authors_cycle_step, bench.our_cycle_step):
        enc, dec = networks()
        weights = [*enc.parameters(), *dec.parameters()]
        opt = torch.optim.SGD(weights, 0.01)
        opt_reverse = torch.optim.SGD(enc.parameters(), 0.01)
        seen = []
        for o in (opt, opt_reverse):
            o.register_step_pre_hook(lambda *_, w=weights: seen.append([p.grad for p in w]))
        before = [p.detach().clone() for p in weights]
        step(enc, dec, opt, opt_reverse, x, noise, x_reverse, z)
        assert len(seen) == 2
        steps.append([p.detach() - q for p, q in zip(weights, before)])
    for slow, fast in zip(*steps):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_the_reverse_cycle_moves_only_the_mean_path_of_the_encoder():
    enc, dec = networks()
    _, _, x, z = draws()
    cyclevae.reverse_cycle(enc, dec, x, z).backward()
    assert all(p.grad is None for p in dec.parameters())
    assert all(p.grad is None for p in [*enc.s.parameters(), *enc.logvar.parameters()])
    assert enc.mu.weight.grad.abs().sum() > 0


def test_the_reverse_cycle_is_zero_where_both_images_share_s():
    enc, dec = networks()
    _, _, x, z = draws()
    same = cyclevae.reverse_cycle(enc, dec, torch.cat([x[:3], x[:3]]), z).item()
    assert same < 1e-6 < cyclevae.reverse_cycle(enc, dec, x, z).item()


def test_validation_draws_partners_from_the_pool_and_never_the_image_itself():
    """Each validation class has one image, whose own s would rebuild it perfectly."""
    val = Split(torch.tensor([[[[200]]], [[[100]]]], dtype=torch.uint8), torch.tensor([0, 1]))
    pool = Split(torch.tensor([50, 50, 0, 0], dtype=torch.uint8).view(4, 1, 1, 1),
                 torch.tensor([0, 0, 1, 1]))

    def enc(x):
        return torch.zeros(len(x), 1), torch.full((len(x), 1), -50.0), x.flatten(1)

    def dec(z, s):
        return s[:, :, None, None]

    recon, kl = cyclevae.validation_loss(enc, dec, val, pool, seed=0)
    want = ((200 - 50) ** 2 + 100**2) / 2 / 255**2
    assert recon == pytest.approx(want, rel=1e-4) and kl == pytest.approx(24.5, rel=1e-4)


# the smoke run


def test_smoke_probes_eight_classes_and_every_factor_of_the_poses(smoke):
    results = json.loads((smoke("cyclevae")[0] / "results.json").read_text())
    assert results["chance"] == 1 / 8 and {"action", "direction", "frame"} < set(results["factors"])
    keys = {"s", "z", "z_mean"}
    keys |= {f"{key}_stderr" for key in keys} | {"chance", "majority"}
    assert all(set(f) == keys for f in results["factors"].values())
    assert results["decoded_class_acc"] > 0.5  # the pictures show something
    assert results["swap_class_acc"] > 0.3


def test_the_networks_of_a_checkpoint_take_images_and_give_images_back(smoke):
    nets = cyclevae.load(smoke("cyclevae")[0] / "best.pt")
    mu, _, s = nets["enc"](torch.rand(1, 3, 32, 32))
    assert nets["dec"](mu, s).shape == (1, 3, 32, 32)
