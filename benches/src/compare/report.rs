//! Figures to lines of a table. Pure.
//!
//! Neighbours: rows make [`Line`]s, the comparison prints them.

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What is measured.
    pub what: String,
    /// Of the bare loop, or of what is compared with.
    pub base: Option<f64>,
    /// Of the worker.
    pub worker: f64,
    /// The median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// What is to be reached.
    pub goal: Goal,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The ratio, at least.
    RatioAtLeast(f64),
    /// The ratio, at most.
    RatioAtMost(f64),
    /// The worker's figure, at most.
    AtMost(f64),
    /// Only shown.
    Shown,
}

impl Line {
    /// From the figures of the rounds, in pairs.
    pub fn duel(what: impl Into<String>, base: &[f64], worker: &[f64], goal: Goal) -> Self {
        let ratios: Vec<f64> = worker
            .iter()
            .zip(base)
            .map(|(worker, base)| worker / base)
            .collect();
        Self {
            what: what.into(),
            base: Some(median(base)),
            worker: median(worker),
            ratio: Some(median(&ratios)),
            goal,
        }
    }

    /// From figures of the worker alone.
    pub fn alone(what: impl Into<String>, worker: &[f64], goal: Goal) -> Self {
        Self {
            what: what.into(),
            base: None,
            worker: median(worker),
            ratio: None,
            goal,
        }
    }

    /// Whether it is reached; none where nothing is to be.
    pub fn reached(&self) -> Option<bool> {
        let ratio = self.ratio.unwrap_or(f64::NAN);
        match self.goal {
            Goal::RatioAtLeast(least) => Some(ratio >= least),
            Goal::RatioAtMost(most) => Some(ratio <= most),
            Goal::AtMost(most) => Some(self.worker <= most),
            Goal::Shown => None,
        }
    }

    /// Its cells.
    fn cells(&self) -> [String; 6] {
        let goal = match self.goal {
            Goal::RatioAtLeast(least) => format!("≥ {least:.2} ×"),
            Goal::RatioAtMost(most) => format!("≤ {most:.2} ×"),
            Goal::AtMost(most) => format!("≤ {}", figure(most)),
            Goal::Shown => String::new(),
        };
        let reached = match self.reached() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        [
            self.what.clone(),
            self.base.map_or_else(String::new, figure),
            figure(self.worker),
            self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            goal,
            reached.to_owned(),
        ]
    }
}

/// The table, for a terminal or as Markdown.
pub fn table(lines: &[Line], markdown: bool) -> String {
    let head = ["", "bare loop", "worker", "ratio", "goal", "reached"].map(str::to_owned);
    let rows: Vec<[String; 6]> = [head].into_iter().chain(lines.iter().map(Line::cells)).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let cells: Vec<String> = cells.collect();
        let line = cells.join(if markdown { " | " } else { "  " });
        text += &if markdown {
            format!("| {line} |\n")
        } else {
            format!("{}\n", line.trim_end())
        };
        if markdown && number == 0 {
            text += "|---|---:|---:|---:|---|---|\n";
        }
    }
    text
}

/// With as many digits as tell something.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The middle one; of two, their mean; not a number of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let line = Line::duel(
            "x",
            &[100.0, 10.0, 1000.0],
            &[90.0, 9.0, 500.0],
            Goal::RatioAtLeast(0.9),
        );
        assert_eq!(
            (line.base, line.worker, line.ratio),
            (Some(100.0), 90.0, Some(0.9))
        );
        assert_eq!(line.reached(), Some(true));
    }

    #[test]
    fn what_was_not_measured_is_not_reached() {
        let line = Line::duel("x", &[], &[], Goal::RatioAtMost(2.0));
        assert_eq!(line.reached(), Some(false));
        assert_eq!(
            Line::alone("x", &[1.0, 3.0], Goal::AtMost(2.0)).reached(),
            Some(true)
        );
    }

    #[test]
    fn a_table_of_markdown_has_a_rule_below_its_head() {
        let lines = [Line::alone("idle, MB", &[12.34], Goal::AtMost(20.0))];
        let text = table(&lines, true);
        assert_eq!(text.lines().nth(1), Some("|---|---:|---:|---:|---|---|"));
        assert!(
            text.contains("| idle, MB |") && text.contains("12.3") && text.contains("yes"),
            "{text}"
        );
    }
}
