"""``python -m medsaga.networks.merge TRAINED MERGED``: weights for serving without LoRA from a checkpoint with LoRA.

TRAINED is a bundle's ``models/model.pt`` trained with LoRA (complete, or with the trained tensors only), or a
checkpoint of SAMed. MERGED loads in the bundle without the overlay used in training, and answers as fast as weights
trained in full.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medsaga.files import replacing
from medsaga.records import read_record, with_record

from .lora import lora_options, merge_lora
from .saved_state import read_state

__all__ = ["merge_file"]


def merge_file(trained: Path, merged: Path) -> None:
    """Write the merged weights of a checkpoint with LoRA, whole or not at all, with the record of its training.

    Args:
        trained: the checkpoint.
        merged: file to write; it may be the same.

    Raises:
        FileNotFoundError: when the checkpoint does not exist.
        ValueError: when it is damaged or holds no LoRA.
    """
    state, _ = read_state(trained)
    if not lora_options(state):
        raise ValueError(f"{trained} holds no LoRA: there is nothing to merge, use it as it is")
    with replacing(merged) as temporary:
        torch.save(with_record(merge_lora(state), read_record(trained)), temporary)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Merge LoRA into the weights it adapts, for serving without it.")
    parser.add_argument("trained", type=Path, help="checkpoint with LoRA")
    parser.add_argument("merged", type=Path, help="file to write")
    parsed = parser.parse_args()
    try:
        merge_file(parsed.trained, parsed.merged)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"{parsed.merged} is written: use it in the bundle without LoRA's overlay.")


if __name__ == "__main__":
    main()
