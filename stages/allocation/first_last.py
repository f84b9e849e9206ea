"""16-bit activations in the first and the last n steps, few bits between. No search: the recipe says n and the bits."""

from __future__ import annotations

from adatsq_pipe.stages.allocation.step_rows import write_policy
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY


def ends_within(budget: float, steps: int, bits: int) -> int:
    """The most steps n at either end that may have 16 bits while the mean over `steps` steps, `bits` between, is at
    most `budget`; 0 if it pays for none."""
    return max(0, int((budget - bits) * steps / (2 * (WEIGHT_ONLY - bits)) + 1e-9)) if bits < WEIGHT_ONLY else 0


def bits_by_step(steps: int, ends: int, bits: int) -> list[int]:
    """Bits of every step."""
    return [bits if ends <= step < steps - ends else WEIGHT_ONLY for step in range(steps)]


def allocate(context: Context) -> None:
    """Commit the policy as the stage's `front`.

    Raises StageError if the budget pays for no 16-bit step, or the ends leave no step between them.
    """
    recipe, survey = context.settings[Recipe], survey_of(context)
    steps, bits, ends = survey.steps, recipe.activation_bits, recipe.end_steps
    if not ends:
        budget = context.settings[SearchSettings].budget
        ends = ends_within(budget, steps, bits)
        if not ends:
            raise StageError(
                f"a budget of {budget:g} mean bits pays for no 16-bit step at either end of {steps} steps with {bits} "
                f"bits between: one needs {bits + 2 * (WEIGHT_ONLY - bits) / steps:.3g}; raise search.budget, or lower "
                "recipe.activation_bits"
            )
    if 2 * ends >= steps:
        raise StageError(
            f"recipe.end_steps is {ends}, and of {steps} steps that leaves none with rounded activations; at most "
            f"{(steps - 1) // 2} steps at either end do"
        )
    if not context.manifest("search").done("front"):
        write_policy(context, survey, bits_by_step(steps, ends, bits), None)
