"""`python -m benchmarks.stopping`: what stopping rules keep of the gain of a curve, and when they end a flat one."""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from app.goals.rules.stopping import StoppingPolicy, StoppingRule, Unit
from benchmarks.curves import (
    SYNTHETIC,
    Curve,
    flat,
    gain_share,
    published,
    stop_iteration,
    synthetic,
    with_glitch,
    with_noise,
)

_PLAIN = StoppingPolicy(noise_share=0.0, climb_errors=None)
_SHARE = StoppingPolicy(unit=Unit.RELATIVE, threshold=0.001)
_HIGHEST = StoppingPolicy(threshold=0.1)
RULES: Mapping[str, StoppingPolicy] = {
    "the default: 0.01, patience 10": StoppingPolicy(),
    "the same without its refinements": _PLAIN,
    "the default at 0.001": StoppingPolicy(threshold=0.001),
    "the default at 0.05 (35 Elo)": StoppingPolicy(threshold=0.05),
    "the default at 0.1 (70 Elo)": _HIGHEST,
    "relative 0.001, patience 10": _SHARE,
    "the same without its refinements ": replace(_PLAIN, unit=Unit.RELATIVE, threshold=0.001),
    "relative 0.001, patience 1": replace(_SHARE, patience=1),
    "relative 0.001, patience 3": replace(_SHARE, patience=3),
    "relative 0.001, patience 5": replace(_SHARE, patience=5),
    "relative 0.001, patience 8": replace(_SHARE, patience=8),
    "relative 0.001, slope over 10": replace(_SHARE, rule=StoppingRule.SLOPE),
    "0.001, slope over 10": StoppingPolicy(threshold=0.001, rule=StoppingRule.SLOPE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Shares of the gain that were kept, on average; and the iterations at which a flat curve stopped."""

    rule: str
    noise: float
    shares: Mapping[str, float]
    flat_mean: float
    flat_p95: float


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="seeds per curve, rule and noise")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 8.0, 25.0], help="standard deviations in Elo")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    rows = list(measure(options.noise, options.runs))
    if options.output == "json":
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        sys.stdout.write(_table(rows))


def measure(noises: Sequence[float], runs: int) -> Iterator[Row]:
    """Every rule at every noise; the same seeds for all."""
    curves: Mapping[str, Curve] = {
        "published, best": published("best_elo"),
        "published, top 10": published("top10_elo"),
        **{name: synthetic(name) for name in SYNTHETIC},
    }
    for name, policy in RULES.items():
        for noise in noises:
            seeds = range(runs if noise else 1)
            shares = {
                curve: statistics.mean(
                    gain_share(values, stop_iteration(with_noise(values, noise, seed), policy)) for seed in seeds
                )
                for curve, values in curves.items()
            }
            straight = curves["straight"]
            shares["straight, glitch"] = statistics.mean(
                gain_share(straight, stop_iteration(with_glitch(with_noise(straight, noise, seed)), policy))
                for seed in seeds
            )
            stops = sorted(stop_iteration(with_noise(flat(), noise, seed), policy) for seed in seeds)
            late = float(stops[int(0.95 * (len(stops) - 1))])
            yield Row(rule=name.strip(), noise=noise, shares=shares, flat_mean=statistics.mean(stops), flat_p95=late)


def _table(rows: Sequence[Row]) -> str:
    names = [*rows[0].shares, "flat: mean", "95 %"]
    lines = [f"{'share of the gain kept, %':34}{'noise':>6}" + "".join(f"{name:>18}" for name in names)]
    for row in rows:
        shares = "".join(f"{100 * share:18.1f}" for share in row.shares.values())
        lines.append(f"{row.rule:34}{row.noise:6g}{shares}{row.flat_mean:18.1f}{row.flat_p95:18.0f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
