"""What the scripts share beside the data: flags, the run's folder, measurements on codes, figures.

    python eval.py table runs          # a Markdown table of every results.json below a folder

In the order of use: flags and errors; Run, the folder of one run (log line, checkpoints, resume,
results.json, report.html); probe, predictor, classifier and tsne, which measure what a code holds;
the figures. Images are (N, C, H, W) in [0, 1], accuracies shares in [0, 1], and whatever is random
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
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from data import DataError, batches, by_class

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


def flags(doc, data, epochs, batch_size, lr):
    """The flags that mean the same in every script; the arguments after the docstring are defaults.

    Returns (parser, groups): a script adds its own flags to groups["model"] and the like."""
    parser, default = Parser(doc), "(default: %(default)s)"
    groups = {name: parser.add_argument_group(name)
              for name in ("data", "model", "objective", "optimisation", "run")}
    add = groups["data"].add_argument
    add("--data", default=data, metavar="NAME", help=f"a set of data.py, or folder:PATH {default}")
    add("--data-dir", default="data", metavar="DIR", help=f"where data sets lie {default}")
    add("--image-size", type=number(int, low=8, high=256), metavar="N", help="pixels a side")
    add("--limit", type=number(int, low=1), metavar="N", help="use about N images of the set")
    add = groups["optimisation"].add_argument
    add("--epochs", type=number(int, low=1), default=epochs, help=f"passes over train {default}")
    add("--batch-size", type=number(int, low=2), default=batch_size, help=default)
    add("--lr", type=number(float, above=0), default=lr, help=f"Adam's step size {default}")
    add = groups["run"].add_argument
    add("--out", metavar="DIR", help="the run's folder (default: a fresh runs/<script>-<data>)")
    add("--seed", type=number(int, low=0, high=2**31 - 1), default=0, help=default)
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto takes cuda, then mps, then cpu")
    for name, text in (("smoke", "the whole path on a few hundred offline images, in seconds"),
                       ("resume", "go on with the run in --out (--epochs may go up)"),
                       ("eval-only", "train nothing, evaluate best.pt of the run in --out"),
                       ("overwrite", "replace the run that --out holds"),
                       ("compile", "torch.compile the losses"),
                       ("amp", "bfloat16 autocast; losses stay float32")):
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=text)
    return parser, groups


def parse(parser, argv, script, presets, smoke):
    """Flags to a namespace: the typed before those of --smoke, of presets[data], and the defaults.

    With --resume or --eval-only they are the saved run's; only --device, --data-dir and, with
    --resume and upwards, --epochs may differ. `command` keeps the command line for the report."""
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
        args.update(presets.get({**args, **smoke, **typed}["data"], {}))
        args.update(smoke)
    args.update(typed)
    words = sys.argv[1:] if argv is None else argv
    return argparse.Namespace(**args, command=shlex.join(["python", f"{script}.py", *words]))


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
        complete = found != script or {"args", "shape", "n_classes", "nets",
                                                "history"} <= content.keys()
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
        load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        load(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} holds weights of another shape than its arguments.") from None
    return part


class Run:
    """The folder of one run: args.json log.csv last.pt best.pt results.json report.html figures/.

    Nothing is written before `begin`, so that bad input leaves everything as it was."""

    go_on = None                                            # flags for Ctrl-C's last words

    def __init__(self, script, args):
        self.script, self.args, self.started = script, args, time.perf_counter()
        self.history, self.best, self.best_epoch, self.earlier = [], math.inf, None, 0.0
        self.tables, self.figures, self.sentences = [], [], []
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
        name = next(d for d in there if there[d]) if args.device == "auto" else args.device
        if not there[name]:
            raise DataError(f"--device {name} is not there; --device auto takes what is.")
        self.device = torch.device(name)
        if args.out is None:
            kind, _, path = args.data.partition(":")
            name = "-".join([script, kind, Path(path).name] if path else [script, kind])
            name = re.sub(r"[^\w.]+", "-", name)
            names = (Path("runs") / (name + f"-{n}" * (n > 1)) for n in range(1, 10**6))
            self.folder = next(folder for folder in names if not folder.exists())
            return
        self.folder = Path(args.out)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--out {self.folder} is a file; give a folder.")
        holds = [name for name in RUN_FILES if (self.folder / name).exists()]
        if holds and not (args.resume or args.eval_only or args.overwrite):
            raise DataError(f"--out {self.folder} holds a run ({holds[0]}); choose another folder, "
                            "or add --resume, --eval-only or --overwrite.")

    def begin(self, data):
        """Creates the folder, once the data set is there and fits."""
        self.shape, self.n_classes = list(data.train.x.shape[1:]), len(data.classes)
        again = "--resume" if self.args.resume else "--eval-only" if self.args.eval_only else None
        path = self.folder / ("last.pt" if again == "--resume" else "best.pt")
        if again and path.exists():
            content = checkpoint(path, self.script)
            if (content["shape"], content["n_classes"]) != (self.shape, self.n_classes):
                raise DataError(f"{path} was trained on images of {content['shape']} in "
                                f"{content['n_classes']} classes, and {self.args.data} holds "
                                f"{self.shape} in {self.n_classes}.")
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
        print(f"{self.folder}: {self.args.data}, {len(data.train):,} training images of "
              f"{'x'.join(map(str, self.shape))}, {self.device}, {torch.get_num_threads()} threads",
              flush=True)

    def saved_args(self):
        leave = ("resume", "eval_only", "overwrite", "out", "command")
        return {k: v for k, v in vars(self.args).items() if k not in leave}

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
                if isinstance(part, torch.optim.Optimizer):
                    for group in part.param_groups:         # this device's choice
                        group["fused"] = part.defaults["fused"]
            self.history, self.best = content["history"], content.get("best", math.inf)
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
                   "nets": {name: net.state_dict() for name, net in nets.items()}}
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
            self.history = (checkpoint(last, self.script) if last.exists() else content)["history"]
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
        self.tables.append((title, header, [[c if isinstance(c, str) else shown(c) for c in row]
                                            for row in rows], note))

    def say(self, sentence):
        """An observation of the report, a sentence computed from the numbers."""
        self.sentences.append(sentence)

    def finish(self, title, results):
        """Writes results.json (plain numbers, unrounded) and report.html, self-contained."""
        args = self.saved_args()
        results = {"script": self.script, "data": args["data"], "args": args,
                   "versions": {"python": platform.python_version(), "torch": torch.__version__},
                   "device": str(self.device), "threads": torch.get_num_threads(),
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
                 f"{e(results['device'])} with {results['threads']} threads, torch "
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
    """A number as the report prints it: None as a dash, floats with four significant digits."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share):
    """A share in [0, 1] as the report prints it; two decimals below one per cent."""
    return "–" if share is None else f"{100 * share:.{1 if abs(share) >= 0.01 else 2}f} %"


def accelerate(args, device, *functions):
    """--compile and --amp, only here: returns the autocast context of a step, then `functions`.

    Without autocast's cache of weights: one filled under no_grad would cut gradients off."""
    def cast():
        return (torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if args.amp
                else contextlib.nullcontext())
    return (cast, *(torch.compile(f) if args.compile else f for f in functions))


def cosine(optimisers, lr, done):
    """Sets the step size lr * (1 + cos(pi * done)) / 2; `done` in [0, 1]: the share of training."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))


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
    opt = torch.optim.Adam(net.parameters(), lr=1e-3, fused=device.type != "mps")
    at = n
    for step in range(steps):
        cosine([opt], 1e-3, 0.8 * step / steps)             # to 1e-4
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
    """What s, sampled z and the mean of z give away, as the keys that results.json has for it.

    codes: {"train", "test", "unseen": (mu (N, Z), logvar (N, Z), s (N, S))}. Probes are fitted on
    train and scored on test, those of factors on `unseen` where the set has it."""
    last, new = ("unseen", data.unseen) if data.unseen else ("test", data.test)
    train, test, fresh = ({"s": s, "z": (mu, logvar), "z_mean": mu}
                          for mu, logvar, s in (codes["train"], codes["test"], codes[last]))
    label = {"class": (data.train.y, data.test.y)}
    labels = {name: (f, new.factors[name]) for name, f in data.train.factors.items()}
    results, found = {}, {}
    for code in train:
        read = probe(train[code], test[code], label, seed, steps)["class"]
        results |= {f"{code}_train_acc": read["train"], f"{code}_test_acc": read["test"],
                    "chance": read["chance"], "majority": read["majority"]}
        found[code] = probe(train[code], fresh[code], labels, seed, steps) if labels else {}
    results["factors"] = {name: {**{code: found[code][name]["test"] for code in found},
                                 "majority": found["s"][name]["majority"]} for name in labels}
    return results


def tell_codes(run, data, r):
    """The report's tables and sentences on what probe_codes found; `r` holds its keys and test_kl,
    live_dims."""
    kinds = (("s", "s"), ("z, sampled", "z"), ("z, mean", "z_mean"))
    run.table("Class, as an MLP reads it", ("code", "train", "test", "chance", "majority"), [
        (name, *(percent(r[key]) for key in (f"{k}_train_acc", f"{k}_test_acc", "chance",
                                             "majority"))) for name, k in kinds],
        "The papers' tables are of sampled z.")
    run.say(f"s gives away the class of {percent(r['s_test_acc'])} of the test images, sampled z "
            f"of {percent(r['z_test_acc'])} ({r['z_test_acc'] / r['chance']:.1f} times chance), "
            f"the mean of z of {percent(r['z_mean_test_acc'])}.")
    if r["live_dims"] == 0 or r["test_kl"] < 0.5:
        run.say(f"z is dead (KL {r['test_kl']:.2g} nats, {r['live_dims']} live dimensions), so "
                "that its low accuracy shows nothing: lower --kl-weight or train for longer.")
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
    opt = torch.optim.Adam(net.parameters(), lr=2e-3, fused=device.type != "mps")
    epochs = math.ceil(shows / len(train))
    for epoch in range(epochs):
        cosine([opt], 2e-3, epoch / epochs)
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
def classes_of(net, images):
    """The classifier's classes (N,) of images (N, C, H, W), uint8 or float in [0, 1]."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([net(part.float() / scale).argmax(1) for part in images.split(500)])


def tsne(code, seed=0, points=2000):
    """scikit-learn's t-SNE of a seeded choice of a code's rows: ((n, 2) array, their indices)."""
    from sklearn.manifold import TSNE
    index = torch.randperm(len(code), generator=torch.Generator().manual_seed(seed))[:points]
    rows = code[index.to(code.device)].cpu().numpy()
    if not rows.std(0).any():                               # all in one place: scikit-learn crashes
        return rows[:, [0, 0]], index.to(code.device)
    placed = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), random_state=seed).fit_transform(rows)
    return placed, index.to(code.device)


# Figures: each returns a matplotlib Figure, for Run.figure

# Twelve colours that differ in lightness as well as in hue, and four markers to tell them apart.
COLOURS = ("#332288", "#ee7733", "#117733", "#88ccee", "#cc3311", "#ddcc77", "#aa4499", "#44aa99",
           "#000000", "#ee99aa", "#999933", "#0077bb")


def new_figure(width, height, columns=1):
    """A Figure of width x height inches and its axes side by side; no global state, no window."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


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
    import numpy as np
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
    margin = max([0.08 * len(line) for name in row_names for line in name.split("\n")] + [0.3])
    figure, (axes,) = new_figure(sheet.shape[1] / 160 + margin, sheet.shape[0] / 160 + 0.3)
    axes.imshow(sheet, interpolation="nearest")
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


def curves(history, panels):
    """The log over epochs: one panel for each of {title: [columns of the log]}."""
    figure, axes = new_figure(3.4 * len(panels), 2.8, len(panels))
    for axis, (title, names) in zip(axes, panels.items()):
        for name, colour, style in zip(names, COLOURS, ("-", "--", ":", "-.")):
            axis.plot([row["epoch"] for row in history], [row[name] for row in history], style,
                      color=colour, label=name.replace("_", " "), marker="o", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def scatter(panels, seed=0):
    """2-D points coloured by class, a panel for each {title: (points (N, 2), y (N,), names)}.

    With more than 12 classes 12 seeded ones have a colour and the rest are grey."""
    figure, axes = new_figure(4.6 * len(panels), 4.0, len(panels))
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
        axis.set_xticks([])
        axis.set_yticks([])
        legend = axis.legend(fontsize=7, frameon=False, loc="center left",
                             bbox_to_anchor=(1, 0.5), markerscale=1.5)
        for text in legend.get_texts():
            text.set_parse_math(False)                      # a class may be called $x_1
    return figure


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


# python eval.py table DIR

TABLES = {"cyclevae": ("epochs", "seconds", "test_recon", "test_kl", "live_dims", "s_test_acc",
                       "z_test_acc", "z_mean_test_acc", "chance")}


def table(folder):
    """Markdown tables, one a script, of all files *results.json below `folder`."""
    found = {}
    for path in sorted(Path(folder).rglob("*results.json")):
        try:
            run = json.loads(path.read_text())
            cells = [percent(run[key]) if key.endswith("acc") or key == "chance"
                     else shown(run[key]) for key in TABLES[run["script"]]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is damaged or not a results.json of these scripts.") from None
        found.setdefault(run["script"], []).append([run["data"], *cells])
    if not found:
        raise DataError(f"{folder} holds no results.json.")
    lines = []
    for script, rows in found.items():
        header = [f"{script}.py", *(key.replace("_", " ") for key in TABLES[script])]
        lines += ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("command", choices=["table"])
    parser.add_argument("folder")
    print(table(parser.parse_args(argv).folder))


if __name__ == "__main__":
    command_line(main)
