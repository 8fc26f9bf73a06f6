"""The parameters that several calls share, with their limits: ids as on the topics, counts, switches.

What a parameter means to a call is the call's business.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from index.api.schemas import MAX_COUNT, Identifier

UserId = Annotated[Identifier, Path(description="the user's id", examples=["u42"])]
ItemId = Annotated[Identifier, Path(description="the item's id", examples=["i7"])]
Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="how many items")]
Location = Annotated[Identifier | None, Query(description="default: the profile's categorical `location`")]
After = Annotated[Identifier | None, Query(description="event id to wait for, up to 100 ms")]
