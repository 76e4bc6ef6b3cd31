"""Text for train_lm.py: documents, a byte-level BPE tokenizer, batches with next-token labels.

Documents come from the Python standard library's own sources (always there, nothing to download),
from files of one's own, or from a Hugging Face data set. One document in twenty is held out for
validation before the tokenizer sees anything, so that neither it nor the model learns from them.
"""

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch

END_OF_TEXT = "<|endoftext|>"  # ends every document; its token id is 0
VALIDATION_FRACTION = 0.05
FORMAT = 1  # part of the cache key: raise it when the split or the tokenizer changes

# Not ordinary source: tests (which some distributions leave out), tables of character codes, and
# packages that are not part of the standard library.
SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "__pycache__", "test", "tests",
                       "idle_test", "encodings", "pydoc_data"}  # fmt: skip


@dataclass
class Text:
    """A tokenized corpus."""

    train: torch.Tensor  # token ids of all training documents, one after another
    validation: torch.Tensor  # the same of the held-out documents
    vocab_size: int
    fingerprint: str  # of the documents and of the tokenizer's settings


def standard_library() -> list[str]:
    """The Python sources of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in root.rglob("*.py")
        if not SKIPPED_DIRECTORIES & set(path.relative_to(root).parts[:-1])
    ]
    if not files:
        raise SystemExit(f"no Python sources in {root}: name a text with --data FILE or --dataset")
    return read_files(sorted(files, key=lambda path: path.relative_to(root).as_posix()))


def read_files(paths) -> list[str]:
    documents = []
    for path in map(Path, paths):
        if not path.is_file():
            raise SystemExit(f"--data {path}: no such file")
        documents.append(path.read_text(encoding="utf-8", errors="replace"))
    return documents


def hugging_face(name: str, config: str | None, column: str, count: int) -> list[str]:
    """The first `count` documents of a Hugging Face data set's train split."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise SystemExit("--dataset needs the `datasets` package: pip install datasets") from error
    stream = datasets.load_dataset(name, config, split="train", streaming=True)
    documents = []
    for row in stream.take(count):
        if not isinstance(row.get(column), str):
            raise SystemExit(
                f"--text-column {column}: not a column of text in {name}, which has {sorted(row)}"
            )
        documents.append(row[column])
    return documents


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents: disjoint, and the same whatever order they come in.

    Equal documents count once (a copy must not stand on both sides). Ordering by a hash of the
    content makes the choice random, yet the same on every machine.
    """
    pieces = round(1 / VALIDATION_FRACTION)
    if len(documents) < pieces:  # a few big files: hold out parts of each instead of whole files
        documents = [piece for document in documents for piece in cut(document, pieces)]
    by_hash = {
        hashlib.sha256(d.encode("utf-8", "replace")).hexdigest(): d for d in documents if d.strip()
    }
    ordered = [by_hash[key] for key in sorted(by_hash)]
    if len(ordered) < 2:
        raise SystemExit("too little text: at least two different documents or lines are needed")
    held_out = max(1, round(VALIDATION_FRACTION * len(ordered)))
    return ordered[held_out:], ordered[:held_out]


def cut(document: str, pieces: int) -> list[str]:
    """The document in at most `pieces` parts of whole lines."""
    lines = document.splitlines(keepends=True)
    size = max(1, -(-len(lines) // pieces))
    return ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]


def train_tokenizer(documents: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a document is plain text
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, documents: list[str]) -> torch.Tensor:
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = []
    for start in range(0, len(documents), 256):  # in parts: encodings are much bigger than ids
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 256]):
            ids.extend(encoding.ids)
            ids.append(end)
    return torch.tensor(ids, dtype=torch.int32)


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erlangen"


def prepare(documents: list[str], vocab_size: int) -> Text:
    """Splits, trains the tokenizer and encodes; cached under a hash of the content."""
    train, validation = split(documents)
    key = hashlib.sha256(f"{FORMAT} {tokenizers.__version__} {vocab_size}".encode())
    for part in (train, validation):
        for document in part:
            key.update(hashlib.sha256(document.encode("utf-8", "replace")).digest())
        key.update(b"end of part")
    fingerprint = key.hexdigest()[:16]
    path = cache_directory() / f"text-{fingerprint}.pt"
    if path.exists():
        cached = torch.load(path, weights_only=True)
        return Text(cached["train"], cached["validation"], cached["vocab_size"], fingerprint)

    tokenizer = train_tokenizer(train, vocab_size)
    text = Text(
        encode(tokenizer, train),
        encode(tokenizer, validation),
        tokenizer.get_vocab_size(),  # less than asked for where the text is small
        fingerprint,
    )
    content = {
        "train": text.train,
        "validation": text.validation,
        "vocab_size": text.vocab_size,
        "tokenizer": tokenizer.to_str(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(content, path)
    except OSError as error:
        print(f"The tokenizer is not cached: {error}")
    return text


def save(content: dict, path: Path) -> None:
    """torch.save in one piece: an interruption leaves the old file or the new one, never half."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def next_token(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of windows of T + 1 tokens: position t reads token t, its label is t + 1.

    This is the only shift. The labels must not go into `model(..., labels=...)`: transformers
    shifts what it gets there once more, and the model would learn to predict token t + 2.
    """
    return windows[:, :-1], windows[:, 1:]


class Batches:
    """Batch number i as a function of (tokens, sizes, seed, i), so that resuming needs only i.

    Each window's last token is the next one's first: every token is a label once in an epoch.
    """

    def __init__(self, tokens: torch.Tensor, batch_size: int, seq_len: int, seed: int):
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.windows = (len(tokens) - 1) // seq_len
        self.per_epoch = self.windows // batch_size
        if self.per_epoch < 1:
            raise SystemExit(
                f"too little text: {len(tokens)} training tokens do not fill one batch of "
                f"{batch_size} x {seq_len} (--batch-size, --seq-len)"
            )
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, i: int) -> torch.Tensor:
        epoch, position = divmod(i, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self.epoch, self.order = epoch, torch.randperm(self.windows, generator=generator)
        chosen = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        return gather_windows(self.tokens, chosen, self.seq_len)


def validation_batches(
    tokens: torch.Tensor, batch_size: int, seq_len: int, count: int
) -> list[torch.Tensor]:
    """At most `count` batches, spread evenly over the held-out text; always the same ones."""
    windows = (len(tokens) - 1) // seq_len
    if windows < 1:
        raise SystemExit(
            f"too little text: {len(tokens)} validation tokens do not fill one window of "
            f"{seq_len} (--seq-len)"
        )
    wanted = min(windows, batch_size * count)
    chosen = torch.arange(wanted) * windows // wanted
    return [gather_windows(tokens, part, seq_len) for part in chosen.split(batch_size)]


def gather_windows(tokens: torch.Tensor, chosen: torch.Tensor, seq_len: int) -> torch.Tensor:
    positions = chosen[:, None] * seq_len + torch.arange(seq_len + 1)
    return tokens[positions].long()
