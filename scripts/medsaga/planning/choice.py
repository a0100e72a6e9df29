"""A setting of a bundle, and why it is what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Choice", "Choices"]


@dataclass(frozen=True)
class Choice:
    """One field of ``dataset.json``.

    Attributes:
        field: its name.
        value: its value.
        reason: a sentence or two.
        asked: whether a user asked for it.
    """

    field: str
    value: Any
    reason: str
    asked: bool = False


@dataclass
class Choices:
    """What has been chosen so far, and what a user asked for.

    Args:
        asked: values by field, which are used whatever the data suggest.

    Attributes:
        made: in the order in which they were made.
        training_slices: approximate number of slices to train on.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    made: list[Choice] = field(default_factory=list)
    training_slices: int = 1

    def choose(self, name: str, value: Any, reason: str) -> Any:
        """Take what was asked for, else this value.

        Args:
            name: of the field.
            value: the one that the data suggest.
            reason: why.

        Returns:
            the field's value.
        """
        if name in self.asked:
            option = f"--{name.replace('_', '-')}"
            if name == "flip" and not self.asked[name]:
                option = "--no-flip"
            same = self.asked[name] == value
            self.made.append(Choice(name, self.asked[name], reason if same else f"As asked for by `{option}`.", True))
        else:
            self.made.append(Choice(name, value, reason))
        return self.asked.get(name, value)

    def __getitem__(self, name: str) -> Any:
        return next(choice.value for choice in self.made if choice.field == name)

    def values(self) -> dict[str, Any]:
        """Value by field."""
        return {choice.field: choice.value for choice in self.made}
