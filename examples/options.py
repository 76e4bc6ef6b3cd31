"""The command line of train_lm.py and compare.py; names follow torch and transformers."""

import argparse
import math
from datetime import datetime
from pathlib import Path

import torch
from models import ARCHITECTURES

OPTIMIZERS = ("equivariant", "adamw", "muon")


def number(kind, low, high=math.inf):
    """An argparse type: a finite number from low to high."""

    def convert(string):
        value = kind(string)
        if not low <= value <= high or not math.isfinite(value):
            allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{string}: must be {allowed}")
        return value

    convert.__name__ = kind.__name__  # for argparse's own message
    return convert


def parse_args(documentation: str, argv=None, archs=("qwen3",)) -> argparse.Namespace:
    description, _, epilog = documentation.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name, help="", **kwargs):
        default = kwargs.get("default")
        if default is not None:
            shown = " ".join(default) if isinstance(default, list) else default
            help += f" (default: {shown})"
        parser.add_argument(name, help=help.strip(), **kwargs)

    add("--arch", nargs="+", choices=[*ARCHITECTURES, "all"], default=list(archs))
    add("--optimizer", nargs="+", choices=OPTIMIZERS, default=["equivariant", "adamw"])
    add("--tied", action="store_true", help="one matrix for embedding and LM head")
    add("--hidden-size", type=number(int, 1), default=192)
    add("--num-hidden-layers", type=number(int, 1), default=4)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", nargs="+", metavar="FILE", help="train on these text files")
    source.add_argument("--dataset", metavar="NAME", help="train on a Hugging Face data set")
    add("--dataset-config", metavar="NAME")
    add("--text-column", default="text", help="of the data set")
    add("--documents", type=number(int, 1), default=20000, help="of the data set to use")
    add("--vocab-size", type=number(int, 257), default=8192)
    add("--steps", type=number(int, 1), default=300)
    add("--batch-size", type=number(int, 1), default=16)
    add("--seq-len", type=number(int, 1), default=128)
    add("--lr", type=number(float, 0), default=2e-3)
    add("--weight-decay", type=number(float, 0), default=0.1)
    add("--max-grad-norm", type=number(float, 0), default=1.0, help="0: no clipping")
    add("--warmup-steps", type=number(int, 0), default=20)
    add("--decay-fraction", type=number(float, 0, 1), default=0.4)
    add("--router-aux-loss-coef", type=number(float, 0), default=0.0)
    add("--eval-every", type=number(int, 1), default=50)
    add("--eval-batches", type=number(int, 1), default=12)
    add("--checkpoint-every", type=number(int, 0), default=100, help="0: at the end only")
    add("--out", type=Path, help="directory for results (default: runs/<date>-<time>)")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    add("--seed", type=number(int, 0), default=0)
    add("--device", default="auto", help="auto: cuda if there is one; or cpu, cuda, cuda:1, ...")
    add("--threads", type=number(int, 1), help="CPU threads (default: torch's own choice)")
    args = parser.parse_args(argv)

    if "all" in args.arch:
        args.arch = list(ARCHITECTURES)
    args.arch, args.optimizer = list(dict.fromkeys(args.arch)), list(dict.fromkeys(args.optimizer))
    if "equivariant" in args.optimizer:
        try:
            import erlangen  # noqa: F401  (now rather than after the tokenizer is trained)
        except ModuleNotFoundError as error:
            if error.name != "erlangen":
                raise
            parser.error("erlangen is not installed: run `pip install .` in its repository")
    if "muon" in args.optimizer and not hasattr(torch.optim, "Muon"):
        parser.error(f"--optimizer muon: torch {torch.__version__} has no torch.optim.Muon")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device}: {error}")
    if args.resume and not args.out:
        parser.error("--resume: name the directory of the interrupted run with --out")
    args.out = args.out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    checkpoints = list(args.out.glob("*/checkpoint.pt"))
    if args.resume and not checkpoints:
        parser.error(f"--resume: {args.out} holds no checkpoint")
    if checkpoints and not args.resume:
        parser.error(f"{args.out} holds checkpoints: --resume goes on, or name another --out")
    return args
