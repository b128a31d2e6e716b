"""What every script promises of a run: its files, --weights, resume, Ctrl-C, kill -9, errors.

SCRIPTS is what differs; tests of one paper's own matters are in test_<script>.py."""

import functools
import importlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import torch

import eval as evaluation
from conftest import ROOT, need, run_main, same, similar, snapshot
from eval import Run, checkpoint

# what differs

DIGITS = "--data digits --limit 160 --batch-size 32"
PROBES = (
    "test_recon test_kl active_dims s_train_acc s_test_acc s_test_stderr z_train_acc z_test_acc "
    "z_test_stderr z_mean_train_acc z_mean_test_acc z_mean_test_stderr z_null_acc z_null_stderr "
    "chance majority factors real_class_acc "
)
INTERPOLATIONS = "interpolation_1 interpolation_2 interpolation_3"


class Script(NamedTuple):
    """A row of SCRIPTS."""

    tiny: str  # flags of a training that takes a second
    figures: str  # of the smoke run
    keys: str  # of results.json, besides COMMON
    nets: str  # in the checkpoint of a tiny run, as `parts` and `kept`
    misfit: dict  # an argument that asks for weights of another size
    breaks: tuple  # a function of train, the part of its result that becomes nan, the term to blame
    parts: str = ""
    models: tuple = ("",)  # trained one after the other; then nets and parts are model/name
    kept: tuple = ()
    lowest: str = None  # the column of the log that chooses best.pt; None: the last epoch
    real: dict = {}  # {set of DATA_DIR: flags of a smoke run on it}
    learned: object = None  # what (results, report) of these runs have to show


SCRIPTS = {
    "cyclevae": Script(
        tiny=DIGITS,
        figures=f"curves swap_grid swap_grid_unseen {INTERPOLATIONS} tsne_class tsne_factors "
        "prediction_networks",
        keys=PROBES + "s_to_z_r2 z_to_s_r2 s_to_z_class_acc z_to_s_class_acc decoded_class_acc "
        "swap_class_acc summary paper",
        nets="enc dec",
        parts="opt opt_reverse rng",
        misfit={"z_dim": 5},
        breaks=("forward_cycle", 1, "kl"),
        lowest="val",
        real=dict.fromkeys(("mnist", "sprites2015"), "--epochs 1")
        | dict.fromkeys(("faces", "yaleb"), "--epochs 1 --image-size 32 --limit 300"),
        learned=lambda r, report: r["s_train_acc"] > r["chance"],
    ),
    "mathieu": Script(
        tiny=DIGITS,
        figures=f"curves adversary reconstructions swap_grid samples styles {INTERPOLATIONS} "
        "tsne_class",
        keys=PROBES + "adversary converged swap_class_acc prior_class_acc swap_fid prior_fid fid_floor "
        "summary paper",
        nets="enc dec disc",
        parts="opt opt_disc rng",
        misfit={"z_dim": 5},
        breaks=("reconstruct_and_swap", 2, "kl"),
        real={"mnist": "--epochs 2 --limit 400"},
        learned=lambda r, report: r["s_train_acc"] > r["chance"],
    ),
    "vae": Script(
        tiny=DIGITS + " --binarize --fid none",
        figures="curves reconstructions_and_samples learning samples_100_vae tsne confusion_VAE",
        keys="vae ae nae summary paper",
        nets="vae/enc vae/dec",
        parts="vae/opt vae/rng vae/rng_noise",
        models=("vae",),
        kept=("original", "VAE:\nbefore training", "VAE:\nafter epoch 1", "VAE:\nat the end"),
        misfit={"hidden": [7]},
        breaks=("vae_losses", 0, "recon"),
        real={
            "mnist": "--limit 1500",
            "faces": "--limit 1500 --fid none",
        },
        learned=lambda r, report: r["vae"]["svm_rbf"]["accuracy"] > 0.1,
    ),
    "dann moons": Script(
        tiny="--points 20 --hidden 4 --seeds 3",
        figures="moons panels curves",
        keys="seeds points nn dann summary paper",
        nets="nn/net dann/net",
        models=("nn", "dann"),
        kept=("nn", "dann"),
        misfit={"hidden": 7},
        breaks=("score_moons", "loss", "loss"),
    ),
    "dann images": Script(
        tiny="--task images --source digits --target digitsm --limit 200 --batch-size 64 "
        "--arch bn --model dann source_only target_only",
        figures="curves domains tsne_domains",
        keys="seeds source_only dann target_only average gap_covered proxy_a_distance summary paper",
        nets="dann/net dann/average source_only/net target_only/net",
        parts="dann/opt dann/rng source_only/opt source_only/rng target_only/opt target_only/rng",
        models=("dann", "source_only", "target_only"),
        misfit={"arch": "bn"},
        breaks=("domain_loss", None, "domain"),
        real={"mnist-mnistm": "--task images --source mnist --target mnistm"},
        learned=lambda r, report: "76.7 %" in report and "55.8 %" in report,
    ),
    "vaegan": Script(
        tiny=DIGITS + " --arch conv --width 2 --fid none",
        figures="curves discriminator reconstructions samples samples_100_vae samples_100_vaegan",
        keys="vae vaegan real_class_acc mean_image_mse summary paper",
        nets="vae/enc vae/dec vaegan/enc vaegan/dec vaegan/disc",
        parts="vae/opt vae/rng vaegan/opt vaegan/rng",
        models=("vae", "vaegan"),
        misfit={"hidden": [7]},
        breaks=("vae_losses", 0, "recon"),
        real=dict.fromkeys(
            ("fashion", "mnistm"),
            "--limit 400 --arch conv --width 4 --epochs 1 --image-size 32 --fid none",
        ),
        learned=lambda r, report: 0 < r["vaegan"]["recon_mse"] < 1,
    ),
    "flowvae_gan": Script(
        tiny=DIGITS + " --binarize --width 4 --fid none",
        figures="curves interpolations learning samples",
        keys="vae flow_joint flow_after gan real_class_acc summary paper",
        nets="vae/enc vae/dec flow_joint/enc flow_joint/dec flow_joint/flow flow_after/flow "
        "gan/gen gan/disc",
        parts="vae/opt vae/rng flow_joint/opt flow_joint/rng flow_after/opt flow_after/rng "
        "gan/opt gan/rng",
        models=("vae", "flow_joint", "flow_after", "gan"),
        kept=("VAE, epoch 1", "joint flow, epoch 1", "GAN, epoch 1"),
        misfit={"z_dim": 5},
        breaks=("vae_losses", 0, "recon"),
        real=dict.fromkeys(
            ("mnist", "svhn"),
            "--limit 400 --width 4 --epochs 1 --nll-k 2 --fid none",
        ),
        learned=lambda r, report: (
            r["flow_joint"]["nll"]["nats"] > 0 and r["args"]["binarize"] == (r["data"] == "mnist")
        ),
    ),
}

COMMON = "script data command args versions device threads seconds epochs seed smoke figures"
FILES = {"args.json", "log.csv", "best.pt", "last.pt", "results.json", "report.html", "figures"}
FACTORS = {"yaleb": {"azimuth", "elevation"}, "sprites2015": {"action", "direction", "frame"}}
INSIDE = {  # keys of what results.json holds by these names
    "fid": "value spread relative floor features n",
    "nll": "nats bits_per_dim n stderr ess",
    "svm_linear": "accuracy classes confusion",
    "svm_rbf": "accuracy classes confusion",
}
TINY = {name: row.tiny.split() for name, row in SCRIPTS.items()}

scripts = pytest.mark.parametrize("name", SCRIPTS)
trainings = pytest.mark.parametrize("name", TINY)


def module(name):
    return importlib.import_module(name.split()[0])


def results(folder):
    """results.json, which holds no NaN or Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} in results.json")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def last(folder, name):
    """last.pt, without the seconds that stand in the curve of flowvae_gan.py's second flow; `parts`
    are those of all models."""
    content = checkpoint(folder / "last.pt", name.split()[0])
    content["parts"] = {}
    for model, state in content["models"].items():
        for part, value in state["parts"].items():
            content["parts"][f"{model}/{part}".removeprefix("/")] = value
    if "flow_after" in content["kept"]:
        content["kept"]["flow_after"] = content["kept"]["flow_after"][:, :2]
    return content


def named(name, nets):
    """Networks by the names of Script.nets: {"vae/enc": ...} of {"vae": {"enc": ...}}."""
    if SCRIPTS[name].models == ("",):
        return nets
    return {f"{model}/{net}": nets[model][net] for model in nets for net in nets[model]}


def train(name, *argv):
    """The exit status of main() without the evaluation."""
    script = module(name)
    with pytest.MonkeyPatch.context() as patch:
        if name == "mathieu":  # whose LeNet would take longer than the training
            patch.setattr(script, "classifier", lambda *given: evaluation.classifier(*given[:2], 500))
        for part in [part for part in vars(script) if part.startswith("evaluate")]:
            patch.setattr(script, part, lambda *_: None)
        return run_main(script, *argv)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(name, out, epochs=2) -> the arguments of a tiny training into the folder `out`."""
    data = tmp_path_factory.mktemp("data")

    def argv(name, out, epochs=2):
        flags = ["--device", "cpu", "--epochs", epochs, "--data-dir", data, "--out", out]
        return [*TINY[name], *flags]

    return argv


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """whole(name) -> the folder of a tiny training of two epochs, without interruption."""

    @functools.cache
    def folder(name):
        out = tmp_path_factory.mktemp("whole") / "run"
        assert train(name, *tiny(name, out)) == 0
        return out

    return folder


# files and numbers


@scripts
def test_smoke_writes_every_file_and_figure_and_says_that_it_is_one(name, smoke):
    folder, output = smoke(name)
    assert {path.name for path in folder.iterdir()} == FILES
    figures = SCRIPTS[name].figures.split()
    assert {path.name for path in folder.glob("figures/*")} == {f"{fig}.png" for fig in figures}
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == len(figures) and "smoke run" in report
    assert output.strip().splitlines()[-1] == str(folder / "report.html")


@scripts
def test_the_report_is_one_file_that_asks_for_nothing_from_elsewhere(name, smoke):
    report = (smoke(name)[0] / "report.html").read_text().partition("<pre>")[0]
    report = re.sub('base64,[^"]+', "base64,", report)  # in which any letters may stand
    assert not re.findall(r"http|<script|<link|<iframe|url\(|@import", report)
    sources = re.findall(r'(?:src|href)="([^"]{11})', report)
    assert sources and set(sources) == {"data:image/"}


@scripts
def test_results_hold_every_key_with_plain_numbers_in_range(name, smoke):
    r = results(smoke(name)[0])
    assert set(r) == {*COMMON.split(), *SCRIPTS[name].keys.split()}
    assert sorted(r["figures"]) == sorted(f"{fig}.png" for fig in SCRIPTS[name].figures.split())
    assert r["script"] == name.split()[0] and r["smoke"] is True and r["seed"] == 0
    assert r["command"].startswith(f"python {r['script']}.py --smoke") and r["seconds"] > 0
    rows = len((smoke(name)[0] / "log.csv").read_text().splitlines()) - 1
    assert r["epochs"] * len(SCRIPTS[name].models) == rows

    def check(part):
        for key, value in part.items():
            if key.endswith(("_acc", "accuracy")) and isinstance(value, (int, float)):
                assert 0 <= value <= 1, key
            if key in INSIDE and value is not None:
                assert set(value) - {"k"} == set(INSIDE[key].split()), key
            if isinstance(value, dict):
                check(value)

    check({key: value for key, value in r.items() if key != "args"})


@scripts
def test_best_pt_is_the_epoch_with_the_lowest_validation_loss_or_against_an_adversary_the_last(
    name, smoke
):
    folder, lowest = smoke(name)[0], SCRIPTS[name].lowest
    best, end = checkpoint(folder / "best.pt", name.split()[0]), last(folder, name)
    if lowest:
        assert best["epoch"] == min(end["history"], key=lambda row: row[lowest])["epoch"]
    elif SCRIPTS[name].models == ("",):
        assert best["epoch"] == end["epoch"] == len(best["history"])
        assert same(best["nets"], end["nets"])
    else:  # what each model's best epoch is stands in the tests of the script
        assert best["epoch"] == end["epoch"] and same(best["nets"], end["nets"])
        assert set(best["epoch"]) == set(SCRIPTS[name].models)


@scripts
def test_load_gives_the_networks_of_a_checkpoint_in_one_line_ready_for_use(name, smoke, whole):
    for folder in (smoke(name)[0], whole(name)):
        nets = named(name, module(name).load(folder / "best.pt"))
        assert set(nets) == {net for net in SCRIPTS[name].nets.split() if not net.endswith("_1")}
        assert not any(net.training for net in nets.values())


@pytest.mark.parametrize("name", ["cyclevae", "mathieu", "vae", "vaegan", "flowvae_gan"])
def test_weights_without_their_training_set_are_evaluated_without_what_needs_it(
    name, smoke, tmp_path
):
    folder = smoke(name)[0]
    content = checkpoint(folder / "best.pt", name)
    argv = ["--data", content["args"]["data"], "--data-dir", folder.with_name("data")]
    content["args"]["data"] = f"folder:{tmp_path / 'nowhere'}"
    torch.save(content | {"fingerprint": "0" * 16}, tmp_path / "best.pt")
    argv += ["--weights", tmp_path / "best.pt", "--out", tmp_path / "run"]
    assert run_main(module(name), *argv) == 0
    assert "left out" in (tmp_path / "run" / "report.html").read_text()
    new = results(tmp_path / "run")
    measured = {key for key, value in new.items() if value is None}
    assert measured >= {key for key in ("real_class_acc", "s_test_acc") if key in new}


@scripts
def test_weights_repeat_the_numbers_and_figures_in_a_fresh_folder_and_touch_no_other(
    name, smoke, monkeypatch, tmp_path
):
    folder = smoke(name)[0]
    monkeypatch.chdir(tmp_path)
    before = snapshot(folder)
    argv = ["--weights", folder / "best.pt", "--data-dir", folder.with_name("data")]
    assert run_main(module(name), *argv) == 0
    (out,) = (tmp_path / "runs").iterdir()
    old, new = results(folder), results(out)
    assert new.pop("command").startswith(f"python {old['script']}.py --weights ")
    assert similar(old, {**new, "command": ""}, 1e-3)
    assert {path.name for path in out.iterdir()} == {"results.json", "report.html", "figures"}
    assert (out / "report.html").stat().st_size > 10_000
    assert run_main(module(name), *argv, "--overwrite", "--out", folder) == 2
    assert snapshot(folder) == before


@scripts
@pytest.mark.parametrize(
    "changes, words",
    [
        (lambda row: {"script": "other"}, "other.py"),
        (lambda row: {"classes": ["a", "b", "c"]}, "classes"),
        (lambda row: {"shape": [2, 9, 9]}, "images of|networks|damaged"),
        (lambda row: {"args": row.misfit}, "shape"),
        (lambda row: {"nets": {}}, "shape|damaged"),
    ],
    ids=["script", "classes", "images", "arguments", "weights"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(
    name, changes, words, smoke, tmp_path, capsys
):
    content = torch.load(smoke(name)[0] / "best.pt", weights_only=True)
    for key, value in changes(SCRIPTS[name]).items():
        content[key] = content[key] | value if key == "args" else value
    torch.save(content, tmp_path / "best.pt")
    before = snapshot(tmp_path)
    data = smoke(name)[0].with_name("data")
    argv = ["--weights", tmp_path / "best.pt", "--data-dir", data, "--out", tmp_path / "run"]
    assert run_main(module(name), *argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and any(word in error for word in words.split("|")), error
    files = {path: content for path, content in snapshot(tmp_path).items() if content is not None}
    assert files == before


@pytest.mark.parametrize(
    "name, data", [(name, data) for name, row in SCRIPTS.items() for data in row.real]
)
def test_real_sets_run_from_pixels_to_report(name, data, data_dir, tmp_path):
    if data == "sprites2015":
        pytest.importorskip("h5py")
    need(data_dir, *data.split("-"))
    row, sets = SCRIPTS[name], [] if "-" in data else ["--data", data]
    flags = ["--smoke", *sets, *row.real[data].split(), "--data-dir", data_dir]
    assert run_main(module(name), *flags, "--out", tmp_path / "run") == 0
    r, report = results(tmp_path / "run"), (tmp_path / "run" / "report.html").read_text()
    assert r["data"] == data and row.learned(r, report)
    assert FACTORS.get(data, set()) <= set(r.get("factors", FACTORS.get(data)) or ())


# interrupted runs


@trainings
def test_ctrl_c_says_how_to_go_on_and_resume_is_bit_exact(
    name, whole, tiny, monkeypatch, tmp_path, capsys
):
    log, calls = Run.log_epoch, []

    def interrupted(run, *args, **terms):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the second epoch, before it is saved
        return log(run, *args, **terms)

    out, row = tmp_path / "a run", SCRIPTS.get(name, SCRIPTS["mathieu"])
    monkeypatch.setattr(Run, "log_epoch", interrupted)
    assert train(name, *tiny(name, out)) == 130
    monkeypatch.setattr(Run, "log_epoch", log)
    assert {p.name for p in out.iterdir()} == FILES - {"results.json", "report.html", "figures"}
    _, _, *words = shlex.split(capsys.readouterr().out.rpartition("to go on: ")[2])
    assert words == ["--resume", "--out", str(out)]
    assert train(name, *words) == 0
    ours = last(out, name)
    assert len(ours["history"]) == 2 * len(row.models) and same(last(whole(name), name), ours)
    assert set(named(name, ours["nets"])) == set(row.nets.split())
    assert set(ours["parts"]) == {*row.nets.split(), *row.parts.split()}
    assert tuple(ours["kept"]) == row.kept


@scripts
def test_the_seed_decides_and_it_alone(name, whole, tiny, tmp_path):
    first = last(whole(name), name)
    for seed in (0, 5):
        assert train(name, *tiny(name, tmp_path / str(seed)), "--seed", seed) == 0
    assert same(first, last(tmp_path / "0", name))
    assert not same(first["nets"], last(tmp_path / "5", name)["nets"])


@scripts
def test_resume_may_raise_the_epochs(name, whole, tmp_path):
    out = shutil.copytree(whole(name), tmp_path / "run")
    assert train(name, "--resume", "--epochs", "3", "--out", out) == 0
    longer = last(out, name)
    models = SCRIPTS[name].models
    assert longer["args"]["epochs"] == 3 and len(longer["history"]) == 3 * len(models)
    if not SCRIPTS[name].lowest and models == ("",):
        best = checkpoint(out / "best.pt", name.split()[0])
        assert best["epoch"] == len(best["history"]) == 3


@pytest.mark.parametrize("name", [name for name, row in SCRIPTS.items() if row.parts])
def test_resume_on_another_kind_of_device_seeds_the_generators_anew(
    name, whole, monkeypatch, tmp_path
):
    content = checkpoint(whole(name) / "last.pt", name.split()[0])
    parts = content["models"][SCRIPTS[name].models[0]]["parts"]
    for part, state in parts.items():
        if part.startswith("rng"):
            parts[part] = torch.zeros(24, dtype=torch.uint8)  # of no device
        for group in state["param_groups"] if part.startswith("opt") else []:
            group["fused"] = None
    torch.save(content, tmp_path / "last.pt")
    real, seen = Run.resume, {}

    def resume(run, model="", **parts):
        assert real(run, model, **parts) == 2
        seen.update(parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "resume", resume)
    assert train(name, "--resume", "--epochs", "3", "--out", tmp_path) == 130
    generators = [part for part in seen.values() if isinstance(part, torch.Generator)]
    optimisers = [part for part in seen.values() if isinstance(part, torch.optim.Optimizer)]
    seeds = {rng.initial_seed() for rng in generators}
    assert generators and len(seeds) == len(generators)  # each its own stream
    assert optimisers and all(opt.param_groups[0]["fused"] is True for opt in optimisers)


@scripts
def test_kill_in_mid_epoch_loses_that_epoch_only(name, tiny, monkeypatch, tmp_path):
    script, out = name.split()[0], tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", *map(str, tiny(name, out, epochs=2000))],
        stdout=subprocess.DEVNULL,
    )
    log = out / "log.csv"
    deadline = time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(last(out, name)["history"])
    assert 2 <= done < 2000  # the log's row comes before the checkpoint
    seen = []
    monkeypatch.setattr(Run, "save_epoch", lambda run, _: seen.append(len(run.history)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(name, "--resume", "--out", out)
    assert seen == [done + 1]  # it goes on with the epoch that was lost


@scripts
def test_amp_trains_close_to_float32(name, whole, tiny, tmp_path):
    assert train(name, *tiny(name, tmp_path), "--amp") == 0
    found = last(tmp_path, name)
    assert found["args"]["amp"] is True
    rows = found["history"][0], last(whole(name), name)["history"][0]
    half, plain = (
        sum(abs(value) for key, value in row.items()
            if isinstance(value, float) and "second" not in key)
        for row in rows
    )
    assert half == pytest.approx(plain, rel=0.2)


# errors


@scripts
def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_good_checkpoint_stays(
    name, whole, tiny, monkeypatch, tmp_path, capsys
):
    function, part, term = SCRIPTS[name].breaks
    two = last(whole(name), name)
    real, out = getattr(module(name), function), tmp_path / "run"

    def breaks(*args):
        found = real(*args)
        if not (out / "last.pt").exists():
            return found  # the first epoch
        if part is None:
            return found * math.nan
        if isinstance(found, dict):
            return found | {part: found[part] * math.nan}
        return [value * math.nan if i == part else value for i, value in enumerate(found)]

    monkeypatch.setattr(module(name), function, breaks)
    assert train(name, *tiny(name, out)) == 2
    error = capsys.readouterr().err
    assert f"{term} is not finite in epoch 2" in error and error.count("\n") == 1, error
    assert "the checkpoint of epoch 1 stays" in error
    ours = last(out, name)
    first = SCRIPTS[name].models[0]
    assert ours["epoch"] == ({first: 1} if first else 1)
    assert same(ours["history"], two["history"][:1])


@scripts
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    name, tiny, monkeypatch, tmp_path, capsys
):
    real, calls = evaluation.write, []

    def full(path, content):
        calls.append(path.name)
        if calls.count("last.pt") == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(evaluation, "write", full)
    assert train(name, *tiny(name, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "last.pt cannot be" in error and "No space left" in error and error.count("\n") == 1
    assert last(tmp_path / "run", name)["epoch"] in (1, {SCRIPTS[name].models[0]: 1})


def test_help_names_the_flags_and_costs_no_more_than_importing_torch():
    code = """
import contextlib, importlib, io, sys
for name, flag in zip(sys.argv[1::2], sys.argv[2::2]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    assert f"--{flag}" in out.getvalue() and "--weights" in out.getvalue(), name
    heavy = {"torchvision", "sklearn", "matplotlib", "scipy", "PIL"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    own = "cyclevae kl-weight mathieu adv-weight vae binarize dann domain-weight vaegan gamma"
    argv = [*own.split(), "flowvae_gan", "flow-fit"]
    assert set(argv[::2]) == {name.split()[0] for name in SCRIPTS}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "mathieu --z-dim 1 --s-dim 1 --limit 200",
        "cyclevae --data digits --z-dim 1 --s-dim 1 --limit 200",
        "vaegan --z-dim 1 --fid none",
        "flowvae_gan --z-dim 1 --fid none --nll-k 2 --nll-n 4",
    ],
)
def test_codes_of_one_number_run_through_the_whole_evaluation(command, tmp_path):
    name, *flags = command.split()
    argv = ["--smoke", "--epochs", 1, *flags, "--data-dir", tmp_path / "data"]
    assert run_main(module(name), *argv, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "report.html").exists()
