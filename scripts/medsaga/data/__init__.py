from .balanced_sampler import BalancedSampler
from .challenge_npz import (
    LoadChallengeCased,
    challenge_datalist,
    challenge_modality,
    read_challenge_case,
    write_challenge_result,
)
from .datalists import bids_datalist, decathlon_datalist, images_datalist, paired_folders_datalist
from .phantoms import write_decathlon_phantoms
from .sampler import EpochSampler
from .slice_dataset import SliceDataset
from .splits import split_by_patient
from .unlabelled import for_unlabelled, unlabelled_datalist

__all__ = [
    "BalancedSampler",
    "EpochSampler",
    "LoadChallengeCased",
    "SliceDataset",
    "bids_datalist",
    "challenge_datalist",
    "challenge_modality",
    "decathlon_datalist",
    "for_unlabelled",
    "images_datalist",
    "paired_folders_datalist",
    "read_challenge_case",
    "split_by_patient",
    "unlabelled_datalist",
    "write_challenge_result",
    "write_decathlon_phantoms",
]
