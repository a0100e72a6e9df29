from __future__ import annotations

import errno
import logging
import math
import os
import resource
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn

from medsaga.data import EpochSampler
from medsaga.handlers import MovingAverage, TrainingState
from medsaga.losses import LogitResolutionDiceCELoss
from medsaga.lr_schedulers import WarmupPolynomialLR
from medsaga.optimizers import GaLoreAdamW

AUGMENTATION = Compose([RandFlipd(["image", "label"], prob=0.5, spatial_axis=1), RandGaussianNoised("image", prob=0.5)])


class Slices:
    """Nine random images with the (epoch, index) seeding of SliceDataset."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(9, 1, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        epoch, index = item
        AUGMENTATION.set_random_state(seed=100 * epoch + index)
        return AUGMENTATION({"image": self.images[index], "label": (self.images[index] > 0.5).long()})


class ScriptedMetric(Metric):
    """The validation's key metric, given for each epoch of the trainer."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        pass

    def completed(self, engine, name):
        engine.state.metrics[name] = self.values[engine.state.epoch]


class Abort:
    """Kill the run in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.fire)

    def fire(self, engine):
        if engine.state.epoch == self.epoch:
            raise KeyboardInterrupt


class Watch:
    """Learning rates, images and losses of each step."""

    def __init__(self):
        self.seen = {}

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def note(self, engine):
        output = engine.state.output[0]
        self.seen[engine.state.iteration] = (engine.optimizer.param_groups[0]["lr"], float(output["loss"]))


class Run:
    """A trainer as the bundles configure it, of a network of three layers."""

    def __init__(
        self,
        folder,
        epochs=4,
        metrics=None,
        interval=1,
        patience=None,
        resume=False,
        optimizer="galore",
        width=4,
        handlers=(),
        seed=0,
        loss=None,
        momentum=None,
        **state,
    ):
        self.folder = Path(folder)
        torch.manual_seed(5)
        # the dropout draws from the global random state
        self.network = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Dropout(0.3), nn.Conv2d(width, 2, 1))
        if optimizer == "galore":
            matrices, vectors = (
                [p for p in self.network.parameters() if (p.ndim > 1) == many] for many in (True, False)
            )
            groups = [{"params": matrices, "rank": 1, "update_gap": 4}, {"params": vectors}]
            self.optimizer = GaLoreAdamW(groups, lr=0.05)
        else:
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.05)
        dataset = Slices()
        loader = DataLoader(dataset, batch_size=3, sampler=EpochSampler(dataset))
        scheduler = WarmupPolynomialLR(self.optimizer, warmup_steps=2, max_steps=epochs * len(loader))
        evaluator, validation = None, []
        if metrics is not None:
            evaluator = SupervisedEvaluator(
                device=torch.device("cpu"),
                val_data_loader=[{"image": torch.rand(1, 1, 8, 8), "label": torch.ones(1, 1, 8, 8)}],
                network=self.network,
                key_val_metric={"val_mean_dice": ScriptedMetric(dict(enumerate(metrics, start=1)))},
            )
            validation = [ValidationHandler(interval, evaluator)]
        self.average = MovingAverage(self.network, momentum)
        self.handler = TrainingState(
            self.folder,
            self.folder / "models" / "model.pt",
            self.network,
            self.optimizer,
            scheduler,
            evaluator=evaluator,
            resume=resume,
            patience=patience,
            seed=seed,
            average=self.average,
            **state,
        )
        self.watch = Watch()
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=loss or LogitResolutionDiceCELoss(),
            train_handlers=[
                *validation,
                self.handler,
                LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
                self.watch,
                *handlers,
            ],
        )

    def __call__(self):
        self.trainer.run()
        return self

    def files(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def load(self, name):
        return torch.load(self.folder / name, weights_only=True)

    def epoch_of(self, name):
        return self.load(name)["progress"]["epoch"]

    def weights_after(self, epoch):
        """The weights that an own, unvalidated run has after the epoch."""
        run = Run(self.folder / "reference", epochs=self.trainer.state.max_epochs, handlers=[Abort(epoch + 1)])
        try:
            run()
        except KeyboardInterrupt:
            return run.load("last.pt")["network"]
        return run.network.state_dict()


def equal(a, b):
    """Bit-equal, whatever the nesting."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b


# --- which files, and of which epoch ---------------------------------------------------------------------------------


def test_writes_the_last_the_best_and_the_weights_to_serve(tmp_path):
    run = Run(tmp_path, metrics=[0.1, 0.9, 0.4, 0.5])()
    assert run.files() == ["best.pt", "last.pt", "models/model.pt"]
    state = run.load("last.pt")
    assert equal(state["network"], run.network.state_dict())
    assert equal(state["optimizer"], run.optimizer.state_dict())
    assert state["progress"] == {"epoch": 4, "iteration": 12}
    assert set(state) == set(run.load("best.pt"))


@pytest.mark.parametrize(
    ("metrics", "interval", "best"),
    [
        ([0.1, 0.9, 0.4, 0.5], 1, 2),
        ([0.9, 0.8, 0.7, 0.6], 1, 1),
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.5, 0.5, 0.5, 0.5], 1, 1),
        ([-0.9, -0.5, -0.7, -0.6], 1, 2),
        ([9.9, 0.2, 9.9, 0.1], 2, 2),  # of epochs 1 and 3 there is no validation
        ([9.9, 9.9, 0.3, 9.9], 3, 3),
        ([math.nan, 0.3, math.nan, 0.1], 1, 2),
    ],
)
def test_best_follows_the_metric(tmp_path, metrics, interval, best):
    run = Run(tmp_path, metrics=metrics, interval=interval)()
    assert run.epoch_of("last.pt") == 4
    assert run.epoch_of("best.pt") == best
    assert equal(run.load("models/model.pt"), run.load("best.pt")["network"])
    assert equal(run.load("models/model.pt"), run.weights_after(best))
    selection = run.load("last.pt")["selection"]
    assert selection["best_epoch"] == best
    assert selection["best_metric"] == metrics[best - 1]


def test_the_average_is_what_is_served_and_goes_on_where_it_was(tmp_path):
    run = Run(tmp_path / "whole", momentum=0.2)()
    assert equal(run.load("models/model.pt"), run.average.network.state_dict())
    assert not equal(run.load("models/model.pt"), run.network.state_dict())
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "killed", momentum=0.2, handlers=[Abort(3)])()
    resumed = Run(tmp_path / "killed", momentum=0.2, resume=True)()
    assert equal(resumed.load("last.pt"), run.load("last.pt"))
    assert equal(resumed.load("models/model.pt"), run.load("models/model.pt"))


def test_a_run_from_before_there_was_an_average_starts_it_when_it_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, handlers=[Abort(4)])()
    before = Run(tmp_path, momentum=1e-12, resume=True)
    before.handler.load(before.trainer)
    assert equal(before.average.network.state_dict(), before.load("last.pt")["network"])


@pytest.mark.parametrize("options", [{}, {"metrics": [0.0] * 3, "interval": 10}], ids=["no_evaluator", "never_due"])
def test_without_validation_the_weights_to_serve_follow_the_last_epoch(tmp_path, options):
    run = Run(tmp_path, epochs=3, **options)()
    assert equal(run.load("models/model.pt"), run.network.state_dict())
    assert run.epoch_of("best.pt") == 3


def test_metrics_of_nothing_select_as_no_validation_does(tmp_path, caplog):
    """And use up no patience."""
    run = Run(tmp_path, metrics=[math.nan] * 4, patience=1)()
    assert run.epoch_of("last.pt") == run.epoch_of("best.pt") == 4
    assert run.load("last.pt")["selection"]["without_better"] == 0
    assert "val_mean_dice cannot be computed, because no validation label shows a class" in caplog.text
    run = Run(tmp_path / "b", epochs=5, metrics=[0.5, math.nan, math.nan, 0.4, 0.9], patience=1)()
    assert run.epoch_of("last.pt") == 4 and run.epoch_of("best.pt") == 1


@pytest.mark.parametrize(
    ("options", "last", "best"),
    [
        ({}, [1, 1, 1, 1, 5], [1, 1, 1, 1, 5]),  # without validation what is served follows last.pt
        ({"metrics": [0.5, 0.4, 0.6, 0.3, 0.2]}, [1, 1, 3, 3, 5], [1, 1, 3, 3, 3]),
        ({"metrics": [0.5, 0.4, 0.3, 0.2, 0.1], "patience": 2}, [1, 1, 3], [1, 1, 1]),
        ({"save_seconds": 0}, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ],
    ids=["no validation", "validation", "patience", "each"],
)
def test_within_a_time_only_first_last_and_better_epochs_are_written(tmp_path, options, last, best):
    written = []

    class Note:
        def attach(self, engine):
            engine.add_event_handler(
                Events.EPOCH_COMPLETED, lambda _: written.append([run.epoch_of("last.pt"), run.epoch_of("best.pt")])
            )

    run = Run(tmp_path, epochs=5, handlers=[Note()], **{"save_seconds": 3600, **options})
    run()
    assert written == [list(pair) for pair in zip(last, best)]
    assert equal(run.load("models/model.pt"), run.load("best.pt")["network"])


def test_a_run_killed_after_epochs_that_were_not_written_ends_the_same(tmp_path, caplog):
    whole = Run(tmp_path / "whole")()
    killed(tmp_path / "killed", 4, save_seconds=3600)
    with caplog.at_level(logging.INFO):
        resumed = Run(tmp_path / "killed", resume=True, save_seconds=3600)()
    assert "Resumed after epoch 1 of 4" in caplog.text
    for name in whole.files():
        assert equal(resumed.load(name), whole.load(name)), name


def test_says_which_epoch_is_served(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        Run(tmp_path / "a", metrics=[0.1, 0.9, 0.4, 0.5])()
        Run(tmp_path / "b", epochs=2)()
    assert "model.pt: weights of epoch 2, validation 0.9000." in caplog.text
    assert "model.pt: weights of the last epoch, 2; no validation." in caplog.text


@pytest.mark.parametrize(
    ("metrics", "interval", "patience", "last"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 1, 2, 3),
        ([0.5, 0.4, 0.6, 0.2, 0.1, 0.9], 1, 2, 5),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 1, 3, 4),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 1, 6),
        ([9.9, 0.5, 9.9, 0.4, 9.9, 0.3], 2, 1, 4),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 1, None, 6),
    ],
)
def test_patience_counts_validations_without_a_better_one(tmp_path, metrics, interval, patience, last):
    run = Run(tmp_path, epochs=6, metrics=metrics, interval=interval, patience=patience)()
    assert run.epoch_of("last.pt") == last


# --- on with a run ---------------------------------------------------------------------------------------------------


def killed(folder, epoch, **options):
    """Run until the first step of an epoch is done."""
    with pytest.raises(KeyboardInterrupt):
        Run(folder, handlers=[Abort(epoch)], **options)()


@pytest.mark.parametrize("optimizer", ["galore", "adamw"])
@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_resumed_run_ends_bit_equal_to_one_never_killed(tmp_path, optimizer, epoch):
    options = {"metrics": [0.1, 0.9, 0.4, 0.5], "optimizer": optimizer}
    whole = Run(tmp_path / "whole", **options)()
    killed(tmp_path / "killed", epoch, **options)
    torch.rand(1000)  # another process has drawn other numbers
    resumed = Run(tmp_path / "killed", resume=True, **options)()
    assert resumed.files() == whole.files()
    for name in whole.files():
        assert equal(resumed.load(name), whole.load(name)), name
    assert equal(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.watch.seen == {step: seen for step, seen in whole.watch.seen.items() if step > 3 * (epoch - 1)}


def test_run_killed_twice_ends_the_same(tmp_path):
    whole = Run(tmp_path / "whole")()
    killed(tmp_path / "killed", 2)
    killed(tmp_path / "killed", 4, resume=True)
    assert equal(Run(tmp_path / "killed", resume=True)().load("last.pt"), whole.load("last.pt"))


def test_random_draws_follow_the_seed(tmp_path):
    first, same, other = (Run(tmp_path / str(i), epochs=1, seed=seed)() for i, seed in enumerate((0, 0, 7)))
    assert equal(first.load("last.pt"), same.load("last.pt"))
    assert not equal(first.load("last.pt")["network"], other.load("last.pt")["network"])


def test_selection_and_patience_survive(tmp_path):
    metrics = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    killed(tmp_path, 3, epochs=6, metrics=metrics, patience=3)
    best = (tmp_path / "best.pt").read_bytes()
    run = Run(tmp_path, epochs=6, metrics=metrics, patience=3, resume=True)()
    assert run.epoch_of("last.pt") == 4  # epochs 2, 3 and 4 were not better
    assert run.load("last.pt")["selection"]["best_epoch"] == 1
    assert (tmp_path / "best.pt").read_bytes() == best


def test_epoch_without_validation_after_resuming_leaves_the_selected_weights(tmp_path):
    options = {"metrics": [9.9, 0.5, 9.9, 0.4], "interval": 2}
    killed(tmp_path, 3, **options)
    run = Run(tmp_path, resume=True, **options)()
    assert run.epoch_of("best.pt") == 2
    assert equal(run.load("models/model.pt"), run.weights_after(2))


def test_finished_run_has_nothing_left_to_do(tmp_path):
    before = Run(tmp_path)().load("last.pt")
    run = Run(tmp_path, resume=True)()
    assert run.watch.seen == {}
    assert equal(run.network.state_dict(), before["network"])
    assert equal(run.load("last.pt"), before)


def test_more_epochs_can_be_added(tmp_path):
    Run(tmp_path, epochs=2)()
    run = Run(tmp_path, epochs=3, resume=True)()
    assert sorted(run.watch.seen) == [7, 8, 9]
    assert run.epoch_of("last.pt") == 3


def test_nothing_to_resume_starts_from_the_beginning(tmp_path, caplog):
    fresh = Run(tmp_path / "a")()
    with caplog.at_level(logging.INFO):
        run = Run(tmp_path / "b", resume=True)()
    assert "Nothing to resume" in caplog.text
    assert equal(run.load("last.pt"), fresh.load("last.pt"))


def test_without_resume_an_earlier_run_is_not_taken_up(tmp_path):
    first = Run(tmp_path)().load("last.pt")
    assert equal(Run(tmp_path)().load("last.pt"), first)


def replaced(content):
    return lambda file: torch.save(content, file)


DAMAGES = {
    "short_of_its_end": lambda file: file.write_bytes(file.read_bytes()[:-200]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(5000)),
    "text": lambda file: file.write_text("this is not a checkpoint"),
    "flipped_byte_in_the_index": lambda file: file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03")),
    "weights_alone": replaced(nn.Linear(2, 2).state_dict()),
    "tensor": replaced(torch.zeros(3)),
    "list": replaced([1, 2]),
    "none": replaced(None),
    "module": replaced(nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_or_foreign_checkpoint_is_named(tmp_path, name):
    Run(tmp_path, epochs=1)()
    DAMAGES[name](tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(
        RuntimeError, match=r"Cannot resume from .*last\.pt: it is damaged, or it is of another network"
    ):
        Run(tmp_path, resume=True)()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("key", ["network", "optimizer", "lr_scheduler", "progress", "selection", "scaler"])
def test_checkpoint_that_lacks_a_part_is_named(tmp_path, key):
    run = Run(tmp_path, epochs=1)()
    state = run.load("last.pt")
    del state[key]
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(RuntimeError, match=r"Cannot resume from .*last\.pt"):
        Run(tmp_path, resume=True)()


def test_checkpoint_of_another_network_is_named(tmp_path):
    Run(tmp_path, epochs=1, width=6)()
    with pytest.raises(RuntimeError, match=r"(?s)Cannot resume from .*last\.pt.*size mismatch"):
        Run(tmp_path, resume=True)()


# --- while files are written -----------------------------------------------------------------------------------------


def no_space(content, file, **_):
    """What a disk does that becomes full while torch.save writes."""
    if hasattr(file, "write"):
        file.write(b"half")
    else:
        Path(file).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def too_large(content, file, **_):
    real_save(content, file)
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598")


def interrupted(content, file, **_):
    real_save(content, file)
    raise KeyboardInterrupt


real_save = torch.save


@pytest.mark.parametrize(
    ("save", "error", "message"),
    [
        (no_space, OSError, r"Cannot write .*\.pt \(.*No space left.* MB free\)\. The former file is unchanged"),
        (too_large, OSError, r"Cannot write .*\.pt \(.*unexpected pos.* MB free\)"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
def test_failure_while_writing_leaves_the_files_before_it(tmp_path, monkeypatch, save, error, message):
    run = Run(tmp_path, epochs=2, metrics=[0.1, 0.2])()
    before = {name: (tmp_path / name).read_bytes() for name in run.files()}
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(error, match=message):
        Run(tmp_path, epochs=3, metrics=[0.1, 0.2, 0.3], resume=True)()
    assert {name: (tmp_path / name).read_bytes() for name in run.files()} == before
    monkeypatch.undo()
    assert Run(tmp_path, epochs=3, metrics=[0.1, 0.2, 0.3], resume=True)().epoch_of("best.pt") == 3


@pytest.mark.parametrize("excess", [100_000, 40_000, 400, 100])
def test_full_disk_leaves_the_file_before_it_and_no_other(tmp_path, excess):
    """The system itself refuses to write beyond a size, in the middle or at the very end of the file."""
    run = Run(tmp_path, width=2000, epochs=1)()
    before = {name: (tmp_path / name).read_bytes() for name in run.files()}
    limit = len(before["last.pt"]) - excess
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"Cannot write .*\.pt .* MB free"):
            Run(tmp_path, width=2000, epochs=2, resume=True)()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert after["last.pt"] == before["last.pt"]


def test_what_a_killed_run_left_of_a_file_does_not_stay(tmp_path):
    run = Run(tmp_path, epochs=1)()
    complete = run.files()
    seen = []

    def spy(content, file, **_):
        seen.append(Path(file))
        real_save(content, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", spy)
        Run(tmp_path, epochs=2, resume=True)()
    assert not {path.name for path in seen} & {Path(name).name for name in complete}  # never in the file's own place
    for path in seen:
        path.write_bytes(b"half a file")
    assert Run(tmp_path, epochs=3, resume=True)().files() == complete


def test_saved_files_can_be_read_by_others(tmp_path):
    """A server may run as another user than the training."""
    mask = os.umask(0o022)
    try:
        run = Run(tmp_path, epochs=1)()
    finally:
        os.umask(mask)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in run.files()} == {0o644}


def test_wrapper_of_distributed_data_parallel_is_not_saved(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = nn.Linear(2, 2)
        wrapped = nn.parallel.DistributedDataParallel(network)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        handler = TrainingState(tmp_path, tmp_path / "model.pt", wrapped, optimizer, None)
        assert handler.network is network
    finally:
        torch.distributed.destroy_process_group()
