"""Parameter groups of a Segment Anything network, as MedSAGa trains it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

__all__ = ["sam_param_groups"]

# tables of positions and biases, by the last part of their names: they have two or more dimensions but are not the
# weights of a linear map, and are looked up so sparsely that a projection gains nothing
_TABLES = ("rel_pos", "pos_embed", "attention_bias")
# what DistributedDataParallel and torch.compile put in front of a parameter's name
_WRAPPERS = ("module.", "_orig_mod.")


def sam_param_groups(
    network: nn.Module,
    rank: int | None = 16,
    encoder_lr: float = 1e-3,
    lr: float = 5e-3,
    update_gap: int = 200,
    scale: float = 1.0,
    projection: str = "one-sided",
    weight_decay: float = 0.1,
    encoder_prefix: str = "image_encoder.",
    trained: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a SAM network into the groups of MedSAGa.

    * ``"encoder_galore"``: the image encoder's matrices and convolutions whose AdamW state a projection to ``rank``
      makes smaller.
    * ``"encoder"``: what is left of the encoder (biases, norms, position tables, small matrices), in plain AdamW.
    * ``"decoder"``: everything else (mask decoder, prompt embeddings), in plain AdamW.

    Parameters are told apart by name and shape alone. Frozen ones (``requires_grad=False``) are left out, and so is a
    group that would be empty. As in MedSAGa and SAMed the weight decay applies to every parameter, vectors and tables
    included.

    ``trained`` freezes the rest of the network, as the paper's ablations do. That is done here, because the groups are
    made before everything that depends on it: the optimizer's hooks, ``DistributedDataParallel``, which would wait for
    gradients of parameters that are not used, and the first forward pass, which then keeps nothing for frozen
    parameters. The state dict of the network stays the same, so its weights are loaded and resumed without knowing what
    was trained.

    Args:
        network: the network, also wrapped in ``DistributedDataParallel`` or ``torch.compile``.
        rank: rank of the projection; ``None`` for no projection: the groups are then ``"encoder"`` and ``"decoder"``,
            without GaLore's keys, and suit any torch optimizer.
        encoder_lr: learning rate of the encoder's groups.
        lr: learning rate of the rest.
        update_gap: steps between two refreshes of a basis.
        scale: factor on the projected update. GaLore's recipes have 0.25, MedSAGa's equations none.
        projection: ``"one-sided"`` or ``"two-sided"``, see :class:`~medsaga.optimizers.GaLoreAdamW`.
        weight_decay: decoupled weight decay of all groups.
        encoder_prefix: what the names of the encoder's parameters begin with.
        trained: patterns of names as in :mod:`fnmatch`, such as ``"image_encoder.*.attn.*"``. What matches none of them
            is frozen; what the network has frozen itself stays so. ``None`` freezes nothing.

    Returns:
        Groups for :class:`~medsaga.optimizers.GaLoreAdamW`, each with a ``"name"`` for logs.

    Raises:
        ValueError: when no parameter's name begins with ``encoder_prefix``, a pattern of ``trained`` matches no
            trainable parameter, or no parameter is trainable.

    Source: MedSAGa (arXiv 2407.15042), section on training, and its ablations for ``trained``.
    """
    named = {_unwrapped(name): parameter for name, parameter in network.named_parameters()}
    if not any(name.startswith(encoder_prefix) for name in named):
        raise ValueError(f"no parameter's name begins with encoder_prefix={encoder_prefix!r}. {_roots(named)}")
    if trained is not None:
        _freeze_others(named, trained)
    groups: dict[str, dict[str, Any]] = {
        "encoder_galore": {
            "lr": encoder_lr,
            "rank": rank,
            "update_gap": update_gap,
            "scale": scale,
            "projection": projection,
        },
        "encoder": {"lr": encoder_lr},
        "decoder": {"lr": lr},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        if not name.startswith(encoder_prefix):
            members["decoder"].append(parameter)
        elif rank is not None and _gains(name, parameter, rank, projection):
            members["encoder_galore"].append(parameter)
        else:
            members["encoder"].append(parameter)
    if not any(members.values()):
        raise ValueError(
            "no parameter of the network requires a gradient, so there is nothing to train: call requires_grad_() on "
            "the parts that should be."
        )
    return [
        {"name": name, "params": members[name], "weight_decay": weight_decay, **options}
        for name, options in groups.items()
        if members[name]
    ]


def _roots(named: dict[str, nn.Parameter]) -> str:
    roots = sorted({name.split(".")[0] + "." for name in named})
    return f"The network's parameters begin with: {', '.join(roots) or '(it has none)'}"


def _freeze_others(named: dict[str, nn.Parameter], trained: Sequence[str]) -> None:
    matches = {
        pattern: {name for name, p in named.items() if p.requires_grad and fnmatchcase(name, pattern)}
        for pattern in trained
    }
    for pattern, names in matches.items():
        if not names:
            raise ValueError(f"trained={pattern!r} matches no trainable parameter. {_roots(named)}")
    for name, parameter in named.items():
        if not any(name in names for names in matches.values()):
            parameter.requires_grad_(False)


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _gains(name: str, parameter: nn.Parameter, rank: int, projection: str) -> bool:
    """Whether a projection makes the parameter's optimizer state smaller."""
    if parameter.ndim < 2 or name.rsplit(".", 1)[-1].startswith(_TABLES):
        return False
    short, long = sorted((parameter.shape[0], parameter.numel() // parameter.shape[0]))
    # both moments, and the basis of one side or of both
    two_sided = projection == "two-sided"
    projected = 2 * rank * (rank if two_sided else long) + rank * (short + long if two_sided else short)
    return rank < short and projected < 2 * short * long
