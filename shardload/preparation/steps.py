"""A step makes of one sample none, one or several; steps follow one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Values = dict[str, Any]
"""One sample: field name -> value."""


class StepError(Exception):
    """A step can make nothing of a sample; the text says why, and which step it was."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What stands in the place of a sample that a step could make nothing of."""

    reason: str


Result = list[Values | Refusal]
"""What becomes of one sample; nothing where it was dropped."""


class Step(Protocol):
    """A pure function of a sample. Small and picklable, so that it can be sent to any process."""

    @property
    def label(self) -> str:
        """What the user called it, such as `map clean:tidy`."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of what decides its results beside itself, by name."""
        ...

    def __call__(self, values: Values) -> list[Values]:
        """Returns what becomes of a sample: an empty list drops it.

        Raises:
            StepError: it can make nothing of the sample.
        """
        ...

    def types(self, before: Mapping[str, str], location: str) -> dict[str, str] | None:
        """Returns the types of its samples from those that it is given; None where only samples can tell.

        Args:
            before: field name -> type.
            location: what the user called the source, for messages.

        Raises:
            PackError: it has no use for samples of these types.
        """
        ...


def run_steps(steps: Sequence[Step], values: Values, note: Callable[[int], None] | None = None) -> Result:
    """Returns what becomes of a sample in all steps, in order.

    Args:
        steps: the steps.
        values: the sample.
        note: called with the number of each step before it is carried out.
    """
    done: Result = [values]
    for number, step in enumerate(steps):
        if note is not None:
            note(number)
        before, done = done, []
        for one in before:
            if isinstance(one, Refusal):
                done.append(one)
                continue
            try:
                done.extend(step(one))
            except StepError as error:
                done.append(Refusal(str(error)))
        if not done:
            break
    return done
