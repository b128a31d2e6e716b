"""eval.py against closed forms and counts: probes, predictors, figures, files kept whole."""

import json

import numpy as np
import pytest
import torch

import eval as evaluation
from data import DataError, load
from eval import (
    classes_of,
    classifier,
    grid,
    number,
    percent,
    predictor,
    probe,
    sample,
    save,
    scatter,
    table,
    tsne,
    write,
)

RNG = torch.Generator().manual_seed(0)


def blobs(n, classes=4, width=6, spread=0.1):
    """Codes (n, width) in well separated clusters, and their classes."""
    y = torch.arange(n) % classes
    centres = 3 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    return centres[y] + spread * torch.randn(n, width, generator=RNG), y


def test_probe_reads_what_is_there_and_nothing_where_nothing_is():
    x, y = blobs(800)
    noise = torch.randn(800, 6, generator=RNG)
    half = slice(0, 400), slice(400, 800)
    seen = probe(x[half[0]], x[half[1]], {"class": (y[half[0]], y[half[1]])}, steps=150)["class"]
    assert seen["train"] > 0.99 and seen["test"] > 0.99
    blind = probe(noise[half[0]], noise[half[1]], {"class": (y[half[0]], y[half[1]])}, steps=150)[
        "class"
    ]
    assert abs(blind["test"] - 0.25) < 0.08


def test_probe_on_a_sampled_code_sees_the_noise_that_the_mean_hides():
    mu, y = blobs(800, spread=0.0)
    labels = {"class": (y[:400], y[400:])}
    drowned = (mu, torch.full_like(mu, 8.0))  # sigma = e^4 against distances of about 10
    assert (
        probe(
            (drowned[0][:400], drowned[1][:400]),
            (drowned[0][400:], drowned[1][400:]),
            labels,
            steps=150,
        )["class"]["test"]
        < 0.45
    )
    assert probe(mu[:400], mu[400:], labels, steps=150)["class"]["test"] == 1


def test_probe_reports_chance_and_the_majority_of_train_on_test():
    x, _ = blobs(100)
    y, t = torch.tensor([0] * 70 + [1] * 20 + [2] * 10), torch.tensor([1] * 75 + [0] * 25)
    result = probe(x, x, {"a": (y, t), "b": (1 - y.clamp(max=1), t)}, steps=2)
    assert result["a"]["chance"] == pytest.approx(1 / 3) and result["a"]["majority"] == 0.25
    assert result["b"]["chance"] == 0.5 and result["b"]["majority"] == 0.75


def test_same_seed_same_probe_and_training_leaves_the_global_generator_alone():
    x, y = blobs(200)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (probe(x, x, {"c": (y, y)}, seed=3, steps=20) for _ in range(2))
    assert first == second and torch.equal(before, torch.get_rng_state())


def test_predictor_r2_is_one_for_a_map_and_about_zero_for_noise():
    x = torch.randn(2000, 3, generator=RNG)
    target = torch.stack([x[:, 0] + x[:, 1], x[:, 2].sin()], 1)
    r2, predicted = predictor((x[:1500], target[:1500]), (x[1500:], target[1500:]), steps=600)
    assert r2 > 0.97
    error = (predicted - target[1500:]).square().sum()
    constant = (target[:1500].mean(0) - target[1500:]).square().sum()
    assert r2 == pytest.approx(1 - (error / constant).item(), abs=1e-6)
    noise = torch.randn(2000, 2, generator=RNG)
    assert predictor((x[:1500], noise[:1500]), (x[1500:], noise[1500:]), steps=100)[0] < 0.05


def test_sample_has_the_mean_and_variance_of_q():
    mu, logvar = torch.tensor([[1.0, -2.0]]).expand(200_000, 2), torch.tensor([[0.0, 1.0]]).expand(
        200_000, 2
    )
    z = sample((mu, logvar), torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0.03, rtol=0)
    assert sample(mu, None) is mu


def test_classifier_learns_is_cached_and_a_damaged_cache_is_rebuilt(tmp_path, capsys):
    data = load("digits", tmp_path)
    net, accuracy = classifier(data, tmp_path, shows=12_000)
    assert accuracy > 0.9
    assert accuracy == pytest.approx(
        (classes_of(net, data.test.x) == data.test.y).float().mean().item()
    )
    assert torch.equal(classes_of(net, data.test.x), classes_of(net, data.test.images(slice(None))))
    (path,) = tmp_path.glob("lenet-*.pt")
    stamp = path.stat().st_mtime_ns
    again, same = classifier(data, tmp_path, shows=12_000)
    assert same == accuracy and path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:500])
    assert classifier(data, tmp_path, shows=12_000)[1] == accuracy
    assert "damaged" in capsys.readouterr().out


def test_tsne_is_seeded_and_keeps_clusters_apart():
    x, y = blobs(150)
    (a, i), (b, j) = tsne(x, 0, 120), tsne(x, 0, 120)
    assert len(a) == 120 and np.array_equal(a, b) and torch.equal(i, j)
    labels = y[i].numpy()
    centres = np.stack([a[labels == c].mean(0) for c in range(4)])
    nearest = np.linalg.norm(a[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.95


def pixels(figure):
    """The sheet that a grid figure shows."""
    return np.asarray(figure.axes[0].images[0].get_array())


def test_grid_shows_images_in_order_and_outlines_mistakes_in_red():
    images = (
        torch.tensor([0.0, 0.25, 0.5, 1.0, 0.75, 0.125]).view(2, 3, 1, 1, 1).expand(2, 3, 1, 8, 8)
    )
    red = torch.zeros(2, 3, dtype=torch.bool)
    red[1, 2] = True
    sheet = pixels(grid(images, ["a", "b"], red=red))
    side = 8 * 12
    for r in range(2):
        for c in range(3):
            y, x = 14 + r * (side + 14), 14 + c * (side + 14)
            assert (
                sheet[y : y + side, x : x + side] == round(images[r, c, 0, 0, 0].item() * 255)
            ).all()
            outline = sheet[y - 3, x + 10].tolist()
            assert (outline == [220, 0, 0]) == bool(red[r, c])


def test_scatter_colours_twelve_classes_at_most():
    points, y = np.random.default_rng(0).normal(size=(300, 2)), torch.arange(300) % 30
    figure = scatter({"many": (points, y, [f"c{i}" for i in range(30)])})
    assert len(figure.axes[0].get_legend().get_texts()) == 12


def test_number_refuses_what_is_out_of_range_or_not_finite():
    import argparse

    assert number(int, low=1)("3") == 3 and number(float, above=0)("1e-3") == 1e-3
    for kind, bounds, text in (
        (int, {"low": 1}, "0"),
        (int, {"low": 1}, "1.5"),
        (float, {"above": 0}, "0"),
        (float, {"above": 0}, "nan"),
        (float, {"low": 0}, "inf"),
        (int, {"high": 3}, "4"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            number(kind, **bounds)(text)


def test_percent_and_shown():
    assert percent(0.9815) == "98.2 %" and percent(0.0031) == "0.31 %" and percent(None) == "–"


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save(path, {"a": 1})
    old = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError):
        write(path, b"new")
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_report_escapes_every_string_from_outside(tmp_path):
    from types import SimpleNamespace

    args = SimpleNamespace(
        data="folder:<b>",
        device="cpu",
        out=str(tmp_path),
        resume=False,
        eval_only=False,
        overwrite=False,
        seed=0,
        smoke=False,
        epochs=1,
        command="python <i>",
    )
    run = evaluation.Run("cyclevae", args)
    run.say("<u>")
    run.table("<s>", ("<a>",), [("<p>",)], "<q>")
    (
        run.figure("x", grid(torch.zeros(1, 1, 1, 8, 8)), "<em>")
        if (tmp_path / "figures").mkdir() is None
        else None
    )
    run.finish("<title>", {})
    report = (tmp_path / "report.html").read_text()
    for tag in ("<b>", "<i>", "<u>", "<s>", "<a>", "<q>", "<em>", "<title><title>"):
        assert tag not in report
    assert json.loads((tmp_path / "results.json").read_text())["data"] == "folder:<b>"


def test_table_reads_results_and_refuses_what_is_none(tmp_path):
    with pytest.raises(DataError, match="holds no results.json"):
        table(tmp_path)
    row = {key: 0.5 for key in evaluation.TABLES["cyclevae"]}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(
        json.dumps({"script": "cyclevae", "data": "mnist", **row})
    )
    assert "| mnist |" in table(tmp_path) and "50.0 %" in table(tmp_path)
    (tmp_path / "a" / "results.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        table(tmp_path)
