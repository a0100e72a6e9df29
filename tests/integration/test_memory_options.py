"""The options that save memory, all together, in the real training."""

import torch

from .bundles import SMALL, command, paths, run, start

LEAN = {
    "checkpointing": "least",
    "offload": True,
    "precision": "bf16_weights",
    "state_bits": 8,
    "accumulation_steps": 2,
    "max_norm": 1.0,
}
SHORT = {
    **SMALL,
    "train#trainer#max_epochs": 2,
    "val_interval": 1,
    "batch_size": 2,
    "test_patients": 1,
    "val_patients": 1,
    "train_patients": 4,
    "num_slices": 4,
    "min_classes": 1,
    "warmup_steps": 1,
    "update_gap": 1,
    "lr_scheduler#max_steps": 4,  # also of the run that ends after its first epoch
    "device": "$torch.device('cpu')",
}


def test_a_run_trains_and_resumes_in_a_new_process_to_the_same_weights(phantoms, tmp_path):
    whole, parts = ({**SHORT, **LEAN, **paths("hippocampus", phantoms, tmp_path / name)} for name in ("whole", "parts"))
    run("training", "hippocampus", "train", **whole)
    run("training", "hippocampus", "train", **{**parts, "train#trainer#max_epochs": 1})
    # a process that has not met 8-bit moments before it reads them; with one thread as this one has, because how a
    # convolution in bfloat16 is summed depends on their number
    words = command("training", "hippocampus", "train", **parts, resume=True)
    assert start(words, log := tmp_path / "log", OMP_NUM_THREADS="1").wait(600) == 0, log.read_text()[-3000:]
    a, b = (torch.load(tmp_path / name / "output" / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert a["progress"] == b["progress"] == {"epoch": 2, "iteration": 4}
    assert a["network"]["image_encoder.blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    assert any(state["exp_avg"].dtype == torch.uint8 for state in a["optimizer"]["state"].values())
    # of 2 batches an epoch, 2 make a step
    assert {int(state["step"]) for state in a["optimizer"]["state"].values()} == {2}
    for key, value in a["network"].items():
        assert torch.equal(value, b["network"][key]), key
    for index, state in a["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][index][key]), (index, key)
