//! `mlomae check`: everything that can be known to be wrong before a run.

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::input::augment::Normalisation;
use mlomae_dataflow::input::bad_images::IMAGE_SKIPPED;
use mlomae_dataflow::input::plan::Role;
use mlomae_dataflow::run::data::RunData;
use mlomae_model::hypergradient::doubt;
use mlomae_storage::dataset::Dataset;
use mlomae_storage::exit_code::ExitCode;

use super::bar::Bar;
use super::config_args::ConfigArgs;
use super::overview::{bytes_text, overview};
use super::session::Session;
use crate::process::error::CliError;
use crate::train::experiment::Experiment;
use crate::train::memory::Needs;

/// Values of images that are decoded at most, about: some ten seconds.
const MAX_VALUES: usize = 1 << 29;
/// Images from whose size that of the others is estimated.
const NUM_PROBED: usize = 64;
/// Bad images that are named at most.
const MAX_BAD_LINES: usize = 20;

/// Check a configuration with its data, and print sizes and memory bounds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All errors are printed at once, one line each, with the key, its value and what is allowed. The
images of all roles are decoded, of large data an even share; the output says how many.

Examples:
  mlomae check configs/cifar10.toml --set data.path=/data/cifar-10
  mlomae check configs/quickstart.toml --set model.preset=small --set pretrain.batch=256")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let inputs = self.config.inputs()?;
        let config = match Config::resolve(&inputs) {
            Ok(config) => config,
            Err(errors) => return Err(with_errors_of_data(errors.into(), &inputs)),
        };
        let bar = Bar::new(&session.terminal, "images");
        let experiment = match Experiment::new(config.clone(), None) {
            Ok(experiment) => experiment,
            Err(error) => return Err(with_bad_images(error, config, &bar)),
        };
        Needs::of_training(&experiment)?.check(experiment.config.run.memory_check)?;
        let images = decode_images(&experiment, &bar)?;
        drop(bar);
        writeln!(session.out, "{:<10} {}", "engine", experiment.method.engine.text())?;
        for (name, text) in overview(&experiment)? {
            writeln!(session.out, "{name:<10} {text}")?;
        }
        writeln!(session.out, "images     {images}")?;
        writeln!(session.out, "queues")?;
        for bound in experiment.topology()?.bounds() {
            let large = match bound.large_bytes {
                0 => String::new(),
                bytes => format!(", and parts of checkpoints, at most {}", bytes_text(bytes)),
            };
            writeln!(
                session.out,
                "  {:<20} {:>3} items and {:>2} in hand, each about {}{large}",
                bound.id.to_string(),
                bound.queue_cap,
                bound.num_in_hand,
                bytes_text(bound.payload_bytes)
            )?;
        }
        let method = &experiment.method;
        let doubts =
            doubt(method.hypergradient, method.precision).into_iter().chain(experiment.config.unending_warmups());
        for warning in experiment.data.test_role.warnings.iter().cloned().chain(doubts) {
            writeln!(session.out, "note       {warning}")?;
        }
        writeln!(session.out, "ok")?;
        Ok(())
    }
}

/// If an image of the normalisation is bad, others may be: names them all instead.
fn with_bad_images(error: CliError, config: Config, bar: &Bar) -> CliError {
    if error.exit_code() != ExitCode::BadData {
        return error;
    }
    let none = Normalisation { mean: vec![0.0; 3], std: vec![1.0; 3] };
    match Experiment::new(config, Some(none)).map(|experiment| decode_images(&experiment, bar)) {
        Ok(Err(all)) => all,
        _ => error,
    }
}

/// Decodes the images of all roles, of large data an even share of them, and says how many. Bad ones are errors by
/// name.
fn decode_images(experiment: &Experiment, bar: &Bar) -> Result<String, CliError> {
    let data = &experiment.data;
    let of_train = Role::ALL.iter().flat_map(|role| data.roles.indices(*role).iter());
    let mut images: Vec<(&dyn Dataset, usize)> = of_train.map(|index| (data.train.as_ref(), *index)).collect();
    if let Some(test) = &data.test {
        images.extend((0..test.len()).map(|index| (test.as_ref(), index)));
    }
    // The size of a few decides how many there is time for.
    let probed: Vec<usize> = images
        .iter()
        .step_by(images.len().div_ceil(NUM_PROBED).max(1))
        .filter_map(|(split, index)| Some(split.sample(*index).ok()?.image.pixels.len()))
        .collect();
    let mean = probed.iter().sum::<usize>() / probed.len().max(1);
    let step = images.len().saturating_mul(mean).div_ceil(MAX_VALUES).max(1);
    let num_chosen = images.len().div_ceil(step);
    let (mut lines, mut num_bad, mut num_skipped) = (Vec::new(), 0, 0);
    let skips = data.bad_images.are_skipped();
    for (done, (split, index)) in images.iter().step_by(step).enumerate() {
        bar.set("images", done, num_chosen);
        if let Err(error) = split.sample(*index) {
            if skips && error.is_bad_image() {
                num_skipped += 1;
                if num_skipped <= MAX_BAD_LINES {
                    tracing::warn!(kind = IMAGE_SKIPPED, "bad image, will be skipped: {error}");
                }
                continue;
            }
            num_bad += 1;
            if num_bad <= MAX_BAD_LINES {
                lines.push(error.to_string());
            }
        }
    }
    if num_bad > MAX_BAD_LINES {
        lines.push(format!("{num_bad} of {num_chosen} decoded images are bad, {MAX_BAD_LINES} of them are named"));
    }
    if num_bad > 0 {
        return Err(CliError::Failed { lines, exit_code: ExitCode::BadData });
    }
    if num_skipped > 0 && num_skipped == num_chosen {
        let line = format!("data: all {num_chosen} decoded images are bad");
        return Err(CliError::new(ExitCode::BadData, line));
    }
    let bad = match num_skipped {
        0 => String::new(),
        num => format!("; {num} of them are bad and will be skipped"),
    };
    Ok(match step {
        1 => format!("all {num_chosen} decoded{bad}"),
        _ => format!("{num_chosen} of {} decoded, evenly spread; the others are not checked{bad}", images.len()),
    })
}

/// Adds what is wrong with the data, if that can be found although other keys are wrong.
fn with_errors_of_data(error: CliError, inputs: &ConfigInputs) -> CliError {
    let CliError::Failed { mut lines, exit_code } = error else {
        return error;
    };
    if let Some(config) = data_alone(inputs)
        && let Err(error) = RunData::open(&config, None)
        && let CliError::Failed { lines: of_data, .. } = CliError::from(error)
    {
        // The other sections have their defaults here; what is said of them is not about the user's.
        lines.extend(of_data.into_iter().filter(|line| !is_about_other_key(line)));
    }
    CliError::Failed { lines, exit_code }
}

fn is_about_other_key(line: &str) -> bool {
    line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ') && !key.starts_with("data."))
}

/// The configuration with its `data` section and the defaults of all others.
fn data_alone(inputs: &ConfigInputs) -> Option<Config> {
    let mut alone = ConfigInputs::default();
    for (name, text) in &inputs.layers {
        let mut table: toml::Table = text.parse().ok()?;
        table.retain(|key, _| key == "data");
        alone = alone.layer(name, &table.to_string());
    }
    for setting in inputs.sets.iter().filter(|setting| setting.trim_start().starts_with("data.")) {
        alone = alone.set(setting);
    }
    Config::resolve(&alone).ok()
}

#[cfg(test)]
mod tests {
    use super::is_about_other_key;

    #[test]
    fn what_is_wrong_with_the_data_is_said_beside_other_errors() {
        assert!(is_about_other_key("model.patch = 5: does not divide the image's side 28 (allowed: 1, 2)"));
        assert!(!is_about_other_key("data.test_split = test: the test split has no labels in x (allowed: auto)"));
        assert!(!is_about_other_key(
            "the test split of x: no class \"a\"; data.test_split = \"none\" trains without it"
        ));
        assert!(!is_about_other_key("x.parquet: no label column"));
    }
}
