"""What a conversion left out, as tests compare it."""

from __future__ import annotations

from deploy.tables.report import Report


def counts(report: Report) -> dict[str, int]:
    """Rows by reason."""
    return {reason: each["count"] for reason, each in report.left_out.to_dict().items()}
