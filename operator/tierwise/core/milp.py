"""A small builder for mixed-integer programmes, solved by HiGHS: single-threaded, seeded, bounded in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import highspy

INFINITY = math.inf


class Model:
    """Columns and rows of `minimise c x  subject to  lower <= A x <= upper`, added in order."""

    def __init__(self) -> None:
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._integer: list[bool] = []
        self._row_lower: list[float] = []
        self._row_upper: list[float] = []
        self._starts: list[int] = [0]
        self._index: list[int] = []
        self._value: list[float] = []

    def column(self, *, cost: float, lower: float = 0.0, upper: float = INFINITY, integer: bool = False) -> int:
        """Add a variable; returns its index."""
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    def row(self, terms: Sequence[tuple[int, float]], *, lower: float = -INFINITY, upper: float = INFINITY) -> None:
        """Add `lower <= sum(coefficient * column) <= upper`."""
        for column, coefficient in terms:
            if coefficient:
                self._index.append(column)
                self._value.append(coefficient)
        self._starts.append(len(self._index))
        self._row_lower.append(lower)
        self._row_upper.append(upper)

    def solve(self, *, time_limit_seconds: float, relative_gap: float) -> "Outcome":
        """Solve. An outcome without values says why there are none."""
        lp = highspy.HighsLp()
        lp.num_col_ = len(self._cost)
        lp.num_row_ = len(self._row_lower)
        lp.col_cost_ = self._cost
        lp.col_lower_ = self._lower
        lp.col_upper_ = self._upper
        lp.row_lower_ = self._row_lower
        lp.row_upper_ = self._row_upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = self._starts
        lp.a_matrix_.index_ = self._index
        lp.a_matrix_.value_ = self._value
        if any(self._integer):
            whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
            lp.integrality_ = [whole if integer else real for integer in self._integer]
        # The plain binding: the wrapper `highspy.Highs` prints a banner before it can be told not to.
        solver = highspy._core._Highs()  # noqa: SLF001 - see above
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            ("time_limit", time_limit_seconds),
            ("mip_rel_gap", relative_gap),
        ):
            solver.setOptionValue(option, value)
        solver.passModel(lp)
        solver.run()
        status = solver.getModelStatus()
        text = str(solver.modelStatusToString(status))
        usable = solver.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if not usable:
            return Outcome(values=None, status=text, objective=math.nan)
        return Outcome(
            values=tuple(float(value) for value in solver.getSolution().col_value),
            status=text,
            objective=float(solver.getInfo().objective_function_value),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver found.

    Attributes:
        values: one per column; None when there is no feasible point (or none was found in time).
        status: the solver's word for it: `Optimal`, `Time limit reached`, `Infeasible`, ...
        objective: value of the objective.
    """

    values: tuple[float, ...] | None
    status: str
    objective: float
