//! A summary as one page of HTML that needs nothing else: no network, no script. Charts are inline SVG, most of them with
//! coordinates in per cent, so that they fit any width without being scaled.

use std::fmt::Write;

use super::curves::{Chart, Curve};
use super::markdown::{
    difference_text, interval_text, judge_text, method_text, p_text, scale, value_text, verdict_text,
};
use super::statistics::Verdict;
use super::summary::{Comparison, Summary};
use super::tables;

const STYLE: &str = include_str!("page.css");
/// Colours of arms in the style: `--c0`, `--c1`, ...; further arms repeat them with other dashes.
const NUM_COLOURS: usize = 8;
const DASHES: [&str; 4] = ["", "6 4", "2 3", "8 3 2 3"];

/// A linear axis over values, with round ticks.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
    digits: usize,
}

impl Axis {
    /// An axis that holds all `values`, with some room around them. None if there are none.
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        let span = if high > low { high - low } else { high.abs().max(1e-3) };
        let (from, to) = (low - 0.06 * span, high + 0.06 * span);
        // The round step, 1, 2 or 5 times a power of ten, that gives about five ticks.
        let rough = (to - from) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(power);
        let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        Some(Self { from, to, ticks, digits })
    }

    /// Place of a value in per cent.
    fn place(&self, value: f64) -> f64 {
        100.0 * (value - self.from) / (self.to - self.from)
    }

    fn text(&self, value: f64) -> String {
        format!("{value:.0$}", self.digits)
    }
}

/// Text in HTML, also within quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The page.
#[must_use]
pub fn page(summary: &Summary, charts: &[Chart]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_page(summary, charts, &mut out);
    out
}

fn write_page(summary: &Summary, charts: &[Chart], out: &mut String) -> std::fmt::Result {
    let name = escaped(&summary.name);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{name} - mlomae compare</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{name}</h1>\n"
    )?;
    let seeds: Vec<String> = summary.seeds.iter().map(u64::to_string).collect();
    writeln!(
        out,
        "<p class=\"sub\">{} over {} seeds ({}), base {}, budget: {}. mlomae {}, {}.</p>",
        escaped(&summary.primary),
        seeds.len(),
        seeds.join(", "),
        escaped(&summary.base),
        escaped(&summary.budget),
        escaped(&summary.version),
        escaped(&summary.machine)
    )?;
    if let Some(judge) = judge_text(summary) {
        writeln!(out, "<p class=\"sub\">{}</p>", escaped(&judge))?;
    }
    if !summary.is_complete {
        writeln!(out, "<p class=\"note warn\">Not complete: some cells are not finished.</p>")?;
    }
    for warning in &summary.warnings {
        writeln!(out, "<p class=\"note warn\">{}</p>", escaped(warning))?;
    }
    writeln!(out, "</header>\n<main>")?;
    for reference in &summary.references {
        write_forest(summary, reference, out)?;
    }
    writeln!(out, "<p class=\"method\">{}</p>", escaped(&method_text(summary)))?;
    write_values(summary, out)?;
    write_charts(summary, charts, out)?;
    write_arms(summary, out)?;
    write_others(summary, out)?;
    write_costs(summary, out)?;
    write_failures(summary, out)?;
    write_tuning(summary, out)?;
    writeln!(out, "</main>\n</body>\n</html>")
}

fn place_of(summary: &Summary, arm: &str) -> usize {
    summary.arms.iter().position(|other| other.name == arm).unwrap_or(0)
}

fn colour(number: usize) -> String {
    format!("var(--c{})", number % NUM_COLOURS)
}

fn is_of<'a>(reference: &'a str, metric: &'a str) -> impl Fn(&&Comparison) -> bool + 'a {
    move |one| one.reference == reference && one.metric == metric
}

/// How a verdict is marked.
fn class_of(one: &Comparison) -> &'static str {
    match one.verdict {
        Some(Verdict::Better) => "better",
        Some(Verdict::Worse) => "worse",
        Some(Verdict::NotShown) => "open",
        None => "untested",
    }
}

/// The forest plot against a reference: a row an arm, with every seed's difference, their mean and its interval.
fn write_forest(summary: &Summary, reference: &str, out: &mut String) -> std::fmt::Result {
    let rows: Vec<&Comparison> = summary.comparisons.iter().filter(is_of(reference, &summary.primary)).collect();
    writeln!(out, "<section>\n<h2>Differences to {}</h2>", escaped(reference))?;
    let Some(first) = rows.first() else {
        return writeln!(out, "<p>No pair of finished cells yet.</p>\n</section>");
    };
    let (factor, _) = scale(&first.unit);
    let unit = if first.unit == "share" { ", points" } else { "" };
    let ends = |one: &&Comparison| -> Vec<f64> {
        let seeds = one.differences.iter().map(|(_, difference)| *difference);
        seeds.chain(one.paired.low).chain(one.paired.high).chain([0.0]).map(|value| factor * value).collect()
    };
    let Some(axis) = Axis::over(rows.iter().flat_map(ends)) else { return writeln!(out, "</section>") };
    let direction = if first.is_higher_better { "right is better" } else { "left is better" };
    writeln!(
        out,
        "<p class=\"sub\">{}{unit}; {direction}. Dots are seeds, the diamond their mean, the bar its 95 % interval.</p>\n\
         <div class=\"plot\">",
        escaped(&summary.primary)
    )?;
    for one in &rows {
        let about = format!(
            "{}: {} {} over {} seeds, {}",
            one.arm,
            difference_text(one.paired.mean, &one.unit),
            interval_text(one),
            one.paired.num_pairs,
            verdict_text(one)
        );
        let class = class_of(one);
        write!(
            out,
            "<div class=\"row {class}\"><div class=\"name\">{}</div><svg role=\"img\" aria-label=\"{1}\" height=\"34\">\
             <title>{1}</title>",
            escaped(&one.arm),
            escaped(&about)
        )?;
        write_grid(&axis, out)?;
        let zero = axis.place(0.0);
        write!(out, "<line class=\"zero\" x1=\"{zero:.2}%\" x2=\"{zero:.2}%\" y1=\"0\" y2=\"34\"/>")?;
        if let (Some(low), Some(high)) = (one.paired.low, one.paired.high) {
            let (low, high) = (axis.place(factor * low), axis.place(factor * high));
            write!(out, "<line class=\"bar\" x1=\"{low:.2}%\" x2=\"{high:.2}%\" y1=\"12\" y2=\"12\"/>")?;
        }
        for (seed, difference) in &one.differences {
            let text = difference_text(*difference, &one.unit);
            let x = axis.place(factor * difference);
            write!(
                out,
                "<circle class=\"seed\" cx=\"{x:.2}%\" cy=\"25\" r=\"3.5\"><title>seed {seed}: {text}</title></circle>"
            )?;
        }
        let mean = axis.place(factor * one.paired.mean);
        write!(
            out,
            "<svg x=\"{mean:.2}%\" overflow=\"visible\"><path class=\"mean\" d=\"M0 6L6 12L0 18L-6 12Z\"/></svg></svg>"
        )?;
        writeln!(
            out,
            "<div class=\"said\"><b>{}</b> {} <span>p {}</span> <em>{}</em></div></div>",
            difference_text(one.paired.mean, &one.unit),
            interval_text(one),
            p_text(one.p_holm.unwrap_or(one.paired.p)),
            escaped(&verdict_text(one))
        )?;
    }
    write_axis_row(&axis, out)?;
    let is_missing = |name: &&str| *name != reference && rows.iter().all(|one| one.arm != **name);
    let missing: Vec<&str> = summary.arms.iter().map(|arm| arm.name.as_str()).filter(is_missing).collect();
    if !missing.is_empty() {
        writeln!(out, "<p class=\"sub\">Without a pair of finished cells: {}.</p>", escaped(&missing.join(", ")))?;
    }
    writeln!(out, "</div>\n</section>")
}

fn write_grid(axis: &Axis, out: &mut String) -> std::fmt::Result {
    for tick in &axis.ticks {
        let x = axis.place(*tick);
        write!(out, "<line class=\"grid\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"0\" y2=\"34\"/>")?;
    }
    Ok(())
}

fn write_axis_row(axis: &Axis, out: &mut String) -> std::fmt::Result {
    write!(out, "<div class=\"row axis\" aria-hidden=\"true\"><div class=\"name\"></div><svg height=\"18\">")?;
    for tick in &axis.ticks {
        let text = axis.text(*tick);
        write!(out, "<text x=\"{:.2}%\" y=\"13\" text-anchor=\"middle\">{text}</text>", axis.place(*tick))?;
    }
    writeln!(out, "</svg><div class=\"said\"></div></div>")
}

/// The primary metric of every cell: a row an arm.
fn write_values(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let values = |arm: &'_ super::summary::ArmSummary| arm.values.get(&summary.primary).cloned();
    let Some(unit) = summary.arms.iter().find_map(values).map(|values| values.unit) else { return Ok(()) };
    let (factor, _) = scale(&unit);
    let all = summary.arms.iter().filter_map(values).flat_map(|values| values.by_seed).map(|(_, value)| factor * value);
    let Some(axis) = Axis::over(all) else { return Ok(()) };
    let unit_text = if unit == "share" { ", per cent" } else { "" };
    writeln!(
        out,
        "<section>\n<h2>Every seed</h2>\n<p class=\"sub\">{}{unit_text}. Seeds are paired: judge arms by the differences \
         above, not by how far these clouds overlap.</p>\n<div class=\"plot\">",
        escaped(&summary.primary)
    )?;
    for (number, arm) in summary.arms.iter().enumerate() {
        let Some(values) = values(arm) else { continue };
        let sd = values.sd.map_or_else(String::new, |sd| format!(" ± {}", value_text(sd, &unit)));
        let said = format!("{}{sd}", value_text(values.mean, &unit));
        write!(
            out,
            "<div class=\"row\"><div class=\"name\">{0}</div><svg role=\"img\" aria-label=\"{0}: {said}\" height=\"34\">\
             <title>{0}: {said}</title>",
            escaped(&arm.name)
        )?;
        write_grid(&axis, out)?;
        let mean = axis.place(factor * values.mean);
        write!(out, "<line class=\"at\" x1=\"{mean:.2}%\" x2=\"{mean:.2}%\" y1=\"7\" y2=\"27\"/>")?;
        for (seed, value) in &values.by_seed {
            let (x, text) = (axis.place(factor * value), value_text(*value, &unit));
            write!(
                out,
                "<circle style=\"fill:{}\" cx=\"{x:.2}%\" cy=\"17\" r=\"4\" fill-opacity=\"0.75\">\
                 <title>seed {seed}: {text}</title></circle>",
                colour(number)
            )?;
        }
        writeln!(out, "</svg><div class=\"said\"><b>{said}</b></div></div>")?;
    }
    write_axis_row(&axis, out)?;
    writeln!(out, "</div>\n</section>")
}

/// Curves over level-1 steps. Lines are drawn in a square of 1,000 that is stretched; their widths and texts are not.
fn write_charts(summary: &Summary, charts: &[Chart], out: &mut String) -> std::fmt::Result {
    if charts.is_empty() {
        return Ok(());
    }
    writeln!(out, "<section>\n<h2>During training</h2>\n<p class=\"sub\">Means over the seeds, by level-1 step.</p>")?;
    for chart in charts {
        let points = || chart.curves.iter().flat_map(|curve| curve.points.iter());
        let x_axis = Axis::over(points().map(|(step, _)| *step).chain([0.0]));
        let (Some(x_axis), Some(y_axis)) = (x_axis, Axis::over(points().map(|(_, value)| *value))) else { continue };
        let last = |curve: &Curve| curve.points.last().map_or(f64::NAN, |(_, value)| *value);
        let ends: Vec<String> =
            chart.curves.iter().map(|curve| format!("{} ends at {:.4}", curve.arm, last(curve))).collect();
        let about = escaped(&format!("{}: {}", chart.title, ends.join(", ")));
        write!(
            out,
            "<figure><figcaption><b>{}</b> <span>{}</span></figcaption><div class=\"chart\">\
             <svg role=\"img\" aria-label=\"{about}\"><title>{about}</title>",
            escaped(chart.title),
            escaped(chart.note)
        )?;
        for tick in &y_axis.ticks {
            let y = 100.0 - y_axis.place(*tick);
            let text = y_axis.text(*tick);
            write!(
                out,
                "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y:.2}%\" y2=\"{y:.2}%\"/>\
                 <text x=\"2\" y=\"{y:.2}%\" dy=\"-3\">{text}</text>"
            )?;
        }
        write!(out, "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\">")?;
        for curve in &chart.curves {
            let number = place_of(summary, &curve.arm);
            let at = |(step, value): &(f64, f64)| {
                format!("{:.1},{:.1}", 10.0 * x_axis.place(*step), 1000.0 - 10.0 * y_axis.place(*value))
            };
            let points: Vec<String> = curve.points.iter().map(at).collect();
            write!(
                out,
                "<polyline class=\"curve\" style=\"stroke:{}\" stroke-dasharray=\"{}\" points=\"{}\"/>",
                colour(number),
                DASHES[(number / NUM_COLOURS) % DASHES.len()],
                points.join(" ")
            )?;
        }
        write!(out, "</svg></svg><svg class=\"below\" height=\"18\" aria-hidden=\"true\">")?;
        for tick in &x_axis.ticks {
            let x = x_axis.place(*tick);
            write!(out, "<text x=\"{x:.2}%\" y=\"13\" text-anchor=\"middle\">{}</text>", x_axis.text(*tick))?;
        }
        write!(out, "</svg></div><ul class=\"legend\">")?;
        for curve in &chart.curves {
            let number = place_of(summary, &curve.arm);
            write!(
                out,
                "<li><svg width=\"24\" height=\"10\" aria-hidden=\"true\"><line class=\"curve\" style=\"stroke:{}\" \
                 stroke-dasharray=\"{}\" x1=\"0\" x2=\"24\" y1=\"5\" y2=\"5\"/></svg> {}</li>",
                colour(number),
                DASHES[(number / NUM_COLOURS) % DASHES.len()],
                escaped(&curve.arm)
            )?;
        }
        writeln!(out, "</ul></figure>")?;
    }
    writeln!(out, "</section>")
}

/// Values and differences of all metrics as a table.
fn write_others(summary: &Summary, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "<section>\n<h2>All metrics</h2>\n<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">arm</th>"
    )?;
    for metric in &summary.metrics {
        write!(out, "<th scope=\"col\" class=\"n\">{}</th>", escaped(metric))?;
        for reference in &summary.references {
            write!(out, "<th scope=\"col\" class=\"n\">against {}</th>", escaped(reference))?;
        }
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for arm in &summary.arms {
        write!(out, "<tr><th scope=\"row\">{}</th>", escaped(&arm.name))?;
        for metric in &summary.metrics {
            let value = arm.values.get(metric).map_or("-".to_owned(), |v| value_text(v.mean, &v.unit));
            write!(out, "<td class=\"n\">{value}</td>")?;
            for reference in &summary.references {
                let one = summary.comparisons.iter().filter(is_of(reference, metric)).find(|one| one.arm == arm.name);
                let text = one.map_or("-".to_owned(), |one| {
                    format!("{}<br><small>{}</small>", difference_text(one.paired.mean, &one.unit), interval_text(one))
                });
                write!(out, "<td class=\"n\">{text}</td>")?;
            }
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>\n</section>")
}

/// What the arms are, and in which keys they differ from the first.
fn write_arms(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let first = summary.arms.first().map_or("the first", |arm| &arm.name);
    writeln!(
        out,
        "<section>\n<h2>Arms</h2>\n<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">arm</th>\
         <th scope=\"col\">what it is</th><th scope=\"col\">differs from {} in</th></tr></thead>\n<tbody>",
        escaped(first)
    )?;
    for arm in &summary.arms {
        let differs: Vec<String> = arm
            .differs
            .iter()
            .map(|(key, value)| format!("<code>{}</code>", escaped(&format!("{key}={value}"))))
            .collect();
        writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
            escaped(&arm.name),
            escaped(&arm.about),
            differs.join("<br>")
        )?;
    }
    writeln!(out, "</tbody></table></div>\n</section>")
}

fn write_costs(summary: &Summary, out: &mut String) -> std::fmt::Result {
    write!(out, "<section>\n<h2>Cost of a cell</h2>\n{}</section>\n", tables::costs(summary).html(escaped))
}

fn write_failures(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Some(table) = tables::failures(summary) else { return Ok(()) };
    write!(out, "<section>\n<h2>Failed cells</h2>\n{}</section>\n", table.html(escaped))
}

fn write_tuning(summary: &Summary, out: &mut String) -> std::fmt::Result {
    let Some(table) = tables::trials(summary) else { return Ok(()) };
    write!(
        out,
        "<section>\n<h2>Hyperparameters</h2>\n<p class=\"sub\">Chosen on the role validation, on seeds of their own.</p>\n\
         {}</section>\n",
        table.html(escaped)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_and_has_round_ticks() {
        for (low, high) in
            [(0.0, 1.0), (-3.7, 2.2), (41.02, 41.9), (-1e-4, 3e-4), (0.0, 12_000.0), (5.0, 5.0), (0.0, 0.0)]
        {
            let axis = Axis::over([low, high].into_iter()).unwrap();
            assert!(axis.from < low && high < axis.to, "{axis:?}");
            assert!((2..=9).contains(&axis.ticks.len()), "{axis:?}");
            for tick in &axis.ticks {
                let text: f64 = axis.text(*tick).parse().unwrap();
                assert!((text - tick).abs() < 1e-9 * (axis.to - axis.from).max(1.0), "{tick} is told as {text}");
                assert!((-1e-6..=100.0 + 1e-6).contains(&axis.place(*tick)));
            }
        }
        assert_eq!(Axis::over([f64::NAN].into_iter()), None);
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped("<a href=\"x\">'&'</a>"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
    }
}
