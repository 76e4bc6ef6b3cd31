"""What train_lm.py and compare.py show in the end: a table, a summary file, a picture."""

import importlib.metadata
import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch

# One colour per optimizer, the same in every picture; readable without red-green vision.
COLOURS = {"equivariant": "tab:blue", "adamw": "tab:orange", "muon": "tab:gray"}
SMOOTHING = 0.9

Results = dict[str, dict[str, list[dict]]]  # architecture -> optimizer -> lines of metrics


PACKAGES = ("erlangen", "torch", "transformers", "tokenizers")  # on which a run depends


def summary(metrics: list[dict]) -> dict:
    last = metrics[-1]
    return {
        "val_loss": last["val_loss"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "val_loss_by_step": {m["step"]: m["val_loss"] for m in metrics if "val_loss" in m},
    }


def table(results: Results) -> str:
    columns = ("architecture", "optimizer", "val_loss", "steps", "s/step", "tokens/s", "seconds")
    rows = [columns]
    for arch, runs in results.items():
        for optimizer, metrics in runs.items():
            s, seconds = summary(metrics), metrics[-1]["seconds"]
            rows.append(
                (arch, optimizer, f"{s['val_loss']:.4f}", str(s["steps"]),
                 f"{seconds / s['steps']:.3f}", f"{s['tokens'] / seconds:.0f}", f"{seconds:.0f}")
            )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        words += [word.rjust(width) for word, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(words))
    return "\n" + "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


def save_summary(results: Results, args, path: Path) -> None:
    """What was run, where and with what it ended; times are in metrics.jsonl."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # AdamW alone needs no Erlangen
            versions[package] = None
    content = {
        "command": " ".join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine(args.device),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "settings": vars(args),
        "results": {a: {o: summary(m) for o, m in runs.items()} for a, runs in results.items()},
    }
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"


def smooth(values: list[float]) -> list[float]:
    """Exponential mean without the pull towards its start."""
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(mean / weight)
    return result


def save_picture(results: Results, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no display needed
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (arch, runs) in zip(panels, results.items(), strict=False):
        lowest = []
        for optimizer, metrics in runs.items():
            colour = COLOURS.get(optimizer)
            training = [m for m in metrics if "loss" in m]
            smoothed = smooth([m["loss"] for m in training])
            panel.plot([m["step"] for m in training], smoothed, color=colour, alpha=0.35)
            held_out = [m for m in metrics if "val_loss" in m]
            lowest += [min(smoothed), min(m["val_loss"] for m in held_out)]
            panel.plot(
                [m["step"] for m in held_out],
                [m["val_loss"] for m in held_out],
                color=colour,
                marker="o",
                markersize=3,
                label=f"{optimizer}  {held_out[-1]['val_loss']:.3f}",
            )
        # The fall from ln(vocabulary) would flatten all that follows: show what comes after it.
        later = [m["val_loss"] for run in runs.values() for m in run[1:] if "val_loss" in m]
        panel.set_ylim(min(lowest) - 0.1, max(later) + 0.4)
        panel.set_title(arch)
        panel.set_xlabel("step")
        panel.set_ylabel("cross-entropy (nats per token)")
        panel.grid(alpha=0.3)
        panel.legend(title="validation loss (faint: training)")
    figure.savefig(path, dpi=120)
