"""Who has been handed which image, so that two annotators do not label the same one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from monailabel.endpoints.user.auth import DEFAULT_USER
from monailabel.interfaces.datastore import Datastore

__all__ = ["HOLD_SECONDS", "Available", "available"]

HOLD_SECONDS = 3600

# what MONAI Label writes down for a client that gives no client_id, as OHIF does not
_NOBODY = (None, DEFAULT_USER.username)


@dataclass(frozen=True)
class Available:
    """What may be handed to a client.

    Args:
        own: the image that this strategy handed to the client last and that he has not labelled yet.
        free: images held by nobody else.
        again: images handed to clients without an id, the longest ago first; only for such clients, because they cannot
            be told apart.
        held: images that others have.
    """

    own: str | None
    free: list[str]
    again: list[str]
    held: list[str]


def available(images: Sequence[str], datastore: Datastore, strategy: str, client: str | None) -> Available:
    """Sort unlabelled images by who holds them.

    MONAI Label writes into the image's info when, by which strategy and to whom it was handed; an image is held for an
    hour, whichever strategy it came from.

    Args:
        images: unlabelled ones.
        datastore: whose infos are read.
        strategy: the one that is asked.
        client: who asks, None when he has no id.
    """
    since = time.time() - HOLD_SECONDS
    mine: list[tuple[float, str]] = []
    again: list[tuple[float, str]] = []
    free, held = [], []
    for image in images:
        record = datastore.get_image_info(image).get("strategy", {})
        ts, by, holder = max(
            ((r.get("ts", 0), name, r.get("client_id")) for name, r in record.items()), default=(0, "", 0)
        )
        if ts < since:
            free.append(image)
        elif client is not None and holder == client:
            free.append(image)
            if by == strategy:
                mine.append((ts, image))
        else:
            held.append(image)
            if client is None and holder in _NOBODY:
                again.append((ts, image))
    return Available(max(mine)[1] if mine else None, free, [image for _, image in sorted(again)], held)
