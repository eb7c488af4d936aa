"""What the Hub of tests/hub_server.py holds, and what goes wrong there."""
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Dict, Optional


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        where: Regular expression, found in 'METHOD /path'.
        kind: 'status' (answers `status`), 'drop' (closes the connection instead of answering; of an upload after half
            of it), 'truncate' (announces the length and sends half), 'flip' (one bit; of an upload too), 'length' (one
            byte less, announced so), 'hash' (names another hash), 'slow' (waits `seconds` before the body), 'trickle'
            (the same after half of it), 'redirect' (elsewhere, to a page of HTML), 'garbage' (a page of HTML).
        times: Requests to spoil, None for all.
        status: HTTP status of 'status'.
        code: X-Error-Code of 'status'.
        message: X-Error-Message of 'status'.
        headers: Further headers of 'status'.
        seconds: Of 'slow' and 'trickle'.
        after: Requests that match and are left alone before the first that is spoiled.
    """
    where: str
    kind: str = 'status'
    times: Optional[int] = None
    status: int = 500
    code: str = ''
    message: str = ''
    headers: Dict[str, str] = field(default_factory=dict)
    seconds: float = 120.
    after: int = 0
    hits: int = 0

    def applies(self, request: str) -> bool:
        if not re.search(self.where, request) or self.times is not None and self.hits >= self.times + self.after:
            return False
        self.hits += 1
        return self.hits > self.after


@dataclass
class File:
    """A file of a commit: `blob` names its bytes (SHA-256), `oid` is git's."""
    blob: str
    oid: str
    size: int
    is_lfs: bool

    @property
    def etag(self) -> str:
        return self.blob if self.is_lfs else self.oid


class Repo:
    """Commits, branches and tags of a model."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: Dict[str, Dict[str, File]] = {}
        self.messages: Dict[str, str] = {}
        self.branches: Dict[str, str] = {}
        self.tags: Dict[str, str] = {}
        self.commit({}, 'main', 'initial commit')

    def commit(self, files: Dict[str, File], branch: str, message: str) -> str:
        content = [sorted((path, f.blob) for path, f in files.items()), branch, message, len(self.commits)]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def resolve(self, revision: str) -> Optional[str]:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None

    def files(self, revision: str = 'main') -> Dict[str, File]:
        return self.commits[self.resolve(revision)]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
