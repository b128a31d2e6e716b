"""The measured results: README's tables come from assets/results, and its commands made them."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

import eval as evaluation
from data import DataError
from eval import percent, table

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "assets" / "results").glob("*.json"))
README = (ROOT / "README.md").read_text()


class Stop(Exception):
    """Carries the arguments out of main, before anything is trained."""


def arguments(monkeypatch, command):
    """What the script of a command line makes of its flags."""
    script, *argv = shlex.split(command)[1:]
    module = importlib.import_module(script.removesuffix(".py"))

    def stop(_, args):
        raise Stop(args)

    monkeypatch.setattr(module, "Run", stop)
    with pytest.raises(Stop) as stopped:
        module.main(argv)
    return vars(stopped.value.args[0])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_measured_run_gives_the_arguments_it_ran_with(monkeypatch, path):
    run = json.loads(path.read_text())
    args = arguments(monkeypatch, run["command"])
    elsewhere = ("device", "data_dir")  # where it ran, not what
    for key, value in run["args"].items():
        if key not in elsewhere and args[key] is not None:  # None: main asks the data set
            assert args[key] == value, key
    assert run["epochs"] == run["args"]["epochs"] and not run["smoke"]


def test_readmes_tables_are_those_of_the_measured_runs():
    found = table(ROOT / "assets" / "results").split("\n\n")
    assert len(found) > 1 and f"`{json.loads(RESULTS[0].read_text())['command']}`" in found[0]
    for part in found:
        assert part in README, f"README lacks, or has otherwise:\n{part}"
    measured = {line for part in found for line in part.split("\n")}
    for line in README.split("\n"):
        if line.startswith("|") and line not in measured:
            assert not re.search(r"\d %", line), f"typed by hand: {line}"


def test_readmes_percentages_are_measured_or_printed_in_a_paper():
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [n for part in value for n in numbers(part)]
        return [value] if isinstance(value, float) else []

    ours = {percent(n) for path in RESULTS for n in numbers(json.loads(path.read_text()))}
    papers = set(re.findall(r"\d+\.\d+ %", str(evaluation.PAPERS)))
    released = {"98.5 %", "17.4 %", "49.6 %"}  # the cycle-VAE authors' weights, probed
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    assert set(re.findall(r"\d+\.\d+ %", prose)) <= ours | papers | released


def test_readme_shows_every_picture_of_assets_and_they_are_small():
    pictures = sorted(path.name for path in (ROOT / "assets").glob("*.png"))
    assert pictures == sorted(set(re.findall(r"assets/([\w.]+\.png)", README)))
    assert sum(p.stat().st_size for p in (ROOT / "assets").rglob("*.*")) < 4e6


def test_table_reads_results_and_refuses_what_is_none(tmp_path):
    with pytest.raises(DataError, match="holds no results.json"):
        table(tmp_path)
    row = {"s_test_acc": 0.5, "chance": 0.1, "test_kl": 3.14159, "live_dims": 2, "seed": 7}
    more = {"epochs": 3, "seconds": 90.0, "device": "cpu", "threads": 2}
    kept = {"script": "cyclevae", "data": "mnist", "command": "python cyclevae.py", **row, **more}
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "results.json"
    path.write_text(json.dumps(kept))
    last = table(tmp_path).split("\n")[-1]
    ours = "s 50.0 %, chance 10.0 %, KL 3.14 nats in 2 dimensions"  # and no part without a number
    assert (
        last == f"| `python cyclevae.py` | – | {ours} | 3 epochs, 2 min, cpu, 2 threads, seed 7 |"
    )
    path.write_text(json.dumps(kept | {"args": {"s_dim": 16}}))
    assert "| s 98.35 %, z 17.56 % (Table 1) |" in table(tmp_path)
    for damaged in ("{", "[]", json.dumps({"script": "cyclevae"}), json.dumps({"script": "x"})):
        path.write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            table(tmp_path)


def test_every_script_has_its_part_of_the_table():
    assert {f"{script}.py" for script in evaluation.OURS} <= {p.name for p in ROOT.glob("*.py")}
    measured = {json.loads(path.read_text())["script"] for path in RESULTS}
    assert measured == set(evaluation.OURS)


def test_every_training_command_in_the_readme_is_one_that_its_script_takes(monkeypatch):
    commands = set(re.findall(r"`(python (?:\w+)\.py[^`]*)`", README.replace("\n", " ")))
    scripts = [c for c in commands if c.split()[1].removesuffix(".py") in evaluation.OURS]
    assert len(scripts) > 20
    for command in scripts:
        if not re.search("--help|--resume|--eval-only", command):
            arguments(monkeypatch, command)


def test_the_notebook_cells_of_the_readme_run(tmp_path, monkeypatch, smoke):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cyclevae-sprites").symlink_to(smoke("cyclevae")[0])
    monkeypatch.chdir(tmp_path)
    section = README.split("## In a notebook")[1].split("\n## ")[0]
    cells, names = re.findall(r"```python\n(.*?)```", section, flags=re.S), {}
    assert len(cells) == 4  # import, load, figures, results
    for cell in cells:
        cell = cell.removeprefix("%matplotlib inline\n")
        exec(cell.replace('load_data("sprites")', 'load_data("sprites", limit=1280)'), names)
    assert names["figure"].axes and set(names["results"]["factors"]) >= {"skin", "action"}


def test_the_set_of_bars_in_the_readme_loads(tmp_path):
    import data

    code = re.search(r"```python\n(@image_set.*?)```", README, flags=re.S).group(1)
    exec(code, vars(data) | {"torch": data.torch})
    try:
        bars = data.load("bars", tmp_path)
        assert bars.train.x.shape[1:] == (1, 28, 28) and bars.classes == ["standing", "lying"]
        assert code.count("\n") <= 6
    finally:
        data.SETS.pop("bars")
