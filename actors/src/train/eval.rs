//! Evaluations of an encoder on the test role, which training never sees.

use std::time::Instant;

use mlomae_dataflow::config::Config;
use mlomae_dataflow::input::plan::Role;
use mlomae_dataflow::run::bootstrap;
use mlomae_dataflow::run::evaluation::{Features, LinearProbe, accuracy, knn_classes, linear_classes};
use mlomae_model::lane::LaneSize;
use mlomae_model::rng::{Purpose, keyed, shuffle};
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
}

impl Protocol {
    /// The name in the `evals` table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Knn => "knn",
            Self::Linear => "linear_probe",
        }
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// Share of test images whose label was found.
    pub accuracy: f64,
    /// Its 95 % bootstrap interval over the test images, keyed by the seed of the run. None of older logs.
    pub interval: Option<[f64; 2]>,
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
        };
        let images = test.ids.iter().zip(&test.labels).zip(&classes);
        let images: Vec<JudgedImage> =
            images.map(|((&id, &label), &predicted)| JudgedImage { id, label, predicted }).collect();
        let right: Vec<f64> = images.iter().map(|image| f64::from(u8::from(image.label == image.predicted))).collect();
        let judgement = Judgement {
            accuracy: accuracy(&classes, &test.labels),
            interval: bootstrap::interval(&right, config.seed),
            num_train: train.len(),
            num_test: test.len(),
            seconds: begin.elapsed().as_secs_f64(),
        };
        Ok((judgement, images))
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
    let mut chosen = Vec::new();
    for index in candidates {
        if dataset.label(index)?.is_some() {
            chosen.push(index);
        }
    }
    shuffle(&mut chosen, &mut keyed(config.seed, Purpose::Eval, u64::MAX, which));
    chosen.truncate(max);
    chosen.sort_unstable();
    Ok(chosen)
}
