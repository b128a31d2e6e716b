"""The measured results in assets and README, and the table that is made of results.json files."""

import importlib
import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image

import data
import eval as evaluation
from data import DataError, load
from eval import table

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"
RESULTS = sorted((ASSETS / "results").glob("*.json"))
README = (ROOT / "README.md").read_text()
MORE = (ASSETS / "results" / "README.md").read_text()


class Stop(Exception):
    """Carries the arguments out of main, before any data are read."""


def arguments(monkeypatch, command):
    """What the script of a command line makes of its flags."""
    script, *argv = shlex.split(command)[1:]
    module = importlib.import_module(script.removesuffix(".py"))

    def stop(*given):
        raise Stop(evaluation.parse(*given))

    monkeypatch.setattr(module, "parse", stop)
    with pytest.raises(Stop) as stopped:
        module.main(argv)
    return vars(stopped.value.args[0])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_measured_run_gives_the_arguments_it_ran_with(monkeypatch, path):
    run = json.loads(path.read_text())
    if "summary" not in run:
        pytest.skip("a run of an earlier version, with other flags and presets")
    args = arguments(monkeypatch, run["command"])
    elsewhere = ("device", "data_dir")  # where it ran, not what
    for key, value in run["args"].items():
        there = key in args and key not in elsewhere
        if there and args[key] is not None:  # None: main asks the data set
            assert args[key] == value, key
    assert run["epochs"] == run["args"]["epochs"] and not run["smoke"]


# README


def test_the_readme_is_short_and_its_training_commands_are_understood(monkeypatch):
    assert len(README.splitlines()) <= 280
    commands = re.findall(r"`(python (?:cyclevae|mathieu|vae|dann|vaegan|flowvae_gan)\.py[^`]*)`",
                          README)
    commands += re.findall(r"^(python \w+\.py.*)$", README, re.MULTILINE)
    assert len(commands) > 12
    for command in commands:
        if "--resume" not in command and "--weights" not in command and "--help" not in command:
            arguments(monkeypatch, command)


def test_the_other_commands_of_the_readme_run(smoke, tmp_path, monkeypatch, capsys):
    """In a folder with a smoke run under the README's name; digits stand in for MNIST."""
    digits = load("digits").test.x
    (tmp_path / "DIR").mkdir()
    for i, image in enumerate(digits[:150]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "DIR" / f"{i}.png")
    shutil.copytree(smoke("cyclevae")[0], tmp_path / "runs" / "cyclevae-sprites")
    classifier = evaluation.classifier
    monkeypatch.setattr(
        evaluation, "classifier", lambda data, data_dir, *_: classifier(data, data_dir, 5000)
    )
    monkeypatch.chdir(tmp_path)
    commands = set(re.findall(r"`python ((?:data|eval)\.py[^`]*)`", README))
    assert len(commands) > 4
    for command in commands:
        script, *argv = shlex.split(command.replace("mnist", "digits"))
        capsys.readouterr()
        importlib.import_module(script.removesuffix(".py")).main(argv)
        assert capsys.readouterr().out, command


def test_the_python_of_the_readme_runs(smoke, tmp_path, monkeypatch):
    shutil.copytree(smoke("cyclevae")[0], tmp_path / "runs" / "cyclevae-sprites")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SETS", dict(data.SETS))
    names = {"register": data.register, "Source": data.Source}  # the third adds to data.py
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3 and names["figure"].axes and load("bars").classes[0] == "standing"


def test_the_pictures_of_the_readmes_are_there_and_small():
    shown = re.findall(r"assets/([\w./-]+\.(?:png|jpg|svg|gif))", README)
    shown += re.findall(r"\.\./([\w./-]+\.(?:png|jpg|svg|gif))", MORE)
    assert shown and all((ASSETS / name).is_file() for name in shown)
    assert {path.name for path in ASSETS.glob("*.png")} == set(shown)  # none that nobody sees
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 5e6


# python eval.py table


def result(folder, name, **changes):
    """Writes a results.json with what `table` reads."""
    content = {
        "script": "cyclevae",
        "command": "python cyclevae.py",
        "device": "cpu",
        "threads": 2,
        "epochs": 3,
        "seconds": 90.0,
        "seed": 7,
        "paper": None,
        "summary": {"s %": 50.0, "KL nats": 3.14159, "R2": None},
        **changes,
    }
    path = folder / name / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def cells(text):
    """The rows of one script's Markdown table below its header, each a list of cells."""
    heading, _, *lines = text.split("\n")
    assert heading == "## cyclevae.py"
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, text
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def test_table_has_a_row_per_command_and_leaves_out_what_has_no_summary(tmp_path):
    result(tmp_path, "a")
    result(tmp_path, "b", command="python cyclevae.py --data mnist", paper="s 98.35 % (Table 1)")
    result(tmp_path, "c", script="vae", command="python vae.py", summary=None)
    rows = cells(table(tmp_path))
    assert [row[:2] for row in rows] == [
        ["`python cyclevae.py`", "–"],
        ["`python cyclevae.py --data mnist`", "s 98.35 % (Table 1)"],
    ]
    result(tmp_path, "d", script="vae", command="python vae.py", summary={"nats": 90.0})
    assert table(tmp_path).count("\n\n## vae.py\n\n| command |") == 1
    assert rows[0][2] == "s %: 50; KL nats: 3.142"
    assert all(word in rows[0][3] for word in ("3 epochs", "2 min", "cpu", "2 threads", "seed 7"))


@pytest.mark.parametrize("spelling", ["--seed {}", "--seed={}"])
def test_runs_that_differ_in_their_seed_are_one_row_with_mean_and_spread(tmp_path, spelling):
    values = [50.0, 53.0, 59.0]
    for seed, value in enumerate(values):
        words = f"python cyclevae.py {spelling.format(seed)} --z-dim 5" if seed else (
            "python cyclevae.py --z-dim 5"  # the default
        )
        result(tmp_path, f"{seed}", command=words, seed=seed, summary={"s %": value})
    result(tmp_path, "3", command="python cyclevae.py --z-dim 6 --epochs 3 --seed 3", seed=3)
    result(tmp_path, "4", command="python cyclevae.py --epochs 3 --seed 4 --z-dim 6", seed=4)
    rows = cells(table(tmp_path))
    assert [row[0] for row in rows] == [
        "`python cyclevae.py --z-dim 5`",
        "`python cyclevae.py --z-dim 6 --epochs 3`",  # the flags in either order
    ]
    mean, spread = (float(part) for part in rows[0][2].removeprefix("s %: ").split(" ± "))
    assert mean == pytest.approx(statistics.mean(values), rel=0.01)
    assert spread == pytest.approx(statistics.stdev(values), rel=0.06)  # two digits
    assert "seeds 0, 1, 2" in rows[0][3] and "seeds 3, 4" in rows[1][3]


def test_a_run_of_several_seeds_is_one_row_with_mean_and_spread(tmp_path):
    summary = {"NN in %": [80.0, 82.0, 87.0], "DANN in %": [93.0, 93.0, 93.0]}
    result(tmp_path, "a", command="python dann.py --seeds 3", seed=0, seeds=3,
           summary=summary)
    ((_, _, ours, hardware),) = cells(table(tmp_path))
    assert ours == "NN in %: 83.0 ± 3.6; DANN in %: 93" and "seeds 0, 1, 2" in hardware


def test_a_bar_or_a_line_break_from_outside_does_not_break_the_table(tmp_path):
    command = "python cyclevae.py --data 'folder:a|b\nc'"
    result(tmp_path, "a", command=command, paper="x | y", summary={"s | %": 1.0})
    ((command, paper, ours, _),) = cells(table(tmp_path))
    assert "a\\|b" in command and paper == "x \\| y" and ours.startswith("s \\| %")


def test_table_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(DataError, match="holds no results.json"):
        table(tmp_path)
    path = result(tmp_path, "a")
    table(tmp_path)
    numbers = json.loads(path.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps({"summary": {}}),
        json.dumps(numbers | {"summary": {"s": "half"}}),
        json.dumps(numbers | {"command": None}),
        json.dumps(numbers | {"summary": [1.0]}),
    ):
        path.write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            table(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="damaged"):
        table(tmp_path)
