//! The class of each pixel: heads on the patch tokens, and a cross entropy over pixels whose class is known.
//!
//! Heads cost about as much as a pass of the encoder. They run image by image, so that the logits of one image are all
//! that a thread holds.

mod heads;
mod tokens;
mod up;

pub use heads::{Bilinear, PixelHead, PixelPass, Shuffle};
pub use tokens::{TokenLinear, TokenPass};
pub use up::Up;

use std::sync::Arc;

use super::metrics::{MeanIou, Metrics};
use super::options::{OptionValues, TaskOption, TaskOptions};
use super::predictions::{Predictions, best};
use super::targets::{Targets, UNKNOWN_CLASS};
use super::task::{At, Figure, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want, wrong_kind};
use crate::choice::Named;
use crate::error::ModelError;
use crate::layout::{Layout, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::rng::{Purpose, below, keyed};
use crate::tap::Tap;

/// The entry of [`super::TASKS`].
#[derive(Debug)]
pub struct Kind;

static OPTIONS: [TaskOption; 1] = [TaskOption {
    name: "head",
    summary: "A linear layer for all pixels of a patch, one for the patch with interpolation between patches, or convolutions that enlarge patches step by step",
    values: OptionValues::OneOf(&["patch", "linear", "up"]),
}];

impl Named for Kind {
    fn name(&self) -> &'static str {
        "segmentation"
    }
    fn summary(&self) -> &'static str {
        "The class of each pixel: a head on the normalised patch tokens, cross entropy over pixels whose class is known"
    }
}

impl TaskKind for Kind {
    fn options(&self) -> &'static [TaskOption] {
        &OPTIONS
    }

    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        if facts.num_classes < 2 || facts.num_classes >= usize::from(UNKNOWN_CLASS) {
            let problem = format!("there must be 2 to {} classes, got {}", UNKNOWN_CLASS - 1, facts.num_classes);
            return Err(ModelError::Config(problem));
        }
        let mut layout = Layout::new(Level::Finetune);
        let head: Box<dyn PixelHead> = match options.name("head") {
            "linear" => Box::new(Bilinear::new(&mut layout, facts)),
            "up" => Box::new(Up::new(&mut layout, facts)?),
            _ => Box::new(Shuffle::new(&mut layout, facts)),
        };
        Ok(Arc::new(Segmentation { facts: *facts, head, layout: Arc::new(layout) }))
    }

    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let mut rng = keyed(seed, Purpose::Panel, 0, 0);
        let side = facts.side();
        let mut class = |_| match below(&mut rng, facts.num_classes as u64 + 1) as usize {
            class if class < facts.num_classes => class as u16,
            _ => UNKNOWN_CLASS,
        };
        Targets::Maps { side, classes: (0..num_images * side * side).map(&mut class).collect() }
    }
}

/// Segmentation of images: L is the mean over all pixels whose class is known of their cross entropies.
#[derive(Debug)]
pub struct Segmentation {
    facts: TaskFacts,
    head: Box<dyn PixelHead>,
    layout: SharedLayout,
}

/// Pixels of known class whose largest logit is that of their class.
static FIGURES: [Figure; 1] = [Figure::new("pixel_accuracy", "share")];

impl Segmentation {
    fn classes<'a>(&self, y: &'a Targets) -> Result<&'a [u16], ModelError> {
        let Targets::Maps { side, classes } = y else { return Err(wrong_kind("class maps", y)) };
        let (wanted, num_classes) = (self.facts.side(), self.facts.num_classes);
        let is_known = |class: &&u16| **class != UNKNOWN_CLASS && usize::from(**class) >= num_classes;
        let problem = if *side != wanted {
            format!("class maps must have sides of {wanted} pixels, got {side}")
        } else if let Some(class) = classes.iter().find(is_known) {
            format!("the class of a pixel must be in 0..{num_classes}, got {class}")
        } else {
            return Ok(classes);
        };
        Err(ModelError::Targets { problem })
    }

    /// The tokens of each image.
    fn tokens<'a>(&self, z: &[Tokens<'a>]) -> Result<std::slice::ChunksExact<'a, f32>, ModelError> {
        let TaskFacts { dim, .. } = self.facts;
        match z {
            [z] if z.per_image == self.facts.num_patches() && z.dim == dim => {
                Ok(z.values.chunks_exact(z.per_image * dim))
            }
            _ => {
                let problem = format!("the head reads the {} patch tokens of an image", self.facts.num_patches());
                Err(ModelError::Targets { problem })
            }
        }
    }
}

impl Task for Segmentation {
    fn reads(&self) -> &[Tap] {
        &[Tap::Patches]
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        self.head.init(&self.layout, &mut values, seed);
        Buffer::from_vec(values)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of pixels whose class is known, and 1.
    fn total(&self, y: &Targets) -> Total {
        [y.num_known_pixels().max(1) as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let [num_pixels, _] = at.total();
        let (classes, tokens) = (self.classes(at.y)?, self.tokens(at.z)?);
        let (k, per_image) = (self.facts.num_classes, self.facts.side().pow(2));
        if classes.len() != tokens.len() * per_image {
            let problem = format!("targets of {} images, tokens of {}", at.y.len(), tokens.len());
            return Err(ModelError::Targets { problem });
        }
        let per_tokens = self.facts.num_patches() * self.facts.dim;
        let factors = at.noise.map(|noise| noise.factors(tokens.len(), per_tokens));
        let mut dc = vec![0.0; if want.dc { self.layout.len } else { 0 }];
        let mut dz = vec![0.0; if want.dz { tokens.len() * per_tokens } else { 0 }];
        let (mut loss, mut num_right) = (0.0, 0usize);
        for (image, (tokens, classes)) in tokens.zip(classes.chunks_exact(per_image)).enumerate() {
            let place = image * per_tokens..(image + 1) * per_tokens;
            let mut pass = self.head.pass(at.c, tokens, factors.as_ref().map(|factors| &factors[place.clone()]));
            for (logits, &class) in pass.logits().chunks_exact_mut(k).zip(classes) {
                if class == UNKNOWN_CLASS {
                    logits.fill(0.0);
                    continue;
                }
                let class = usize::from(class);
                num_right += usize::from(best(logits) == class);
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let of_class = logits[class];
                let mut sum = 0.0;
                for logit in logits.iter_mut() {
                    *logit = (*logit - top).exp();
                    sum += *logit;
                }
                loss += top + sum.ln() - of_class;
                let scale = 1.0 / (sum * num_pixels);
                logits.iter_mut().for_each(|logit| *logit *= scale);
                logits[class] -= 1.0 / num_pixels;
            }
            if want != Want::LOSS {
                let dc = want.dc.then_some(&mut dc[..]);
                pass.backward(dc, if want.dz { Some(&mut dz[place]) } else { None });
            }
        }
        Ok(Share {
            loss: loss / num_pixels,
            figures: vec![num_right as f64 / num_pixels],
            dc,
            dz: if want.dz { vec![dz] } else { Vec::new() },
        })
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let mut classes = Vec::new();
        for tokens in self.tokens(z)? {
            let mut pass = self.head.pass(c, tokens, None);
            classes.extend(pass.logits().chunks_exact(self.facts.num_classes).map(|logits| best(logits) as u16));
        }
        Ok(Predictions::Maps { side: self.facts.side(), classes })
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(MeanIou::new(self.facts.num_classes))
    }
}
