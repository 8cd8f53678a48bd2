//! The overview of a run before it starts, in lines for people.

use mlomae_dataflow::input::plan::Role;
use mlomae_kernels as kernels;
use mlomae_model::Level;
use mlomae_model::config::num_visible;
use mlomae_storage::escape::one_line;
use mlomae_storage::machine_memory;

use crate::process::error::CliError;
use crate::train::experiment::Experiment;
use crate::train::memory::Needs;

/// A name and what is to be said of it.
pub(crate) type Line = (&'static str, String);

/// Data, roles, networks, arithmetic, length and memory of the run.
///
/// # Errors
/// Never for a checked configuration.
pub(crate) fn overview(experiment: &Experiment) -> Result<Vec<Line>, CliError> {
    let (config, data, method) = (&experiment.config, &experiment.data, &experiment.method);
    let model = &method.model.config;
    let info = data.train.info();
    let num_test = data.test.as_ref().map_or(0, |test| test.len());
    let column = info.label_column.as_ref().map_or_else(String::new, |column| format!(" of column {column}"));
    let kind = if data.channels == 1 { "grey" } else { "RGB" };
    let num = |role| data.roles.indices(role).len();
    let params = |level| count_text(method.model.layout(level).len);
    let masks = if method.searches_branches() {
        format!("{} learns the masks, by branch search", config.mask.strategy)
    } else if method.is_learned() {
        format!("{} learns the masks", config.mask.strategy)
    } else {
        format!("{} masks", config.mask.strategy)
    };
    let isa = match method.engine.device.is_host() {
        true => format!(" with {}", kernels::isa().name()),
        false => String::new(),
    };
    let visible = match model.mask_ratio_end {
        Some(end) => {
            let at_end = num_visible(model.num_patches(), end);
            format!("{} to {at_end} ({})", model.num_visible(), config.mask.ratio_schedule)
        }
        None => model.num_visible().to_string(),
    };
    let mut lines = vec![
        (
            "data",
            format!(
                "{} ({}), {} train and {num_test} test images, {side} x {side} {kind}, {} classes{column}",
                one_line(&info.name),
                info.format,
                info.num_samples,
                data.num_classes(),
                side = data.image,
            ),
        ),
        (
            "roles",
            format!(
                "pretrain {}, finetune {}, validation {}, test {num_test}; disjoint",
                num(Role::Pretrain),
                num(Role::Finetune),
                num(Role::Validation)
            ),
        ),
        (
            "test",
            match data.test {
                Some(_) => data.test_role.text.clone(),
                None => format!("none, {}: train ends without an evaluation", data.test_role.text),
            },
        ),
        (
            "networks",
            format!(
                "autoencoder {}, masking network {}, head {} weights",
                params(Level::Pretrain),
                params(Level::Mask),
                params(Level::Finetune)
            ),
        ),
        (
            "patches",
            format!(
                "{grid} x {grid} of {patch} x {patch} pixels, {visible} of {} visible, {masks}",
                model.num_patches(),
                grid = model.grid(),
                patch = model.patch,
            ),
        ),
        ("computes", format!("in {}{isa}; hypergradient {}", method.arithmetic(), method.hypergradient)),
        (
            "length",
            format!(
                "{} outer iterations of {} level-1 steps, batch {}; {:.1} epochs",
                method.total_outer,
                method.unroll,
                config.pretrain.batch,
                config.num_steps().0 as f64 / method.steps_per_epoch.max(1) as f64
            ),
        ),
    ];
    let needs = Needs::of_training(experiment)?;
    lines.push(("memory", needs.text()));
    lines.extend(needs.device_text().map(|text| ("device", text)));
    Ok(lines)
}

/// `812`, `4.2 k`, `1.7 M`.
pub(crate) fn count_text(number: usize) -> String {
    let number = number as f64;
    match number {
        0.0..1e3 => format!("{number:.0}"),
        1e3..1e6 => format!("{:.1} k", number / 1e3),
        _ => format!("{:.1} M", number / 1e6),
    }
}

/// `12.3 MiB`.
pub(crate) fn bytes_text(bytes: usize) -> String {
    machine_memory::bytes_text(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!([812, 4_200, 1_700_000].map(count_text), ["812", "4.2 k", "1.7 M"]);
        assert_eq!([512, 3 << 20, 3 << 30].map(bytes_text), ["0.5 KiB", "3.0 MiB", "3.00 GiB"]);
    }
}
