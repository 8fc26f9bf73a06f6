"""For stateful runs of Schemathesis: one record at a time, because a link takes the id of a single record's body."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The first record of a batch."""
    return body[0] if isinstance(body, list) and body else body
