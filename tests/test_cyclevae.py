"""cyclevae.py against autograd, the authors' slower step, and what it promises of a run."""

import copy
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import bench
import cyclevae
from conftest import ROOT
from eval import checkpoint, command_line

TINY = ["--data", "sprites", "--limit", "640", "--batch-size", "32", "--device", "cpu"]


def run_main(script, *argv):
    """The exit status of main(argv) as the command line runs it."""
    try:
        command_line(lambda: script.main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code
    return 0


# ----------------------------------------------------------------------- the objective


@pytest.mark.parametrize("size", [28, 32, 60, 64])
def test_networks_take_every_size_and_give_images_back(size):
    nets = cyclevae.build((3, size, size), {"z_dim": 5, "s_dim": 7, "leak": 0.2})
    mu, logvar, s = nets["enc"](torch.rand(2, 3, size, size))
    assert mu.shape == logvar.shape == (2, 5) and s.shape == (2, 7)
    out = nets["dec"](mu, s)
    assert out.shape == (2, 3, size, size) and 0 <= out.min() and out.max() <= 1


def test_the_28_pixel_networks_have_the_papers_number_of_weights():
    nets = cyclevae.build((1, 28, 28), {"z_dim": 16, "s_dim": 16, "leak": 0.2})
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


# ----------------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One --smoke run from the command line, offline: (folder, seconds, output)."""
    base = tmp_path_factory.mktemp("smoke")
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "cyclevae.py"),
            "--smoke",
            "--device",
            "cpu",
            "--out",
            str(base / "run"),
            "--data-dir",
            str(base / "data"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return base / "run", time.perf_counter() - start, done.stdout


def test_smoke_writes_every_file_and_figure_and_says_that_it_is_one(smoke):
    folder, seconds, output = smoke
    figures = {path.stem for path in folder.glob("figures/*.png")}
    assert figures == {
        "curves",
        "swap_grid",
        "swap_grid_unseen",
        "interpolation_1",
        "interpolation_2",
        "interpolation_3",
        "tsne_class",
        "tsne_factors",
        "prediction_networks",
    }
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(figures) and "smoke run" in report
    assert "http" not in report.replace("https://", "", 0).split("<pre>")[0]
    assert output.strip().splitlines()[-1].endswith("report.html")
    assert {p.name for p in folder.iterdir()} == {
        "args.json",
        "log.csv",
        "best.pt",
        "last.pt",
        "results.json",
        "report.html",
        "figures",
    }


def test_smoke_results_hold_every_key_with_plain_numbers_in_range(smoke):
    results = json.loads((smoke[0] / "results.json").read_text())
    keys = (
        "script data args versions device threads seconds epochs seed smoke test_recon test_kl "
        "live_dims s_train_acc s_test_acc z_train_acc z_test_acc z_mean_train_acc z_mean_test_acc "
        "chance majority factors "
        "s_to_z_r2 z_to_s_r2 s_to_z_class_acc z_to_s_class_acc decoded_class_acc real_class_acc"
    )
    assert set(results) == set(keys.split()) and results["smoke"] is True
    assert all(0 <= v <= 1 for k, v in results.items() if k.endswith("_acc"))
    assert results["chance"] == 1 / 8 and {"action", "direction", "frame"} < set(results["factors"])
    assert all(set(f) == {"s", "z", "z_mean", "majority"} for f in results["factors"].values())


@pytest.mark.parametrize("name", ["mnist", "faces", "yaleb", "sprites2015"])
def test_real_sets_run_from_pixels_to_report(name, data_dir, tmp_path):
    if name == "sprites2015":
        pytest.importorskip("h5py")
    args = ["--smoke", "--data", name, "--data-dir", data_dir, "--out", tmp_path / "run"]
    assert run_main(cyclevae, *args) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"] == name and results["s_train_acc"] > results["chance"]
    wanted = {"yaleb": {"azimuth", "elevation"}, "sprites2015": {"action", "direction", "frame"}}
    assert wanted.get(name, set()) <= set(results["factors"])


def test_load_gives_the_networks_in_one_line(smoke):
    nets = cyclevae.load(smoke[0] / "best.pt")
    mu, _, s = nets["enc"](torch.rand(1, 3, 32, 32))
    assert nets["dec"](mu, s).shape == (1, 3, 32, 32)


def test_eval_only_repeats_the_numbers_from_best_pt_alone(smoke, tmp_path):
    before = json.loads((smoke[0] / "results.json").read_text())
    weights = (smoke[0] / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(weights)
    assert run_main(cyclevae, "--eval-only", "--out", tmp_path) == 0
    after = json.loads((tmp_path / "results.json").read_text())
    leave = {"seconds", "threads"}
    assert {k: v for k, v in before.items() if k not in leave} == {
        k: v for k, v in after.items() if k not in leave
    }
    assert (tmp_path / "best.pt").read_bytes() == weights
    assert run_main(cyclevae, "--resume", "--out", tmp_path) == 2  # would train over the weights
    assert (tmp_path / "best.pt").read_bytes() == weights


def test_resume_on_another_kind_of_device_seeds_the_generator_anew(smoke, tmp_path):
    content = torch.load(smoke[0] / "last.pt", weights_only=True)
    content["parts"]["rng"] = torch.zeros(16, dtype=torch.uint8)  # the size of a CUDA state
    content["parts"]["opt"]["param_groups"][0]["fused"] = None
    torch.save(content, tmp_path / "last.pt")
    args = cyclevae.parse(
        cyclevae.flags("", "sprites", 1, 2, 1.0)[0],
        ["--resume", "--out", str(tmp_path)],
        "cyclevae",
        {},
        {},
    )
    run = cyclevae.Run("cyclevae", args)
    nets = cyclevae.build((3, 32, 32), content["args"])
    parameters = [p for net in nets.values() for p in net.parameters()]
    rng, opt = torch.Generator(), torch.optim.Adam(parameters, fused=True)
    assert run.resume(nets, opt=opt, rng=rng) == len(content["history"])
    assert rng.initial_seed() == content["args"]["seed"] + len(content["history"])
    assert opt.param_groups[0]["fused"] is True


def train_only(monkeypatch, *argv):
    """main() without the evaluation."""
    monkeypatch.setattr(cyclevae, "evaluate", lambda *_: None)
    return (
        run_main(cyclevae, *TINY[:2], *argv)
        if "--resume" not in argv
        else run_main(cyclevae, *argv)
    )


def same(a, b):
    """Two checkpoints hold the same, seconds aside."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same(a[k], b[k]) for k in a if k not in ("seconds", "images_per_second", "args")
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_resume_is_bit_exact_and_the_seed_decides(monkeypatch, tmp_path):
    flags = [*TINY[2:], "--data-dir", tmp_path]
    assert train_only(monkeypatch, *flags, "--epochs", "2", "--out", tmp_path / "whole") == 0
    real_log, calls = cyclevae.Run.log, []

    def interrupted(self, *args, **terms):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the second epoch, before it is saved
        return real_log(self, *args, **terms)

    monkeypatch.setattr(cyclevae.Run, "log", interrupted)
    assert train_only(monkeypatch, *flags, "--epochs", "2", "--out", tmp_path / "halves") == 130
    monkeypatch.setattr(cyclevae.Run, "log", real_log)
    assert train_only(monkeypatch, "--resume", "--out", tmp_path / "halves") == 0
    whole, halves = (
        checkpoint(tmp_path / name / "last.pt", "cyclevae") for name in ("whole", "halves")
    )
    assert same(whole, halves)
    assert train_only(monkeypatch, *flags, "--epochs", "2", "--out", tmp_path / "again") == 0
    assert same(whole, checkpoint(tmp_path / "again" / "last.pt", "cyclevae"))
    assert (
        train_only(monkeypatch, *flags, "--epochs", "2", "--seed", "1", "--out", tmp_path / "other")
        == 0
    )
    assert not same(whole["nets"], checkpoint(tmp_path / "other" / "last.pt", "cyclevae")["nets"])


def test_resume_before_the_first_epoch_starts_from_the_beginning(monkeypatch, tmp_path):
    flags = [*TINY[2:], "--data-dir", tmp_path, "--epochs", "1"]
    monkeypatch.setattr(cyclevae, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train_only(monkeypatch, *flags, "--out", tmp_path / "run") == 130
    monkeypatch.undo()
    assert train_only(monkeypatch, "--resume", "--out", tmp_path / "run") == 0
    assert checkpoint(tmp_path / "run" / "last.pt", "cyclevae")["epoch"] == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_good_checkpoint_stays(
    monkeypatch, tmp_path, capsys
):
    real, calls = cyclevae.forward_cycle, []

    def breaks(*args):
        calls.append(1)
        recon, kl = real(*args)
        return recon, kl * (
            math.nan if len(calls) == 15 else 1
        )  # epochs of 11 steps and a validation

    monkeypatch.setattr(cyclevae, "forward_cycle", breaks)
    status = train_only(
        monkeypatch, *TINY[2:], "--data-dir", tmp_path, "--epochs", "3", "--out", tmp_path / "run"
    )
    error = capsys.readouterr().err
    assert status == 2 and "kl is not finite in epoch 2" in error and error.count("\n") == 1
    assert checkpoint(tmp_path / "run" / "last.pt", "cyclevae")["epoch"] == 1


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(monkeypatch, tmp_path, capsys):
    import eval as evaluation

    real, calls = evaluation.write, []

    def full(path, content):
        calls.append(path.name)
        if calls.count("last.pt") == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(evaluation, "write", full)
    flags = [*TINY[2:], "--data-dir", tmp_path, "--epochs", "3", "--out", tmp_path / "run"]
    assert train_only(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert "last.pt cannot be" in error and "No space left" in error and error.count("\n") == 1
    assert checkpoint(tmp_path / "run" / "last.pt", "cyclevae")["epoch"] == 1


def test_help_costs_no_more_than_importing_torch():
    code = (
        "import sys; sys.argv = ['cyclevae.py', '--help']\n"
        "try:\n import cyclevae; cyclevae.main()\nexcept SystemExit: pass\n"
        "heavy = {'torchvision', 'sklearn', 'matplotlib', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--kl-weight" in done.stdout, done.stderr
