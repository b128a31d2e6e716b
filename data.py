"""Image data sets in memory: uint8 images and int64 labels, batches and same-class pairs by index.

    python data.py                       list the sets and say which are on this computer
    python data.py yaleb --data-dir D    fetch or build one, print its sizes, write a contact sheet

load() returns a Dataset with the splits train, val, test and, if some identities are held out,
unseen. The same seed gives the same splits on every machine. A set is moved to the device once; a
batch is then one gather and one conversion to float on the device:

    data = load("yaleb", "data", image_size=64).to("cuda")
    for idx in batches(data.train, 32, rng):            # (32,)
        x = data.train.images(idx)                      # (32, 1, 64, 64), floats in [0, 1]
        partners = pairs(data.train, idx, rng)          # (32,), other images of the same classes

A new set is one function:

    @register("bars", "bars that stand or lie", size=28)
    def bars(**_):
        x = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
        x[:20, :, :, 14] = 255
        x[20:, :, 14, :] = 255
        return Source(x, torch.arange(40) // 20, ["standing", "lying"])
"""
import argparse
import contextlib
import functools
import glob
import gzip
import hashlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import types
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

CACHE_VERSION = 1           # raise it when a reader returns something else for the same files


class DataError(Exception):
    """Bad input. The message is one sentence that says what to do; scripts print it and exit 2."""


# %% Splits, batches and pairs

@dataclass
class Split:
    """Images x uint8 (N, C, H, W), classes y int64 (N,) and factors, name -> int64 (N,)."""
    x: torch.Tensor
    y: torch.Tensor
    factors: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.y)

    @property
    def device(self):
        return self.x.device

    def to(self, device):
        factors = {name: value.to(device) for name, value in self.factors.items()}
        return Split(self.x.to(device), self.y.to(device), factors)

    def images(self, idx):
        """Images float32 (B, C, H, W) in [0, 1]; idx (B,) on the split's device, or a slice."""
        return self.x[idx].float().div_(255)

    def mean_image(self):
        """The mean of all images, float32 (C, H, W) in [0, 1]."""
        total = sum(x.sum(0, dtype=torch.int64) for x in self.x.split(500))    # saves memory
        return total / (255 * len(self))

    def constant_within_class(self, name):
        """Whether a factor has one value per class, like the hair colour of a person."""
        values = self.factors[name]
        combined = self.y * (values.max() + 1) + values
        return len(combined.unique()) == len(self.y.unique())

    @functools.cached_property
    def by_class(self):
        return by_class(self.y)


@dataclass
class Dataset:
    """The splits of a set, the names of its classes, and the names of each factor's values.

    val is None if its images were left in train; unseen is None unless some classes are held out.
    fingerprint: 16 hexadecimal digits of what the splits were made from: class names, labels, which
    image is in which split, names and sizes of a user's files, but not the pixels."""
    name: str
    classes: list
    train: Split
    val: Split
    test: Split
    unseen: Split = None
    factors: dict = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def shape(self):
        """The shape of one image, [C, H, W]."""
        return list(self.test.x.shape[1:])

    def splits(self):
        """The splits that there are, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test, "unseen": self.unseen}
        return {name: split for name, split in splits.items() if split is not None}

    def to(self, device):
        return replace(self, **{name: part.to(device) for name, part in self.splits().items()})

    def __repr__(self):
        """Sizes, images per class, and the names of up to 12 classes."""
        shape = "x".join(map(str, self.shape))
        lines = [f"{self.name}: shape {shape}, {len(self.classes)} classes"]
        for name, split in self.splits().items():
            _, _, count, _ = split.by_class
            count = count[count > 0]
            lines.append(f"{name:8}{len(split):,} images, {len(count)} classes, "
                         f"{count.min()} to {count.max()} per class")
        if len(self.classes) <= 12:
            lines.append(f"classes {', '.join(self.classes)}")
        return "\n".join(lines)


def by_class(y):
    """For labels y int64 (N,) of K classes: the indices sorted by class (N,), the place where each
    class begins there (K,), its size (K,), and each image's rank in its class (N,)."""
    order = y.argsort(stable=True)
    count = y.bincount()
    first = count.cumsum(0) - count
    rank = order.argsort() - first[y]
    return order, first, count, rank


def batches(split, size, rng):
    """Yields indices (size,) on the split's device that cover the split in a new random order. The
    last, shorter batch is dropped unless it is the only one."""
    order = torch.randperm(len(split), generator=rng, device=rng.device).to(split.y.device)
    for start in range(0, max(len(order) - size, 0) + 1, size):
        yield order[start:start + size]


def pairs(split, idx, rng, pool=None):
    """Draws a partner of the same class for each image of idx (B,); all candidates equally likely.

    Without a pool, returns indices (B,) into the split. An image is its own partner only if its
    class has no other image (`need_pairs` refuses such a set). With a pool, another Split that must
    hold every class of the images, returns indices (B,) into the pool."""
    y = split.y[idx]
    high = 2**23 if rng.device.type == "mps" else 2**30   # % is a float32 on mps
    draw = torch.randint(high, y.shape, generator=rng, device=rng.device).to(split.y.device)
    if pool is None or pool is split:
        order, first, count, rank = split.by_class
        step = 1 + draw % (count[y] - 1).clamp(min=1)     # 1 to count - 1 places further
        place = (rank[idx] + step) % count[y]
    else:
        order, first, count, _ = pool.by_class
        place = draw % count[y]
    return order[first[y] + place]


def need_pairs(split, classes):
    """Raises DataError if a class of the split has a single image. classes: their names."""
    _, _, count, _ = split.by_class
    alone = (count == 1).nonzero().flatten().tolist()
    if alone:
        raise DataError(f"Class {classes[alone[0]]} has a single training image and pairs need "
                        "two: add images, leave it out or raise --limit.")


def pick(labels, n, seed):
    """Indices (n,) of seeded rows, of different labels while there are any left; all rows if there
    are fewer than n. labels: int64 (N,), 0 or more."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = by_class(labels.cpu()[order])[3]               # 0 for the first row of its label
    return order[rank.argsort(stable=True)][:n].to(labels.device)


# %% Sets and their files

SETS = {}                                                 # name -> what register was given, read


@dataclass
class Source:
    """What the function of a set returns. x: uint8 (N, C, H, W) of any size, or a list of N files.
    y: classes int64 (N,). test: bool (N,), the published test images. factors: name -> (names of
    the values, int64 (N,)). val: number of validation images, 0 for a tenth. identities: a fifth of
    the classes is held out as unseen. mode: how files are read, "L" or "RGB"; None is RGB, or L if
    all images are gray."""
    x: object
    y: torch.Tensor
    classes: list
    test: torch.Tensor = None
    factors: dict = field(default_factory=dict)
    val: int = 0
    identities: bool = False
    mode: str = None


def register(name, about, size, files=(), source="", fetch=None):
    """Decorator that adds a set. The function takes the keywords root, files, size, limit, seed and
    option, or some of them and **_, and returns a Source. about: for the list of sets. size:
    default image size. files: glob patterns below the data folder, each of which must match, or a
    function of root that returns them; the images of a set with files are cached. source: where
    they come from. fetch(root): downloads them."""
    def add(read):
        SETS[name] = types.SimpleNamespace(about=about, size=size, files=files, source=source,
                                           fetch=fetch, read=read)
        return read
    return add


def find_files(entry, root, fetch=True):
    """The files of a set in SETS, downloaded if they are missing and can be. Raises DataError that
    says which file is missing, where it comes from and where it belongs."""
    patterns = entry.files(root) if callable(entry.files) else entry.files
    cure = (f"get it from {entry.source} and put it there, or use sprites or digits, which work "
            "offline")
    files = []
    for pattern in patterns:
        path = root / pattern.rstrip("*")
        if fetch and entry.fetch and not any(root.glob(pattern)):
            with file_errors(path, cure, "is missing and could not be fetched"):
                entry.fetch(root)
        matches = sorted(root.glob(pattern))
        if not matches:
            raise DataError(f"{path} is missing: {cure}.")
        files += matches
    return files


# %% Loading

def load(name, data_dir="data", image_size=None, limit=None, seed=0, val=True):
    """Loads the set `name` as a Dataset on the CPU; `python data.py` lists the names. image_size: 8
    to 256; default: the set's own. limit: about this many images in all; whole identities if some
    of them are held out. val=False leaves the validation images in train. Raises DataError if an
    argument or a file is not usable."""
    root = Path(data_dir)
    kind, _, option = name.partition(":")
    takes_option = kind in ("folder", "multipie")
    if kind not in SETS or option and not takes_option or name in ("folder", "folder:"):
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
    sizes = []                                            # of a user's files
    if kind == "folder":
        option, files = find_images(option)
        sizes = [(path.relative_to(option).as_posix(), path.stat().st_size) for path in files]
    else:
        files = find_files(entry, root)

    digest = hashlib.sha256(f"{CACHE_VERSION}".encode())  # of the files as they are now
    for path in files:
        stat = f" {path.stat().st_size} {path.stat().st_mtime_ns}\n"
        digest.update(os.fsencode(os.path.abspath(path) + stat))
    stem = re.sub(r"[^\w-]+", "-", name)[-60:]
    limited = f"-{limit}-{seed}" if limit else ""
    cache = root / f"{stem}-{size}{limited}-{digest.hexdigest()[:10]}.pt"
    source = read_cache(cache)
    is_new = source is None
    if is_new:
        if files:
            print(f"{name}: reading the images, this once", flush=True)
        source = entry.read(root=root, files=files, size=size, limit=limit, seed=seed,
                            option=option)
        select_images(source, size, limit, seed)
    data = split_source(name, source, seed, val, sizes)
    if is_new and files:
        write_cache(cache, source)
    return data


def select_images(source, size, limit, seed):
    """Reduces a Source, in place, to about `limit` seeded images of size x size, train and test in
    proportion. Four of every class come first: a pair, and one each for validation and test."""
    idx = torch.arange(len(source.y))
    if limit and limit < len(idx) and not source.identities:
        rng = torch.Generator().manual_seed(seed)
        test = torch.zeros(len(idx), dtype=torch.bool) if source.test is None else source.test
        picked = []
        for part in (~test, test):
            rows = part.nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=rng)]
            late = by_class(source.y[rows])[3] >= 4
            rows = rows[late.int().argsort(stable=True)]
            least = 1 if part is test else int((~late).sum())
            picked.append(rows[:max(round(limit * len(rows) / len(idx)), least)])
        idx = torch.cat(picked).sort().values
        source.val = 0
    if isinstance(source.x, list):
        files = [source.x[i] for i in idx]
        source.x = read_images(files, size, source.mode or "RGB")
        if source.mode is None and (source.x == source.x[:, :1]).all():
            source.x = source.x[:, :1].contiguous()
    else:
        source.x = crop_and_resize(source.x[idx], size)
    source.y = source.y[idx]
    if source.test is not None:
        source.test = source.test[idx]
    source.factors = {key: (names, v[idx]) for key, (names, v) in source.factors.items()}


def stratified_mask(y, share, rng):
    """Mask (N,) of a seeded share of every class, at least one image; leaves two if it can."""
    order = torch.randperm(len(y), generator=rng)
    _, _, count, rank = by_class(y[order])
    count = count[y[order]]
    wanted = (share * count).round().long().clamp(min=1).minimum(count - 2)
    return (rank < wanted)[order.argsort()]               # in the order of y again


def split_source(name, source, seed, val, sizes):
    """The Dataset of a Source, split by seed. Known identities get the classes 0 to K - 1, unseen
    ones the classes from K. Raises DataError if the set is too small."""
    rng = torch.Generator().manual_seed(seed)
    y = source.y
    classes = source.classes
    parts = ["train", "val", "test"]
    part = torch.zeros_like(y)                            # of each image, an index of parts
    if source.identities:
        parts.append("unseen")
        known = round(0.8 * len(classes))
        order = torch.randperm(len(classes), generator=rng)
        order = torch.cat([order[:known].sort().values, order[known:].sort().values])
        y = order.argsort()[y]
        classes = [classes[i] for i in order]
        part[y >= known] = parts.index("unseen")
    test = stratified_mask(y, 0.2, rng) if source.test is None else source.test
    part[test & (part == 0)] = parts.index("test")
    rest = (part == 0).nonzero()[:, 0]
    if source.val:
        held_out = rest[torch.randperm(len(rest), generator=rng)[-source.val:]]
    else:
        held_out = rest[stratified_mask(y[rest], 0.1, rng)]
    part[held_out] = parts.index("val")
    rows = {key: (part == k).nonzero()[:, 0] for k, key in enumerate(parts)}
    if len(classes) < 2 or not all(map(len, rows.values())):
        raise DataError(f"{name} is too small to split: give it two classes or more, and four "
                        "images or more of each.")

    if not val:
        rows["train"] = torch.cat([rows["train"], rows.pop("val")])
    splits = {"val": None}
    digest = hashlib.sha256(repr([classes, sizes]).encode("utf-8", "backslashreplace"))
    for key, idx in rows.items():
        factors = {factor: values[idx] for factor, (_, values) in source.factors.items()}
        splits[key] = Split(source.x[idx], y[idx], factors)
        digest.update(key.encode() + torch.stack([idx, y[idx]]).numpy().astype("<i8").tobytes())
    names = {factor: names for factor, (names, _) in source.factors.items()}
    return Dataset(name, classes, factors=names, fingerprint=digest.hexdigest()[:16], **splits)


def read_cache(path):
    """The Source in a cache file; None if there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        return Source(**torch.load(path, weights_only=True))
    except Exception:                                     # damaged bytes raise anything
        print(f"{path} is damaged: building it again", flush=True)
        return None


def write_cache(path, source):
    """Saves a Source under a temporary name, then renames it; in a folder that is read-only or full
    there is no cache."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(source), part)
        os.replace(part, path)
    except (OSError, RuntimeError):
        part.unlink(missing_ok=True)


# %% Reading files

@contextlib.contextmanager
def file_errors(file, cure="delete it and run again to fetch it anew", failure="cannot be read"):
    """Turns whatever goes wrong with a file into a DataError that names the file and a cure."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:                            # damaged bytes raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{file} {failure} ({reason[-100:]}): {cure}.") from error


def crop_and_resize(x, size):
    """Crops uint8 (N, C, H, W) to its central square and resizes it with antialiasing: uint8
    (N, C, size, size)."""
    height, width = x.shape[2:]
    side = min(height, width)
    x = x[:, :, (height - side) // 2:, (width - side) // 2:][:, :, :side, :side]
    if side == size:
        return x.contiguous()
    resized = []
    for part in x.split(2048):                            # all as floats would take too much memory
        part = F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        resized.append(part.round().clamp(0, 255).byte())
    return torch.cat(resized)


def read_images(files, size, mode):
    """Reads image files as uint8 (N, C, size, size); C is 1 for mode "L" and 3 for "RGB". Images
    are turned as their EXIF data say, laid on white if transparent, cropped and resized. Raises
    DataError that names the file."""
    from PIL import Image, ImageOps
    x = torch.empty(len(files), len(mode), size, size, dtype=torch.uint8)
    for i, file in enumerate(files):
        with file_errors(file, "replace or remove it"), Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):                # gray of 16 bits, which Pillow would clip
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert(mode)).reshape(1, image.height, image.width, len(mode))
            x[i] = crop_and_resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), size)[0]
    return x


def encode_labels(values):
    """Labels as the sorted list of their names, and indices int64 (N,) into that list."""
    names, idx = np.unique(values, return_inverse=True)
    return [str(name) for name in names], torch.from_numpy(idx)


def torchvision():
    """The module torchvision; the only way in to it, at the time of use: the import takes 2 s. One
    built for CUDA does not load its operators beside a CPU-only torch, and the import fails with
    "operator torchvision::nms does not exist". Nothing here needs them, so they are declared."""
    try:
        import torchvision
    except ImportError as error:
        raise DataError("torchvision is missing: run pip install -r requirements.txt.") from error
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}",
                                 "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


# %% Folders of images

IMAGE_SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif",
                  ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx"}


def image_files(folder):
    """All images below a folder that are not hidden: their paths, sorted, and phrases that say what
    was skipped. Links are followed."""
    found = glob.glob("**/*", root_dir=folder, recursive=True)
    files = [Path(folder, name) for name in found if os.path.isfile(Path(folder, name))]
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    others = {path.suffix.lower() for path in files} - IMAGE_SUFFIXES
    return images, [f"files named *{suffix}" for suffix in sorted(others)]


def find_images(option):
    """The folder of folder:PATH and the images in its sub-folders. Raises DataError if there are
    none, or if the sub-folders are parts instead of classes."""
    folder = Path(option).expanduser()
    files, skipped = image_files(folder)
    in_classes = [path for path in files if path.parent != folder]
    if skipped:
        print(f"skipped {', '.join(skipped)}", flush=True)
    if not in_classes:
        raise DataError(f"There is no folder {option!r} with images in sub-folders: write "
                        "folder:PATH, where PATH holds one sub-folder of images per class.")
    names = {path.relative_to(folder).parts[0] for path in in_classes}
    if names <= {"train", "val", "valid", "test"}:
        raise DataError(f"{option} is divided into {', '.join(sorted(names))}, but its sub-folders "
                        "must be the classes: merge the parts, or write folder:PATH/train.")
    return folder, in_classes


@register("folder", "your images: folder:PATH with one sub-folder per class", 64)
def read_folder(files, option, **_):
    classes, y = encode_labels([path.relative_to(option).parts[0] for path in files])
    return Source(files, y, classes)


# %% Published sets

DIGITS = list("0123456789")
CLOTHES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
           "Boot"]
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
BSDS = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
PHOTOS = "BSR/BSDS500/data/images/train"


def read_idx(file):
    """An idx file, gzipped or not, as a uint8 tensor: labels (N,) or images (N, H, W)."""
    with file_errors(file):
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        dims = raw[3]
        shape = np.frombuffer(raw, ">i4", dims, offset=4)
        pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
        return torch.from_numpy(pixels.reshape(shape).copy())


@register("mnist", "handwritten digits, 70,000 gray images", 28,
          files=[f"MNIST/raw/{name}-ubyte*" for name in IDX_FILES],
          source="https://ossci-datasets.s3.amazonaws.com/mnist/",
          fetch=lambda root: torchvision().datasets.MNIST(root, download=True))
@register("fashion", "Fashion-MNIST, clothes, 70,000 gray images", 28,
          files=[f"FashionMNIST/raw/{name}-ubyte*" for name in IDX_FILES],
          source="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
          fetch=lambda root: torchvision().datasets.FashionMNIST(root, download=True))
def read_mnist(files, **_):
    path = {file.name.split("-ubyte")[0]: file for file in reversed(files)}
    x, y, x_test, y_test = [read_idx(path[name]) for name in IDX_FILES]
    classes = CLOTHES if files[0].parts[-3] == "FashionMNIST" else DIGITS
    test = torch.arange(len(y) + len(y_test)) >= len(y)
    return Source(torch.cat([x, x_test])[:, None], torch.cat([y, y_test]).long(), classes, test,
                  val=5000)


def fetch_svhn(root):
    for part in ("train", "test"):
        torchvision().datasets.SVHN(root, part, download=True)


@register("svhn", "house numbers, 73,257 and 26,032 colour digits", 32, fetch=fetch_svhn,
          files=["train_32x32.mat", "test_32x32.mat"],
          source="http://ufldl.stanford.edu/housenumbers/")
def read_svhn(files, **_):
    from scipy.io import loadmat
    images = []
    labels = []
    for file in files:                                    # train, test
        with file_errors(file):
            content = loadmat(file, variable_names=("X", "y"))
            images.append(torch.from_numpy(content["X"].transpose(3, 2, 0, 1).copy()))
            labels.append(torch.from_numpy(content["y"][:, 0] % 10).long())     # 10 is a zero
    y = torch.cat(labels)
    return Source(torch.cat(images), y, DIGITS, torch.arange(len(y)) >= len(labels[0]))


@register("digits", "scikit-learn's digits, 1,797 gray images, enlarged", 28)
def read_digits(**_):
    from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x * 255 / 16).round().astype(np.uint8))
    return Source(x.view(-1, 1, 8, 8), torch.from_numpy(y).long(), DIGITS)


def blend(ink, photos):
    """Lays ink, bool (N, 28, 28), over crops of photos, uint8 arrays (H, W, 3), by the rule of
    MNIST-M (Ganin et al. 2016): uint8 (N, 3, 32, 32), 255 - photograph where there is ink, else
    the photograph. The crops are seeded and the same on every machine."""
    out = np.empty((len(ink), 32, 32, 3), np.uint8)
    ink = F.pad(ink, [2, 2, 2, 2]).numpy()[..., None]
    draws = np.random.PCG64(0).random_raw((len(ink), 3)).tolist()
    for i, (number, row, column) in enumerate(draws):
        photo = photos[number % len(photos)]
        top = row % (photo.shape[0] - 31)
        left = column % (photo.shape[1] - 31)
        crop = photo[top:top + 32, left:left + 32]
        out[i] = np.where(ink[i], 255 - crop, crop)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


@register("digitsm", "digits over scikit-learn's two photographs, as MNIST-M", 32)
def read_digitsm(**_):
    from sklearn.datasets import load_sample_images
    source = read_digits()
    ink = crop_and_resize(source.x, 28)[:, 0] > 127       # enlarged, they have soft edges
    return Source(blend(ink, load_sample_images().images), source.y, source.classes)


def fetch_mnistm(root):
    """Downloads what MNIST-M is built from: MNIST, and the 200 training photographs of BSDS500."""
    find_files(SETS["mnist"], root)
    if (root / PHOTOS).exists():
        return
    with tempfile.TemporaryDirectory(dir=root) as folder:
        torchvision().datasets.utils.download_url(BSDS, folder)
        shutil.unpack_archive(Path(folder, "BSR_bsds500.tgz"), folder, filter="data")
        (root / PHOTOS).parent.mkdir(parents=True, exist_ok=True)
        os.replace(Path(folder, PHOTOS), root / PHOTOS)


def mnistm_files(root):
    if (root / "mnist_m").exists():                       # as published
        return ["mnist_m/mnist_m_test*", "mnist_m/mnist_m_train*"]
    return [f"{PHOTOS}/[0-9]*.jpg", "MNIST/raw/*-ubyte*"]


@register("mnistm", "MNIST-M, published or built here from MNIST and BSDS500", 32,
          files=mnistm_files, source=BSDS, fetch=fetch_mnistm)
def read_mnistm(root, files, **_):
    from PIL import Image
    if (root / "mnist_m").exists():
        paths = []
        labels = []
        for part in ("mnist_m_test", "mnist_m_train"):
            file = root / "mnist_m" / f"{part}_labels.txt"
            with file_errors(file, "unpack MNIST-M anew"):
                names, numbers = np.loadtxt(file, str, unpack=True)
                paths += [root / "mnist_m" / part / name for name in names]
                labels += map(int, numbers)
        test = torch.tensor([path.parent.name == "mnist_m_test" for path in paths])
        return Source(paths, torch.tensor(labels), DIGITS, test, mode="RGB")

    photos = []
    for file in files:
        if file.suffix == ".jpg":
            with file_errors(file, "unpack the archive anew"), Image.open(file) as photo:
                photos.append(np.array(photo.convert("RGB")))
    if len(photos) != 200:
        raise DataError(f"{root / PHOTOS} holds {len(photos)} of 200 photographs: delete it and "
                        "run again to fetch it anew.")
    mnist = read_mnist(find_files(SETS["mnist"], root))
    return Source(blend(mnist.x[:, 0] > 0, photos), mnist.y, mnist.classes, mnist.test)


def moons(points=150, seed=1, dtype=torch.float32):
    """The twin moons of the DANN paper (Ganin et al. 2016, 5.1) with its authors' constants: a
    source and a target Split of x (points, 2); y is 0 on the upper moon of the source and 1 on the
    lower. The target is another draw, turned by 35 degrees."""
    from sklearn.datasets import make_moons
    x, y = make_moons(points, noise=0.05, random_state=seed)
    x_target, y_target = make_moons(points, noise=0.05, random_state=seed + 1)
    cos = np.cos(np.deg2rad(35))
    sin = np.sin(np.deg2rad(35))
    x_target = 2 * (x_target - x.mean(0)) @ [[cos, sin], [-sin, cos]]
    x = 2 * (x - x.mean(0))
    return [Split(torch.tensor(x, dtype=dtype), torch.tensor(y)),
            Split(torch.tensor(x_target, dtype=dtype), torch.tensor(y_target))]


def fetch_faces(root):
    from sklearn.datasets import fetch_olivetti_faces
    fetch_olivetti_faces(data_home=str(root))


@register("faces", "Olivetti, 40 people, 400 gray images", 64, ["olivetti_py3.pkz"],
          "https://ndownloader.figshare.com/files/5976027", fetch_faces)
def read_faces(files, **_):
    """The file is a pickle, and unpickling runs whatever code a file holds. But a pickled array
    ends in its bytes and a full stop; only these are read."""
    n = 400 * 64 * 64
    with file_errors(files[0]):
        raw = zlib.decompress(files[0].read_bytes())
        x = np.frombuffer(raw, np.float64, n, offset=len(raw) - 1 - 8 * n)
    x = (x * (255 / x.max())).round().astype(np.uint8)
    x = torch.from_numpy(x).view(400, 1, 64, 64).transpose(2, 3).contiguous()
    return Source(x, torch.arange(400) // 10, [f"person {i}" for i in range(40)])


def match_names(files, pattern):
    """The files whose names match a pattern, and the groups of their names, str (N, groups). Of
    files with equal groups the last one counts. Raises DataError if there are none."""
    named = {}
    for path in files:
        match = re.fullmatch(pattern, path.name)
        if match:
            named[match.groups()] = path
    if not named:
        raise DataError(f"No file such as {files[0]} has a published name and was chosen: unpack "
                        "the set anew, or choose others.")
    return list(named.values()), np.array(list(named))


@register("yaleb", "Extended Yale B, 38 people, 64 lights, 2,414 gray images", 64,
          ["CroppedYale/yaleB*/*.pgm"], "http://vision.ucsd.edu/~leekc/ExtYaleDatabase")
def read_yaleb(files, **_):
    paths, groups = match_names(files, r"(yaleB\d\d)_P00A([+-]\d+)E([+-]\d+)\.pgm")
    classes, y = encode_labels(groups[:, 0])
    factors = {"azimuth": encode_labels(groups[:, 1].astype(int)),
               "elevation": encode_labels(groups[:, 2].astype(int))}
    return Source(paths, y, classes, factors=factors, mode="L")


@register("multipie", "your licensed copy; multipie:CAMERAS:SESSIONS, else 051 and 01", 64,
          ["multipie/session*/multiview/*/*/*/*.png"],
          "https://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie")
def read_multipie(files, option, **_):
    """multipie:051,140:01,02 reads two cameras and two sessions."""
    cameras, _, sessions = option.partition(":")
    cameras = re.escape(cameras or "051").replace(",", "|")
    sessions = re.escape(sessions or "01").replace(",", "|")
    pattern = rf"(\d{{3}})_((?:{sessions})_\d\d)_({cameras})_(\d\d)(?:_crop_128)?\.png"
    paths, groups = match_names(files, pattern)
    expressions = {"01_02": "smile", "03_02": "smile", "02_02": "surprise", "02_03": "squint",
                   "03_03": "disgust", "04_03": "scream"}      # by session and recording
    expression = [expressions.get(recording, "neutral") for recording in groups[:, 1]]
    classes, y = encode_labels(groups[:, 0])
    factors = {"camera": encode_labels(groups[:, 2]), "light": encode_labels(groups[:, 3]),
               "expression": encode_labels(expression)}
    return Source(paths, y, classes, factors=factors, mode="RGB")


@register("sprites2015", "Reed et al. 2015, 336 game characters in 172 poses", 32,
          files=["sprites/sprites_[0-9]*.mat"],
          source="http://www.scottreed.info/files/nips2015-analogy-data.tar.gz")
def read_sprites2015(files, size, limit, seed, **_):
    """The even characters (odd ones differ only in the weapon) without the poses of being hurt."""
    with file_errors("sprites2015", "run pip install h5py"):
        import h5py
    numbers = sorted(int(path.stem.removeprefix("sprites_")) for path in files)
    numbers = [number for number in numbers if number % 2 == 0]
    if limit:
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        numbers = [numbers[i] for i in order[:max(10, round(limit / 172))].sort().values]

    x = torch.empty(len(numbers), 172, 3, size, size, dtype=torch.uint8)
    labels = np.empty((len(numbers), 7), int)
    for i, number in enumerate(numbers):
        path = files[0].parent / f"sprites_{number}.mat"
        with file_errors(path, "unpack the archive anew"), h5py.File(path) as file:
            labels[i] = file["labels"][()].reshape(7)
            cells = file["sprites"][()].ravel()[:20]      # references to clips (frames, 10800)
            clips = np.concatenate([file[cell][()] for cell in cells])
            clips = (255 * clips.reshape(172, 3, 60, 60).swapaxes(2, 3)).round().astype(np.uint8)
            x[i] = crop_and_resize(torch.from_numpy(clips), size)

    factors = {}
    for k, name in enumerate(("sex", "body", "armor", "hair", "arm", "greaves", "weapon")):
        names, values = encode_labels(labels[:, k])
        if len(names) > 1:
            factors[name] = (names, values.repeat_interleave(172))
    poses = []
    for action, frames in zip(("spellcast", "thrust", "walk", "slash", "shoot"), (7, 8, 9, 6, 13)):
        poses += itertools.product([action], ("back", "left", "front", "right"), range(frames))
    for name, column in zip(("action", "direction", "frame"), zip(*poses)):
        names, values = encode_labels(column)
        factors[name] = (names, values.repeat(len(numbers)))
    return Source(x.flatten(0, 1), torch.arange(len(numbers)).repeat_interleave(172),
                  [f"character {number}" for number in numbers], factors=factors, identities=True)


# %% Sprites
#
# Small game characters, drawn with integer arithmetic: the same bytes on every machine. Shapes are
# drawn once per hair style, top style and pose, as maps of palette slots; a person's pictures are
# these maps looked up in the person's palette. Lengths are in 1/64 of the picture.

SPRITE_ATTRIBUTES = {
    "skin": ["fair", "bronze", "brown", "moss", "lilac"],
    "hair_style": ["short", "long", "spiky", "ponytail", "mohawk", "afro"],
    "hair_colour": ["black", "ginger", "blond", "white", "blue", "pink"],
    "top_style": ["tee", "striped", "robe", "armour"],
    "top_colour": ["crimson", "amber", "green", "sky", "indigo", "charcoal"],
    "legs_colour": ["cream", "denim", "black", "rust", "teal"]}
SPRITE_POSES = {"action": ["walk", "cast", "slash", "shoot"],
                "direction": ["back", "left", "front", "right"], "frame": ["1", "2", "3", "4"]}
LIGHT, SHADE, LINE, SHINE = range(4)  # a slot is 4 * material + tone; slot 0 is the background
COLOURS = {                           # material -> one colour, or one for each attribute value
    "ground": "a8beac", "leather": "8a5630", "steel": "beccde", "gold": "face46", "white": "fcfcf6",
    "ink": "28203c", "magic": "82f0ff",
    "skin": "ffdaba de9e64 865236 8cc454 c0a2ec",
    "hair": "3e384e de6020 fad860 f0f0f8 3868dc f474b8",
    "top": "ce2834 f6b224 409c42 68c0f8 5c46be 545462",
    "legs": "f0e4c8 466cbe 3a3848 c4562c 208c7c"}
MATERIALS = list(COLOURS)

# What a body does, four frames per action: rise and lean; feet (x, lift) and hands (x, y) seen from
# the front or back; feet and hands seen from the side. The weapon's or nearer side comes first.
MOVES = [
    (0, 0, [(5, 0), (-5, 4)], [(13, 47), (-15, 43)], [(7, 0), (-7, 1)], [(-8, 44), (10, 43)]),
    (2, 2, [(5, 0), (-5, 0)], [(15, 45), (-14, 46)], [(1, 0), (-5, 4)], [(-2, 46), (4, 45)]),
    (0, 0, [(5, 4), (-5, 0)], [(15, 43), (-13, 47)], [(-7, 1), (7, 0)], [(9, 43), (-9, 44)]),
    (2, -2, [(5, 0), (-5, 0)], [(14, 46), (-15, 45)], [(-5, 4), (1, 0)], [(4, 45), (-2, 46)]),
    (0, 0, [(5, 0), (-5, 0)], [(18, 39), (-18, 39)], [(-4, 0), (5, 0)], [(11, 40), (14, 37)]),
    (0, 0, [(5, 0), (-5, 0)], [(21, 33), (-21, 33)], [(-4, 0), (5, 0)], [(16, 36), (18, 32)]),
    (2, 0, [(6, 0), (-6, 0)], [(20, 26), (-20, 26)], [(-5, 0), (6, 0)], [(18, 31), (20, 26)]),
    (2, 0, [(6, 0), (-6, 0)], [(23, 30), (-23, 30)], [(-5, 0), (6, 0)], [(20, 34), (22, 30)]),
    (2, -6, [(6, 0), (-6, 0)], [(20, 29), (-14, 44)], [(-5, 0), (5, 0)], [(17, 28), (-9, 42)]),
    (0, -4, [(6, 0), (-6, 0)], [(20, 33), (-15, 43)], [(-5, 0), (6, 0)], [(18, 32), (-10, 42)]),
    (0, -4, [(8, 0), (-6, 0)], [(20, 38), (-16, 41)], [(-6, 0), (8, 0)], [(18, 38), (-11, 41)]),
    (-2, -4, [(8, 0), (-6, 0)], [(18, 44), (-14, 43)], [(-6, 0), (8, 0)], [(15, 43), (-9, 41)]),
    (0, -4, [(7, 0), (-6, 0)], [(21, 41), (17, 40)], [(-6, 0), (6, 0)], [(15, 40), (21, 41)]),
    (0, -6, [(7, 0), (-6, 0)], [(22, 37), (13, 37)], [(-6, 0), (6, 0)], [(11, 37), (22, 37)]),
    (0, -6, [(7, 0), (-7, 0)], [(22, 37), (8, 37)], [(-7, 0), (6, 0)], [(5, 37), (22, 37)]),
    (0, -4, [(7, 0), (-6, 0)], [(21, 37), (-15, 42)], [(-6, 0), (6, 0)], [(-5, 40), (21, 37)]),
]
SPRITE_ARMS = {"back": ((1, 0), ()), "left": ((1,), (0,)),    # behind and before the body
               "front": ((), (1, 0)), "right": ((1,), (0,))}
TIPS = [(23, 5), (33, 15), (34, 39), (29, 58)]                # the point of the sword, by frame
SPARKS = [[(25, 29, 3), (27, 43, 1)], [(25, 21, 5), (29, 9, 1)],               # (x, y, radius)
          [(25, 11, 7), (29, 29, 3), (19, 3, 1)], [(27, 17, 3), (21, 5, 3), (29, 41, 3)]]


class Canvas:
    """A map of palette slots (size, size) for one pose, and shapes to fill it. x runs from the
    middle, forward or towards the weapon's side; y runs down."""

    def __init__(self, size, action, direction, frame):
        self.map = np.zeros((size, size), np.uint8)
        self.action = action
        self.frame = frame
        self.sway = (0, 2, 0, -2)[frame]                       # of hair
        self.side = direction in ("left", "right")
        self.view = "side" if self.side else direction
        row = 4 * SPRITE_POSES["action"].index(action) + frame
        self.rise, lean, *limbs = MOVES[row]
        self.feet, self.hands = limbs[2:] if self.side else limbs[:2]
        centers = (2 * np.arange(size, dtype=np.int64) + 1) * 64 // size       # of pixels, in 1/128
        forward = -1 if direction in ("front", "left") else 1
        self.x = (centers - 64) * forward - 2 * lean
        self.y = (centers + 2 * self.rise)[:, None]
        self.stripes = ((self.y - 40) % 8 <= 4) & (self.y <= 92)
        self.ears = self.polygon((11, 19), (19, 21), (11, 28))
        self.ears |= self.polygon((-11, 19), (-19, 21), (-11, 28))

    def ellipse(self, cx, cy, rx, ry):
        return ((self.x - 2 * cx) * ry) ** 2 + ((self.y - 2 * cy) * rx) ** 2 <= (2 * rx * ry) ** 2

    def box(self, left, top, right, bottom):
        across = (self.x >= 2 * left) & (self.x <= 2 * right)
        return across & (self.y >= 2 * top) & (self.y <= 2 * bottom)

    def polygon(self, *points):
        """A convex polygon: the places on one side of all its edges."""
        sides = [(x1 - x0) * (self.y - 2 * y0) - (y1 - y0) * (self.x - 2 * x0)
                 for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1])]
        return (np.min(sides, 0) >= 0) | (np.max(sides, 0) <= 0)

    def line(self, start, end, width):
        """Places within width / 2 of a segment; distances are multiplied by its squared length."""
        x = self.x - 2 * start[0]
        y = self.y - 2 * start[1]
        dx = 2 * (end[0] - start[0])
        dy = 2 * (end[1] - start[1])
        length2 = max(dx * dx + dy * dy, 1)
        t = np.clip(x * dx + y * dy, 0, length2)
        return (x * length2 - t * dx) ** 2 + (y * length2 - t * dy) ** 2 <= (width * length2) ** 2

    def fill(self, mask, material, tone=LIGHT):
        self.map[mask] = 4 * MATERIALS.index(material) + tone

    def paint(self, mask, material, edge="ground"):
        """Fills a shape in light, with shade at its lower right. edge: a dark line around it on the
        "ground" (where nothing is yet), around "all" of it, or "none"."""
        size = len(mask)
        k = size // 32
        padded = np.pad(mask, k)

        def moved(dy, dx):
            return padded[k + dy:k + dy + size, k + dx:k + dx + size]

        ring = (moved(0, 1) | moved(0, -1) | moved(1, 0) | moved(-1, 0)) & ~mask
        if edge == "ground":
            ring &= self.map == 0
        if edge != "none":
            self.fill(ring, material, LINE)
        self.fill(mask, material)
        self.fill(mask & ~(moved(k, k) & moved(0, k)), material, SHADE)


def draw_body(c, top):
    """The shadow, the legs, the boots and the top without its sleeves."""
    c.fill(c.ellipse(0, 60 + c.rise, 18, 3), "ground", SHADE)
    for x, lift in reversed(c.feet):
        y = 61 + c.rise - lift                                 # the body may rise, the feet do not
        if c.side:
            hip = x // 4
            boot = c.ellipse(x + 2, y - 1, 6, 3)
        else:
            hip = 4 if x > 0 else -4
            boot = c.ellipse(x, y - 1, 5, 3)
        c.paint(c.line((hip, 46), (x, y - 5), 7), "legs", "all")
        boot |= c.box(x - 4, y - 4, x + 3, y - 1)
        c.paint(boot & c.box(-40, 0, 40, y), "leather")
    w = 8 if c.side else 9
    chest = c.polygon((1 - w, 33), (w - 1, 33), (w + 1, 46), (-w - 1, 46)) | c.box(-w, 44, w, 48)
    if top == "robe":
        chest |= c.polygon((-w, 42), (w, 42), (w + 4, 50), (-w - 4, 50))
    c.paint(chest, "top")
    if top == "tee" and c.view == "front":
        c.fill(c.polygon((0, 35), (5, 40), (0, 45), (-5, 40)), "white")
    elif top == "striped":
        c.paint(chest & c.stripes, "white")
    elif top == "robe":
        c.paint(chest & (c.box(-20, 42, 20, 44) | c.box(-20, 48, 20, 50)), "gold")
        if c.view != "back":
            c.fill(c.box(-1, 34, 1, 50 if c.side else 42), "gold")
    elif top == "armour":
        c.paint(chest & c.box(-20, 44, 20, 46), "leather")
        if c.view == "front":
            c.paint(c.polygon((-4, 34), (4, 34), (0, 42)), "steel")
        elif c.view == "back":                                 # the body hides the arms, not these
            c.paint(c.ellipse(-11, 36, 5, 4), "steel", "all")
            c.paint(c.ellipse(11, 36, 5, 4), "steel", "all")


def draw_arms(c, top, which):
    """One arm (0 the weapon's or the near one, 1 the other) or both, with what they hold."""
    for i in which:
        shoulders = [(-1, 37), (2, 37)] if c.side else [(11, 37), (-11, 37)]
        sx, sy = shoulders[i]
        hx, hy = c.hands[i]
        wrist = ((sx + 3 * hx) // 4, (sy + 3 * hy) // 4)
        if c.action == "slash" and i == 0:                     # the sword, its edge and its guard
            dx = TIPS[c.frame][0] - hx
            dy = TIPS[c.frame][1] - hy
            gx = hx + dx // 4
            gy = hy + dy // 4
            c.paint(c.line((hx, hy), TIPS[c.frame], 4), "steel")
            c.fill(c.line((hx, hy), (hx + dx - dx // 8, hy + dy - dy // 8), 2), "white")
            c.paint(c.line((gx - dy // 6, gy + dx // 6), (gx + dy // 6, gy - dx // 6), 3), "gold")
        sleeve = c.line((sx, sy), wrist, 6)
        if top == "tee":
            c.paint(c.line((sx, sy), (hx, hy), 5), "skin", "all")
            c.paint(c.line((sx, sy), ((sx + hx) // 2, (sy + hy) // 2), 7), "top")
        elif top == "robe":
            c.paint(sleeve | c.line(wrist, wrist, 9), "top", "all")
            c.paint(c.line(wrist, wrist, 4), "gold")
        else:
            c.paint(sleeve, "top", "all")
        if top == "striped":
            c.paint(sleeve & c.stripes, "white")
        c.paint(c.ellipse(hx, hy, 3, 3), "skin")
        if top == "armour":
            c.paint(c.ellipse(sx, sy - 1, 5, 4), "steel", "all")
    if c.action == "shoot" and 0 in which:
        # The bow: its string follows the drawing hand; in the last frame the arrow flies.
        pull, bow_hand = c.hands if c.side else reversed(c.hands)
        y = bow_hand[1]
        flies = c.frame == 3
        string = (19, y) if flies else pull
        c.fill(c.line((19, y - 16), string, 2) | c.line((19, y + 16), string, 2), "white", SHADE)
        limb = c.ellipse(13, y, 13, 18) & ~c.ellipse(12, y, 11, 18) & c.box(17, 0, 40, 64)
        c.paint(limb, "leather", "all")
        x = 33 if flies else pull[0] + 18                      # of the arrow's head
        c.paint(c.line((27, y) if flies else pull, (x, y), 2), "gold")
        c.paint(c.polygon((x - 1, y - 4), (x - 1, y + 4), (x + 4, y)), "steel")


def draw_head(c):
    nose_or_ears = c.ellipse(14, 25, 2, 2) if c.side else c.ears
    c.paint(c.ellipse(0, 20, 14, 13) | nose_or_ears, "skin")
    if c.view == "back":
        return
    for x in [8] if c.side else [-6, 6]:
        if c.action == "cast" and c.frame < 2:                 # the eyes are shut
            c.fill(c.box(x - 3, 24, x + 3, 26), "ink")
        else:
            c.fill(c.box(x - 2, 20, x + 2, 26), "ink")
            c.fill(c.box(x - 2, 20, x, 22), "white")
    for x in [5] if c.side else [-9, 9]:
        c.fill(c.box(x - 1, 27, x + 1, 29), "skin", SHINE)
    x = 10 if c.side else 0
    c.fill(c.box(x - 2, 28, x + 2, 30), "skin", LINE if c.action == "slash" else SHADE)


def draw_hair_behind(c, hair):
    """The hair that hangs behind the head."""
    if hair == "long" and c.view == "front":
        locks = c.polygon((-17, 20), (17, 20), (19 + c.sway, 43), (-19 + c.sway, 43))
        c.paint(c.ellipse(0, 20, 17, 15) | locks, "hair")
    elif hair == "long" and c.side:
        c.paint(c.polygon((-15, 16), (2, 16), (-2, 42), (-18 - c.sway, 42)), "hair")
    elif hair == "ponytail" and c.view != "back":
        tail = c.line((-9, 8), (-20, 13), 8) | c.line((-21, 15), (-22 - c.sway, 33), 7)
        c.paint(tail, "hair")
    elif hair == "afro":
        c.paint(c.ellipse(0, 19, 19, 16), "hair")


def draw_hair(c, hair):
    """The hair on the head with a window for the face, a highlight, and the ears."""
    cap = c.ellipse(0, 19, 16, 15)
    if hair == "afro":
        cap = c.ellipse(0, 19, 19, 16)
    elif hair == "short":
        cap = c.ellipse(0, 17, 15, 13)
    elif hair == "mohawk" and c.side:
        cap = c.ellipse(-3, 15, 15, 13) & ~c.ellipse(2, 23, 13, 14) & c.box(-40, 0, 9, 27)
        for x, y in [(6, 2), (-5, 1), (-15, 4), (-20, 12), (-20, 22)]:
            cap |= c.polygon((x, y), (x // 2 - 5, 13), (x // 2 + 3, 9))
    elif hair == "mohawk":
        cap = c.line((0, 6), (0, 25 if c.view == "back" else 11), 9)
    elif hair == "spiky":
        tips = [(-21, 14), (-15, 5), (-5, 2), (6, 2), (15, 5), (21, 14)]
        if c.side:
            tips = [(-21, 22), (-21, 12), (-14, 4), (-4, 2), (7, 2), (17, 7)]
        for x, y in tips:
            cap |= c.polygon((x, y), (x * 2 // 3 - 5, 16), (x * 2 // 3 + 5, 16))
    if c.view == "front" and hair != "mohawk":
        cap &= ~c.ellipse(2 if hair == "short" else 0, 25, 12, 11) & c.box(-40, 0, 40, 26)
    elif c.side:
        cap &= ~c.ellipse(9, 25, 11, 10) & ~c.box(-6, 22, 40, 40) & c.box(-40, 0, 40, 28)
    elif hair in ("spiky", "ponytail"):
        cap &= c.box(-40, 0, 40, 28)
        if hair == "spiky":
            for x in (-10, 0, 10):
                cap |= c.polygon((x - 5, 27), (x + 5, 27), (x, 35))
    elif hair == "long":
        cap |= c.polygon((-16, 19), (16, 19), (12 + c.sway, 40), (-12 + c.sway, 40))
    c.paint(cap, "hair")
    highlight = c.ellipse(-1, 14, 11, 7) & ~c.ellipse(0, 17, 12, 7)
    c.fill(highlight & cap, "hair", SHINE)
    if hair == "ponytail":
        x = {"side": -12, "front": -11, "back": 0}[c.view]
        if c.view == "back":
            c.paint(c.ellipse(0, 18, 5, 8) | c.line((0, 20), (c.sway, 36), 8), "hair", "all")
        c.paint(c.line((x - 2, 8), (x + 2, 9), 4), "gold")
    if c.side:                                                 # skin shows from every side
        c.paint(c.ellipse(-3, 24, 3, 4), "skin", "none")
    elif c.view == "back":
        c.paint(c.ears & ~c.ellipse(0, 20, 13, 13), "skin", "all")


def draw_effect(c):
    """The sparks of a spell and the trail of the sword."""
    if c.action == "slash" and c.frame in (1, 2):
        corner = (40, 0) if c.frame == 1 else (44, 27)
        swept = c.polygon((8, 36), TIPS[c.frame - 1], corner, TIPS[c.frame])
        crescent = c.ellipse(5, 36, 30, 36) & ~c.ellipse(2, 39, 27, 34)
        c.fill(crescent & swept, "white")
    elif c.action == "cast":
        for x, y, r in SPARKS[c.frame]:
            for x in [x] if c.side else [x, -x]:
                star = c.line((x - r, y), (x + r, y), 1) | c.line((x, y - r), (x, y + r), 1)
                star |= c.ellipse(x, y, r // 2 + 1, r // 2 + 1)
                c.paint(star, "magic")
                c.fill(star, "magic")
                c.fill(c.ellipse(x, y, r // 3 + 1, r // 3 + 1), "white")


@functools.cache
def draw_layer(size, pose, draw, *style):
    """One layer of a picture, uint8 (size, size), drawn by draw(canvas, *style)."""
    canvas = Canvas(size, *pose)
    draw(canvas, *style)
    return canvas.map


@functools.cache
def sprite_maps(size, hair, top):
    """A character's palette slots in all poses, uint8 (64, size, size): layers laid over each
    other. Which arms are behind the body depends on where the character faces."""
    hair = SPRITE_ATTRIBUTES["hair_style"][hair]
    top = SPRITE_ATTRIBUTES["top_style"][top]
    poses = list(itertools.product(SPRITE_POSES["action"], SPRITE_POSES["direction"], range(4)))
    maps = np.zeros((len(poses), size, size), np.uint8)
    for i, pose in enumerate(poses):
        arms_behind, arms_before = SPRITE_ARMS[pose[1]]
        for layer in (draw_layer(size, pose, draw_effect),
                      draw_layer(size, pose, draw_arms, top, arms_behind),
                      draw_layer(size, pose, draw_hair_behind, hair),
                      draw_layer(size, pose, draw_body, top),
                      draw_layer(size, pose, draw_head),
                      draw_layer(size, pose, draw_hair, hair),
                      draw_layer(size, pose, draw_arms, top, arms_before)):
            maps[i] = np.where(layer > 0, layer, maps[i])
    return maps


def sprite_people(count=1200, seed=0):
    """Distinct people, int64 (count, attributes), with independent attributes whose values are
    about equally frequent. Any two people differ in two attributes or more: the hair colour is the
    sum of the others modulo 6, so it differs too if only one other attribute does."""
    order = np.random.PCG64(seed).random_raw(5 * 6 * 4 * 6 * 5).argsort(kind="stable")
    skin, hair, top, top_colour, legs = np.unravel_index(order, (5, 6, 4, 6, 5))
    hair_colour = (skin + hair + top + top_colour + legs) % 6
    people = np.stack([skin, hair, hair_colour, top, top_colour, legs], 1)
    room = np.array([[count // n + 2] * 6 for n in (5, 6, 6, 4, 6, 5)])  # places left per value
    chosen = []
    left_over = []
    for person in people:
        if (room[range(6), person] > 0).all():
            room[range(6), person] -= 1
            chosen.append(person)
        else:
            left_over.append(person)
    return np.stack((chosen + left_over)[:count])


@register("sprites", "1,200 game characters in 64 poses, drawn by this file", 32)
def read_sprites(size=32, limit=None, seed=0, **_):
    count = min(1200, max(10, round(limit / 64))) if limit else 1200
    size = max(32, size)                                       # load shrinks smaller pictures
    people = sprite_people(count, seed)
    # The palettes: four tones of each material.
    light = np.zeros((count, len(MATERIALS), 3), np.int64)
    column = {"skin": 0, "hair": 2, "top": 4, "legs": 5}       # of SPRITE_ATTRIBUTES
    for i, material in enumerate(MATERIALS):
        colours = np.frombuffer(bytes.fromhex(COLOURS[material]), np.uint8).reshape(-1, 3)
        light[:, i] = colours[people[:, column[material]]] if material in column else colours
    shade = light * [11, 11, 13] // 16                         # shadows are a little blue
    line = light // 4 + [8, 4, 18]
    shine = (light + 255) // 2
    ground = MATERIALS.index("ground")
    skin = MATERIALS.index("skin")
    shade[:, ground] = light[:, ground] * 13 // 16
    shine[:, skin] = (light[:, skin] * 3 + [255, 90, 110]) // 4                 # blushing cheeks
    palettes = np.stack([light, shade, line, shine], 2).reshape(count, -1, 3).astype(np.uint8)

    x = np.empty((count, 64, 3, size, size), np.uint8)
    for i, person in enumerate(people):
        maps = sprite_maps(size, person[1], person[3])         # of the hair style and the top style
        x[i] = palettes[i].T[:, maps].swapaxes(0, 1)
    factors = {}
    for name, column in zip(SPRITE_ATTRIBUTES, people.T):
        factors[name] = (SPRITE_ATTRIBUTES[name], torch.from_numpy(column.repeat(64)))
    for name, cells in zip(SPRITE_POSES, np.indices((4, 4, 4)).reshape(3, 64)):
        factors[name] = (SPRITE_POSES[name], torch.from_numpy(np.tile(cells, count)))
    return Source(torch.from_numpy(x).flatten(0, 1), torch.arange(count).repeat_interleave(64),
                  [f"person {i}" for i in range(count)], factors=factors, identities=True)


# %% Command line

def contact_sheet(data, path):
    """Writes a picture of the set: 24 images of each of 12 classes, a row per class, of unseen
    identities if there are any."""
    split = data.unseen or data.train
    rows = []
    for y in split.y.unique()[:12]:
        idx = (split.y == y).nonzero()[:, 0]
        rows.append(split.images(idx[torch.linspace(0, len(idx) - 1, 24).long()]))
    x = F.interpolate(torch.cat(rows), scale_factor=max(1, 64 // data.shape[1]))   # stays crisp
    torchvision().utils.save_image(x, path, nrow=24, pad_value=1)


def main(argv=None):
    """The command line. Returns the exit status, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"data.py: {message}.\n")     # one line
    parser.add_argument("name", nargs="?", help="a set; default: list all sets")
    parser.add_argument("--data-dir", type=Path, default="data", help="where sets and caches lie")
    parser.add_argument("--image-size", type=int, help="8 to 256; default: the set's own")
    parser.add_argument("--limit", type=int, help="about this many images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, and of sprites")
    args = parser.parse_args(argv)
    try:
        if args.name is None:
            for name, entry in SETS.items():
                place = "there" if entry.files else "works offline"
                try:
                    find_files(entry, args.data_dir, fetch=False)
                except DataError:
                    place = "fetched when first used" if entry.fetch else f"from {entry.source}"
                print(f"{name:12}{entry.about:65}{place}")
            return 0
        data = load(args.name, args.data_dir, args.image_size, args.limit, args.seed)
        sheet = args.data_dir / f"{args.name.partition(':')[0]}.png"
        args.data_dir.mkdir(parents=True, exist_ok=True)
        contact_sheet(data, sheet)
        print(data)
        for factor, values in data.factors.items():
            print(f"{factor:12}{len(values)} values: {' '.join(values)}")
        digest = hashlib.sha256()
        for split in data.splits().values():
            digest.update(split.x.numpy())
        print(f"sha256  {digest.hexdigest()}\nsheet   {sheet}")
        return 0
    except (DataError, OSError) as error:
        print(f"data.py: {str(error).removesuffix('.')}.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
