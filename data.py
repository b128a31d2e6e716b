"""Image sets, whole and in memory: a uint8 tensor a split; batches and same-class pairs by gather.

    python data.py                       list the sets, and whether each is there already
    python data.py yaleb --data-dir D    fetch or build one in D; shapes, counts, a contact sheet

    faces = load("yaleb", "data", image_size=64).to("cuda").train
    for index in batches(faces, 32, rng):                        # (32,)
        x = faces.images(index)                                  # (32, 1, 64, 64) in [0, 1]
        partner = faces.images(pairs(faces, index, rng))         # other images of the same people

A set goes to the device once; a batch is one gather and one conversion to float there. Same seed,
same splits on every machine. A set is one function with the decorator `image_set`.
"""
import argparse
import contextlib
import functools
import glob
import gzip
import hashlib
import importlib.util
import os
import re
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


class DataError(Exception):
    """Bad input; the message is one sentence that says what to do. Scripts print it and exit 2."""


# What a script sees

@dataclass
class Split:
    """x uint8 (N, C, H, W); y int64 (N,), the class; factors: name -> int64 (N,)."""
    x: torch.Tensor
    y: torch.Tensor
    factors: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.y)

    def to(self, device):
        factors = {name: value.to(device) for name, value in self.factors.items()}
        return Split(self.x.to(device), self.y.to(device), factors)

    def images(self, index):
        """Images float32 (B, C, H, W) in [0, 1]; index (B,) on the split's device, or a slice."""
        return self.x[index].float().div_(255)

    def mean_image(self):
        """The mean of all images, float32 (C, H, W) in [0, 1]; all as floats would take four times
        the memory."""
        total = sum(x.sum(0, dtype=torch.int64) for x in self.x.split(500))
        return total / (255 * len(self))

    def of_class(self, name):
        """Whether a factor has one value a class, as a person's hair colour, unlike a pose."""
        f = self.factors[name]
        value = torch.zeros(int(self.y.max()) + 1, dtype=f.dtype, device=f.device)
        return bool((value.scatter(0, self.y, f)[self.y] == f).all())

    @functools.cached_property
    def by_class(self):
        return by_class(self.y)


@dataclass
class Dataset:
    """The splits (`val` None where it is left in train, `unseen` where every class is in train),
    the class names, and for every factor the names of its values."""
    name: str
    classes: list
    train: Split
    val: Split
    test: Split
    unseen: Split = None
    factors: dict = field(default_factory=dict)

    def splits(self):
        found = {key: getattr(self, key) for key in ("train", "val", "test", "unseen")}
        return {key: split for key, split in found.items() if split is not None}

    def to(self, device):
        return replace(self, **{key: split.to(device) for key, split in self.splits().items()})

    def __repr__(self):
        sizes = ", ".join(f"{len(split):,} {key}" for key, split in self.splits().items())
        shape = "x".join(map(str, self.train.x.shape[1:]))
        return f"{self.name}: {sizes}, {shape}, {len(self.classes)} classes"


def by_class(y):
    """The images sorted by class (N,), each class's first place there and its count (K,), and each
    image's rank within its class (N,)."""
    order = y.argsort(stable=True)
    count = y.bincount()
    first = count.cumsum(0) - count
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(y), device=y.device) - first[y[order]]
    return order, first, count, rank


def batches(split, size, generator):
    """Yields indices (size,) on the split's device, in a fresh permutation; drops the short
    remainder unless it is the only batch."""
    order = torch.randperm(len(split), generator=generator, device=generator.device)
    order = order.to(split.y.device)
    for i in range(0, max(len(order) - size, 0) + 1, size):
        yield order[i:i + size]


def pairs(split, index, generator):
    """A partner (B,) for every image of index (B,): another image of its class, all equally likely;
    the image itself only where its class has no other (`need_pairs` refuses such a set)."""
    order, first, count, rank = split.by_class
    y = split.y[index]
    high = 1 << (23 if generator.device.type == "mps" else 30)        # there % went by float32
    draw = torch.randint(high, y.shape, generator=generator, device=generator.device)
    step = 1 + draw.to(y.device) % (count[y] - 1).clamp(min=1)        # 1 to count - 1 places on
    return order[first[y] + (rank[index] + step) % count[y]]


def need_pairs(split, classes=None):
    """Raises DataError where a class of the split has a single image. classes: their names."""
    alone = (split.by_class[2] == 1).nonzero().flatten().tolist()
    if alone:
        raise DataError(f"Class {classes[alone[0]] if classes else alone[0]} has a single training "
                        "image and pairs need two: add images, leave it out or raise --limit.")


# load: read a set or take it from the cache, then split it

def load(name, data_dir="data", image_size=None, limit=None, seed=0, val=True):
    """The set `name` as a Dataset on the CPU; `python data.py` lists the names.

    image_size 8 to 256, else the set's own. limit: about so many images in all, whole people where
    a set has unseen ones. val=False leaves the validation images in train. Raises DataError for
    anything wrong with the arguments or the files."""
    kind, _, option = name.partition(":")
    root = Path(data_dir)
    if kind not in SETS or option and not SETS[kind].option:
        known = ", ".join(SETS).replace("folder", "folder:PATH")
        raise DataError(f"There is no set {name!r}: choose among {known}.")
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: give --data-dir a folder.")
    if image_size is not None and not 8 <= image_size <= 256:
        raise DataError(f"An image size of {image_size} is out of range: choose 8 to 256.")
    if limit is not None and limit < 1 or not 0 <= seed < 2**63:
        raise DataError("A limit below 1 or a seed below 0 or above 2^63 - 1 is out of range.")
    entry = SETS[kind]
    size = image_size or entry.size
    files = find_files(entry, root, option)
    made_from = [(os.path.abspath(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    made_from = hashlib.sha256(repr(made_from).encode() + Path(__file__).read_bytes()).hexdigest()
    stem = f"{file_name(name)}-{size}" + f"-{limit}-{seed}" * bool(limit)
    path = root / f"{stem}-{made_from[:10]}.pt"
    raw = read_cache(path) if entry.cache else None
    fresh = raw is None
    if fresh:
        if len(files) > 100:
            print(f"{name}: reading the images, this once", flush=True)
        source = entry.read(root=root, files=files, size=size, limit=limit, seed=seed,
                            option=option)
        if not 0 <= source.y.min() <= source.y.max() < len(source.classes):
            raise DataError(f"{name} holds a label that is none of its {len(source.classes)} "
                            f"classes: get it anew from {entry.source}.")
        index = torch.arange(len(source.y))
        if limit and limit < len(index) and not source.people:
            index = subset(source, limit, torch.Generator().manual_seed(seed))
        whole = len(index) == len(source.y)
        x = source.x(index) if callable(source.x) else source.x if whole else source.x[index]
        factors = {key: (names, value[index]) for key, (names, value) in source.factors.items()}
        raw = vars(source) | {"x": fit(x, size), "y": source.y[index], "factors": factors,
                              "test": None if source.test is None else source.test[index],
                              "val": source.val if whole else 0}
    y, classes, masks = split(name, raw, seed)
    if fresh and entry.cache:
        write_cache(path, stem, raw)
    return dataset(name, raw, y, classes, masks, val)


def subset(source, limit, rng):
    """Indices of a seeded subset of about `limit` images, train and test in proportion. Four train
    images of every class come first: two make a pair, one each may go to validation and test."""
    test = torch.zeros(len(source.y), dtype=torch.bool) if source.test is None else source.test
    picked = []
    for part in (~test, test):
        where = part.nonzero()[:, 0]
        where = where[torch.randperm(len(where), generator=rng)]
        late = by_class(source.y[where])[3] >= 4
        least = int((~late).sum()) if part is not test else 1
        picked.append(where[late.int().argsort(stable=True)]
                      [:max(round(limit * len(where) / len(test)), least)])
    return torch.cat(picked).sort().values


def cut(y, share, rng):
    """Mask (N,) of a seeded share of every class, one image or more, leaving two where it can."""
    shuffle = torch.randperm(len(y), generator=rng)
    _, _, count, rank = by_class(y[shuffle])
    count = count[y[shuffle]]
    held = torch.empty(len(y), dtype=torch.bool)
    held[shuffle] = rank < (share * count).round().long().clamp(min=1).minimum(count - 2)
    return held


def split(name, raw, seed):
    """The class (N,) of each image, the classes' names, and masks (N,) of train, val, test and
    unseen, cut from the seed."""
    rng, y, classes = torch.Generator().manual_seed(seed), raw["y"], raw["classes"]
    unseen = torch.zeros(len(y), dtype=torch.bool)
    if raw["people"]:                                     # known people are 0 .. K - 1, others K ..
        order, known = torch.randperm(len(classes), generator=rng), round(0.8 * len(classes))
        order = torch.cat([order[:known].sort().values, order[known:].sort().values])
        y, classes = order.argsort()[y], [classes[i] for i in order]
        unseen = y >= known
    test = (cut(y, 0.2, rng) if raw["test"] is None else raw["test"]) & ~unseen
    rest = (~test & ~unseen).nonzero()[:, 0]
    if raw["val"]:
        held = rest[torch.randperm(len(rest), generator=rng)[-raw["val"]:]]
    else:
        held = rest[cut(y[rest], 0.1, rng)]
    val = torch.zeros_like(test).index_fill(0, held, True)
    masks = {"train": ~(test | unseen | val), "val": val, "test": test, "unseen": unseen}
    if not raw["people"]:
        del masks["unseen"]
    if len(classes) < 2 or not all(mask.any() for mask in masks.values()):
        raise DataError(f"{name} is too small to split: give it two classes or more, and four "
                        "images or more of each.")
    return y, classes, masks


def dataset(name, raw, y, classes, masks, val):
    """The Dataset of these masks; its splits lie one behind the other in raw["x"]."""
    order = torch.cat([mask.nonzero()[:, 0] for mask in masks.values()])
    sizes = [int(mask.sum()) for mask in masks.values()]
    if not val:                                           # it follows train in `order`
        del masks["val"]
        sizes[:2] = [sum(sizes[:2])]
    arrange(raw["x"], order)
    parts = zip(raw["x"].split(sizes), y[order].split(sizes),
                *(value[order].split(sizes) for _, value in raw["factors"].values()))
    splits = {key: Split(x, y, dict(zip(raw["factors"], values)))
              for key, (x, y, *values) in zip(masks, parts)}
    names = {factor: names for factor, (names, _) in raw["factors"].items()}
    return Dataset(name, classes, factors=names, **{"val": None, **splits})


def arrange(x, order):
    """Puts x[order] in place of x, image by image along the cycles of `order`: a copy would take
    the memory of the set once more."""
    rows, order = x.numpy(), order.tolist()
    for start in range(len(order)):
        first, place = rows[start].copy(), start
        while order[place] != start:
            rows[place] = rows[order[place]]
            order[place], place = place, order[place]     # done: its own cycle
        rows[place], order[place] = first, place


def read_cache(path):
    """What write_cache saved; None where there is no such file, or, with a line, a damaged one."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:               # torch.load ignores its checksums
            sound = file.testzip() is None
        raw = torch.load(path, weights_only=True)
        if sound and len(raw["x"]) == len(raw["y"]) and raw["classes"]:
            return raw
    except Exception:                                     # damaged bytes raise anything
        pass
    print(f"{path} is damaged: building it again", flush=True)


def write_cache(path, stem, raw):
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(raw, part)
        os.replace(part, path)
        for old in set(path.parent.glob(f"{stem}-{'?' * 10}.pt")) - {path}:
            old.unlink(missing_ok=True)                   # made from other files or by older code
    except (OSError, RuntimeError):                       # read-only or full: go on without it
        with contextlib.suppress(OSError):
            part.unlink()


def file_name(name):
    return re.sub(r"[^\w-]+", "-", name)[-60:]


# How a set is read

SETS = {}                                                 # name -> image_set


@dataclass
class image_set:
    """Decorator that adds a set. The function takes root, files, size, limit, seed and option, or
    some of them and **_, and returns a Source.

    files: glob patterns in the data folder, all of which must match, or a function from the option
    to them; source: where they come from; fetch(root): downloads them; option: the name may go on
    after a colon; cache: reading takes so long that what was read is worth a file."""
    name: str
    about: str
    size: int
    files: object = ()
    source: str = ""
    fetch: object = None
    option: bool = False
    cache: bool = True

    def __call__(self, read):
        self.read = read
        SETS[self.name] = self
        return read


@dataclass
class Source:
    """x uint8 (N, C, H, W) of any size, whose order load changes, or, where files are many, a
    function from indices to that; y int64 (N,); test bool (N,), the published split; factors: name
    -> (names of the values, int64 (N,)); val: so many validation images in place of a tenth;
    people: a fifth of them is unseen."""
    x: object
    y: torch.Tensor
    classes: list
    test: torch.Tensor = None
    factors: dict = field(default_factory=dict)
    val: int = 0
    people: bool = False


def find_files(entry, root, option, fetch=True):
    """The files of a set, sorted, downloaded where they are missing and can be."""
    def search():                                         # alternatives stand between |
        return [sorted(Path(p) for part in pattern.split("|") for p in
                       glob.glob(os.path.join(glob.escape(str(root)), part), recursive=True)
                       if os.path.exists(p)) for pattern in patterns]

    patterns, why = entry.files(option) if callable(entry.files) else entry.files, ""
    found = search()
    if entry.fetch and fetch and not all(found):
        there = root.exists()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                entry.fetch(root)
        except DataError:                                 # of a set that this one is made from
            raise
        except Exception as e:                            # URLError, OSError, RuntimeError
            why = f" and could not be fetched ({str(e).strip().rpartition(chr(10))[2]})"
            for folder, *_ in os.walk(root, topdown=False) if not there else ():
                with contextlib.suppress(OSError):        # a mistyped --data-dir leaves no folders
                    os.rmdir(folder)
        found = search()
    for pattern, have in zip(patterns, found):
        if not have:
            missing = root / pattern.split("|")[0].rstrip("*")
            raise DataError(f"{missing} is missing{why}: get it from {entry.source} and put it "
                            "there, or use sprites or digits, which work offline.")
    return [path for have in found for path in have]


@contextlib.contextmanager
def reading(file, cure="delete it and run again to fetch it anew"):
    """Turns whatever a decoder raises on a damaged file into one sentence with its name."""
    try:
        yield
    except Exception as e:
        why = " ".join(str(e).split())[:80] or type(e).__name__
        if isinstance(e, MemoryError) or getattr(e, "errno", None):       # not the file's fault
            raise DataError(f"{file} cannot be read ({why}).") from e
        raise DataError(f"{file} is truncated or damaged ({why}): {cure}.") from e


def fit(x, size):
    """Centre-crops uint8 (N, C, H, W) to squares and resizes them with antialiasing."""
    h, w = x.shape[2:]
    s = min(h, w)
    x = x[:, :, (h - s) // 2:(h + s) // 2, (w - s) // 2:(w + s) // 2]
    if s == size:
        return x.contiguous()
    out = torch.empty(*x.shape[:2], size, size, dtype=torch.uint8)
    for a, b in zip(x.split(2048), out.split(2048)):      # in pieces: floats are four times as big
        a = F.interpolate(a.float(), size=(size, size), mode="bilinear", antialias=True)
        b.copy_(a.round_().clamp_(0, 255))
    return out


def read_images(files, size, mode):
    """Image files as uint8 (N, C, size, size); mode L has one channel, RGB three."""
    from PIL import Image, ImageOps
    x = torch.empty(len(files), len(mode), size, size, dtype=torch.uint8)
    for i, file in enumerate(files):
        with reading(file, "replace or remove it"), Image.open(file) as image:
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))    # of 16 bits
            if image.mode in "IF":                        # Pillow would clip them
                raise ValueError("32 bits a pixel")
            pixels = np.array(ImageOps.exif_transpose(image).convert(mode))
            pixels = torch.from_numpy(pixels).view(1, *pixels.shape[:2], len(mode))
            x[i] = fit(pixels.permute(0, 3, 1, 2), size)[0]
    return x


def coded(values):
    """Labels as the sorted list of their names and indices (N,) into it."""
    names, index = np.unique(np.array(values), return_inverse=True)
    return [str(name) for name in names], torch.from_numpy(index)


def torchvision():
    """The module torchvision; the only way in to it, at the time of use: the import costs 2 s.

    The package index has it built for CUDA only. Beside a CPU-only torch its library of operators
    does not load, and the import dies with "operator torchvision::nms does not exist". Nothing here
    needs the operators, so there both are declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise DataError("torchvision is missing: run pip install -r requirements.txt.")
    for library in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}",
                                 "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    return torchvision


# The sets

def read_idx(file, dims):
    """An idx file, gzipped or not, as uint8 (N,) or (N, H, W)."""
    with reading(file):
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        shape = np.frombuffer(raw, ">i4", dims, offset=4)
        if raw[:4] != bytes([0, 0, 8, dims]) or len(raw) != 4 + 4 * dims + shape.prod(dtype=int):
            raise ValueError("its length is not what its header says")
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
        return torch.from_numpy(values.copy())


def idx_set(name, folder, about, source, classes):
    """Adds a set of four idx files in folder/raw, which torchvision's class `folder` fetches."""
    @image_set(name, about, 28, source=source,
               files=[f"{folder}/raw/{part}-{what}-ubyte*" for part in ("train", "t10k")
                      for what in ("images-idx3", "labels-idx1")],
               fetch=lambda root: getattr(torchvision().datasets, folder)(root, download=True))
    def read(files, **_):
        x, y = [], []
        for part in ("train", "t10k"):
            for what, dims, into in (("images", 3, x), ("labels", 1, y)):
                into.append(read_idx([f for f in files if f"{part}-{what}" in f.name][0], dims))
            if not len(x[-1]) == len(y[-1]) > 0 or x[-1].shape[1:] != x[0].shape[1:]:
                raise DataError(f"{files[0].parent}/{part}-* do not belong together: delete them "
                                "and run again to fetch them anew.")
        test = torch.arange(len(y[0]) + len(y[1])) >= len(y[0])
        return Source(torch.cat(x)[:, None], torch.cat(y).long(), classes, test, val=5000)


idx_set("mnist", "MNIST", "handwritten digits, 70,000 gray images",
        "https://ossci-datasets.s3.amazonaws.com/mnist/", list("0123456789"))
idx_set("fashion", "FashionMNIST", "Fashion-MNIST, clothes, 70,000 gray images",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot".split())


def fetch_svhn(root):
    for part in ("train", "test"):
        if not (root / f"{part}_32x32.mat").exists():       # torchvision's would overwrite yours
            torchvision().datasets.SVHN(root, part, download=True)


@image_set("svhn", "house numbers, 73,257 and 26,032 colour digits", 32, fetch=fetch_svhn,
           files=["train_32x32.mat", "test_32x32.mat"],
           source="http://ufldl.stanford.edu/housenumbers/")
def svhn(files, **_):
    from scipy.io import loadmat
    x, y = [], []
    for file in files:                                      # train, test
        with reading(file):
            content = loadmat(file, variable_names=("X", "y"))
            x.append(torch.from_numpy(content["X"].transpose(3, 2, 0, 1).copy()))   # (H, W, C, N)
            y.append(torch.from_numpy(content["y"].astype(np.int64)[:, 0]))
            y[-1][y[-1] == 10] = 0                          # it is a zero
            if x[-1].dtype != torch.uint8 or x[-1].shape != (len(y[-1]), 3, 32, 32):
                raise ValueError("X and y are not bytes and labels of 32x32 images")
    test = torch.arange(len(x[0]) + len(x[1])) >= len(x[0])
    return Source(torch.cat(x), torch.cat(y), list("0123456789"), test)


@image_set("digits", "scikit-learn's digits, 1,797 gray images, enlarged", 28, cache=False)
def digits(**_):
    from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x * 255 / 16).round().astype(np.uint8))
    return Source(x.view(-1, 1, 8, 8), torch.from_numpy(y).long(), list("0123456789"))


def blend(ink, photos):
    """Digits over crops of photographs by MNIST-M's rule, uint8 (N, 3, 32, 32): 255 - photograph
    where the ink is, else the photograph.

    ink bool (N, 28, 28); photos: uint8 (H, W, 3) each. Seeded: the same crops on every machine."""
    out = np.empty((len(ink), 32, 32, 3), np.uint8)
    ink = F.pad(ink, [2, 2, 2, 2]).numpy()[..., None]
    for i, (k, row, column) in enumerate(np.random.PCG64(0).random_raw((len(ink), 3)).tolist()):
        photo = photos[k % len(photos)]
        row, column = row % (len(photo) - 31), column % (len(photo[0]) - 31)
        crop = photo[row:row + 32, column:column + 32]
        out[i] = np.where(ink[i], 255 - crop, crop)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


@image_set("digitsm", "digits over scikit-learn's two photographs, as MNIST-M", 32, cache=False)
def digitsm(**_):
    from sklearn.datasets import load_sample_images
    source = digits()
    ink = fit(source.x, 28)[:, 0] > 127                       # enlarged, they have soft edges
    return Source(blend(ink, load_sample_images().images), source.y, source.classes)


BSDS = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
PHOTOS = "BSR/BSDS500/data/images/train"


def fetch_mnistm(root):
    """What MNIST-M is built from: MNIST, and the 200 training photographs of BSDS500."""
    find_files(SETS["mnist"], root, "")
    with tempfile.TemporaryDirectory(dir=root) as part:
        torchvision().datasets.utils.download_url(BSDS, part)
        (Path(part) / "train").mkdir()
        with tarfile.open(Path(part) / Path(BSDS).name) as archive:
            for member in archive:
                if member.name.startswith(PHOTOS) and member.name.endswith(".jpg"):
                    photo = archive.extractfile(member).read()
                    (Path(part) / "train" / Path(member.name).name).write_bytes(photo)
        if len(os.listdir(Path(part) / "train")) != 200:
            raise OSError("the archive does not hold 200 training photographs")
        (root / PHOTOS).parent.mkdir(parents=True, exist_ok=True)
        os.replace(Path(part) / "train", root / PHOTOS)


@image_set("mnistm", "MNIST-M, published or built here from MNIST and BSDS500", 32,
           files=[f"{PHOTOS}/*.jpg|mnist_m/mnist_m_test/*.png|mnist_m/mnist_m_train",
                  "MNIST/raw/*-ubyte*|mnist_m/mnist_m_*_labels.txt"],
           source=BSDS, fetch=fetch_mnistm)
def mnistm(root, files, **_):
    """The published images where mnist_m lies, else MNIST blended over BSDS500's photographs."""
    from PIL import Image
    paths, y = [], []
    for file in (f for f in files if f.name.endswith("_labels.txt")):
        with reading(file, "unpack the archive anew"):
            for name, label in map(str.split, file.read_text().splitlines()):
                paths.append(file.with_name(file.name.removesuffix("_labels.txt")) / name)
                y.append(int(label))
    if paths:
        test = torch.tensor(["_test" in path.parent.name for path in paths])
        return Source(lambda index: read_images([paths[i] for i in index], 32, "RGB"),
                      torch.tensor(y), list("0123456789"), test)
    source, photos = SETS["mnist"].read(files=find_files(SETS["mnist"], root, "")), []
    for file in files:
        if file.suffix == ".jpg":
            with reading(file, "unpack the archive anew"), Image.open(file) as photo:
                photos.append(np.array(photo.convert("RGB")))
    if len(photos) != 200:
        raise DataError(f"{root / PHOTOS} holds {len(photos)} of 200 photographs: unpack the "
                        "archive anew.")
    source.x, source.val = blend(source.x[:, 0] > 0, photos), 0
    return source


def moons(points=150, seed=1, dtype=torch.float32):
    """The twin moons of the DANN paper with the constants of its authors' script: a source and a
    target Split of x (points, 2); y is 0 on the upper moon (of the source), 1 on the lower. The
    target is a draw of its own, turned by 35 degrees."""
    from sklearn.datasets import make_moons
    (x, y), (x_target, y_target) = (make_moons(points, noise=0.05, random_state=s)
                                    for s in (seed, seed + 1))
    centre, (cos, sin) = x.mean(0), (f(np.deg2rad(35)) for f in (np.cos, np.sin))
    x, x_target = 2 * (x - centre), 2 * (x_target - centre) @ [[cos, sin], [-sin, cos]]
    return [Split(torch.tensor(a, dtype=dtype), torch.tensor(b))
            for a, b in ((x, y), (x_target, y_target))]


@image_set("faces", "Olivetti, 40 people, 400 gray images", 64, files=["olivetti_py3.pkz"],
           source="https://ndownloader.figshare.com/files/5976027",
           fetch=lambda root: importlib.import_module("sklearn.datasets").fetch_olivetti_faces(
               data_home=str(root)))
def faces(files, **_):
    """scikit-learn's file is a pickle, and unpickling runs what code a file holds. But a pickled
    array ends in its bytes and a full stop: these are taken, and nothing is unpickled."""
    n = 400 * 64 * 64
    with reading(files[0]):
        stream = zlib.decompressobj()
        raw = stream.decompress(files[0].read_bytes(), 1 << 24)
        if not stream.eof:
            raise ValueError("it ends too early")
        number = {1: "u1", 4: "f4", 8: "f8"}[len(raw) // n]
        x = np.frombuffer(raw, number, n, len(raw) - 1 - n * int(number[1]))
        if b"NumpyArrayWrapper" not in raw[:60] or not 0 <= x.min() < x.max() < 256:
            raise ValueError("scikit-learn writes another one")
    x = (x * (255 / x.max())).round().astype(np.uint8).reshape(400, 1, 64, 64).swapaxes(2, 3)
    return Source(torch.from_numpy(x), torch.arange(400) // 10, [f"person {i}" for i in range(40)])


def named_set(files, pattern, size, mode, **factors):
    """Source of images whose file names hold the labels: group 1 of the pattern is the class, a
    factor is a function of the match. Files with other names are left out."""
    found = {m.groups(): (path, m) for path in files if (m := re.fullmatch(pattern, path.name))}
    if not found:
        raise DataError(f"No file beside {files[0]} has a published name: unpack the set anew.")
    paths, matches = zip(*found.values())
    classes, y = coded([m[1] for m in matches])
    factors = {name: coded([value(m) for m in matches]) for name, value in factors.items()}
    return Source(lambda index: read_images([paths[i] for i in index], size, mode), y, classes,
                  factors=factors)


@image_set("yaleb", "Extended Yale B, 38 people, 64 lights, 2,414 gray images", 64,
           source="http://vision.ucsd.edu/~leekc/ExtYaleDatabase",
           files=["CroppedYale/yaleB*/*.pgm"])
def yaleb(files, size, **_):
    return named_set(files, r"(yaleB\d\d)_P00A([+-]\d+)E([+-]\d+)\.pgm", size, "L",
                     azimuth=lambda m: int(m[2]), elevation=lambda m: int(m[3]))


def multipie_files(option):
    cameras, _, sessions = option.partition(":")
    chosen = [(c, s) for c in (cameras or "051").split(",") for s in (sessions or "01").split(",")]
    if not all(re.fullmatch(r"\d{3}0[1-4]", c + s) for c, s in chosen):
        raise DataError(f"multipie:{option} chooses nothing: write multipie:051,140:01,02 for two "
                        "cameras and two sessions.")
    return [f"multipie/session{s}/multiview/*/*/{c[:2]}_{c[2]}/*.png|multipie/*_{s}_??_{c}_??*.png"
            for c, s in chosen]


@image_set("multipie", "your licensed copy; multipie:CAMERAS:SESSIONS, else 051 and 01", 64,
           files=multipie_files, source="https://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie",
           option=True)
def multipie(files, size, **_):
    faces = {"0102": "smile", "0302": "smile", "0202": "surprise", "0203": "squint",
             "0303": "disgust", "0403": "scream"}         # by session and recording, else neutral
    return named_set(files, r"(\d{3})_(\d\d)_(\d\d)_(\d{3})_(\d\d)(?:_crop_128)?\.png", size, "RGB",
                     camera=lambda m: m[4], light=lambda m: m[5],
                     expression=lambda m: faces.get(m[2] + m[3], "neutral"))


def folder_files(option):
    top = os.path.abspath(os.path.expanduser(option))
    if not option or not os.path.isdir(top):
        raise DataError(f"There is no folder {option!r}: write folder:PATH, where PATH holds one "
                        "sub-folder of images a class.")
    return [glob.escape(top) + "/**"]


@image_set("folder", "your images, folder:PATH with one sub-folder a class", 64, option=True,
           files=folder_files, source="PATH")
def folder(files, size, option, **_):
    from PIL import Image
    depth = len(Path(os.path.abspath(os.path.expanduser(option))).parts)
    suffixes = Image.registered_extensions()                # .pdf among them, only to be written
    paths = [p for p in files if len(p.parts) > depth + 1
             and suffixes.get(p.suffix.lower()) in Image.OPEN]
    if not paths:
        raise DataError(f"{option} holds no images: put them there in one sub-folder a class.")

    def read(index):
        x = read_images([paths[i] for i in index], size, "RGB")
        return x[:, :1].contiguous() if (x == x[:, :1]).all() else x  # all gray: one channel
    classes, y = coded([p.parts[depth] for p in paths])
    return Source(read, y, classes)


@image_set("sprites2015", "Reed et al. 2015, 336 game characters in 172 poses", 32,
           files=["sprites/sprites_[0-9]*.mat"],
           source="http://www.scottreed.info/files/nips2015-analogy-data.tar.gz")
def sprites2015(files, size, limit, seed, **_):
    """The even characters (odd ones differ in the weapon only) without the row of hurt ones."""
    try:
        import h5py
    except ImportError as e:
        raise DataError("sprites2015 is stored as HDF5: run pip install h5py.") from e
    names = ((re.fullmatch(r"sprites_(\d*[02468])", path.stem), path) for path in files)
    even = sorted((int(match[1]), path) for match, path in names if match)
    if limit:
        some = torch.randperm(len(even), generator=torch.Generator().manual_seed(seed))
        even = [even[i] for i in some[:max(10, round(limit / 172))].sort().values]
    x, labels = torch.empty(len(even), 172, 3, size, size, dtype=torch.uint8), []
    for who, (_, path) in zip(x, even):
        with reading(path, "unpack the archive anew"), h5py.File(path) as f:
            labels.append(f["labels"][()].astype(int).reshape(7))
            clips = np.concatenate([f[cell][()] for cell in f["sprites"][()].ravel()[:20]])
            clips = (255 * clips.reshape(172, 3, 60, 60).swapaxes(2, 3)).round().astype(np.uint8)
            who.copy_(fit(torch.from_numpy(clips), size))
    frames = {"spellcast": 7, "thrust": 8, "walk": 9, "slash": 6, "shoot": 13}
    poses = [(action, way, frame) for action in frames for way in ("back", "left", "front", "right")
             for frame in range(frames[action])]
    names = ("sex", "body", "armor", "hair", "arm", "greaves", "weapon")
    factors = {name: coded(value.repeat(172)) for name, value in zip(names, np.array(labels).T)}
    for name, value in zip(("action", "direction", "frame"), zip(*poses)):
        factors[name] = coded(value * len(even))
    return Source(x.flatten(0, 1), torch.arange(len(even)).repeat_interleave(172),
                  [f"character {k}" for k, _ in even], people=True,
                  factors={name: f for name, f in factors.items() if len(f[0]) > 1})


# Sprites, drawn by our own code:
# small game characters drawn with integer arithmetic, the same bytes on every machine.
#
# A person is one value of every attribute, a pose is action x direction x frame. Shapes are stated
# in 1/64 of the picture and drawn once for every (hair style, top style, pose), as maps of palette
# slots. A person's pictures are one gather of that person's palette: 40,960 pictures take a second.

SPRITE_ATTRIBUTES = {
    "skin": ["fair", "bronze", "brown", "moss", "lilac"],
    "hair_style": ["short", "long", "spiky", "ponytail", "mohawk", "afro"],
    "hair_colour": ["black", "ginger", "blond", "white", "blue", "pink"],
    "top_style": ["tee", "striped", "robe", "armour"],
    "top_colour": ["crimson", "amber", "green", "sky", "indigo", "charcoal"],
    "legs_colour": ["cream", "denim", "black", "rust", "teal"],
}
SPRITE_POSES = {
    "action": ["walk", "cast", "slash", "shoot"],
    "direction": ["back", "left", "front", "right"],
    "frame": ["1", "2", "3", "4"],
}
LIGHT, SHADE, LINE, SHINE = range(4)  # a slot is 4 * material + tone; slot 0 is the background
COLOURS = {                           # material -> one colour, or one for each attribute value
    "ground": (168, 190, 172), "leather": (138, 86, 48), "steel": (190, 204, 222),
    "gold": (250, 206, 70), "white": (252, 252, 246), "ink": (40, 32, 60), "magic": (130, 240, 255),
    "skin": [(255, 218, 186), (222, 158, 100), (134, 82, 54), (140, 196, 84), (192, 162, 236)],
    "hair": [(62, 56, 78), (222, 96, 32), (250, 216, 96), (240, 240, 248), (56, 104, 220),
             (244, 116, 184)],
    "top": [(206, 40, 52), (246, 178, 36), (64, 156, 66), (104, 192, 248), (92, 70, 190),
            (84, 84, 98)],
    "legs": [(240, 228, 200), (70, 108, 190), (58, 56, 72), (196, 86, 44), (32, 140, 124)],
}
MATERIALS = list(COLOURS)

# What a body does, one row a frame: rise and lean; feet (x, lift) and hands (x, y) seen from front
# or back; feet and hands seen from the side. The weapon's side, or the near one, comes first.
MOVES = {
    "walk": [
        (0, 0, [(5, 0), (-5, 4)], [(13, 47), (-15, 43)], [(7, 0), (-7, 1)], [(-8, 44), (10, 43)]),
        (2, 2, [(5, 0), (-5, 0)], [(15, 45), (-14, 46)], [(1, 0), (-5, 4)], [(-2, 46), (4, 45)]),
        (0, 0, [(5, 4), (-5, 0)], [(15, 43), (-13, 47)], [(-7, 1), (7, 0)], [(9, 43), (-9, 44)]),
        (2, -2, [(5, 0), (-5, 0)], [(14, 46), (-15, 45)], [(-5, 4), (1, 0)], [(4, 45), (-2, 46)]),
    ],
    "cast": [
        (0, 0, [(5, 0), (-5, 0)], [(18, 39), (-18, 39)], [(-4, 0), (5, 0)], [(11, 40), (14, 37)]),
        (0, 0, [(5, 0), (-5, 0)], [(21, 33), (-21, 33)], [(-4, 0), (5, 0)], [(16, 36), (18, 32)]),
        (2, 0, [(6, 0), (-6, 0)], [(20, 26), (-20, 26)], [(-5, 0), (6, 0)], [(18, 31), (20, 26)]),
        (2, 0, [(6, 0), (-6, 0)], [(23, 30), (-23, 30)], [(-5, 0), (6, 0)], [(20, 34), (22, 30)]),
    ],
    "slash": [
        (2, -6, [(6, 0), (-6, 0)], [(20, 29), (-14, 44)], [(-5, 0), (5, 0)], [(17, 28), (-9, 42)]),
        (0, -4, [(6, 0), (-6, 0)], [(20, 33), (-15, 43)], [(-5, 0), (6, 0)], [(18, 32), (-10, 42)]),
        (0, -4, [(8, 0), (-6, 0)], [(20, 38), (-16, 41)], [(-6, 0), (8, 0)], [(18, 38), (-11, 41)]),
        (-2, -4, [(8, 0), (-6, 0)], [(18, 44), (-14, 43)], [(-6, 0), (8, 0)], [(15, 43), (-9, 41)]),
    ],
    "shoot": [
        (0, -4, [(7, 0), (-6, 0)], [(21, 41), (17, 40)], [(-6, 0), (6, 0)], [(15, 40), (21, 41)]),
        (0, -6, [(7, 0), (-6, 0)], [(22, 37), (13, 37)], [(-6, 0), (6, 0)], [(11, 37), (22, 37)]),
        (0, -6, [(7, 0), (-7, 0)], [(22, 37), (8, 37)], [(-7, 0), (6, 0)], [(5, 37), (22, 37)]),
        (0, -4, [(7, 0), (-6, 0)], [(21, 37), (-15, 42)], [(-6, 0), (6, 0)], [(-5, 40), (21, 37)]),
    ],
}
TIPS = [(23, 5), (33, 15), (34, 39), (29, 58)]                # the sword's point in each frame
SPARKS = [[(25, 29, 3), (27, 43, 1)], [(25, 21, 5), (29, 9, 1)],               # (x, y, radius)
          [(25, 11, 7), (29, 29, 3), (19, 3, 1)], [(27, 17, 3), (21, 5, 3), (29, 41, 3)]]


class Canvas:
    """A map of slots for one pose and the shapes to fill it: x from the middle, forward or towards
    the weapon's side, y downwards. 0 means "nothing here"."""

    def __init__(self, size, action, direction, frame):
        self.map = np.zeros((size, size), np.uint8)
        self.action, self.frame = action, frame
        self.view = direction if direction in ("front", "back") else "side"
        self.side = self.view == "side"
        self.rise, lean, *limbs = MOVES[action][frame]
        self.feet, self.hands = limbs[2:] if self.side else limbs[:2]
        centres = (2 * np.arange(size, dtype=np.int64) + 1) * 64 // size       # of pixels, in 1/128
        flip = -1 if direction in ("front", "left") else 1
        self.x = ((centres - 64) * flip - 2 * lean)[None, :]
        self.y = (centres + 2 * self.rise)[:, None]

    def ellipse(self, cx, cy, rx, ry):
        x, y = self.x - 2 * cx, self.y - 2 * cy
        return (x * ry) ** 2 + (y * rx) ** 2 <= (2 * rx * ry) ** 2

    def box(self, left, top, right, bottom):
        across = (self.x >= 2 * left) & (self.x <= 2 * right)
        return across & (self.y >= 2 * top) & (self.y <= 2 * bottom)

    def polygon(self, *points):
        """A convex polygon: the points on one side of all its edges."""
        sides = [(x1 - x0) * (self.y - 2 * y0) - (y1 - y0) * (self.x - 2 * x0)
                 for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1])]
        return np.all([s >= 0 for s in sides], 0) | np.all([s <= 0 for s in sides], 0)

    def line(self, start, end, width):
        """Points within width / 2 of a segment; distances are multiplied by its squared length."""
        x, y = self.x - 2 * start[0], self.y - 2 * start[1]
        dx, dy = 2 * (end[0] - start[0]), 2 * (end[1] - start[1])
        length2 = max(dx * dx + dy * dy, 1)
        t = np.clip(x * dx + y * dy, 0, length2)
        return (x * length2 - t * dx) ** 2 + (y * length2 - t * dy) ** 2 <= (width * length2) ** 2

    def paint(self, mask, material, edge="all", tone=None):
        """Fill a shape, shaded at its lower right (or in one tone), inside a dark line: around
        "all" of it, "out" (where nothing is yet), or "no" line."""
        slot, size, k = 4 * MATERIALS.index(material), len(mask), max(len(mask) // 32, 1)
        padded = np.pad(mask, k)

        def moved(dy, dx):
            return padded[k + dy:k + dy + size, k + dx:k + dx + size]

        if edge != "no":
            ring = (moved(0, 1) | moved(0, -1) | moved(1, 0) | moved(-1, 0)) & ~mask
            self.map[ring & (self.map == 0) if edge == "out" else ring] = slot + LINE
        self.map[mask] = slot + (tone or LIGHT)
        if tone is None:
            self.map[mask & ~(moved(k, k) & moved(0, k))] = slot + SHADE


def draw_body(c, top):
    """Shadow, legs, boots and the top without its sleeves."""
    c.paint(c.ellipse(0, 60 + c.rise, 18, 3), "ground", "no", SHADE)
    for x, lift in reversed(c.feet):
        y = 61 + c.rise - lift                                 # the body may rise, the feet do not
        hip = x // 4 if c.side else (4 if x > 0 else -4)
        c.paint(c.line((hip, 46), (x, y - 5), 7), "legs")
        boot = c.ellipse(x + 2, y - 1, 6, 3) if c.side else c.ellipse(x, y - 1, 5, 3)
        c.paint((boot | c.box(x - 4, y - 4, x + 3, y - 1)) & c.box(-40, 0, 40, y), "leather", "out")
    w = 8 if c.side else 9
    chest = c.polygon((1 - w, 33), (w - 1, 33), (w + 1, 46), (-w - 1, 46)) | c.box(-w, 44, w, 48)
    if top == "robe":
        chest |= c.polygon((-w, 42), (w, 42), (w + 4, 50), (-w - 4, 50))
    c.paint(chest, "top", "out")
    if top == "tee" and c.view == "front":
        c.paint(c.polygon((0, 35), (5, 40), (0, 45), (-5, 40)), "white", "no", LIGHT)
    elif top == "striped":
        c.paint(chest & stripes(c), "white", "no")
    elif top == "robe":
        c.paint(chest & (c.box(-20, 42, 20, 44) | c.box(-20, 48, 20, 50)), "gold", "no")
        if c.view != "back":
            c.paint(chest & c.box(-1, 34, 1, 50 if c.side else 42), "gold", "no", LIGHT)
    elif top == "armour":
        c.paint(chest & c.box(-20, 44, 20, 46), "leather", "no")
        if c.view == "front":
            c.paint(c.polygon((-4, 34), (4, 34), (0, 42)), "steel", "no")
        elif c.view == "back":                                 # the arms are behind, not the plates
            for x in (-11, 11):
                c.paint(c.ellipse(x, 36, 5, 4), "steel")


def stripes(c):
    return np.any([c.box(-40, y, 40, y + 2) for y in range(20, 48, 4)], 0)


def draw_arms(c, top, which):
    """One arm (0 the weapon's or the near one, 1 the other) or both, with what they hold."""
    shoulders = [(-1, 37), (2, 37)] if c.side else [(11, 37), (-11, 37)]
    for i in which:
        (sx, sy), (hx, hy) = shoulders[i], c.hands[i]
        middle, wrist = ((sx + hx) // 2, (sy + hy) // 2), ((sx + 3 * hx) // 4, (sy + 3 * hy) // 4)
        if c.action == "slash" and i == 0:
            draw_sword(c)
        if top == "tee":
            c.paint(c.line((sx, sy), (hx, hy), 5), "skin")
            c.paint(c.line((sx, sy), middle, 7), "top", "out")
        else:
            sleeve = c.line((sx, sy), wrist, 6)
            c.paint(sleeve | c.line(wrist, wrist, 9) if top == "robe" else sleeve, "top")
        if top == "striped":
            c.paint(sleeve & stripes(c), "white", "no")
        if top == "robe":
            c.paint(c.line(wrist, wrist, 4), "gold", "no")
        c.paint(c.ellipse(hx, hy, 3, 3), "skin", "out")
        if top == "armour":
            c.paint(c.ellipse(sx, sy - 1, 5, 4), "steel")
    if c.action == "shoot" and 0 in which:
        draw_bow(c)


def draw_sword(c):
    (hx, hy), (tx, ty) = c.hands[0], TIPS[c.frame]
    dx, dy = tx - hx, ty - hy
    c.paint(c.line((hx, hy), (tx, ty), 4), "steel")
    c.paint(c.line((hx, hy), (tx - dx // 8, ty - dy // 8), 2), "white", "no", LIGHT)
    gx, gy = hx + dx // 4, hy + dy // 4
    c.paint(c.line((gx - dy // 6, gy + dx // 6), (gx + dy // 6, gy - dx // 6), 3), "gold", "out")


def draw_bow(c):
    """The string follows the drawing hand; in the last frame it is straight and the arrow flies."""
    hold, pull = c.hands[::-1] if c.side else c.hands
    y, flies = hold[1], c.frame == 3
    nock = (19, y) if flies else pull
    for end in (y - 16, y + 16):
        c.paint(c.line((19, end), nock, 2), "white", "no", SHADE)
    limb = c.ellipse(13, y, 13, 18) & ~c.ellipse(12, y, 11, 18) & c.box(17, 0, 40, 64)
    c.paint(limb, "leather")
    tail, head = ((27, y), (33, y)) if flies else (pull, (pull[0] + 18, y))
    c.paint(c.line(tail, head, 2), "gold", "out")
    c.paint(c.polygon((head[0] - 1, y - 4), (head[0] - 1, y + 4), (head[0] + 4, y)), "steel", "out")


def draw_head(c):
    c.paint(c.ellipse(0, 20, 14, 13) | (c.ellipse(14, 25, 2, 2) if c.side else ears(c)), "skin")
    if c.view == "back":
        return
    for x in (8,) if c.side else (-6, 6):
        if c.action == "cast" and c.frame < 2:                 # eyes shut, to find the spell
            c.paint(c.box(x - 3, 24, x + 3, 26), "ink", "no", LIGHT)
        else:
            c.paint(c.box(x - 2, 20, x + 2, 26), "ink", "no", LIGHT)
            c.paint(c.box(x - 2, 20, x, 22), "white", "no", LIGHT)
    for x in (5,) if c.side else (-9, 9):
        c.paint(c.box(x - 1, 27, x + 1, 29), "skin", "no", SHINE)
    left, right = (8, 12) if c.side else (-2, 2)
    c.paint(c.box(left, 28, right, 30), "skin", "no", LINE if c.action == "slash" else SHADE)


def ears(c):
    return c.polygon((11, 19), (19, 21), (11, 28)) | c.polygon((-11, 19), (-19, 21), (-11, 28))


def draw_hair_behind(c, hair):
    """The hair that hangs behind the head."""
    sway = (0, 2, 0, -2)[c.frame]
    if hair == "long" and c.view == "front":
        locks = c.polygon((-17, 20), (17, 20), (19 + sway, 43), (-19 + sway, 43))
        c.paint(c.ellipse(0, 20, 17, 15) | locks, "hair")
    elif hair == "long" and c.side:
        c.paint(c.polygon((-15, 16), (2, 16), (-2, 42), (-18 - sway, 42)), "hair")
    elif hair == "ponytail" and c.view != "back":
        c.paint(c.line((-9, 8), (-20, 13), 8) | c.line((-21, 15), (-22 - sway, 33), 7), "hair")
    elif hair == "afro":
        c.paint(c.ellipse(0, 19, 19, 16), "hair")


def draw_hair(c, hair):
    """The hair on the head: a cap with a window for the face, and what the style adds."""
    sway = (0, 2, 0, -2)[c.frame]
    cap = c.ellipse(0, 19, 19, 16) if hair == "afro" else c.ellipse(0, 19, 16, 15)
    if hair == "short":
        cap = c.ellipse(0, 17, 15, 13)
    if hair == "mohawk":
        cap = c.line((0, 6), (0, 25 if c.view == "back" else 11), 9)
        if c.side:
            cap = c.ellipse(-3, 15, 15, 13) & ~c.ellipse(2, 23, 13, 14) & c.box(-40, 0, 9, 27)
            for x, y in (6, 2), (-5, 1), (-15, 4), (-20, 12), (-20, 22):
                cap |= c.polygon((x, y), (x // 2 - 5, 13), (x // 2 + 3, 9))
    elif hair == "spiky":
        tips = [(-21, 14), (-15, 5), (-5, 2), (6, 2), (15, 5), (21, 14)]
        if c.side:
            tips = [(-21, 22), (-21, 12), (-14, 4), (-4, 2), (7, 2), (17, 7)]
        for x, y in tips:
            cap |= c.polygon((x, y), (x * 2 // 3 - 5, 16), (x * 2 // 3 + 5, 16))
    if c.view == "front" and hair != "mohawk":
        cap &= ~c.ellipse(2 if hair == "short" else 0, 25, 12, 11) & c.box(-40, 0, 40, 26)
    elif c.side and hair != "mohawk":
        cap &= ~c.ellipse(9, 25, 11, 10) & ~c.box(-6, 22, 40, 40) & c.box(-40, 0, 40, 28)
    elif hair in ("spiky", "ponytail"):
        cap &= c.box(-40, 0, 40, 28)
        for x in (-10, 0, 10) if hair == "spiky" else ():
            cap |= c.polygon((x - 5, 27), (x + 5, 27), (x, 35))
    elif hair == "long":
        cap |= c.polygon((-16, 19), (16, 19), (12 + sway, 40), (-12 + sway, 40))
    c.paint(cap, "hair", "all" if hair == "mohawk" else "out")
    c.paint(c.ellipse(-1, 14, 11, 7) & ~c.ellipse(0, 17, 12, 7) & cap, "hair", "no", SHINE)
    if hair == "ponytail":
        x = {"side": -12, "front": -11, "back": 0}[c.view]
        if c.view == "back":
            c.paint(c.ellipse(0, 18, 5, 8) | c.line((0, 20), (sway, 36), 8), "hair")
        c.paint(c.line((x - 2, 8), (x + 2, 9), 4), "gold", "out")
    if c.side:                                                 # ears: skin shows from every side
        c.paint(c.ellipse(-3, 24, 3, 4), "skin", "no")
    elif c.view == "back":
        c.paint(ears(c) & ~c.ellipse(0, 20, 13, 13), "skin")


def draw_effect(c):
    """Sparks of the spell, and the trail of the sword."""
    if c.action == "slash" and c.frame in (1, 2):
        corner = (40, 0) if c.frame == 1 else (44, 27)
        swept = c.polygon((8, 36), TIPS[c.frame - 1], corner, TIPS[c.frame])
        crescent = c.ellipse(5, 36, 30, 36) & ~c.ellipse(2, 39, 27, 34)
        c.paint(crescent & swept, "white", "no", LIGHT)
    for x, y, r in SPARKS[c.frame] if c.action == "cast" else ():
        for x in (x,) if c.side else (x, -x):
            star = c.line((x - r, y), (x + r, y), 1) | c.line((x, y - r), (x, y + r), 1)
            c.paint(star | c.ellipse(x, y, r // 2 + 1, r // 2 + 1), "magic", tone=LIGHT)
            c.paint(c.ellipse(x, y, r // 3 + 1, r // 3 + 1), "white", "no", LIGHT)


def sprite_maps(size=32):
    """Slots of every combination of shapes, uint8 (hair styles, top styles, poses, size, size).

    A layer is drawn for each hair style or each top style alone; the layers are then laid over
    each other from back to front, which depends on the side the character is seen from.
    """
    hairs, tops = SPRITE_ATTRIBUTES["hair_style"], SPRITE_ATTRIBUTES["top_style"]
    shape = [len(v) for v in SPRITE_POSES.values()]
    maps = np.zeros((len(hairs), len(tops), int(np.prod(shape)), size, size), np.uint8)
    for i, pose in enumerate(np.ndindex(*shape)):
        action, direction = (v[k] for v, k in zip(SPRITE_POSES.values(), pose[:2]))

        def layer(draw, *arguments):
            canvas = Canvas(size, action, direction, pose[2])
            draw(canvas, *arguments)
            return canvas.map

        behind, hair = (np.stack([layer(f, h) for h in hairs])[:, None]
                        for f in (draw_hair_behind, draw_hair))
        body = np.stack([layer(draw_body, t) for t in tops])
        near, far, both = (np.stack([layer(draw_arms, t, which) for t in tops])
                           for which in ([0], [1], [1, 0]))
        head, effect = layer(draw_head), layer(draw_effect)
        order = {"back": [effect, both, body, behind, head, hair],
                 "front": [effect, behind, body, head, hair, both]}.get(
                     direction, [effect, far, behind, body, head, hair, near])
        for part in order:
            maps[:, :, i] = np.where(part > 0, part, maps[:, :, i])
    return maps


def sprite_people(count=1200, seed=0):
    """Distinct people, int64 (count, attributes): every value equally often, give or take a few.

    Any two differ in two attributes or more: the hair colour, which has as many values as any
    attribute, is the sum of the others modulo 6, so that whoever differs in one other attribute
    alone has another hair colour too. Every two attributes are still independent.
    """
    sizes = [len(v) for v in SPRITE_ATTRIBUTES.values()]
    check = list(SPRITE_ATTRIBUTES).index("hair_colour")
    free = sizes[:check] + sizes[check + 1:]
    total = int(np.prod(free))
    if not 0 < count <= total:
        raise ValueError(f"There are {total} sprite people: ask for 1 to {total}, not {count}.")
    drawn = np.random.PCG64(seed).random_raw(total).argsort(kind="stable")     # a permutation
    people = np.stack(np.unravel_index(drawn, free), 1)
    people = np.insert(people, check, people.sum(1) % sizes[check], axis=1).astype(np.int64)
    room = [np.full(n, count // n + 2) for n in sizes]         # what each value may still be given
    kept, refused = [], []
    for person in people:
        fits = all(left[v] for left, v in zip(room, person))
        (kept if fits else refused).append(person)
        for left, v in zip(room, person):
            left[v] -= fits
    return np.stack((kept + refused)[:count])


def sprite_palette(people):
    """Colours of every slot, uint8 (count, slots, 3): four tones of each material."""
    names = list(SPRITE_ATTRIBUTES)
    light = np.zeros((len(people), len(MATERIALS), 3), np.int64)
    for i, material in enumerate(MATERIALS):
        colours = np.array(COLOURS[material])
        if colours.ndim == 2:
            name = material if material in names else material + "_colour"
            colours = colours[people[:, names.index(name)]]
        light[:, i] = colours
    shade = light * np.array([11, 11, 13]) // 16               # shadows are a little blue
    line = light // 4 + np.array([8, 4, 18])
    shine = (light + 255) // 2
    ground, skin = MATERIALS.index("ground"), MATERIALS.index("skin")
    shade[:, ground] = light[:, ground] * 13 // 16
    shine[:, skin] = (light[:, skin] * 3 + np.array([255, 90, 110])) // 4       # blushing cheeks
    return np.stack([light, shade, line, shine], 2).reshape(len(people), -1, 3).astype(np.uint8)


def draw_sprites(size=32, seed=0, people=1200):
    """Every person in every pose: "x" uint8 (people * 64, 3, size, size), "y" the person, and
    "factors", name -> int64 (people * 64), the attributes of the person and then of the pose."""
    who = sprite_people(people, seed)
    maps, palette = sprite_maps(size), sprite_palette(who).transpose(0, 2, 1)    # (P, 3, slots)
    names, poses = list(SPRITE_ATTRIBUTES), maps.shape[2]
    styles = who[:, [names.index("hair_style"), names.index("top_style")]]
    x = np.empty((people, poses, 3, size, size), np.uint8)
    for i, (hair, top) in enumerate(styles):
        x[i] = palette[i][:, maps[hair, top]].transpose(1, 0, 2, 3)
    factors = {name: np.repeat(who[:, k], poses) for k, name in enumerate(names)}
    cells = np.unravel_index(np.arange(poses), [len(v) for v in SPRITE_POSES.values()])
    factors |= {name: np.tile(cell, people) for name, cell in zip(SPRITE_POSES, cells)}
    return {"x": x.reshape(-1, 3, size, size), "factors": factors,
            "y": np.arange(people, dtype=np.int64).repeat(poses)}


@image_set("sprites", "1,200 game characters in 64 poses, drawn by this file", 32, cache=False)
def sprites(size, limit, seed, **_):
    people = min(1200, max(10, round(limit / 64))) if limit else 1200
    drawn = draw_sprites(max(32, size), seed, people)          # smaller ones are shrunk
    factors = {name: (values, torch.from_numpy(drawn["factors"][name]))
               for name, values in (SPRITE_ATTRIBUTES | SPRITE_POSES).items()}
    return Source(torch.from_numpy(drawn["x"]), torch.from_numpy(drawn["y"]),
                  [f"person {i}" for i in range(people)], factors=factors, people=True)


# The command line

def contact_sheet(data, path):
    """Writes a picture of the set, one row a class; of unseen people where there are such."""
    from PIL import Image
    split = data.unseen or data.train
    order, first, count, _ = split.by_class
    rows = count.nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(12, len(rows))).long()]
    n, scale = min(24, int(count[rows].max())), max(1, 64 // split.x.shape[2])
    side = split.x.shape[2] * scale + 2
    sheet = torch.full((len(rows) * side, n * side, split.x.shape[1]), 255, dtype=torch.uint8)
    for i, k in enumerate(rows):
        for j, place in enumerate(torch.linspace(0, count[k] - 1, min(n, int(count[k]))).long()):
            tile = split.x[order[first[k] + place]].permute(1, 2, 0)
            tile = tile.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
            sheet[i * side + 1:(i + 1) * side - 1, j * side + 1:(j + 1) * side - 1] = tile
    part = path.with_name(path.name + ".part")
    Image.fromarray(sheet.numpy().squeeze()).save(part, "PNG")
    os.replace(part, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"data.py: {message}.\n")     # one line
    parser.add_argument("name", nargs="?", help="a set; without one all are listed")
    parser.add_argument("--data-dir", default="data", help="where sets are read, fetched, cached")
    parser.add_argument("--image-size", type=int, help="8 to 256; default: the set's own")
    parser.add_argument("--limit", type=int, help="about so many images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, and of sprites")
    args = parser.parse_args(argv)
    if args.name is None:
        for name, entry in SETS.items():
            try:
                find_files(entry, Path(args.data_dir), "", fetch=False)
                state = "there" if entry.files else "offline"
            except DataError:
                state = "fetched when first used" if entry.fetch else f"from {entry.source}"
            print(f"{name:12}{entry.about:65}{state}")
        return 0
    try:
        data = load(args.name, args.data_dir, args.image_size, args.limit, args.seed)
        path = Path(args.data_dir) / f"{file_name(args.name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(data, path)
    except (DataError, OSError) as e:
        print(f"data.py: {e}", file=sys.stderr)
        return 2
    print(data)
    digest = hashlib.sha256()
    for key, split in data.splits().items():
        digest.update(split.x.numpy())
        count = split.by_class[2]
        count = count[count > 0]
        many = len(count) > 12
        count = f"{count.min()} to {count.max()}" if many else " ".join(map(str, count.tolist()))
        print(f"{key:8}{tuple(split.x.shape)}, {split.x.nbytes / 1e6:.1f} MB, a class {count}")
    for name, values in data.factors.items():
        print(f"{name:12}{len(values)} values: {' '.join(values)}")
    print(f"sha256  {digest.hexdigest()}\nsheet   {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
