"""Bad input of a script: one sentence on stderr, exit status 2, nothing written or changed."""

import json
import sys

import pytest
import torch
from PIL import Image

import cyclevae
from eval import command_line


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


def trained(tmp_path, **changes):
    """A checkpoint as cyclevae.py writes it, with changes."""
    parser_args = {
        "data": "digits",
        "data_dir": str(tmp_path),
        "epochs": 3,
        "z_dim": 4,
        "s_dim": 4,
        "leak": 0.2,
        "seed": 0,
        "image_size": None,
        "limit": None,
        "smoke": False,
        "batch_size": 8,
        "lr": 1e-3,
        "kl_weight": 1.0,
        "recon_weight": 2.0,
        "reverse_weight": 10.0,
        "device": "cpu",
        "compile": False,
        "amp": False,
    }
    nets = cyclevae.build((1, 28, 28), parser_args)
    content = {
        "script": "cyclevae",
        "args": parser_args,
        "epoch": 1,
        "shape": [1, 28, 28],
        "n_classes": 10,
        "nets": {k: v.state_dict() for k, v in nets.items()},
        "parts": {},
        "history": [],
        "best": 1.0,
    }
    return {**content, **changes}


class Runs:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (sys.exit, ("code from a checkpoint was run",))


ROWS = {
    "unknown set": (lambda t: ["--data", "nothing"], "nothing"),
    "mnist missing and no network": (lambda t: ["--data", "mnist"], "sprites"),
    "sprites2015 missing": (lambda t: ["--data", "sprites2015"], "sprites"),
    "empty image folder": (
        lambda t: ["--data", "folder:" + str((t / "empty").mkdir() or t / "empty")],
        "empty",
    ),
    "missing image folder": (lambda t: ["--data", f"folder:{t / 'nowhere'}"], "nowhere"),
    "one class only": (lambda t: ["--data", images(t / "one", 8)], "class"),
    "a class with one image": (lambda t: ["--data", images(t / "pair", 6, 1)], "class"),
    "damaged png": (damaged_png, "0.png"),
    "image size without networks": (
        lambda t: ["--data", "digits", "--image-size", "40"],
        "--image-size",
    ),
    "data folder is a file": (
        lambda t: ["--data-dir", str((t / "f").write_text("x") and t / "f")],
        "f",
    ),
    "out is a file": (lambda t: ["--out", str((t / "f").write_text("x") and t / "f")], "--out"),
    "out holds a run": (lambda t: ["--out", run_folder(t, {})], "--overwrite"),
    "resume without out": (lambda t: ["--resume"], "--out"),
    "eval-only without out": (lambda t: ["--eval-only"], "--out"),
    "resume and eval-only": (
        lambda t: ["--resume", "--eval-only", "--out", str(t / "old")],
        "choose",
    ),
    "resume without a run": (lambda t: ["--resume", "--out", str(t / "none")], "last.pt"),
    "eval-only without a run": (lambda t: ["--eval-only", "--out", str(t / "none")], "best.pt"),
    "not a checkpoint": (
        lambda t: ["--eval-only", "--out", run_folder(t, raw=b"hello")],
        "best.pt",
    ),
    "truncated checkpoint": (
        lambda t: ["--resume", "--out", run_folder(t, raw=b"PK\3\4" + bytes(99))],
        "last.pt",
    ),
    "checkpoint that would run code": (
        lambda t: ["--eval-only", "--out", run_folder(t, {"script": Runs()})],
        "best.pt",
    ),
    "checkpoint of another script": (
        lambda t: ["--eval-only", "--out", run_folder(t, trained(t, script="mathieu"))],
        "mathieu.py",
    ),
    "checkpoint of another image shape": (
        lambda t: ["--eval-only", "--out", run_folder(t, trained(t, shape=[3, 32, 32]))],
        "shape|images of",
    ),
    "checkpoint with weights of another size": (
        lambda t: [
            "--eval-only",
            "--out",
            run_folder(t, trained(t, nets=dict.fromkeys(("enc", "dec"), {}))),
        ],
        "shape",
    ),
    "checkpoint without weights": (
        lambda t: ["--eval-only", "--out", run_folder(t, {"script": "cyclevae"})],
        "damaged",
    ),
    "checkpoint of other classes": (
        lambda t: ["--eval-only", "--out", run_folder(t, trained(t, n_classes=7))],
        "classes",
    ),
    "resume with another flag": (
        lambda t: ["--resume", "--out", run_folder(t, trained(t)), "--z-dim", "5"],
        "--z-dim",
    ),
    "resume with fewer epochs": (
        lambda t: ["--resume", "--out", run_folder(t, trained(t)), "--epochs", "2"],
        "up",
    ),
    "eval-only with epochs": (
        lambda t: ["--eval-only", "--out", run_folder(t, trained(t)), "--epochs", "9"],
        "--epochs",
    ),
    "damaged args.json": (
        lambda t: [
            "--resume",
            "--out",
            str((t / "a").mkdir() or (t / "a" / "args.json").write_text("{") and t / "a"),
        ],
        "args.json",
    ),
    "unknown flag": (lambda t: ["--no-such-flag"], "--no-such-flag"),
    "unknown device": (lambda t: ["--device", "abacus"], "--device"),
    "a device that is not there": (
        lambda t: ["--device", "mps" if torch.cuda.is_available() else "cuda"],
        "--device",
    ),
    **{
        f"{flag} {value}": ((lambda f, v: lambda t: [f, v])(flag, value), flag)
        for flag, values in {
            "--epochs": ("0", "1.5", "x"),
            "--batch-size": ("1", "-3"),
            "--lr": ("0", "nan", "inf", "-1"),
            "--seed": ("-1", "x"),
            "--limit": ("0",),
            "--image-size": ("0", "7", "9999"),
            "--s-dim": ("0",),
            "--z-dim": ("0", "2.5"),
            "--leak": ("-0.1", "2"),
            "--recon-weight": ("0", "nan"),
            "--kl-weight": ("-1", "inf"),
            "--reverse-weight": ("-1", "x"),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("argv, words", ROWS.values(), ids=ROWS)
def test_bad_input_is_one_sentence_status_2_and_nothing_written(
    argv, words, tmp_path, capsys, monkeypatch
):
    argv = argv(tmp_path)
    monkeypatch.chdir(tmp_path)  # --out and --data-dir default to folders here
    before = snapshot(tmp_path)
    if "--data-dir" not in argv:
        argv = [*argv, "--data-dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as stop:
        command_line(lambda: cyclevae.main(argv))
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


def test_overwrite_replaces_the_run_only_once_the_data_are_there(tmp_path, capsys):
    folder = tmp_path / "old"
    run_folder(tmp_path, trained(tmp_path))
    (folder / "args.json").write_text(json.dumps({"script": "cyclevae"}))
    before = snapshot(folder)
    with pytest.raises(SystemExit):
        command_line(
            lambda: cyclevae.main(["--data", "nothing", "--out", str(folder), "--overwrite"])
        )
    assert snapshot(folder) == before
