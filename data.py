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
import gzip
import hashlib
import importlib.util
import itertools
import os
import re
import sys
import tarfile
import tempfile
import types
import warnings
import zipfile
import zlib
from collections import Counter
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
    fingerprint: 16 hexadecimal digits that identify what the splits were made from (class names,
    labels, which image is in which split, names and sizes of a user's files), but not the pixels.
    skipped: what was left out and why, one phrase each."""
    name: str
    classes: list
    train: Split
    val: Split
    test: Split
    unseen: Split = None
    factors: dict = field(default_factory=dict)
    fingerprint: str = ""
    skipped: list = field(default_factory=list)

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
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits().items())
        shape = "x".join(map(str, self.shape))
        return f"{self.name}: {sizes}, {shape}, {len(self.classes)} classes"


def by_class(y):
    """For labels y int64 (N,) of K classes: the indices sorted by class (N,), the place where each
    class begins there (K,), its size (K,), and each image's rank in its class (N,)."""
    order = y.argsort(stable=True)
    count = y.bincount()
    first = count.cumsum(0) - count
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(y), device=y.device) - first[y[order]]
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
    high = 2**23 if rng.device.type == "mps" else 2**30   # % goes by float32 on mps
    draw = torch.randint(high, y.shape, generator=rng, device=rng.device).to(split.y.device)
    if pool is None or pool is split:
        order, first, count, rank = split.by_class
        step = 1 + draw % (count[y] - 1).clamp(min=1)     # 1 to count - 1 places further
        place = (rank[idx] + step) % count[y]
    else:
        order, first, count, _ = pool.by_class
        place = draw % count[y]
    return order[first[y] + place]


def need_pairs(split, classes=None):
    """Raises DataError if a class of the split has a single image. classes: their names."""
    alone = (split.by_class[2] == 1).nonzero().flatten().tolist()
    if alone:
        name = classes[alone[0]] if classes else alone[0]
        raise DataError(f"Class {name} has a single training image and pairs need two: add images, "
                        "leave it out or raise --limit.")


def pick(labels, n, seed):
    """Indices (n,) of seeded rows, of different labels while there are any left; all rows if there
    are fewer than n. labels: int64 (N,)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order].unique(return_inverse=True)[1]
    rank = by_class(shuffled)[3]                          # 0 for the first row of its label
    return order[rank.argsort(stable=True)][:n].to(labels.device)


def describe(data):
    """Lines that say what a set holds: sizes, images per class, class names, what was skipped."""
    lines = [repr(data)]
    for name, split in data.splits().items():
        count = [n for n in split.by_class[2].tolist() if n > 0]
        per_class = f"{min(count)} to {max(count)}"
        if min(count) == max(count):
            per_class = f"{count[0]}"
        elif len(count) <= 12:
            per_class = " ".join(map(str, count))
        lines.append(f"{name:8}{len(split):,} images, {len(count)} classes, per class {per_class}")
    if len(data.classes) <= 12:
        lines.append(f"classes {', '.join(data.classes)}")
    return lines + [f"skipped {reason}" for reason in data.skipped]


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


def register(name, about, size, files=(), source="", fetch=None, option=False):
    """Decorator that adds a set. The function takes the keywords root, files, size, limit, seed and
    option, or some of them and **_, and returns a Source. about: for the list of sets. size:
    default image size. files: glob patterns below the data folder, each of which must match, or a
    function of root and option that returns them; the images of a set with files are cached.
    source: where they come from. fetch(root): downloads them. option: the name may be followed by
    a colon and an option."""
    def add(read):
        SETS[name] = types.SimpleNamespace(about=about, size=size, files=files, source=source,
                                           fetch=fetch, option=option, read=read)
        return read
    return add


def find_files(entry, root, option="", fetch=True):
    """The files of a set in SETS, downloaded if they are missing and can be. Raises DataError that
    says which file is missing, where it comes from and where it belongs."""
    patterns = entry.files(root, option) if callable(entry.files) else entry.files
    failure = ""
    if fetch and entry.fetch and not all(any(root.glob(pattern)) for pattern in patterns):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                entry.fetch(root)
        except DataError:                                 # of a set that this one is made from
            raise
        except Exception as error:                        # URLError, OSError, RuntimeError and more
            reason = str(error).strip().split("\n")[-1]
            failure = f" and could not be fetched ({reason})"
    files = []
    for pattern in patterns:
        matches = sorted(path for path in root.glob(pattern) if path.exists())
        if not matches:
            raise DataError(f"{root / pattern.rstrip('*')} is missing{failure}: get it from "
                            f"{entry.source} and put it there, or use sprites or digits, which "
                            "work offline.")
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
    if kind not in SETS or option and not SETS[kind].option:
        if os.path.isdir(os.path.expanduser(name)):
            raise DataError(f"There is no set {name!r}, but a folder: write folder:{name}.")
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
    skipped = []
    sizes = []                                            # of a user's files
    if kind == "folder":
        option, files, skipped = find_images(option)
        sizes = [(path.relative_to(option).as_posix(), path.stat().st_size) for path in files]
    else:
        files = find_files(entry, root, option)

    digest = hashlib.sha256(f"{CACHE_VERSION}".encode())  # of the files as they are now
    for path in files:
        stat = f" {path.stat().st_size} {path.stat().st_mtime_ns}\n"
        digest.update(os.fsencode(os.path.abspath(path) + stat))
    limited = f"-{limit}-{seed}" if limit else ""
    cache = root / f"{file_name(name)}-{size}{limited}-{digest.hexdigest()[:10]}.pt"
    source = read_cache(cache)
    is_new = source is None
    if is_new:
        if files:
            print(f"{name}: reading the images, this once", flush=True)
        options = dict(size=size, limit=limit, seed=seed, option=option)
        source = entry.read(root=root, files=files, **options)
        if source.y.min() < 0 or source.y.max() >= len(source.classes):
            raise DataError(f"{name} holds a label that is none of its {len(source.classes)} "
                            f"classes: get it anew from {entry.source}.")
        select_images(source, size, limit, seed)
    data = split_source(name, source, seed, val, skipped, sizes)
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
    mask = torch.empty(len(y), dtype=torch.bool)
    mask[order] = rank < wanted
    return mask


def split_source(name, source, seed, val, skipped, sizes):
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
    return Dataset(name, classes, factors=names, fingerprint=digest.hexdigest()[:16],
                   skipped=skipped, **splits)


def file_name(name):
    return re.sub(r"[^\w-]+", "-", name.encode("utf-8", "replace").decode())[-60:]


def read_cache(path):
    """The Source in a cache file; None if there is none or it is damaged."""
    if not path.exists():
        return None
    with contextlib.suppress(Exception):                  # damaged bytes raise anything
        with zipfile.ZipFile(path) as file:               # torch.load ignores the checksums
            if file.testzip() is None:
                return Source(**torch.load(path, weights_only=True))
    print(f"{path} is damaged: building it again", flush=True)
    return None


def write_cache(path, source):
    """Saves a Source under a temporary name, then renames it and removes older versions."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError, RuntimeError):      # no cache in a read-only or full folder
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(source), part)
        os.replace(part, path)
        for old in path.parent.glob(f"{path.stem[:-10]}??????????.pt"):
            if old != path:
                old.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        part.unlink()


# %% Reading files

@contextlib.contextmanager
def decode_errors(file, cure="delete it and run again to fetch it anew"):
    """Turns whatever a decoder raises on a file into a DataError that names the file: it cannot be
    read (no permission, disk error), or it is damaged, with the cure."""
    try:
        with open(file, "rb"):                            # some decoders hide why this fails
            pass
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:                            # damaged bytes raise anything
        if type(error).__name__ == "DecompressionBombError":
            raise DataError(f"{file} is too large: make it smaller or remove it.") from error
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{file} cannot be read ({error.strerror.lower()}).") from error
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"{file} is truncated or damaged ({reason}): {cure}.") from error


def crop_and_resize(x, size):
    """Crops uint8 (N, C, H, W) to its central square and resizes it with antialiasing: uint8
    (N, C, size, size)."""
    height, width = x.shape[2:]
    side = min(height, width)
    x = x[:, :, (height - side) // 2:, (width - side) // 2:][:, :, :side, :side]
    if side == size:
        return x.contiguous()
    out = torch.empty(len(x), x.shape[1], size, size, dtype=torch.uint8)
    for start in range(0, len(x), 2048):                  # all as floats would take too much memory
        part = x[start:start + 2048].float()
        part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        out[start:start + 2048] = part.round_().clamp_(0, 255)
    return out


def read_images(files, size, mode):
    """Reads image files as uint8 (N, C, size, size); C is 1 for mode "L" and 3 for "RGB". Images
    are turned as their EXIF data say, laid on white if transparent, cropped and resized.
    Gray of 16 bits is scaled by the depth in use, the smallest of 8, 10, 12, 14 and 16 bits that
    holds the brightest pixel of all such files. Raises DataError that names the file."""
    from PIL import Image, ImageOps
    x = torch.empty(len(files), len(mode), size, size, dtype=torch.uint8)
    cure = "replace or remove it"
    deep = []                                             # indices of files of 16 bits
    brightest = 0

    def fill(i, image):
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert(mode)).reshape(1, image.height, image.width, len(mode))
        x[i] = crop_and_resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), size)[0]

    for i, file in enumerate(files):
        with decode_errors(file, cure), Image.open(file) as image:
            if image.mode[:4] == "I;16" or image.mode == "I" and image.format in ("PNG", "PPM"):
                deep.append(i)
                brightest = max(brightest, int(np.asarray(image).max()))
            elif image.mode in ("I", "F"):                # Pillow would clip them
                raise DataError(f"{file} has pixels of 32 bits: convert it to 8 or 16 bits.")
            else:
                fill(i, ImageOps.exif_transpose(image))
    bits = 8
    while brightest >= 2**bits:
        bits += 2
    for i in deep:
        with decode_errors(files[i], cure), Image.open(files[i]) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image)) >> (bits - 8)
            fill(i, Image.fromarray(pixels.astype(np.uint8)))
    return x


def encode_labels(values):
    """Labels as the sorted list of their names, and indices int64 (N,) into that list."""
    names, idx = np.unique(values, return_inverse=True)
    return [str(name) for name in names], torch.from_numpy(idx)


def torchvision():
    """The module torchvision; the only way in to it, at the time of use: the import takes 2 s. One
    built for CUDA does not load its operators beside a CPU-only torch, and the import fails with
    "operator torchvision::nms does not exist". Nothing here needs them, so they are declared."""
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


# %% Folders of images

IMAGE_SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif",
                  ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx"}


def printable(name):
    """A file name as text: bytes that are not UTF-8 are escaped, control characters replaced."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in text)


def image_files(folder):
    """All images below a folder that are not hidden. Returns their paths, sorted, and phrases that
    say what was skipped and why. Raises DataError if the folder cannot be read. Links are followed,
    but each real folder and each real file counts once: a folder within the tree at its own place,
    a file at the first of its paths in sorted order."""
    folder = Path(folder)
    images = []
    skipped = Counter()                                   # phrase -> how many
    visited = set(map(str, Path(os.path.realpath(folder)).parents))       # a link upwards is a loop
    pending = [folder]                                    # then links to other folders

    def unreadable(error):
        reason = f"cannot be read ({error.strerror.lower()})"
        if Path(error.filename) == folder:
            raise DataError(f"{folder} {reason}.") from error
        skipped[f"folder {printable(error.filename)}, which {reason}"] += 1

    while pending:
        pending.sort()
        for directory, folders, names in os.walk(pending.pop(0), onerror=unreadable):
            if os.path.realpath(directory) in visited:
                folders.clear()
                continue
            visited.add(os.path.realpath(directory))
            for name in folders + names:
                path = Path(directory, name)
                suffix = path.suffix.lower()
                if name.startswith("."):
                    skipped["files with a hidden name"] += 1
                elif os.path.isdir(path):
                    if os.path.islink(path):
                        pending.append(path)
                elif not os.path.isfile(path):
                    skipped["files out of reach (a broken link or no permission)"] += 1
                elif suffix in IMAGE_SUFFIXES:
                    images.append(path)
                else:
                    kind = printable(suffix or name)
                    skipped[f"files of type {kind}, which Pillow cannot read"] += 1
            folders[:] = [name for name in folders if not name.startswith(".")]
    first = {}                                            # real file -> its first path
    for path in sorted(images):
        first.setdefault(os.path.realpath(path), path)
    if len(first) < len(images):
        skipped["files linked to once more"] = len(images) - len(first)
    phrases = [f"{what} ({count:,})" for what, count in sorted(skipped.items())]
    return list(first.values()), phrases


def find_images(option):
    """The absolute folder of folder:PATH, the images in its sub-folders, and what was skipped.
    Raises DataError if there are none, or if the sub-folders are parts instead of classes."""
    folder = Path(os.path.abspath(os.path.expanduser(option)))
    if not option or not os.path.isdir(folder):
        raise DataError(f"There is no folder {option!r}: write folder:PATH, where PATH holds one "
                        "sub-folder of images per class.")
    files, skipped = image_files(folder)
    in_classes = [path for path in files if path.parent != folder]
    outside = len(files) - len(in_classes)
    if outside:
        skipped.append(f"images beside the sub-folders, without a class ({outside:,})")
    if not in_classes:
        others = f" but {'; '.join(skipped)}" if skipped else ""
        raise DataError(f"{option} holds no images{others}: put them in one sub-folder per class.")
    paths = [path.relative_to(folder) for path in in_classes]
    names = sorted({path.parts[0] for path in paths})
    splits = {"train", "val", "valid", "validation", "test"}
    if splits.issuperset(map(str.lower, names)) and max(len(path.parts) for path in paths) > 2:
        raise DataError(f"{option} is divided into {', '.join(names)}, but its sub-folders must be "
                        "the classes: merge the parts (the splits are drawn here), or write "
                        f"folder:{os.path.join(option, names[0])}.")
    return folder, in_classes, skipped


@register("folder", "your images: folder:PATH with one sub-folder per class", 64, option=True)
def read_folder(files, option, **_):
    names, y = encode_labels([path.relative_to(option).parts[0] for path in files])
    classes = []
    for name in map(printable, names):
        while name in classes:                            # two names may differ in what is escaped
            name += "'"
        classes.append(name)
    return Source(files, y, classes)


# %% Published sets

DIGITS = list("0123456789")
CLOTHES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
           "Boot"]
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
BSDS = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
PHOTOS = "BSR/BSDS500/data/images/train"


def read_idx(file, dims):
    """An idx file, gzipped or not, as uint8 (N,) for dims=1 or (N, H, W) for dims=3."""
    with decode_errors(file):
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        header = 4 + 4 * dims
        shape = np.frombuffer(raw, ">i4", dims, offset=4)
        if raw[:4] != bytes([0, 0, 8, dims]) or len(raw) != header + shape.prod(dtype=int):
            raise ValueError("its length is not what its header says")
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


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
    x, y, x_test, y_test = map(read_idx, [path[name] for name in IDX_FILES], (3, 1, 3, 1))
    counts_match = len(x) == len(y) > 0 and len(x_test) == len(y_test) > 0
    if not counts_match or x.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{files[0].parent}/train-* and t10k-* do not belong together: delete them "
                        "and run again to fetch them anew.")
    classes = CLOTHES if files[0].parts[-3] == "FashionMNIST" else DIGITS
    test = torch.arange(len(y) + len(y_test)) >= len(y)
    return Source(torch.cat([x, x_test])[:, None], torch.cat([y, y_test]).long(), classes, test,
                  val=5000)


def fetch_svhn(root):
    for part in ("train", "test"):
        if not (root / f"{part}_32x32.mat").exists():     # torchvision would overwrite it
            torchvision().datasets.SVHN(root, part, download=True)


@register("svhn", "house numbers, 73,257 and 26,032 colour digits", 32, fetch=fetch_svhn,
          files=["train_32x32.mat", "test_32x32.mat"],
          source="http://ufldl.stanford.edu/housenumbers/")
def read_svhn(files, **_):
    from scipy.io import loadmat
    images = []
    labels = []
    for file in files:                                    # train, test
        with decode_errors(file):
            content = loadmat(file, variable_names=("X", "y"))
            images.append(torch.from_numpy(content["X"].transpose(3, 2, 0, 1).copy()))
            labels.append(torch.from_numpy(content["y"][:, 0] % 10).long())     # 10 is a zero
            if images[-1].dtype != torch.uint8 or images[-1].shape != (len(labels[-1]), 3, 32, 32):
                raise ValueError("X and y are not bytes and labels of 32x32 images")
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
    with tempfile.TemporaryDirectory(dir=root) as folder:
        torchvision().datasets.utils.download_url(BSDS, folder)
        with tarfile.open(Path(folder, "BSR_bsds500.tgz")) as archive:
            photos = [file for file in archive if re.fullmatch(rf"{PHOTOS}/\d+\.jpg", file.name)]
            if len(photos) != 200:
                raise OSError("the archive does not hold 200 training photographs")
            archive.extractall(folder, photos)
        (root / PHOTOS).parent.mkdir(parents=True, exist_ok=True)
        os.replace(Path(folder, PHOTOS), root / PHOTOS)


def mnistm_files(root, option):
    if (root / "mnist_m").exists():                       # as published
        return ["mnist_m/mnist_m_test*", "mnist_m/mnist_m_train*"]
    return [f"{PHOTOS}/[0-9]*.jpg", "MNIST/raw/*-ubyte*"]


@register("mnistm", "MNIST-M, published or built here from MNIST and BSDS500", 32,
          files=mnistm_files, source=BSDS, fetch=fetch_mnistm)
def read_mnistm(root, files, **_):
    from PIL import Image
    published = root / "mnist_m"
    cure = f"unpack MNIST-M anew, or remove {published} to have it built here"
    if published.exists():
        paths = []
        labels = []
        for part in ("mnist_m_test", "mnist_m_train"):
            file = published / f"{part}_labels.txt"
            with decode_errors(file, cure):
                names, numbers = np.loadtxt(file, str, unpack=True)
                paths += [published / part / name for name in names]
                labels += map(int, numbers)
        test = torch.tensor([path.parent.name == "mnist_m_test" for path in paths])
        return Source(paths, torch.tensor(labels), DIGITS, test, mode="RGB")

    photos = []
    for file in files:
        if file.suffix == ".jpg":
            with decode_errors(file, "unpack the archive anew"), Image.open(file) as photo:
                photos.append(np.array(photo.convert("RGB")))
    if len(photos) != 200:
        raise DataError(f"{root / PHOTOS} holds {len(photos)} of 200 photographs: unpack the "
                        "archive anew.")
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
    with decode_errors(files[0]):
        stream = zlib.decompressobj()
        raw = stream.decompress(files[0].read_bytes(), 1 << 24)
        if not stream.eof:
            raise ValueError("it ends too early")
        number = {1: "u1", 4: "f4", 8: "f8"}[len(raw) // n]
        x = np.frombuffer(raw, number, n, len(raw) - 1 - n * int(number[1]))
        if b"NumpyArrayWrapper" not in raw[:60] or not 0 <= x.min() < x.max() < 256:
            raise ValueError("scikit-learn writes another one")
    x = (x * (255 / x.max())).round().astype(np.uint8)
    x = torch.from_numpy(x).view(400, 1, 64, 64).transpose(2, 3).contiguous()
    return Source(x, torch.arange(400) // 10, [f"person {i}" for i in range(40)])


def read_names(files, pattern, mode, factors):
    """The Source of the image files whose names match a pattern; its first group is the class.
    factors: name -> function of a match. Of files with equal groups the last one counts."""
    named = {}
    for path in files:
        match = re.fullmatch(pattern, path.name)
        if match:
            named[match.groups()] = (path, match)
    if not named:
        raise DataError(f"No file beside {files[0]} has a published name: unpack the set anew.")
    paths, matches = zip(*named.values())
    classes, y = encode_labels([match[1] for match in matches])
    factors = {name: encode_labels(list(map(value, matches))) for name, value in factors.items()}
    return Source(list(paths), y, classes, factors=factors, mode=mode)


@register("yaleb", "Extended Yale B, 38 people, 64 lights, 2,414 gray images", 64,
          ["CroppedYale/yaleB*/*.pgm"], "http://vision.ucsd.edu/~leekc/ExtYaleDatabase")
def read_yaleb(files, **_):
    factors = {"azimuth": lambda match: int(match[2]), "elevation": lambda match: int(match[3])}
    return read_names(files, r"(yaleB\d\d)_P00A([+-]\d+)E([+-]\d+)\.pgm", "L", factors)


def multipie_files(root, option):
    """The patterns of multipie:CAMERAS:SESSIONS: the published layout, or all in one folder."""
    cameras, _, sessions = option.partition(":")
    patterns = []
    for camera in (cameras or "051").split(","):
        for session in (sessions or "01").split(","):
            if not re.fullmatch(r"\d{3}0[1-4]", camera + session):
                raise DataError(f"multipie:{option} chooses nothing: write multipie:051,140:01,02 "
                                "for two cameras and two sessions.")
            patterns.append(f"multipie/*_{session}_??_{camera}_??*.png")
            if not any(root.glob(patterns[-1])):
                folder = f"multipie/session{session}/multiview/*/*/{camera[:2]}_{camera[2]}"
                patterns[-1] = f"{folder}/*.png"
    return patterns


@register("multipie", "your licensed copy; multipie:CAMERAS:SESSIONS, else 051 and 01", 64,
          multipie_files, "https://www.cs.cmu.edu/afs/cs/project/PIE/MultiPie", option=True)
def read_multipie(files, **_):
    expressions = {"01_02": "smile", "03_02": "smile", "02_02": "surprise", "02_03": "squint",
                   "03_03": "disgust", "04_03": "scream"}      # by session and recording
    factors = {"camera": lambda match: match[3], "light": lambda match: match[4],
               "expression": lambda match: expressions.get(match[2], "neutral")}
    pattern = r"(\d{3})_(\d\d_\d\d)_(\d{3})_(\d\d)(?:_crop_128)?\.png"
    return read_names(files, pattern, "RGB", factors)


@register("sprites2015", "Reed et al. 2015, 336 game characters in 172 poses", 32,
          files=["sprites/sprites_[0-9]*.mat"],
          source="http://www.scottreed.info/files/nips2015-analogy-data.tar.gz")
def read_sprites2015(files, size, limit, seed, **_):
    """The even characters (odd ones differ only in the weapon) without the poses of being hurt."""
    try:
        import h5py
    except ImportError as error:
        raise DataError("sprites2015 is stored as HDF5: run pip install h5py.") from error
    matches = [re.fullmatch(r"sprites_(\d*[02468])", path.stem) for path in files]
    paths = {int(match[1]): path for path, match in zip(files, matches) if match}
    numbers = sorted(paths)                               # of the characters
    if limit:
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        numbers = [numbers[i] for i in order[:max(10, round(limit / 172))].sort().values]

    x = torch.empty(len(numbers), 172, 3, size, size, dtype=torch.uint8)
    labels = np.empty((len(numbers), 7), int)
    for i, number in enumerate(numbers):
        path = paths[number]
        with decode_errors(path, "unpack the archive anew"), h5py.File(path) as file:
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
    for action, frames in (("spellcast", 7), ("thrust", 8), ("walk", 9), ("slash", 6),
                           ("shoot", 13)):
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
    "ground": (168, 190, 172), "leather": (138, 86, 48), "steel": (190, 204, 222),
    "gold": (250, 206, 70), "white": (252, 252, 246), "ink": (40, 32, 60), "magic": (130, 240, 255),
    "skin": [(255, 218, 186), (222, 158, 100), (134, 82, 54), (140, 196, 84), (192, 162, 236)],
    "hair": [(62, 56, 78), (222, 96, 32), (250, 216, 96), (240, 240, 248), (56, 104, 220),
             (244, 116, 184)],
    "top": [(206, 40, 52), (246, 178, 36), (64, 156, 66), (104, 192, 248), (92, 70, 190),
            (84, 84, 98)],
    "legs": [(240, 228, 200), (70, 108, 190), (58, 56, 72), (196, 86, 44), (32, 140, 124)]}
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

    def paint(self, mask, material, edge="all", tone=None):
        """Fills a shape in one tone, or in light with shade at its lower right. edge: a dark line
        around "all" of it, only on the "ground" (where nothing is yet), or "none"."""
        slot = 4 * MATERIALS.index(material)
        size = len(mask)
        k = max(size // 32, 1)
        padded = np.pad(mask, k)

        def moved(dy, dx):
            return padded[k + dy:k + dy + size, k + dx:k + dx + size]

        if edge != "none":
            ring = (moved(0, 1) | moved(0, -1) | moved(1, 0) | moved(-1, 0)) & ~mask
            self.map[ring & (self.map == 0) if edge == "ground" else ring] = slot + LINE
        self.map[mask] = slot + (tone or LIGHT)
        if tone is None:
            self.map[mask & ~(moved(k, k) & moved(0, k))] = slot + SHADE


def draw_body(c, top):
    """The shadow, the legs, the boots and the top without its sleeves."""
    c.paint(c.ellipse(0, 60 + c.rise, 18, 3), "ground", "none", SHADE)
    for x, lift in reversed(c.feet):
        y = 61 + c.rise - lift                                 # the body may rise, the feet do not
        if c.side:
            hip = x // 4
            boot = c.ellipse(x + 2, y - 1, 6, 3)
        else:
            hip = 4 if x > 0 else -4
            boot = c.ellipse(x, y - 1, 5, 3)
        c.paint(c.line((hip, 46), (x, y - 5), 7), "legs")
        boot |= c.box(x - 4, y - 4, x + 3, y - 1)
        c.paint(boot & c.box(-40, 0, 40, y), "leather", "ground")
    w = 8 if c.side else 9
    chest = c.polygon((1 - w, 33), (w - 1, 33), (w + 1, 46), (-w - 1, 46)) | c.box(-w, 44, w, 48)
    if top == "robe":
        chest |= c.polygon((-w, 42), (w, 42), (w + 4, 50), (-w - 4, 50))
    c.paint(chest, "top", "ground")
    if top == "tee" and c.view == "front":
        c.paint(c.polygon((0, 35), (5, 40), (0, 45), (-5, 40)), "white", "none", LIGHT)
    elif top == "striped":
        c.paint(chest & c.stripes, "white", "none")
    elif top == "robe":
        c.paint(chest & (c.box(-20, 42, 20, 44) | c.box(-20, 48, 20, 50)), "gold", "none")
        if c.view != "back":
            c.paint(chest & c.box(-1, 34, 1, 50 if c.side else 42), "gold", "none", LIGHT)
    elif top == "armour":
        c.paint(chest & c.box(-20, 44, 20, 46), "leather", "none")
        if c.view == "front":
            c.paint(c.polygon((-4, 34), (4, 34), (0, 42)), "steel", "none")
        elif c.view == "back":                                 # the body hides the arms, not these
            c.paint(c.ellipse(-11, 36, 5, 4), "steel")
            c.paint(c.ellipse(11, 36, 5, 4), "steel")


def draw_arms(c, top, which):
    """One arm (0 the weapon's or the near one, 1 the other) or both, with what they hold."""
    for i in which:
        shoulders = [(-1, 37), (2, 37)] if c.side else [(11, 37), (-11, 37)]
        sx, sy = shoulders[i]
        hx, hy = c.hands[i]
        wrist = ((sx + 3 * hx) // 4, (sy + 3 * hy) // 4)
        if c.action == "slash" and i == 0:                     # the sword and its guard
            dx = TIPS[c.frame][0] - hx
            dy = TIPS[c.frame][1] - hy
            c.paint(c.line((hx, hy), TIPS[c.frame], 4), "steel")
            blade = c.line((hx, hy), (hx + dx - dx // 8, hy + dy - dy // 8), 2)
            c.paint(blade, "white", "none", LIGHT)
            gx = hx + dx // 4
            gy = hy + dy // 4
            guard = c.line((gx - dy // 6, gy + dx // 6), (gx + dy // 6, gy - dx // 6), 3)
            c.paint(guard, "gold", "ground")
        sleeve = c.line((sx, sy), wrist, 6)
        if top == "tee":
            c.paint(c.line((sx, sy), (hx, hy), 5), "skin")
            c.paint(c.line((sx, sy), ((sx + hx) // 2, (sy + hy) // 2), 7), "top", "ground")
        elif top == "robe":
            c.paint(sleeve | c.line(wrist, wrist, 9), "top")
            c.paint(c.line(wrist, wrist, 4), "gold", "none")
        else:
            c.paint(sleeve, "top")
        if top == "striped":
            c.paint(sleeve & c.stripes, "white", "none")
        c.paint(c.ellipse(hx, hy, 3, 3), "skin", "ground")
        if top == "armour":
            c.paint(c.ellipse(sx, sy - 1, 5, 4), "steel")
    if c.action == "shoot" and 0 in which:
        # The bow: its string follows the drawing hand; in the last frame the arrow flies.
        pull, bow_hand = c.hands if c.side else reversed(c.hands)
        y = bow_hand[1]
        flies = c.frame == 3
        for end in (y - 16, y + 16):
            c.paint(c.line((19, end), (19, y) if flies else pull, 2), "white", "none", SHADE)
        limb = c.ellipse(13, y, 13, 18) & ~c.ellipse(12, y, 11, 18) & c.box(17, 0, 40, 64)
        c.paint(limb, "leather")
        x = 33 if flies else pull[0] + 18                      # of the arrow's head
        c.paint(c.line((27, y) if flies else pull, (x, y), 2), "gold", "ground")
        c.paint(c.polygon((x - 1, y - 4), (x - 1, y + 4), (x + 4, y)), "steel", "ground")


def draw_head(c, _):
    nose_or_ears = c.ellipse(14, 25, 2, 2) if c.side else ears(c)
    c.paint(c.ellipse(0, 20, 14, 13) | nose_or_ears, "skin")
    if c.view == "back":
        return
    for x in [8] if c.side else [-6, 6]:
        if c.action == "cast" and c.frame < 2:                 # the eyes are shut
            c.paint(c.box(x - 3, 24, x + 3, 26), "ink", "none", LIGHT)
        else:
            c.paint(c.box(x - 2, 20, x + 2, 26), "ink", "none", LIGHT)
            c.paint(c.box(x - 2, 20, x, 22), "white", "none", LIGHT)
    for x in [5] if c.side else [-9, 9]:
        c.paint(c.box(x - 1, 27, x + 1, 29), "skin", "none", SHINE)
    x = 10 if c.side else 0
    c.paint(c.box(x - 2, 28, x + 2, 30), "skin", "none", LINE if c.action == "slash" else SHADE)


def ears(c):
    return c.polygon((11, 19), (19, 21), (11, 28)) | c.polygon((-11, 19), (-19, 21), (-11, 28))


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
    elif c.side and hair != "mohawk":
        cap &= ~c.ellipse(9, 25, 11, 10) & ~c.box(-6, 22, 40, 40) & c.box(-40, 0, 40, 28)
    elif hair in ("spiky", "ponytail"):
        cap &= c.box(-40, 0, 40, 28)
        if hair == "spiky":
            for x in (-10, 0, 10):
                cap |= c.polygon((x - 5, 27), (x + 5, 27), (x, 35))
    elif hair == "long":
        cap |= c.polygon((-16, 19), (16, 19), (12 + c.sway, 40), (-12 + c.sway, 40))
    c.paint(cap, "hair", "all" if hair == "mohawk" else "ground")
    highlight = c.ellipse(-1, 14, 11, 7) & ~c.ellipse(0, 17, 12, 7)
    c.paint(highlight & cap, "hair", "none", SHINE)
    if hair == "ponytail":
        x = {"side": -12, "front": -11, "back": 0}[c.view]
        if c.view == "back":
            c.paint(c.ellipse(0, 18, 5, 8) | c.line((0, 20), (c.sway, 36), 8), "hair")
        c.paint(c.line((x - 2, 8), (x + 2, 9), 4), "gold", "ground")
    if c.side:                                                 # skin shows from every side
        c.paint(c.ellipse(-3, 24, 3, 4), "skin", "none")
    elif c.view == "back":
        c.paint(ears(c) & ~c.ellipse(0, 20, 13, 13), "skin")


def draw_effect(c, _):
    """The sparks of a spell and the trail of the sword."""
    if c.action == "slash" and c.frame in (1, 2):
        corner = (40, 0) if c.frame == 1 else (44, 27)
        swept = c.polygon((8, 36), TIPS[c.frame - 1], corner, TIPS[c.frame])
        crescent = c.ellipse(5, 36, 30, 36) & ~c.ellipse(2, 39, 27, 34)
        c.paint(crescent & swept, "white", "none", LIGHT)
    elif c.action == "cast":
        for x, y, r in SPARKS[c.frame]:
            for x in [x] if c.side else [x, -x]:
                star = c.line((x - r, y), (x + r, y), 1) | c.line((x, y - r), (x, y + r), 1)
                c.paint(star | c.ellipse(x, y, r // 2 + 1, r // 2 + 1), "magic", tone=LIGHT)
                c.paint(c.ellipse(x, y, r // 3 + 1, r // 3 + 1), "white", "none", LIGHT)


def draw_layer(draw, size, pose, styles, *which):
    """One map per style, uint8 (styles, size, size), by draw(canvas, style, *which)."""
    canvases = [Canvas(size, *pose) for _ in styles]
    for canvas, style in zip(canvases, styles):
        draw(canvas, style, *which)
    return np.stack([canvas.map for canvas in canvases])


def sprite_maps(size=32):
    """Palette slots, uint8 (hair styles, top styles, poses, size, size): layers laid over each
    other in an order that depends on where the character faces."""
    hairs = SPRITE_ATTRIBUTES["hair_style"]
    tops = SPRITE_ATTRIBUTES["top_style"]
    poses = list(itertools.product(SPRITE_POSES["action"], SPRITE_POSES["direction"], range(4)))
    maps = np.zeros((len(hairs), len(tops), len(poses), size, size), np.uint8)
    for i, pose in enumerate(poses):
        behind = draw_layer(draw_hair_behind, size, pose, hairs)[:, None]
        hair = draw_layer(draw_hair, size, pose, hairs)[:, None]
        body = draw_layer(draw_body, size, pose, tops)
        arms = draw_layer(draw_arms, size, pose, tops, [1, 0])
        head = draw_layer(draw_head, size, pose, [None])
        layers = [draw_layer(draw_effect, size, pose, [None])]
        if pose[1] == "back":
            layers += [arms, body, behind, head, hair]
        elif pose[1] == "front":
            layers += [behind, body, head, hair, arms]
        else:
            far_arm = draw_layer(draw_arms, size, pose, tops, [1])
            near_arm = draw_layer(draw_arms, size, pose, tops, [0])
            layers += [far_arm, behind, body, head, hair, near_arm]
        for layer in layers:
            maps[:, :, i] = np.where(layer > 0, layer, maps[:, :, i])
    return maps


def sprite_people(count=1200, seed=0):
    """Distinct people, int64 (count, attributes), with independent attributes whose values are
    about equally frequent. Any two people differ in two attributes or more: the hair colour is the
    sum of the others modulo 6, so it differs too if only one other attribute does."""
    sizes = [len(values) for values in SPRITE_ATTRIBUTES.values()]
    check = list(SPRITE_ATTRIBUTES).index("hair_colour")
    free = sizes[:check] + sizes[check + 1:]
    drawn = np.random.PCG64(seed).random_raw(int(np.prod(free))).argsort(kind="stable")
    people = np.stack(np.unravel_index(drawn, free), 1)
    people = np.insert(people, check, people.sum(1) % sizes[check], axis=1).astype(np.int64)

    room = np.array([[count // n + 2] * 6 for n in sizes])     # how often each value may occur yet
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
        colours = np.array(COLOURS[material])
        light[:, i] = colours[people[:, column[material]]] if material in column else colours
    shade = light * [11, 11, 13] // 16                         # shadows are a little blue
    line = light // 4 + [8, 4, 18]
    shine = (light + 255) // 2
    ground = MATERIALS.index("ground")
    skin = MATERIALS.index("skin")
    shade[:, ground] = light[:, ground] * 13 // 16
    shine[:, skin] = (light[:, skin] * 3 + [255, 90, 110]) // 4                 # blushing cheeks
    palettes = np.stack([light, shade, line, shine], 2).reshape(count, -1, 3).astype(np.uint8)

    maps = sprite_maps(size)
    x = np.empty((count, 64, 3, size, size), np.uint8)
    for i, person in enumerate(people):
        shapes = maps[person[1], person[3]]                    # of the hair style and the top style
        x[i] = palettes[i].T[:, shapes].swapaxes(0, 1)
    factors = {}
    for name, column in zip(SPRITE_ATTRIBUTES, people.T):
        factors[name] = (SPRITE_ATTRIBUTES[name], torch.from_numpy(column.repeat(64)))
    for name, cells in zip(SPRITE_POSES, np.indices((4, 4, 4)).reshape(3, 64)):
        factors[name] = (SPRITE_POSES[name], torch.from_numpy(np.tile(cells, count)))
    return Source(torch.from_numpy(x).flatten(0, 1), torch.arange(count).repeat_interleave(64),
                  [f"person {i}" for i in range(count)], factors=factors, identities=True)


# %% Command line

def contact_sheet(data, path):
    """Writes a picture of the set, one row per class, of unseen identities if there are any."""
    from PIL import Image
    split = data.unseen or data.train
    order, first, count, _ = split.by_class
    rows = count.nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(12, len(rows))).long()]
    columns = torch.linspace(0, 1, min(24, int(count[rows].max())))
    places = first[rows, None] + (columns * (count[rows, None] - 1)).long()
    x = F.pad(split.x[order[places]], [0, 1, 0, 1], value=255)     # (rows, columns, C, H, W)
    image = Image.fromarray(x.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(2).numpy())
    scale = max(1, 64 // data.shape[1])                   # whole pixels stay crisp
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def whereabouts(entry, root):
    """Whether the files of a set are below root, or where they come from."""
    with contextlib.suppress(DataError):
        return "there" if find_files(entry, root, fetch=False) else "works offline"
    return "fetched when first used" if entry.fetch else f"from {entry.source}"


def main(argv=None):
    """The command line. Returns the exit status: 2 for every error, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"data.py: {message}.\n")     # one line
    parser.add_argument("name", nargs="?", help="a set; default: list all sets")
    parser.add_argument("--data-dir", default="data", help="where sets are read, fetched, cached")
    parser.add_argument("--image-size", type=int, help="8 to 256; default: the set's own")
    parser.add_argument("--limit", type=int, help="about this many images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, and of sprites")
    args = parser.parse_args(argv)
    root = Path(args.data_dir)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if args.name is None:
            for name, entry in SETS.items():
                print(f"{name:12}{entry.about:65}{whereabouts(entry, root)}")
            return 0
        data = load(args.name, root, args.image_size, args.limit, args.seed)
        sheet = root / f"{file_name(args.name)}.png"
        root.mkdir(parents=True, exist_ok=True)
        contact_sheet(data, sheet)
        print("\n".join(describe(data)))
        for factor, values in data.factors.items():
            print(f"{factor:12}{len(values)} values: {' '.join(values)}")
        digest = hashlib.sha256()
        for split in data.splits().values():
            digest.update(split.x.numpy())
        print(f"sha256  {digest.hexdigest()}\nsheet   {sheet}")
        return 0
    except DataError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'A file'} cannot be read or written ({error.strerror})."
    except (MemoryError, RuntimeError) as error:          # of numpy; of torch
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        message = "The memory is too small: choose a smaller --limit or --image-size."
    except KeyboardInterrupt:
        print("data.py: Stopped: run the same command again.", file=sys.stderr)
        return 130
    print(f"data.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
