"""The moving average of the weights, as timm's ModelEma kept it for DeiT (paper, Table 8: +0.1)."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deit_zoo.models.layers import ZooModel


class Ema:
    """average = decay x average + (1 - decay) x weights, after each step of the optimizer.

    Running statistics of a network are averaged as its weights are. Make it of a model that is
    where it trains, before the first step.
    """

    def __init__(self, model: ZooModel, decay: float) -> None:
        self._model = model
        averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        # At 0 the first update would copy the weights; the average starts from the initial ones.
        self._average.n_averaged.fill_(1)
        self.module.requires_grad_(False).eval()

    @property
    def module(self) -> ZooModel:
        """The averaged model, in eval mode."""
        return cast(ZooModel, self._average.module)

    def update(self) -> None:
        """Take in the weights as they are now."""
        self._average.update_parameters(self._model)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors under the model's keys."""
        return dict(self.module.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put averaged tensors back, to the last key."""
        self.module.load_state_dict(state, strict=True)
