"""What can go wrong, in the domain's words.

Every message names what was asked for and what exists. Which HTTP status an error gets is decided
in one table, `api/problems.py`.
"""

from __future__ import annotations


class TweenError(Exception):
    """The root of everything that Tween refuses; `str(error)` is a sentence for the person who asked."""


class BadBank(TweenError):
    """Base and variants cannot be loaded or do not fit together; raised at start-up only."""


class BadRecipe(TweenError):
    """A recipe that cannot be read, or names a t, method or parameter that does not exist."""


class UnknownVariant(TweenError):
    """A recipe names a variant that is not in the bank."""


class UnknownBlend(TweenError):
    """A key that no tier holds."""


class BlendNotPublished(TweenError):
    """A blend that lies in no tier, asked of a pod that has no members to build it from."""


class MemberBlend(TweenError):
    """A member's own weights are to be deleted; they stay as long as the bank does."""


class UnknownAlias(TweenError):
    """A recipe or a call names an alias that does not exist."""


class BadAlias(TweenError):
    """A name that no alias can have."""


class AliasConflict(TweenError):
    """An alias is not in the state that the caller believes: at another version, or with nothing to go back to."""


class UnknownExperiment(TweenError):
    """A recipe or a call names an experiment, or an arm of one, that does not exist."""


class BadExperiment(TweenError):
    """An experiment that cannot be, such as one whose arms cannot be made."""


class ExperimentConflict(TweenError):
    """An experiment is not in the state that a change starts from, or not at the version that the caller believes."""


class BadUnit(TweenError):
    """What can be nobody's name: empty, too long or no Unicode."""


class UnknownSegments(TweenError):
    """An automatic t is asked for where none was fitted."""


class BadSegments(TweenError):
    """A table of segments that cannot be read, or belongs to another variant."""


class SegmentsConflict(TweenError):
    """A live table of segments is not at the version that the caller believes, or is needed as it is."""


class BadPrecondition(TweenError):
    """A precondition of a change that cannot be read, or two that no document can meet together."""


class PreconditionFailed(TweenError):
    """`If-Match` or `If-None-Match` does not hold."""


class RedisUnavailable(TweenError):
    """What every pod must learn at once cannot be told now, because Redis does not answer or refuses to write."""

    retry_after = 2


class SpoolFull(TweenError):
    """An event cannot be written down here now, so it is not accepted: too many wait already, or the disk refuses."""

    retry_after = 5


class UnknownMetric(TweenError):
    """An outcome names a metric that its experiment does not have."""


class BadTexts(TweenError):
    """Texts that cannot be classified: none, empty ones, or too many."""


class Overloaded(TweenError):
    """The queue is full; the caller may try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WorkerLost(TweenError):
    """Processes that computed a batch died of it; the caller may try again."""

    retry_after = 2


class PassFailed(TweenError):
    """The model fails on a text, alone, and not on others with the same weights; `row` is its number among those that
    it came with."""

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.row = row


class NotFinite(TweenError):
    """A blend gives logits for a text that are not finite, which is no answer."""


class DeviceLost(TweenError):
    """The GPU's context is lost: this process can compute nothing any more, and ends."""

    retry_after = 2


class OutOfMemory(TweenError):
    """Memory does not suffice for what was to be computed, however small its parts."""


class Loading(TweenError):
    """The bank is still being loaded."""

    retry_after = 2


class Draining(TweenError):
    """The service was told to leave; it still serves, but is to be sent nothing more."""

    retry_after = 2


class BadDeadline(TweenError):
    """A deadline that is no number of seconds."""


class DeadlinePassed(TweenError):
    """The caller's deadline passed before there was an answer."""


class BadHeader(TweenError):
    """A header whose text cannot be read."""


class NoKey(TweenError):
    """A call that needs a key came without one, or with one that is not in force."""


class Forbidden(TweenError):
    """A key that is in force, but not for this call."""


class UnknownHost(TweenError):
    """A call to a service without keys by a name that is not the service's."""


class CrossOrigin(TweenError):
    """A page of another origin asks a service without keys for a change."""


class LimitReached(TweenError):
    """A name has called as often as it may; `headers` tell what it may."""

    def __init__(self, message: str, retry_after: int, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers


class BodyTooLarge(TweenError):
    """A body above the configured limit."""


class WrongContentType(TweenError):
    """A body that does not say that it is JSON."""


class SimulationFailed(TweenError):
    """A service that refuses what a simulated customer asks, or does not answer for long."""


class BadSettings(TweenError):
    """A setting that does not exist or has an impossible value; raised at start-up only."""


class UnknownSweep(TweenError):
    """A sweep that nobody knows of, or that was forgotten."""


class NotDone(TweenError):
    """A report is asked for that there is not, or not yet."""


class BadData(TweenError):
    """Labelled texts that cannot be read or judged; the message names the line and what would do."""
