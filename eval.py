"""What the scripts share besides the data: command line, the run's folder, measurements, figures.

    python eval.py table runs          # Markdown tables of every results.json below a folder
    python eval.py notebook RUN...     # a Jupyter notebook of one or more runs
    python eval.py fid samples mnist   # Frechet distance between a folder's images and a set's

In order: flags and errors; Run, the folder of one run (log, checkpoints, resume, results, report);
probe, predictor, classifier, svm_report and tsne, which measure what a code holds; nll, a model's
likelihood; fid, the quality of its samples; the figures. Images are (N, C, H, W) in [0, 1],
accuracies are shares in [0, 1], and everything random takes a seed or a generator.
"""
import argparse
import base64
import contextlib
import copy
import csv
import hashlib
import html
import io
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import (SETS, DataError, Dataset, Split, batches, image_files, load as load_data, pick,
                  read_images, torchvision)

# %% Command line


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose help is a docstring and whose errors are one sentence, status 2."""

    def __init__(self, prog, doc):
        super().__init__(prog=prog, description=doc, allow_abbrev=False,
                         formatter_class=HelpFormatter)

    def error(self, message):
        sentence = " ".join(message.split()).rstrip(".")
        self.exit(2, f"{self.prog}: {sentence}.\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the docstring and adds each flag's default to its help."""

    def _get_help_string(self, action):
        silent = (None, False, argparse.SUPPRESS)           # by identity: 0 == False
        if any(action.default is value for value in silent) or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def number(kind, low=-math.inf, above=-math.inf, high=math.inf):
    """An argparse type: a finite int or float from `low` to `high`, greater than `above`."""
    def convert(text):
        value = kind(text)                                  # argparse reports its ValueError
        if not (low <= value <= high and above < value and abs(value) < math.inf):
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return value
    convert.__name__ = "whole number" if kind is int else "number"
    return convert


def common_flags(script, doc, epochs, batch_size, lr, data="mnist", fid=False, presets=None):
    """A Parser with the flags that mean the same in every script; `data`, `epochs`, `batch_size`
    and `lr` are defaults, data=None leaves --data out, fid=True adds --fid. `presets`
    {set: {flag: value}} is shown below the flags."""
    parser = Parser(f"{script}.py", doc)
    add = parser.add_argument
    if data is not None:
        add("--data", default=data, metavar="NAME", help="a set of data.py, or folder:PATH")
    add("--data-dir", default="data", metavar="DIR", help="folder of the data sets")
    add("--image-size", type=number(int, low=16, high=256), metavar="N", help="pixels per side")
    add("--limit", type=number(int, low=1), metavar="N", help="use about N images of the set")
    add("--epochs", type=number(int, low=1), default=epochs, help="passes over the training set")
    add("--batch-size", type=number(int, low=2), default=batch_size, help="images per batch")
    add("--lr", type=number(float, above=0), default=lr, help="initial step size")
    add("--seed", type=number(int, low=0, high=2**31 - 1), default=0, help="of everything random")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto: cuda if there is one, then mps, then cpu")
    add("--out", metavar="DIR", help="folder of the run (default: a new runs/<script>-<data>)")
    add("--weights", metavar="PATH",
        help="train nothing and evaluate this checkpoint, on another set if --data names one")
    if fid:
        add("--fid", choices=("lenet", "inception", "none"), default="lenet",
            help="features of the Frechet distance")
    for name, text in (("smoke", "a short run on a small set that needs no network"),
                       ("resume", "continue the run in --out; --epochs may be raised"),
                       ("overwrite", "replace the run in --out"),
                       ("compile", "compile the networks with torch.compile"),
                       ("amp", "bfloat16 autocast; losses stay float32")):
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=text)
    if presets:
        lines = ["presets (what is typed wins):"]
        for name, preset in presets.items():
            flags = [f"--{key.replace('_', '-')} {value}" for key, value in preset.items()]
            lines.append(f"  {name}: {' '.join(flags)}")
        parser.epilog = "\n".join(lines)
    return parser


# Flags that do not belong to a training, and flags that may change when a checkpoint is evaluated.
NOT_SAVED = ("resume", "weights", "overwrite", "out")
FREE_WITH_WEIGHTS = ("data", "data_dir", "device", "limit", "image_size", "fid")
FREE_WITH_RESUME = ("device", "data_dir", "epochs")


def parse(parser, argv, preset, smoke):
    """The arguments of a script. What is typed wins over `smoke` (with --smoke), which wins over
    the preset, which wins over the defaults.

    preset: {set: {flag: value}}, chosen by --data, or a function of the arguments. With --resume
    the arguments are those of the run in --out, with --weights those of the checkpoint; only the
    flags in FREE_WITH_RESUME (--epochs upwards) or FREE_WITH_WEIGHTS may differ. `command` is what
    was typed, without --out and --data-dir. Ends with one sentence if the flags contradict each
    other."""
    argv = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    args = parser.parse_args(argv)
    if args.out == "" or args.weights == "":
        parser.error("--out and --weights need a path")
    if args.resume and args.weights:
        parser.error("--resume continues a training and --weights trains nothing: choose one")
    if args.resume and args.out is None:
        parser.error("--resume needs --out, the folder of the run")
    if args.resume or args.weights:
        return parse_again(parser, argv, args)
    if not args.smoke:
        smoke = {}
    parser.set_defaults(**smoke)
    args = parser.parse_args(argv)
    if callable(preset):
        preset = preset(args)
    else:
        preset = preset.get(args.data.partition(":")[0], {})
    parser.set_defaults(**{**preset, **smoke})
    args = parser.parse_args(argv)
    args.command = typed_command(parser.prog, argv)
    return args


def parse_again(parser, argv, args):
    """The arguments of a saved run (--resume) or of a checkpoint (--weights), and what is typed."""
    source = args.weights or Path(args.out) / "last.pt"
    free = FREE_WITH_WEIGHTS if args.weights else FREE_WITH_RESUME
    saved = checkpoint(source, parser.prog.removesuffix(".py"))["args"]
    if args.weights:                                        # device and folder: of another machine
        saved = {key: saved[key] for key in saved if key not in ("device", "data_dir", "command")}
    parser.set_defaults(**saved)
    args = parser.parse_args(argv)
    for key, value in saved.items():
        if key not in free and getattr(args, key) != value:
            names = [f"--{name.replace('_', '-')}" for name in free if hasattr(args, name)]
            parser.error(f"--{key.replace('_', '-')} is {value} in {source}; only "
                         f"{', '.join(names)} may change")
    if args.weights:
        args.command = typed_command(parser.prog, argv)
    elif args.epochs < saved["epochs"]:
        parser.error(f"--epochs can only be raised with --resume, from {saved['epochs']}")
    elif args.epochs > saved["epochs"]:
        args.command += f" --epochs {args.epochs}"
    return args


def without_flags(argv, *flags):
    """The words of a command line without these flags and their values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, nargs="?")
    _, words = parser.parse_known_args([str(word) for word in argv])
    return words


def typed_command(prog, argv):
    """What to type for the same training: the command line without the names of folders."""
    words = without_flags(argv, "--out", "--data-dir", "--resume", "--overwrite")
    return shlex.join(["python", prog, *words])


def find_device(name):
    """The torch.device that --device names. Raises DataError if the machine has none."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        raise DataError(f"--device {name} is not available on this machine; use --device auto.")
    return torch.device(name)


def check_compile(device):
    """Raises DataError if torch.compile does not work on this machine."""
    try:
        torch.compile(torch.sin)(torch.ones(1, device=device))
    except Exception as error:                              # no C++ compiler, no Triton
        raise DataError(f"--compile does not work here ({type(error).__name__}): leave it "
                        "out.") from None


def run_command(main):
    """Runs main(): bad input ends in one sentence and exit status 2, Ctrl-C in status 130. After
    either the last line says how the run in its folder is continued."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                  # never a traceback for a character
            stream.reconfigure(errors="backslashreplace")
    torch.set_flush_denormal(True)                          # moments of Adam decay to slow numbers
    name = Path(sys.argv[0]).name
    Run.how_to_continue = ""
    try:
        main()
        return
    except KeyboardInterrupt:
        print(f"\n{name}: stopped{Run.how_to_continue}")
        sys.exit(130)
    except DataError as error:
        sentence = str(error).rstrip(".")
    except OSError as error:
        sentence = f"{error.filename or 'a file'} cannot be read or written: {error.strerror}"
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError) or "out of memory" in str(error)
        if not memory and "allocate memory" not in str(error):
            raise                                           # a fault of the program
        sentence = "there is not enough memory: lower --batch-size, --image-size or --limit"
    sentence = " ".join(sentence.split())                   # one line, whatever a path holds
    print(f"{name}: {sentence}{Run.how_to_continue}.", file=sys.stderr)
    sys.exit(2)


def make_rng(seed, purpose, device="cpu"):
    """A generator for one purpose (a string), so that no two uses of a seed share their draws."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    rng = torch.Generator(device)
    return rng.manual_seed(int.from_bytes(digest[:7], "big"))


# %% The run's folder

RUN_FILES = ("args.json", "log.csv", "best.pt", "last.pt", "results.json", "report.html",
             "figures")


def write(path, content):
    """Writes bytes or text to a temporary name, then renames it: a reader never sees half a
    file."""
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:                                # a full disk does not name the file
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save(path, content):
    """torch.save through `write`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def checkpoint(path, script):
    """The dictionary in a checkpoint of `script`, on the CPU. No code in the file is run.

    Raises DataError if it is missing, unreadable, damaged, or from another script."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist: name a checkpoint of {script}.py, such as "
                        "best.pt in the folder of a run that finished an epoch.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(content)["script"]
        needed = {"args", "shape", "classes", "fingerprint", "nets", "history", "epoch"}
        arguments = {"data", "seed", "epochs", "command"}
        if found == script and not (
                needed <= content.keys() and arguments <= content["args"].keys()):
            raise KeyError("a part of a checkpoint")
    except OSError as error:                                # no permission: not damaged
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception:                                       # damaged bytes raise anything
        raise DataError(f"{path} is damaged or not a checkpoint of {script}.py.") from None
    if found != script:
        raise DataError(f"{path} is a checkpoint of {found}.py, not of {script}.py.")
    return content


def load_networks(path, script, build, device="cpu"):
    """The networks in a checkpoint of `script`, in eval mode: those of build(shape, args), {name:
    network} or {model: {name: network}}, with the saved weights; without models whose training had
    not begun. Raises DataError if they do not fit."""
    content = checkpoint(path, script)
    nets = {}
    try:
        for name, net in build(content["shape"], content["args"]).items():
            if not isinstance(net, dict):
                net.load_state_dict(content["nets"][name])
                nets[name] = net.to(device).eval()
            elif name in content["nets"]:
                for part in net:
                    net[part].load_state_dict(content["nets"][name][part])
                    net[part].to(device).eval()
                nets[name] = net
        if not nets:
            raise KeyError("none of the models")
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise DataError(f"{path} is damaged: its weights do not fit the shape and the arguments "
                        "that it names.") from None
    return nets


def state_of(part):
    """The state of a network, an optimizer or a generator."""
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def restore(part, state, seed):
    """Loads the state of a network, an optimizer or a generator. A generator of another kind of
    device has another kind of state: then it is seeded with `seed`."""
    if isinstance(part, torch.Generator) and state.shape == part.get_state().shape:
        part.set_state(state)
    elif isinstance(part, torch.Generator):
        part.manual_seed(seed)
    else:
        for group in state.get("param_groups", []):         # `fused` depends on the device
            group["fused"] = part.defaults["fused"]
        part.load_state_dict(state)


def open_folder(args, script):
    """Creates the folder of a run and returns it; without --out a free runs/<script>-<data>, or
    runs/<script>-smoke.

    Raises DataError if --out is a file or holds a run that neither --resume nor --overwrite
    allows to change."""
    if args.out is None:
        kind, _, path = ("smoke" if args.smoke else args.data).partition(":")
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{script}-{kind}-{Path(path).name}")[:80].strip("-")
        for count in range(1, 10**6):
            folder = Path("runs") / (name if count == 1 else f"{name}-{count}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file; name a folder.")
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and not (args.resume or args.overwrite):
        raise DataError(f"--out {folder} holds a run ({found[0]}); choose another folder, or add "
                        "--resume or --overwrite.")
    if args.weights and ("best.pt" in found or "last.pt" in found):
        raise DataError(f"--out {folder} holds the weights of a run, and --weights needs a folder "
                        "for the report alone; name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def all_as_test(data, saved, data_dir):
    """The set on which a checkpoint of another set is evaluated: all images of `data` are test
    images; train and val are the checkpoint's own, None if they are not at hand."""
    own = saved["args"]
    train = None
    val = None
    with contextlib.suppress(DataError):
        found = load_data(own["data"], data_dir, saved["shape"][1], own["limit"], own["seed"])
        if found.fingerprint == saved["fingerprint"] and found.factors == data.factors:
            train = found.train
            val = found.val
    splits = data.splits().values()
    factors = {}
    for name in data.factors:
        factors[name] = torch.cat([split.factors[name] for split in splits])
    x = torch.cat([split.x for split in splits])
    y = torch.cat([split.y for split in splits])
    return replace(data, train=train, val=val, test=Split(x, y, factors), unseen=None)


class Run:
    """The folder of one run: args.json log.csv best.pt last.pt results.json report.html figures/.

    A script creates it once its arguments and data are known to be good, calls `resume` before a
    training, `track` in each step and `end_epoch` after each epoch; then `figure`, `table`, `note`
    and `finish`. Several models are trained one after the other, each under its own name. Only
    files that a run wrote are replaced. With --overwrite the old log and checkpoints are deleted
    when the new run begins, and the report is replaced when the new one is complete."""

    how_to_continue = ""                                    # the end of run_command's last line

    def __init__(self, script, args, data):
        self.script = script
        self.args = args
        self.started = time.perf_counter()
        self.device = find_device(args.device)
        self.history = []                                   # one row per epoch (and model)
        self.models = {}                                    # what last.pt holds of each model
        self.kept = {}                                      # images for figures, by name
        self.figures = []
        self.tables = []
        self.notes = []
        self.stage_started = None
        if args.compile and not args.weights:
            check_compile(self.device)
        source = args.weights
        if args.resume:
            source = Path(args.out) / "last.pt"
        if source:
            saved = checkpoint(source, script)
            data = self.matching_data(data, saved)
            self.history = saved["history"]
            self.kept = saved["kept"]
            self.models = saved.get("models", {})
        if getattr(args, "fid", "none") != "none":          # before the training, not after it
            for name in ("train", "test"):
                if name in data.splits():
                    need_images(args.fid, {f"{name} images": len(data.splits()[name])})
        self.shape = data.shape
        self.classes = data.classes
        self.fingerprint = data.fingerprint
        self.earlier_seconds = sum(row["seconds"] for row in self.history)
        self.saved_args = {key: value for key, value in vars(args).items()
                           if key not in NOT_SAVED}
        self.folder = open_folder(args, script)
        self.best = Path(args.weights or self.folder / "best.pt")
        if args.resume:
            self.can_continue()
        if not source:
            for name in ("last.pt", "best.pt", "log.csv"):  # of a run that is overwritten
                (self.folder / name).unlink(missing_ok=True)
        if not args.weights:
            write(self.folder / "args.json", json.dumps({"script": script, **self.saved_args},
                                                        indent=1))
        print(f"{self.folder}: {args.data} on {self.device}, {torch.get_num_threads()} threads")
        print(data, flush=True)
        self.data = data.to(self.device)
        self.steps_per_epoch = 0                            # of batches without a remainder
        if data.train is not None:
            self.steps_per_epoch = max(1, len(data.train) // args.batch_size)

    def matching_data(self, data, saved):
        """The set to use with a checkpoint: `data`, or `all_as_test` of it if --weights was trained
        on another one. Raises DataError if shapes or classes differ, or if the set of a run that is
        resumed has changed."""
        if list(data.shape) != list(saved["shape"]) or len(data.classes) != len(saved["classes"]):
            raise DataError(f"The checkpoint was trained on images of {saved['shape']} in "
                            f"{len(saved['classes'])} classes, and {self.args.data} holds images "
                            f"of {list(data.shape)} in {len(data.classes)}.")
        if data.fingerprint == saved["fingerprint"]:
            return data
        if self.args.resume:
            raise DataError(f"{self.args.data} has changed since the run began (files or classes "
                            "were added, removed or renamed), so its split would be another one: "
                            "restore it, or start a new run.")
        if data.classes != saved["classes"]:
            missing = [name for name in saved["classes"] if name not in data.classes]
            raise DataError(f"The checkpoint's classes are not those of {self.args.data}, or in "
                            f"another order; missing: {', '.join(missing) or 'none'}.")
        data = all_as_test(data, saved, self.args.data_dir)
        if self.args.data == saved["args"]["data"]:
            self.note(f"{data.name} is not the set that the checkpoint was trained on any more "
                      "(files were added, removed or renamed).")
        self.note(f"All {len(data.test):,} images of {data.name} are test images.")
        if data.train is None:
            self.note("The checkpoint's own training set was not found: what has to be fitted on "
                      "training images is left out.")
        return data

    def can_continue(self):
        """From now on `run_command` ends with the command that continues this run."""
        out = shlex.quote(str(self.folder))
        Run.how_to_continue = f"; to go on: python {self.script}.py --resume --out {out}"

    def rows(self, model=""):
        """The log's rows of a model."""
        return [row for row in self.history if row.get("model", "") == model]

    def drop(self, model):
        """Forgets a model, which is then trained from its beginning."""
        self.models.pop(model, None)
        self.history = [row for row in self.history if row.get("model", "") != model]

    def resume(self, model="", **parts):
        """Begins the training of a model, or goes on with it: restores its networks, optimizers
        and generators (`parts`, by name) from last.pt. Returns the number of epochs done, which is
        all of them if the model is finished."""
        self.model = model
        self.parts = parts
        self.tracked = {}
        self.clock = time.perf_counter()
        state = self.models.setdefault(model, {"score": math.inf, "nets": {}, "parts": {}})
        done = len(self.rows(model))
        if done == 0:
            return 0
        try:
            for name, part in parts.items():
                seed = make_rng(self.args.seed, f"{name} after epoch {done}").initial_seed()
                restore(part, state["parts"][name], seed)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.folder / 'last.pt'} is damaged: its weights do not fit the "
                            "shape and the arguments that it names.") from None
        return done

    def track(self, **terms):
        """Keeps the terms of a step (0-d tensors), on the device, until the end of the epoch."""
        for name, value in terms.items():
            self.tracked.setdefault(name, []).append(value.detach())
        steps = len(self.tracked[name])
        if steps % 10 == 0 and sys.stdout.isatty():
            epoch = len(self.rows(self.model)) + 1
            print(f"\repoch {epoch}: step {steps} of {self.steps_per_epoch}", end="", flush=True)

    def end_epoch(self, score=None, images=None, **terms):
        """Logs the means of the tracked terms and `terms`, prints them, saves best.pt and last.pt.

        best.pt is the epoch with the lowest `score`, the validation objective; the last epoch if
        score is None. `images`: how many were used, if not --batch-size per step. Raises
        DataError, and keeps the last checkpoint, if a term or a weight is not finite."""
        means = {}
        finite = {}                                         # in how many steps a term was finite
        for name, values in self.tracked.items():
            values = torch.stack(values).float()
            means[name] = values.mean().item()
            finite[name] = int(values.isfinite().sum())
        self.tracked = {}
        terms = {**means, **terms}
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        bad.sort(key=lambda name: finite.get(name, math.inf))                   # the cause first
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                if not all(weight.isfinite().all() for weight in part.parameters()):
                    bad.append(f"a weight of {name}")
        if bad:
            done = len(self.rows(self.model))
            kept = f"the checkpoint of epoch {done} stays" if done else "there is no checkpoint yet"
            raise DataError(f"{bad[0]} is not finite in epoch {done + 1}: lower --lr or the weight "
                            f"of that term; {kept}")
        if images is None:
            images = self.steps_per_epoch * min(self.args.batch_size, len(self.data.train))
        self.log_epoch(terms, images)
        self.save_epoch(score)

    def log_epoch(self, terms, images):
        """Adds the terms of an epoch that used `images` images to the log, and prints them."""
        seconds = time.perf_counter() - self.clock
        self.clock = time.perf_counter()
        epoch = len(self.rows(self.model)) + 1
        row = {"model": self.model} if self.model else {}
        row.update(epoch=epoch, **terms, seconds=seconds, images_per_second=images / seconds)
        self.history.append(row)
        spent = sum(row["seconds"] for row in self.rows(self.model))
        left = spent / epoch * (self.args.epochs - epoch)
        words = [f"{self.model} epoch {epoch}/{self.args.epochs}".strip()]
        words += [f"{name} {shown(value)}" for name, value in terms.items()]
        words.append(f"{seconds:.1f} s  {images / seconds:,.0f} images/s")
        words.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        start = "\r\033[K" if sys.stdout.isatty() else ""   # over the progress line
        print(start + "  ".join(words), flush=True)

    def save_epoch(self, score):
        """best.pt if `score` is the lowest so far (or None), then last.pt, then log.csv. In the
        last epoch best.pt is written in any case, for the history in it."""
        epoch = len(self.rows(self.model))
        state = self.models[self.model]
        better = score is None or score < state["score"]
        if better:
            nets = {}
            for name, part in self.parts.items():
                if isinstance(part, nn.Module):
                    nets[name] = copy.deepcopy(part.state_dict())
            state.update(score=score, epoch=epoch, nets=nets)
        if better or epoch == self.args.epochs:
            save(self.folder / "best.pt", self.checkpoint_content())
        state["parts"] = {name: state_of(part) for name, part in self.parts.items()}
        save(self.folder / "last.pt", {**self.checkpoint_content(), "models": self.models})
        columns = {}                                        # in order, without repetition
        for row in self.history:
            columns.update(row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write(self.folder / "log.csv", buffer.getvalue())
        self.can_continue()

    def checkpoint_content(self):
        """What best.pt holds. `nets` is {network: weights}, or with several models {model:
        {network: weights}}, and `epoch` the same."""
        nets = {model: state["nets"] for model, state in self.models.items()}
        epochs = {model: state.get("epoch", 0) for model, state in self.models.items()}
        if self.model == "":
            nets = nets[""]
            epochs = epochs[""]
        return {"script": self.script, "args": self.saved_args, "shape": list(self.shape),
                "classes": list(self.classes), "n_classes": len(self.classes),
                "fingerprint": self.fingerprint, "epoch": epochs, "history": self.history,
                "nets": nets, "kept": {name: images.cpu() for name, images in self.kept.items()}}

    def stage(self, what=None):
        """Says what the evaluation does next, and how long the stage before it took."""
        if self.stage_started is not None:
            print(f"{time.perf_counter() - self.stage_started:.1f} s", flush=True)
        self.stage_started = None
        if what is not None:
            self.stage_started = time.perf_counter()
            print(f"{what} ... ", end="", flush=True)

    def figure(self, name, figure, caption):
        """Adds a matplotlib Figure to the report and to figures/NAME.png; the caption says what to
        look for."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, bbox_inches="tight")
        self.figures.append((name, caption, buffer.getvalue()))

    def table(self, title, header, rows, note=""):
        """Adds a table to the report; a cell is text, a number, what `fid` returns, or None."""
        self.tables.append((title, header, rows, note))

    def note(self, sentence):
        """Adds a finding to the report: a sentence that is computed from the numbers."""
        self.notes.append(sentence)

    def report_curve(self, what, train, val, model=""):
        """Adds the verdict on a learning curve, of two columns of the log, to the findings."""
        rows = self.rows(model)
        if not rows:
            return
        best = min(rows, key=lambda row: row[val])
        rise = rows[-1][val] - best[val]
        gap = best[val] - best[train]
        verdict = "there is no sign of overfitting"
        if rise > 0.02 * abs(best[val]):
            verdict = f"then it rises to {shown(rows[-1][val])}, so later epochs overfit"
        elif gap > 0.05 * abs(best[train]):
            verdict = "that is more than 5 % above train, so the model overfits"
        self.note(f"{what} on validation is lowest in epoch {best['epoch']} of {len(rows)}: "
                  f"{shown(best[val])}, and {shown(best[train])} on train; {verdict}.")

    def finish(self, title, results):
        """Writes the figures, results.json (plain numbers, unrounded) and report.html, and prints
        the notes and the report's path."""
        self.stage()
        device = str(self.device)
        if self.device.type == "cuda":                      # times mean nothing without it
            device += f" ({torch.cuda.get_device_name(self.device)})"
        args = dict(self.saved_args)
        common = {"script": self.script, "data": args["data"], "command": args.pop("command"),
                  "args": args,
                  "versions": {"python": platform.python_version(), "torch": torch.__version__},
                  "device": device, "threads": torch.get_num_threads(),
                  "seconds": self.earlier_seconds + time.perf_counter() - self.started,
                  "epochs": max([row["epoch"] for row in self.history], default=0),
                  "seed": args["seed"], "smoke": args["smoke"]}
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        for name, _, png in self.figures:
            write(folder / f"{name}.png", png)
        results = {**common, **results, "figures": [f"{name}.png" for name, *_ in self.figures]}
        write(self.folder / "results.json", json.dumps(results, indent=1))
        write(self.folder / "report.html", report(self, title, results))
        for sentence in self.notes:
            print(f"- {sentence}")
        print(f"{results['seconds'] / 60:.1f} minutes in all, the report is", flush=True)
        print(self.folder / "report.html")


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child, .words td, .words th { text-align: left }
figure { margin: 0 }
img { max-width: 100% }
pre { white-space: pre-wrap }
@media print {
  body { margin: 0; max-width: none; font-size: 11pt }
  figure, table { break-inside: avoid }
  h2 { break-after: avoid }
  img { max-height: 22cm }
}
"""


FID_NOTE = ("Features of the Frechet distances: {features}. They compare models on this data set "
            "only. ±: over LeNets of different seeds; in brackets: divided by the total variance "
            "of the test images' features.")


def report(run, title, results):
    """report.html, one self-contained page: the findings, the tables, the figures. Every string
    from outside is escaped."""
    e = html.escape
    versions = results["versions"]
    threads = "1 thread" if results["threads"] == 1 else f"{results['threads']} threads"
    parts = [f"<h1>{e(title)}</h1>",
             f"<p>{e(run.script)}.py on {e(results['data'])}, {results['epochs']} epochs, "
             f"{results['seconds'] / 60:.1f} minutes on {e(results['device'])}, {threads}, torch "
             f"{e(versions['torch'])}, seed {results['seed']}.</p>"]
    if results["smoke"]:
        parts.append("<p><b>A smoke run: little data, seconds of training. It shows that "
                     "everything works; its numbers mean nothing.</b></p>")
    items = [f"<li>{e(sentence)}</li>" for sentence in run.notes]
    parts.append(f"<ul>{''.join(items)}</ul>")
    if results.get("paper"):
        parts.append(f"<p>The paper: {e(results['paper'])}.</p>")
    for heading, header, rows, note in run.tables:
        words = any(len(shown(cell)) > 30 for row in rows for cell in row[1:])
        kind = ' class="words"' if words else ""            # sentences are set left
        parts.append(f"<h2>{e(heading)}</h2><table{kind}>")
        cells = [f"<th>{e(str(cell))}</th>" for cell in header]
        parts.append(f"<tr>{''.join(cells)}</tr>")
        about_distances = ""
        for row in rows:
            cells = [f"<td>{e(shown(cell))}</td>" for cell in row]
            parts.append(f"<tr>{''.join(cells)}</tr>")
            for cell in row:
                if isinstance(cell, dict):
                    about_distances = " " + FID_NOTE.format(**cell)
        note += about_distances
        parts.append(f"</table><p>{e(note.strip())}</p>")
    for name, caption, png in run.figures:
        image = base64.b64encode(png).decode()
        parts.append(f"<figure><h2>{e(name.replace('_', ' '))}</h2><p>{e(caption)}</p>"
                     f'<img alt="{e(name)}" src="data:image/png;base64,{image}"></figure>')
    sizes = [f"{len(split):,} {name}" for name, split in run.data.splits().items()]
    settings = []
    for name, value in results["args"].items():
        if value is not None and name != "data_dir":
            settings.append(f"{name} {value}")
    parts.append(f"<h2>command</h2><pre>{e(results['command'])}</pre><p>Images: "
                 f"{e(', '.join(sizes))}. Settings: {e(', '.join(settings))}.</p>")
    body = "\n".join(parts)
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{e(title)}</title>'
            f"<style>{STYLE}</style>\n{body}\n</html>\n")


def shown(value):
    """A number or a table's cell as text: None is a dash, floats have four significant digits, or
    one decimal from 1,000 on; of a dict, which `fid` returns, value ± spread (relative)."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return f"{plus_minus(value['value'], value['spread'])} ({value['relative']:.2g})"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plus_minus(mean, spread):
    """A mean ± its spread as text: the spread has two digits, and is left out if it is None
    or 0."""
    if not spread or not math.isfinite(spread):
        return shown(float(mean))
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def percent(share):
    """A share in [0, 1] as text: 98.2 %, or with two decimals below one per cent, or a dash."""
    if share is None:
        return "–"
    if abs(share) < 0.01:
        return f"{100 * share:.2f} %"
    return f"{100 * share:.1f} %"


def set_lr(opt, lr):
    """Sets the step size of an optimizer."""
    for group in opt.param_groups:
        group["lr"] = lr


def cosine(progress):
    """The cosine schedule: 1 at progress 0, 0 at progress 1, the share of training that is done."""
    return 0.5 * (1 + math.cos(math.pi * progress))


# %% What a code holds


Codes = namedtuple("Codes", "mu logvar s")     # of a split: (N, Z) and (N, Z) of q(z|x), (N, S)


@torch.no_grad()
def encode(enc, split):
    """The outputs of enc for a whole split, a list of tensors (N, ...)."""
    parts = []
    for idx in torch.arange(len(split), device=split.device).split(500):
        parts.append(enc(split.images(idx)))
    return [torch.cat(outputs) for outputs in zip(*parts)]


def encode_splits(enc, data):
    """{split: Codes} of an encoder with outputs mu, logvar, s."""
    return {name: Codes(*encode(enc, split)) for name, split in data.splits().items()}


@torch.no_grad()
def decode(dec, *codes):
    """The outputs (N, ...) of a network for inputs (N, ...), such as codes, 500 at a time."""
    chunks = [code.split(500) for code in codes]
    return torch.cat([dec(*chunk) for chunk in zip(*chunks)])


def sampled_rows(code, idx, rng):
    """Rows idx of a code: of a tensor as they are, of (mu, logvar) a fresh draw of z."""
    if isinstance(code, torch.Tensor):
        return code[idx]
    mu, logvar = code
    noise = torch.randn(len(idx), mu.shape[1], generator=rng, device=mu.device)
    return mu[idx] + (0.5 * logvar[idx]).exp() * noise


@torch.enable_grad()
def fit_mlp(code, width_out, loss, seed, steps, batch_size=256):
    """Trains the papers' MLP (256-256, batch norm, LeakyReLU 0.2: Jha et al., released code) on a
    code with Adam, the step size falling from 1e-3 to 1e-4 on a cosine.

    code: (N, d), or (mu, logvar), of which z is drawn afresh at every step; loss(output, idx): the
    loss of the outputs (B, width_out) for rows idx. Returns the network in eval mode."""
    mean = code if isinstance(code, torch.Tensor) else code[0]
    rng = make_rng(seed, "fit_mlp", mean.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(mean.shape[1], 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
                            nn.Linear(256, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
                            nn.Linear(256, width_out)).to(mean.device)
    opt = torch.optim.Adam(net.parameters(), fused=mean.device.type != "mps")
    batch_size = min(batch_size, len(mean))
    order = torch.randperm(len(mean), generator=rng, device=mean.device)
    for step in range(steps):
        set_lr(opt, 1e-3 * cosine(0.8 * step / steps))
        if len(order) < batch_size:
            order = torch.randperm(len(mean), generator=rng, device=mean.device)
        idx = order[:batch_size]
        order = order[batch_size:]
        value = loss(net(sampled_rows(code, idx, rng)), idx)
        opt.zero_grad()
        value.backward()
        opt.step()
    return net.eval()


@torch.no_grad()
def probe(train, test, labels, seed=0, steps=2000, draws=20):
    """How well labels can be predicted from a code: the papers' MLP, with one head per label.

    train, test: codes (N, d), or (mu, logvar), which are sampled, afresh at every step of training
    and `draws` times for the score. labels: {name: (y_train (N,), y_test)}. Returns {name: {train:
    accuracy, hits: (N_test,) share of draws in which an image was right, chance: one over the
    classes of y_train, majority: accuracy on test of y_train's most frequent class}}."""
    sizes = [int(torch.cat(pair).max()) + 1 for pair in labels.values()]

    def loss(output, idx):
        heads = zip(output.split(sizes, dim=1), labels.values())
        return sum(F.cross_entropy(logits, y[idx]) for logits, (y, _) in heads)

    def hits(code, part):                                   # part: 0 train, 1 test
        idx = torch.arange(n[part], device=rng.device)
        heads = zip(net(sampled_rows(code, idx, rng)).split(sizes, dim=1), labels.values())
        return torch.stack([(logits.argmax(1) == pair[part]).float() for logits, pair in heads])

    net = fit_mlp(train, sum(sizes), loss, seed, steps)
    y, y_test = next(iter(labels.values()))
    n = (len(y), len(y_test))
    rng = make_rng(seed, "probe", y.device)
    on_train = hits(train, 0).mean(1)
    if isinstance(test, torch.Tensor):
        draws = 1
    on_test = sum(hits(test, 1) for _ in range(draws)) / draws                  # (labels, N_test)
    results = {}
    for k, (name, (y, y_test)) in enumerate(labels.items()):
        counts = y.bincount()
        results[name] = {"train": on_train[k].item(), "hits": on_test[k],
                         "chance": 1 / int((counts > 0).sum()),
                         "majority": (y_test == counts.argmax()).float().mean().item()}
    return results


def mean_and_stderr(values):
    """Mean of values (N,) and its standard error; the error is None for a single value."""
    if len(values) < 2:
        return values.mean().item(), None
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def balanced_accuracy(hits, y, unit):
    """Mean over the classes of y (N,) of the accuracy hits (N,) in [0, 1], and its standard error
    over units (N,), such as identities, whose images are not independent of each other (the
    linearized, cluster-robust variance); None for a single unit."""
    count = y.bincount()
    recall = torch.zeros(len(count), device=y.device).index_add(0, y, hits) / count.clamp(min=1)
    present = count > 0
    n_classes = int(present.sum())
    deviation = (hits - recall[y]) / (n_classes * count[y])
    per_unit = torch.zeros(int(unit.max()) + 1, device=y.device).index_add(0, unit, deviation)
    n_units = int((unit.bincount() > 0).sum())
    stderr = None
    if n_units > 1:
        stderr = ((per_unit**2).sum() * n_units / (n_units - 1)).sqrt().item()
    return recall[present].mean().item(), stderr


def pose_factors(data):
    """Names of the factors that vary within a class, such as a pose, unlike a hair colour."""
    return [name for name in data.factors if not data.test.constant_within_class(name)]


def pose_labels(data, split, names):
    """One number per combination of the factors `names`, int64 (N,), the same in all splits."""
    pose = torch.zeros_like(split.y)
    for name in names:
        pose = pose * len(data.factors[name]) + split.factors[name]
    return pose


def pose_only(data, codes):
    """{split: (mu, logvar)} of train and test with each image's q(z|x) replaced by the mean q of
    its pose over train: a z that holds the pose and nothing of the class. None if the set has no
    pose.

    What a probe on it scores, and not chance, is the null: if a class has one image per pose, a
    pose tells which classes have it in train and so cannot have it in test."""
    names = pose_factors(data)
    if not names:
        return None
    pose = pose_labels(data, data.train, names)
    pose_test = pose_labels(data, data.test, names)
    size = int(torch.cat([pose, pose_test]).max()) + 1
    shares = F.one_hot(pose, size).float()                  # (N, poses)
    shares = shares / shares.sum(0).clamp(min=1)
    mu = shares.T @ codes["train"].mu                       # (poses, Z), means over train
    logvar = shares.T @ codes["train"].logvar
    return {"train": (mu[pose], logvar[pose]), "test": (mu[pose_test], logvar[pose_test])}


def probe_codes(run, data, codes, steps=2000):
    """What s, sampled z and the mean of z hold: tables and notes of the report, and the results by
    results.json's keys. codes: {split: Codes}.

    Class probes are fitted on train and scored on test. Factor probes are fitted on train and
    scored on `unseen` if the set has it, by balanced accuracy, whose chance level is one over the
    number of values, with its standard error over identities (over images without `unseen`)."""
    seed = run.args.seed
    kl = 0.5 * (codes["test"].mu**2 + codes["test"].logvar.exp() - 1 - codes["test"].logvar)
    results = {"test_kl": kl.sum(1).mean().item(),
               "active_dims": int((kl.mean(0) > 0.01).sum()), "factors": {}}
    scored = "unseen" if data.unseen else "test"
    split = data.splits()[scored]
    unit = data.unseen.y if data.unseen else torch.arange(len(split), device=split.device)
    parts = {}
    for name, code in codes.items():
        parts[name] = {"s": code.s, "z": (code.mu, code.logvar), "z_mean": code.mu}
    labels = {"class": (data.train.y, data.test.y)}
    factor_labels = {}
    for factor in data.factors:
        factor_labels[factor] = (data.train.factors[factor], split.factors[factor])
        results["factors"][factor] = {}
    for code in ("s", "z", "z_mean"):
        found = probe(parts["train"][code], parts["test"][code], labels, seed, steps)["class"]
        mean, stderr = mean_and_stderr(found["hits"])
        results.update({f"{code}_train_acc": found["train"], f"{code}_test_acc": mean,
                        f"{code}_test_stderr": stderr, "chance": found["chance"],
                        "majority": found["majority"]})
        if factor_labels:
            found = probe(parts["train"][code], parts[scored][code], factor_labels, seed, steps)
            for factor, part in found.items():
                mean, stderr = balanced_accuracy(part["hits"], split.factors[factor], unit)
                results["factors"][factor].update({code: mean, f"{code}_stderr": stderr,
                                                   "chance": part["chance"],
                                                   "majority": part["majority"]})
    results.update(z_null_acc=None, z_null_stderr=None)
    null = pose_only(data, codes)
    if null is not None:
        found = probe(null["train"], null["test"], labels, seed, steps)["class"]
        results["z_null_acc"], results["z_null_stderr"] = mean_and_stderr(found["hits"])
    report_class(run, results)
    if results["factors"]:
        report_factors(run, data, results["factors"])
    return results


def leaks(value, stderr, null, null_stderr=None):
    """Whether `value` lies more than two standard errors above `null`."""
    error = math.hypot(stderr or 0, null_stderr or 0)
    return value > null + 2 * error


def report_class(run, r):
    """The table of the class probes and what they mean; r: results of `probe_codes`."""
    names = {"s": "s", "z": "sampled z", "z_mean": "mean of z"}
    rows = []
    for code, words in names.items():
        rows.append((words, percent(r[f"{code}_train_acc"]), percent(r[f"{code}_test_acc"]),
                     percent(r["chance"]), percent(r["majority"])))
    note = "Sampled z is the papers' measurement, here the mean of 20 draws."
    null = r["z_null_acc"]
    what = "the pose alone gives"
    if null is None:                                        # what a constant z scores
        null = max(r["chance"], r["majority"])
        what = "chance or majority"
    else:
        rows.append(("a z that holds only the pose", None, percent(null), None, None))
        note += (" The pose alone gives less than chance if a class has one image per pose: a pose "
                 "in which a class was trained is then not in test.")
    run.table("Class predicted from the codes by an MLP",
              ("code", "train", "test", "chance", "majority"), rows, note)
    run.note(f"An MLP predicts the class from s in {percent(r['s_test_acc'])} of the test images, "
             f"from the mean of z in {percent(r['z_mean_test_acc'])} (chance "
             f"{percent(r['chance'])}).")
    sentence = f"From sampled z it does in {percent(r['z_test_acc'])} ({what} {percent(null)}): "
    if leaks(r["z_test_acc"], r["z_test_stderr"], null, r["z_null_stderr"]):
        sentence += "more than two standard errors above, so part of the class leaks into z."
    else:
        sentence += "within two standard errors, so it finds nothing of the class in sampled z."
    run.note(sentence)
    if r["active_dims"] == 0 or r["test_kl"] < 0.5:
        run.note(f"z is unused (KL {r['test_kl']:.2g} nats in {r['active_dims']} dimensions), so "
                 "its low accuracy shows nothing: lower --kl-weight or train for longer.")


def report_factors(run, data, factors):
    """The table of the factor probes, and which factors leak into the code that should not hold
    them."""
    poses = pose_factors(data)
    rows = []
    leaking = {"s": [], "z": []}
    for name, f in factors.items():
        home, away = ("z", "s") if name in poses else ("s", "z")
        cells = [name, home]
        for code in ("s", "z", "z_mean"):
            error = f[f"{code}_stderr"]
            cells.append(percent(f[code]) + ("" if error is None else f" ± {100 * error:.1f}"))
        rows.append([*cells, percent(f["chance"])])
        if leaks(f[away], f[f"{away}_stderr"], f["chance"]):
            leaking[away].append(f"{name} ({percent(f[away])}, chance {percent(f['chance'])})")
    where = "unseen identities" if data.unseen else "test images"
    run.table(f"Factors predicted from the codes on {where}",
              ("factor", "belongs in", "s", "sampled z", "mean of z", "chance"), rows,
              "Balanced accuracy ± its standard error, which for unseen identities is that over "
              "identities.")
    for code, words in (("z", "sampled z"), ("s", "s")):
        found = ", ".join(leaking[code]) or "none"
        run.note(f"Factors that {words} predicts although they belong in the other code (more than "
                 f"two standard errors above chance): {found}.")


@torch.no_grad()
def predictor(train, test, seed=0, steps=2000):
    """Predicts one code from another, with the papers' MLP and squared error.

    train, test: (input (N, d_in), target (N, d_out)). Returns R2 on test, over all targets together
    and against the mean of train (None if that is never wrong), and the predictions on test (N,
    d_out)."""
    x, y = train
    x_test, y_test = test
    mean = y.mean(0)
    scale = y.std(0).mean() + 1e-8                          # one for all: unused ones stay small

    def loss(output, idx):
        return F.mse_loss(output, (y[idx] - mean) / scale)

    net = fit_mlp(x, y.shape[1], loss, seed, steps)
    predicted = mean + scale * net(x_test)
    error = (y_test - predicted).square().sum()
    constant = (y_test - mean).square().sum()
    r2 = 1 - (error / constant).item() if constant > 0 else None
    return r2, predicted


class LeNet(nn.Module):
    """After LeCun et al. 1998, with ReLU, max pooling and batch norm: recognizes decoded images,
    and gives the features of the default Frechet distance."""

    def __init__(self, channels, size, n_classes):
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(                                          # (B, C, 28, 28)
            nn.Conv2d(channels, 16, 5), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 48, 5), nn.MaxPool2d(2), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Flatten(),                                                       # (B, 768)
            nn.Linear(48 * side**2, 128), nn.BatchNorm1d(128), nn.ReLU())       # (B, 128)
        self.head = nn.Linear(128, n_classes)

    def forward(self, x):
        return self.head(self.features(x))

    @torch.no_grad()
    def predict(self, images):
        """The classes (N,) of images (N, C, H, W), uint8 or float in [0, 1]."""
        scale = 255 if images.dtype == torch.uint8 else 1
        return torch.cat([self(part.float() / scale).argmax(1) for part in images.split(500)])


LENET_RECIPE = 2          # in the name of the cache file: raise it whenever the training changes


@torch.enable_grad()
def classifier(data, data_dir, lenet_images=100_000, seed=0):
    """A LeNet, trained in as many epochs as show it about `lenet_images` images, of which the one
    with the best accuracy on val is kept; cached in data_dir under the training set's checksum.

    Returns the network in eval mode and its accuracy on test."""
    train = data.train
    digest = hashlib.sha256(train.x.cpu().numpy().tobytes())
    digest.update(train.y.cpu().numpy().tobytes())
    kind = re.sub(r"\W", "", data.name.partition(":")[0])
    checksum = digest.hexdigest()[:12]
    path = Path(data_dir) / f"lenet{LENET_RECIPE}-{kind}-{checksum}-{lenet_images}-{seed}.pt"
    channels, size = train.x.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LeNet(channels, size, len(data.classes)).to(train.device)
    cached = path.exists()
    if cached:
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["net"])
        except Exception:
            print(f"({path} is damaged: training it again)", flush=True)
            cached = False
    if not cached:
        fit_classifier(net, train, data.val, lenet_images, seed)
        with contextlib.suppress(OSError):                  # a read-only folder costs a minute
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, {"net": net.state_dict()})
    net.eval()
    return net, accuracy(net, data.test)


def accuracy(net, split):
    """The share of a split's images whose class a LeNet predicts."""
    return (net.predict(split.x) == split.y).float().mean().item()


def fit_classifier(net, train, val, lenet_images, seed):
    """Trains a LeNet with Adam on a cosine and leaves it at the epoch with the best accuracy on
    val. Noise on the pixels keeps it from relying on single ones, which no decoder draws exactly.
    Order and noise are drawn on the CPU, so that they are the same on every device."""
    rng = make_rng(seed, "classifier")
    opt = torch.optim.Adam(net.parameters(), fused=train.device.type != "mps")
    epochs = max(1, round(lenet_images / len(train)))
    steps = max(1, len(train) // 128)
    best = -1.0
    for epoch in range(epochs):
        net.train()
        for step, idx in enumerate(batches(train, min(128, len(train)), rng)):
            set_lr(opt, 2e-3 * cosine((epoch + step / steps) / epochs))
            x = train.images(idx)
            x = x + 0.1 * torch.randn(x.shape, generator=rng).to(x.device)
            loss = F.cross_entropy(net(x), train.y[idx])
            opt.zero_grad()
            loss.backward()
            opt.step()
        net.eval()
        score = accuracy(net, train if val is None else val)
        if score >= best:
            best = score
            state = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(state)


def svm_scores(train, test, kernel, seed=0, points=None):
    """scikit-learn's SVC on standardized codes; train, test: (codes (N, d), y (N,)); kernel
    "linear" or "rbf"; points: use so many seeded training rows, since the time grows with their
    square.

    Returns plain numbers on test: accuracy; classes: scikit-learn's classification_report, of each
    class (by its number as text) and of the "macro avg" {precision, recall, f1-score, support};
    confusion: counts, one row per true class."""
    from sklearn.metrics import classification_report, confusion_matrix
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    x, y = train
    x_test, y_test = test
    idx = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:points]
    x = x.cpu()[idx].numpy()
    y = y.cpu()[idx].numpy()
    y_test = y_test.cpu().numpy()
    svm = make_pipeline(StandardScaler(), SVC(kernel=kernel, cache_size=1000))
    predicted = svm.fit(x, y).predict(x_test.cpu().numpy())
    labels = range(int(max(y.max(), y_test.max())) + 1)
    classes = classification_report(y_test, predicted, labels=labels, output_dict=True,
                                    zero_division=0)
    return {"accuracy": float((predicted == y_test).mean()), "classes": classes,
            "confusion": confusion_matrix(y_test, predicted, labels=labels).tolist()}


def svm_report(run, name, train, test, points=None):
    """`svm_scores` of a linear and an RBF kernel, {"svm_linear", "svm_rbf"}; adds the table of both
    and the figure confusion_NAME to the report."""
    kernels = {"linear": "linear kernel", "rbf": "RBF kernel"}
    scores = {kernel: svm_scores(train, test, kernel, run.args.seed, points) for kernel in kernels}
    names = run.classes[:len(scores["rbf"]["confusion"])]   # without those of unseen identities
    rows = []
    for k, title in enumerate([*names, "macro average"]):
        cells = [title]
        for found in scores.values():
            of_class = found["classes"]["macro avg" if k == len(names) else str(k)]
            cells += [percent(of_class[key]) for key in ("precision", "recall", "f1-score")]
        rows.append(cells)
    accuracies = [percent(found["accuracy"]) for found in scores.values()]
    run.table(f"SVM on the codes of {name}", ("class", "linear: precision", "recall", "F1",
                                              "RBF: precision", "recall", "F1"), rows,
              f"Accuracy on test images: {accuracies[0]} with a linear kernel, {accuracies[1]} "
              "with an RBF kernel.")
    panels = {f"{name}, {kernels[kernel]}": scores[kernel]["confusion"] for kernel in kernels}
    run.figure(f"confusion_{name}".replace(" ", "_"), confusion(panels, names), "Which class an "
               "SVM on the codes predicts for test images. Off the diagonal are the mistakes.")
    return {"svm_linear": scores["linear"], "svm_rbf": scores["rbf"]}


def tsne(code, seed=0):
    """scikit-learn's t-SNE of a code (N, d): points (N, 2), numpy. A code that is constant, or has
    fewer than four different rows, is drawn as one point."""
    from sklearn.manifold import TSNE
    rows = torch.nan_to_num(code.cpu()).double().clamp(-1e6, 1e6)
    rows = rows - rows.mean(0)
    scale = rows.std(0, correction=0).max()
    distinct = len(rows.unique(dim=0))
    if distinct < 4 or scale < 1e-6:
        return np.zeros((len(rows), 2))
    start = "pca" if rows.shape[1] > 1 else "random"
    model = TSNE(perplexity=min(30.0, (distinct - 1) / 3), init=start, random_state=seed)
    return model.fit_transform((rows / scale).float().numpy())


def neighbour_accuracy(points, y):
    """The share of points (N, d), N > 5, whose class y (N,) the five nearest others vote for."""
    from sklearn.neighbors import NearestNeighbors
    nearest = NearestNeighbors(n_neighbors=5).fit(points)
    voters = torch.from_numpy(nearest.kneighbors(return_distance=False))        # (N, 5)
    y = y.cpu()
    return (y[voters].mode(1).values == y).float().mean().item()


def code_map(run, codes, y, points):
    """Adds the figure of at most `points` codes coloured by class to the report; returns {title:
    `neighbour_accuracy` of what is drawn}.

    codes: {title: (N, Z)} of one Z, y (N,). Named "plane" and drawn as they are if Z is 2, else
    "tsne"."""
    seed = run.args.seed
    idx = random_subset(len(y), points, seed, y.device)
    panels = {}
    accuracies = {}
    parts = []
    plane = next(iter(codes.values())).shape[1] == 2
    for title, code in codes.items():
        drawn = code[idx].cpu().numpy() if plane else tsne(code[idx], seed)
        accuracies[title] = neighbour_accuracy(drawn, y[idx])
        panels[title] = (drawn, y[idx], run.classes)
        parts.append(f"{title} {percent(accuracies[title])}")
    name, what, axes_names = "tsne", "t-SNE of the codes", None
    if plane:
        name, what, axes_names = "plane", "The codes", ("first latent", "second latent")
    run.figure(name, scatter(panels, seed, axes_names), f"{what} of test images (VAE: the means of "
               "q(z|x)), trained without labels. How often the five nearest points vote for the "
               f"right class: {'; '.join(parts)}; chance is {percent(1 / len(y.unique()))}.")
    return accuracies


# %% Likelihood


def log_normal(z):
    """log N(z; 0, I) in nats, (...) of z (..., Z)."""
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)


def random_subset(total, n, seed=0, device="cpu"):
    """Indices (n,) of a uniform random choice among `total` images, or of all if there are fewer.
    The mean of anything over it is unbiased, which a choice of equally many per class is not."""
    return torch.randperm(total, generator=make_rng(seed, "subset"))[:n].to(device)


@torch.no_grad()
def log_marginal(x, mu, logvar, log_likelihood, k=5000, seed=0, prior=None):
    """log p_k(x) (N,) in nats, the log of 1/k sum_i w_i with w_i = p(x|z_i) p(z_i) / q(z_i|x) and
    z_i ~ q(z|x), and the effective sample size (sum_i w_i)^2 / sum_i w_i^2 (N,), from 1 to k.

    In expectation a lower bound of log p(x), tighter with every sample (Burda, Grosse,
    Salakhutdinov 2016). x (N, ...) is encoded once, to mu and logvar (N, Z);
    log_likelihood(x (B, ...), z (c, B, Z)) -> (c, B) nats; prior: an object with log_prob(z (...,
    Z)) -> (...), N(0, I) without one. Few samples of 20 images are decoded at a time, so that
    memory does not grow with k. The results are float64, on the CPU."""
    log_prior = prior.log_prob if prior else log_normal
    rng = make_rng(seed, "log_marginal", mu.device)
    chunk = 10
    if mu.device.type != "cpu":                             # up to two million pixels
        chunk = max(10, min(2500, 2_000_000 // x[0].numel()))
    log_p = []
    sizes = []
    for images, m, v in zip(x.split(20), mu.split(20), logvar.split(20)):
        total = torch.full((len(m),), -math.inf, dtype=torch.float64)           # log sum w
        squares = total                                                         # log sum w^2
        for start in range(0, k, chunk):
            eps = torch.randn(min(chunk, k - start), *m.shape, generator=rng, device=m.device,
                              dtype=m.dtype)
            z = m + (0.5 * v).exp() * eps                   # (c, B, Z)
            log_q = log_normal(eps) - 0.5 * v.sum(-1)
            log_w = log_likelihood(images, z) + log_prior(z) - log_q
            log_w = log_w.cpu().double()                    # (c, B)
            total = total.logaddexp(log_w.logsumexp(0))
            squares = squares.logaddexp((2 * log_w).logsumexp(0))
        log_p.append(total - math.log(k))
        sizes.append((2 * total - squares).exp())
    return torch.cat(log_p), torch.cat(sizes)


def nll(x, mu, logvar, log_likelihood, k=5000, n=None, discrete=True, seed=0, prior=None):
    """The negative log-likelihood of images x (N, ...) of D numbers, or of a `random_subset` of n;
    the other arguments are those of log_marginal.

    Returns {nats per image, bits_per_dim: nats / (D ln 2), None unless p(x|z) is `discrete`, since
    a density has none, k, n, stderr: the standard error of nats over images, None for a single one,
    ess: the effective sample size, the mean over images}."""
    idx = random_subset(len(x), n or len(x), seed, x.device)
    log_p, sizes = log_marginal(x[idx], mu[idx], logvar[idx], log_likelihood, k, seed, prior)
    nats, stderr = mean_and_stderr(-log_p)
    bits = nats / (x[0].numel() * math.log(2)) if discrete else None
    return {"nats": nats, "bits_per_dim": bits, "k": k, "n": len(log_p), "stderr": stderr,
            "ess": sizes.mean().item()}


# %% The Frechet distance between features of images

FEATURES = {"lenet": 128, "inception": 2048}                # how many numbers each extractor gives


def frechet(mean1, cov1, mean2, cov2):
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) in float64; means (d,), covs (d, d)
    (Heusel et al. 2017).

    The trace of the square root needs eigenvalues only: with cov1 = R R', those of cov1 cov2 are
    those of R' cov2 R, which is symmetric and has a real root at any rank."""
    values, vectors = torch.linalg.eigh(cov1.double())
    root = vectors * values.clamp(min=0).sqrt()
    values = torch.linalg.eigvalsh(root.T @ cov2.double() @ root).clamp(min=0)
    squared = (mean1 - mean2).double().square().sum() + cov1.trace() + cov2.trace()
    return max((squared - 2 * values.sqrt().sum()).item(), 0.0)


def inception(data_dir):
    """torchvision's Inception v3 without its last layer: (B, 3, 299, 299) in [-1, 1] -> (B, 2048).

    The weights come from data_dir, or are downloaded into it. Raises DataError, which says where to
    get them."""
    models = torchvision().models
    weights = models.Inception_V3_Weights.IMAGENET1K_V1
    with torch.random.fork_rng(devices=[]):                 # aux_logits, because the file has them
        net = models.inception_v3(aux_logits=True, transform_input=False, init_weights=False)
    try:
        net.load_state_dict(weights.get_state_dict(model_dir=data_dir, check_hash=True,
                                                   map_location="cpu", weights_only=True))
    except Exception as error:                              # URLError, OSError, damaged bytes
        raise DataError(f"Inception's weights are missing or damaged ({str(error).strip()[:120]}): "
                        f"download {weights.url} into {data_dir}, or use the features of "
                        "lenet.") from None
    net.fc = nn.Identity()
    net.aux_logits = False
    net.AuxLogits = None
    return net.eval()


def inception_input(images):
    """uint8 (B, 1 or 3, H, W) -> float (B, 3, 299, 299) in [-1, 1], resized to 32 x 32 first, so
    that sets of all sizes are blurred alike. Grey is copied to three channels."""
    x = images.expand(-1, 3, -1, -1).float() / 255
    for size in (32, 299):
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False,
                          antialias=min(x.shape[2:]) > size)
    return 2 * x - 1


def extractor(kind, data, data_dir, device, lenet_images=100_000, seed=0):
    """A function from images (n, C, H, W) to mean (d,) and covariance (d, d) of their features, in
    float64, and the features' name. "lenet": what the classifier of `data` passes to its last
    layer; "inception": see there."""
    if kind == "lenet":
        net = classifier(data, data_dir, lenet_images, seed)[0].features
        size = 500
        name = f"LeNet of {data.name}, 128"
    else:
        net = inception(data_dir)
        size = 50
        name = "torchvision's Inception, 2,048 (3x32x32, then 299)"
    net = net.to(device)

    @torch.no_grad()
    def measure(images):
        features = []
        for part in images.split(size):
            part = part.to(device)
            if part.is_floating_point():                    # as it would be saved
                part = (part * 255).round().clamp(0, 255).byte()
            x = part.float() / 255 if kind == "lenet" else inception_input(part)
            features.append(net(x).cpu().double())
        features = torch.cat(features)                      # (n, d)
        return features.mean(0), features.T.cov()
    return measure, name


def need_images(kind, counts):
    """Raises DataError if there are fewer images than features; counts: {whose: how many}."""
    for whose, n in counts.items():
        if n < FEATURES[kind]:
            raise DataError(f"{n:,} {whose} are too few for {FEATURES[kind]:,} features of {kind}: "
                            "a Frechet distance needs as many images as features on either side "
                            "(--fid none leaves it out).")


def fid(kind, data, data_dir, images, seed=0, lenet_images=100_000, lenets=1):
    """The Frechet distance between images and all test images of `data`, a Dataset. It compares
    models on one set only: another set has other features.

    kind: "lenet", "inception" or "none"; images (n, C, H, W), uint8, or float in [0, 1], which is
    rounded to uint8 first, as the set is; lenets: the mean over so many LeNets, which differ in
    their seed. Returns None for "none" or without train, else {value, spread: its deviation between
    them (None for one), relative: value over the trace of the test images' covariance, floor: the
    value of as many train images (at most all, seeded), features: a name, n}. Raises DataError if
    there are fewer images than features."""
    if kind == "none" or data.train is None:
        return None
    n = len(images)
    train = data.train
    idx = torch.randperm(len(train), generator=make_rng(seed, "fid"))[:n].to(train.device)
    need_images(kind, {"images": n, "test images": len(data.test), "train images": len(idx)})
    if kind == "inception":
        lenets = 1
    cache = vars(data).setdefault("statistics", {})         # of test and train: measured once
    values = []
    relative = []
    floors = []
    for k in range(lenets):
        measure, name = extractor(kind, data, data_dir, data.test.device, lenet_images, k)
        key = (kind, lenet_images, k, seed, n)
        if key not in cache:
            cache[key] = (measure(data.test.x), measure(train.x[idx]))
        (mean, cov), floor = cache[key]
        values.append(frechet(*measure(images), mean, cov))
        relative.append(values[-1] / max(cov.trace().item(), 1e-12))
        floors.append(frechet(*floor, mean, cov))
    return {"value": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if lenets > 1 else None,
            "relative": float(np.mean(relative)), "floor": float(np.mean(floors)),
            "features": name, "n": n}


# %% Figures

# Twelve colours that differ in lightness as well as in hue, and four markers to tell them apart.
COLOURS = ("#332288", "#ee7733", "#117733", "#88ccee", "#cc3311", "#ddcc77", "#aa4499", "#44aa99",
           "#000000", "#ee99aa", "#999933", "#0077bb")
MARKERS = "os^D"


def new_figure(width, height, panels=1, columns=3):
    """A matplotlib Figure and the list of its axes, `columns` in a row, each width x height inches.
    Nothing global is changed, and no window is opened."""
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"                    # a notebook's may not exist here
    from matplotlib.figure import Figure
    rows = math.ceil(panels / columns)
    columns = min(panels, columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def drawable(name):
    """A class name as a figure can show it: at most 24 characters, \\u.... for other alphabets, and
    no formula."""
    name = str(name).encode("latin-1", "backslashreplace").decode("latin-1")
    if not name.isprintable():
        name = ascii(name)
    if len(name) > 24:
        name = f"{name[:12]}...{name[-8:]}"
    return name.replace("$", "\\$")


def positions(count, size, space, gaps):
    """Where `count` images of `size` pixels begin, `space` apart and more behind those in `gaps`;
    and where all of them end."""
    starts = []
    end = space
    for i in range(count):
        starts.append(end)
        end += size + space
        if i in gaps:
            end += 18
    return starts, end


def grid(images, row_names=(), red=None, xlabel="", ylabel="", gap_after=(), gap_below=()):
    """A figure of rows of images (R, C, channels, H, W) in [0, 1], with a name left of each row.

    red (R, C): outline these images in red; gap_after: columns (numbers) after which a gap sets the
    rest apart, gap_below: rows, likewise."""
    pixels = (torch.nan_to_num(images.float()).clamp(0, 1) * 255).round().byte()
    pixels = pixels.expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2).cpu().numpy()
    scale = max(1, round(96 / pixels.shape[2]))             # whole pixels stay crisp
    pixels = pixels.repeat(scale, 2).repeat(scale, 3)
    rows, columns, height, width, _ = pixels.shape
    space = 6 if red is None else 14
    tops, sheet_height = positions(rows, height, space, gap_below)
    lefts, sheet_width = positions(columns, width, space, gap_after)
    sheet = np.full((sheet_height, sheet_width, 3), 255, np.uint8)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            if red is not None and red[i, j]:
                sheet[top - 5:top + height + 5, left - 5:left + width + 5] = (220, 0, 0)
            sheet[top:top + height, left:left + width] = pixels[i, j]
    longest = 0
    for name in row_names:
        longest = max(longest, *[len(line) for line in name.split("\n")])
    margin = 0.3 + 0.1 * longest + (0.2 if ylabel else 0)
    figure, (axis,) = new_figure(sheet_width / 160 + margin, sheet_height / 160 + 0.3)
    axis.imshow(sheet, interpolation="nearest")
    axis.set_anchor("E")                                    # the room that is left goes to names
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9)
    axis.set_xticks([])
    axis.set_yticks([top + height / 2 for top in tops[:len(row_names)]], row_names)
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    return figure


def swap_grid(dec, s_images, s, z_images, z):
    """Every z with every s: the first row shows where s comes from, the first column where z does.
    s_images (C, ch, H, W), s (C, S); z_images (R, ch, H, W), z (R, Z)."""
    swapped = decode(dec, z.repeat_interleave(len(s), 0), s.repeat(len(z), 1))
    body = torch.cat([z_images[:, None], swapped.unflatten(0, (len(z), len(s)))], 1)
    top = torch.cat([torch.ones_like(z_images[:1]), s_images])[None]
    return grid(torch.cat([top, body]), xlabel="s from the first row",
                ylabel="z from the first column", gap_after=(0,), gap_below=(0,))


def curves(history, panels, chance=None):
    """The log over epochs, one panel for each of {title: {label: column}}, with a grey line at
    chance[title] if there is one. A column of a log with several models is (model, column).
    Columns that the log does not have are left out."""
    found = {}
    for title, lines in panels.items():
        for label, column in lines.items():
            model = ""
            if isinstance(column, tuple):
                model, column = column
            rows = [row for row in history if row.get("model", "") == model and column in row]
            if rows:
                points = ([row["epoch"] for row in rows], [row[column] for row in rows])
                found.setdefault(title, {})[label] = points
    figure, axes = new_figure(3.6, 2.8, max(1, len(found)))
    styles = ("-", "--", ":", "-.")
    for axis, (title, lines) in zip(axes, found.items()):
        for k, (label, (epochs, values)) in enumerate(lines.items()):
            marker = "o" if len(epochs) <= 30 else None     # more of them hide the line
            axis.plot(epochs, values, styles[k % 4], color=COLOURS[k], label=label, marker=marker,
                      markersize=3)
        if chance and title in chance:
            axis.axhline(chance[title], color="gray", linewidth=1)
        axis.set_ylabel(title)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.1 * len(lines) * (high - low))          # room for the legend
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def scatter(panels, seed=0, axes_names=None):
    """Points coloured by class, one panel for each {title: (points (N, 2), y (N,), names)}.

    With more than 12 classes 12 seeded ones have a colour and the rest are grey. Neighbours with
    the same names share a legend. axes_names: of both axes, which have no ticks without them."""
    figure, axes = new_figure(4.6, 4.0, len(panels))
    values = list(panels.values())
    for i, (axis, (title, (points, y, names))) in enumerate(zip(axes, panels.items())):
        points = np.nan_to_num(np.asarray(points, np.float64), posinf=0, neginf=0)
        y = y.cpu()
        present = y.unique()
        size = 8 if len(points) > 500 else 20
        if len(present) > 12:
            order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
            present = present[order[:12]].sort().values
            axis.scatter(points[:, 0], points[:, 1], s=4, color="#cccccc", linewidths=0)
        for k, c in enumerate(present.tolist()):
            mine = points[(y == c).numpy()]
            label = f" {drawable(names[c])}"                # a leading _ would hide it
            axis.scatter(mine[:, 0], mine[:, 1], s=size, color=COLOURS[k], marker=MARKERS[k % 4],
                         linewidths=0, label=label)
        axis.set_title(title, fontsize=10)
        if axes_names is None:
            axis.set_xticks([])
            axis.set_yticks([])
        else:
            axis.set_xlabel(axes_names[0])
            axis.set_ylabel(axes_names[1])
        if i + 1 == len(values) or values[i + 1][2] != names:   # the last of the same
            axis.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5),
                        markerscale=1.5)
    return figure


def confusion(panels, names):
    """Confusion matrices by scikit-learn, one panel for each {title: matrix (K, K) of counts}, rows
    the true class; K names. With more than 20 classes shades take the place of the counts."""
    from sklearn.metrics import ConfusionMatrixDisplay
    labels = [drawable(name) for name in names]
    small = len(names) <= 20
    side = 0.42 * len(names) if small else 8.4
    figure, axes = new_figure(side + 2, side + 1.6, len(panels))
    for axis, (title, matrix) in zip(axes, panels.items()):
        display = ConfusionMatrixDisplay(np.asarray(matrix), display_labels=labels)
        display.plot(ax=axis, cmap="Blues", colorbar=False, xticks_rotation="vertical",
                     include_values=small, text_kw={"fontsize": 7})
        axis.tick_params(labelsize=7 if small else 5)
        axis.set_title(title, fontsize=10)
    return figure


def draw_codes(run, data, codes, dec, net, points):
    """The figures of two codes, codes {split: Codes}: swap grids, interpolations (with notes on
    what the classifier `net` predicts, unless it is None) and t-SNE of at most `points` images."""
    draw_swap_grids(run, data, codes, dec)
    draw_interpolations(run, data, codes["test"], dec, net)
    draw_tsne(run, data, codes["test"], points)


def draw_swap_grids(run, data, codes, dec):
    """The figures swap_grid, of test images, and swap_grid_unseen, of unseen identities. The rows
    differ in the first two factors that vary within a class (action and direction of the sprites),
    or in class if the set has no such factor."""
    names = pose_factors(data)[:2]
    for name, split, who in (("swap_grid", "test", "test images of the training classes"),
                             ("swap_grid_unseen", "unseen", "identities that were never trained "
                              "on")):
        if split not in codes:
            continue
        code = codes[split]
        split = data.splits()[split]
        columns = pick(split.y, 8, run.args.seed)
        rows = pick(pose_labels(data, split, names) if names else split.y, 8, run.args.seed + 1)
        figure = swap_grid(dec, split.images(columns), code.s[columns], split.images(rows),
                           code.mu[rows])
        run.figure(name, figure, f"From {who}. Each column should keep the class of the image "
                   "above it, each row everything else of the image on its left, such as pose, "
                   "light or slant.")


def draw_interpolations(run, data, code, dec, net):
    """The figures interpolation_1 to 3: for three pairs of test images straight lines in s, in z
    and in both, with a note per pair on what the classifier `net` (None: no note) predicts."""
    test = data.test
    idx = pick(test.y, 6, run.args.seed + 2).repeat(6)[:6]
    t = torch.linspace(0, 1, 8, device=run.device)[:, None]
    for k in range(3):
        a = idx[2 * k]
        b = idx[2 * k + 1]
        s_line = (1 - t) * code.s[a] + t * code.s[b]        # (8, S)
        z_line = (1 - t) * code.mu[a] + t * code.mu[b]      # (8, Z)
        along_s = dec(code.mu[a].expand(8, -1), s_line)     # (8, C, H, W)
        along_z = dec(z_line, code.s[a].expand(8, -1))
        lines = torch.stack([along_s, along_z, dec(z_line, s_line)])
        first = test.images(a).expand(3, 1, -1, -1, -1)
        last = test.images(b).expand(3, 1, -1, -1, -1)
        figure = grid(torch.cat([first, lines, last], 1), ["only s", "only z", "both"],
                      gap_after=(0, 8), xlabel="first image, line between the codes, second image")
        run.figure(f"interpolation_{k + 1}", figure, "Two test images at the ends, between them "
                   "their codes on a straight line. Only s: the class should change and the pose "
                   "stay; only z: the other way round.")
        if net is not None:
            pair = f"{data.classes[int(test.y[a])]} to {data.classes[int(test.y[b])]}"
            run.note(f"Interpolation {k + 1} ({pair}): "
                     + interpolation_note(net.predict(along_s), net.predict(along_z), test.y[a],
                                          test.y[b]))


def interpolation_note(along_s, along_z, first, second):
    """Where the class changes along s, and whether it stays along z; predicted classes (8,) and the
    classes of the two images."""
    if along_s[0] != first:
        return ("the classifier does not recognize the first image's class in its reconstruction, "
                "so the lines show nothing.")
    changed = (along_s != first).nonzero()
    sentence = "along s the classifier sees no change of class, so s does not decide it here; "
    if len(changed) > 0:
        end = "and" if along_s[-1] == second else "but not"
        sentence = (f"along s the classifier sees another class from step {int(changed[0]) + 1} of "
                    f"{len(along_s)} on, {end} the second image's at the end; ")
    kept = int((along_z == first).sum())
    sentence += f"along z it sees the first image's class in {kept} of {len(along_z)} steps, "
    if kept == len(along_z):
        return sentence + "so the decoder does not take the class from z."
    return sentence + "so there the image is blurred or z decides part of the class."


def draw_tsne(run, data, code, points):
    """The figures tsne_class, t-SNE of s, of sampled z and of the mean of z for all test images of
    12 classes, and tsne_factors, the mean of z of test images of all classes, coloured by the
    factors that vary within a class; each at most `points` images."""
    seed = run.args.seed
    test = data.test
    order = torch.randperm(len(test), generator=make_rng(seed, "t-SNE images")).to(run.device)
    classes = test.y[pick(test.y, 12, seed)]
    idx = order[torch.isin(test.y[order], classes)][:points]
    z = sampled_rows((code.mu, code.logvar), idx, make_rng(seed, "t-SNE", run.device))
    panels = {}
    for title, values in (("s", code.s[idx]), ("sampled z", z), ("mean of z", code.mu[idx])):
        panels[title] = (tsne(values, seed), test.y[idx], data.classes)
    run.figure("tsne_class", scatter(panels, seed), "s should show one cluster per class, sampled "
               "z (the papers' measurement) none. The mean of z shows what the noise of q(z|x) "
               "hides; t-SNE may miss what an MLP finds.")
    names = [name for name in pose_factors(data) if len(data.factors[name]) <= 12]
    if names:
        idx = order[:points]
        placed = tsne(code.mu[idx], seed)
        panels = {f"mean of z, by {name}": (placed, test.factors[name][idx], data.factors[name])
                  for name in names}
        run.figure("tsne_factors", scatter(panels, seed), "The mean of z of images of all classes, "
                   "coloured by what z should hold.")


# %% python eval.py fid A B


def read_side(name, data_dir, shape):
    """One side of the comparison, uint8 (N, *shape): the test images of a set, or all images below
    a folder. Raises DataError if there are none, or for colour beside a grey set."""
    channels, size, _ = shape
    if name.partition(":")[0] in SETS:
        x = load_data(name, data_dir, size).test.x
        if x.shape[1] > channels:
            raise DataError(f"{name} is in colour and the other set is grey: name the grey set "
                            "first.")
        return x.expand(-1, channels, -1, -1)
    files, skipped = image_files(name)
    for line in skipped:
        print(f"skipped   {line}")
    if not files:
        raise DataError(f"{name} is neither a set of data.py nor a folder of images.")
    return read_images(files, size, "L" if channels == 1 else "RGB")


def compare(a, b, features="lenet", data_dir="data", device="auto"):
    """Prints the Frechet distance of the images `a` from the reference `b`, each a set's name or a
    folder. The features of a LeNet need a set as reference, on which it is trained."""
    if b.partition(":")[0] in SETS:
        reference = load_data(b, data_dir)
    elif features == "lenet":
        raise DataError(f"{b} is not a set of data.py, whose LeNet could give the features: put a "
                        "set second, or use --features inception.")
    else:
        x = read_side(b, data_dir, (3, 64, 64))
        split = Split(x, torch.zeros(len(x), dtype=torch.int64))
        reference = Dataset(b, ["an image"], split, None, split)
    images = read_side(a, data_dir, reference.shape)
    result = fid(features, reference.to(find_device(device)), data_dir, images)
    print(f"images    {len(images):,} of {a}")
    print(f"features  {result['features']}")
    if b.partition(":")[0] in SETS:                         # a folder has no images of its own left
        print(f"floor     {shown(result['floor'])} (as many train images of the reference)")
    print(f"distance  {shown(result['value'])}")
    print(f"relative  {shown(result['relative'])} (of the trace of the reference's covariance)")


# %% python eval.py table DIR


def table(folder):
    """Markdown tables, one per script, of all files *results.json below `folder` that have a
    `summary`, {label with unit: number, or a list of one per seed}: one row per command, with mean
    ± standard deviation over seeds, also over runs that differ in their seed only, and the time of
    the first of them. Rows are sorted by command. Raises DataError if there are none or one is
    damaged."""
    runs = {}                                               # {script: {(flags, ...): [a run]}}
    for path in sorted(Path(folder).rglob("*results.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if run.get("summary") is None:
                continue
            row = {key: run[key] for key in ("seed", "seconds", "threads", "paper", "device",
                                             "epochs")}
            row["seeds"] = range(run["seed"], run["seed"] + run.get("seeds", 1))
            row["summary"] = {label: np.ravel(value).astype(float)
                              for label, value in run["summary"].items() if value is not None}
            row["command"] = re.sub(r" --seed[ =]\d+", "", run["command"])
            flags = sorted(row["command"].split(" --"))     # in whatever order they were typed
            key = (*flags, run["device"], run["epochs"])
            runs.setdefault(run["script"], {}).setdefault(key, []).append(row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} is damaged or not a results.json of these scripts.") from None
    if not runs:
        raise DataError(f"{folder} holds no results.json with a summary.")
    lines = []
    for script in sorted(runs):
        lines += [f"## {script}.py", "", "| command | paper | ours | epochs, time, hardware, seeds "
                  "|", "| --- | --- | --- | --- |"]
        for cells in sorted(table_row(rows) for rows in runs[script].values()):
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
            lines.append(f"| `{cells[0]}` | {' | '.join(cells[1:])} |")
        lines.append("")
    return "\n".join(lines).strip()


def table_row(rows):
    """The cells of one row: command, paper, ours, hardware; rows: what `table` read of each
    seed."""
    rows = sorted(rows, key=lambda row: row["seed"])
    first = rows[0]
    ours = []
    for label in first["summary"]:
        values = np.concatenate([row["summary"].get(label, []) for row in rows])
        spread = np.std(values, ddof=1) if len(values) > 1 else None
        ours.append(f"{label}: {plus_minus(np.mean(values), spread)}")
    seconds = first["seconds"]
    duration = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    threads = "1 thread" if first["threads"] == 1 else f"{first['threads']} threads"
    seeds = ", ".join(str(seed) for row in rows for seed in row["seeds"])
    seeds = f"seeds {seeds}" if "," in seeds else f"seed {seeds}"
    return [first["command"], first["paper"] or "–", "; ".join(ours),
            f"{first['epochs']} epochs, {duration}, {first['device']}, {threads}, {seeds}"]


# %% python eval.py notebook RUN...


def notebook(folders):
    """Writes notebook.ipynb (nbformat 4.5) into the first of these run folders and returns its
    path. Per run: findings, the script without its command line, the trained networks, the report's
    tables and figures, and an empty cell for one's own analysis behind each figure. Raises
    DataError if a folder holds no finished run."""
    project = Path(__file__).resolve().parent
    first = Path(folders[0]).resolve()
    setup = ("import json\nimport os\nimport sys\n\n# data.py and eval.py\n"
             f"sys.path.insert(0, os.path.abspath({os.path.relpath(project, first)!r}))")
    cells = [("code", setup)]
    for folder in folders:
        folder = Path(folder).resolve()
        try:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            script = Path(results["script"]).name
            source = (project / f"{script}.py").read_text(encoding="utf-8")
            page = (folder / "report.html").read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{folder} is not the folder of a finished run.") from None
        body = page.partition("</style>")[2].rpartition("</html>")[0].strip()
        findings, *parts = re.split(r"\n(?=<h2>|<figure>)", body)
        cells.append(("markdown", findings))
        for section in re.split(r"\n(?=# %% )", source):
            if not section.startswith("# %% Command line"):
                cells.append(("code", section.strip()))
        path = os.path.relpath(folder, first)
        load_cell = f"with open(os.path.join({path!r}, 'results.json')) as file:\n"
        load_cell += "    results = json.load(file)\n"
        if (folder / "best.pt").exists():
            load_cell += f"nets = load(os.path.join({path!r}, 'best.pt'))\n"
        cells.append(("code", load_cell + "results['summary']"))
        for part in parts:
            cells.append(("markdown", part))
            if part.startswith("<figure>"):
                cells.append(("markdown", "**Your analysis:**"))
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
    for number, (kind, text) in enumerate(cells):
        cell = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": text}
        if kind == "code":
            cell.update(outputs=[], execution_count=None)
        content["cells"].append(cell)
    write(first / "notebook.ipynb", json.dumps(content, indent=1))
    return Path(folders[0]) / "notebook.ipynb"


# %% The command line


def main(argv=None):
    parser = Parser("eval.py", __doc__)
    parser.add_argument("command", choices=["table", "notebook", "fid"])
    parser.add_argument("what", nargs="+", metavar="PATH", help="table: a folder of runs. "
                        "notebook: folders of runs. fid: folders of images or sets of data.py "
                        "(their test images); the second is the reference")
    add = parser.add_argument_group("fid").add_argument
    add("--features", choices=list(FEATURES), default="lenet",
        help="the LeNet of the reference, or torchvision's Inception")
    add("--data-dir", default="data", metavar="DIR", help="folder of data sets and networks")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto: cuda if there is one, then mps, then cpu")
    args = parser.parse_intermixed_args(argv)
    if args.command == "table":
        if len(args.what) != 1:
            parser.error("table needs one folder")
        print(table(args.what[0]))
    elif args.command == "notebook":
        print(notebook(args.what))
    else:
        if len(args.what) != 2:
            parser.error("fid needs two sides")
        compare(args.what[0], args.what[1], args.features, args.data_dir, args.device)


if __name__ == "__main__":
    run_command(main)
