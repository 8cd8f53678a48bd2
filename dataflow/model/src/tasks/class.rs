//! Classification: a [`PooledHead`] with a cross entropy over classes.

use std::sync::Arc;

use super::metrics::{Accuracy, Metrics};
use super::options::{TAP, TaskOption, TaskOptions};
use super::pooled::PooledHead;
use super::predictions::{Predictions, best};
use super::targets::Targets;
use super::task::{At, Figure, LinearHead, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want};
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
        "class"
    }
    fn summary(&self) -> &'static str {
        "Classification: a linear layer on the normalised CLS token, cross entropy"
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
        if facts.num_classes < 2 {
            return Err(ModelError::Config(format!("there must be at least 2 classes, got {}", facts.num_classes)));
        }
        Ok(Arc::new(Classification::reading(options.tap(), facts.dim, facts.num_classes)))
    }

    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let mut rng = keyed(seed, Purpose::Panel, 0, 0);
        Targets::Classes((0..num_images).map(|_| below(&mut rng, facts.num_classes as u64) as i32).collect())
    }
}

/// Classification of images.
#[derive(Clone, Debug)]
pub struct Classification {
    head: PooledHead,
}

/// The only number logged beside the loss.
static FIGURES: [Figure; 1] = [Figure::new("accuracy", "share")];

impl Classification {
    /// Lays the weights out for a head on the CLS token.
    #[must_use]
    pub fn new(dim: usize, num_classes: usize) -> Self {
        Self::reading(Tap::Cls, dim, num_classes)
    }

    /// Lays the weights out for a head on a tap that [is pooled](Tap::is_pooled).
    #[must_use]
    pub fn reading(tap: Tap, dim: usize, num_classes: usize) -> Self {
        Classification { head: PooledHead::new(dim, num_classes, tap) }
    }

    fn as_linear_head(&self) -> LinearHead {
        let [gamma, beta, weight, bias] = self.head.places();
        LinearHead { gamma, beta, weight, bias }
    }

    /// The class of highest logit of each row of `z` `[images, dim]` at the head `c`; the lowest of equal ones.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when `z` is not whole rows.
    pub fn classes(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Vec<i32>, ModelError> {
        let logits = self.head.predict(c, z)?;
        Ok(logits.chunks_exact(self.head.outputs()).map(|logits| best(logits) as i32).collect())
    }
}

impl Task for Classification {
    fn reads(&self) -> &[Tap] {
        self.head.reads()
    }

    fn layout(&self) -> &SharedLayout {
        self.head.layout()
    }

    /// Unit norm gain, U(±1/√dim) for the linear layer.
    fn init(&self, seed: u64) -> Buffer {
        self.head.init(seed)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of images, and 1.
    fn total(&self, y: &Targets) -> Total {
        [y.len().max(1) as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let [num_images, _] = at.total();
        let head = self.as_linear_head();
        let classes = head.classes(at.y)?;
        let (mut loss, mut num_right) = (0.0, 0usize);
        let gradients = self.head.sweep(at, want, classes.len(), |image, logits, cotangent| {
            let label = classes[image] as usize;
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            loss += log_sum - logits[label];
            num_right += usize::from(best(logits) == label);
            if want == Want::LOSS {
                return;
            }
            for (class, (d, l)) in cotangent.iter_mut().zip(logits).enumerate() {
                *d = ((l - log_sum).exp() - f64::from(u8::from(class == label))) / num_images;
            }
        })?;
        let figures = vec![num_right as f64 / num_images];
        Ok(Share { loss: loss / num_images, figures, dc: gradients.dc, dz: gradients.dz })
    }

    fn is_linear(&self) -> bool {
        true
    }

    /// One column a class: 1 for the image's own, else 0.
    fn regression(&self, y: &Targets) -> Result<Option<(usize, Vec<f64>)>, ModelError> {
        let num_classes = self.head.outputs();
        let head = self.as_linear_head();
        let rows = head.classes(y)?.iter();
        let columns = |class: &i32| {
            let class = *class as usize;
            (0..num_classes).map(move |column| f64::from(u8::from(column == class)))
        };
        Ok(Some((num_classes, rows.flat_map(columns).collect())))
    }

    fn linear_head(&self) -> Option<LinearHead> {
        Some(self.as_linear_head())
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        self.head.scores(c, z)
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(Accuracy::new(self.head.outputs()))
    }
}
