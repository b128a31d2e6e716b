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
    args = arguments(monkeypatch, run["command"])
    elsewhere = ("device", "data_dir")  # where it ran, not what
    for key, value in run["args"].items():
        there = key in args and key not in elsewhere
        if there and args[key] is not None:  # None: main asks the data set
            assert args[key] == value, key
    assert run["epochs"] == run["args"]["epochs"] and not run["smoke"]


def test_the_tables_beside_the_results_are_made_of_them():
    rows = table(ASSETS / "results").splitlines()
    assert len(rows) > 40 and set(rows) <= set(MORE.splitlines())


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


# Numbers that the docstrings and README quote

SEED = r"(-seed\d)?"
MOONS, RAMP = "dann-moons150", "dann-mnistm-ramp-.*"
QUOTED = [  # file, its runs (one, or one per seed), and the text: {what is quoted:format}
    ("cyclevae.py", "cyclevae-sprites", "on two cores: s {s in %:.0f} %, z {sampled z in %:.2f} %"),
    ("mathieu.py", "mathieu-mnist-off", "swapped images {Frechet distance of swaps:.1f}, not"),
    ("mathieu.py", "mathieu-mnist", "22.5, not {Frechet distance of swaps:.1f}"),
    ("mathieu.py", "mathieu-mnist-released", "z then holds {KL in nats:.0f} nats and predicts "
     "{sampled z in %:.0f} % of the digits"),
    ("mathieu.py", "mathieu-mnist", "with ours {KL in nats:.0f} and {sampled z in %:.0f}."),
    ("vae.py", "vae-mnist", "784-400-20: NLL {NLL in nats:.1f} nats"),
    ("vae.py", "vae-mnist-conv", "--arch conv # {NLL in nats:.1f} nats"),
    ("vae.py", "vae-mnist-mlp", "network: {NLL in nats:.1f} nats in 80 minutes"),
    ("dann.py", MOONS, "moons, {minutes:.0f} minutes: NN {NN, the last 100 epochs in %:.1f} %, "
     "DANN {DANN, the last 100 epochs in %:.1f} %"),
    ("dann.py", "dann-moons300", "give {NN, the last 100 epochs in %:.0f} and "
     "{DANN, the last 100 epochs in %:.0f} %"),
    ("dann.py", "dann-mnistm-seed.", "DANN {min DANN in %:.0f} to {max DANN in %:.0f} %"),
    ("dann.py", f"({RAMP}|dann-mnistm-all)", "minutes: {min DANN in %:.0f} to "
     "{max DANN in %:.0f} %"),
    ("dann.py", "dann-mnistm-bn20", "--epochs 20 # {DANN in %:.0f} %"),
    ("vaegan.py", "vaegan-fashion", "fully connected, {minutes:.0f} minutes on one core"),
    # README, the course table
    ("README.md", "vae-mnist", "| {minutes:.0f} | negative bound {vae/test_elbo:.1f} nats |"),
    ("README.md", "vae-mnist", "| NLL {NLL in nats:.1f}; 86.0 nats"),
    ("README.md", "vae-mnist-conv", "| 14; {minutes:.0f} | NLL 93.6; {NLL in nats:.1f} nats"),
    ("README.md", "vae-mnist", "| {100 vae/svm_linear/accuracy:.1f} % linear, {SVM in %:.1f} % "
     "RBF"),
    ("README.md", "vae-faces", "| {minutes:.0f} | NLL {NLL in nats:.0f} nats"),
    ("README.md", "vae-faces", "SVM {100 vae/svm_linear/accuracy:.0f} % linear, "
     "{100 vae/svm_rbf/accuracy:.0f} % RBF"),
    ("README.md", "vae-fashion-three", "distances of samples {AE distance of samples:.0f}, "
     "{normalized AE distance of samples:.0f}, {VAE distance of samples:.0f} |"),
    ("README.md", "vaegan-fashion", "| {minutes:.0f} | distances of samples "
     "{VAE-GAN distance of samples:.1f}, VAE {VAE distance of samples:.1f} |"),
    ("README.md", "vaegan-fashion-conv", "| distances of samples "
     "{VAE-GAN distance of samples:.1f}, VAE {VAE distance of samples:.1f} |"),
    ("README.md", "vaegan-fashion-gan2", "| {minutes:.0f} | right class in "
     "{VAE-GAN recognized in %:.0f} % of reconstructions"),
    ("README.md", "mathieu-mnist", "| {minutes:.0f} | class of s recognized in "
     "{class of s in swaps in %:.1f} % of swaps"),
    ("README.md", "mathieu-mnist", "| s {s in %:.1f} %, sampled z {sampled z in %:.1f} %, mean of "
     "z {mean of z in %:.1f} % (chance 10)"),
    ("README.md", "mathieu-yaleb", "person from s {s in %:.1f}, from sampled z "
     "{sampled z in %:.1f} % (light alone {100 z_null_acc:.1f}, chance {chance in %:.1f}); light "
     "from sampled z: azimuth {100 factors/azimuth/z:.0f}, elevation "
     "{100 factors/elevation/z:.0f} %"),
    ("README.md", "cyclevae-sprites", "in {class of s in swaps in %:.0f} % of swaps"),
    ("README.md", "cyclevae-sprites", "s {s in %:.1f} %, sampled z {sampled z in %:.2f} % "
     "(chance {chance in %:.2f} %)"),
    ("README.md", "cyclevae-sprites", "| R2 {s_to_z_r2:.2f}, {z_to_s_r2:.2f} |"),
    ("README.md", "cyclevae-mnist", "| {minutes:.0f} | s {s in %:.1f} %, sampled z "
     "{sampled z in %:.1f} % (paper 98.35, 17.56)"),
    ("README.md", MOONS, "| {minutes:.0f} | NN {NN, the last 100 epochs in %:.1f} %, DANN "
     "{DANN, the last 100 epochs in %:.1f} % |"),
    ("README.md", "dann-mnistm-bounds", "source only {source only in %:.1f} %, DANN"),
    ("README.md", RAMP, "DANN {DANN in %:.1f} % over five seeds"),
    ("README.md", "dann-mnistm-bounds", "train on target {train on target in %:.1f} %"),
    ("README.md", "flowvae_gan-mnistm", "| {minutes:.0f} | distances of samples "
     "{VAE distance:.1f}, with joint flow {joint flow distance:.1f}, GAN {GAN distance:.1f} |"),
    ("README.md", "flowvae_gan-mnist", "two draws: VAE {100 vae/confidence:.0f}, joint flow "
     "{100 flow_joint/confidence:.0f}, GAN {100 gan/confidence:.0f} %"),
    ("README.md", "flowvae_gan-mnist", "| NLL {VAE NLL in nats:.1f}, with joint flow "
     "{joint flow NLL in nats:.1f} nats; distances of samples {VAE distance:.1f}, "
     "{joint flow distance:.1f}, GAN {GAN distance:.1f} |"),
    # README, the scripts' sections
    ("README.md", "cyclevae-sprites" + SEED, "from s in {s in %:.0f} % of the test images, from a "
     "sampled z in {sampled z in %:.3f} %. Chance is {chance in %:.3f} %; a z that holds only the "
     "pose gets {100 z_null_acc:.3f} %"),
    ("README.md", "cyclevae-sprites" + SEED, "in {recognized in %:.1f} ± {± recognized in %:.1f} % "
     "of the reconstructions, and the character of s in {class of s in swaps in %:.1f} ± "
     "{± class of s in swaps in %:.1f} % of the swaps"),
    ("README.md", "cyclevae-sprites" + SEED, "predicts {mean of z in %:.1f} % of the characters "
     "and {100 factors/hair_style/z_mean:.0f} % of the hair styles"),
    ("README.md", "cyclevae-sprites" + SEED, "the direction in {100 factors/direction/s:.0f} and "
     "the action in {100 factors/action/s:.0f} % of the images"),
    ("README.md", "cyclevae-mnist", "reach s {s in %:.1f} % and sampled z {sampled z in %:.1f} % "
     "(paper 98.35 and 17.56), with {KL in nats:.1f} nats in three dimensions of z; the digit of s "
     "is recognized in {class of s in swaps in %:.1f} % of the swaps"),
    ("README.md", "cyclevae-sprites2015", "s {s in %:.1f} %, sampled z {sampled z in %:.2f} % "
     "(pose alone {100 z_null_acc:.2f}), swaps {class of s in swaps in %:.1f} %"),
    ("README.md", r"cyclevae-mnist15-seed\d", "sampled z predicts {sampled z in %:.1f} ± "
     "{± sampled z in %:.1f} instead of"),
    ("README.md", r"cyclevae-mnist15-noreverse-seed\d", "instead of {sampled z in %:.1f} ± "
     "{± sampled z in %:.1f} % of the digits"),
    ("README.md", r"cyclevae-mnist15-seed\d", "the mean of z {mean of z in %:.0f} ± "
     "{± mean of z in %:.0f} instead of"),
    ("README.md", r"cyclevae-mnist15-noreverse-seed\d", "instead of {mean of z in %:.0f} ± "
     "{± mean of z in %:.0f} %. But"),
    ("README.md", r"cyclevae-mnist15-seed\d", "{KL in nats:.1f} instead of 4.0 nats, in "
     "{active dimensions:.0f} instead of 11 dimensions: the squared error is {squared error:.1f} "
     "instead of 25.5, and {recognized in %:.0f} instead of 89 %"),
    ("README.md", r"cyclevae-mnist15-noreverse-seed\d", "2.6 instead of {KL in nats:.1f} nats, in "
     "4 instead of {active dimensions:.0f} dimensions: the squared error is 30.1 instead of "
     "{squared error:.1f}, and 68 instead of {recognized in %:.0f} %"),
    ("README.md", "cyclevae-sprites", "recognizes {100 z_to_s_class_acc:.1f} % of all test images"),
    ("README.md", "mathieu-mnist", "s predicts {s in %:.1f} % of the digits, sampled z "
     "{sampled z in %:.1f} % and the mean of z {mean of z in %:.1f} %"),
    ("README.md", "mathieu-mnist", "Disc classifies {100 adversary/real_acc/mean:.1f} % of real "
     "and {100 adversary/fake_acc/mean:.1f} % of decoded images"),
    ("README.md", "mathieu-mnist", "by at most {adversary/adv/change:.3f} nats and the "
     "accuracies by at most {100 adversary/real_acc/change:.1f} points"),
    ("README.md", "mathieu-sprites", "s {s in %:.0f} %, sampled z {sampled z in %:.2f} % (as much "
     "as from the pose alone), mean of z {mean of z in %:.1f} %, the class of s in "
     "{class of s in swaps in %:.0f} % of the swaps"),
    ("README.md", "mathieu-mnist-off", "at a distance of {Frechet distance of swaps:.1f} from"),
    ("README.md", "mathieu-mnist", "instead of {Frechet distance of swaps:.2f}, and"),
    ("README.md", "mathieu-mnist-off", "recognized in {class of s in swaps in %:.1f} % of them"),
    ("README.md", "mathieu-mnist-off", "holds less ({KL in nats:.1f} instead of 6.0 nats) and "
     "predicts less of the class ({sampled z in %:.1f} %)"),
    ("README.md", "mathieu-mnist", "(3.7 instead of {KL in nats:.1f} nats)"),
    ("README.md", "mathieu-yaleb", "recognized in {class of s in swaps in %:.0f} % of swaps.*"),
    ("README.md", "vae-mnist", "Expect {NLL in nats:.1f} ± {vae/nll/stderr:.1f} nats on binarized"),
    ("README.md", "vae-mnist-conv", "and {NLL in nats:.1f} ± {vae/nll/stderr:.1f} from `--arch"),
    ("README.md", "vae-mnist-conv-all", "({NLL in nats:.1f} ± {vae/nll/stderr:.1f} on all test"),
    ("README.md", "vae-mnist-mlp", "reaches {NLL in nats:.1f} ± {vae/nll/stderr:.1f} after"),
    ("README.md", "vae-fashion-three", "from N(0, I) is {AE distance of samples:.0f} for ae, "
     "{normalized AE distance of samples:.0f} for nae and {VAE distance of samples:.0f} for the "
     "VAE"),
    ("README.md", "vae-fashion-three", "pixel {AE squared error per pixel:.4f}, "
     "{normalized AE squared error per pixel:.4f} and {VAE squared error per pixel:.4f})"),
    ("README.md", MOONS, "ten seeds {NN, the last 100 epochs in %:.1f} ± "
     "{± NN, the last 100 epochs in %:.1f} % for the standard network and "
     "{DANN, the last 100 epochs in %:.1f} ± {± DANN, the last 100 epochs in %:.1f} % for DANN"),
    ("README.md", MOONS, "DANN has {DANN, last epoch in %:.1f} ± {± DANN, last epoch in %:.1f} %"),
    ("README.md", "dann-moons300", "it is {NN, the last 100 epochs in %:.1f} ± "
     "{± NN, the last 100 epochs in %:.1f} and {DANN, the last 100 epochs in %:.1f} ± "
     "{± DANN, the last 100 epochs in %:.1f} %"),
    ("README.md", "dann-mnistm-seed.", "five seeds, {DANN in %:.1f} ± {± DANN in %:.1f} % with the "
     "paper's lambda"),
    ("README.md", RAMP, "and {DANN in %:.1f} ± {± DANN in %:.1f} % with one that rises"),
    ("README.md", "dann-mnistm-all", "seed 0 again, gave {DANN in %:.1f} %)"),
    ("README.md", "dann-mnistm-all", "sixth run, with {DANN in %:.1f} %"),
    ("README.md", "dann-mnistm-all", "guesses): {proxy_a_distance/source_only:.2f} and "
     "{proxy_a_distance/dann:.2f}."),
    ("README.md", "dann-mnistm-all", "| {minutes:.0f} | source only"),
    ("README.md", "dann-mnistm-shared", "source only {source only in %:.1f}, DANN "
     "{DANN in %:.1f} %"),
    ("README.md", "dann-mnistm-bn20", "reaches {DANN in %:.1f} %, and "
     "{DANN, target statistics in %:.1f} % with batch norm"),
    ("README.md", "dann-mnistm-bn", "{source only in %:.1f} and "
     "{source only, target statistics in %:.1f} %"),
    ("README.md", "vaegan-fashion", "samples of {VAE-GAN distance of samples:.1f} ± "
     "{vaegan/fid/spread:.1f} (VAE {VAE distance of samples:.1f} ± {vae/fid/spread:.1f};"),
    ("README.md", "vaegan-fashion-conv", "{VAE-GAN distance of samples:.1f} ± "
     "{vaegan/fid/spread:.1f}, VAE {VAE distance of samples:.1f} ± {vae/fid/spread:.1f}."),
    ("README.md", "vaegan-fashion-course", "{VAE-GAN distance of samples:.1f} ± "
     "{vaegan/fid/spread:.1f}, VAE {VAE distance of samples:.1f} ± {vae/fid/spread:.1f}."),
    ("README.md", "vaegan-fashion-vae-beta", "connected ({VAE KL in nats:.1f} and"),
    ("README.md", "vaegan-fashion-vae-beta", "reconstructions of "
     "{VAE distance of reconstructions:.1f} ± {vae/fid_recon/spread:.1f}, a squared error per "
     "pixel of {VAE squared error per pixel:.4f} and {VAE recognized in %:.1f} % recognized"),
    ("README.md", "vaegan-fashion", "and {VAE-GAN KL in nats:.1f} nats), no"),
    ("README.md", "vaegan-fashion", "the VAE-GAN {VAE-GAN distance of reconstructions:.1f} ± "
     "{vaegan/fid_recon/spread:.1f}, {VAE-GAN squared error per pixel:.4f} and "
     "{VAE-GAN recognized in %:.1f} %"),
    ("README.md", "vaegan-fashion-conv-vae-beta", "Convolutional ({VAE KL in nats:.0f} and"),
    ("README.md", "vaegan-fashion-conv-vae-beta", "the VAE {VAE distance of reconstructions:.1f} ± "
     "{vae/fid_recon/spread:.1f}, {VAE squared error per pixel:.4f} and {VAE recognized in %:.1f} "
     "%"),
    ("README.md", "vaegan-fashion-conv", "and {VAE-GAN KL in nats:.0f} nats, `--arch conv"),
    ("README.md", "vaegan-fashion-conv", "the VAE-GAN {VAE-GAN distance of reconstructions:.1f} ± "
     "{vaegan/fid_recon/spread:.1f}, {VAE-GAN squared error per pixel:.4f} and "
     "{VAE-GAN recognized in %:.1f} %"),
    ("README.md", "vaegan-fashion-gan", "samples {VAE-GAN distance of samples:.1f}), but "
     "Enc puts nothing of the image into z ({VAE-GAN KL in nats:.2f} nats), and reconstructions "
     "show the right class in "
     "{VAE-GAN recognized in %:.0f} %"),
    ("README.md", "vaegan-fashion-gan2", "two latents {VAE-GAN distance of samples:.1f}, "
     "{VAE-GAN KL in nats:.3f} nats and {VAE-GAN recognized in %:.0f} %"),
    ("README.md", "flowvae_gan-mnist", "NLL of {VAE NLL in nats:.1f} nats for the VAE, "
     "{joint flow NLL in nats:.1f} with the joint flow and {flow fitted after NLL in nats:.1f} "
     "with the flow fitted after; distances of samples {VAE distance:.1f} ± {vae/fid/spread:.1f}, "
     "{joint flow distance:.1f} ± {flow_joint/fid/spread:.1f}, {flow fitted after distance:.1f} ± "
     "{flow_after/fid/spread:.1f}, and {GAN distance:.1f} ± {gan/fid/spread:.1f} for the GAN"),
    ("README.md", "flowvae_gan-mnist" + SEED, "the NLL by {each flow_joint/gain/nats:.1f} nats"),
    ("README.md", "flowvae_gan-mnist-control", "has {VAE NLL in nats:.1f} nats as well and a "
     "distance of {VAE distance:.1f} ± {vae/fid/spread:.1f}"),
]


def quoted(runs, hole, form):
    """The text of a number over `runs`: minutes, a name in their summary, or the path of another
    number. Before it: nothing for the mean, ± for the spread, min, max or each; 100 for a share
    that is quoted in %."""
    which, hundred, name = re.fullmatch("(?:(±|min|max|each) )?(?:(100) )?(.+)", hole).groups()
    values = []
    for run in runs:
        value = run
        if name == "minutes":
            value = run["seconds"] / 60
        elif name in run["summary"]:
            value = run["summary"][name]
        else:
            for key in name.split("/"):
                value = value[key]
        values += value if isinstance(value, list) else [value]
    if hundred:
        values = [100 * value for value in values]
    if which == "each":
        texts = [format(value, form) for value in values]
        return ", ".join(texts[:-1]) + " and " + texts[-1]
    join = {None: statistics.mean, "±": statistics.stdev, "min": min, "max": max}[which]
    return format(join(values), form)


@pytest.mark.parametrize(("file", "runs", "text"), QUOTED)
def test_a_quoted_number_is_that_of_its_run(file, runs, text):
    names = [path for path in RESULTS if re.fullmatch(f"{runs}-results", path.stem)]
    found = [json.loads(path.read_text()) for path in names]
    expected = re.sub("{(.+?):(.+?)}", lambda hole: quoted(found, *hole.groups()), text)
    assert expected in " ".join((ROOT / file).read_text().split())


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
