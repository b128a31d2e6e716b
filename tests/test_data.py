"""data.py: batches, pairs and splits by their properties, the readers, the cache, bad input."""
import gzip
import hashlib
import os
import pickle
import re
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from conftest import need
from data import (DataError, Split, batches, image_files, load, need_pairs, pairs, pick,
                  read_images)

SPRITES = "0860f8bfe1d79192"      # sha256 of the images of 20 people, first 16 digits


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def split_of(y):
    return Split(torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(y))


def same(a, b):
    return all(torch.equal(p.x, q.x) and torch.equal(p.y, q.y)
               for p, q in zip(a.splits().values(), b.splits().values()))


def bytes_of(split):
    return [image.numpy().tobytes() for image in split.x]


@pytest.fixture(scope="module")
def sprites():
    return load("sprites")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


# batches and pairs

def test_batches_cover_every_image_once_and_drop_the_short_remainder():
    split = split_of([0] * 96)
    drawn = list(batches(split, 32, rng()))
    assert [len(b) for b in drawn] == [32] * 3
    assert torch.cat(drawn).sort().values.tolist() == list(range(96))
    assert [len(b) for b in batches(split_of([0] * 99), 32, rng())] == [32] * 3
    assert [len(b) for b in batches(split_of([0] * 9), 32, rng())] == [9]


def test_batches_follow_the_generator_and_differ_from_epoch_to_epoch():
    split, one, two = split_of([0] * 40), rng(1), rng(1)
    first = torch.cat(list(batches(split, 8, one)))
    assert torch.equal(first, torch.cat(list(batches(split, 8, two))))
    assert not torch.equal(first, torch.cat(list(batches(split, 8, one))))


def test_images_are_the_pixels_over_255():
    split = split_of([0] * 256)
    x = split.images(torch.tensor([0, 51, 255]))
    assert x.dtype == torch.float32 and x.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal(split.images(slice(0, 2)), split.images(torch.tensor([0, 1])))


def test_the_mean_image_is_the_mean_of_all_images():
    x = torch.randint(256, (1203, 3, 4, 5), generator=rng(0), dtype=torch.uint8)
    mean = Split(x, torch.zeros(1203)).mean_image()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), (x.double() / 255).mean(0), rtol=0, atol=1e-7)


def test_a_partner_is_another_image_of_the_class_all_equally_likely():
    y = [2, 0, 0, 2, 1, 2, 0, 2, 2, 1]
    split = split_of(y)
    index = torch.arange(len(y)).repeat(6000)
    partner = pairs(split, index, rng())
    assert torch.equal(split.y[partner], split.y[index]) and (partner != index).all()
    seen = torch.bincount(index * len(y) + partner, minlength=100).view(10, 10).float()
    for i, k in enumerate(y):
        others = [j for j in range(len(y)) if y[j] == k and j != i]
        expected = 6000 / len(others)
        assert ((seen[i, others] - expected).abs() < 5 * expected ** 0.5 + 1e-9).all()


def test_a_lone_image_is_its_own_partner_and_need_pairs_names_its_class():
    split = split_of([0, 0, 1])
    assert pairs(split, torch.tensor([2]), rng()).item() == 2
    with pytest.raises(DataError, match="Class anna .*pairs need two"):
        need_pairs(split, ["ben", "anna"])
    need_pairs(split_of([0, 0, 2, 2]), ["ben", "anna", "carl"])


def test_partners_from_a_pool_are_of_the_class_and_all_equally_likely():
    split, pool = split_of([1, 0, 2]), split_of([0, 1, 1, 2, 0, 1])
    idx = torch.tensor([0, 1, 2]).repeat(6000)
    partner = pairs(split, idx, rng(), pool)
    assert torch.equal(pool.y[partner], split.y[idx])
    drawn = torch.bincount(partner, minlength=6)
    expected = torch.tensor([3000.0, 2000, 2000, 6000, 3000, 2000])
    assert ((drawn - expected).abs() < 5 * expected.sqrt()).all()


def test_a_split_is_no_pool_for_itself():
    split, idx = split_of([0, 1, 0, 1]), torch.arange(4).repeat(50)
    partner = pairs(split, idx, rng(), split)
    assert torch.equal(partner, pairs(split, idx, rng())) and (partner != idx).all()


def test_pick_takes_different_labels_while_there_are_any_left():
    labels = torch.tensor([5, 5, 5, 9, 9, 7])
    for seed in range(20):
        idx = pick(labels, 5, seed)
        assert len(set(idx.tolist())) == 5 and set(labels[idx[:3]].tolist()) == {5, 7, 9}
    assert torch.equal(idx, pick(labels, 5, seed))
    assert sorted(pick(labels, 99, 0).tolist()) == list(range(6))
    assert len({tuple(pick(labels, 3, seed).tolist()) for seed in range(20)}) > 1


def test_factors_that_are_constant_within_a_class():
    split = split_of([0, 0, 1, 1])
    split.factors.update(hair=torch.tensor([3, 3, 3, 3]), pose=torch.tensor([0, 1, 0, 0]))
    assert split.constant_within_class("hair") and not split.constant_within_class("pose")


# splits

def test_same_seed_same_split_and_another_seed_another(digits):
    assert same(digits, load("digits")) and not same(digits, load("digits", seed=1))


def test_splits_are_disjoint_and_complete(sprites):
    images = [image for split in sprites.splits().values() for image in bytes_of(split)]
    assert len(images) == len(set(images)) == 1200 * 64    # nor do two people share an image


def test_without_validation_its_images_stay_in_train(tmp_path):
    digits = load("digits", tmp_path)
    whole = load("digits", tmp_path, val=False)
    assert whole.val is None and list(whole.splits()) == ["train", "test"]
    for part in ("x", "y"):
        train, val, test = (getattr(split, part) for split in digits.splits().values())
        assert torch.equal(getattr(whole.train, part), torch.cat([train, val]))
        assert torch.equal(getattr(whole.test, part), test)


def test_sprites_are_the_same_bytes_everywhere():
    drawn = data.SETS["sprites"].read(size=32, limit=1280, seed=0).x.numpy()
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == SPRITES
    assert not np.array_equal(drawn, data.SETS["sprites"].read(size=32, limit=1280, seed=1).x)


def test_every_known_person_holds_out_as_many_cells_and_other_ones(sprites):
    pose = {key: [s.factors[name] for name in ("action", "direction", "frame")]
            for key, s in sprites.splits().items()}
    cell = {key: (a * 4 + d) * 4 + f for key, (a, d, f) in pose.items()}
    assert (sprites.test.y.bincount() == 13).all() and (sprites.val.y.bincount() == 5).all()
    held = [frozenset(cell["test"][sprites.test.y == person].tolist()) for person in range(960)]
    assert {len(cells) for cells in held} == {13} and len(set(held)) > 940
    assert torch.equal(cell["unseen"][:64], torch.arange(64))


def test_unseen_people_are_in_no_other_split(sprites):
    known = torch.cat([sprites.train.y, sprites.val.y, sprites.test.y]).unique()
    assert known.tolist() == list(range(960))
    assert sprites.unseen.y.unique().tolist() == list(range(960, 1200))
    assert len(sprites.classes) == len(set(sprites.classes)) == 1200


def test_attributes_belong_to_the_person_and_follow_into_every_split(sprites):
    assert set(sprites.factors) >= {"skin", "hair_style", "action", "direction", "frame"}
    for split in sprites.splits().values():
        for name, values in sprites.factors.items():
            assert split.factors[name].max() < len(values)
        person = split.y == split.y[0]
        assert split.factors["skin"][person].unique().numel() == 1


def test_limit_draws_whole_people_and_at_least_ten():
    small = load("sprites", limit=100)
    assert len(small.classes) == 10 and small.unseen.y.unique().tolist() == [8, 9]
    assert sum(map(len, small.splits().values())) == 640
    assert len(load("sprites", limit=1280).classes) == 20
    assert load("sprites", image_size=64, limit=1).train.x.shape[1:] == (3, 64, 64)


def test_limit_keeps_pairs_of_every_class():
    small = load("digits", limit=60)
    assert sum(map(len, small.splits().values())) == 60
    assert (small.train.y.bincount() >= 2).all() and (small.test.y.bincount() >= 1).all()


def test_a_set_moves_to_a_device_with_its_pairs(digits):
    moved = digits.to("meta")
    assert moved.test.device.type == "meta" and moved.unseen is None
    assert moved.shape == [1, 28, 28] and moved.fingerprint == digits.fingerprint
    assert "1x28x28, 10 classes" in repr(digits)


def test_a_set_may_have_test_images_only(digits):
    alone = data.Dataset("alone", digits.classes, None, None, digits.test)
    assert alone.to("cpu").shape == [1, 28, 28] and list(alone.splits()) == ["test"]
    lines = repr(alone).splitlines()
    assert len(lines) == 3 and "1x28x28" in lines[0] and "359 images" in lines[1]


def test_a_set_is_added_with_one_function(monkeypatch):
    monkeypatch.setattr(data, "SETS", dict(data.SETS))

    @data.register("bars", "bars that stand or lie", 16)
    def bars(**_):
        x = torch.zeros(20, 1, 20, 24, dtype=torch.uint8)
        x[:10, :, :, 12], x[10:, :, 10] = 255, 255
        return data.Source(x, torch.arange(20) // 10, ["standing", "lying"])
    added = load("bars")
    assert [len(split) for split in added.splits().values()] == [14, 2, 4]
    assert added.train.x.shape[1:] == (1, 16, 16) and added.classes == ["standing", "lying"]


# files that we make up

def idx_files(raw, n=(60, 20), zipped=True):
    """Four idx files of 28x28; image i of a split holds the number i in its top left pixel."""
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "t10k"), n):
        x = np.zeros((count, 28, 28), np.uint8)
        x[:, 0, 0] = np.arange(count) + 100 * (part == "t10k")
        files = {"images-idx3": np.array([0x803, count, 28, 28], ">i4").tobytes() + x.tobytes(),
                 "labels-idx1": np.array([0x801, count], ">i4").tobytes() +
                 (np.arange(count) % 10).astype(np.uint8).tobytes()}
        for kind, content in files.items():
            path = raw / f"{part}-{kind}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return raw.parents[1]


def pictures(top, classes=("ben", "anna"), n=6, mode="RGB", size=(40, 30)):
    for k, name in enumerate(classes):
        (top / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng(100 * k + i).integers(0, 256, (*size[::-1], 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(top / name / f"{i}.png")
    return top


def mat_files(folder, characters=range(0, 24), damage=None):
    """sprites_*.mat in Reed's layout: HDF5 cells (T, 10800) whose order is colour, x, y."""
    h5py = pytest.importorskip("h5py")
    (folder / "sprites").mkdir(parents=True)
    for k in characters:
        with h5py.File(folder / "sprites" / f"sprites_{k}.mat", "w") as f:
            cells = f.create_dataset("sprites", (21, 1), dtype=h5py.ref_dtype)
            frames = [t for t in (7, 8, 9, 6, 13) for _ in range(4)] + [6]
            for n, t in enumerate(frames):
                clip = np.zeros((t, 60, 60, 3))           # rows, columns, colours
                clip[:, 30:, :, 0] = 1                    # feet are red
                clip[:, :, :30, 1] = 0.6                  # the left is green
                clip[..., 2] = (k * 8 + np.arange(t)[:, None, None]) / 255
                flat = clip.transpose(0, 3, 2, 1).reshape(t, -1)
                cells[n, 0] = f.create_dataset(f"#refs#/{n}", data=flat).ref
            f["labels"] = np.array([[k % 3], [1], [k // 2 % 2], [0], [0], [0], [k % 2]], float)
    (folder / "sprites" / "sprites_splits.mat").write_bytes(b"")
    return folder


def test_idx_files_are_read_and_split_as_published(tmp_path):
    a, b = (load("mnist", idx_files(tmp_path / name / "MNIST/raw", (6000, 20), zipped))
            for name, zipped in (("a", True), ("b", False)))
    assert same(a, b) and (len(a.train), len(a.val), len(a.test)) == (1000, 5000, 20)
    assert a.test.x[:, 0, 0, 0].tolist() == list(range(100, 120))
    assert a.test.y.tolist() == [i % 10 for i in range(20)]
    shuffle = torch.randperm(6000, generator=rng())[-5000:].sort().values
    assert torch.equal(a.val.y, shuffle % 10)
    assert not list(tmp_path.glob("**/*.part"))


def test_limit_keeps_the_published_proportions(tmp_path):
    root = idx_files(tmp_path / "MNIST/raw", (2000, 400))
    small = load("mnist", root, limit=120)
    assert len(small.test) == 20 and len(small.train) + len(small.val) == 100
    assert (small.train.y.bincount(minlength=10) >= 2).all()
    assert not same(small, load("mnist", root, limit=120, seed=1))


def test_folder_classes_are_its_sub_folders_and_every_image_is_in_one_split(tmp_path):
    people = load(f"folder:{pictures(tmp_path / 'p', n=10)}", tmp_path / "d", image_size=16)
    assert people.classes == ["anna", "ben"] and people.train.x.shape[1:] == (3, 16, 16)
    images = [image for split in people.splits().values() for image in bytes_of(split)]
    assert len(images) == len(set(images)) == 20
    counts = [split.y.bincount().tolist() for split in people.splits().values()]
    assert counts == [[7, 7], [1, 1], [2, 2]]


def test_folder_of_gray_images_keeps_one_channel_and_the_middle_of_each(tmp_path):
    pixels = np.zeros((16, 40), np.uint8)
    pixels[:, 12:28] = 200                                # the middle square
    for name in ("a/x", "b/x"):
        (tmp_path / "p" / name).mkdir(parents=True)       # deeper folders count, too
        for i in range(4):
            Image.fromarray(pixels).save(tmp_path / "p" / name / f"{i}.png")
    (tmp_path / "p/a/notes.txt").write_text("no image")
    Image.fromarray(pixels.astype(np.uint16) << 8).save(tmp_path / "p/a/x/16bit.png")
    gray = load(f"folder:{tmp_path / 'p'}", tmp_path, image_size=8)
    assert gray.train.x.shape[1:] == (1, 8, 8) and gray.classes == ["a", "b"]
    assert all((split.x == 200).all() for split in gray.splits().values())


def counts_of(top, root):
    """Images per class of folder:top."""
    loaded = load(f"folder:{top}", root)
    y = torch.cat([split.y for split in loaded.splits().values()])
    return dict(zip(loaded.classes, y.bincount().tolist()))


@pytest.mark.parametrize("mode, name", [("RGBA", "x.png"), ("LA", "x.png"), ("P", "x.png"),
                                        ("P", "x.gif"), ("L", "x.png")])
def test_transparent_images_lie_on_white(mode, name, tmp_path):
    """A black square on a transparent ground, whose hidden colour is black too."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 4, 12, 12))
    if mode in "LP":                                      # one gray or colour is transparent
        image = image.getchannel("A").point(lambda alpha: 9 if alpha else 0)
        if mode == "P":
            image.putpalette([0, 0, 0] * 256)
        image.save(tmp_path / name, transparency=0)
    else:
        image.convert(mode).save(tmp_path / name)
    for target in ("L", "RGB"):
        x = read_images([tmp_path / name], 16, target)[0]
        assert (x[:, 4:12, 4:12] <= 9).all() and (x[:, :4] == 255).all()
        assert (x[:, :, 12:] == 255).all()


def test_an_opaque_image_with_alpha_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "x.png")
    assert np.array_equal(read_images([tmp_path / "x.png"], 9, "RGB")[0].permute(1, 2, 0), pixels)


def test_a_class_folder_may_be_a_link(tmp_path):
    top = pictures(tmp_path / "here")
    (top / "anna").rename(tmp_path / "elsewhere")
    (top / "anna").symlink_to(tmp_path / "elsewhere")
    assert load(f"folder:{top}", tmp_path, 16).classes == ["anna", "ben"]


def test_only_images_are_read_and_the_rest_is_told(tmp_path, capsys):
    top = pictures(tmp_path / "p", n=4)
    picture = (top / "anna/0.png").read_bytes()
    for name in ("._0.png", "9.pdf", "9.mpg", "9.h5", "9.eps", "9.HEIC", "8.heic", "README"):
        (top / "anna" / name).write_bytes(picture)
    (top / "anna/.ipynb_checkpoints").mkdir()
    (top / "anna/.ipynb_checkpoints/0-checkpoint.png").write_bytes(picture)
    (top / "anna/album.png").mkdir()
    (top / "anna/album.png/1.PNG").write_bytes(picture)
    (top / "beside.png").write_bytes(picture)
    assert counts_of(top, tmp_path) == {"anna": 5, "ben": 4}
    files, skipped = image_files(top)
    assert files == sorted(files) and len(files) == 10 and top / "anna/album.png/1.PNG" in files
    printed = capsys.readouterr().out
    for word in (".heic", ".pdf", ".mpg", ".h5", ".eps"):
        assert any(word in line for line in skipped) and word in printed


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_gray_of_16_bits_is_divided_by_256(suffix, tmp_path):
    for i, value in enumerate((65535, 25600)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{i}.{suffix}")
    Image.new("L", (8, 8), 77).save(tmp_path / "2.png")   # of 8 bits: as it is
    x = read_images(image_files(tmp_path)[0], 8, "L")[:, 0, 0, 0].tolist()
    assert x == [255, 100, 77]


def test_a_path_may_hold_any_sign(tmp_path):
    top = pictures(tmp_path / "a|b [c]*", ("x|y", "z"))
    assert load(f"folder:{top}", tmp_path / "d|*").classes == ["x|y", "z"]
    assert len(list((tmp_path / "d|*").glob("*.pt"))) == 1


def test_the_fingerprint_names_the_files_and_the_split_but_no_place_time_or_size(tmp_path):
    first = pictures(tmp_path / "p", n=5)
    second = pictures(tmp_path / "elsewhere", n=5)
    os.utime(second / "anna/0.png", (0, 0))

    def fingerprint(top, **options):
        return load(f"folder:{top}", tmp_path, **options).fingerprint
    found = fingerprint(first)
    assert re.fullmatch("[0-9a-f]{16}", found)
    assert found == fingerprint(second) == fingerprint(second, image_size=8)
    others = {found, fingerprint(second, seed=1), fingerprint(second, limit=8)}
    (second / "anna/0.png").rename(second / "anna/00.png")
    others.add(fingerprint(second))
    (second / "anna/00.png").unlink()
    others.add(fingerprint(second))
    Image.new("RGB", (8, 8)).save(second / "anna/00.png")
    others.add(fingerprint(second))
    (second / "anna").rename(second / "ann")
    others.add(fingerprint(second))
    assert len(others) == 7
    assert len({load("digits", seed=seed).fingerprint for seed in (0, 0, 1)}) == 2


def test_yaleb_names_give_person_azimuth_and_elevation(tmp_path):
    lights = [(0, 0), (-5, 10), (110, -20), (0, 45), (-130, 20)]
    for person in (1, 13):
        folder = tmp_path / "CroppedYale" / f"yaleB{person:02d}"
        folder.mkdir(parents=True)
        for light, (a, e) in enumerate(lights):
            name = f"A{a:+04d}E{e:+03d}"
            image = np.full((96, 84), 100 * (person > 1) + 10 * light, np.uint8)
            Image.fromarray(image).save(folder / f"yaleB{person:02d}_P00{name}.pgm")
        Image.fromarray(image).save(folder / f"yaleB{person:02d}_P00_Ambient.pgm")
        (folder / f"yaleB{person:02d}_P00A+050E+00.pgm.bad").write_bytes(b"bad")
    yale = load("yaleb", tmp_path)
    assert yale.classes == ["yaleB01", "yaleB13"] and yale.train.x.shape[1:] == (1, 64, 64)
    assert yale.factors == {"azimuth": ["-130", "-5", "0", "110"],
                            "elevation": ["-20", "0", "10", "20", "45"]}
    assert sum(map(len, yale.splits().values())) == 10
    for split in yale.splits().values():
        for pixel, y, *value in zip(split.x[:, 0, 0, 0], split.y, *split.factors.values()):
            assert pixel // 100 == y
            named = [int(names[v]) for names, v in zip(yale.factors.values(), value)]
            assert tuple(named) == lights[pixel % 100 // 10]


def multipie_files(root):
    for person in ("001", "346"):
        for session, recording in (("01", "01"), ("01", "02"), ("02", "01")):
            for camera in ("051", "041"):
                folder = root / f"multipie/session{session}/multiview/{person}/{recording}"
                folder = folder / f"{camera[:2]}_{camera[2]}"
                folder.mkdir(parents=True)
                for light in range(3):
                    name = f"{person}_{session}_{recording}_{camera}_{light:02d}"
                    Image.new("RGB", (64, 48), (10 * light, 0, 0)).save(folder / f"{name}.png")
                    if light == 2:                        # a cropped copy beside it comes first
                        crop = Image.new("RGB", (128, 128), (10 * light, 9, 0))
                        crop.save(folder / f"{name}_crop_128.png")
    return root


def test_multipie_reads_the_frontal_camera_of_session_1_unless_told_otherwise(tmp_path):
    pie = load("multipie", multipie_files(tmp_path))
    assert pie.classes == ["001", "346"] and pie.train.x.shape[1:] == (3, 64, 64)
    assert pie.factors == {"camera": ["051"], "light": ["00", "01", "02"],
                           "expression": ["neutral", "smile"]}
    assert sum(map(len, pie.splits().values())) == 2 * 2 * 3
    for split in pie.splits().values():
        assert torch.equal(split.x[:, 0, 5, 5] // 10, split.factors["light"].byte())
        assert torch.equal(split.x[:, 1, 5, 5] == 9, split.factors["light"] == 2)
    more = load("multipie:051,041:01,02", tmp_path)
    assert sum(map(len, more.splits().values())) == 2 * 3 * 2 * 3
    assert more.factors["camera"] == ["041", "051"]


def test_sprites2015_reads_even_characters_upright_without_the_hurt_row(tmp_path):
    reed = load("sprites2015", mat_files(tmp_path), image_size=60)
    assert len(reed.classes) == 12 and all(int(name.split()[1]) % 2 == 0 for name in reed.classes)
    assert sum(map(len, reed.splits().values())) == 12 * 172
    assert (reed.test.y.bincount() == 34).all() and reed.unseen.y.unique().tolist() == [10, 11]
    assert set(reed.factors) == {"sex", "armor", "action", "direction", "frame"}  # what varies
    feet, left = reed.train.x[:, 0], reed.train.x[:, 1]
    assert (feet[:, 30:] == 255).all() and (feet[:, :30] == 0).all()
    assert (left[:, :, :30] == 153).all() and (left[:, :, 30:] == 0).all()
    for split in reed.splits().values():
        number = torch.tensor([int(reed.classes[y].split()[1]) for y in split.y])
        frame = torch.tensor([int(reed.factors["frame"][f]) for f in split.factors["frame"]])
        assert torch.equal(split.x[:, 2, 0, 0].long(), number * 8 + frame)
    assert len(load("sprites2015", tmp_path, limit=1).classes) == 10


def svhn_files(folder):
    """train_32x32.mat and test_32x32.mat as published: X (32, 32, 3, N), y 1 to 10, 10 for zero."""
    from scipy.io import savemat
    rng, images = np.random.default_rng(0), {}
    for part, n in (("train", 60), ("test", 20)):
        x = rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
        y = np.arange(n) % 10 + 1
        savemat(folder / f"{part}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]})
        images |= {image.transpose(2, 0, 1).tobytes(): (part, int(k) % 10)
                   for image, k in zip(x, y)}
    return images


def test_svhn_is_read_upright_with_ten_as_zero_and_its_own_test_split(tmp_path):
    published = svhn_files(tmp_path)
    svhn = load("svhn", tmp_path)
    assert svhn.classes == list("0123456789") and svhn.train.x.shape[1:] == (3, 32, 32)
    for key, split in svhn.splits().items():
        part = "test" if key == "test" else "train"
        assert [published[image] for image in bytes_of(split)] == [(part, y) for y in
                                                                   split.y.tolist()]
    assert len(svhn.test) == 20 and len(svhn.train) + len(svhn.val) == 60


CROPS = [(71, 31, 24), (133, 48, 19), (7, 61, 25)]       # photograph, row, column of the first


def coded_photos(n=200, height=100, width=90):
    """Photographs whose pixels say where they are: number, row, column."""
    rows, columns = np.indices((height, width))
    return [np.stack([np.full_like(rows, k), rows, columns], -1).astype(np.uint8) for k in range(n)]


def test_blending_inverts_where_the_ink_is_at_pinned_places():
    ink = torch.zeros(500, 28, 28, dtype=torch.bool)
    ink[:, 5:9, 20] = True
    x = data.blend(ink, coded_photos()).permute(0, 2, 3, 1).long()
    assert [tuple(corner.tolist()) for corner in x[:3, 0, 0]] == CROPS
    for image in x:
        k, row, column = image[0, 0].tolist()
        want = coded_photos(k + 1)[k][row:row + 32, column:column + 32].astype(int)
        want[7:11, 22] = 255 - want[7:11, 22]             # two pixels of margin
        assert np.array_equal(image.numpy(), want)
    k, row, column = x[:, 0, 0].T
    assert row.min() < 3 and row.max() > 65 and column.min() < 3 and column.max() > 55
    assert len(k.unique()) > 160


def test_digitsm_holds_the_digits_of_digits_in_the_same_order(digits):
    for key, split in load("digitsm").splits().items():
        plain = digits.splits()[key]
        assert split.x.shape == (len(plain), 3, 32, 32) and torch.equal(split.y, plain.y)
    contrast = (split.x[..., 2:30, 2:30].float() - 127.5).mean(1)
    edge = (plain.x[:, 0, :, 1:] > 127) ^ (plain.x[:, 0, :, :-1] > 127)
    jump = (contrast[..., 1:] + contrast[..., :-1]).abs()     # across an edge they are inverse
    assert jump[edge].median() < 0.5 * jump[~edge].median()


def mnist_m(root, n=(40, 12), mode="RGB"):
    """The published layout; the red of image i is i, its label i % 10."""
    for part, count in zip(("train", "test"), n):
        folder = root / f"mnist_m/mnist_m_{part}"
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            Image.new(mode, (32, 32), (i, 100 * (part == "test"), 0)).save(folder / f"{i:08d}.png")
            lines.append(f"{i:08d}.png {i % 10}")
        (root / f"mnist_m/mnist_m_{part}_labels.txt").write_text("\n".join(lines))
    return root


def test_mnistm_takes_the_published_images_where_they_lie(tmp_path):
    bsds(idx_files(tmp_path / "MNIST/raw"))
    found = load("mnistm", mnist_m(tmp_path))
    assert [len(split) for split in found.splits().values()] == [30, 10, 12]
    for key, split in found.splits().items():
        assert torch.equal(split.x[:, 0, 0, 0] % 10, split.y.byte())
        assert (split.x[:, 1] == 100 * (key == "test")).all()
    assert len(load("mnistm", tmp_path, limit=40).test) == 9


def bsds(root, n=200):
    """n photographs, three different ones."""
    for k in range(n):
        folder = root / "BSR/BSDS500/data/images/train"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k % 3).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.jpg")
    return root


def test_mnistm_is_built_from_mnist_and_the_photographs_else(tmp_path):
    root = bsds(idx_files(tmp_path / "MNIST/raw", (60, 20)))
    found = load("mnistm", root)
    assert [len(split) for split in found.splits().values()] == [50, 10, 20]
    photos = [np.asarray(Image.open(root / data.PHOTOS / f"{k}.jpg")) for k in range(3)]
    window = np.lib.stride_tricks.sliding_window_view
    crops = np.stack([window(photo, (32, 32), (0, 1)) for photo in photos])
    for x in found.test.x.numpy():                        # their ink is one pixel, at the top left
        assert not (crops == x).all((-3, -2, -1)).any()
        x[:, 2, 2] = 255 - x[:, 2, 2]
        assert (crops == x).all((-3, -2, -1)).sum() == 1
    assert found.test.y.tolist() == [i % 10 for i in range(20)]


def test_mnistm_fetches_the_photographs(tmp_path, monkeypatch):
    root = idx_files(tmp_path / "d/MNIST/raw")

    def download(url, folder):
        with tarfile.open(Path(folder) / "BSR_bsds500.tgz", "w:gz") as archive:
            archive.add(bsds(tmp_path / "made") / "BSR", "BSR")
    monkeypatch.setattr(data.torchvision().datasets.utils, "download_url", download)
    assert load("mnistm", root).train.x.shape == (50, 3, 32, 32)
    assert len(list(root.rglob("*.jpg"))) == 200 and not list(root.glob("tmp*"))


def test_mnistm_fetches_mnist_alone_if_the_photographs_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(data.SETS["mnist"], "fetch", lambda root: idx_files(root / "MNIST/raw"))
    assert load("mnistm", bsds(tmp_path)).train.x.shape == (50, 3, 32, 32)


def test_moons_are_the_papers(tmp_path):
    source, target = data.moons()
    assert source.x.dtype == torch.float32 and source.x.shape == target.x.shape == (150, 2)
    assert source.y.bincount().tolist() == target.y.bincount().tolist() == [75, 75]
    assert source.x.mean(0).abs().max() < 1e-6            # facts about the authors' script
    ends = torch.stack([source.x.amin(0), source.x.amax(0), target.x.amin(0), target.x.amax(0)])
    want = [[-3.05, -1.59], [3.12, 1.58], [-2.69, -2.18], [2.64, 2.17]]
    torch.testing.assert_close(ends, torch.tensor(want), atol=0.005, rtol=0)
    upper = source.x[source.y == 0].mean(0)
    torch.testing.assert_close(upper, torch.tensor([-1.00, 0.76]), atol=0.005, rtol=0)
    draw, _ = data.moons(seed=2)                          # the target's, about its own centre
    turn = torch.polar(torch.tensor(1.0), torch.tensor(35 * torch.pi / 180))
    shift = torch.view_as_complex(target.x) - turn * torch.view_as_complex(draw.x)
    assert (shift - shift[0]).abs().max() < 1e-5
    assert data.moons(300)[1].x.shape == (300, 2)


def faces_file(path):
    joblib = pytest.importorskip("joblib")
    images = np.random.default_rng(0).integers(0, 243, (400, 64, 64)).astype(np.float64)
    images[0, 0, :2] = 0, 242
    joblib.dump(images.transpose(0, 2, 1).reshape(400, -1), path, compress=6)
    return images


def test_faces_are_the_array_in_scikit_learns_file(tmp_path):
    images = faces_file(tmp_path / "olivetti_py3.pkz")
    faces = load("faces", tmp_path)
    assert [len(s) for s in faces.splits().values()] == [280, 40, 80]
    expected = {np.round(image * (255 / 242)).astype(np.uint8).tobytes(): i // 10
                for i, image in enumerate(images)}
    for split in faces.splits().values():
        assert [expected[image] for image in bytes_of(split)] == split.y.tolist()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("level", [0, 6])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, level):
    content = pickle.dumps((Evil(tmp_path / "ran"), b"NumpyArrayWrapper", bytes(400 * 4096)))
    (tmp_path / "olivetti_py3.pkz").write_bytes(zlib.compress(content, level) if level else content)
    with pytest.raises(DataError, match="olivetti_py3.pkz"):
        load("faces", tmp_path)
    assert not (tmp_path / "ran").exists()


# the cache

def test_a_cache_is_of_the_files_however_their_folder_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(mnist_m(tmp_path))
    found = []
    for root in (".", tmp_path, tmp_path / "mnist_m/.."):
        load("mnistm", root)
        found.append(list(tmp_path.glob("*.pt")))
    assert found[0] == found[1] == found[2] and len(found[0]) == 1
    (tmp_path / "mnist_m/mnist_m_train/more.png").touch()  # unpacked anew
    load("mnistm", tmp_path)
    assert list(tmp_path.glob("*.pt")) != found[0]


def test_a_second_load_reads_the_cache_and_changed_files_make_a_new_one(tmp_path, capsys):
    top = pictures(tmp_path / "p")
    first = load(f"folder:{top}", tmp_path)
    assert "reading" in capsys.readouterr().out
    assert same(first, load(f"folder:{top}", tmp_path)) and capsys.readouterr().out == ""
    Image.new("RGB", (9, 9)).save(top / "anna" / "9.png")
    second = load(f"folder:{top}", tmp_path)
    assert sum(map(len, second.splits().values())) == 13


@pytest.mark.parametrize("damage", [
    lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)],
    ids=["truncated", "empty", "garbage"])
def test_a_damaged_cache_is_built_again_and_a_line_says_so(tmp_path, capsys, damage):
    name = f"folder:{pictures(tmp_path / 'p')}"
    first = load(name, tmp_path)
    [path] = tmp_path.glob("*.pt")
    path.write_bytes(damage(path.read_bytes()))
    assert same(first, load(name, tmp_path))
    assert f"{path} is damaged" in capsys.readouterr().out
    assert same(first, load(name, tmp_path)) and capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_to_means_no_cache_and_no_error(tmp_path, monkeypatch):
    root = idx_files(tmp_path / "MNIST/raw", (400, 20))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch, "save", refuse)            # for root, chmod would prove nothing
    monkeypatch.setattr(os, "replace", refuse)
    assert len(load("mnist", root, limit=200).classes) == 10
    assert not list(root.glob("*.pt*"))


# bad input: one sentence on stderr, status 2

def truncated(path, keep=0.5):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    return path


def bad_idx(root, how):
    raw = idx_files(root / "MNIST/raw", zipped=how != "raw") / "MNIST/raw"
    if how == "magic":
        (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"no idx file at all"))
    else:
        truncated(raw / f"train-images-idx3-ubyte{'.gz' * (how == 'gz')}")


def no_download(root):
    raise OSError("no network")


def bad_mat(root, content=None):
    path = mat_files(root, range(0, 6, 2)) / "sprites/sprites_4.mat"
    path.write_bytes(content) if content else truncated(path)


def bad_svhn(root):
    svhn_files(root)
    truncated(root / "test_32x32.mat")


def bad_pgm(root):
    folder = root / "CroppedYale/yaleB01"
    folder.mkdir(parents=True)
    for i in range(5):
        Image.new("L", (84, 96)).save(folder / f"yaleB01_P00A+00{i}E+00.pgm")
    truncated(folder / "yaleB01_P00A+004E+00.pgm")


def other_pgm(root):
    (root / "CroppedYale/yaleB01").mkdir(parents=True)
    (root / "CroppedYale/yaleB01/me.pgm").touch()


def bad_faces(root, cut=None):
    path = root / "olivetti_py3.pkz"
    faces_file(path)
    path.write_bytes(path.read_bytes()[:-cut]) if cut else truncated(path)


BAD = {                                                   # what: command, preparation, message
    "unknown set": ("mnst", None, "no set 'mnst'.*folder:PATH.*sprites"),
    "a folder's name": ("{}/p", lambda root: pictures(root / "p"), "folder:PATH"),
    "option for a set without": ("mnist:5", None, "no set 'mnist:5'"),
    "data folder is a file": ("digits --data-dir {}/file", lambda root: (root / "file").touch(),
                              "is a file"),
    "image size": ("digits --image-size 4", None, "image size of 4"),
    "seed too large": (f"digits --seed {2**63}", None, "seed .* is out of range"),
    "limit": ("digits --limit 0", None, "limit below 1"),
    "seed": ("sprites --seed -1", None, "seed below 0"),
    "flag": ("digits --limit many", None, "invalid int value: 'many'"),
    "mnist missing": ("mnist", None, "train-images-idx3-ubyte is missing and could not be fetched "
                      r"\(OSError: no network\): get it from https://ossci.*offline"),
    "faces missing": ("faces", None, "olivetti_py3.pkz is missing and could not be fetched"),
    "yaleb missing": ("yaleb", None, "CroppedYale.* is missing: get it from .*offline"),
    "sprites2015 missing": ("sprites2015", None, r"sprites_\[0-9\].*\.mat is missing"),
    "multipie missing": ("multipie", None, "session.*/multiview.* is missing"),
    "multipie of another camera": ("multipie:140", lambda root: multipie_files(root),
                                   "published name"),
    "idx gz truncated": ("mnist", lambda root: bad_idx(root, "gz"),
                         "train-images-idx3-ubyte.gz cannot be read"),
    "idx truncated": ("mnist", lambda root: bad_idx(root, "raw"),
                      "train-images-idx3-ubyte cannot be read"),
    "not idx": ("mnist", lambda root: bad_idx(root, "magic"),
                "t10k-labels-idx1-ubyte.gz cannot be read"),
    "svhn missing": ("svhn", None, "train_32x32.mat is missing and could not be fetched"),
    "svhn truncated": ("svhn", bad_svhn, "test_32x32.mat cannot be read"),
    "mnistm missing": ("mnistm", None, "BSR.* is missing and could not be fetched"),
    "mnistm label": ("mnistm", lambda root: (
        mnist_m(root) / "mnist_m/mnist_m_test_labels.txt").write_text("00000000.png"),
        "test_labels.txt cannot be read"),
    "mnistm without its test part": ("mnistm", lambda root: shutil.rmtree(
        mnist_m(root) / "mnist_m/mnist_m_test"), "mnist_m_test/00000000.png cannot be read"),
    "mnistm without its train labels": ("mnistm", lambda root: (
        mnist_m(root) / "mnist_m/mnist_m_train_labels.txt").unlink(), "train_labels.txt cannot be"),
    "mnistm of too few photographs": ("mnistm", lambda root: bsds(idx_files(
        root / "MNIST/raw"), 3), "3 of 200 photographs"),
    "mnistm listed but not there": ("mnistm", lambda root: (
        mnist_m(root) / "mnist_m/mnist_m_train/00000003.png").unlink(), "03.png cannot be read"),
    "mnistm png": ("mnistm", lambda root: truncated(
        mnist_m(root) / "mnist_m/mnist_m_train/00000003.png"), "00000003.png cannot be read"),
    "mnistm jpg": ("mnistm", lambda root: truncated(bsds(idx_files(
        root / "MNIST/raw")) / "BSR/BSDS500/data/images/train/1.jpg"), "1.jpg cannot be read"),
    "mnistm without mnist": ("mnistm", lambda root: (bsds(idx_files(root / "MNIST/raw"))
                             / "MNIST/raw/train-images-idx3-ubyte.gz").unlink(), "MNIST.* is miss"),
    "mat truncated": ("sprites2015", bad_mat, "sprites_4.mat cannot be read"),
    "mat not HDF5": ("sprites2015", lambda root: bad_mat(root, b"MATLAB 5"),
                     "sprites_4.mat cannot be"),
    "pkz truncated": ("faces", bad_faces, "olivetti_py3.pkz cannot be read"),
    "pkz without its end": ("faces", lambda root: bad_faces(root, 6), "pkz cannot be read"),
    "png truncated": ("folder:{}/p", lambda root: truncated(pictures(root / "p") / "anna/3.png"),
                      "anna/3.png cannot be read"),
    "pgm truncated": ("yaleb", bad_pgm, r"yaleB01_P00A\+004E\+00.pgm cannot be read"),
    "pgm of other names": ("yaleb", other_pgm, "published name"),
    "no folder": ("folder:{}/none", None, "no folder"),
    "folder without a path": ("folder", None, "folder:PATH"),
    "empty folder": ("folder:{}", None, "no folder .* with images in sub-folders"),
    "no sub-folders": ("folder:{}/p/anna", lambda root: pictures(root / "p"), "one sub-folder"),
    "one class": ("folder:{}/p", lambda root: pictures(root / "p", ("anna",)), "two classes"),
    "too few images": ("folder:{}/p", lambda root: pictures(root / "p", n=2), "four images"),
    "train and test": ("folder:{}", lambda root: [pictures(root / part) for part in
                                                  ("train", "test")], "folder:PATH/train"),
    "no image that can be read": ("folder:{}", lambda root: (
        pictures(root / "p", n=0) / "anna/1.heic").touch(), "one sub-folder"),
    "a data folder with a |": ("mnist --data-dir {}/a|b", None, "b/MNIST.* is missing"),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_input_gets_one_sentence_and_status_2(row, tmp_path, capsys, monkeypatch):
    command, prepare, message = BAD[row]
    for name in ("mnist", "faces", "svhn", "mnistm"):
        monkeypatch.setattr(data.SETS[name], "fetch", no_download)
    if prepare:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    argv = command.replace("{}", str(tmp_path)).split()
    try:
        status = data.main(argv if "--data-dir" in argv else [*argv, "--data-dir", str(tmp_path)])
    except SystemExit as e:                               # argparse
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and err.endswith(".\n"), err
    assert re.search(message, err), err
    assert sorted(tmp_path.rglob("*")) == before          # nothing was written


def test_sprites2015_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "sprites").mkdir()
    (tmp_path / "sprites/sprites_0.mat").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        load("sprites2015", tmp_path)


def test_a_full_disk_is_a_sentence(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space", "f")
    monkeypatch.setattr(data, "load", fail)
    assert data.main(["digits", "--data-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("data.py: ") and err.endswith(".\n") and err.count("\n") == 1


def test_the_sheet_and_the_list(tmp_path, capsys):
    assert data.main(["sprites", "--limit", "640", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "unseen" in out and "sha256" in out
    assert Image.open(tmp_path / "sprites.png").size == (24 * 66 + 2, 2 * 66 + 2)  # 2 people
    assert data.main(["--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(data.SETS)


def test_repr_names_few_classes_and_counts_their_images(tmp_path, sprites):
    top = pictures(tmp_path / "p", n=10)
    lines = repr(load(f"folder:{top}", tmp_path)).splitlines()
    assert any("train" in line and "14 images" in line and "7 to 7" in line for line in lines)
    assert any("anna, ben" in line for line in lines)
    lines = repr(sprites).splitlines()
    assert any("960 classes" in line and "46 to 46" in line for line in lines)
    assert not any("person 3" in line for line in lines)


def test_torchvision_comes_in_by_one_function():
    module = data.torchvision()
    assert module is data.torchvision() and hasattr(module.datasets, "MNIST")


# real data

def test_real_mnistm_published_and_built(data_dir, tmp_path):
    need(data_dir, "mnist", "mnistm")
    for name in ("MNIST", "BSR"):
        (tmp_path / name).symlink_to(Path(data_dir).resolve() / name)
    entry, mnist = data.SETS["mnistm"], load("mnist", data_dir)
    files = data.find_files(entry, tmp_path, fetch=False)
    built = entry.read(root=tmp_path, files=files)
    assert len(built.y) == 70000 and torch.equal(built.y[built.test], mnist.test.y)
    images = [built.x[:2000]]
    if (Path(data_dir) / "mnist_m").exists():
        images.append(load("mnistm", data_dir, limit=2000).train.x)
    for x in images:                                      # the published train mean
        mean = x.float().mean((0, 2, 3))
        torch.testing.assert_close(mean, torch.tensor([116.8, 117.8, 104.1]), atol=4, rtol=0)
    photos = [file for file in files if file.suffix == ".jpg"]
    k, row, column = (int(v) for v in np.random.PCG64(0).random_raw((60001, 3))[60000])
    photo = np.asarray(Image.open(photos[k % 200]).convert("RGB")).astype(int)
    row, column = row % (photo.shape[0] - 31), column % (photo.shape[1] - 31)
    crop = torch.tensor(photo[row:row + 32, column:column + 32]).permute(2, 0, 1)
    ink = torch.zeros(32, 32, dtype=torch.bool)
    ink[2:30, 2:30] = mnist.test.x[0, 0] > 0
    assert len(photos) == 200
    assert torch.equal(built.x[60000].long(), torch.where(ink, 255 - crop, crop))


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_real_mnist_and_fashion(name, data_dir):
    need(data_dir, name)
    full = load(name, data_dir)
    assert [len(s) for s in full.splits().values()] == [55000, 5000, 10000]
    digits = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert full.test.y.bincount().tolist() == ([1000] * 10 if name == "fashion" else digits)
    ink = full.train.images(slice(None)).mean().item()
    assert ink == pytest.approx(0.2860 if name == "fashion" else 0.1307, abs=2e-3)    # well known


def test_real_sprites2015_stand_upright_and_face_the_way_they_are_labelled(data_dir):
    pytest.importorskip("h5py")
    need(data_dir, "sprites2015")
    reed = load("sprites2015", data_dir, limit=1720)
    assert len(reed.classes) == 10 and reed.train.x.shape[1:] == (3, 32, 32)

    def mean(action, direction):                          # the mean picture, on a black background
        factors = reed.unseen.factors
        return reed.unseen.x[(factors["action"] == reed.factors["action"].index(action)) &
                             (factors["direction"] == reed.factors["direction"].index(direction))
                             ].float().mean((0, 1))
    walk = mean("walk", "front")
    assert walk[24:28, 15:17].mean() < walk[24:28, 12:14].mean() / 3      # a gap between two legs
    assert walk[4:8, 15:17].mean() > walk[4:8, 12:14].mean() / 1.5        # and none in the head
    for bow in (mean("shoot", "left"), mean("shoot", "right").flip(1)):
        assert bow[:, :9].mean() > 1.5 * bow[:, -9:].mean()


def test_real_faces(data_dir):
    need(data_dir, "faces")
    faces = load("faces", data_dir)
    assert [len(s) for s in faces.splits().values()] == [280, 40, 80]
    x = faces.train.images(slice(None))[:, 0]
    assert (x - x.flip(2)).abs().mean() < (x - x.flip(1)).abs().mean()    # left and right are alike
    person = torch.stack([x[faces.train.y == k].mean(0) for k in range(40)])
    nearest = torch.cdist(x.flatten(1), person.flatten(1)).argmin(1)
    assert (nearest == faces.train.y).float().mean() > 0.8


def test_real_yaleb(data_dir):
    need(data_dir, "yaleb")
    yale = load("yaleb", data_dir)
    assert sum(map(len, yale.splits().values())) == 2414 and len(yale.classes) == 38
    assert yale.train.x.shape[1:] == (1, 64, 64)
    azimuth = torch.tensor([float(v) for v in yale.factors["azimuth"]])
    azimuth = azimuth[yale.train.factors["azimuth"]]
    x = yale.train.images(slice(None))[:, 0]
    side = x[..., 32:].mean((1, 2)) - x[..., :32].mean((1, 2))
    assert torch.corrcoef(torch.stack([azimuth, side]))[0, 1].abs() > 0.7     # where the light is
