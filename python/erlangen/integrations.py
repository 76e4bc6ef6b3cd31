"""What other libraries ask of an optimizer beyond being a torch.optim.Optimizer."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .optimizer import Equivariant

__all__ = ["TrainerFactory"]


class TrainerFactory:
    """For transformers' Trainer, which makes the optimizer itself once the model is in its place.

        Trainer(..., optimizer_cls_and_kwargs=(TrainerFactory, {"lr": 3e-4, "weight_decay": 0.1}))

    Trainer calls ``TrainerFactory()(model, **kwargs)``. It does not pass on ``learning_rate`` and
    ``weight_decay`` of its TrainingArguments, so they stand in the dict.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        overrides: Mapping[str, Mapping] | None = None,
        **options: Any,
    ) -> Equivariant:
        """The optimizer of a model.

        Args:
            model: as for :func:`erlangen.param_groups`.
            overrides: as for :func:`erlangen.param_groups`.
            options: ``lr``, and any other of :class:`erlangen.Equivariant`.

        Raises:
            ValueError, TypeError: ``lr`` is missing, or what the two raise.
        """
        if "lr" not in options:
            raise TypeError(
                "TrainerFactory needs lr: Trainer does not pass on its learning_rate; allowed: "
                'optimizer_cls_and_kwargs=(TrainerFactory, {"lr": args.learning_rate, '
                '"weight_decay": args.weight_decay})'
            )
        return Equivariant(model, overrides=overrides, **options)
