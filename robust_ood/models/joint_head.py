"""Published heads of K + 1 outputs, cut into the head of the classes and that of the outliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from robust_ood.models.outlier_class import OutlierClass


class JointHead(NamedTuple):
    """A file's tensors with the K classes' rows alone, and the layer of the outliers beside them.

    classes: all tensors by name, the head `(K, D)` and `(K,)`. outliers: `weight` `(1, D)` and
    `bias` `(1,)`.
    """

    classes: dict[str, Tensor]
    outliers: dict[str, Tensor]


def cut_joint_head(net: OutlierClass, tensors: Mapping[str, Tensor]) -> JointHead | None:
    """Return a file's tensors cut before the last row of their head, the outliers'.

    Source: the code of Chen et al. 2021 (ATOM, NTOM, ROWL), whose last class is the outliers'.

    Args:
        net: the network of K classes and outliers.
        tensors: by the file's names.

    Returns:
        None where no layer gives K + 1 outputs from features of the network's width, as in files of
        this project, which hold both layers apart.
    """
    classes, width = net.head.weight.shape
    for name, weight in tensors.items():
        if not name.endswith("weight") or weight.shape != (classes + 1, width):
            continue
        bias_name = name[: -len("weight")] + "bias"
        bias = tensors.get(bias_name)
        if bias is None or bias.shape != (classes + 1,):
            continue
        cut = {**tensors, name: weight[:classes], bias_name: bias[:classes]}
        return JointHead(cut, {"weight": weight[classes:], "bias": bias[classes:]})
    return None
