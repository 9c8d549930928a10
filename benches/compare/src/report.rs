//! What a row has found: its lines, how it stands to its goals, what is to be plotted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// From this share of the machine on, what others did meanwhile decides the figures.
const DISTURBED: f64 = 0.1;

/// A row of the comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) columns: Vec<String>,
    /// The columns that are printed.
    pub(crate) shown: Vec<usize>,
    pub(crate) rounds: usize,
    pub(crate) lines: Vec<Line>,
    /// Contenders that did not take part, and why.
    pub(crate) skipped: Vec<(String, String)>,
    pub(crate) checks: Vec<Check>,
    pub(crate) plot: Option<Plot>,
    /// How much of the machine others used meanwhile, from 0 to 1.
    pub(crate) others: f64,
    /// What a cache line took to the other core and back before the row and after it, in ns. On a virtual machine it is several times
    /// as much while the cores share no cache.
    pub(crate) line_ns: [f64; 2],
    /// Why there is nothing in it.
    pub(crate) failure: Option<String>,
}

/// A contender: the medians of its figures, and the range of the first printed one over the rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) figures: Vec<f64>,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// How its two sides wait for each other, if that is what the row is about.
    pub(crate) waits: Option<Waits>,
}

/// What a side does until the other one has something for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Waits {
    /// Both look, and never sleep.
    Spinning,
    /// Both, or one of them, sleep at once.
    Sleeping,
    /// Both look for a while, then sleep.
    SpinThenSleep,
}

/// A figure or a ratio beside its goal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// The same from the lowest round of each. Where a contender has two modes, as whoever sleeps has on a machine that
    /// is not quiet, this compares the better ones.
    pub(crate) lowest: Option<f64>,
    pub(crate) unit: String,
    pub(crate) goal: Goal,
    /// The same kind of limit as the goal, further away.
    pub(crate) stretch: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
    /// For information.
    None,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plot {
    pub(crate) file: String,
    pub(crate) x: Axis,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Axis {
    Count,
    Bytes,
    /// Quantiles, evenly spaced by their nines.
    Nines,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Report {
    /// Whether others used so much of the machine meanwhile that the figures say little.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.others > DISTURBED
    }

    pub(crate) fn skip(&mut self, name: &str, why: impl Into<String>) {
        self.skipped.push((name.to_owned(), why.into()));
    }
}

/// How a figure stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// The median says one thing, the lowest rounds the other: somebody has two modes, and the machine decided.
    Unsure,
}

impl Check {
    /// What is hoped for beyond the goal.
    pub(crate) fn stretch(self, limit: f64) -> Self {
        Self { stretch: Some(limit), ..self }
    }

    /// `None` if it has no goal.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict_on(self.goal)
    }

    /// Whether it has reached what is beyond its goal, by the median and by the lowest rounds.
    pub(crate) fn is_stretched(&self) -> bool {
        let stretch = self.stretch.map(|limit| self.goal.with_limit(limit));
        stretch.is_some_and(|stretch| self.verdict_on(stretch) == Some(Verdict::Met))
    }

    fn verdict_on(&self, goal: Goal) -> Option<Verdict> {
        let meets = |value: f64| match goal {
            Goal::AtMost(limit) => Some(value <= limit),
            Goal::Below(limit) => Some(value < limit),
            Goal::AtLeast(limit) => Some(value >= limit),
            Goal::None => None,
        };
        let by_median = meets(self.value)?;
        let by_lowest = self.lowest.and_then(meets).unwrap_or(by_median);
        Some(match (by_median, by_lowest) {
            (true, true) => Verdict::Met,
            (false, false) => Verdict::Missed,
            _ => Verdict::Unsure,
        })
    }
}

impl Goal {
    fn with_limit(self, limit: f64) -> Self {
        match self {
            Self::AtMost(_) => Self::AtMost(limit),
            Self::AtLeast(_) => Self::AtLeast(limit),
            Self::Below(_) => Self::Below(limit),
            Self::None => Self::None,
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spinning => "spinning",
            Self::Sleeping => "sleeping",
            Self::SpinThenSleep => "spin, sleep",
        })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::None => f.write_str("–"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {}: {}", self.name, self.title)?;
        if let Some(failure) = &self.failure {
            return writeln!(f, "FAILED: {failure}");
        }
        write!(f, "{:<48}", format!("{}, medians of {} rounds", self.unit, self.rounds))?;
        self.shown.iter().try_for_each(|&at| write!(f, "{:>14}", self.columns[at]))?;
        let waits = self.lines.iter().any(|line| line.waits.is_some());
        writeln!(f, "{:>20}{}", "lowest…highest", if waits { "   waits" } else { "" })?;
        for line in &self.lines {
            write!(f, "{:<48}", line.name)?;
            self.shown.iter().try_for_each(|&at| write!(f, "{:>14}", short(line.figures[at])))?;
            write!(f, "{:>20}", format!("{}…{}", short(line.lowest), short(line.highest)))?;
            line.waits.iter().try_for_each(|waits| write!(f, "   {waits}"))?;
            writeln!(f)?;
        }
        for (name, why) in &self.skipped {
            writeln!(f, "{name:<48}     SKIPPED: {why}")?;
        }
        for check in &self.checks {
            let verdict = match check.verdict() {
                Some(Verdict::Met) if check.is_stretched() => "met, stretch too",
                Some(Verdict::Met) => "met",
                Some(Verdict::Missed) => "MISSED",
                Some(Verdict::Unsure) => "unsure",
                None => "",
            };
            let value = format!("{} {}", short(check.value), check.unit);
            let lowest = check.lowest.map(|lowest| format!("(lowest rounds: {})", short(lowest)));
            let stretch = check.stretch.map_or(String::new(), |limit| format!(" (stretch {limit})"));
            writeln!(
                f,
                "  {:<62}{value:>12}  goal {:<22}{verdict:<18}{}",
                check.what,
                format!("{}{stretch}", check.goal),
                lowest.unwrap_or_default()
            )?;
        }
        let disturbed = if self.is_disturbed() { ": DISTURBED, measure again" } else { "" };
        let [before, after] = self.line_ns.map(short);
        writeln!(
            f,
            "  others used {:.0} % of the machine meanwhile{disturbed}; a line took {before} ns there and back before, {after} after",
            self.others * 100.0
        )
    }
}

/// Three digits that count.
pub(crate) fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 0.1 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    }
}
