//! Evaluations of an encoder on the test role, which training never sees.

use std::borrow::Cow;
use std::time::Instant;

use mlomae_dataflow::config::Config;
use mlomae_dataflow::input::plan::Role;
use mlomae_dataflow::run::bootstrap;
use mlomae_dataflow::run::evaluation::{Features, LinearProbe, accuracy, knn_classes, linear_classes};
use mlomae_dataflow::run::probe::{Images, ProbeSettings, probe};
use mlomae_model::lane::LaneSize;
use mlomae_model::rng::{Purpose, keyed, shuffle};
use mlomae_model::tasks::metrics::Measured;
use mlomae_model::{Arena, Compute, Vector};
use mlomae_storage::dataset::{Dataset, Split};
use mlomae_storage::exit_code::ExitCode;

use crate::process::error::CliError;
use crate::train::experiment::Experiment;

/// An evaluation protocol: how features are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Votes of the nearest neighbours by cosine.
    Knn,
    /// A linear classifier trained on frozen features.
    Linear,
    /// The tasks' own heads trained on the frozen encoder.
    Probe,
}

impl Protocol {
    /// The name in the `evals` table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Knn => "knn",
            Self::Linear => "linear_probe",
            Self::Probe => "probe",
        }
    }

    /// What judges at the end of a run: votes where images have classes, else the tasks' own heads.
    #[must_use]
    pub fn at_end(config: &Config) -> Self {
        if config.needs_classes() { Self::Knn } else { Self::Probe }
    }
}

/// What ends the names of an untrained encoder's metrics in the `evals` table.
pub const UNTRAINED: &str = "_untrained";

/// A number that an evaluation gives.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedFigure {
    /// Its name, as `accuracy`.
    pub name: Cow<'static, str>,
    /// Its unit, as `share`.
    pub unit: &'static str,
    /// The value.
    pub value: f64,
    /// Its 95 % bootstrap interval over the test images, keyed by the seed of the run. None of older logs.
    pub interval: Option<[f64; 2]>,
}

impl JudgedFigure {
    /// The value as people read it.
    #[must_use]
    pub fn value_text(&self) -> String {
        if self.unit == "share" {
            format!("{:.2} %", 100.0 * self.value)
        } else {
            format!("{:.4} {}", self.value, self.unit)
        }
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The numbers, the main one first; none where nothing is known that could be judged.
    pub figures: Vec<JudgedFigure>,
    /// Labelled images that were learnt from, without bad ones that were passed over.
    pub num_train: usize,
    /// Test images, without bad ones that were passed over.
    pub num_test: usize,
    /// Time taken.
    pub seconds: f64,
}

/// A test image with what an evaluation says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgedImage {
    /// Stable id of the sample in its split.
    pub id: i64,
    /// Its label.
    pub label: i32,
    /// The class that was found for it.
    pub predicted: i32,
}

/// What an evaluation is doing, for a display: a name, how much is done and how much there is.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, usize, usize);

/// The images and threads of evaluations; the images are chosen by the seed alone, so that any two
/// encoders are judged by the same.
#[derive(Debug)]
pub struct Judge<'a> {
    experiment: &'a Experiment,
    train: Vec<usize>,
    test: Vec<usize>,
    /// The split that the images in `test` are of.
    split: Split,
}

impl<'a> Judge<'a> {
    /// Chooses at most `eval.max_train` labelled images of all roles of the train split, and at most
    /// `eval.max_test` of the split that judges.
    ///
    /// # Errors
    /// If no split judges, or a label cannot be read.
    pub fn new(experiment: &'a Experiment) -> Result<Self, CliError> {
        let (config, data) = (&experiment.config, &experiment.data);
        experiment.loader(Split::Test)?;
        let roles = Role::ALL.iter().flat_map(|role| data.roles.indices(*role).iter().copied());
        let train = choose(data.train.as_ref(), roles, config, config.eval.max_train, 1)?;
        let test = match &data.test {
            Some(test) => choose(test.as_ref(), 0..test.len(), config, config.eval.max_test, 2)?,
            None => Vec::new(),
        };
        if test.is_empty() {
            let line = format!("data: no images of {} can judge: {}", data.train.info().name, data.test_role.text);
            return Err(CliError::new(ExitCode::NoInput, line));
        }
        Ok(Self { experiment, train, test, split: Split::Test })
    }

    /// As [`new`](Self::new), but the role validation of the train split judges, and those of the other roles are learnt
    /// from: for choices that must not see the test split.
    ///
    /// # Errors
    /// If the role has no labelled images, or a label cannot be read.
    pub fn on_validation_role(experiment: &'a Experiment) -> Result<Self, CliError> {
        let (config, data) = (&experiment.config, &experiment.data);
        let of = |role| data.roles.indices(role).iter().copied();
        // Roles may share images: none is learnt from that judges.
        let mut judges: Vec<usize> = of(Role::Validation).collect();
        judges.sort_unstable();
        judges.dedup();
        let others = || {
            let mut others: Vec<usize> = of(Role::Pretrain).chain(of(Role::Finetune)).collect();
            others.sort_unstable();
            others.dedup();
            others.into_iter().filter(|index| judges.binary_search(index).is_err())
        };
        let train = choose(data.train.as_ref(), others(), config, config.eval.max_train, 1)?;
        let test = choose(data.train.as_ref(), judges.iter().copied(), config, config.eval.max_test, 2)?;
        if train.is_empty() || test.is_empty() {
            let line = format!("data: the roles of {} have no labelled images to judge by", data.train.info().name);
            return Err(CliError::new(ExitCode::NoInput, line));
        }
        Ok(Self { experiment, train, test, split: Split::Train })
    }

    /// Judges the encoder in `theta`.
    ///
    /// # Errors
    /// If a sample cannot be read, or a thread cannot start.
    pub fn judge(&self, protocol: Protocol, theta: &Vector, progress: Progress<'_>) -> Result<Judgement, CliError> {
        self.judge_images(protocol, theta, progress).map(|(judgement, _)| judgement)
    }

    /// As [`judge`](Self::judge), with what is said of each test image.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    pub fn judge_images(
        &self,
        protocol: Protocol,
        theta: &Vector,
        progress: Progress<'_>,
    ) -> Result<(Judgement, Vec<JudgedImage>), CliError> {
        if protocol == Protocol::Probe {
            return self.probe(theta, progress).map(|judgement| (judgement, Vec::new()));
        }
        if !self.experiment.config.needs_classes() {
            let line = format!(
                "eval {}: needs a task that learns the classes of images, as this run has none: eval probe judges its own",
                if protocol == Protocol::Knn { "knn" } else { "linear" }
            );
            return Err(CliError::new(ExitCode::Config, line));
        }
        let begin = Instant::now();
        let (config, method) = (&self.experiment.config, &self.experiment.method);
        let (model, grain) = (&method.model, config.train.grain);
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let size = LaneSize { num_threads, micro_batch: grain };
        let mut lane = method.engine.device.lane(model, &Arena::new(), grain, method.precision, size)?;
        let mut features = |split, indices: &[usize], name| {
            let loader = self.experiment.loader(split)?;
            let batch = config.eval.batch;
            let mut all = Features { dim: model.config.dim, ..Features::default() };
            for (number, part) in indices.chunks(batch).enumerate() {
                let mut no_report = |_, _| {};
                let part = Features::extract(&mut *lane, theta, loader, part, batch, &mut no_report)?;
                all.values.extend(part.values);
                all.labels.extend(part.labels);
                all.ids.extend(part.ids);
                progress(name, (number * batch + batch).min(indices.len()), indices.len());
            }
            Ok::<_, CliError>(all)
        };
        let train = features(Split::Train, &self.train, "train features")?;
        let test = features(self.split, &self.test, "test features")?;
        // Its threads end before others begin: one pool of threads at a time.
        drop(lane);
        for (split, features) in [("train", &train), ("test", &test)] {
            if features.is_empty() {
                let line = format!("data: none of the chosen images of the {split} split can be decoded");
                return Err(CliError::new(ExitCode::BadData, line));
            }
        }
        let num_classes = model.config.num_classes;
        let eval = &config.eval;
        let classes = match protocol {
            Protocol::Knn => {
                let compute = Compute::new(num_threads, grain, Arena::new())?;
                knn_classes(&compute, &train, &test, num_classes, eval.knn_k, eval.knn_temperature)
            }
            Protocol::Linear => {
                let probe = LinearProbe {
                    epochs: eval.linear_epochs,
                    batch: eval.batch,
                    lr: eval.linear_lr,
                    weight_decay: eval.linear_weight_decay,
                    seed: config.seed,
                };
                let mut report = |done, all| progress("linear probe", done, all);
                linear_classes(&train, &test, num_classes, &probe, &mut report)?
            }
            Protocol::Probe => Vec::new(),
        };
        let images = test.ids.iter().zip(&test.labels).zip(&classes);
        let images: Vec<JudgedImage> =
            images.map(|((&id, &label), &predicted)| JudgedImage { id, label, predicted }).collect();
        let right: Vec<f64> = images.iter().map(|image| f64::from(u8::from(image.label == image.predicted))).collect();
        let judgement = Judgement {
            figures: vec![JudgedFigure {
                name: "accuracy".into(),
                unit: "share",
                value: accuracy(&classes, &test.labels),
                interval: bootstrap::interval(&right, config.seed),
            }],
            num_train: train.len(),
            num_test: test.len(),
            seconds: begin.elapsed().as_secs_f64(),
        };
        Ok((judgement, images))
    }

    /// Judges the encoder by the tasks' own heads.
    fn probe(&self, theta: &Vector, progress: Progress<'_>) -> Result<Judgement, CliError> {
        let begin = Instant::now();
        let (config, method) = (&self.experiment.config, &self.experiment.method);
        let grain = config.train.grain;
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let size = LaneSize { num_threads, micro_batch: grain };
        let mut lane = method.engine.device.lane(&method.model, &Arena::new(), grain, method.precision, size)?;
        let compute = Compute::new(num_threads, grain, Arena::new())?;
        let images = |split, indices| Ok::<_, CliError>(Images { loader: self.experiment.loader(split)?, indices });
        let images = [images(Split::Train, &self.train[..])?, images(self.split, &self.test[..])?];
        let settings = ProbeSettings {
            epochs: config.eval.linear_epochs,
            batch: config.eval.batch,
            lr: config.eval.linear_lr,
            weight_decay: config.eval.linear_weight_decay,
            seed: config.seed,
            cache_bytes: config.eval.cache_mib << 20,
        };
        let probed = probe(&mut *lane, &compute, theta, images, &settings, progress)?;
        let figure = |measured: Measured| {
            let interval = probed.intervals.iter().find(|interval| interval.name == measured.name);
            let interval = interval.map(|interval| [interval.low, interval.high]);
            JudgedFigure { name: measured.name, unit: measured.unit, value: measured.value, interval }
        };
        Ok(Judgement {
            figures: probed.measured.into_iter().map(figure).collect(),
            num_train: probed.num_train,
            num_test: probed.num_test,
            seconds: begin.elapsed().as_secs_f64(),
        })
    }
}

/// At most `max` labelled samples among `candidates`, ascending.
fn choose(
    dataset: &dyn Dataset,
    candidates: impl Iterator<Item = usize>,
    config: &Config,
    max: usize,
    which: u64,
) -> Result<Vec<usize>, CliError> {
    // Without classes every image judges by what is known of it.
    let all_judge = !config.needs_classes();
    let mut chosen = Vec::new();
    for index in candidates {
        if all_judge || dataset.label(index)?.is_some() {
            chosen.push(index);
        }
    }
    shuffle(&mut chosen, &mut keyed(config.seed, Purpose::Eval, u64::MAX, which));
    chosen.truncate(max);
    chosen.sort_unstable();
    Ok(chosen)
}
