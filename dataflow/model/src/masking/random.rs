//! Uniformly random masks and a loss without scores: the ordinary masked autoencoder (MAE, arXiv 2111.06377), as
//! baseline.

use std::sync::Arc;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use super::order::uniform_keys;
use crate::choice::Named;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "random"
    }
    fn summary(&self) -> &'static str {
        "Masks drawn uniformly and a loss without scores: an ordinary masked autoencoder, levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Random { num_patches: facts.num_patches() })
    }
}

/// Random masks.
#[derive(Clone, Debug)]
pub struct Random {
    num_patches: usize,
}

impl Masking for Random {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        uniform_keys(num_images, self.num_patches, rule)
    }
}
