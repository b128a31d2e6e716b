"""Bad input of a script: one sentence on stderr, exit status 2, nothing written or changed."""

import json
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from PIL import Image

import cyclevae
import dann
import data
import flowvae_gan
import mathieu
import vae
import vaegan
from eval import Run, command_line


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


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
    return ["--data", name]


def run_folder(tmp_path, content=None, raw=None):
    """An --out folder with a best.pt and a last.pt of this content."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("best.pt", "last.pt"):
        torch.save(content, folder / name) if raw is None else (folder / name).write_bytes(raw)
    return str(folder)


def images_flags(script, argv):
    """--data NAME as the flags of this script: dann.py's sources stand beside digitsm."""
    if script is not dann or "--data" not in argv:
        return argv
    i = argv.index("--data")
    task = ["--task", "images", "--source", argv[i + 1], "--target", "digitsm"]
    return [*argv[:i], *task, *argv[i + 2 :]]


def trained(script, tmp_path, **changes):
    """A checkpoint of a script with its default arguments for digits, and with changes."""

    class Caught(Exception):
        pass

    def stop(_, args):
        raise Caught(args)

    with mock.patch.object(script, "Run", stop), pytest.raises(Caught) as caught:
        argv = ["--data", "digits", "--data-dir", str(tmp_path), "--epochs", "3"]
        script.main(images_flags(script, argv))
    leave = ("resume", "eval_only", "overwrite", "out", "command")
    args = {k: v for k, v in vars(caught.value.args[0]).items() if k not in leave}
    content = {
        "script": script.__name__,
        "args": args,
        "epoch": 1,
        "shape": [1, 32, 32] if script is dann else [1, 28, 28],
        "n_classes": 10,
        "nets": dict.fromkeys(("enc", "dec", "disc"), {}),
        "parts": {},
        "history": [],
        "best": 1.0,
    }
    return {**content, **changes}


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


ROWS = {
    "unknown set": (lambda t, script: ["--data", "nothing"], "nothing"),
    "mnist missing and no network": (lambda t, script: ["--data", "mnist"], "sprites"),
    "sprites2015 missing": (lambda t, script: ["--data", "sprites2015"], "sprites"),
    "empty image folder": (
        lambda t, script: ["--data", "folder:" + str((t / "empty").mkdir() or t / "empty")],
        "empty",
    ),
    "missing image folder": (lambda t, script: ["--data", f"folder:{t / 'nowhere'}"], "nowhere"),
    "one class only": (lambda t, script: ["--data", images(t / "one", 8)], "class"),
    "damaged png": (lambda t, script: damaged_png(t), "0.png"),
    "data folder is a file": (
        lambda t, script: ["--data-dir", str((t / "f").write_text("x") and t / "f")],
        "f",
    ),
    "out is a file": (
        lambda t, script: ["--out", str((t / "f").write_text("x") and t / "f")],
        "--out",
    ),
    "out holds a run": (lambda t, script: ["--out", run_folder(t, {})], "--overwrite"),
    "resume without out": (lambda t, script: ["--resume"], "--out"),
    "eval-only without out": (lambda t, script: ["--eval-only"], "--out"),
    "resume and eval-only": (
        lambda t, script: ["--resume", "--eval-only", "--out", str(t / "old")],
        "choose",
    ),
    "resume without a run": (lambda t, script: ["--resume", "--out", str(t / "none")], "last.pt"),
    "eval-only without a run": (
        lambda t, script: ["--eval-only", "--out", str(t / "none")],
        "best.pt",
    ),
    "not a checkpoint": (
        lambda t, script: ["--eval-only", "--out", run_folder(t, raw=b"hello")],
        "best.pt",
    ),
    "truncated checkpoint": (
        lambda t, script: ["--resume", "--out", run_folder(t, raw=b"PK\3\4" + bytes(99))],
        "last.pt",
    ),
    "checkpoint that would run code": (
        lambda t, script: ["--eval-only", "--out", run_folder(t, {"script": Runs()})],
        "best.pt",
    ),
    "checkpoint of another script": (
        lambda t, script: [
            "--eval-only",
            "--out",
            run_folder(t, {**trained(script, t), "script": "other"}),
        ],
        "other.py",
    ),
    "checkpoint of another image shape": (
        lambda t, script: [
            "--eval-only",
            "--out",
            run_folder(t, trained(script, t, shape=[3, 32, 32])),
        ],
        "shape|images of",
    ),
    "checkpoint with weights of another size": (
        lambda t, script: [
            "--eval-only",
            "--out",
            run_folder(t, trained(script, t)),
        ],
        "shape",
    ),
    "checkpoint without weights": (
        lambda t, script: ["--eval-only", "--out", run_folder(t, {"script": script.__name__})],
        "damaged",
    ),
    "checkpoint of other classes": (
        lambda t, script: ["--eval-only", "--out", run_folder(t, trained(script, t, n_classes=7))],
        "classes",
    ),
    "resume with another flag": (
        lambda t, script: ["--resume", "--out", run_folder(t, trained(script, t)), "--lr", "5"],
        "--lr",
    ),
    "resume with fewer epochs": (
        lambda t, script: ["--resume", "--out", run_folder(t, trained(script, t)), "--epochs", "2"],
        "up",
    ),
    "eval-only with epochs": (
        lambda t, script: [
            "--eval-only",
            "--out",
            run_folder(t, trained(script, t)),
            "--epochs",
            "9",
        ],
        "--epochs",
    ),
    "damaged args.json": (
        lambda t, script: [
            "--resume",
            "--out",
            str((t / "a").mkdir() or (t / "a" / "args.json").write_text("{") and t / "a"),
        ],
        "args.json",
    ),
    "unknown flag": (lambda t, script: ["--no-such-flag"], "--no-such-flag"),
    "unknown device": (lambda t, script: ["--device", "abacus"], "--device"),
    "a device that is not there": (
        lambda t, script: ["--device", "mps" if torch.cuda.is_available() else "cuda"],
        "--device",
    ),
    **bad_values(
        {
            "--epochs": ("0", "1.5", "x"),
            "--batch-size": ("1", "-3"),
            "--lr": ("0", "nan", "inf", "-1"),
            "--seed": ("-1", "x"),
            "--limit": ("0",),
            "--image-size": ("0", "15", "9999"),
        }
    ),
}
Z_DIM = {
    "resume with another model": (
        lambda t, script: ["--resume", "--out", run_folder(t, trained(script, t)), "--z-dim", "5"],
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
                "--s-dim": ("0",),
                "--leak": ("-0.1", "2"),
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
                "--arch": ("huge",),
                "--discriminator": ("none", "both"),
                "--recon-weight": ("0", "nan"),
                "--own-weight": ("-1",),
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
        "an autoencoder that is not there": (
            lambda t, script: ["--data", "digits", "--model", "nae", "--ae", "nowhere.pt"],
            "nowhere.pt",
        ),
        "an autoencoder beside a vae": (
            lambda t, script: ["--data", "digits", "--ae", "nowhere.pt"],
            "--ae is",
        ),
        "a bound with a weight": (
            lambda t, script: ["--data", "digits", "--iwae", "5", "--beta", "2"],
            "--beta",
        ),
        **bad_values(
            {
                "--model": ("gan",),
                "--arch": ("huge",),
                "--hidden": ("0", "x"),
                "--beta": ("-1", "nan"),
                "--likelihood": ("poisson",),
                "--sigma": ("0",),
                "--iwae": ("0",),
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
                "--fakes": ("none",),
                "--pixel-weight": ("-0.5", "inf"),
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
                "--warm-up": ("-1", "2"),
                "--real-target": ("0", "1.1"),
                "--nll-k": ("0",),
                "--nll-n": ("1",),
                "--fid": ("yes",),
            }
        ),
    },
    dann: {
        "data folder is a file": (
            lambda t, script: [
                *("--task", "images", "--data-dir"),
                str((t / "f").write_text("x") and t / "f"),
            ],
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
            lambda t, script: ["--resume", "--out", run_folder(t, trained(script, t)), "--arch=bn"],
            "--arch",
        ),
        "small images": (beside_digits("digitsm", "--image-size", "12"), "--image-size"),
        "a batch of one": (
            beside_digits("digitsm", "--arch", "bn", "--batch-size", "3"),
            "--batch-size",
        ),
        "--data": (lambda t, script: ["--points", "20", f"--data={t}"], "--data"),
        **bad_values(
            {
                "--task": ("suns",),
                "--points": ("5", "x"),
                "--hidden": ("0", "1.5"),
                "--lam": ("-1", "nan"),
                "--domain-weight": ("-1", "inf"),
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


@pytest.mark.parametrize("script, argv, words", CASES.values(), ids=CASES)
def test_bad_input_is_one_sentence_status_2_and_nothing_written(
    script, argv, words, tmp_path, capsys, monkeypatch
):
    def no_network(root):
        raise OSError("no network")

    for name in ("mnist", "mnistm"):
        monkeypatch.setattr(data.SETS[name], "fetch", no_network)
    argv = images_flags(script, argv(tmp_path, script))
    monkeypatch.chdir(tmp_path)  # --out and --data-dir default to folders here
    before = snapshot(tmp_path)
    if "--data-dir" not in argv:
        argv = [*argv, "--data-dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as stop:
        command_line(lambda: script.main(argv))
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.count("\n") == 1 and error.rstrip().endswith("."), error
    assert any(word in error for word in words.split("|")), error
    after = snapshot(tmp_path)
    assert {k: after.get(k) for k in before} == before
    assert not (tmp_path / "runs").exists()


def test_a_truncated_mnist_file_is_named(data_dir, tmp_path, capsys):
    from pathlib import Path

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in Path(data_dir, "MNIST", "raw").iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 5000 if "images" in path.name else None])
    with pytest.raises(SystemExit) as stop:
        command_line(
            lambda: cyclevae.main(
                ["--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
            )
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "images-idx3-ubyte" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--amp", "--compile"])
def test_a_speedup_that_the_machine_has_not_is_refused_before_the_old_run_goes(
    flag, tmp_path, capsys, monkeypatch
):
    def no_compiler(*_):
        raise RuntimeError("InvalidCxxCompiler:\nno g++")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda _: False)
    folder = run_folder(tmp_path, trained(cyclevae, tmp_path))
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command_line(lambda: cyclevae.main(["--smoke", flag, "--overwrite", "--out", folder]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and flag in error and error.count("\n") == 1
    assert snapshot(tmp_path) == before
    args = SimpleNamespace(amp=True, compile=True, eval_only=True, device="cpu", out=None, data="x")
    Run("cyclevae", args)  # measures saved weights all the same


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
        command_line(main)
    assert ("memory is too small" in capsys.readouterr().err) == hidden
    assert not hidden or stop.value.code == 2


def test_overwrite_replaces_the_run_only_once_the_data_are_there(tmp_path, capsys):
    folder = tmp_path / "old"
    run_folder(tmp_path, trained(cyclevae, tmp_path))
    (folder / "args.json").write_text(json.dumps({"script": "cyclevae"}))
    before = snapshot(folder)
    with pytest.raises(SystemExit):
        command_line(
            lambda: cyclevae.main(["--data", "nothing", "--out", str(folder), "--overwrite"])
        )
    assert snapshot(folder) == before
