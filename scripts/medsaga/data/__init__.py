from .balanced_sampler import BalancedSampler
from .cases import Cases
from .challenge_npz import (
    LoadChallengeCased,
    challenge_datalist,
    challenge_modality,
    read_challenge_case,
    write_challenge_result,
)
from .check import check_cases
from .datalists import bids_datalist, decathlon_datalist, images_datalist, paired_folders_datalist
from .phantoms import write_decathlon_phantoms
from .sampler import EpochSampler
from .slice_dataset import SliceDataset
from .splits import evaluation_parts, split_by_patient, training_parts
from .training_record import add_test_patients, record_notes, training_record
from .unlabelled import for_unlabelled, unlabelled_datalist

__all__ = [
    "BalancedSampler",
    "Cases",
    "EpochSampler",
    "LoadChallengeCased",
    "SliceDataset",
    "add_test_patients",
    "bids_datalist",
    "challenge_datalist",
    "challenge_modality",
    "check_cases",
    "decathlon_datalist",
    "evaluation_parts",
    "for_unlabelled",
    "images_datalist",
    "paired_folders_datalist",
    "read_challenge_case",
    "record_notes",
    "split_by_patient",
    "training_parts",
    "training_record",
    "unlabelled_datalist",
    "write_challenge_result",
    "write_decathlon_phantoms",
]
