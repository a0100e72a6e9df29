import pytest

from medsaga.memory import Setup

from ..integration.bundles import ROOT


@pytest.fixture
def small():
    """A bundle's setup, small enough for seconds."""

    def build(bundle: str = "hippocampus", *overlays: str, **overrides) -> Setup:
        files = tuple(str(ROOT / "bundles" / "methods" / f"{name}.json") for name in overlays)
        values = {"network_def#encoder": "vit_test", "image_size": 64, "device": "$torch.device('cpu')"}
        return Setup(str(ROOT / "bundles" / bundle), files, {**values, "batch_size": 2, **overrides})

    return build
