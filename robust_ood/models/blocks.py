"""The repeated blocks of deep networks, and computing them twice to spend less memory."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_ood.errors import UserError
from robust_ood.models.probing import class_name


def checkpoint_blocks(net: nn.Module) -> None:
    """Have a network's repeated blocks computed again in the backward pass, in place.

    Only what enters a block is kept then. The libraries' own switches differ: transformers' acts in
    train mode alone, where no attack is. Names in state dicts stay as they are.

    Args:
        net: any network of `(N, C, H, W)`.

    Raises:
        UserError: no repeated blocks, or only such with batch normalisation, whose running
            statistics would see each batch twice.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = repeated_blocks(net)
    fit = [block for block in blocks if not _has_batch_statistics(block)]
    if not fit:
        reason = "its blocks have batch normalisation" if blocks else "it has no repeated blocks"
        raise UserError(
            f"checkpointed: {class_name(net)} cannot compute blocks twice: {reason}; leave it out"
        )
    chosen = set(map(id, fit))
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in chosen:
                parent.add_module(name, checkpoint_wrapper(child))


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that stand beside others of their class in a list."""
    blocks: list[nn.Module] = []
    for child in net.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            alike = _alike(child)
            if alike:
                blocks += alike
                continue
        blocks += repeated_blocks(child)
    return blocks


def _alike(members: nn.ModuleList | nn.Sequential) -> list[nn.Module]:
    """Return the members of a list if all are composite modules of one class; else none."""
    kinds = {type(member) for member in members}
    if len(members) < 2 or len(kinds) > 1:
        return []
    first = next(iter(members))
    is_composite = next(first.children(), None) is not None
    is_list = isinstance(first, (nn.ModuleList, nn.Sequential))
    return list(members) if is_composite and not is_list else []


def _has_batch_statistics(block: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in block.modules())
