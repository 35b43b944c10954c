"""Keys of callers: who is it, and what may he do.

A key is 256 random bits, so a plain SHA-256 of it is enough to keep; the file holds hashes and no key. Several
entries may have one name, so that a new key is handed out before the old one is taken away. The file is looked at
again while requests come, at most once a second; a Secret that Kubernetes replaces is seen. A new version that cannot
be read is told in the log, and the old one stays in force.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from app.api.auth.roles import Role
from app.errors import BadSettings

log = logging.getLogger(__name__)

PREFIX = "tween_"
LOOK_SECONDS = 1.0
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ApiKey(BaseModel, frozen=True, extra="forbid"):
    """An entry of the file. Limits are shared by all keys of a name."""

    name: str = Field(pattern=NAME)
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires: AwareDatetime | None = None
    per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    per_day: int | None = Field(default=None, gt=0)

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= self.expires


class KeyFile(BaseModel, frozen=True, extra="forbid"):
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True)
class _Version:
    """What tells one version of a file from another; a Secret's files are links that are put in another's place."""

    inode: int
    changed: int
    size: int

    @classmethod
    def of(cls, path: Path) -> _Version:
        stat = path.stat()
        return cls(stat.st_ino, stat.st_mtime_ns, stat.st_size)


class ApiKeys:
    """The keys in force."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `BadSettings` if the file cannot be read now."""
        self._path = path
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._looked = clock()
        try:
            self._version: _Version | None = _Version.of(path)
            self._keys = read(path)
        except (OSError, ValueError) as error:
            raise BadSettings(f"TWEEN_API_KEYS: {complaint(error)}") from None

    def find(self, given: str) -> ApiKey | None:
        """The entry of a key; None if there is none, or none any more."""
        self._look_again()
        digest = sha256(given.encode("utf-8", "surrogateescape")).hexdigest()
        # The look-up goes by the hash, whose first differing byte tells nothing about the key.
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest) or key.has_expired:
            return None
        return key

    def _look_again(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            version = _Version.of(self._path)
            if version == self._version:
                return
            self._version = version
            self._keys = read(self._path)
        except (OSError, ValueError) as error:
            log.error("the keys stay as they were: %s", complaint(error))
        else:
            log.info("%d keys are in force now", len(self._keys))


def read(path: Path) -> dict[str, ApiKey]:
    """Entries by their hashes, from TOML or, if the name ends so, JSON; raises `OSError` or `ValueError`."""
    text = path.read_text(encoding="utf-8")
    file = KeyFile.model_validate_json(text) if path.suffix == ".json" else KeyFile.model_validate(tomllib.loads(text))
    return {key.sha256: key for key in file.keys}


def complaint(error: Exception) -> str:
    """One sentence that shows nothing of what the file holds."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, OSError):
        return f"the file cannot be read ({error.strerror})"
    return f"the file is neither TOML nor, with a name that ends in .json, JSON ({type(error).__name__})"


def new_key(name: str, role: Role) -> tuple[str, str]:
    """A fresh key, and the lines for the file; raises `BadSettings` for a name that no key can have."""
    key = PREFIX + secrets.token_urlsafe(32)
    digest = sha256(key.encode()).hexdigest()
    try:
        ApiKey(name=name, role=role, sha256=digest)
    except ValidationError:
        raise BadSettings(f"{name[:80]!r} is no name for a key: use letters, digits, '.', '_' and '-'") from None
    return key, f'[[keys]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{digest}"\n'
