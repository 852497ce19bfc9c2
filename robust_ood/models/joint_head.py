"""Published heads of K + M outputs, cut into the head of the classes and that of the outliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from robust_ood.models.outlier_class import OutlierClass


class JointHead(NamedTuple):
    """A file's tensors with the K classes' rows alone, and the layer of the outliers beside them.

    classes: all tensors by name, the head `(K, D)` and `(K,)`. outliers: `weight` `(M, D)` and
    `bias` `(M,)`.
    """

    classes: dict[str, Tensor]
    outliers: dict[str, Tensor]


def cut_joint_head(net: OutlierClass, tensors: Mapping[str, Tensor]) -> JointHead | None:
    """Return a file's tensors cut before the last M rows of their head, the outliers'.

    Source: the code of Chen et al. 2021 (ATOM, NTOM, ROWL, SOFL), whose last classes are the
    outliers'.

    Args:
        net: the network of K classes and outliers.
        tensors: by the file's names.

    Returns:
        None where no layer gives K + M outputs from features of the network's width, as in files of
        this project, which hold both layers apart.
    """
    classes, width = net.head.weight.shape
    rows = classes + net.outlier.out_features
    for name, weight in tensors.items():
        if not name.endswith("weight") or weight.shape != (rows, width):
            continue
        bias_name = name[: -len("weight")] + "bias"
        bias = tensors.get(bias_name)
        if bias is None or bias.shape != (rows,):
            continue
        cut = {**tensors, name: weight[:classes], bias_name: bias[:classes]}
        return JointHead(cut, {"weight": weight[classes:], "bias": bias[classes:]})
    return None
