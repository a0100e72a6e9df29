"""SAMed's learning rate schedule, which MedSAGa uses too."""

from __future__ import annotations

import warnings
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["WarmupPolynomialLR"]


class WarmupPolynomialLR(LambdaLR):
    r"""Linear warmup to the base rate, then polynomial decay, stepped once per optimizer step.

    With :math:`I` a group's base rate, :math:`WP` the warmup and :math:`MI` the maximum of steps, the rate of the
    :math:`T`-th optimizer step is (SAMed, eq. 5):

    .. math::
        lr = \begin{cases} I \, T / WP & T \le WP \\ I \, (1 - (T - WP) / MI)^{power} & T > WP \end{cases}

    :math:`T` counts from 1, so that no step is spent at a rate of zero. The decay ends at :math:`T = WP + MI`, from
    where on the rate is zero; at :math:`T = MI` it is still :math:`I (WP / MI)^{power}`, as the equation has it.

    Args:
        optimizer: the optimizer; the base rate of each group is its ``lr``.
        max_steps: MI, optimizer steps of the run.
        warmup_steps: WP, optimizer steps until the base rate is reached. With 0 (or 1, which is the same) the first
            step has the base rate. A run too short to reach it (``warmup_steps >= max_steps``) warms up over its first
            half instead, with a warning.
        power: exponent of the decay: 1 in SAMed's paper, 0.9 in its code.

    Raises:
        ValueError: when ``max_steps`` is less than 1, ``warmup_steps`` is negative or ``power`` is not positive.

    The state dict holds plain Python values. The schedule's own settings are not among them: on resume those given here
    apply, so that a run may be prolonged.

    Source: SAMed (arXiv 2304.13785), eq. 5; MedSAGa (arXiv 2407.15042).
    """

    def __init__(self, optimizer: Optimizer, max_steps: int, warmup_steps: int = 250, power: float = 1.0) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}.")
        if power <= 0:
            raise ValueError(f"power must be positive, got {power}.")
        # a run of a single step is at the base rate with a warmup of 1, so nothing has to be cut there
        if warmup_steps >= max_steps and warmup_steps > 1:
            half = max(1, max_steps // 2)
            warnings.warn(
                f"a warmup of {warmup_steps} steps does not fit into {max_steps} steps: it is cut to {half}.",
                stacklevel=2,
            )
            warmup_steps = half
        # a partial object, not a closure, so that the scheduler can be pickled
        super().__init__(optimizer, partial(_factor, warmup=max(1, warmup_steps), max_steps=max_steps, power=power))


def _factor(steps_done: int, warmup: int, max_steps: int, power: float) -> float:
    step = steps_done + 1
    if step <= warmup:
        return step / warmup
    # clamped first: a negative base to a fractional power would be complex
    return max(0.0, 1 - (step - warmup) / max_steps) ** power
