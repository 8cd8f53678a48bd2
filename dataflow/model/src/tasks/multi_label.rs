//! Properties of an image, each of which it has or not: a [`PooledHead`] with a binary cross entropy for each.

use std::sync::Arc;

use super::metrics::{MeanAveragePrecision, Metrics};
use super::options::{TAP, TaskOption, TaskOptions};
use super::pooled::PooledHead;
use super::predictions::Predictions;
use super::targets::Targets;
use super::task::{At, Figure, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want, wrong_kind};
use crate::choice::Named;
use crate::error::ModelError;
use crate::layout::SharedLayout;
use crate::parallel::arena::Buffer;
use crate::rng::{Purpose, below, keyed};
use crate::tap::Tap;

/// The entry of [`super::TASKS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "multi-label"
    }
    fn summary(&self) -> &'static str {
        "Labels that an image has or not: a linear layer on the normalised CLS token, binary cross entropy over known labels"
    }
}

impl TaskKind for Kind {
    fn has_closed_form(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [TaskOption] {
        &[TAP]
    }

    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        Ok(Arc::new(MultiLabel { head: PooledHead::new(facts.dim, facts.num_classes, options.tap()) }))
    }

    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let mut rng = keyed(seed, Purpose::Panel, 0, 0);
        let num = facts.num_classes;
        Targets::Labels { num, values: (0..num_images * num).map(|_| below(&mut rng, 3) as i8 - 1).collect() }
    }
}

/// Labels of images: L is the mean over all known labels of their binary cross entropies.
#[derive(Clone, Debug)]
pub struct MultiLabel {
    head: PooledHead,
}

/// Known labels on whose side the logit is.
static FIGURES: [Figure; 1] = [Figure::new("accuracy", "share")];

impl MultiLabel {
    fn labels<'a>(&self, y: &'a Targets) -> Result<&'a [i8], ModelError> {
        let Targets::Labels { num, values } = y else { return Err(wrong_kind("labels", y)) };
        let problem = if *num != self.head.outputs() {
            format!("an image must have {} labels, got {num}", self.head.outputs())
        } else if let Some(label) = values.iter().find(|label| !(-1..=1).contains(*label)) {
            format!("a label must be 1, 0 or -1 where it is unknown, got {label}")
        } else {
            return Ok(values);
        };
        Err(ModelError::Targets { problem })
    }
}

impl Task for MultiLabel {
    fn reads(&self) -> &[Tap] {
        self.head.reads()
    }

    fn layout(&self) -> &SharedLayout {
        self.head.layout()
    }

    fn init(&self, seed: u64) -> Buffer {
        self.head.init(seed)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of known labels, and 1.
    fn total(&self, y: &Targets) -> Total {
        let num_known = match y {
            Targets::Labels { values, .. } => values.iter().filter(|label| **label >= 0).count(),
            _ => 0,
        };
        [num_known.max(1) as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let [num_known, _] = at.total();
        let (labels, num) = (self.labels(at.y)?, self.head.outputs());
        let (mut loss, mut num_right) = (0.0, 0usize);
        let gradients = self.head.sweep(at, want, at.y.len(), |image, logits, cotangent| {
            let labels = &labels[image * num..(image + 1) * num];
            for ((d, &logit), &label) in cotangent.iter_mut().zip(logits).zip(labels) {
                *d = 0.0;
                if label < 0 {
                    continue;
                }
                let target = f64::from(label);
                // ln(1 + eˣ) − y·x, in a form that neither overflows nor cancels.
                loss += logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p();
                num_right += usize::from((logit > 0.0) == (label == 1));
                *d = (1.0 / (1.0 + (-logit).exp()) - target) / num_known;
            }
        })?;
        let figures = vec![num_right as f64 / num_known];
        Ok(Share { loss: loss / num_known, figures, dc: gradients.dc, dz: gradients.dz })
    }

    fn is_linear(&self) -> bool {
        true
    }

    /// One column a label: 1 where an image has it, else 0.
    fn regression(&self, y: &Targets) -> Result<Option<(usize, Vec<f64>)>, ModelError> {
        let labels = self.labels(y)?;
        if labels.iter().any(|label| *label < 0) {
            let problem = "the best linear head in closed form needs every label, got unknown ones".to_owned();
            return Err(ModelError::Targets { problem });
        }
        Ok(Some((self.head.outputs(), labels.iter().map(|label| f64::from(*label)).collect())))
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        self.head.scores(c, z)
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(MeanAveragePrecision::new(self.head.outputs()))
    }
}
