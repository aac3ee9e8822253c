"""What an answer costs, counted exactly."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Cost of one prompt's answer so far."""

    student_tokens: int = 0
    """Tokens that the student generated: those of every sample, and one for the end of each that ended by itself (end
    token or stop string). Where samples are given choices: those of every choice each time it is drawn or scored."""
    teacher_tokens: int = 0
    """Tokens that the teacher read or generated."""
    seconds: float = 0.0
    """Wall clock of the batch divided by its prompts: they run side by side."""

    def plus(self, other: "Cost") -> "Cost":
        """Returns the sum, part by part."""
        return Cost(
            self.student_tokens + other.student_tokens,
            self.teacher_tokens + other.teacher_tokens,
            self.seconds + other.seconds,
        )
