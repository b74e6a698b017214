"""A small builder for mixed-integer programmes, solved by HiGHS: single-threaded, seeded, bounded in time."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import highspy
import numpy as np

INFINITY = math.inf
K = TypeVar("K", bound=Hashable)


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

    def row(self, terms: Sequence[tuple[int, float]], *, lower: float = -INFINITY, upper: float = INFINITY) -> int:
        """Add `lower <= sum(coefficient * column) <= upper`; returns its index."""
        self._index += [column for column, coefficient in terms if coefficient]
        self._value += [coefficient for _, coefficient in terms if coefficient]
        self._starts.append(len(self._index))
        self._row_lower.append(lower)
        self._row_upper.append(upper)
        return len(self._row_lower) - 1

    def near(self, column: int, value: float, *, cost: float) -> None:
        """Add what each unit costs that a variable is away from a value."""
        away = self.column(cost=cost)
        self.row([(column, 1.0), (away, -1.0)], upper=value)
        self.row([(column, 1.0), (away, 1.0)], lower=value)

    def solve(self, *, time_limit_seconds: float, relative_gap: float) -> "Outcome":
        """Solve. An outcome without values says why there are none."""
        return Warm(self, time_limit_seconds=time_limit_seconds, relative_gap=relative_gap, presolve=True).solve()

    def lp(self) -> highspy.HighsLp:
        """The model as HiGHS takes it."""
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
        return lp


class Warm:
    """One model, passed once and solved again and again while bounds move: a linear one goes on from its last basis.

    Args:
        model: as it stands; what is added to it later does not count.
        time_limit_seconds: for all solutions together. relative_gap: of integer programmes.
        presolve: pays for one solution from nothing, and for none that has a basis.
    """

    def __init__(
        self, model: Model, *, time_limit_seconds: float, relative_gap: float = 0.0, presolve: bool = False
    ) -> None:
        # The plain binding: the wrapper `highspy.Highs` prints a banner before it can be told not to.
        self._solver = highspy._core._Highs()  # noqa: SLF001 - see above
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            # The solver's clock counts all its runs.
            ("time_limit", time_limit_seconds),
            ("mip_rel_gap", relative_gap),
            ("presolve", "choose" if presolve else "off"),
            # Costs more to take out again than it spares programmes that are solved from the last one's basis.
            ("dual_simplex_cost_perturbation_multiplier", 1.0 if presolve else 0.0),
            # Takes five milliseconds of programmes that take one, and finds nothing that they do not.
            ("mip_heuristic_run_feasibility_jump", False),
        ):
            self._solver.setOptionValue(option, value)
        self._solver.passModel(model.lp())

    def bound(self, columns: Sequence[int], lower: Sequence[float], upper: Sequence[float]) -> None:
        """Other bounds for some columns."""
        self._solver.changeColsBounds(
            len(columns),
            np.asarray(columns, dtype=np.int32),
            np.asarray(lower, dtype=np.float64),
            np.asarray(upper, dtype=np.float64),
        )

    def solve(self, *, below: float = INFINITY) -> "Outcome":
        """Solve; a linear programme only where its objective is below a value: beyond, the outcome has no values."""
        self._solver.setOptionValue("objective_bound", below)
        self._solver.run()
        status = self._solver.getModelStatus()
        text = str(self._solver.modelStatusToString(status))
        info = self._solver.getInfo()
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Outcome(values=None, status=text, objective=math.nan)
        found = self._solver.getSolution()
        return Outcome(
            values=tuple(found.col_value),
            status=text,
            objective=float(info.objective_function_value),
            reduced=tuple(found.col_dual),
            rows=tuple(found.row_value),
            duals=tuple(found.row_dual),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver found.

    Attributes:
        values: one per column; None when there is no feasible point (or none was found in time).
        status: the solver's word for it: `Optimal`, `Time limit reached`, `Infeasible`, ...
        objective: value of the objective.
        reduced: of a linear programme, one per column: what one more of it would add to the objective, at least.
        rows: one per row: its value.
        duals: of a linear programme, one per row: what the objective gains by one more of the bound that holds it.
    """

    values: tuple[float, ...] | None
    status: str
    objective: float
    reduced: tuple[float, ...] = ()
    rows: tuple[float, ...] = ()
    duals: tuple[float, ...] = ()


def shares(columns: Mapping[K, Mapping[str, int]], values: tuple[float, ...]) -> dict[K, dict[str, float]]:
    """Of groups of columns that are parts of one: clean parts, none below zero, none that is noise."""
    found: dict[K, dict[str, float]] = {}
    for key, group in columns.items():
        mix = {name: max(0.0, values[column]) for name, column in group.items()}
        total = sum(mix.values())
        found[key] = {name: share / total if share > 1e-7 else 0.0 for name, share in mix.items()}
    return found
