"""Bad input: one sentence on stderr, exit status 2, no traceback, nothing written or changed."""

import functools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from PIL import Image

import cyclevae
import dann
import data
import eval as evaluation
import flowvae_gan
import mathieu
import vae
import vaegan
from conftest import need, run_main, snapshot
from eval import Run, run_command


def images(folder, *counts):
    """A folder set with so many images in each class."""
    for k, count in enumerate(counts):
        (folder / f"class{k}").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (28, 28), 40 * k + i).save(folder / f"class{k}" / f"{i}.png")
    return f"folder:{folder}"


def damaged_png(tmp_path):
    name = images(tmp_path / "broken", 6, 6)
    path = tmp_path / "broken" / "class0" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    return name


def file(tmp_path, name="f", content="x"):
    """The path of a new file."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return str(path)


def folder(tmp_path, name):
    """The path of a new, empty folder."""
    (tmp_path / name).mkdir()
    return str(tmp_path / name)


def run_folder(tmp_path, content=None, raw=None):
    """An --out folder with a best.pt and a last.pt of this content."""
    out = tmp_path / "old"
    out.mkdir()
    for name in ("best.pt", "last.pt"):
        torch.save(content, out / name) if raw is None else (out / name).write_bytes(raw)
    return str(out)


def weights(tmp_path, content=None, raw=None):
    """--weights of a checkpoint with this content, and a fresh --out."""
    path = f"{run_folder(tmp_path, content, raw)}/best.pt"
    return ["--weights", path, "--out", str(tmp_path / "new")]


def resume(tmp_path, content=None, raw=None):
    return ["--resume", "--out", run_folder(tmp_path, content, raw)]


def images_flags(script, argv):
    """--data NAME as the flags of this script: dann.py's sources stand beside digitsm."""
    if script is not dann or "--data" not in argv:
        return argv
    i = argv.index("--data")
    task = ["--task", "images", "--source", argv[i + 1], "--target", "digitsm"]
    return [*argv[:i], *task, *argv[i + 2 :]]


@functools.cache
def defaults(script):
    """A script's arguments and data for digits with three epochs."""

    class Caught(Exception):
        pass

    def stop(*given):
        raise Caught(evaluation.parse(*given))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(script, "parse", stop)
        script.main(images_flags(script, ["--data", "digits", "--epochs", "3"]))
    args = caught.value.args[0]
    leave = ("resume", "weights", "overwrite", "out")
    digits = data.load("digits")
    if script is dann:
        digits = dann.read("digits", args)
        digits.fingerprint += dann.read("digitsm", args).fingerprint
        args.data = "digits-digitsm"
        args.n_classes = 10
    args = {k: v for k, v in vars(args).items() if k not in leave}
    if script is mathieu:
        args["n_classes"] = 10
    return args, digits


def trained(script, **changes):
    """A checkpoint of a script with its default arguments for digits, and with changes; those of
    its arguments are in `args`."""
    args, digits = defaults(script)
    content = {
        "script": script.__name__,
        "args": args | changes.pop("args", {}),
        "epoch": 1,
        "shape": digits.shape,
        "classes": digits.classes,
        "n_classes": 10,
        "fingerprint": digits.fingerprint,
        "nets": dict.fromkeys(("enc", "dec", "disc"), {}),
        "history": [],
        "kept": {},
        "models": {},
    }
    return {**content, **changes}


def whole(script, **changes):
    """`trained` with weights that fit."""
    args, digits = defaults(script)
    nets = script.build(digits.shape, args)
    saved = {}
    for name, net in nets.items():
        if isinstance(net, dict):  # of one of several models
            saved[name] = {part: net[part].state_dict() for part in net}
        else:
            saved[name] = net.state_dict()
    return trained(script, nets=saved, **changes)


# An argument that decides the networks.
SIZE = {vae: "activation", vaegan: "arch", dann: "arch"}


def without_an_argument(script):
    content = trained(script)
    content["args"].pop(SIZE.get(script, "z_dim"))
    return content


class Runs:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (sys.exit, ("code from a checkpoint was run",))


def bad_values(flags):
    return {
        f"{flag} {value}": ((lambda f, v: lambda t, script: [f, v])(flag, value), flag)
        for flag, values in flags.items()
        for value in values
    }


DIGITS = ["--data", "digits"]
# What is wrong: (the flags, for a temporary folder and a script; a word of the sentence).
ROWS = {
    "unknown set": (lambda t, script: ["--data", "nothing"], "nothing"),
    "set without a name": (lambda t, script: ["--data", ""], "no set"),
    "folder without a path": (lambda t, script: ["--data", "folder:"], "folder"),
    "mnist missing and no network": (lambda t, script: ["--data", "mnist"], "sprites"),
    "sprites2015 missing": (lambda t, script: ["--data", "sprites2015"], "sprites"),
    "empty image folder": (lambda t, script: ["--data", "folder:" + folder(t, "empty")], "empty"),
    "missing image folder": (lambda t, script: ["--data", f"folder:{t / 'nowhere'}"], "nowhere"),
    "one class only": (lambda t, script: ["--data", images(t / "one", 8)], "class"),
    "damaged png": (lambda t, script: ["--data", damaged_png(t)], "0.png"),
    "data folder is a file": (lambda t, script: ["--data-dir", file(t)], "f"),
    "out is a file": (lambda t, script: [*DIGITS, "--out", file(t)], "--out"),
    "out is below a file": (lambda t, script: [*DIGITS, "--out", file(t) + "/x"], "f/x"),
    "out is a file whose name has two lines": (
        lambda t, script: [*DIGITS, "--out", file(t, "two\nlines")],
        "--out",
    ),
    "out without a name": (lambda t, script: ["--out", ""], "--out"),
    "out without a name, other spelling": (lambda t, script: ["--out="], "--out"),
    "out holds a run": (lambda t, script: [*DIGITS, "--out", run_folder(t, {})], "--overwrite"),
    "out holds results": (
        lambda t, script: [*DIGITS, "--out", str(Path(file(t, "o/results.json")).parent)],
        "--overwrite",
    ),
    "resume without out": (lambda t, script: ["--resume"], "--out"),
    "resume without a run": (lambda t, script: ["--resume", "--out", str(t / "none")], "last.pt"),
    "resume of a truncated checkpoint": (
        lambda t, script: resume(t, raw=b"PK\3\4" + bytes(99)),
        "last.pt",
    ),
    "resume of another script": (
        lambda t, script: resume(t, trained(script) | {"script": "other"}),
        "other.py",
    ),
    "resume with another flag": (
        lambda t, script: [*resume(t, trained(script)), "--lr", "5"],
        "--lr",
    ),
    "resume with another set": (
        lambda t, script: [*resume(t, trained(script)), f"--{source(script)}", "sprites"],
        "digits",
    ),
    "resume with fewer epochs": (
        lambda t, script: [*resume(t, trained(script)), "--epochs", "2"],
        "raised",
    ),
    "resume of a set that has changed": (
        lambda t, script: resume(t, trained(script, fingerprint="0" * 16)),
        "changed",
    ),
    "resume of other classes": (
        lambda t, script: resume(t, trained(script, classes=["a", "b"])),
        "classes",
    ),
    "weights and resume": (
        lambda t, script: ["--resume", *weights(t, trained(script))],
        "choose",
    ),
    "weights that are not there": (lambda t, script: ["--weights", f"{t}/no/best.pt"], "best.pt"),
    "weights name a folder": (lambda t, script: ["--weights", folder(t, "run")], "best.pt"),
    "weights without a name": (lambda t, script: ["--weights="], "--weights"),
    "weights that are not a checkpoint": (lambda t, script: weights(t, raw=b"hello"), "best.pt"),
    "empty weights": (lambda t, script: weights(t, raw=b""), "best.pt"),
    "a tensor as weights": (lambda t, script: weights(t, torch.zeros(3)), "best.pt"),
    "weights that would run code": (lambda t, script: weights(t, {"script": Runs()}), "best.pt"),
    "weights of another script": (
        lambda t, script: weights(t, trained(script) | {"script": "other"}),
        "other.py",
    ),
    "weights of another image shape": (
        lambda t, script: weights(t, trained(script, shape=[3, 32, 32])),
        "shape|images of",
    ),
    "weights of another size": (lambda t, script: weights(t, trained(script)), "shape"),
    "weights without networks": (lambda t, script: weights(t, trained(script, nets={})), "shape"),
    "weights without most of a checkpoint": (
        lambda t, script: weights(t, {"script": script.__name__}),
        "damaged",
    ),
    "weights of fewer classes": (
        lambda t, script: weights(t, whole(script, classes=["a", "b"])),
        "classes",
    ),
    "weights of other classes": (
        lambda t, script: weights(
            t, whole(script, classes=[f"c{k}" for k in range(10)], fingerprint="0" * 16)
        ),
        "classes",
    ),
    "weights that lack an argument": (
        lambda t, script: weights(t, without_an_argument(script)),
        "shape|damaged",
    ),
    "weights with an argument of another kind": (
        lambda t, script: weights(t, trained(script, args={"z_dim": "abc", "arch": "abc"})),
        "damaged|abc",
    ),
    "weights whose arguments are a list": (
        lambda t, script: weights(t, trained(script) | {"args": [1, 2]}),
        "damaged",
    ),
    "weights with epochs": (
        lambda t, script: [*weights(t, trained(script)), "--epochs", "9"],
        "--epochs",
    ),
    "weights with another seed": (
        lambda t, script: [*weights(t, trained(script)), "--seed", "9"],
        "--seed",
    ),
    "weights evaluated into their own folder": (
        lambda t, script: [*weights(t, whole(script))[:2], "--overwrite", "--out", f"{t}/old"],
        "--out",
    ),
    "unknown flag": (lambda t, script: ["--no-such-flag"], "--no-such-flag"),
    "an abbreviated flag": (lambda t, script: ["--epoch", "3"], "--epoch"),
    "unknown device": (lambda t, script: ["--device", "abacus"], "--device"),
    "a device that is not there": (
        lambda t, script: [*DIGITS, "--device", "mps" if torch.cuda.is_available() else "cuda"],
        "--device",
    ),
    **bad_values(
        {
            "--epochs": ("0", "1.5", "x"),
            "--batch-size": ("1", "-3"),
            "--lr": ("0", "nan", "inf", "-1"),
            "--seed": ("-1", "x", "9" * 30),
            "--limit": ("0",),
            "--image-size": ("0", "15", "9999"),
        }
    ),
}


def source(script):
    """The flag that names the set."""
    return "source" if script is dann else "data"


Z_DIM = {
    "resume with another model": (
        lambda t, script: [*resume(t, trained(script)), "--z-dim", "5"],
        "--z-dim",
    ),
    **bad_values({"--z-dim": ("0", "2.5")}),
}


def beside_digits(target, *more):
    """The row of dann.py's digits with this target."""
    flags = ["--task", "images", "--source", "digits", "--target", target, "--limit", "200", *more]
    return lambda t, script: flags


PAIRS = {
    "a class with one image": (lambda t, script: ["--data", images(t / "pair", 6, 1)], "class")
}
OWN = {
    cyclevae: {
        **Z_DIM,
        **PAIRS,
        "image size without networks": (
            lambda t, script: ["--data", "digits", "--image-size", "40"],
            "--image-size",
        ),
        **bad_values(
            {
                "--s-dim": ("0", "5000"),
                "--kl-warmup": ("-0.1", "2"),
                "--schedule": ("linear",),
                "--recon-weight": ("0", "nan"),
                "--kl-weight": ("-1", "inf"),
                "--reverse-weight": ("-1", "x"),
            }
        ),
    },
    mathieu: {
        **Z_DIM,
        **PAIRS,
        **bad_values(
            {
                "--s-dim": ("0", "x"),
                "--recon-weight": ("0", "nan"),
                "--own-weight": ("-1",),
                "--disc-lr": ("0", "inf"),
                "--lr-floor": ("-0.1", "2"),
                "--kl-weight": ("-1", "inf"),
                "--adv-weight": ("-1", "x"),
            }
        ),
    },
    vae: {
        **Z_DIM,
        "image size without networks": (
            lambda t, script: ["--data", "digits", "--arch", "conv", "--image-size", "37"],
            "--image-size",
        ),
        **bad_values(
            {
                "--model": ("gan",),
                "--arch": ("huge",),
                "--hidden": ("0", "x"),
                "--beta": ("-1", "nan"),
                "--likelihood": ("poisson",),
                "--sigma": ("0",),
                "--nll-k": ("0",),
                "--nll-n": ("1",),
                "--fid": ("yes",),
            }
        ),
    },
    vaegan: {
        **Z_DIM,
        **bad_values(
            {
                "--loss": ("wgan",),
                "--arch": ("huge",),
                "--width": ("1", "x"),
                "--gamma": ("-1", "nan"),
                "--model": ("gan",),
                "--hidden": ("0", "x"),
                "--real-label": ("0", "1.1"),
                "--beta": ("-1", "inf"),
                "--fid": ("yes",),
            }
        ),
    },
    flowvae_gan: {
        **Z_DIM,
        **bad_values(
            {
                "--model": ("vqvae",),
                "--flow-fit": ("before",),
                "--width": ("0",),
                "--couplings": ("0", "1.5"),
                "--likelihood": ("poisson",),
                "--gan-lr": ("0", "nan"),
                "--kl-warmup": ("-1", "2"),
                "--real-label": ("0", "1.1"),
                "--nll-k": ("0",),
                "--nll-n": ("1",),
                "--fid": ("yes",),
            }
        ),
    },
    dann: {
        "data folder is a file": (
            lambda t, script: ["--task", "images", "--data-dir", file(t)],
            "/f",
        ),
        "unknown target": (beside_digits("nothing"), "nothing"),
        "mnistm missing and no network": (beside_digits("mnistm"), "BSDS500"),
        "other classes": (
            lambda t, script: beside_digits(images(t / "a", 6, 6))(t, script),
            "classes",
        ),
        "a target of one class": (
            lambda t, script: beside_digits(images(t / "a", 6))(t, script),
            "class",
        ),
        "resume with another network": (
                lambda t, script: [*resume(t, trained(script)), "--arch=bn"],
            "--arch",
        ),
        "small images": (beside_digits("digitsm", "--image-size", "12"), "--image-size"),
        "moons on another device": (lambda t, script: ["--device", "mps"], "--device"),
        "--data": (lambda t, script: ["--points", "20", f"--data={t}"], "--data"),
        **bad_values(
            {
                "--task": ("suns",),
                "--points": ("5", "x"),
                "--hidden": ("0", "1.5"),
                "--lam": ("-1", "nan"),
                "--domain-weight": ("-1", "inf"),
                "--ramp": ("0", "1.1"),
                "--model": ("average",),
                "--seeds": ("0", "x"),
                "--mean": ("none",),
                "--decay": ("cosine",),
                "--arch": ("resnet",),
            }
        ),
    },
}
CASES = {
    f"{script.__name__}: {what}": (script, *row)
    for script, own in OWN.items()
    for what, row in (ROWS | own).items()
}


@pytest.fixture
def offline(monkeypatch):
    def no_network(root):
        raise OSError("no network")

    for name in ("mnist", "mnistm", "fashion", "svhn"):
        monkeypatch.setattr(data.SETS[name], "fetch", no_network)


def ours(tmp_path):
    """Every file and folder, but for the cache of data sets."""
    return {path: v for path, v in snapshot(tmp_path).items() if path.parts[0] != "data"}


@pytest.mark.parametrize("script, argv, words", CASES.values(), ids=CASES)
def test_bad_input_is_one_sentence_status_2_and_nothing_written(
    script, argv, words, tmp_path, capsys, monkeypatch, offline
):
    argv = images_flags(script, argv(tmp_path, script))
    monkeypatch.chdir(tmp_path)  # --out and --data-dir default to folders here
    monkeypatch.setattr(Run, "how_to_continue", "")
    for part in [part for part in vars(script) if part.startswith(("train", "evaluate"))]:
        monkeypatch.setattr(script, part, mock.Mock(side_effect=AssertionError("it went on")))
    before = ours(tmp_path)
    if "--data-dir" not in argv:
        argv = [*argv, "--data-dir", str(tmp_path / "data")]
    status = run_main(script, *argv)
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1 and error.rstrip().endswith("."), error
    assert any(word in error for word in words.split("|")), error
    assert ours(tmp_path) == before


# data.py NAME and eval.py: (the module; the flags, for a temporary folder; a word of the sentence).
COMMANDS = {
    "data: unknown set": (data, lambda t: ["nothing"], "nothing"),
    "data: a folder's name alone": (data, lambda t: [folder(t, "mine")], "folder:"),
    "data: no network": (data, lambda t: ["mnist"], "sprites"),
    "data: missing folder": (data, lambda t: [f"folder:{t}/nowhere"], "nowhere"),
    "data: one class": (data, lambda t: [images(t / "one", 8)], "class"),
    "data: damaged image": (data, lambda t: [damaged_png(t)], "0.png"),
    "data: data folder is a file": (data, lambda t: ["digits", "--data-dir", file(t)], "f"),
    "data: small images": (data, lambda t: ["digits", "--image-size", "3"], "size"),
    "data: size is no number": (data, lambda t: ["digits", "--image-size", "x"], "--image-size"),
    "data: no images": (data, lambda t: ["digits", "--limit", "0"], "limit"),
    "data: negative seed": (data, lambda t: ["digits", "--seed", "-1"], "seed"),
    "data: unknown flag": (data, lambda t: ["digits", "--size", "3"], "--size"),
    "eval: no command": (evaluation, lambda t: [], "command"),
    "eval: unknown command": (evaluation, lambda t: ["draw", "x"], "draw"),
    "eval: table of nothing": (evaluation, lambda t: ["table"], "PATH"),
    "eval: table of two folders": (evaluation, lambda t: ["table", "a", "b"], "one folder"),
    "eval: table of an empty folder": (
        evaluation,
        lambda t: ["table", folder(t, "runs")],
        "no results.json",
    ),
    "eval: table of a missing folder": (
        evaluation,
        lambda t: ["table", f"{t}/nowhere"],
        "nowhere",
    ),
    "eval: table of a damaged file": (
        evaluation,
        lambda t: ["table", str(Path(file(t, "runs/results.json", "{")).parent)],
        "damaged",
    ),
    "eval: fid of one side": (evaluation, lambda t: ["fid", "digits"], "two"),
    "eval: fid of three sides": (evaluation, lambda t: ["fid", "digits", "a", "b"], "two"),
    "eval: fid of a missing folder": (
        evaluation,
        lambda t: ["fid", "nowhere", "digits"],
        "nowhere",
    ),
    "eval: fid of an empty folder": (
        evaluation,
        lambda t: ["fid", folder(t, "empty"), "digits"],
        "empty",
    ),
    "eval: fid of too few images": (
        evaluation,
        lambda t: ["fid", images(t / "few", 3, 3).partition(":")[2], "digits"],
        "128",
    ),
    "eval: fid of two folders without a LeNet": (
        evaluation,
        lambda t: ["fid", *[images(t / k, 3).partition(":")[2] for k in "ab"]],
        "--features inception",
    ),
    "eval: fid with too few images for inception": (
        evaluation,
        lambda t: ["fid", "digits", "digits", "--features", "inception"],
        "2,048",
    ),
    "eval: fid of a damaged image": (
        evaluation,
        lambda t: ["fid", damaged_png(t).partition(":")[2], "digits"],
        "0.png",
    ),
    "eval: fid with unknown features": (
        evaluation,
        lambda t: ["fid", "digits", "digits", "--features", "lenets"],
        "--features",
    ),
    "eval: fid of colour beside grey": (
        evaluation,
        lambda t: ["fid", "digitsm", "digits"],
        "colour",
    ),
    "eval: fid on a device that is not there": (
        evaluation,
        lambda t: [
            *("fid", "digits", "digits", "--device"),
            "mps" if torch.cuda.is_available() else "cuda",
        ],
        "--device",
    ),
}


@pytest.mark.parametrize("module, argv, words", COMMANDS.values(), ids=COMMANDS)
def test_bad_input_of_data_and_eval_is_one_sentence_too(
    module, argv, words, tmp_path, capsys, monkeypatch, offline
):
    argv = argv(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "how_to_continue", "")
    before = ours(tmp_path)
    if module is evaluation:
        status = run_main(module, *argv)
    else:
        try:
            status = data.main(argv)
        except SystemExit as stop:
            status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and error.rstrip().endswith("."), error
    assert words in error and "Traceback" not in error, error
    assert ours(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read")
@pytest.mark.parametrize("flag", ["--weights", "--resume"])
def test_a_checkpoint_without_permission_cannot_be_read_and_is_not_called_damaged(
    flag, tmp_path, capsys
):
    out = run_folder(tmp_path, trained(cyclevae))
    for name in ("best.pt", "last.pt"):
        (tmp_path / "old" / name).chmod(0)
    argv = ["--weights", f"{out}/best.pt"] if flag == "--weights" else ["--resume", "--out", out]
    assert run_main(cyclevae, *argv, "--data-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error and "damaged" not in error and error.count("\n") == 1


def test_a_checkpoint_on_a_failing_disk_cannot_be_read_and_is_not_called_damaged(
    tmp_path, capsys, monkeypatch
):
    def failing(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", failing)
    argv = ["--weights", f"{run_folder(tmp_path, trained(cyclevae))}/best.pt"]
    assert run_main(cyclevae, *argv, "--data-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error and "damaged" not in error and error.count("\n") == 1


def test_a_truncated_mnist_file_is_named(data_dir, tmp_path, capsys):
    need(data_dir, "mnist")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in Path(data_dir, "MNIST", "raw").iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 5000 if "images" in path.name else None])
    out = tmp_path / "run"
    assert run_main(cyclevae, "--data", "mnist", "--data-dir", tmp_path, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "images-idx3-ubyte" in error and not out.exists()


def test_compile_without_a_compiler_is_refused_before_the_old_run_goes(
    tmp_path, capsys, monkeypatch
):
    def no_compiler(*_):
        raise RuntimeError("InvalidCxxCompiler:\nno g++")

    monkeypatch.setattr(torch, "compile", no_compiler)
    out = run_folder(tmp_path, trained(cyclevae))
    before = snapshot(tmp_path)
    argv = ["--smoke", "--compile", "--overwrite", "--out", out, "--data-dir", tmp_path / "data"]
    assert run_main(cyclevae, *argv) == 2
    error = capsys.readouterr().err
    assert "--compile" in error and error.count("\n") == 1
    assert snapshot(tmp_path) == before
    digits = defaults(cyclevae)[1]
    changes = {"compile": True, "weights": f"{out}/best.pt", "device": "cpu"}
    args = {**defaults(cyclevae)[0], **changes, "out": str(tmp_path / "new")}
    args |= {"resume": False, "overwrite": False}
    Run("cyclevae", SimpleNamespace(**args), digits)  # measures saved weights all the same


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("a fault of the program"),
    ],
)
def test_too_little_memory_is_a_sentence_and_another_fault_is_not_hidden(error, capsys):
    def main():
        raise error

    hidden = "program" not in str(error)
    with pytest.raises(SystemExit if hidden else RuntimeError) as stop:
        run_command(main)
    assert ("not enough memory" in capsys.readouterr().err) == hidden
    assert not hidden or stop.value.code == 2


def test_overwrite_replaces_the_run_only_once_the_data_are_there(tmp_path):
    out = run_folder(tmp_path, trained(cyclevae))
    (tmp_path / "old" / "args.json").write_text(json.dumps({"script": "cyclevae"}))
    before = snapshot(tmp_path)
    assert run_main(cyclevae, "--data", "nothing", "--out", out, "--overwrite") == 2
    assert snapshot(tmp_path) == before
