//! Numbers of an image: a [`PooledHead`] for standardised values, with a smooth absolute or a squared error.

use std::sync::Arc;

use super::metrics::{Metrics, RegressionErrors};
use super::options::{OptionValues, TAP, TaskOption, TaskOptions};
use super::pooled::PooledHead;
use super::predictions::Predictions;
use super::targets::Targets;
use super::task::{At, Figure, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want, wrong_kind};
use crate::choice::Named;
use crate::error::ModelError;
use crate::init::normal;
use crate::layout::SharedLayout;
use crate::parallel::arena::Buffer;
use crate::rng::{Purpose, below, keyed};
use crate::tap::Tap;

/// The entry of [`super::TASKS`].
#[derive(Debug)]
pub struct Kind;

static OPTIONS: [TaskOption; 4] = [
    TAP,
    TaskOption {
        name: "loss",
        summary: "The error of a standardised value: half its square up to 1 and linear beyond, or its square",
        values: OptionValues::OneOf(&["smooth-l1", "mse"]),
    },
    TaskOption {
        name: "mean",
        summary: "What is subtracted of each value; 0 where nothing is given",
        values: OptionValues::Numbers,
    },
    TaskOption {
        name: "sd",
        summary: "What each value is divided by then, above 0; 1 where nothing is given",
        values: OptionValues::Numbers,
    },
];

impl Named for Kind {
    fn name(&self) -> &'static str {
        "regression"
    }
    fn summary(&self) -> &'static str {
        "Numbers of an image: a linear layer on the normalised CLS token, smooth L1 or squared error of standardised values"
    }
}

impl TaskKind for Kind {
    fn options(&self) -> &'static [TaskOption] {
        &OPTIONS
    }

    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        let num = facts.num_classes;
        let (mean, sd) = (options.numbers("mean", num, 0.0)?, options.numbers("sd", num, 1.0)?);
        if let Some(sd) = sd.iter().find(|sd| **sd <= 0.0) {
            return Err(ModelError::Config(format!("sd must be above 0 for every value, got {sd}")));
        }
        let is_squared = options.name("loss") == "mse";
        Ok(Arc::new(Regression { head: PooledHead::new(facts.dim, num, options.tap()), mean, sd, is_squared }))
    }

    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let mut rng = keyed(seed, Purpose::Panel, 0, 0);
        let num = facts.num_classes;
        let value = |_| if below(&mut rng, 8) == 0 { f32::NAN } else { 2.0 * normal(&mut rng) as f32 };
        Targets::Values { num, values: (0..num_images * num).map(value).collect() }
    }
}

/// Values of images: L is the mean over all known values of their errors, each value less its mean and over its standard
/// deviation.
#[derive(Clone, Debug)]
pub struct Regression {
    head: PooledHead,
    mean: Vec<f64>,
    sd: Vec<f64>,
    /// Whether the loss is the squared error.
    is_squared: bool,
}

/// Mean absolute error of the known values, in standard deviations.
static FIGURES: [Figure; 1] = [Figure::new("absolute_error", "sd")];

impl Regression {
    /// The standardised targets `[images, values]`, NaN where one is unknown.
    fn standardised(&self, y: &Targets) -> Result<Vec<f64>, ModelError> {
        let Targets::Values { num, values } = y else { return Err(wrong_kind("values", y)) };
        let problem = if *num != self.head.outputs() {
            format!("an image must have {} values, got {num}", self.head.outputs())
        } else if let Some(value) = values.iter().find(|value| value.is_infinite()) {
            format!("a value must be finite, or NaN where it is unknown, got {value}")
        } else {
            let standardise = |(i, v): (usize, &f32)| (f64::from(*v) - self.mean[i % num]) / self.sd[i % num];
            return Ok(values.iter().enumerate().map(standardise).collect());
        };
        Err(ModelError::Targets { problem })
    }
}

impl Task for Regression {
    fn reads(&self) -> &[Tap] {
        self.head.reads()
    }

    fn layout(&self) -> &SharedLayout {
        self.head.layout()
    }

    fn init(&self, seed: u64) -> Buffer {
        self.head.init(seed)
    }

    /// Squared standard deviations; of the smooth loss, of small errors.
    fn loss_unit(&self) -> &'static str {
        "sd2"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of known values, and 1.
    fn total(&self, y: &Targets) -> Total {
        let num_known = match y {
            Targets::Values { values, .. } => values.iter().filter(|value| !value.is_nan()).count(),
            _ => 0,
        };
        [num_known.max(1) as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let [num_known, _] = at.total();
        let (targets, num) = (self.standardised(at.y)?, self.head.outputs());
        let (mut loss, mut absolute) = (0.0, 0.0);
        let gradients = self.head.sweep(at, want, at.y.len(), |image, outputs, cotangent| {
            let targets = &targets[image * num..(image + 1) * num];
            for ((d, output), target) in cotangent.iter_mut().zip(outputs).zip(targets) {
                *d = 0.0;
                if target.is_nan() {
                    continue;
                }
                let error = output - target;
                absolute += error.abs();
                let (value, slope) = if self.is_squared {
                    (error * error, 2.0 * error)
                } else if error.abs() < 1.0 {
                    (0.5 * error * error, error)
                } else {
                    (error.abs() - 0.5, error.signum())
                };
                loss += value;
                *d = slope / num_known;
            }
        })?;
        let figures = vec![absolute / num_known];
        Ok(Share { loss: loss / num_known, figures, dc: gradients.dc, dz: gradients.dz })
    }

    fn is_linear(&self) -> bool {
        true
    }

    /// The standardised values.
    fn regression(&self, y: &Targets) -> Result<Option<(usize, Vec<f64>)>, ModelError> {
        let targets = self.standardised(y)?;
        if targets.iter().any(|target| target.is_nan()) {
            let problem = "the best linear head in closed form needs every value, got unknown ones".to_owned();
            return Err(ModelError::Targets { problem });
        }
        Ok(Some((self.head.outputs(), targets)))
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let num = self.head.outputs();
        let outputs = self.head.predict(c, z)?;
        let in_units = |(i, output): (usize, &f64)| (output * self.sd[i % num] + self.mean[i % num]) as f32;
        Ok(Predictions::Values { num, values: outputs.iter().enumerate().map(in_units).collect() })
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(RegressionErrors::new(self.head.outputs()))
    }
}
