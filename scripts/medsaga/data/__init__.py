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
from .datalists import images_datalist
from .layouts import (
    Layout,
    array_files_datalist,
    bids_datalist,
    decathlon_datalist,
    dicom_datalist,
    named_files_datalist,
    nnunet_datalist,
    paired_folders_datalist,
    recognise,
    table_datalist,
)
from .phantoms import write_decathlon_phantoms
from .sampler import EpochSampler
from .self_training import WithTeacherLabels, cases_to_label, teacher_file, teacher_labelled, without_label_values
from .slice_dataset import SliceDataset
from .splits import evaluation_parts, split_by_patient, training_parts
from .training_record import add_test_patients, record_notes, training_record
from .unlabelled import for_unlabelled, unlabelled_datalist
from .volume_patches import VolumePatches
from .with_unlabelled import WithUnlabelled, unlabelled_pool

__all__ = [
    "BalancedSampler",
    "Cases",
    "EpochSampler",
    "Layout",
    "LoadChallengeCased",
    "SliceDataset",
    "VolumePatches",
    "WithTeacherLabels",
    "WithUnlabelled",
    "add_test_patients",
    "array_files_datalist",
    "bids_datalist",
    "cases_to_label",
    "challenge_datalist",
    "challenge_modality",
    "check_cases",
    "decathlon_datalist",
    "dicom_datalist",
    "evaluation_parts",
    "for_unlabelled",
    "images_datalist",
    "named_files_datalist",
    "nnunet_datalist",
    "paired_folders_datalist",
    "read_challenge_case",
    "recognise",
    "record_notes",
    "split_by_patient",
    "table_datalist",
    "teacher_file",
    "teacher_labelled",
    "training_parts",
    "training_record",
    "unlabelled_datalist",
    "unlabelled_pool",
    "without_label_values",
    "write_challenge_result",
    "write_decathlon_phantoms",
]
