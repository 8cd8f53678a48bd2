//! Tables of a summary that its forms have in common: what a cell costs, what failed, what was chosen. They are made once
//! here, and written as Markdown or as HTML.

use super::cell::Status;
use super::evaluations::kind_of;
use super::markdown::{amount_text, value_text};
use super::summary::{ArmSummary, Summary};
use crate::watch::progress::duration_text;

/// What the cells of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// Numbers, to the right.
    Number,
    /// Settings.
    Code,
}

/// A table: columns with their headings, and rows of as many texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Headings and kinds.
    pub columns: Vec<(String, Kind)>,
    /// The rows; the first text of each names it.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(columns: &[(&str, Kind)], rows: Vec<Vec<String>>) -> Self {
        Self { columns: columns.iter().map(|(title, kind)| ((*title).to_owned(), *kind)).collect(), rows }
    }

    /// As Markdown; `escaped` makes any text one that can stand in a cell.
    #[must_use]
    pub fn markdown(&self, escaped: fn(&str) -> String) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| escaped(title)).collect();
        let rule = |kind: &Kind| if *kind == Kind::Number { "--:" } else { "---" };
        let rules: Vec<&str> = self.columns.iter().map(|(_, kind)| rule(kind)).collect();
        let mut out = format!("| {} |\n|{}|\n", titles.join(" | "), rules.join("|"));
        for row in &self.rows {
            let cell = |(text, (_, kind)): (&String, &(String, Kind))| match kind {
                Kind::Code => format!("`{}`", escaped(text)),
                Kind::Text | Kind::Number => escaped(text),
            };
            let cells: Vec<String> = row.iter().zip(&self.columns).map(cell).collect();
            out += &format!("| {} |\n", cells.join(" | "));
        }
        out
    }

    /// As HTML; `escaped` makes any text one that can stand in an element.
    #[must_use]
    pub fn html(&self, escaped: fn(&str) -> String) -> String {
        let class = |kind: Kind| if kind == Kind::Number { " class=\"n\"" } else { "" };
        let mut out = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
        for (title, kind) in &self.columns {
            out += &format!("<th scope=\"col\"{}>{}</th>", class(*kind), escaped(title));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            out += "<tr>";
            for (number, (text, (_, kind))) in row.iter().zip(&self.columns).enumerate() {
                let text = match kind {
                    Kind::Code => format!("<code>{}</code>", escaped(text)),
                    Kind::Text | Kind::Number => escaped(text),
                };
                out += &match number {
                    0 => format!("<th scope=\"row\">{text}</th>"),
                    _ => format!("<td{}>{text}</td>", class(*kind)),
                };
            }
            out += "</tr>\n";
        }
        out + "</tbody></table></div>\n"
    }
}

/// What a cell of each arm takes.
#[must_use]
pub fn costs(summary: &Summary) -> Table {
    let row = |arm: &ArmSummary| {
        let amount = &arm.amount;
        vec![
            arm.name.clone(),
            amount.outer.to_string(),
            amount.steps.to_string(),
            amount_text(amount.images as f64),
            amount_text(amount.labels as f64),
            amount_text(amount.gflop),
            seconds_text(arm),
            states_text(arm),
        ]
    };
    let columns = [
        ("arm", Kind::Text),
        ("outer iterations", Kind::Number),
        ("level-1 steps", Kind::Number),
        ("images", Kind::Number),
        ("labels", Kind::Number),
        ("GFLOP", Kind::Number),
        ("training time", Kind::Number),
        ("cells", Kind::Text),
    ];
    Table::new(&columns, summary.arms.iter().map(row).collect())
}

/// Seconds of a cell, and with how many others it shared the machine.
#[must_use]
pub fn seconds_text(arm: &ArmSummary) -> String {
    let Some(seconds) = arm.seconds else { return "-".to_owned() };
    let shared = if arm.jobs > 1 { format!(", {} at a time", arm.jobs) } else { String::new() };
    if seconds < 60.0 { format!("{seconds:.1} s{shared}") } else { format!("{}{shared}", duration_text(seconds)) }
}

/// How many cells of an arm are how far.
#[must_use]
pub fn states_text(arm: &ArmSummary) -> String {
    let all = [Status::Finished, Status::Failed, Status::Interrupted, Status::Trained, Status::Begun, Status::Pending];
    let count = |status: Status| arm.cells.iter().filter(|cell| cell.status == status).count();
    let parts = all.into_iter().map(|status| (count(status), status)).filter(|(count, _)| *count > 0);
    parts.map(|(count, status)| format!("{count} {}", status.as_str())).collect::<Vec<_>>().join(", ")
}

/// The cells that failed; none if none did.
#[must_use]
pub fn failures(summary: &Summary) -> Option<Table> {
    let of_arm = |arm: &ArmSummary| -> Vec<Vec<String>> {
        let failed = arm.cells.iter().filter(|cell| cell.status == Status::Failed);
        failed
            .map(|cell| {
                let code = cell.exit_code.map_or("-".to_owned(), |code| code.to_string());
                let error = cell.error.clone().unwrap_or_else(|| "-".to_owned());
                vec![arm.name.clone(), cell.seed.to_string(), code, error]
            })
            .collect()
    };
    let rows: Vec<Vec<String>> = summary.arms.iter().flat_map(of_arm).collect();
    let columns = [("arm", Kind::Text), ("seed", Kind::Number), ("exit code", Kind::Number), ("error", Kind::Text)];
    (!rows.is_empty()).then(|| Table::new(&columns, rows))
}

/// The trials of all grids; none if nothing was chosen.
#[must_use]
pub fn trials(summary: &Summary) -> Option<Table> {
    let unit = kind_of(&summary.primary).map_or("1", |kind| kind.unit);
    let mut rows = Vec::new();
    for choice in &summary.tuning {
        for (number, (set, values)) in choice.trials.iter().enumerate() {
            let values: Option<Vec<f64>> = values.iter().copied().collect();
            let mean = values.map_or("failed".to_owned(), |v| value_text(v.iter().sum::<f64>() / v.len() as f64, unit));
            let chosen = if number == choice.chosen { "chosen" } else { "" };
            rows.push(vec![choice.arm.clone(), set.join(" "), mean, chosen.to_owned()]);
        }
    }
    let mean = format!("mean {}", summary.primary);
    let columns = [("arm", Kind::Text), ("trial", Kind::Code), (mean.as_str(), Kind::Number), ("chosen", Kind::Text)];
    (!rows.is_empty()).then(|| Table::new(&columns, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_hold_every_text_once() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned(), "k=<v>".to_owned()], vec![String::new(); 3]];
        let table = Table::new(&[("arm", Kind::Text), ("n", Kind::Number), ("set", Kind::Code)], rows);
        let marked = |text: &str| format!("({text})");
        assert_eq!(
            table.markdown(marked),
            "| (arm) | (n) | (set) |\n|---|--:|---|\n| (a) | (1) | `(k=<v>)` |\n| () | () | `()` |\n"
        );
        let html = table.html(marked);
        assert!(html.contains("<th scope=\"col\" class=\"n\">(n)</th>"), "{html}");
        assert!(html.contains("<th scope=\"row\">(a)</th><td class=\"n\">(1)</td><td><code>(k=<v>)</code></td>"));
    }
}
