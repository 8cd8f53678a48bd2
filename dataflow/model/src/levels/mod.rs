//! The three levels of MLO-MAE as plain functions of tensors: they know no channel, no actor and no file.
//!
//! | level | variable | loss |
//! |---|---|---|
//! | 1 pretrain | θ | L_m = Σ pᵢ mᵢ ℓᵢ / Σ mᵢ |
//! | 2 finetune | c | L_f, the task loss of the head on E_θ(x), θ frozen |
//! | 3 mask | φ | L_v, the same task loss on validation data at θ*(φ), c*(θ*) |

pub mod downstream;
pub mod hypergradient;
pub mod optimizer;
pub mod pretrain;
pub mod scoring;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::layout::{ParamSet, SharedLayout};
use crate::masking::MaskNet;
use crate::nets::Vit;
use crate::parallel::arena::Params;
use crate::tasks::Head;

/// The networks of all three levels.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shapes.
    pub config: ModelConfig,
    /// Encoder and decoder θ.
    pub vit: Vit,
    /// Downstream head c.
    pub head: Head,
    /// Masking network φ.
    pub mask_net: MaskNet,
}

impl Model {
    /// Builds the networks.
    ///
    /// # Errors
    /// Names everything that is wrong with the shapes.
    pub fn new(config: &ModelConfig) -> Result<Self, ModelError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(ModelError::Config(problems.join("; ")));
        }
        Ok(Model {
            config: config.clone(),
            vit: Vit::new(config),
            head: Head::new(config.dim, config.num_classes),
            mask_net: MaskNet::new(config),
        })
    }

    /// Names and places of a set's weights.
    pub fn layout(&self, set: ParamSet) -> &SharedLayout {
        match set {
            ParamSet::Pretrain => &self.vit.layout,
            ParamSet::Head => &self.head.layout,
            ParamSet::Mask => &self.mask_net.layout,
        }
    }

    /// Initial values of a set.
    pub fn init(&self, set: ParamSet, seed: u64) -> Params {
        std::sync::Arc::new(match set {
            ParamSet::Pretrain => self.vit.init(seed),
            ParamSet::Head => self.head.init(seed),
            ParamSet::Mask => self.mask_net.init(seed),
        })
    }
}
