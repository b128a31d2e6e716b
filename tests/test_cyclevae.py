"""cyclevae.py against autograd, the authors' slower step, and what its smoke run shows."""

import copy
import json

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import bench
import cyclevae

# the objective


@pytest.mark.parametrize("size", [28, 32, 60, 64])
def test_networks_take_every_size_and_give_images_back(size):
    nets = cyclevae.build((3, size, size), {"z_dim": 5, "s_dim": 7, "leak": 0.2, "seed": 0})
    mu, logvar, s = nets["enc"](torch.rand(2, 3, size, size))
    assert mu.shape == logvar.shape == (2, 5) and s.shape == (2, 7)
    out = nets["dec"](mu, s)
    assert out.shape == (2, 3, size, size) and 0 <= out.min() and out.max() <= 1


def test_the_28_pixel_networks_have_the_papers_number_of_weights():
    nets = cyclevae.build((1, 28, 28), {"z_dim": 16, "s_dim": 16, "leak": 0.2, "seed": 0})
    sizes = [sum(p.numel() for p in net.parameters()) for net in nets.values()]
    assert sizes == [76_848, 82_737]  # the released networks.py at 16/16


def test_instance_norm_is_torchs_in_both_modes():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    want = torch.nn.functional.instance_norm(x)
    norm = cyclevae.instance_norm(6)
    torch.testing.assert_close(norm(x), want)
    torch.testing.assert_close(norm.eval()(x), want)
    assert not norm.state_dict()  # neither weights nor running statistics


def test_forward_cycle_equals_a_plain_evaluation_of_its_formula():
    enc, dec, *_ = bench.cycle_parts((1, 28, 28), 4, False, dtype=torch.float64)
    x, noise, *_ = bench.cycle_draws((1, 28, 28), 4, batch=3, dtype=torch.float64)
    recon, kl = cyclevae.forward_cycle(enc, dec, x, noise)
    want_recon, want_kl = 0.0, 0.0
    for i in range(6):
        partner = (i + 3) % 6
        mu, logvar, _ = enc(x[i : i + 1])
        _, _, s = enc(x[partner : partner + 1])
        q = Normal(mu, (0.5 * logvar).exp())
        want_kl += kl_divergence(q, Normal(0.0, 1.0)).sum() / 6
        out = dec(q.mean + q.stddev * noise[i], s)
        want_recon += ((out[0] - x[i]) ** 2).sum() / 6
    torch.testing.assert_close(torch.stack([recon, kl]), torch.stack([want_recon, want_kl]))


def test_one_fused_step_has_the_gradients_of_the_authors_five_backward_calls():
    shape, dim, draws = (
        (1, 28, 28),
        4,
        bench.cycle_draws((1, 28, 28), 4, batch=3, dtype=torch.float64),
    )
    grads = []
    for step in (bench.authors_cycle_step, bench.our_cycle_step):
        enc, dec, opt, opt_reverse = bench.cycle_parts(shape, dim, False, dtype=torch.float64)
        seen = []

        def remember(*_, enc=enc, dec=dec):
            seen.append(
                [
                    None if p.grad is None else p.grad.clone()
                    for p in (*enc.parameters(), *dec.parameters())
                ]
            )

        opt.register_step_pre_hook(remember)
        opt_reverse.register_step_pre_hook(remember)
        step(enc, dec, opt, opt_reverse, *draws)
        n = len(list(enc.parameters()))
        grads.append((seen[0], seen[1][:n]))  # the reverse step owns the encoder only
    (slow_forward, slow_reverse), (fast_forward, fast_reverse) = grads
    for slow, fast in zip(slow_forward + slow_reverse, fast_forward + fast_reverse):
        slow = torch.zeros(()) if slow is None else slow
        fast = torch.zeros(()) if fast is None else fast
        torch.testing.assert_close(
            *torch.broadcast_tensors(slow.double(), fast.double()), rtol=1e-9, atol=1e-10
        )


def test_the_reverse_cycle_moves_only_the_mean_path_of_the_encoder():
    enc, dec, _, opt_reverse = bench.cycle_parts((1, 28, 28), 4, False)
    _, _, x, z = bench.cycle_draws((1, 28, 28), 4, batch=3)
    before = copy.deepcopy([enc.state_dict(), dec.state_dict()])
    cyclevae.reverse_cycle(enc, dec, x, z).backward()
    assert all(p.grad is None for p in dec.parameters())
    assert all(p.grad is None for p in [*enc.s.parameters(), *enc.logvar.parameters()])
    assert enc.mu.weight.grad.abs().sum() > 0
    opt_reverse.step()
    assert all(torch.equal(dec.state_dict()[k], v) for k, v in before[1].items())
    assert not torch.equal(enc.mu.weight, before[0]["mu.weight"])


def test_the_reverse_cycle_is_zero_where_both_images_share_s():
    enc, dec, *_ = bench.cycle_parts((1, 28, 28), 4, False)
    x, _, _, z = bench.cycle_draws((1, 28, 28), 4, batch=3)
    assert cyclevae.reverse_cycle(enc, dec, torch.cat([x[:3], x[:3]]), z) == 0
    assert cyclevae.reverse_cycle(enc, dec, x, z) > 0


# the smoke run


def test_smoke_probes_eight_classes_and_every_factor_of_the_poses(smoke):
    results = json.loads((smoke("cyclevae")[0] / "results.json").read_text())
    assert results["chance"] == 1 / 8 and {"action", "direction", "frame"} < set(results["factors"])
    assert all(set(f) == {"s", "z", "z_mean", "majority"} for f in results["factors"].values())


def test_the_networks_of_a_checkpoint_take_images_and_give_images_back(smoke):
    nets = cyclevae.load(smoke("cyclevae")[0] / "best.pt")
    mu, _, s = nets["enc"](torch.rand(1, 3, 32, 32))
    assert nets["dec"](mu, s).shape == (1, 3, 32, 32)
