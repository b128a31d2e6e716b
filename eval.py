"""What the scripts share beside the data: flags, the run's folder, measurements, figures, reports.

    python eval.py table runs          # a Markdown table of every results.json below a folder
    python eval.py fid samples mnist   # Frechet distance of a folder's images from a set's

In the order of use: flags and errors; Run, the folder of one run (log line, checkpoints, resume,
results.json, report.html); probe, predictor, classifier, svm_report and tsne, which measure what a
code holds; nll, a model's likelihood; fid, the quality of its samples; the figures; the words of
the reports. Images are (N, C, H, W) in [0, 1], accuracies shares in [0, 1], and whatever is random
takes a seed.
"""
import argparse
import base64
import contextlib
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
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data import (SETS, DataError, Split, batches, by_class, fit as fit_images,
                  load as load_data, pairs, read_images, reading, torchvision)

# Flags and errors


class Parser(argparse.ArgumentParser):
    """argparse whose help is a docstring and whose errors are one sentence, exit status 2."""

    def __init__(self, doc):
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split()).rstrip('.')}.\n")


def number(kind, low=None, above=None, high=None):
    """An argparse type: a finite number, at least `low`, more than `above`, at most `high`."""
    rules = [(low, "at least", lambda v: v >= low), (above, "above", lambda v: v > above),
             (high, "at most", lambda v: v <= high)]
    rules = [rule for rule in rules if rule[0] is not None]

    def convert(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and all(holds(value) for _, _, holds in rules):
                return value
        bounds = " and ".join(f"{words} {bound}" for bound, words, _ in rules)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a {'whole ' if kind is int else ''}number {bounds}")
    return convert


DEVICE = dict(choices=("auto", "cpu", "cuda", "mps"), default="auto",
              help="auto takes cuda, then mps, then cpu")


def find_device(name):
    """The torch.device that --device names; DataError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    name = next(d for d in there if there[d]) if name == "auto" else name
    if not there[name]:
        raise DataError(f"--device {name} is not there; --device auto takes what is.")
    return torch.device(name)


def flags(doc, data, epochs, batch_size, lr, fid=False, nll=None):
    """The flags that mean the same in every script; the arguments after the docstring are defaults,
    `fid` adds --fid, and nll, two numbers, --nll-k and --nll-n.

    Returns (parser, groups): a script adds its own flags to groups["model"] and the like."""
    parser, default = Parser(doc), "(default: %(default)s)"
    usual = "(default: %(default)s, or what the script presets)"
    groups = {name: parser.add_argument_group(name)
              for name in ("data", "model", "objective", "optimisation", "run")}
    add = groups["data"].add_argument
    if data is not False:                                   # False: the script names its sets
        add("--data", default=data, metavar="NAME",
            help=f"a set of data.py, or folder:PATH {default}")
    add("--data-dir", default="data", metavar="DIR", help=f"where data sets lie {default}")
    add("--image-size", type=number(int, low=16, high=256), metavar="N", help="pixels a side")
    add("--limit", type=number(int, low=1), metavar="N", help="use about N images of the set")
    add = groups["optimisation"].add_argument
    add("--epochs", type=number(int, low=1), default=epochs, help=f"passes over train {usual}")
    add("--batch-size", type=number(int, low=2), default=batch_size, help=default)
    add("--lr", type=number(float, above=0), default=lr, help=f"step size {usual}")
    add = groups["run"].add_argument
    add("--out", metavar="DIR", help="the run's folder (default: a fresh runs/<script>-<data>)")
    add("--seed", type=number(int, low=0, high=2**31 - 1), default=0, help=default)
    add("--device", **DEVICE)
    if fid:
        add("--fid", choices=("lenet", "inception", "none"), default="lenet",
            help=f"features of the Frechet distance of samples {default}")
    for name, low, value, text in zip("kn", (1, 2), nll or (), ("samples an image", "images")):
        groups["objective"].add_argument(
            f"--nll-{name}", type=number(int, low=low), default=value, metavar=name.upper(),
            help=f"{text} of the likelihood's estimate (default: {value:,})")
    for name, text in (("smoke", "the whole path on a few hundred offline images, in seconds"),
                       ("resume", "go on with the run in --out (--epochs may go up)"),
                       ("eval-only", "train nothing, evaluate best.pt of the run in --out"),
                       ("overwrite", "replace the run that --out holds"),
                       ("compile", "torch.compile the losses"),
                       ("amp", "bfloat16 autocast; losses stay float32")):
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=text)
    return parser, groups


def parse(parser, argv, script, presets, smoke):
    """Flags to a namespace: the typed before those of --smoke, of presets[data] (or presets(args)),
    and the defaults.

    With --resume or --eval-only they are the saved run's; only --device, --data-dir and, with
    --resume and upwards, --epochs may differ. `command` is what to type for the same training."""
    unset = argparse.Namespace(**{action.dest: None for action in parser._actions})
    typed = {k: v for k, v in vars(parser.parse_args(argv, unset)).items() if v is not None}
    args = vars(parser.parse_args([]))
    again = "resume" if typed.get("resume") else "eval_only" if typed.get("eval_only") else None
    if typed.get("resume") and typed.get("eval_only"):
        parser.error("--resume trains on and --eval-only does not train: choose one")
    if again:
        if "out" not in typed:
            parser.error("--resume and --eval-only need --out, the folder of the run")
        args.update(saved_arguments(Path(typed["out"]), script, again == "resume"))
        free = {"out", "device", "data_dir", again} | ({"epochs"} if again == "resume" else set())
        for key in typed.keys() - free:
            if typed[key] != args.get(key):
                parser.error(f"--{key.replace('_', '-')} is {args.get(key)} in the run of "
                             f"{typed['out']}; only --device, --data-dir and, with --resume, "
                             "--epochs may change")
        if typed.get("epochs", args["epochs"]) < args["epochs"]:
            parser.error(f"--epochs may only go up with --resume, from {args['epochs']}")
    else:
        smoke = smoke if typed.get("smoke") else {}
        args.update(presets({**args, **smoke, **typed}) if callable(presets) else
                    presets.get({**args, **smoke, **typed}["data"].partition(":")[0], {}))
        args.update(smoke)
    words = [args.pop("command", f"python {script}.py")]    # with --resume the saved run's
    for key, value in typed.items():
        if key not in (*HERE, "device", "data_dir") and not (again and value == args[key]):
            no, values = "no-" * (value is False), value if isinstance(value, list) else [value]
            words += [f"--{no}{key.replace('_', '-')}",
                      *(shlex.quote(str(v)) for v in values if not isinstance(v, bool))]
    return argparse.Namespace(**{**args, **typed}, command=" ".join(words))


HERE = ("resume", "eval_only", "overwrite", "out")          # flags that are no part of a training


def saved_arguments(folder, script, resume):
    """The arguments of a run: its checkpoint's, or args.json's if no epoch was finished."""
    path, trained = folder / "args.json", any((folder / n).exists() for n in ("last.pt", "best.pt"))
    if not resume or trained or not path.exists():
        return checkpoint(folder / ("last.pt" if resume else "best.pt"), script)["args"]
    try:
        saved = json.loads(path.read_text())
        if saved.pop("script") == script:
            return saved
    except (ValueError, AttributeError, KeyError):
        pass
    raise DataError(f"{path} is damaged or not of a run of {script}.py.")


def command_line(main):
    """Runs main(): bad input becomes a sentence and exit status 2, Ctrl-C the way to resume."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (DataError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error.filename or 'a file'} cannot be read or written: {error.strerror}"
        print(f"{name}: {str(error).rstrip('.')}.", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:            # of numpy; of CUDA, MPS, the CPU
        if not (isinstance(error, MemoryError)
                or re.search("out of memory|allocate memory", str(error))):
            raise
        print(f"{name}: the memory is too small: choose a smaller --batch-size, --image-size or "
              "--limit.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        go_on = f"; to go on: python {name} {Run.go_on}" if Run.go_on else ""
        print(f"\n{name}: stopped{go_on}")
        sys.exit(130)


# The run's folder

RUN_FILES = ("args.json", "log.csv", "best.pt", "last.pt", "results.json", "report.html")


def write(path, content):
    """Writes bytes or text under a temporary name, then renames: nobody ever sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content if isinstance(content, bytes)
                              else content.encode(errors="replace"))
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):                      # a full disk does not say which file
            error.filename = str(path)
        raise


def save(path, content):
    """torch.save by way of `write`, so that a full disk is an OSError and leaves the old file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def checkpoint(path, script):
    """The dictionary in a checkpoint of `script`, on the CPU; no code in the file is run.

    Raises DataError where it is missing, damaged, or of another script."""
    if not Path(path).is_file():
        raise DataError(f"{path} is not there: give the folder of a run of {script}.py that "
                        "finished an epoch.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["script"]
        complete = found != script or (
            {"args", "shape", "n_classes", "nets", "history"} <= content.keys())
    except Exception:
        raise DataError(f"{path} is damaged or not a checkpoint of {script}.py.") from None
    if not complete:
        raise DataError(f"{path} is damaged or not a checkpoint of {script}.py.")
    if found != script:
        raise DataError(f"{path} is a checkpoint of {found}.py, not of {script}.py.")
    return content


def restore(part, state, path):
    """Loads a network's, optimiser's or generator's state; DataError where it does not fit."""
    try:
        if isinstance(part, torch.optim.Optimizer):         # fused is this device's choice, and
            for group in state["param_groups"]:             # says where `step` is to lie
                group["fused"] = part.defaults["fused"]
        load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        load(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} holds weights of another shape than its arguments.") from None
    return part


def load_nets(path, script, build, device="cpu", by=("shape", "args")):
    """The networks of a checkpoint of `script` by the names of its `build`, which takes `by`, ready
    for use; DataError where they do not fit."""
    content = checkpoint(path, script)
    nets = build(*(content[key] for key in by))
    return {k: restore(n, content["nets"].get(k), path).to(device).eval() for k, n in nets.items()}


class Run:
    """The folder of one run: args.json log.csv last.pt best.pt results.json report.html figures/.

    Nothing is written before `begin`, so that bad input leaves everything as it was."""

    go_on = None                                            # flags for Ctrl-C's last words

    def __init__(self, script, args):
        self.script, self.args, self.started = script, args, time.perf_counter()
        self.history, self.best, self.best_epoch, self.earlier = [], math.inf, None, 0.0
        self.tables, self.figures, self.sentences = [], [], []
        self.kept = {}                                      # tensors for the figures, by name
        self.device = find_device(args.device)
        if not args.eval_only:                              # which needs neither
            check_speedups(args, self.device)
        if args.out is None:
            kind, _, path = args.data.partition(":")
            name = "-".join([script, kind, Path(path).name] if path else [script, kind])
            name = re.sub(r"[^\w.]+", "-", name)
            self.names = (Path("runs") / (name + f"-{n}" * (n > 1)) for n in range(1, 10**6))
            self.folder = next(folder for folder in self.names if not folder.exists())
            return
        self.folder = Path(args.out)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--out {self.folder} is a file; give a folder.")
        holds = [name for name in RUN_FILES if (self.folder / name).exists()]
        if holds and not (args.resume or args.eval_only or args.overwrite):
            raise DataError(f"--out {self.folder} holds a run ({holds[0]}); choose another folder, "
                            "or add --resume, --eval-only or --overwrite.")

    def begin(self, data):
        """Creates the folder, once the set is there and fits, and returns the set on the device."""
        self.shape, self.n_classes = list(data.train.x.shape[1:]), len(data.classes)
        if getattr(self.args, "fid", "none") != "none":     # before hours of training, not after
            need_images(self.args.fid, {"test images": len(data.test),
                                        "train images": len(data.train)})
        again = "--resume" if self.args.resume else "--eval-only" if self.args.eval_only else None
        path = self.folder / ("last.pt" if again == "--resume" else "best.pt")
        if again and path.exists():
            content = checkpoint(path, self.script)
            if (content["shape"], content["n_classes"]) != (self.shape, self.n_classes):
                raise DataError(f"{path} was trained on images of {content['shape']} in "
                                f"{content['n_classes']} classes, and {self.args.data} holds "
                                f"{self.shape} in {self.n_classes}.")
        while self.args.out is None:                        # a run just begun may have taken it
            try:
                self.folder.mkdir(parents=True)
                break
            except FileExistsError:
                self.folder = next(self.names)
        if again != "--eval-only":
            self.claim()
        names = ("results.json", "report.html") if again else RUN_FILES
        for old in [*(self.folder / name for name in names), *self.folder.glob("figures/*.png")]:
            old.unlink(missing_ok=True)
        (self.folder / "figures").mkdir(parents=True, exist_ok=True)
        out = shlex.quote(str(self.folder))
        Run.go_on = f"--eval-only --out {out}"
        if again != "--eval-only":
            Run.go_on = f"--resume --epochs {self.args.epochs} --out {out}"
            write(self.folder / "args.json",
                  json.dumps({"script": self.script, **self.saved_args()}, indent=1))
            self.claim()
        print(f"{self.folder}: {self.args.data}, {len(data.train):,} training examples of "
              f"{'x'.join(map(str, self.shape))}, {self.device}, {torch.get_num_threads()} threads",
              flush=True)
        return data.to(self.device)

    def claim(self):
        """Locks args.json, if it is there, until this process ends; DataError where another process
        has, and so trains in this folder."""
        try:
            import fcntl                                    # not on Windows
            self.lock = open(self.folder / "args.json", "r+")
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, FileNotFoundError):
            pass
        except BlockingIOError:
            raise DataError(f"Another run is training in {self.folder}: wait for its end, or give "
                            "another --out.") from None

    def saved_args(self):
        return {k: v for k, v in vars(self.args).items() if k not in HERE}

    def resume(self, nets, **parts):
        """Puts last.pt into networks, optimisers and generators; returns the epochs done."""
        path = self.folder / "last.pt"
        if self.args.resume and path.exists():
            content = checkpoint(path, self.script)
            for name, part in {**nets, **parts}.items():
                state = {**content["nets"], **content.get("parts", {})}.get(name)
                if (isinstance(part, torch.Generator) and isinstance(state, torch.Tensor)
                        and state.shape != part.get_state().shape):
                    part.manual_seed(self.args.seed + len(content["history"]))      # new device
                    continue
                restore(part, state, path)
            self.history, self.best = content["history"], content.get("best", math.inf)
            self.kept = content.get("kept", {})
            self.earlier = sum(row["seconds"] for row in self.history)
        self.clock = time.perf_counter()
        return len(self.history)

    def progress(self, epoch, step, steps):
        """One line within the epoch, rewritten in place, on a terminal only."""
        if sys.stdout.isatty() and (step % 10 == 0 or step == steps):
            print(f"\repoch {epoch + 1}: step {step} of {steps}",
                  end="" if step < steps else "\r\033[K", flush=True)

    def means(self, names, terms):
        """{name: mean} over an epoch's steps, whose terms (names,) are on the device until here."""
        terms = torch.stack(terms).cpu()
        for row in terms[~terms.isfinite().all(1)][:1]:     # the first, before others followed
            self.check(dict(zip(names, row.tolist())))
        return dict(zip(names, terms.mean(0).tolist()))

    def check(self, terms):
        """Raises DataError, before any checkpoint of this epoch, where a term is not finite."""
        epoch = len(self.history) + 1
        for name, value in terms.items():
            if not math.isfinite(value):
                raise DataError(f"{name} is not finite in epoch {epoch}: lower --lr or its weight; "
                                + (f"the checkpoint of epoch {epoch - 1} stays." if epoch > 1 else
                                   "there is no checkpoint yet."))

    def log(self, images, **terms):
        """The epoch's line: its terms, after it drew `images` images."""
        self.check(terms)
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        epoch, epochs = len(self.history) + 1, self.args.epochs
        self.history.append({"epoch": epoch, **terms, "seconds": seconds,
                             "images_per_second": images / seconds})
        left = sum(row["seconds"] for row in self.history) / epoch * (epochs - epoch)
        print(f"epoch {epoch:3d}/{epochs}", *(f"{k} {v:.4g}" for k, v in terms.items()),
              f"{seconds:.1f} s  {images / seconds:,.0f} images/s",
              f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left",
              sep="  ", flush=True)

    def save(self, score, nets, **parts):
        """best.pt where `score` is the lowest so far, then last.pt, then log.csv, each whole."""
        content = {"script": self.script, "args": self.saved_args(), "epoch": len(self.history),
                   "shape": self.shape, "n_classes": self.n_classes, "history": self.history,
                   "nets": {name: net.state_dict() for name, net in nets.items()},
                   "kept": {name: images.cpu() for name, images in self.kept.items()}}
        if score < self.best:
            self.best = score
            save(self.folder / "best.pt", content)
        states = {name: part.get_state() if isinstance(part, torch.Generator)
                  else part.state_dict() for name, part in parts.items()}
        save(self.folder / "last.pt",
             {**content, "parts": states, "best": self.best})
        table = io.StringIO()
        rows = csv.DictWriter(table, self.history[-1], lineterminator="\n")
        rows.writeheader()
        rows.writerows(self.history)
        write(self.folder / "log.csv", table.getvalue())

    def best_nets(self, load):
        """The networks of best.pt, by the script's load(path, device)."""
        content = checkpoint(self.folder / "best.pt", self.script)
        self.best_epoch = content["epoch"]
        if not self.history:                                # --eval-only
            last = self.folder / "last.pt"
            content = checkpoint(last, self.script) if last.exists() else content
            self.history, self.kept = content["history"], content.get("kept", {})
            self.earlier = sum(row["seconds"] for row in self.history)
        return load(self.folder / "best.pt", self.device)

    @contextlib.contextmanager
    def doing(self, what):
        """Says what the evaluation is doing and for how long it did."""
        start = time.perf_counter()
        print(f"{what} ... ", end="", flush=True)
        yield
        print(f"{time.perf_counter() - start:.1f} s", flush=True)

    def figure(self, name, figure, caption):
        """Writes figures/NAME.png and shows it in the report; the caption says what to look for."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
        write(self.folder / "figures" / f"{name}.png", buffer.getvalue())
        self.figures.append((name, caption, buffer.getvalue()))

    def table(self, title, header, rows, note=""):
        """A table of the report; a cell is text or a number."""
        self.tables.append((title, header, [[*map(shown, row)] for row in rows], note))

    def side_by_side(self, title, models, rows, note=""):
        """A table of the report with a column for each of {name: its part of results.json, or None}
        and a row for each of {words: key}; a key such as spread:% has a format of `filled`."""
        there = {name: r for name, r in models.items() if r}
        self.table(title, ("", *there), [
            (words, *((filled(r, f"{{{key}}}") or "–")[0] for r in there.values()))
            for words, key in rows.items()], note)

    def say(self, sentence, numbers=None):
        """An observation of the report, a sentence computed from the numbers: as it is, or `filled`
        with results.json's, and left out where one of them is missing."""
        self.sentences += [sentence] if numbers is None else filled(numbers, sentence)

    def finish(self, title, results):
        """Writes results.json (plain numbers, unrounded) and report.html, self-contained."""
        args, device = self.saved_args(), str(self.device)
        if self.device.type == "cuda":                      # times mean nothing without it
            device += f" ({torch.cuda.get_device_name(self.device)})"
        results = {"script": self.script, "data": args["data"], "command": args.pop("command"),
                   "args": args,
                   "versions": {"python": platform.python_version(), "torch": torch.__version__},
                   "device": device, "threads": torch.get_num_threads(),
                   "seconds": self.earlier + time.perf_counter() - self.started,
                   "epochs": len(self.history), "seed": args["seed"], "smoke": args["smoke"],
                   **results}
        write(self.folder / "results.json", json.dumps(results, indent=1))
        write(self.folder / "report.html", self.report(title, results))
        print(*(f"- {sentence}" for sentence in self.sentences), sep="\n")
        print(f"{results['seconds'] / 60:.1f} minutes in all, the report is", flush=True)
        print(self.folder / "report.html")

    def report(self, title, results):
        e = html.escape
        parts = [f"<h1>{e(title)}</h1><p>{e(results['script'])}.py on {e(results['data'])}, "
                 f"{results['epochs']} epochs, {results['seconds'] / 60:.1f} minutes on "
                 f"{e(results['device'])}, {results['threads']} "
                 f"thread{'s' * (results['threads'] > 1)}, torch "
                 f"{e(results['versions']['torch'])}, seed {results['seed']}; evaluated: epoch "
                 f"{self.best_epoch}.</p>"]
        if results["smoke"]:
            parts.append("<p><b>A smoke run: a few hundred images, seconds of training. It shows "
                         "that everything works; its numbers mean nothing.</b></p>")
        parts.append("<ul>" + "".join(f"<li>{e(s)}</li>" for s in self.sentences) + "</ul>")
        for heading, header, rows, note in self.tables:
            lines = ["".join(f"<th>{e(cell)}</th>" for cell in header)]
            lines += ["".join(f"<td>{e(cell)}</td>" for cell in row) for row in rows]
            parts.append(f"<h2>{e(heading)}</h2><table>"
                         + "".join(f"<tr>{line}</tr>" for line in lines)
                         + f"</table><p>{e(note)}</p>")
        for name, caption, png in self.figures:
            parts.append(f"<h2>{e(name.replace('_', ' '))}</h2><p>{e(caption)}</p>"
                         f"<img alt=\"{e(name)}\" src=\"data:image/png;base64,"
                         f"{base64.b64encode(png).decode()}\">")
        parts.append(f"<h2>command</h2><pre>{e(self.args.command)}</pre>")
        style = ("body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
                 "padding:0 1rem;color:#222}table{border-collapse:collapse}"
                 "td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
                 "td:first-child,th:first-child"
                 "{text-align:left}img{max-width:100%}pre{white-space:pre-wrap}")
        return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{e(title)}</title>'
                f"<style>{style}</style>{''.join(parts)}</html>\n")


def shown(value):
    """A cell as the report prints it: None as a dash, floats with four significant digits."""
    return ("–" if value is None else f"{value:,}" if isinstance(value, int) else
            f"{value:.4g}" if isinstance(value, float) else value)


def percent(share):
    """A share in [0, 1] as the report prints it; two decimals below one per cent."""
    return "–" if share is None else f"{100 * share:.{1 if abs(share) >= 0.01 else 2}f} %"


def over_seeds(found):
    """{key: mean, key_std: deviation, key_min: the worst} of {key: a list of one number a seed};
    deviation and worst are None for one seed."""
    return {**{key: float(np.mean(v)) for key, v in found.items()},
            **{f"{key}_std": float(np.std(v, ddof=1)) if len(v) > 1 else None
               for key, v in found.items()},
            **{f"{key}_min": min(v) if len(v) > 1 else None for key, v in found.items()}}


def spread(r, key):
    """A share of over_seeds as the report prints it, with its deviation between seeds."""
    return percent(r[key]) + ("" if r[f"{key}_std"] is None else f" ± {100 * r[f'{key}_std']:.1f}")


def value(numbers, key):
    """What results.json has at a.b, None where there is none."""
    for part in key.split("."):
        numbers = numbers.get(part) if isinstance(numbers, dict) else None
    return numbers


def filled(numbers, *texts):
    """Those of the texts of which results.json, or a part of it, has every {a.b:format}, with what
    it has put in: as text in a format of Python's, or as a share (%), the least of a list of them
    (min%), one of over_seeds with its deviation (±), a mean with its standard error (nats), or as
    `shown` where there is no format."""
    def put(match):
        key, kind = match.groups()
        found = value(numbers, key)
        if found is None:
            raise KeyError(key)
        if kind == "nats":
            error = found["stderr"]
            return f"{found['nats']:.2f}" + (f" ± {error:.2f}" if error is not None else "")
        if kind == "±":
            home, _, key = key.rpartition(".")
            return spread(value(numbers, home) if home else numbers, key)
        if kind in ("%", "min%"):
            return percent(min(found) if kind == "min%" else found)
        return format(found, kind) if kind else shown(found)
    result = []
    for text in texts:
        with contextlib.suppress(KeyError):
            result.append(re.sub(r"\{([\w.]+):?([^}]*)\}", put, text))
    return result


def check_speedups(args, device):
    """DataError where --amp or --compile is not to be had on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if args.amp and not (torch.amp.is_autocast_available(device.type)
                             and torch.autocast(device.type, torch.bfloat16)._enabled):
            raise DataError(f"--amp needs a newer PyTorch or system on {device}: leave it out.")
        try:
            if args.compile:
                torch.compile(lambda x: x + 1)(torch.ones(1, device=device))
        except Exception as error:                          # no C++ compiler, no Triton
            raise DataError(f"--compile does not work here ({type(error).__name__}): leave it "
                            "out.") from None


def accelerate(args, device, *functions):
    """--compile and --amp, only here: returns the autocast context of a step, then `functions`.

    Without autocast's cache of weights: one filled under no_grad would cut gradients off."""
    def cast():
        return (torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if args.amp
                else contextlib.nullcontext())
    if args.compile:                                        # vaegan.py goes back through one graph
        import torch._functorch.config as config            # three times
        if hasattr(config, "donated_buffer"):
            config.donated_buffer = False
    return (cast, *(torch.compile(f) if args.compile else f for f in functions))


def adam(*nets, lr, beta1=0.9):
    """Adam for the weights of these networks, fused, but for mps, which torch 2.4 has no such step
    for."""
    weights = [p for net in nets for p in net.parameters()]
    fused = True if weights[0].device.type != "mps" else None
    return torch.optim.Adam(weights, lr, (beta1, 0.999), fused=fused)


def decay(optimisers, lr, done, kind="cosine"):
    """Sets the step size at `done` in [0, 1], the share of training that is over: lr times
    (1 + cos(pi * done)) / 2, or with kind "step" lr, and a tenth of it in the last fifth (Jha et
    al., released code)."""
    share = 0.5 * (1 + math.cos(math.pi * done))
    if kind == "step":
        share = 0.1 if done >= 0.8 else 1.0
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr * share


def move(opt, grads, go=None):
    """opt.step() with these gradients, one a weight. Where `go`, a 0-d bool on the device, is
    false, weights and moments stay as they were; a fused optimiser does not tell the host."""
    for p, grad in zip(opt.param_groups[0]["params"], grads):
        if grad is not None and grad.stride() != p.stride():
            grad = torch.empty_like(p).copy_(grad)          # --compile lays some out otherwise, and
        p.grad = grad                                       # a fused step goes by place in memory
    fused = opt.defaults.get("fused")
    if fused:                                               # as GradScaler skips a step
        opt.found_inf = None if go is None else (~go).float()
    if fused or go is None or go:
        opt.step()


def descend(losses, opts, moves=None):
    """Every optimiser one step down a loss of its own, all gradients taken at the weights as they
    are, each of that optimiser's weights only. moves: of `move`, one an optimiser."""
    grads = [torch.autograd.grad(loss, opt.param_groups[0]["params"], allow_unused=True,
                                 retain_graph=opt is not opts[-1])
             for loss, opt in zip(losses, opts)]
    for opt, own, go in zip(opts, grads, moves or [None] * len(opts)):
        move(opt, own, go)


# What a code holds


def mlp(width_in, width_out):
    """The papers' two-layer MLP: 256-256, batch norm, LeakyReLU 0.2 (Jha et al., released code)."""
    return nn.Sequential(nn.Linear(width_in, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
                         nn.Linear(256, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
                         nn.Linear(256, width_out))


@torch.no_grad()
def encode(enc, split):
    """mu (N, Z), logvar (N, Z) and s (N, S) of a whole split, as enc gives them of a batch."""
    index = torch.arange(len(split), device=split.x.device)
    return [torch.cat(part) for part in zip(*(enc(split.images(i)) for i in index.split(500)))]


@torch.no_grad()
def decode(dec, *codes):
    """Images (N, C, H, W) of a decoder that takes codes (N, ...), 500 at a time."""
    return torch.cat([dec(*part) for part in zip(*(code.split(500) for code in codes))])


@torch.no_grad()
def held_out(terms, enc, dec, split, seed):
    """The first two of terms(enc, dec, x, noise), means over a whole split, with a seeded partner
    and z for each image: x (2B, C, H, W), noise (2B, Z). Leaves enc and dec in eval mode."""
    enc.eval(), dec.eval()
    device, total = split.x.device, 0
    rng = torch.Generator(device).manual_seed(seed)
    index = torch.arange(len(split), device=device)
    for i, partner in zip(index.split(250), pairs(split, index, rng).split(250)):
        noise = torch.randn(2 * len(i), enc.mu.out_features, generator=rng, device=device)
        found = terms(enc, dec, split.images(torch.cat([i, partner])), noise)[:2]
        total += torch.stack(found) * len(i) / len(split)
    return total.tolist()


@torch.no_grad()
def over(split, terms, seed):
    """The mean over a split of terms(x (B, C, H, W), rng), which are means over a batch, 500 images
    at a time and with a seeded rng."""
    rng, total = torch.Generator(split.x.device).manual_seed(seed), 0
    for i in torch.arange(len(split), device=split.x.device).split(500):
        total += terms(split.images(i), rng) * len(i) / len(split)
    return total


def sample(code, generator):
    """A code to a tensor (N, d): itself, or a fresh draw from q where it is a pair (mu, logvar)."""
    if isinstance(code, torch.Tensor):
        return code
    mu, logvar = code
    noise = torch.randn(mu.shape, generator=generator, device=mu.device)
    return mu + (0.5 * logvar).exp() * noise


@torch.enable_grad()
def fit(code, width_out, objective, seed, steps, batch=256):
    """Trains `mlp` on a code that is whole on the device, with Adam, 1e-3 falling to 1e-4, and a
    fresh draw of a sampled code at every step. objective(output, index) is the loss on the rows
    `index`. Returns the network, in eval mode."""
    code = code if isinstance(code, tuple) else (code,)
    n, width_in, device = *code[0].shape, code[0].device
    rng, batch = torch.Generator(device).manual_seed(seed), min(batch, n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp(width_in, width_out).to(device)
    opt = adam(net, lr=1e-3)
    at = n
    for step in range(steps):
        decay([opt], 1e-3, 0.8 * step / steps)             # to 1e-4
        if at + batch > n:
            order, at = torch.randperm(n, generator=rng, device=device), 0
        index, at = order[at:at + batch], at + batch
        rows = tuple(part[index] for part in code)
        loss = objective(net(sample(rows if len(rows) == 2 else rows[0], rng)), index)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval()


@torch.no_grad()
def probe(train, test, labels, seed=0, steps=2000):
    """What a code gives away of each label: the papers' MLP, one network with one head a label.

    train, test: codes (N, d), or (mu, logvar) to be sampled, afresh at every step of training.
    labels: {name: (y_train (N,), y_test)}. Returns {name: {train, test, chance, majority}}, shares
    in [0, 1]; chance is one over the classes of y_train, majority what the most frequent of them
    scores on test."""
    sizes = {name: int(max(y.max(), t.max())) + 1 for name, (y, t) in labels.items()}

    def heads(output):
        return output.split(list(sizes.values()), dim=1)

    def objective(output, index):
        return sum(F.cross_entropy(logits, y[index])
                   for logits, (y, _) in zip(heads(output), labels.values()))

    net = fit(train, sum(sizes.values()), objective, seed, steps)
    rng = torch.Generator(next(net.parameters()).device).manual_seed(seed + 1)
    on_train, on_test = (heads(net(sample(code, rng))) for code in (train, test))
    result = {}
    for (name, (y, t)), logits, logits_test in zip(labels.items(), on_train, on_test):
        counts = y.bincount()
        result[name] = {"train": (logits.argmax(1) == y).float().mean().item(),
                        "test": (logits_test.argmax(1) == t).float().mean().item(),
                        "chance": 1 / int((counts > 0).sum()),
                        "majority": (t == counts.argmax()).float().mean().item()}
    return result


def probe_codes(data, codes, seed=0, steps=2000):
    """The KL of z, and what s, sampled z and the mean of z give away, by results.json's keys.

    codes: {"train", "test", "unseen": (mu (N, Z), logvar (N, Z), s (N, S))}. Probes are fitted on
    train and scored on test, those of factors on `unseen` where the set has it."""
    last, new = ("unseen", data.unseen) if data.unseen else ("test", data.test)
    train, test, fresh = ({"s": s, "z": (mu, logvar), "z_mean": mu}
                          for mu, logvar, s in (codes["train"], codes["test"], codes[last]))
    label = {"class": (data.train.y, data.test.y)}
    labels = {name: (f, new.factors[name]) for name, f in data.train.factors.items()}
    kl = kl_divergence(*codes["test"][:2]).mean(0)          # (Z,) nats
    results, found = {"test_kl": kl.sum().item(), "live_dims": int((kl > 0.01).sum())}, {}
    for code in train:
        read = probe(train[code], test[code], label, seed, steps)["class"]
        results |= {f"{code}_train_acc": read["train"], f"{code}_test_acc": read["test"],
                    "chance": read["chance"], "majority": read["majority"]}
        found[code] = probe(train[code], fresh[code], labels, seed, steps) if labels else {}
    results["factors"] = {name: {**{code: found[code][name]["test"] for code in found},
                                 "majority": found["s"][name]["majority"]} for name in labels}
    return results


@torch.no_grad()
def predictor(train, test, seed=0, steps=2000):
    """Predicts one code from another, with the papers' MLP and squared error.

    train, test: (input (N, d_in), target (N, d_out)). Returns R2 on test, over all targets together
    and against the constant predictor (the train mean; None where that is never wrong), and the
    test predictions (N, d_out)."""
    (x, y), (x_test, y_test) = train, test
    mean, scale = y.mean(0), y.std(0).mean() + 1e-8         # one scale: dead dimensions stay small
    net = fit(x, y.shape[1], lambda output, index: F.mse_loss(output, (y[index] - mean) / scale),
              seed, steps)
    predicted = mean + scale * net(x_test)
    error, constant = ((y_test - guess).square().sum() for guess in (predicted, mean))
    return (1 - (error / constant).item() if constant > 0 else None), predicted


class LeNet(nn.Module):
    """LeCun et al. 1998 with ReLU and max pooling: the judge of decoded images."""

    def __init__(self, channels, size, classes):
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(                      # (N, channels, size, size)
            nn.Conv2d(channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2),             # (N, 20, .., ..)
            nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),     # (N, 50 side^2)
            nn.Linear(50 * side**2, 128), nn.ReLU())        # (N, 128)
        self.head = nn.Linear(128, classes)

    def forward(self, x):
        return self.head(self.features(x))


@torch.enable_grad()
def classifier(data, data_dir, shows=150_000, seed=0):
    """A LeNet trained once, on `shows` train images, and cached in data_dir by the set's checksum.

    Returns (net, its accuracy on the test images)."""
    train, test, device = data.train, data.test, data.train.x.device
    digest = hashlib.sha256(train.x.cpu().numpy().tobytes() + train.y.cpu().numpy().tobytes())
    path = Path(data_dir) / (f"lenet-{data.name.partition(':')[0]}-{digest.hexdigest()[:12]}"
                             f"-{shows}-{seed}.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LeNet(*train.x.shape[1:3], int(train.y.max()) + 1).to(device)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        return net.eval(), saved["test_acc"]
    except FileNotFoundError:
        pass
    except Exception:
        print(f"{path} is damaged and is made again")
    rng = torch.Generator(device).manual_seed(seed)
    opt = adam(net, lr=2e-3)
    epochs = math.ceil(shows / len(train))
    for epoch in range(epochs):
        decay([opt], 2e-3, epoch / epochs)
        for index in batches(train, 128, rng):
            loss = F.cross_entropy(net(train.images(index)), train.y[index])
            opt.zero_grad()
            loss.backward()
            opt.step()
    net.eval()
    test_acc = (classes_of(net, test.x) == test.y).float().mean().item()
    with contextlib.suppress(OSError):                      # a read-only folder costs a minute
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        save(path, {"net": net.state_dict(), "test_acc": test_acc})
    return net, test_acc


@torch.no_grad()
def class_shares(judge, images, n_classes):
    """What share of images (N, C, H, W) the classifier counts to each class, a list."""
    return (classes_of(judge, images).bincount(minlength=n_classes) / len(images)).tolist()


def classes_of(net, images):
    """The classifier's classes (N,) of images (N, C, H, W), uint8 or float in [0, 1]."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([net(part.float() / scale).argmax(1) for part in images.split(500)])


def svm_report(train, test, kernel, seed=0, points=None):
    """scikit-learn's SVC on codes; train, test: (codes (N, d), y (N,)); kernel "linear" or "rbf".

    Each dimension is standardised by train, of which `points` caps the rows: all 55,000 of MNIST
    take a minute, but as many of a code that mixes the classes take ten. Returns plain numbers on
    test: accuracy; precision, recall and f1, lists a class, 0 where undefined;
    confusion, counts, a list of rows, the true classes."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    (x, y), (x_test, y_test) = ([part.cpu() for part in side] for side in (train, test))
    index = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:points]
    x, y = x[index], y[index]
    machine = make_pipeline(StandardScaler(), SVC(kernel=kernel, cache_size=1000))
    guess, truth = machine.fit(x.numpy(), y.numpy()).predict(x_test.numpy()), y_test.numpy()
    labels = range(int(max(y.max(), y_test.max())) + 1)
    scores = precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    return {"accuracy": float((guess == truth).mean()),
            **{name: part.tolist() for name, part in zip(("precision", "recall", "f1"), scores)},
            "confusion": confusion_matrix(truth, guess, labels=labels).tolist()}


def off_support(prior, train, test):
    """The share of draws `prior` (N, Z) that lie farther from the nearest train code than 99 % of
    the test codes do: there the decoder has never been."""
    from sklearn.neighbors import NearestNeighbors
    nearest = NearestNeighbors(n_neighbors=1).fit(train.cpu().numpy())
    far, usual = (torch.from_numpy(nearest.kneighbors(code.cpu().numpy())[0][:, 0])
                  for code in (prior, test))
    return (far > usual.quantile(0.99)).float().mean().item()


def proxy_a_distance(source, target, seed=0):
    """2 (1 - 2 error) of telling two domains apart by their codes (N, d) and (N', d): linear SVMs
    over a range of C learn on one half, and the smallest error on the other half counts (Ganin et
    al. 2016, section 5.1.5). 2: always told apart, 0: never.

    As in the authors' code that half also chooses C, and an error above 1/2 counts as its
    complement. Here dimensions are standardised, and C ends at 1, not 1e4, where the SVM takes
    minutes and changes nothing."""
    from sklearn.svm import LinearSVC
    x = torch.cat([source, target]).cpu()
    x = ((x - x.mean(0)) / (x.std(0) + 1e-6)).numpy()
    d, rng, n = np.arange(len(x)) < len(source), np.random.RandomState(seed), len(source)
    learn, test = map(np.concatenate, zip(*(np.array_split(start + rng.permutation(size), 2)
                                            for start, size in ((0, n), (n, len(target))))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # the largest C do not converge
        errors = [1 - LinearSVC(C=c, dual=True, max_iter=100, random_state=seed)
                  .fit(x[learn], d[learn]).score(x[test], d[test]) for c in np.logspace(-5, 0, 6)]
    return 2 * (1 - 2 * float(min(min(error, 1 - error) for error in errors)))


def tsne(code, seed=0, points=2000):
    """scikit-learn's t-SNE of a seeded choice of a code's rows: ((n, 2) array, their indices)."""
    from sklearn.manifold import TSNE
    index = torch.randperm(len(code), generator=torch.Generator().manual_seed(seed))[:points]
    rows = code[index.to(code.device)].cpu().numpy()
    if not rows.std(0).any():                               # all in one place: scikit-learn crashes
        return rows[:, [0, 0]], index.to(code.device)
    placed = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), random_state=seed).fit_transform(rows)
    return placed, index.to(code.device)


# Likelihood


def binarize(x, generator):
    """Pixels (...) drawn as 0 or 1 with their brightness in [0, 1] as probability."""
    return (torch.rand(x.shape, generator=generator, device=x.device) < x).float()


def binarized(split, seed):
    """The split with pixels drawn once, from the seed, as 0 or 255."""
    rng, x = torch.Generator(split.x.device).manual_seed(seed), torch.empty_like(split.x)
    for grey, drawn in zip(split.x.split(5000), x.split(5000)):
        drawn.copy_(255 * binarize(grey.float() / 255, rng))
    return Split(x, split.y, split.factors)


def log_mean_exp(x, dim=0):
    """log of the mean of exp(x) along `dim`, without overflow."""
    return x.logsumexp(dim) - math.log(x.shape[dim])


def kl_divergence(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, elementwise (Kingma, Welling, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1)


def bernoulli_log_likelihood(x, logits):
    """log p(x|z) in nats (...) of pixels x (..., C, H, W) in [0, 1] under Bernoullis with these
    logits: the sum of x log p + (1 - x) log(1 - p), from logits, where log(0) does not occur. On
    grey pixels the expectation over images binarised at random."""
    bce = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return -bce.flatten(-3).sum(-1)


def gaussian_log_likelihood(x, mean, sigma):
    """log p(x|z) in nats (...), a density, of pixels x (..., C, H, W) under N(mean, sigma^2)."""
    squared = ((x - mean) / sigma).square().flatten(-3).sum(-1)
    return -0.5 * squared - x[0].numel() * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


def logistic_log_likelihood(x, logits, log_scale):
    """log p(x|z) in nats (...) of x (..., C, H, W), whole multiples of 1/255, under logistics with
    mean sigmoid(logits), cut into 256 bins around those; the outer two reach to infinity.

    A bin from a to b, in units of the scale: sigmoid(b) - sigmoid(a), which is
    sigmoid(b) sigmoid(-a) (1 - exp(a - b)), exact also far from the mean."""
    scale = log_scale.exp()
    middle, half = (x - logits.sigmoid()) / scale, 0.5 / 255 / scale
    below, above = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
    inner = below + above + torch.log(-torch.expm1(-2 * half))
    log_p = inner.where(x > 0.5 / 255, below).where(x < 254.5 / 255, above)
    return log_p.flatten(-3).sum(-1)


def log_normal(z):
    """log N(z; 0, I) in nats, (...) of z (..., Z)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


@torch.no_grad()
def log_marginal(x, mu, logvar, log_likelihood, ks=(5000,), seed=0, prior=None, chunk=None):
    """{k: log p_k(x) (N,)}, nats: log of 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) with z_i ~ q(z|x).

    A lower bound of log p(x) in expectation, tighter with every sample (Burda, Grosse,
    Salakhutdinov 2016). x (N, ...), encoded once to mu, logvar (N, Z);
    log_likelihood(x (B, ...), z (c, B, Z)) -> (c, B), nats; prior: log_prob(z (..., Z)) -> (...),
    else N(0, I). `chunk` samples of 20 images are decoded at a time, so that memory does not grow
    with k; neither chunk nor ks changes an image's draws. An autocast around the call is off in
    here, because bfloat16 is some 0.1 nats off; log_likelihood may open one around its decoder.
    Returned float64, on the CPU."""
    device, dtype = mu.device, torch.promote_types(mu.dtype, torch.float32)
    if chunk is None:                                       # on a GPU up to two million pixels
        chunk = 10 if device.type == "cpu" else max(10, min(2500, 2_000_000 // x[0].numel()))
    log_prior = prior.log_prob if prior else log_normal
    result, seeds = {k: [] for k in sorted(set(ks))}, torch.Generator().manual_seed(seed)
    autocast = (torch.autocast(device.type, enabled=False)
                if torch.amp.is_autocast_available(device.type) else contextlib.nullcontext())
    with autocast:
        parts = (part.split(20) for part in (x, mu.to(dtype), logvar.to(dtype)))
        for images, m, v in zip(*parts):
            rng = torch.Generator(device)
            rng.manual_seed(int(torch.randint(2**62, (), generator=seeds)))
            total = torch.full((len(m),), -math.inf, dtype=torch.float64)
            done, stock = 0, m.new_empty(0, *m.shape)       # noise (samples, B, Z) not yet used
            for k in result:
                while done < k:
                    c = min(max(chunk, 50), k - done)
                    if c > len(stock):                      # drawn in fifties, whatever c is
                        stock = torch.cat([stock, *(
                            torch.randn(50, *m.shape, generator=rng, device=device, dtype=dtype)
                            for _ in range(0, c - len(stock), 50))])
                    noise, stock, done = stock[:c], stock[c:], done + c
                    z = m + (0.5 * v).exp() * noise         # (c, B, Z)
                    log_q = log_normal(noise) - 0.5 * v.sum(-1)
                    log_p = torch.cat([log_likelihood(images, some) for some in z.split(chunk)])
                    log_w = log_p.to(dtype) + log_prior(z) - log_q
                    total = total.logaddexp(log_w.logsumexp(0).cpu().double())
                result[k].append(total - math.log(k))
    return {k: torch.cat(parts) for k, parts in result.items()}


def nll(x, mu, logvar, log_likelihood, k=5000, **options):
    """Minus log_marginal, which says what the arguments are, over images x (N, ...) of D numbers.

    Returns {nats, bits_per_dim, k, n, stderr}: nats an image, nats / (D ln 2), k, N, and the
    standard error of nats over images, None for a single one."""
    log_p = log_marginal(x, mu, logvar, log_likelihood, (k,), **options)[k]
    return {**mean_nats(-log_p, x[0].numel()), "k": k}


def mean_nats(values, numbers=None):
    """{nats, stderr, n}: the mean of values (n,), its standard error over images, None for a single
    one, and n; with `numbers`, the D of an image, also bits_per_dim, nats / (D ln 2)."""
    nats, n = values.mean().item(), len(values)
    return {"nats": nats, "stderr": values.std().item() / math.sqrt(n) if n > 1 else None, "n": n,
            **({"bits_per_dim": nats / (numbers * math.log(2))} if numbers else {})}


# The Frechet distance between features of images

FEATURES = {"lenet": 128, "inception": 2048}                # how many each extractor has


def frechet(mean1, cov1, mean2, cov2):
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), float64; means (d,), covs (d, d).

    The square root's trace needs eigenvalues only: with cov1 = R R', those of cov1 cov2 are those
    of R' cov2 R, which is symmetric: real, never negative, and right at any rank, where sqrtm of
    the product is none of it. R is a Cholesky factor of either covariance, else of eigenvectors."""
    mean1, cov1, mean2, cov2 = (part.cpu().double() for part in (mean1, cov1, mean2, cov2))
    for cov, other in ((cov1, cov2), (cov2, cov1)):
        root, failed = torch.linalg.cholesky_ex(cov)
        if not failed:
            break
    else:
        values, vectors = torch.linalg.eigh(cov)
        root = vectors * values.clamp(min=0).sqrt()
    values = torch.linalg.eigvalsh(root.T @ other @ root)
    apart = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace()
    return max((apart - 2 * values.clamp(min=0).sqrt().sum()).item(), 0.0)    # 0 up to rounding


def statistics(parts):
    """The mean (d,) and unbiased covariance (d, d), float64, of features that come in batches
    (B, d), two rows or more in all."""
    n = total = product = 0
    for part in parts:
        part = part.cpu().double()
        if n == 0:
            origin = part.mean(0)                           # else a large mean cancels the variance
        part = part - origin
        n, total, product = n + len(part), total + part.sum(0), product + part.T @ part
    return origin + total / n, (product - total.outer(total) / n) / (n - 1)


def to_bytes(images):
    """Images as they would be saved: float in [0, 1] to the nearest uint8; uint8 unchanged."""
    byte = images.dtype == torch.uint8
    return images if byte else (images.float() * 255 + 0.5).clamp(0, 255).byte()


def inception(data_dir):
    """torchvision's Inception v3 without fc: (B, 3, 299, 299) in [-1, 1] -> (B, 2048), pooled.

    Weights from data_dir, from torch's cache, or fetched; DataError says where to get them."""
    models = torchvision().models
    weights = models.Inception_V3_Weights.IMAGENET1K_V1
    found = sorted(Path(data_dir).glob("inception_v3_google-*.pth"))
    with torch.random.fork_rng(devices=[]):                 # aux_logits, because the file has them
        net = models.inception_v3(aux_logits=True, transform_input=False, init_weights=False)
    try:
        if found:                                           # a name ends in the file's checksum
            digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
            if not digest.startswith(found[0].stem.rpartition("-")[2]):
                raise ValueError(f"{found[0]} is not what its name says")
            state = torch.load(found[0], map_location="cpu", weights_only=True)
        else:
            state = weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:                              # URLError, OSError, damaged bytes: any
        raise DataError(f"Inception's weights are missing or damaged ({str(error).strip()[:120]}): "
                        f"get {weights.url} and save it in {data_dir} under that name, or take the "
                        "features of lenet.") from None
    net.fc, net.aux_logits, net.AuxLogits = nn.Identity(), False, None
    return net.eval()


def inception_input(images):
    """uint8 (B, 1 or 3, H, W) -> float (B, 3, 299, 299) in [-1, 1], by way of 32 x 32, so that sets
    of all sizes are blurred alike. Grey is copied to three channels."""
    x = images.expand(-1, 3, -1, -1).float() / 255
    if x.device.type == "mps" and min(x.shape[2:]) > 32:    # torch 2.4 has no antialiasing there
        return inception_input(images.cpu()).to(x.device)
    for size in (32, 299):
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False,
                          antialias=min(x.shape[2:]) > size)
    return 2 * x - 1


def extractor(kind, data, data_dir, device, shows=150_000):
    """A function from images (n, C, H, W) to their `statistics`, and the features' name in tables.

    "lenet": the penultimate layer, behind the ReLU, of `data`'s classifier; "inception": above."""
    if kind == "lenet":
        net = classifier(data, data_dir, shows)[0].features
        prepare, size, name = lambda x: x.float() / 255, 500, f"LeNet of {data.name}, 128"
    else:
        net, prepare, size = inception(data_dir), inception_input, 50
        name = "torchvision's Inception, 2,048 (3x32x32, then 299)"
    net = net.to(device)

    @torch.no_grad()
    def measure(images):
        return statistics(net(prepare(to_bytes(part.to(device)))) for part in images.split(size))
    return measure, name


def need_images(kind, counts):
    """Raises DataError where there are fewer images than features; counts: {whose: how many}."""
    for whose, n in counts.items():
        if n < FEATURES[kind]:
            raise DataError(f"{n:,} {whose} are too few for {FEATURES[kind]:,} features of {kind}: "
                            "a Frechet distance needs as many images as features on either side "
                            "(--fid none does without).")


def fid(kind, data, data_dir, images, seed=0, shows=150_000):
    """The Frechet distance between images and all test images of `data`, a data.Dataset.

    kind: "lenet", "inception" or "none"; images (n, C, H, W), uint8, or float in [0, 1], which is
    rounded to uint8 first, as the set is; shows: of `classifier`. Returns None for "none", else
    {value, floor, features, n}: floor is what as many train images score (at most all, seeded),
    features a name to print beside the number. Raises DataError at fewer images than features."""
    if kind == "none":
        return None
    train, test, n = data.train.x, data.test.x, len(images)
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
    need_images(kind, {"images": n, "test images": len(test), "train images": len(index)})
    measure, name = extractor(kind, data, data_dir, test.device, shows)
    known = vars(data).setdefault("statistics", {})         # a run measures these but once
    key = kind, shows, seed, n
    if key not in known:
        known[key] = measure(test), measure(train[index.to(train.device)])
    reference, floor = known[key]
    return {"value": frechet(*measure(images), *reference), "floor": frechet(*floor, *reference),
            "features": name, "n": n}


# Figures: what returns a matplotlib Figure is for Run.figure, what is called draw_ writes its own

# Twelve colours that differ in lightness as well as in hue, and four markers to tell them apart.
COLOURS = ("#332288", "#ee7733", "#117733", "#88ccee", "#cc3311", "#ddcc77", "#aa4499", "#44aa99",
           "#000000", "#ee99aa", "#999933", "#0077bb")


def new_figure(width, height, panels=1):
    """A Figure and the axes of its panels, width x height inches each, three in a row; no global
    state, no window."""
    from matplotlib.figure import Figure
    rows, columns = math.ceil(panels / 3), min(panels, 3)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def pick(labels, n, seed):
    """Indices of n seeded rows (all where there are fewer), of different labels while there are
    any left; labels (N,) int64."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kinds = labels.cpu()[order].unique(return_inverse=True)[1]
    rank = by_class(kinds)[3]                               # 0: the first of its label
    return order[rank.argsort(stable=True)][:n].to(labels.device)


def grid(images, row_names=(), header=False, red=None, xlabel="", ylabel=""):
    """Rows of images (R, C, channels, H, W) in [0, 1], with a name at the left of each row.

    `header` sets the first row and column apart; `red` (R, C) outlines images in red."""
    x = (images.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3, -1, -1).cpu().numpy()
    rows, columns, _, height, width = x.shape
    k = max(1, round(96 / height))                          # whole pixels stay crisp
    x = x.repeat(k, 3).repeat(k, 4).transpose(0, 1, 3, 4, 2)
    gap, apart = 6 if red is None else 14, 18 if header else 0
    tops = [gap + i * (height * k + gap) + apart * (i > 0) for i in range(rows)]
    lefts = [gap + j * (width * k + gap) + apart * (j > 0) for j in range(columns)]
    sheet = np.full((tops[-1] + height * k + gap, lefts[-1] + width * k + gap, 3), 255, np.uint8)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            if red is not None and red[i, j]:
                sheet[top - 5:top + height * k + 5, left - 5:left + width * k + 5] = 220, 0, 0
            sheet[top:top + height * k, left:left + width * k] = x[i, j]
    longest = max((len(line) for name in row_names for line in name.split("\n")), default=0)
    margin = 0.3 + 0.1 * longest
    figure, (axes,) = new_figure(sheet.shape[1] / 160 + margin, sheet.shape[0] / 160 + 0.3)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_anchor("E")                                    # what room there is goes to the names
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks([])
    axes.set_yticks([top + height * k / 2 for top in tops][:len(row_names)], row_names)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def swap_grid(decode, s_images, s, z_images, z):
    """Every z with every s, as decode(z, s) draws them: the first row shows where s is from, the
    first column where z is. s_images (C, ch, H, W), s (C, S); z_images (R, ch, H, W), z (R, Z)."""
    swapped = decode(z.repeat_interleave(len(s), 0), s.repeat(len(z), 1))
    body = torch.cat([z_images[:, None], swapped.unflatten(0, (len(z), len(s)))], 1)
    top = torch.cat([torch.ones_like(z_images[:1]), s_images])[None]
    return grid(torch.cat([top, body]), header=True, xlabel="s from the first row",
                ylabel="z from the first column")


def interpolation_grid(decode, images, z, s, steps=8):
    """Between two images (2, ch, H, W), linearly: z (2, Z) moves down the rows, s (2, S) along the
    columns. The images themselves stand in the corners top left and bottom right."""
    t = torch.linspace(0, 1, steps, device=z.device)[:, None]
    z, s = ((1 - t) * code[0] + t * code[1] for code in (z, s))
    out = decode(z.repeat_interleave(steps, 0), s.repeat(steps, 1)).unflatten(0, (steps, steps))
    out[0, 0], out[-1, -1] = images
    return grid(out, ylabel="z from one image to the other", xlabel="s from one to the other")


def curves(history, panels, chance={}):
    """The log over epochs: one panel for each of {title: [columns]}, with a grey line at
    chance[title] where there is one. Columns that the log has not, and panels of none, are left
    out."""
    panels = {title: [name for name in names if name in history[0]]
              for title, names in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure, axes = new_figure(3.4, 2.8, len(panels))
    for axis, (title, names) in zip(axes, panels.items()):
        for name, colour, style in zip(names, COLOURS, ("-", "--", ":", "-.")):
            axis.plot([row["epoch"] for row in history], [row[name] for row in history], style,
                      color=colour, label=name.replace("_", " "), marker="o", markersize=3)
        if title in chance:
            axis.axhline(chance[title], color="gray", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def scatter(panels, seed=0, ticks=False):
    """2-D points coloured by class, a panel for each {title: (points (N, 2), y (N,), names)}.

    With more than 12 classes 12 seeded ones have a colour and the rest are grey."""
    figure, axes = new_figure(4.6, 4.0, len(panels))
    for axis, (title, (points, y, names)) in zip(axes, panels.items()):
        y, present = y.cpu(), y.cpu().unique()
        many = len(present) > 12
        if many:
            order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
            present = present[order[:12]].sort().values
            axis.scatter(*points.T, s=4, color="#cccccc", linewidths=0)
        for c, colour, marker in zip(present.tolist(), COLOURS, "os^D" * 3):
            axis.scatter(*points[y == c].T, s=22 if many else 8, color=colour, marker=marker,
                         linewidths=0, label=f" {names[c]}")  # a leading _ would hide it
        axis.set_title(title, fontsize=10)
        if not ticks:
            axis.set_xticks([])
            axis.set_yticks([])
        legend = axis.legend(fontsize=7, frameon=False, loc="center left",
                             bbox_to_anchor=(1, 0.5), markerscale=1.5)
        for text in legend.get_texts():
            text.set_parse_math(False)                      # a class may be called $x_1
    return figure


def confusion(matrix, names):
    """Counts and shares of the row: matrix (K, K) of counts, rows the true class; K names.

    With more than 20 classes the 20 with the most mistakes, made or drawn to them, are shown."""
    counts = np.asarray(matrix)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    drawn = np.sort((-wrong).argsort(kind="stable")[:20])
    figure, (axes,) = new_figure(0.42 * len(drawn) + 2, 0.42 * len(drawn) + 1.4)
    axes.imshow(shares[np.ix_(drawn, drawn)], cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(drawn):
        for j, column in enumerate(drawn):
            if counts[row, column]:
                share = shares[row, column]
                axes.text(j, i, f"{counts[row, column]:,}\n{100 * share:.0f} %", ha="center",
                          va="center", fontsize=6, color="white" if share > 0.5 else "black")
    words = [str(names[k])[:24] for k in drawn]
    axes.set_xticks(range(len(drawn)), words, rotation=90, fontsize=7)
    axes.set_yticks(range(len(drawn)), words, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)                          # a class may be called $x_1
    return figure


def draw_domains(run, codes, points, seed):
    """The figure tsne_domains: {title: (codes (N, d) of one domain, (N', d) of the other)}, a panel
    each, both domains embedded together, `points` of either."""
    panels = {}
    for title, (source, target) in codes.items():
        xy, index = tsne(torch.cat([source[:points], target[:points]]), seed)
        domain = (index >= len(source[:points])).long()
        panels[title] = xy, domain, ["source", "target"]
    run.figure("tsne_domains", scatter(panels), "Features of test images of both domains, embedded "
               "together: adaptation should bring them to the same places.")


def draw_moons(run, nets, source, target):
    """The figures moons, the points by domain and class, and panels, Fig. 2 of Ganin et al. 2016: a
    row of four panels for each of {name: net}, + and - the source's classes, dots the target, the
    letters at the points nearest to the paper's.

    net(x (N, 2)) -> class probabilities (2, N), the probability of the source (1, N), hidden
    neurons (D, N); source, target: Splits."""
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    points, kinds = torch.cat([source.x, target.x]), torch.cat([source.y, target.y + 2])
    words = [f"{domain}, {moon}" for domain in ("source", "target") for moon in ("upper", "lower")]
    run.figure("moons", scatter({"twin moons": (points.numpy(), kinds, words)}, ticks=True),
               "The target is a draw of its own, turned by 35 degrees.")
    near = torch.tensor([(-2.4, -1.6), (-1.2, 0.4), (0.8, -0.5), (2.5, 1.5)], dtype=points.dtype)
    letters = dict(zip("ABCD", torch.cdist(near, points).argmin(1).tolist()))
    low, high = source.x.min(0).values.tolist(), source.x.max(0).values.tolist()
    across, up = (np.arange(k * a, k * b, 0.02) for k, a, b in zip((1.1, 1.5), low, high))
    mesh = np.meshgrid(across, up)
    mesh_points = torch.from_numpy(np.stack(mesh, -1).reshape(-1, 2))
    titles = ("Label classification", "Representation PCA", "Domain classification",
              "Hidden neurons")
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    for (name, net), row in zip(nets.items(), figure.subplots(len(nets), 4, squeeze=False)):
        o, g, hidden = (part.reshape(-1, len(up), len(across)) for part in net(mesh_points))
        pca = PCA(2).fit_transform(net(points)[2].T)        # its signs are arbitrary:
        pca *= np.sign(pca[letters["B"]] - pca[letters["C"]]) * [-1, 1]       # B above left of C
        for axis, title, xy in zip(row, titles, (points.numpy(), pca, points.numpy(), points)):
            axis.set_title(title)
            axis.tick_params(labelsize=8)
            for k, marker, colour in (0, "+", "#dd0000"), (1, "_", "#007700"):
                axis.scatter(*xy[:len(source)][source.y == k].T, 40, colour, marker=marker)
            axis.scatter(*xy[len(source):].T, 9, "black")
            if axis in row[:2]:
                axis.margins(0.15)
                for letter, i in letters.items():
                    axis.annotate(letter, xy[i], (-20 if letter in "AC" else 20, 22),
                                  textcoords="offset points", color="blue", fontsize=15,
                                  ha="center", va="center",
                                  arrowprops=dict(arrowstyle="fancy", color="blue", shrinkA=6))
        for axis, share, colours in ((row[0], o[0], ("#66bb66", "#ff8888")),
                                     (row[2], g[0], ("#999999", "#8888ff"))):
            axis.contourf(*mesh, share, [0, 0.5, 1], colors=colours, alpha=0.6, zorder=0)
            axis.contour(*mesh, share, [0.5], colors="black", linewidths=3)
        for k, neuron in enumerate(hidden):
            row[3].contour(*mesh, neuron, [0.5], colors=f"C{k % 10}")
        row[0].set_ylabel(name.upper(), fontsize=15)
    run.figure("panels", figure, "Fig. 2. The NN should cut A and D wrongly, put A beside B and C "
               "beside D, and find the turn with its domain regressor (blue: the source, black: "
               "the target) and its hidden neurons; the DANN should do none of this.")


def draw_plane(run, name, decode, train, test, data):
    """The figures of 2-D codes, train and test (N, 2): the plane, and decode(z) all over it."""
    run.figure(f"plane_{name}", scatter({f"{name}, test codes": (
        test.cpu().numpy(), data.test.y, data.classes)}, run.args.seed, ticks=True),
        "Where the test images lie. N(0, I), from which samples are drawn, fills a disc of radius "
        "2 to 3 around the origin.")
    across, up = train.quantile(torch.linspace(0.02, 0.98, 20, device=train.device), 0).T
    images = decode(torch.cartesian_prod(up.flip(0), across).flip(1)).unflatten(0, (20, 20))
    run.figure(f"decoded_{name}", grid(images, xlabel="first neuron", ylabel="second neuron"),
               "The same plane decoded, at 20 x 20 percentiles of the train codes, from 2 to 98.")


def draw_swaps(run, data, codes, dec):
    """The figures swap_grid, of test images and of unseen people, and interpolation_1 to 3.

    codes: {"test", "unseen": (mu (N, Z), logvar (N, Z), s (N, S))}; the rows differ in the factors
    that z should hold, where the set has any, else in class."""
    seed = run.args.seed
    inner = [name for name in data.factors if not data.train.of_class(name)]
    for name, split, who in (("swap_grid", "test", "test images of the training classes"),
                             ("swap_grid_unseen", "unseen", "people never trained on")):
        if split in codes:
            (mu, _, s), split = codes[split], data.splits()[split]
            pose = torch.stack([split.factors[f] for f in inner] or [split.y])
            pose = pose.cpu().unique(dim=1, return_inverse=True)[1].to(split.y.device)
            columns, rows = pick(split.y, 8, seed), pick(pose, 8, seed + 1)
            run.figure(name, swap_grid(dec, split.images(columns), s[columns], split.images(rows),
                                       mu[rows]),
                       f"From {who}. Each column should keep the class of the image above it, each "
                       "row all else of the image at its left: pose, light or slant.")
    (mu, _, s), test = codes["test"], data.test
    six = pick(test.y, 6, seed + 2).repeat(6)[:6]
    for k, pair in enumerate(six.split(2), 1):
        run.figure(f"interpolation_{k}", interpolation_grid(
            dec, test.images(pair), mu[pair], s[pair]),
            "Between the two test images in the corners. Along a row only s moves, down a column "
            "only z, on the diagonal both; every step should look likely.")


def draw_tsne(run, data, codes, points):
    """The figures of t-SNE of the test images' codes (mu, logvar, s), by class and by factor."""
    mu, logvar, s = codes
    test, seed = data.test, run.args.seed
    z = sample((mu, logvar), torch.Generator(mu.device).manual_seed(seed))
    placed = {name: tsne(code, seed, points) for name, code in
              (("s", s), ("z, sampled", z), ("z, mean", mu))}
    run.figure("tsne_class", scatter({f"{name}, by class": (xy, test.y[i], data.classes)
                                      for name, (xy, i) in placed.items()}, seed),
               "s should show a cluster a class, sampled z (the papers') none; the mean of z shows "
               "what the noise of q(z|x) hides.")
    xy, i = placed["z, mean"]
    panels = {f"z, mean, by {name}": (xy, test.factors[name][i], names) for name, names in
              data.factors.items() if len(names) <= 12 and not data.train.of_class(name)}
    if panels:
        run.figure("tsne_factors", scatter(panels, seed),
                   "The points of the panel 'z, mean' above, coloured by what z should hold.")


# The words of the reports: tables and sentences on r, the numbers that results.json holds


def settled(history, series):
    """Whether an adversary came to rest: ({series and "settled": value}, a sentence that says why).

    series: the log's columns generator's loss, discriminator's loss a term, its accuracies on real
    and made images. The values are means over the last fifth of the log, n epochs. "settled" is
    True where none drifts (slope of its line times n) by more than it scatters (deviation from that
    line, n - 2 degrees of freedom), both accuracies lie between 0.5 and 0.95 and the
    discriminator's loss is above 0.3; ln 2 is the equilibrium. None: n < 3, or no adversary."""
    if series[0] not in history[-1]:
        return dict.fromkeys((*series, "settled")), "No adversary played."
    n = len(history) // 5
    rows = torch.tensor([[row[key] for key in series] for row in history[-max(n, 1):]]).double()
    found = dict(zip(series, mean := rows.mean(0).tolist()))
    if n < 3:
        return {**found, "settled": None}, "Fewer than 15 epochs do not show whether it settled."
    t = torch.arange(n).double()[:, None] - (n - 1) / 2
    slope = (t * rows).sum(0) / t.square().sum()
    width = ((rows - rows.mean(0) - t * slope).square().sum(0) / (n - 2)).sqrt()
    flaws = [f"{key} drifts by {drift:+.2g} and scatters by {scatter:.2g}" for key, drift, scatter
             in zip(series, (n * slope).tolist(), width.tolist()) if abs(drift) > scatter + 1e-9]
    flaws += [f"{key} is not between 50 % and 95 %" for key, share in zip(series[2:], mean[2:])
              if not 0.5 <= share <= 0.95]
    flaws += [f"{series[1]} is not above 0.3"] * (mean[1] <= 0.3)
    return {**found, "settled": not flaws}, (
        f"Over the last {n} epochs the discriminator knew {percent(mean[2])} of the real and "
        f"{percent(mean[3])} of the made images at a loss of {mean[1]:.2f} a term, the generator's "
        f"was {mean[0]:.2f}; equilibrium is 50 % and ln 2 = 0.69. The adversary "
        + (f"has not settled: {', '.join(flaws)}." if flaws else "has settled."))


def tell_codes(run, data, r):
    """On what probe_codes found, for mathieu.py and cyclevae.py; r has its keys and test_recon."""
    run.table("Objective on test images", ("", "value"), [
        ("squared error an image (swapped s, sampled z)", r["test_recon"]),
        ("KL, nats an image", r["test_kl"]), ("live dimensions (0.01 nats)", r["live_dims"])])
    kinds = (("s", "s"), ("z, sampled", "z"), ("z, mean", "z_mean"))
    run.table("Class, as an MLP reads it", ("code", "train", "test", "chance", "majority"), [
        (name, *(percent(r[key]) for key in (f"{k}_train_acc", f"{k}_test_acc", "chance",
                                             "majority"))) for name, k in kinds],
        "The papers' tables are of sampled z.")
    run.say("s gives away the class of {s_test_acc:%} of the test images, sampled z of "
            f"{{z_test_acc:%}} ({r['z_test_acc'] / r['chance']:.1f} times chance), the mean of z "
            "of {z_mean_test_acc:%}.", r)
    if r["live_dims"] == 0 or r["test_kl"] < 0.5:
        run.say("z is dead (KL {test_kl:.2g} nats, {live_dims} live dimensions), so that its low "
                "accuracy shows nothing: lower --kl-weight or train for longer.", r)
    if not r["factors"]:
        return
    within = {name: data.train.of_class(name) for name in r["factors"]}
    run.table("Factors, on " + ("people never trained on" if data.unseen else "test images"),
              ("factor", "should be in", *(name for name, _ in kinds), "majority"), [
        (name, "s" if within[name] else "z", *(percent(f[k]) for _, k in kinds),
         percent(f["majority"])) for name, f in r["factors"].items()])
    for home, away, inside in (("s", "z", True), ("z_mean", "s", False)):
        mine = {name: f for name, f in r["factors"].items() if within[name] == inside}
        if mine:
            weak = min(mine, key=lambda name: mine[name][home])
            leak = max(mine, key=lambda name: mine[name][away] - mine[name]["majority"])
            names = {"s": "s", "z": "sampled z", "z_mean": "the mean of z"}
            run.say(f"Of what should be in {home[0]}, {names[home]} knows {weak} worst, at "
                    f"{percent(mine[weak][home])}, and {names[away]} still knows {leak} best, "
                    f"{100 * (mine[leak][away] - mine[leak]['majority']):.1f} points above the "
                    "majority.")


def tell_vae(run, classes, r):
    """On the likelihood, the samples and the codes of vae.py; classes: the set's names."""
    args, vae = run.args, run.args.model == "vae"
    if vae:
        density = (f"a Gaussian density, sigma {args.sigma:g}" if args.likelihood == "gaussian" else
                   "Bernoulli, with pixels binarised at random" if args.binarize else
                   "Bernoulli on grey pixels: bounds on the likelihood of images binarised at "
                   "random, not of the grey ones")
        header = "", "nats an image", "standard error", "bits/dim"
        run.table("Likelihood of test images", header, [
            ("negative bound", r["test_elbo"], "", ""), ("-log p(x|z)", r["test_recon"], "", ""),
            ("KL", r["test_kl"], "", ""),
            *((f"NLL, {q['k']:,} samples of z, {q['n']:,} images", q["nats"], q["stderr"],
               q["bits_per_dim"]) for q in (r["nll"], r["nll_all"]))],
            f"The likelihood is {density}.")
        run.say(f"The likelihood is {density}. The bound is {{test_elbo:.2f}} nats an image, of "
                "which {test_kl:.2f} are the KL; {nll.k} samples give an NLL of {nll:nats}. "
                f"{{active_units}} of {args.z_dim:,} latents are active (variance of the mean "
                "above 0.01).", r)
    sides = {args.model: r} | ({"ae": r["beside"]} if r["beside"] else {})
    run.side_by_side("Samples and reconstructions of test images", sides, {
        "squared error a pixel": "test_mse", "Frechet distance of samples": "fid.value",
        "Frechet distance of reconstructions": "fid_recon.value",
        "of as many train images": "fid.floor"},
        "".join(filled(r, "Features: {fid.features}; {fid.n} samples.")))
    for name, side in sides.items():
        means, deviations = (f"{min(side[key]):.2f} to {max(side[key]):.2f}"
                             for key in ("code_mean", "code_std"))
        run.say(f"{name}: the codes have means of {means} and deviations of {deviations}; of the "
                "draws from N(0, I) {off_support:%} fall where no code lies (1 % of test codes "
                "do).", side)
    if r["beside"] and r["fid"]:
        nearer = r["fid"]["value"] < r["beside"]["fid"]["value"]
        run.say(f"The samples of nae are {'nearer to' if nearer else 'farther from'} real images "
                "than those of ae (Frechet distance {fid.value:.0f} and {beside.fid.value:.0f}). "
                "Both are drawn from N(0, I), and only a code held to mean 0 and variance 1 lies "
                "there; two moments do not make it a Gaussian.", r)
    if r["fid"]:
        ratio = r["fid"]["value"] / r["fid_recon"]["value"]
        run.say(f"Samples are {ratio:.1f} times as far from real images as reconstructions, whose "
                "squared error is {test_mse:.4f} a pixel: "
                + ("the same quality." if ratio < 1.25 else "another quality. The decoder draws "
                   "what the encoder gives it better than what N(0, I) does."), r)
    for kernel in ("linear", "rbf")[1 - vae:]:
        s = r[f"svm_{kernel}"]
        run.table(f"SVM on the codes, {kernel} kernel", ("class", "precision", "recall", "F1"), [
            (name, *map(percent, scores)) for name, *scores in
            zip(classes, s["precision"], s["recall"], s["f1"])],
            f"Accuracy on test images: {percent(s['accuracy'])}."
            + " The codes are the means of q(z|x) of grey pixels." * vae)


# Accuracies on the target: of NN and DANN on so many moons of each domain, the authors' script,
# mean of five seeds; of source only, DANN and train on target, Ganin et al. 2016, Table 2.
SCRIPT = {150: (0.823, 0.945), 300: (0.779, 0.882)}
TABLE_2 = {("mnist", "mnistm"): (0.5225, 0.7666, 0.9596),
           ("svhn", "mnist"): (0.5490, 0.7385, 0.9942)}


def tell_moons(run, r):
    """On the twin moons of dann.py."""
    script = dict(zip(("nn", "dann"), SCRIPT.get(r["points"], ())))
    run.table("Accuracies", ("", "source", "target", "target, mean of the last 100 epochs",
                             "domain", "target, worst seed", "target, authors' script"), [
        (name.upper(), *(spread(r[name], key) for key in
                         ("source", "target", "target_last100", "domain")),
         percent(r[name]["target_min"]), percent(script.get(name))) for name in ("nn", "dann")],
              f"After the last epoch, {r['seeds']} seed"
              + "s, ± their deviation" * (r["seeds"] > 1)
              + ". Of the authors' script five seeds, run by us.")
    run.say("On the turned moons the DANN is right at {dann.target:±}, the NN at {nn.target:±}; "
            "their domain regressors at {dann.domain:%} and {nn.domain:%} (chance 50 %).", r)


def tell_dann(run, names, found, r):
    """On the images of dann.py. names: {network: words}; found: {network: {"source", "target": a
    list of one accuracy a seed}}."""
    args, chance = run.args, math.log(2)
    paper = TABLE_2.get((args.source, args.target), ()) if args.arch != "bn" else ()
    theirs = dict(zip(names, paper))
    gap = (paper[1] - paper[0]) / (paper[2] - paper[0]) if paper else None
    run.table("Table 2, accuracies", ("", "target, paper", "target", "worst seed", "source"), [
        *((names[name], percent(theirs.get(name)), spread(r[name], "target"),
           percent(r[name]["target_min"]), spread(r[name], "source")) for name in found),
        ("gap covered", percent(gap), percent(r["gap_covered"]), "", "")],
        f"Last epoch, {args.seeds} seed{'s, ± their deviation' * (args.seeds > 1)}. The gap "
        "covered is (DANN - source only) / (train on target - source only), from these accuracies"
        + ("; the paper prints 52.9 %, which does not follow from its own."
           if paper and args.target == "mnistm" else "."))
    run.say("Rightly named of the target's test images: " + "; ".join(
        f"{names[name]} {spread(r[name], 'target')}" for name in found) + "."
        + "".join(filled(r, " Adaptation covers {gap_covered:%} of the gap.")))
    if not r["dann"]:
        return
    loss = run.history[-1]["domain"]
    run.say("The domain heads are right at {domain_acc:%} of test images (chance 50 %), their loss "
            f"in the last epoch of training is {loss:.3f} (chance {chance:.3f}). The proxy "
            "A-distance (2: domains always told apart) of the first seed's features is "
            "{pad_dann:.2f}"
            + (", without adaptation {pad_source_only:.2f}." if r["source_only"] else "."), r)
    dead = r["dead_features"]["dann"]
    if max(dead) > 0.1:
        run.say(f"Of its features {percent(dead[0])} are 0 for every image of the source, "
                f"{percent(dead[1])} for every one of the target: ReLUs that are switched off, and "
                "learn no more.")
    if loss > 2 * chance:
        run.say("That loss is far above chance: the features run away from the domain head instead "
                "of mixing the domains. Lower --lr or --domain-weight.")
    if r["domain_acc"] > 0.9:
        run.say("The domains are still told apart: adaptation needs more --epochs, or more "
                "--domain-weight.")
    for k, dann in enumerate(found["dann"]["source"]):
        plain = r["source_only"] and found["source_only"]["source"][k]
        if dann < (0.9 * plain if plain else 0.5):
            beside = f", {percent(plain)} without adaptation" if plain else ""
            run.say(f"Seed {args.seed + k} collapsed, or stopped early: its DANN names only "
                    f"{percent(dann)} of the source{beside}. Lower --lr or --domain-weight, or "
                    "raise --epochs.")


def tell_vaegan(run, r):
    """On reconstructions and samples of vaegan.py, and on what Dis sees."""
    g, v = r["vaegan"], r["vae"]
    run.side_by_side("On test images", {"VAE": v, "VAE-GAN": g}, {
        "class recognised in reconstructions": "recon_class_acc:%",
        "squared error a pixel of reconstructions": "recon_mse", "KL, nats an image": "test_kl",
        "variance of samples, of test images: 1": "spread",
        "rarest class among samples": "class_shares:min%",
        "Frechet distance of samples": "fid.value", "of as many train images": "fid.floor",
        "Frechet distance of reconstructions": "fid_recon.value",
        "of train images for test": "fid_recon.floor"},
        " ".join(filled(r, "Features: {vaegan.fid.features}; {vaegan.fid.n} samples.",
                        "The mean train image has a squared error of {mean_image_mse}; of the test "
                        "images themselves {real_class_acc:%} are recognised.")))
    if v and g["fid"]:
        nearer = g["fid"]["value"] < v["fid"]["value"]
        run.say(f"The VAE-GAN's samples are {'nearer to' if nearer else 'farther from'} real "
                "images than those of the VAE of the same Enc and Dec: Frechet distance "
                "{vaegan.fid.value:.1f} and {vae.fid.value:.1f}, as many train images "
                "{vaegan.fid.floor:.1f}.", r)
    if v:
        run.say(f"In pixels the {'VAE' if v['recon_mse'] < g['recon_mse'] else 'VAE-GAN'} "
                "reconstructs better (squared error {vae.recon_mse:.4f} and, VAE-GAN, "
                "{vaegan.recon_mse:.4f}); the class is recognised in {vae.recon_class_acc:%} and "
                "{vaegan.recon_class_acc:%}.", r)
    if run.args.loss == "gan" and not run.args.pixel_weight:
        run.say("L_prior + L_GAN ask that a reconstruction look real, not that it look like its "
                "image: the squared error is {vaegan.recon_mse:.4f}, that of the mean image "
                "{mean_image_mse:.4f}, the class right in {vaegan.recon_class_acc:%}, and z holds "
                "{vaegan.test_kl:.2g} nats. Such a model cannot reconstruct; it draws.", r)
    elif g["test_kl"] < 0.5:
        run.say("z is dead (KL {test_kl:.2g} nats): raise --gamma or --pixel-weight.", g)
    won = r["d_real"] > 0.9 > 0.1 > r["d_sample"]
    run.say("Dis gives test images {d_real:%}, reconstructions {d_recon:%}, samples {d_sample:%}: "
            + ("it has won and teaches Dec little (try --gate, a lower --lr)." if won else
               "it has lost." if r["d_sample"] > r["d_real"] else "neither side has won."), r)
    if collapsed(g):
        run.say("Samples have collapsed: they vary {spread:%} as much as real images, and a LeNet "
                "sees the rarest class in {class_shares:min%} of them.", g)


def tell_flowvae_gan(run, names, r):
    """On the models of flowvae_gan.py beside each other; names: {model: words}."""
    args, there = run.args, {name: r[name] for name in names if r[name]}
    first = next(iter(there.values()))
    judge = first["fid"]                                    # None with --fid none
    pixels = ("logistics in 256 bins" if args.likelihood == "logistic" else
              f"Bernoullis on {'binarised' if args.binarize else 'grey'} pixels")
    run.side_by_side("Compared", {names[name]: m for name, m in there.items()}, {
        "weights of Enc and Dec, or Gen and Dis": "params", "of the flow": "flow_params",
        "Frechet distance of samples": "fid.value", "of as many train images": "fid.floor",
        "NLL, nats": "nll.nats", "standard error": "nll.stderr", "bits/dim": "nll.bits_per_dim",
        "bound, nats": "test_bound", "variance of samples, of test images: 1": "spread",
        "longest step between two codes, mean: 1": "jump",
        "certainty between two codes": "sure:%", "seconds": "seconds:,.0f"},
        " ".join([*filled(first, f"Likelihood: {pixels}; NLL: {{nll.k}} z an image, {{nll.n}} test "
                          "images; bound: one z, all of them."),
                  "Between two codes: the nine steps of up to 100 pairs; certainty: a LeNet's "
                  "largest probability, mean over the eight images between. It names "
                  f"{percent(r['real_class_acc'])} of real test images.",
                  *filled(first, "Features: {fid.features}; {fid.n} samples.")]))
    for name in ("vae", "flow_joint"):
        if r[name]:
            row = min(run.history, key=lambda row: row[f"{name}_val"])
            run.say(f"{names[name]}: in epoch {{epoch:d}}, its best, {{{name}_train:.1f}} nats on "
                    f"train and {{{name}_val:.1f}} on validation images, the KL "
                    f"{{{name}_kl:.1f}}" + (": z is dead." if row[f"{name}_kl"] < 0.5 else "."),
                    row)
    for name in ("flow_joint", "flow_after"):
        if r["vae"] and r[name]:
            bound = r["vae"]["test_bound"] - r[name]["test_bound"]
            run.say(f"{names[name]}: NLL {{nll.nats:.2f}} nats, {{gain.nats:+.2f}}"
                    + "".join(filled(r[name], " ± {gain.stderr:.2f}"))
                    + " nats of log p(x) against N(0, I) on the same images; in the bound "
                    f"{bound:+.2f}"
                    + (", which KL(q(z) || N(0, I)) is at least." if name == "flow_after" else
                       "; here q(z|x) could adapt to the flow."), r[name])
    if judge:
        order = sorted(there, key=lambda name: there[name]["fid"]["value"])
        run.say("Samples, the nearest to real images first (Frechet distance): " + ", ".join(
            f"{names[name]} {there[name]['fid']['value']:.1f}" for name in order)
            + f"; as many train images {judge['floor']:.1f}.")
    sure = max(there, key=lambda name: there[name]["sure"])
    even = min(there, key=lambda name: there[name]["jump"])
    run.say(f"Between two codes {names[sure]} shows the clearest classes (certainty "
            f"{{{sure}.sure:%}}), {names[even]} moves most evenly (longest step "
            f"{{{even}.jump:.2f}} times the mean).", r)
    if r["gan"]:
        last = run.history[-1]
        won = last["gan_d_real"] > 0.95 * args.real_target and last["gan_d_fake"] < 0.05
        run.say("GAN: in training Dis gave real images {gan_d_real:%} and samples {gan_d_fake:%}: "
                f"it has {'won, and teaches Gen little' if won else 'not won'}. Afterwards it "
                "gives train images {gan_train:%}, new ones {gan_val:%}. Samples vary {spread:%} "
                "as much as real images, and a LeNet sees the rarest class in "
                "{class_shares:min%} of them"
                + (": they have collapsed." if collapsed(r["gan"]) else "."), last | r["gan"])


def collapsed(r):
    """Whether samples show few of the images there are: r has `spread`, their variance over that of
    real images, and `class_shares`."""
    return r["spread"] < 0.3 or min(r["class_shares"]) < 0.1 / len(r["class_shares"])


# python eval.py fid A B


def images_of(name, sets, shape):
    """A side of the comparison as uint8 (N, C, size, size); shape: (C, size), or None for its own.

    sets: {name: Dataset}, of which the test images count; name may also be an .npz file or a folder
    of images of any depth. Raises DataError where it is none of them."""
    from PIL import Image
    path, suffixes = Path(name), Image.registered_extensions()
    if name in sets:
        x = sets[name].test.x
    elif path.suffix == ".npz" and path.is_file():
        with reading(path, "write it with numpy.savez(file, images=uint8 array N x H x W x C)"):
            with np.load(path, allow_pickle=False) as file:
                x = file["images"]
            if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or x.size == 0:
                raise ValueError(f"images is {x.dtype} of shape {x.shape}")
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
    else:
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
        if not files:
            raise DataError(f"{name} is no set of data.py, .npz file or folder of images.")
        if shape is None:
            with reading(files[0], "replace or remove it"), Image.open(files[0]) as image:
                shape = 3, min(*image.size, 256)
        x = read_images(files, shape[1], "L" if shape[0] == 1 else "RGB")
    channels, size = shape or (x.shape[1], min(x.shape[2:]))
    if x.shape[1] > channels:                               # to grey with Pillow's weights
        x = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, True).round().byte()
    return fit_images(x, size).expand(-1, channels, -1, -1)


def compare(a, b, features="lenet", data=None, data_dir="data", device="auto"):
    """Prints the Frechet distance between two sides; `main` says what they may be."""
    device = find_device(device)
    sets = {name: load_data(name, data_dir) for name in (a, b) if name.partition(":")[0] in SETS}
    judge = load_data(data, data_dir) if data else sets.get(b, sets.get(a))
    if judge is None and features == "lenet":
        raise DataError(f"Neither {a} nor {b} is a set whose LeNet could give the features: name "
                        "one with --data, or take --features inception.")
    judge = judge and judge.to(device)
    second = images_of(b, sets, judge and judge.train.x.shape[1:3])
    first = images_of(a, sets, second.shape[1:3])
    need_images(features, {f"images of {a}": len(first), f"images of {b}": len(second)})
    print(f"images    {len(first):,} of {a}, {len(second):,} of {b}", flush=True)
    if data or not sets:
        measure, name = extractor(features, judge, data_dir, device)
        result = {"value": frechet(*measure(first), *measure(second)), "features": name}
        floor = "none: it takes the train images of a set"
    else:                                                   # against the test images of a set
        result = fid(features, judge, data_dir, first if b in sets else second)
        floor = f"{result['floor']:.4g} (as many train images of {judge.name})"
    print(f"features  {result['features']}\nfloor     {floor}\ndistance  {result['value']:.4g}")


# python eval.py table DIR

# What a run's row says, `filled` with its numbers.
CODES = ("s {s_test_acc:%}", "z {z_test_acc:%}", "mean of z {z_mean_test_acc:%}",
         "chance {chance:%}", "KL {test_kl:.2f} nats in {live_dims} dimensions",
         "squared error {test_recon:.1f}")
OURS = {
    "cyclevae": CODES,
    "mathieu": (*CODES, "class of s in {swap_class_acc:%} of swaps"),
    "vae": ("NLL {nll:nats}", "bound {test_elbo:.2f} nats", "SVM linear {svm_linear.accuracy:%}",
            "RBF {svm_rbf.accuracy:%}", "squared error a pixel {test_mse:.4f}",
            "distance of samples {fid.value:.1f}",
            "draws where no code lies {off_support:%}",
            "beside it the ae: {beside.test_mse:.4f}, {beside.fid.value:.1f}, "
            "{beside.off_support:%}"),
    "dann": ("NN {nn.target:±}", "DANN {dann.target:±}", "worst seed {dann.target_min:%}",
             "last 100 epochs NN {nn.target_last100:±}, DANN {dann.target_last100:±}",
             "weights averaged {average.target:±}", "worst {average.target_min:%}",
             "source only {source_only.target:±}", "train on target {target_only.target:±}",
             "gap covered {gap_covered:%}"),
    "vaegan": ("distance of samples {vaegan.fid.value:.1f}, the VAE's {vae.fid.value:.1f}",
               "of reconstructions {vaegan.fid_recon.value:.1f}, {vae.fid_recon.value:.1f}",
               "squared error a pixel {vaegan.recon_mse:.4f}, {vae.recon_mse:.4f}",
               "class seen {vaegan.recon_class_acc:%}, {vae.recon_class_acc:%}",
               "KL {vaegan.test_kl:.1f}, {vae.test_kl:.1f} nats"),
    "flowvae_gan": ("NLL {vae.nll:nats}", "joint flow {flow_joint.nll:nats}",
                    "flow after {flow_after.nll:nats}", "gains {flow_joint.gain:nats}, "
                    "{flow_after.gain:nats}", "bits/dim {vae.nll.bits_per_dim:.3f}, "
                    "{flow_joint.nll.bits_per_dim:.3f}, {flow_after.nll.bits_per_dim:.3f}",
                    "distances {vae.fid.value:.1f}, "
                    "{flow_joint.fid.value:.1f}, {flow_after.fid.value:.1f}",
                    "GAN {gan.fid.value:.1f}, floor {gan.fid.floor:.1f}")}
PAPERS = (                                                  # script, the run's numbers, the paper's
    ("cyclevae", {"data": "mnist", "args.s_dim": 16}, "s 98.35 %, z 17.56 % (Table 1)"),
    ("mathieu", {"data": "mnist", "args.s_dim": 16, "args.adv_weight": 1.0}, "s 98.52 %, z 66.83 % "
     "(a port of it, Jha et al., Table 1)"),
    ("vae", {"args.hidden": [200, 200], "args.z_dim": 50}, "NLL 86.76, 3,280 epochs (Burda et al., "
     "Table 1)"),
    ("dann", {"points": 150, "args.decay": "none"}, "NN 82.3 %, DANN 94.5 % (the authors' script, "
     "mean of five seeds, run by us)"),
    ("dann", {"points": 300, "args.decay": "none"}, "NN 77.9 %, DANN 88.2 % (the same)"),
    ("dann", {"data": "mnist-mnistm", "args.arch": "mnist"}, "source only 52.25 %, DANN 76.66 %, "
     "train on target 95.96 % (Table 2)"),
    ("dann", {"data": "mnist-mnistm", "args.arch": "bn"}, "DANN 84 to 91 % (what others' programs "
     "with batch norm report)"),
    ("dann", {"data": "svhn-mnist"}, "source only 54.90 %, DANN 73.85 %, train on target 99.42 % "
     "(Table 2)"))


def table(folder):
    """Markdown of all files *results.json below `folder`: a table with a row a run, then one of the
    factors for each command whose run has any (of several runs the last by name)."""
    header = [["command", "paper", "ours", "epochs, time, hardware, seeds"], ["---"] * 4]
    runs, factors = [], {}
    for path in sorted(Path(folder).rglob("*results.json")):
        try:
            run = json.loads(path.read_text())
            runs.append((list(OURS).index(run["script"]), len(run["command"]), [
                f"`{run['command']}`",
                next((text for script, is_, text in PAPERS if script == run["script"]
                      and all(value(run, k) == v for k, v in is_.items())), "–"),
                ", ".join(filled(run, *OURS[run["script"]])),
                f"{run['epochs']} epochs, "
                + (f"{run['seconds'] / 60:.0f} min" if run["seconds"] >= 90
                   else f"{run['seconds']:.0f} s") + f", {run['device']}, "
                f"{run['threads']} thread{'s' * (run['threads'] > 1)}, "
                + (f"{run['seeds']} seeds" if run.get("seeds", 1) > 1 else f"seed {run['seed']}")]))
            if run.get("factors"):
                factors[run["command"]] = [
                    [f"`{run['command']}`", "s", "z, sampled", "z, mean", "majority"], ["---"] * 5,
                    *([name, *(percent(f[key]) for key in ("s", "z", "z_mean", "majority"))]
                      for name, f in run["factors"].items())]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path} is damaged or not a results.json of these scripts.") from None
    if not runs:
        raise DataError(f"{folder} holds no results.json.")
    rows = [*header, *(row for *_, row in sorted(runs))]    # by script, the plainest command first
    return "\n\n".join("\n".join("| " + " | ".join(row) + " |" for row in part)
                       for part in (rows, *factors.values()))


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("command", choices=["table", "fid"])
    parser.add_argument("what", nargs="+", metavar="PATH", help="table: a folder of runs. fid: two "
                        "of folders of images, .npz files (`images` uint8 N x H x W x C) and sets "
                        "of data.py (their test images); the second side, or a set, gives the size")
    add = parser.add_argument_group("fid").add_argument
    add("--features", choices=list(FEATURES), default="lenet", help="the LeNet of the second side, "
        "or of the first, or torchvision's Inception (default: %(default)s)")
    add("--data", metavar="NAME", help="the set whose LeNet it is, where neither side is a set")
    add("--data-dir", default="data", metavar="DIR", help="where data sets and networks lie")
    add("--device", **DEVICE)
    args = vars(parser.parse_intermixed_args(argv))
    what, command = args.pop("what"), args.pop("command")
    if len(what) != (1 if command == "table" else 2):
        parser.error("table takes one folder, fid two sides")
    if command == "table":
        print(table(*what))
    else:
        compare(*what, **args)


if __name__ == "__main__":
    command_line(main)
