"""A run's folder: what is written, kept and refused; several models; resume and --weights."""

import csv
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import cyclevae
import eval as evaluation
from conftest import ROOT, run_main, same, snapshot
from data import DataError, Dataset, Split
from eval import Run, checkpoint, common_flags, grid, make_rng, parse

RESULTS = ("results.json", "report.html")


def a_set(n=16):
    """A Dataset of n images in two classes, four of them for validation and four for test."""
    x = torch.arange(n * 64).view(n, 1, 8, 8).remainder(256).byte()
    y = torch.arange(n) % 2
    parts = [Split(x[rows], y[rows]) for rows in (slice(8, None), slice(4), slice(4, 8))]
    return Dataset("two", ["a", "b"], *parts, fingerprint="0123456789abcdef")


def a_run(folder, dataset=None, **changes):
    """A Run with just the arguments that Run reads."""
    args = dict(data="two", data_dir="data", device="cpu", out=folder and str(folder), seed=0)
    args |= dict(epochs=3, batch_size=8, limit=None, weights=None, command="python cyclevae.py")
    args |= dict.fromkeys(("resume", "overwrite", "smoke", "amp", "compile"), False)
    return Run("cyclevae", SimpleNamespace(**args | changes), dataset or a_set())


def figure(shade=0.5):
    return grid(torch.full((1, 1, 1, 8, 8), shade))


def finished(folder, names=("curves",), **changes):
    """The Run of a folder to which figures, results and report were written."""
    run = a_run(folder, **changes)
    for name in names:
        run.figure(name, figure(), "")
    run.finish("A title", {"answer": 42, "summary": None, "paper": None})
    return run


# several models, one after the other


SCORES = {"first": [2.0, 1.0, 3.0, 0.5], "second": [1.0, 2.0, 3.0, 4.0]}


def train_two(run, stop=None, batches=None):
    """Trains a line for each of two models, the second with a term of its own. stop: (model,
    epoch), where Ctrl-C is pressed before the epoch ends; batches: list that gathers the steps."""
    for model in SCORES:
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        opt = torch.optim.Adam(net.parameters(), lr=0.1)
        rng = make_rng(run.args.seed, "training")
        for epoch in range(run.resume(model, net=net, opt=opt, rng=rng), run.args.epochs):
            for _ in range(3):
                x = torch.randn(8, 4, generator=rng)
                loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
                opt.zero_grad()
                loss.backward()
                opt.step()
                run.track(loss=loss)
                if batches is not None:
                    batches.append((model, epoch + 1))
            if stop == (model, epoch + 1):
                raise KeyboardInterrupt
            terms = {"extra": 0.5} if model == "second" else {}
            run.end_epoch(score=SCORES[model][epoch], **terms)


def last(folder):
    return checkpoint(folder / "last.pt", "cyclevae")


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of two models, trained for three epochs each without interruption."""
    folder = tmp_path_factory.mktemp("two") / "run"
    train_two(a_run(folder))
    return folder


def test_each_model_has_its_rows_its_best_epoch_and_its_weights(two):
    rows = log(two)
    assert [(row["model"], row["epoch"]) for row in rows] == [
        (model, str(epoch)) for model in ("first", "second") for epoch in (1, 2, 3)
    ]
    assert [row["extra"] for row in rows] == 3 * [""] + 3 * ["0.5"]
    assert all(float(row["loss"]) > 0 and float(row["images_per_second"]) > 0 for row in rows)
    best = checkpoint(two / "best.pt", "cyclevae")
    assert best["epoch"] == {"first": 2, "second": 1} and len(best["history"]) == 6
    assert set(best["nets"]) == {"first", "second"}
    for weights in best["nets"].values():
        assert set(weights["net"]) == {"weight", "bias"}
    assert best["classes"] == ["a", "b"] and best["n_classes"] == 2 and best["shape"] == [1, 8, 8]
    assert best["fingerprint"] == a_set().fingerprint and best["args"]["epochs"] == 3


def test_models_that_start_alike_are_given_the_same_batches(two):
    rows = log(two)
    assert [row["loss"] for row in rows[:3]] == [row["loss"] for row in rows[3:]]


@pytest.mark.parametrize("stop", [("first", 2), ("first", 3), ("second", 1), ("second", 2)])
def test_an_interruption_in_either_model_resumes_bit_for_bit(two, stop, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_two(a_run(tmp_path), stop)
    steps = []
    train_two(a_run(tmp_path, resume=True), batches=steps)
    done = (stop[0] == "second") * 3 + stop[1] - 1
    assert len(steps) == 3 * (6 - done) and steps[0] == stop  # no epoch is trained twice
    assert same(last(two), last(tmp_path))
    assert same(*(checkpoint(folder / "best.pt", "cyclevae") for folder in (two, tmp_path)))


def test_a_finished_run_is_not_trained_again(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "run")
    steps = []
    train_two(a_run(folder, resume=True), batches=steps)
    assert steps == [] and same(last(two), last(folder))


def test_more_epochs_continue_each_model(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "run")
    steps = []
    train_two(a_run(folder, resume=True, epochs=4), batches=steps)
    assert set(steps) == {("first", 4), ("second", 4)}
    best = checkpoint(folder / "best.pt", "cyclevae")
    assert best["epoch"] == {"first": 4, "second": 1} and len(best["history"]) == 8
    whole = tmp_path / "whole"
    train_two(a_run(whole, epochs=4))
    assert same(last(whole)["models"], last(folder)["models"])


# what is not finite


@pytest.mark.parametrize("what", ["term", "weight"])
def test_what_is_not_finite_is_refused_before_it_is_saved(what, tmp_path):
    run = a_run(tmp_path)
    net = nn.Linear(2, 1)
    run.resume(net=net)
    run.track(loss=torch.tensor(1.0))
    run.end_epoch()
    before = snapshot(tmp_path)
    if what == "weight":
        net.weight.data[0, 1] = math.inf
    run.track(loss=torch.tensor(math.nan if what == "term" else 1.0))
    with pytest.raises(DataError, match="(loss|net) is not finite in epoch 2.* epoch 1 stays"):
        run.end_epoch()
    assert snapshot(tmp_path) == before


# the user's own files


def test_files_of_the_users_stay_and_a_folder_of_figures_is_refused(tmp_path):
    mine = {"notes.txt": b"mine", "data/0.png": b""}
    for name, content in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for changes in ({}, {"overwrite": True}, {"overwrite": True}):
        finished(tmp_path, ["curves", "grid"], **changes)
        assert {name: (tmp_path / name).read_bytes() for name in mine} == mine
    (tmp_path / "other" / "figures").mkdir(parents=True)
    with pytest.raises(DataError, match="holds a run"):
        a_run(tmp_path / "other")


def test_a_new_evaluation_replaces_the_figures_of_the_one_before(tmp_path):
    finished(tmp_path, ["curves"])
    first = (tmp_path / "figures" / "curves.png").read_bytes()
    run = a_run(tmp_path, overwrite=True)
    run.figure("curves", figure(0.9), "")
    run.finish("", {})
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curves.png"]
    assert (tmp_path / "figures" / "curves.png").read_bytes() != first


def test_two_runs_begun_at_once_take_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(a_run(None, data_dir="d").folder) for _ in range(3)]
    assert folders == [f"runs/cyclevae-two{end}" for end in ("", "-2", "-3")]
    name = str(a_run(None, data="folder:../a b/\udce9\u6f22").folder)
    assert name.isascii() and name.startswith("runs/cyclevae-folder")


# results and report


def test_the_report_escapes_every_string_from_outside_and_has_a_print_style(tmp_path):
    data = a_set()
    data.classes = ["<i>", "</style>"]
    run = a_run(tmp_path, data, data="folder:<b>", command="python <u>")
    run.note("<s>")
    run.table("<h5>", ("<a>",), [("<p onclick>",)], "<q>")
    run.figure("<em>", figure(), "<sub>")
    run.finish("<title>", {})
    report = (tmp_path / "report.html").read_text()
    for tag in ("<b>", "<u>", "<s>", "<h5>", "<a>", "<p onclick>", "<q>", "<em>", "<sub>"):
        assert tag not in report and tag.replace("<", "&lt;").replace(">", "&gt;") in report, tag
    assert "<title><title>" not in report and "@media print" in report
    assert json.loads((tmp_path / "results.json").read_text())["data"] == "folder:<b>"


def test_results_have_the_common_keys_and_name_the_card(tmp_path, monkeypatch):
    run = finished(tmp_path, ["curves"])
    results = json.loads((tmp_path / "results.json").read_text())
    keys = "script data command args versions device threads seconds epochs seed smoke"
    assert {*keys.split(), "figures", "summary", "paper", "answer"} == set(results)
    assert results["device"] == "cpu" and results["figures"] == ["curves.png"]
    assert "command" not in results["args"] and "overwrite" not in results["args"]
    run.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    run.finish("", {})
    assert json.loads((tmp_path / "results.json").read_text())["device"] == "cuda (Card 1)"


@pytest.mark.parametrize(
    "typed, command",
    [
        ("--epochs 2 --out X", "--epochs 2"),
        ("--out=X --epochs=2", "--epochs=2"),
        ("--data-dir D --overwrite --lr 1e-2 --out X", "--lr 1e-2"),
        ("--data-dir=D --seed 3", "--seed 3"),
        ("--smoke --no-amp", "--smoke --no-amp"),
        ("--data 'folder:a b|$c' --out 'x y'", "--data 'folder:a b|$c'"),
        ("", ""),
    ],
)
def test_the_command_is_what_was_typed_without_the_names_of_folders(typed, command):
    import shlex

    parser = common_flags("cyclevae", "", epochs=1, batch_size=2, lr=0.1)
    args = parse(parser, shlex.split(typed), {"mnist": {"epochs": 9}}, {"epochs": 7})
    assert args.command == f"python cyclevae.py {command}".strip()
    assert shlex.split(args.command)[2:] == shlex.split(command)


@pytest.mark.parametrize(
    "typed, epochs, lr",
    [
        ("", 9, 0.1),  # the preset wins over the default
        ("--data digits", 1, 0.1),
        ("--smoke", 7, 0.1),  # --smoke wins over the preset
        ("--smoke --epochs 5", 5, 0.1),  # what is typed wins over both
        ("--epochs 5 --lr 3", 5, 3.0),
    ],
)
def test_what_is_typed_wins_over_smoke_which_wins_over_the_preset(typed, epochs, lr):
    for preset in ({"mnist": {"epochs": 9}}, lambda a: {"epochs": 9} if a.data == "mnist" else {}):
        parser = common_flags("cyclevae", "", epochs=1, batch_size=2, lr=0.1)
        args = parse(parser, typed.split(), preset, {"epochs": 7})
        assert (args.epochs, args.lr) == (epochs, lr)


# files


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    evaluation.save(path, {"a": 1})
    old = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError):
        evaluation.write(path, b"new")
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# cyclevae.py on a folder of images


def image_folder(root, classes=("cat", "dog"), n=8, shade=20):
    """folder:ROOT with n images in each class."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            image = Image.new("L", (28, 28), shade + 100 * k)
            image.paste(255, (3 * i, 5, 3 * i + 4, 20))
            image.save(root / name / f"{i}.png")
    return f"folder:{root}"


TINY = ["--epochs", "1", "--batch-size", "4", "--image-size", "28", "--device", "cpu"]
TINY += ["--z-dim", "3", "--s-dim", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the images, --data, the run) of a tiny cyclevae.py on a folder; tests copy both."""
    root = tmp_path_factory.mktemp("trained")
    name = image_folder(root / "X")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cyclevae, "evaluate", lambda *_: None)
        flags = ["--data", name, "--data-dir", root / "data", "--out", root / "run"]
        assert run_main(cyclevae, *flags, *TINY) == 0
    return root / "X", name, root / "run"


@pytest.fixture
def images(trained):
    """The images of `trained`, which a test may change."""
    folder = trained[0]
    copy = shutil.copytree(folder, folder.with_name("copy"))
    yield folder
    shutil.rmtree(folder)
    copy.rename(folder)


@pytest.fixture
def caught(monkeypatch):
    """What cyclevae.evaluate was called with, in place of the evaluation."""
    calls = []
    monkeypatch.setattr(cyclevae, "evaluate", lambda run, data, nets: calls.append((run, data)))
    return calls


CHANGES = {
    "added": lambda folder: shutil.copy(folder / "cat" / "0.png", folder / "cat" / "new.png"),
    "removed": lambda folder: (folder / "cat" / "0.png").unlink(),
    "renamed": lambda folder: (folder / "cat" / "0.png").rename(folder / "cat" / "z.png"),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.mark.parametrize("change", [*CHANGES, "class renamed"])
def test_resume_refuses_a_folder_whose_files_have_changed(
    change, trained, images, caught, tmp_path, capsys
):
    out = shutil.copytree(trained[2], tmp_path / "run")
    before = snapshot(out)
    if change in CHANGES:
        CHANGES[change](images)
    else:
        (images / "cat").rename(images / "cats")
    argv = ["--resume", "--epochs", "2", "--out", out, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv) == 2
    error = capsys.readouterr().err
    assert "changed" in error and error.count("\n") == 1 and not caught
    assert snapshot(out) == before


def test_best_pt_is_no_last_pt(trained, tmp_path, capsys):
    out = shutil.copytree(trained[2], tmp_path / "run")
    shutil.copy(out / "best.pt", out / "last.pt")
    before = snapshot(out)
    argv = ["--resume", "--epochs", "2", "--out", out, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv) == 2
    error = capsys.readouterr().err
    assert "last.pt" in error and "damaged" in error and error.count("\n") == 1
    assert {k: v for k, v in snapshot(out).items() if k.suffix == ".pt"} == {
        k: v for k, v in before.items() if k.suffix == ".pt"
    }


def test_resume_of_an_unchanged_folder_goes_on(trained, caught, tmp_path):
    out = shutil.copytree(trained[2], tmp_path / "run")
    argv = ["--resume", "--epochs", "2", "--out", out, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv) == 0
    assert len(caught) == 1 and last(out)["epoch"] in (1, 2) and len(last(out)["history"]) == 2


@changes
def test_weights_on_a_changed_folder_say_so_and_all_images_are_test_images(
    change, trained, images, caught, tmp_path
):
    before = snapshot(trained[2])
    change(images)
    argv = ["--weights", trained[2] / "best.pt", "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "run") == 0
    ((run, data),) = caught
    count = len(list(images.rglob("*.png")))
    assert len(data.test) == count and data.train is None and data.val is None
    assert f"{count} images" in " ".join(run.notes) and "not the set" in " ".join(run.notes)
    assert snapshot(trained[2]) == before  # a student's run is not touched


def test_weights_on_the_same_folder_use_its_splits(trained, caught, tmp_path):
    argv = ["--weights", trained[2] / "best.pt", "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "run") == 0
    ((run, data),) = caught
    assert run.notes == [] and len(data.test) < len(data.train) and len(data.val) > 0
    assert [row["epoch"] for row in run.history] == [1]


def test_weights_on_another_set_take_probes_from_the_training_set_if_it_is_there(
    trained, images, caught, tmp_path
):
    other = image_folder(tmp_path / "Y", n=4, shade=90)
    argv = ["--weights", trained[2] / "best.pt", "--data", other]
    argv += ["--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "one") == 0
    CHANGES["added"](images)
    assert run_main(cyclevae, *argv, "--out", tmp_path / "two") == 0
    (_, with_train), (run, without) = caught
    assert len(with_train.test) == len(without.test) == 8
    assert len(with_train.train) > 8 and without.train is None
    assert "left out" in " ".join(run.notes)


def test_the_report_of_another_set_without_the_training_images_is_written(
    trained, images, tmp_path
):
    other = image_folder(tmp_path / "Y", n=4, shade=90)
    (images / "cat").rename(images / "cats")
    argv = ["--weights", trained[2] / "best.pt", "--data", other, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "run") == 0
    assert "left out" in (tmp_path / "run" / "report.html").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_recon"] > 0 and results["summary"] is None
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*RESULTS, "figures"}
    assert results["figures"] and "s_test_acc" not in results


@pytest.mark.parametrize(
    "other",
    [{"classes": ("cat", "cow")}, {"classes": ("cat", "dog", "cow")}, {"classes": ("dog", "eel")}],
    ids=lambda other: "-".join(other["classes"]),
)
def test_weights_refuse_a_set_of_other_classes(other, trained, caught, tmp_path, capsys):
    argv = ["--weights", trained[2] / "best.pt", "--data", image_folder(tmp_path / "Y", **other)]
    argv += ["--data-dir", tmp_path / "data", "--out", tmp_path / "run"]
    assert run_main(cyclevae, *argv) == 2
    error = capsys.readouterr().err
    assert "classes" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_weights_refuse_their_own_folder_after_a_class_was_renamed(
    trained, images, caught, tmp_path, capsys
):
    (images / "cat").rename(images / "cats")
    argv = ["--weights", trained[2] / "best.pt", "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "classes" in error and error.count("\n") == 1 and not caught


def test_weights_refuse_images_of_another_shape(trained, caught, tmp_path, capsys):
    name = image_folder(tmp_path / "Y")
    for path in (tmp_path / "Y").rglob("*.png"):
        Image.new("RGB", (28, 28), (200, 10, 10)).save(path)
    argv = ["--weights", trained[2] / "best.pt", "--data", name, "--data-dir", tmp_path / "data"]
    for more in ([], ["--image-size", "32"]):
        assert run_main(cyclevae, *argv, *more, "--out", tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert "images of" in error and error.count("\n") == 1 and not caught
        assert not (tmp_path / "run").exists()


def test_a_damaged_last_pt_does_not_stop_the_weights_of_best_pt(trained, caught, tmp_path):
    folder = shutil.copytree(trained[2], tmp_path / "student")
    (folder / "last.pt").write_bytes(b"damaged")
    (folder / "args.json").unlink()
    argv = ["--weights", folder / "best.pt", "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv, "--out", tmp_path / "run") == 0 and len(caught) == 1


# an evaluation that fails


@pytest.mark.parametrize("error", [DataError("No."), OSError(28, "full", "x"), MemoryError()])
@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_failing_evaluation_leaves_the_old_report_and_names_the_command_that_goes_on(
    flag, error, trained, monkeypatch, tmp_path, capsys
):
    out = shutil.copytree(trained[2], tmp_path / "run")
    finished(tmp_path / "other")
    for name in RESULTS:
        shutil.copy(tmp_path / "other" / name, out)
    shutil.copytree(tmp_path / "other" / "figures", out / "figures", dirs_exist_ok=True)

    def evaluate(run, data, nets):
        run.figure("curves", figure(0.9), "")
        run.figure("grid", figure(0.9), "")
        raise error

    def old(folder):
        files = snapshot(folder)
        return {k: v for k, v in files.items() if "figures" in str(k) or str(k) in RESULTS}

    before = old(out)
    monkeypatch.setattr(cyclevae, "evaluate", evaluate)
    argv = ["--data", trained[1], *TINY] if flag == "--overwrite" else []
    argv += [flag, "--out", out, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv) == 2
    message = capsys.readouterr().err
    assert old(out) == before and message.count("\n") == 1
    assert f"python cyclevae.py --resume --out {out}" in message
    for name in ("best.pt", "last.pt"):
        checkpoint(out / name, "cyclevae")
    calls = []
    monkeypatch.setattr(cyclevae, "evaluate", lambda *given: calls.append(given))
    assert run_main(cyclevae, "--resume", "--out", out, "--data-dir", tmp_path / "data") == 0
    assert len(calls) == 1


# terminals


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_a_name_is_no_traceback(encoding, tmp_path):
    name = image_folder(tmp_path / "\u6f22\u5b57", classes=("caf\u00e9", "\U0001f600"), n=5)
    env = {"PYTHONIOENCODING": encoding, "PATH": "", "OMP_NUM_THREADS": "1"}
    flags = ["--data", name, "--data-dir", tmp_path / "data", "--lr", "1e30", *TINY]
    done = subprocess.run(
        [sys.executable, ROOT / "cyclevae.py", *map(str, flags), "--out", tmp_path / "run"],
        env=env,
        capture_output=True,
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert b"not finite" in done.stderr and b"classes" in done.stdout


# learning curves


@pytest.mark.parametrize(
    "train, val, words",
    [
        ([10, 8, 6], [10, 8.1, 6.2], "epoch 3 of 3: 6.2, and 6 on train; there is no sign"),
        ([10, 8, 6], [10, 8.1, 9], "epoch 2 of 3: 8.1, and 8 on train; then it rises to 9"),
        ([10, 8, 6], [10, 8.1, 7], "epoch 3 of 3: 7, and 6 on train; that is more than 5 %"),
        ([-10, -12, -14], [-10, -12, -13], "-13, and -14 on train; that is more than 5 %"),
    ],
)
def test_a_learning_curve_gets_a_verdict(train, val, words, tmp_path):
    run = a_run(tmp_path)
    for k in range(3):
        run.history.append({"epoch": k + 1, "t": float(train[k]), "v": float(val[k])})
    run.report_curve("The loss", "t", "v")
    assert words in run.notes[-1]
    run.report_curve("The loss", "t", "v", "another model")
    assert len(run.notes) == 1
