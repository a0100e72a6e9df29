"""Which slices are worth labelling: strategies compared on a frozen encoder, so that many seeds fit a night."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from monai.transforms import Compose
from tqdm import tqdm

from medsaga.active_learning import class_stratified, class_uncertainty, k_centre, mixed, power_choice
from medsaga.bundle.root import bundle_folder
from medsaga.data import SliceDataset
from medsaga.files import replacing, write_json
from medsaga.losses import LogitResolutionDiceCELoss
from medsaga.losses.resolution import to_logits_resolution
from medsaga.lr_schedulers import WarmupPolynomialLR
from medsaga.machine import describe_machine
from medsaga.memory import Setup
from medsaga.metrics import forecast
from medsaga.networks import SamSegmenter
from medsaga.transforms import FitSquared

from .overrides import override

__all__ = ["STRATEGIES", "main"]

_FOREGROUND = 2 / 3  # share of slices with foreground in foreground-aware random draws
_BAR = "foreground"
_BATCH = 8
_LR = 0.001
_WARMUP = 20
STRATEGIES = ("foreground", "random", "volume", "entropy", "clasp", "diversity", "mixed")


@dataclass
class Pool:
    """Slices as embeddings of the frozen encoder.

    Args:
        embeddings: (N, 256, e, e), float16.
        labels: (N, 1, m, m), uint8, at the logits' resolution.
        volumes: (N,), the case of each slice.
        classes: (N, k - 1), which classes a slice shows.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    volumes: torch.Tensor
    classes: torch.Tensor

    def clicks(self, chosen: Sequence[int]) -> int:
        """Two for the box of each class that a slice shows, and one to say that it shows none."""
        shown = self.classes[list(chosen)].sum(dim=1)
        return int((2 * shown).clamp(min=1).sum())


@torch.no_grad()
def embed(dataset: SliceDataset, network: SamSegmenter) -> Pool:
    """All slices of a data set, in its order."""
    embeddings, labels = [], []
    for start in tqdm(range(0, len(dataset), _BATCH), desc="embedding slices", unit="batch"):
        items = [dataset[i] for i in range(start, min(start + _BATCH, len(dataset)))]
        embeddings.append(network.encode(torch.stack([item["image"] for item in items]).float()).half())
        labels.append(torch.stack([item["label"] for item in items]).to(torch.uint8))
    size = 4 * embeddings[0].shape[-1]  # of the logits
    label = to_logits_resolution(torch.cat(labels), torch.empty(1, 1, size, size)).to(torch.uint8)
    classes = torch.stack([(label == c).flatten(1).any(dim=1) for c in range(1, network.num_classes)], dim=1)
    return Pool(torch.cat(embeddings), label, torch.from_numpy(dataset.slices[:, 0].copy()), classes)


def train(network: SamSegmenter, pool: Pool, chosen: Sequence[int], steps: int, seed: int) -> None:
    """Train the decoder on chosen slices, from the weights that the network has."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.1)
    schedule = WarmupPolynomialLR(optimizer, warmup_steps=_WARMUP, max_steps=steps, power=1.0)
    loss = LogitResolutionDiceCELoss()
    rows = torch.tensor(list(chosen))
    network.train()
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (_BATCH,), generator=generator)]
        loss(network.decode(pool.embeddings[batch].float()), pool.labels[batch]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    network.eval()


@torch.no_grad()
def logits_of(network: SamSegmenter, pool: Pool, rows: Sequence[int]) -> torch.Tensor:
    return torch.cat([network.decode(pool.embeddings[list(rows[i : i + 32])].float()) for i in range(0, len(rows), 32)])


def score(network: SamSegmenter, pool: Pool) -> list[float]:
    """Dice of each volume, mean over the classes that it shows."""
    found = logits_of(network, pool, range(len(pool.labels))).argmax(dim=1, keepdim=True)
    result = []
    for volume in pool.volumes.unique():
        own = pool.volumes == volume
        masks, truth = (one_hot(x[own].movedim(0, -1)[None], network.num_classes, dim=1) for x in (found, pool.labels))
        result.append(float(compute_dice(masks, truth, include_background=False).nanmean()))
    return result


def choose(
    strategy: str, network: SamSegmenter | None, pool: Pool, labelled: Sequence[int], n: int, round_: int, seed: int
) -> list[int]:
    """Rows of the next ``n`` slices.

    Args:
        strategy: of :data:`STRATEGIES`.
        network: trained on those that are labelled; None in the first round, which is foreground-aware random for all.
        pool: slices.
        labelled: rows that are labelled.
        n: number of slices.
        round_: number of the round, from 0.
        seed: of the run.
    """
    generator = torch.Generator().manual_seed(1000 * seed + round_)
    known = set(labelled)
    free = torch.tensor([i for i in range(len(pool.labels)) if i not in known])
    if strategy == "volume":
        order = torch.randperm(int(pool.volumes.max()) + 1, generator=torch.Generator().manual_seed(seed))
        rows = torch.cat([(pool.volumes == volume).nonzero()[:, 0] for volume in order])
        return [int(i) for i in rows if int(i) not in known][:n]
    if network is None or strategy == "foreground":
        shows = pool.classes[free].any(dim=1)
        weight = torch.where(shows, _FOREGROUND / shows.sum(), (1 - _FOREGROUND) / (~shows).sum())
        return free[power_choice(weight, n, 1.0, generator)].tolist()
    if strategy == "random":
        return free[torch.randperm(len(free), generator=generator)[:n]].tolist()
    if strategy == "diversity":
        return k_centre(pool.embeddings.float().mean(dim=(2, 3)), list(labelled), n)
    uncertainty = class_uncertainty(logits_of(network, pool, free.tolist()))
    if strategy == "clasp":
        return free[class_stratified(uncertainty, n, beta=min(8.0, 2.0**round_), generator=generator)].tolist()
    total = torch.zeros(len(pool.labels))
    total[free] = uncertainty[:, 1:].sum(dim=1)
    if strategy == "entropy":
        return total.topk(n).indices.tolist()
    return mixed(pool.embeddings.float().mean(dim=(2, 3)), total, list(labelled), n)


def play(
    strategy: str, seed: int, start: SamSegmenter, pools: tuple[Pool, Pool], budgets: Sequence[int], steps: int
) -> list[dict]:
    """Label, train and score up to each budget; a training starts from the published weights each time."""
    pool, test = pools
    labelled: list[int] = []
    network, rows = None, []
    fresh = {key: value.clone() for key, value in start.state_dict().items()}
    for round_, budget in enumerate(budgets):
        labelled += choose(strategy, network, pool, labelled, budget - len(labelled), round_, seed)
        network = start
        network.load_state_dict(fresh)
        train(network, pool, labelled, steps, seed)
        dice = score(network, test)
        rows.append({"slices": len(labelled), "clicks": pool.clicks(labelled), "dice": dice})
    start.load_state_dict(fresh)
    return rows


def page(results: dict[str, list[dict]], strategies: Sequence[str], seeds: Sequence[int]) -> tuple[str, pd.DataFrame]:
    """Markdown table and values: mean over seeds, difference from foreground-aware random paired by seed."""
    rows = pd.DataFrame(
        [
            {
                "strategy": s,
                "seed": seed,
                "slices": r["slices"],
                "clicks": r["clicks"],
                "dice": float(np.mean(r["dice"])),
            }
            for s in strategies
            for seed in seeds
            for r in results.get(f"{s}_seed{seed}", [])
        ]
    )
    bar = rows[rows["strategy"] == _BAR].set_index(["seed", "slices"])["dice"]
    lines = [
        "| Slices | Strategy | Dice | against foreground-aware random | clicks | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for (slices, strategy), own in rows.groupby(["slices", "strategy"], sort=False):
        gain = own.set_index(["seed", "slices"])["dice"].sub(bar).dropna()
        error = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
        against = "–" if strategy == _BAR or gain.empty else f"{gain.mean():+.3f} ± {error:.3f}"
        lines.append(
            f"| {slices} | {strategy} | {own['dice'].mean():.3f} ± {own['dice'].std(ddof=1):.3f} | {against} | "
            f"{own['clicks'].mean():.0f} | {len(own)} |"
        )
    order = sorted(lines[2:], key=lambda line: int(line.split("|")[1]))
    return "\n".join([*lines[:2], *order]), rows


def forecasts(rows: pd.DataFrame) -> str:
    """Markdown: the score of a budget as forecast from each strategy's smaller budgets, and as measured.

    Args:
        rows: values of :func:`page`; the mean over seeds is continued.
    """
    lines = [
        "| Strategy | continued from | to | expected, 80 % interval | measured | difference |",
        "|---|---|---|---|---|---|",
    ]
    for strategy, own in rows.groupby("strategy", sort=False):
        mean = own.groupby("slices")["dice"].mean()
        for i in range(2, len(mean)):
            count, known = int(mean.index[i]), mean.iloc[:i]
            said, found = forecast(known.index, known, count), mean.iloc[i]
            lines.append(
                f"| {strategy} | {', '.join(map(str, known.index))} | {count} | {said.expected:.3f}, {said.low:.3f} to "
                f"{said.high:.3f} | {found:.3f} | {found - said.expected:+.3f} |"
            )
    return "\n".join(lines)


def _draw(rows: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for strategy, own in rows.groupby("strategy", sort=False):
        by = own.groupby("slices")["dice"]
        axes.errorbar(by.mean().index, by.mean(), by.std(ddof=1), marker="o", capsize=3, label=strategy)
    budgets = sorted(rows["slices"].unique())
    axes.set(xscale="log", xlabel="labelled slices", ylabel="mean Dice")
    axes.set_xticks(budgets, map(str, budgets))
    axes.minorticks_off()
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m medsaga.experiments.slice_choice",
        description="Compare strategies that choose slices with foreground-aware random, paired by seed. The "
        "encoder is that of the published weights and stays frozen, so each slice is embedded once and a training "
        "takes seconds. Scores are of the validation patients. You can stop the command and run it again.",
    )
    parser.add_argument("--bundle", default="bundles/hippocampus", help="folder or name of a bundle (%(default)s)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=int, default=[10, 20, 40, 80], help="slices (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training (%(default)s)")
    parser.add_argument("--all", action="store_true", help="also train with all slices of the pool, once for each seed")
    parser.add_argument("--work", type=Path, default=Path("output/slice_choice"), help="for the runs (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="for the page (%(default)s)")
    parser.add_argument("--override", type=override, nargs="+", default=[], metavar="KEY=VALUE", help="config values")
    parsed = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    overrides = {"train_patients": None, "device": "$torch.device('cpu')", **dict(parsed.override)}
    config = Setup(str(bundle_folder(parsed.bundle)), overrides=overrides).parser()
    parts = config.get_parsed_content("parts")
    work = parsed.work / Path(parsed.bundle).name
    work.mkdir(parents=True, exist_ok=True)
    network = config.get_parsed_content("network").eval()
    network.image_encoder.requires_grad_(False)
    datasets = [
        SliceDataset(
            parts[part],
            config.get_parsed_content("preprocessing"),
            network.num_classes,
            work / "cache",
            Compose([FitSquared(["image", "label"], network.image_size)]),
        )
        for part in ("train", "validation")
    ]
    pools = tuple(embed(dataset, network) for dataset in datasets)
    file = work / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    runs = [(s, seed, parsed.budgets) for seed in parsed.seeds for s in parsed.strategies]
    if parsed.all:
        runs += [("all", seed, [len(datasets[0])]) for seed in parsed.seeds]
    for strategy, seed, budgets in tqdm(runs, desc="strategies", unit="run"):
        name = f"{strategy}_seed{seed}"
        if name not in results:
            results[name] = play(
                "volume" if strategy == "all" else strategy, seed, network, pools, budgets, parsed.steps
            )
            write_json(file, results)
    names = [*parsed.strategies, *(["all"] if parsed.all else [])]
    table, rows = page(results, names, parsed.seeds)
    bought = rows[rows["strategy"] != "all"]
    page_name = f"slice_choice_{work.name}"
    _draw(bought, parsed.output / "figures" / f"{page_name}.png")
    command = shlex.join(sys.argv[1:] if words is None else words)
    patients = len(parts["validation"])
    text = (
        f"# Which slices to label: `{work.name}`\n\nMean Dice of {patients} validation patients, mean ± standard "
        "deviation over seeds; differences are paired by seed, ± standard error. Up to the first number all "
        f"label the same slices. {len(datasets[0])} slices of {len(parts['train'])} patients to choose from. The "
        f"encoder is frozen, the decoder is trained for {parsed.steps} steps. Published weights may have been trained "
        f"on a public data set.\n\n{table}\n\n![Dice against labelled slices](figures/{page_name}.png)\n\n"
        f"Learning curves continued ([how](learning_curve.md)), and what came:\n\n{forecasts(bought)}\n\n"
        f"{describe_machine('cpu')}. `python -m medsaga.experiments.slice_choice {command}`\n"
    )
    (parsed.output / f"{page_name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
