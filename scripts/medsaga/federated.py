"""Training at several sites whose images stay where they are: what MONAI's ``MonaiAlgo`` needs besides a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.fl.utils.filters import Filter
from torch import Tensor

__all__ = ["TrainedOnly", "averaged", "site"]


class TrainedOnly(Filter):
    """Removes the tensors that a site's training has not changed from the differences that the site sends.

    These are frozen, or embeddings that no batch has used. With LoRA they are most of the network. Use it in
    ``post_weight_filters`` of the filter config of :class:`monai.fl.client.MonaiAlgo`.
    """

    def __call__(self, data: ExchangeObject, extra: dict | None = None) -> ExchangeObject:
        """
        Args:
            data: differences, as ``MonaiAlgo`` sends them by default.
            extra: of the federated system; not used.

        Raises:
            ValueError: ``data`` holds weights, not differences (``send_weight_diff=False``).
        """
        if data.weight_type != WeightType.WEIGHT_DIFF:
            raise ValueError(
                f"the site sends {data.weight_type}, but TrainedOnly needs differences: set send_weight_diff=True"
            )
        data.weights = {name: value for name, value in data.weights.items() if value.any()}
        return data


def averaged(
    weights: Mapping[str, Tensor], differences: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]
) -> dict[str, Tensor]:
    """FedAvg: the weights moved by the mean of the sites' differences, each weighted by the slices it has learnt from.

    Args:
        weights: of the last round.
        differences: by site; a tensor that is not among them did not change there.
        sizes: slices by site.

    Returns:
        All of ``weights``; integers stay as they are.

    Source:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629).
    """
    result = {name: value.clone() for name, value in weights.items()}
    for changed, size in zip(differences, sizes):
        for name, difference in changed.items():
            if result[name].is_floating_point():
                result[name] += difference.to(result[name]) * (size / sum(sizes))
    return result


def site(bundle: str, name: str, rounds: int, local_epochs: int, **options: object) -> MonaiAlgo:
    """A client of a bundle's own training, ready to be called by a federated system.

    Its optimizer and schedule go on from round to round: the rate falls over all rounds, not in each.

    Args:
        bundle: the bundle's folder.
        name: of the site.
        rounds: of the whole training.
        local_epochs: of a round.
        options: values of config keys; of each site its own ``dataset_dir``, ``output_dir``, ``cache_dir`` and
            ``model_path``.
    """
    steps = f"${rounds * local_epochs} * len(@train#dataloader)"
    kwargs = {"bundle_root": bundle, **options, "lr_scheduler#max_steps": steps}
    algo = MonaiAlgo(bundle, local_epochs, train_kwargs=kwargs, config_evaluate_filename=None)
    algo.initialize({ExtraItems.CLIENT_NAME: name})
    algo.post_weight_filters = [*(algo.post_weight_filters or []), TrainedOnly()]
    return algo
