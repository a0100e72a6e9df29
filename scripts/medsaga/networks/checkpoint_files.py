"""State dicts found in checkpoints of other programs: in wrappers and under prefixes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["SAM_PARTS", "find_state"]

logger = logging.getLogger(__name__)

SAM_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")

_DEEPEST = 3  # levels of wrappers: {"ema": {"model": {"state_dict": ...}}}
# if several state dicts fit equally well, trained ones come first, and averages of them last
_USUAL = ("", "state_dict", "model_state_dict", "model", "network", "net", "sam", "module", "_orig_mod")
_AVERAGES = ("ema", "teacher", "average", "swa")
# parts of names that wrapping a module puts between others: (Fully)DataParallel, torch.compile, checkpointing
_WRAPPING = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class _Found(NamedTuple):
    state: dict[str, torch.Tensor]
    where: tuple[str, ...]  # keys of the wrappers, then parts of the prefix
    fitting: frozenset[str]  # those of its keys that belong to the network
    fit: int
    whole: bool  # its names are those in the file, without a prefix removed

    @property
    def order(self) -> tuple[int, bool, int]:
        # the names as they are in the file, unless others fit better
        return self.fit, self.whole, -_rank(self.where)


def find_state(content: Any, names: Sequence[str], path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a network in the content of a checkpoint.

    It may lie in dictionaries (Lightning's ``state_dict``, ``model_state_dict``, ``model``, ``ema`` ...), and its keys
    may have a prefix (``module.`` of DataParallel, ``_orig_mod.`` of torch.compile, ``model.`` of a LightningModule
    ...). There is no list of prefixes: a prefix is removed only if more keys then match the network, so a part of the
    network's own names is never mistaken for a prefix. Anything else in the file (losses, a second network) is left
    out.

    Args:
        content: of the file, tensors and plain values.
        names: keys of the network's state dict. A key that begins with the first part of one of these counts as
            fitting, too: keys that are adapted to the network later (LoRA, LiteMedSAM's names) begin in the same way.
        path: of the file, for errors.

    Returns:
        the tensors, under their names without a prefix; the names of the file if none of them fits.

    Raises:
        ValueError: there is no state dict, or several fit equally well.
    """
    found = [candidate for where, state in _dictionaries(content) for candidate in _candidates(state, where, names)]
    if not found:
        raise ValueError(f'{path} holds no state dict: save network.state_dict(), bare or as {{"model": ...}}')
    best = max(found, key=lambda one: (*one.order, -len(one.state)))
    for other in found:
        if best.fit and other.order == best.order and not _same(other, best):
            places = " and ".join(repr(".".join(one.where)) for one in (best, other))
            raise ValueError(
                f"{path} holds several networks that fit equally well, at {places}: save only the one to use."
            )
    if best.where:
        logger.info("%s: the weights at %s are used", path, ".".join(best.where))
    return best.state


def _dictionaries(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """The dictionaries with tensors in them, and the keys that lead to them."""
    if not isinstance(content, Mapping) or len(where) > _DEEPEST:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors:
        yield where, tensors
    for key, inner in content.items():
        if isinstance(key, str):
            yield from _dictionaries(inner, (*where, key))


def _candidates(state: dict[str, torch.Tensor], where: tuple[str, ...], names: Sequence[str]) -> Iterator[_Found]:
    known = set(names)
    firsts = {name.split(".")[0] for name in names}

    def found(state: dict[str, torch.Tensor], where: tuple[str, ...], whole: bool) -> _Found:
        fitting = frozenset(key for key in state if key in known or key.split(".")[0] in firsts)
        return _Found(state, where, fitting, len(fitting) + len(fitting & known), whole)

    yield found(state, where, whole=True)
    split = [key.split(".") for key in state]
    prefixes = {tuple(parts[:i]) for parts in split for i in range(1, len(parts)) if parts[i] in firsts}
    for prefix in sorted(prefixes):
        start = ".".join(prefix) + "."
        inner = {key[len(start) :]: x for key, x in state.items() if key.startswith(start)}
        yield found(inner, (*where, *prefix), whole=False)
        yield found(_unwrapped(inner), (*where, *prefix), whole=False)
    yield found(_unwrapped(state), where, whole=False)


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {".".join(part for part in key.split(".") if part not in _WRAPPING): x for key, x in state.items()}


def _rank(where: tuple[str, ...]) -> int:
    """0 for what a training saves as its network, 1 for anything else, 2 for averages of networks."""
    if any(word in part.lower() for part in where for word in _AVERAGES):
        return 2
    return 0 if all(part in _USUAL for part in where) else 1


def _same(a: _Found, b: _Found) -> bool:
    """Whether two state dicts hold the same weights of the network."""
    return a.fitting == b.fitting and all(
        a.state[key] is b.state[key] or torch.equal(a.state[key], b.state[key]) for key in a.fitting
    )
