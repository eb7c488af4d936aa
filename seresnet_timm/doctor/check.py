"""A finding of `seresnet-timm doctor`."""
from dataclasses import dataclass
from typing import Optional


@dataclass
class Check:
    """One finding; the fields are those of the JSON output.

    Attributes:
        section: Part of the output that it belongs to.
        name: What was looked at, unique in its section.
        status: 'ok'; 'note': nothing to do; 'warning': a training runs, with a restriction; 'error': a training fails.
        value: What was found.
        remedy: What to do; None with 'ok' and 'note'.
    """
    section: str
    name: str
    status: str
    value: str
    remedy: Optional[str] = None

    def __post_init__(self):
        if self.status in ('ok', 'note'):  # so that a check may give its remedy together with any status
            self.remedy = None
