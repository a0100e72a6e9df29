from .datalists import decathlon_datalist, images_datalist, paired_folders_datalist
from .phantoms import write_decathlon_phantoms
from .sampler import EpochSampler
from .slice_dataset import SliceDataset
from .splits import split_by_patient

__all__ = [
    "EpochSampler",
    "SliceDataset",
    "decathlon_datalist",
    "images_datalist",
    "paired_folders_datalist",
    "split_by_patient",
    "write_decathlon_phantoms",
]
