"""Trains a small language model with Erlangen's Equivariant, and with AdamW to compare.

    pip install '.[examples]'
    python examples/train_lm.py

Without options: a Qwen3-shaped model on the Python standard library's own sources, first with
Equivariant, then with AdamW: the same initial weights, batches, learning rate and schedule. It
takes less than ten minutes on two CPU cores, and ends with a table and a picture of the losses.

    python examples/train_lm.py --arch olmoe --optimizer equivariant muon adamw --steps 1000
    python examples/train_lm.py --data my_text/*.txt --out runs/mine
    python examples/train_lm.py --data my_text/*.txt --out runs/mine --resume   # goes on

--out holds loss.png, summary.json, and for each run metrics.jsonl and checkpoint.pt.
"""

import json
import math
import time
from pathlib import Path

import options
import report
import text_data
import torch
from models import build_model, hidden_matrices
from torch.nn.functional import cross_entropy
from tqdm import tqdm

# What a run's trajectory does not depend on: these may differ when it is resumed.
FREE_SETTINGS = {"arch", "optimizer", "data", "dataset", "dataset_config", "text_column",
                 "documents", "out", "resume", "checkpoint_every", "eval_every", "device",
                 "threads"}  # fmt: skip


def build_optimizers(name: str, model, args) -> list[torch.optim.Optimizer]:
    """The optimizers whose steps together update every parameter once.

    All of them decay hidden matrices and nothing else, as Equivariant does by default.
    """
    hidden = hidden_matrices(model)
    rest = [p for n, p in model.named_parameters() if n not in hidden]
    if name == "equivariant":
        import erlangen

        optimizer = erlangen.Equivariant(model, lr=args.lr, weight_decay=args.weight_decay)
        print(optimizer.explain())
        return [optimizer]
    if name == "adamw":
        groups = [{"params": list(hidden.values())}, {"params": rest, "weight_decay": 0.0}]
        return [adamw(groups, args)]
    # torch.optim.Muon takes two-dimensional parameters only: stacks of experts go to AdamW.
    matrices = [p for p in hidden.values() if p.ndim == 2]
    stacks = [p for p in hidden.values() if p.ndim > 2]
    groups = [{"params": stacks}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(
            matrices,
            lr=args.lr,
            weight_decay=args.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # so that AdamW's learning rate serves
        ),
        adamw([group for group in groups if group["params"]], args),
    ]


def adamw(groups: list[dict], args) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)


def lr_factor(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay_fraction` of the steps.

    Steps count from 0; the first and the last update are small, not zero.
    """
    decay_steps = decay_fraction * steps
    warmup = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    decay = (steps - step) / (decay_steps + 1) if decay_steps > 0 else 1.0
    return min(warmup, decay, 1.0)


def loss_of(model, windows: torch.Tensor, router_aux_loss_coef: float = 0.0) -> torch.Tensor:
    """Mean next-token cross-entropy in fp32, and the routers' load-balancing loss if wanted.

    The auxiliary loss is off by default, as in transformers: what the optimizer alone does for the
    routers stays visible. It keeps their shift symmetry; a z-loss, which pins the size of the
    logits, would break it.
    """
    input_ids, labels = text_data.next_token(windows)
    if router_aux_loss_coef:
        output = model(input_ids=input_ids, output_router_logits=True)
    else:
        output = model(input_ids=input_ids)
    loss = cross_entropy(output.logits.float().flatten(0, 1), labels.flatten())
    return loss + router_aux_loss_coef * output.aux_loss if router_aux_loss_coef else loss


@torch.no_grad()
def evaluate(model, batches: list[torch.Tensor], device) -> float:
    model.eval()
    total = sum(loss_of(model, windows.to(device)).item() * len(windows) for windows in batches)
    model.train()
    return total / sum(map(len, batches))


class Run:
    """One training run: what it consists of, and how it goes to a checkpoint and back."""

    def __init__(self, arch: str, optimizer: str, text: text_data.Text, args, directory: Path):
        self.args, self.directory, self.text = args, directory, text
        self.label = f"{arch} {optimizer}"
        self.settings = {k: v for k, v in vars(args).items() if k not in FREE_SETTINGS}
        self.settings.update(arch=arch, optimizer=optimizer, text=text.fingerprint)
        self.model = build_model(
            arch, text.vocab_size, args.hidden_size, args.num_hidden_layers, args.seq_len,
            args.tied, args.seed,
        ).to(args.device)  # fmt: skip
        self.optimizers = build_optimizers(optimizer, self.model, args)
        self.schedulers = [
            torch.optim.lr_scheduler.LambdaLR(
                o, lambda s: lr_factor(s, args.steps, args.warmup_steps, args.decay_fraction)
            )
            for o in self.optimizers
        ]
        self.batches = text_data.Batches(text.train, args.batch_size, args.seq_len, args.seed)
        self.validation = text_data.validation_batches(
            text.validation, args.batch_size, args.seq_len, args.eval_batches
        )
        self.step = 0  # updates made; also the position in the data
        self.seconds = 0.0  # spent on them; evaluation and checkpoints do not count
        self.metrics: list[dict] = []

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    def save(self) -> None:
        content = {
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        text_data.save(content, self.checkpoint)

    def load(self) -> None:
        # to the CPU first: load_state_dict moves the rest, and random states belong there
        content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        different = [
            f"{key} was {content['settings'].get(key)!r} and is now {value!r}"
            for key, value in self.settings.items()
            if content["settings"].get(key) != value
        ]
        if different:
            raise SystemExit(
                f"{self.checkpoint} was made with other settings: {'; '.join(different)}"
            )
        self.model.load_state_dict(content["model"])
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(self.schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        torch.set_rng_state(content["rng"])
        if torch.cuda.is_available() and content["cuda_rng"]:
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.metrics = content["metrics"]

    def update(self) -> dict:
        """One optimizer step."""
        start = time.perf_counter()
        args = self.args
        windows = self.batches[self.step].to(args.device)
        loss = loss_of(self.model, windows, args.router_aux_loss_coef)
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"{self.label}: the loss is {value} at step {self.step}: lower --lr")
        loss.backward()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        lr = self.schedulers[0].get_last_lr()[0]
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize(args.device)  # the clock is to count finished work
        self.step += 1
        self.seconds += time.perf_counter() - start
        return {
            "step": self.step,
            "loss": value,  # of this step's batch, before the update
            "lr": lr,
            "tokens": self.step * args.batch_size * args.seq_len,
            "seconds": round(self.seconds, 3),
        }

    def train(self) -> list[dict]:
        """Trains to the last step; returns the metrics, which are also in metrics.jsonl."""
        args = self.args
        self.model.train()
        if not self.metrics:
            start = evaluate(self.model, self.validation, args.device)
            self.metrics.append({"step": 0, "val_loss": start, "tokens": 0, "seconds": 0.0})
        bar = tqdm(total=args.steps, initial=self.step, desc=self.label, unit="step", disable=None)
        with open(self.directory / "metrics.jsonl", "w", buffering=1) as file, bar:
            # A resumed run writes anew what the checkpoint knows: lines after it are made again.
            file.writelines(json.dumps(line) + "\n" for line in self.metrics)
            while self.step < args.steps:
                line = self.update()
                last = self.step == args.steps
                if last or self.step % args.eval_every == 0:
                    line["val_loss"] = evaluate(self.model, self.validation, args.device)
                    tqdm.write(
                        f"{self.label}  step {self.step:5d}  loss {line['loss']:.3f}  "
                        f"val_loss {line['val_loss']:.3f}  {self.seconds:.0f} s"
                    )
                bar.update()
                bar.set_postfix(loss=f"{line['loss']:.3f}")
                self.metrics.append(line)
                file.write(json.dumps(line) + "\n")
                if last or (args.checkpoint_every and self.step % args.checkpoint_every == 0):
                    self.save()
        return self.metrics


def train(arch: str, text: text_data.Text, args) -> dict[str, list[dict]]:
    """Trains one architecture with each optimizer from the same start; metrics by optimizer."""
    results = {}
    for optimizer in args.optimizer:
        directory = args.out / f"{arch}-{optimizer}"
        directory.mkdir(parents=True, exist_ok=True)
        run = Run(arch, optimizer, text, args, directory)
        if args.resume and run.checkpoint.exists():
            run.load()
            print(f"{run.label}: resuming after step {run.step}")
        results[optimizer] = run.train()
    return results


def load_text(args) -> text_data.Text:
    start = time.perf_counter()
    if args.data:
        documents = text_data.read_files(args.data)
    elif args.dataset:
        documents = text_data.hugging_face(
            args.dataset, args.dataset_config, args.text_column, args.documents
        )
    else:
        documents = text_data.standard_library()
    text = text_data.prepare(documents, args.vocab_size)
    print(
        f"{len(text.train):,} training and {len(text.validation):,} validation tokens, vocabulary "
        f"{text.vocab_size} ({time.perf_counter() - start:.0f} s)"
    )
    return text


def main(argv=None, archs=("qwen3",)) -> dict[str, dict[str, list[dict]]]:
    """The whole program; returns the metrics by architecture and optimizer."""
    args = options.parse_args(__doc__, argv, archs)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"results in {args.out}")
    text = load_text(args)
    results = {arch: train(arch, text, args) for arch in args.arch}
    print(report.table(results))
    report.save_summary(results, args, args.out / "summary.json")
    report.save_picture(results, args.out / "loss.png")
    print(f"loss curves: {args.out / 'loss.png'}")
    return results


if __name__ == "__main__":
    main()
