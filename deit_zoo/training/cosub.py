"""Co-training of submodels: one network, twice on each image, is its own teacher.

  Cosub  https://arxiv.org/abs/2212.04884

Stochastic depth makes two networks of it. Each learns from the labels, and as much from what the
other says. Both stand side by side in a batch: image 1, image 1, image 2, image 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as _binary

from deit_zoo.training.losses import Outputs, binary_cross_entropy
from deit_zoo.training.micro_batches import Mix


def twice(mix: Mix) -> Mix:
    """The same mixing, and then each image and its target two times."""

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = mix(images, labels)
        return images.repeat_interleave(2, dim=0), targets.repeat_interleave(2, dim=0)

    return mixed


@dataclass(frozen=True, kw_only=True)
class Cosub:
    """Binary cross-entropy against the labels and against the other's probabilities, in equal
    parts; where `binary`, every class above 0 is right in full."""

    binary: bool

    def __call__(self, outputs: Outputs, _taught: Tensor | None, targets: Tensor) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        labels, one, two = targets[::2], logits[::2], logits[1::2]
        base = binary_cross_entropy if self.binary else _binary
        of_labels = base(one, labels) + base(two, labels)
        of_each_other = _binary(one, two.detach().sigmoid()) + _binary(two, one.detach().sigmoid())
        return (of_labels + of_each_other) / 4
