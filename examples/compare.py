"""Trains all four architectures with Equivariant and with AdamW; one table, one picture.

    python examples/compare.py

Takes train_lm.py's options (`--steps`, `--lr`, `--optimizer equivariant muon adamw`, ...). With the
defaults it makes eight runs, about half an hour on two CPU cores.
"""

import models
import train_lm

if __name__ == "__main__":
    train_lm.main(archs=models.ARCHITECTURES)
