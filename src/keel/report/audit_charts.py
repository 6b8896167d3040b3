"""The charts of a data audit: how strong the labels are, what strength says about them, how far the voters agree."""

from keel.report.folder import RunFolder, column, part, rows
from keel.report.plots import Bar, Plot, Series, bar_plot, point_plot
from keel.report.words import brief, finite, number, share, times

__all__ = ["charts", "tenths"]


def charts(run: RunFolder) -> list[Plot]:
    """Whatever can be drawn of audit.json."""
    found = [_histogram(run), _by_quantile(run), *_spread(run), _votes(run)]
    return [plot for plot in found if plot is not None]


def _histogram(run: RunFolder) -> Plot | None:
    """How strong the labels are; shaded where a simulation knows them to be wrong."""
    told = part(run.audit, "histogram")
    edges, counts, wrong = (column(told, key) for key in ("edges", "counts", "wrong"))
    if len(edges) != len(counts) + 1 or not counts:
        return None
    bars = []
    for kind, heights in (("", counts), ("wrong", wrong)):
        for left, right, height in zip(edges, edges[1:], heights, strict=False):
            own = kind or ("lose" if (left + right) / 2 < 0 else "win")
            said = "wrong labels" if kind else "pairs"
            bars.append(Bar(own, left, right, height, f"{number(left)} to {number(right)}: {number(height)} {said}"))
    against = finite(part(run.audit, "all").get("against")) or 0.0
    words = (f"Strength is the mean over the voters of chosen score less rejected score. Below 0 they side against the "
             f"label: {share(against)} of the pairs.")
    if wrong:
        words += " Shaded: labels that the simulation knows to be wrong."
    beyond = sum(finite(told.get(key)) or 0 for key in ("n_below", "n_above"))
    if beyond:
        words += f" {times(int(beyond), 'pair')} further out are in the last bars."
    return bar_plot("Strength of the labels", words, "mean strength, score units; height in pairs", bars)


def _by_quantile(run: RunFolder) -> Plot | None:
    """How many labels are right, by all who have a say."""
    groups = rows(run.audit, "quantiles")
    known = {"votes for the label": "votes_for", "the judge agrees": "judge_agrees", "really right": "right"}
    columns = {name: [finite(row.get(key)) for row in groups] for name, key in known.items()}
    series = [Series(name, values) for name, values in columns.items() if any(y is not None for y in values)]
    if not series:
        return None
    truth, judge = columns["really right"], columns["the judge agrees"]
    who = ("right", truth) if any(y is not None for y in truth) else ("right by the judge", judge)
    ends = [y for y in who[1] if y is not None]
    words = "Share of the voters that are for the label, from the weakest to the strongest pairs."
    if len(ends) > 1:
        words = (f"Of the weakest labels {share(ends[0])} are {who[0]}, of the strongest {share(ends[-1])}. "
                 + ("Where the curve rises, strength tells right from wrong." if ends[-1] > ends[0] else
                    "Strength does not tell right from wrong here."))
    return point_plot("Labels by strength", words, f"{tenths(len(groups))}, weakest first",
                      [str(i + 1) for i in range(len(groups))], series, shares=True)


def _spread(run: RunFolder) -> list[Plot]:
    """Mean and spread of groups of equal size: in the paper the spread is lowest just where the mean crosses 0."""
    groups = [row for row in rows(run.audit, "spread") if finite(row.get("mean")) is not None
            and finite(row.get("std")) is not None]
    if len(groups) < 3 or run.audit.get("n_votes") == 1:
        return []
    means, stds = ([float(row[key]) for row in groups] for key in ("mean", "std"))
    names, axis = [str(i + 1) for i in range(len(groups))], f"{tenths(len(groups))} of the pairs, weakest first"
    least = stds.index(min(stds))
    shape = (f"The voters differ least in group {least + 1} (spread {brief(stds[least])}, mean strength "
             f"{brief(means[least])}), more in the weakest ({brief(stds[0])}) and in the strongest ({brief(stds[-1])})."
             if 0 < least < len(stds) - 1 else
             f"The spread goes from {brief(stds[0])} in the weakest group to {brief(stds[-1])} in the strongest.")
    return [point_plot("Mean strength", "Mean of each group; whiskers: the spread of the voters.", axis, names,
                       [Series("mean strength", means, stds)]),
            point_plot("Spread of the voters", shape, axis, names, [Series("spread", stds)])]


def _votes(run: RunFolder) -> Plot | None:
    """How many voters are for a label."""
    told = part(run.audit, "voters")
    split = column(told, "split")
    if len(split) < 3:
        return None
    last = len(split) - 1
    bars = [Bar("lose" if 2 * k < last else "win" if 2 * k > last else "tie", k - 0.42, k + 0.42, 100 * height,
                f"{k} of {last} voters for the label: {share(height)} of the pairs") for k, height in enumerate(split)]
    alike, all_of_them, kappa = (finite(told.get(key)) for key in ("pairwise", "unanimous", "fleiss"))
    words = (f"Two voters agree on {share(alike or 0)} of the pairs, all of them on {share(all_of_them or 0)}; their "
             f"differences of scores correlate at {number(told.get('correlation'), 2)}. Beyond chance they agree at "
             f"kappa {number(kappa, 2)} (Fleiss; 0 is chance, 1 is always).")
    return bar_plot("Votes", words, "voters for the label; height in per cent of the pairs", bars,
                    [(k, str(k)) for k in range(last + 1)])


def tenths(n: int) -> str:
    """The name of n equal parts."""
    return {4: "quarters", 5: "fifths", 10: "tenths", 20: "twentieths"}.get(n, f"{n} equal parts")
