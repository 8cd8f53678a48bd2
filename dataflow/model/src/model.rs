//! The networks of all three levels.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::layout::{Layout, SharedLayout};
use crate::level::Level;
use crate::masking::arms::Armed;
use crate::masking::{Masking, MaskingFacts, mixture};
use crate::nets::Vit;
use crate::parallel::arena::Params;
use crate::tasks::Task;

/// The networks of all three levels: shapes and names, without weights. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shapes.
    pub config: ModelConfig,
    /// Encoder and decoder θ.
    pub vit: Vit,
    /// The downstream task with its head c.
    pub task: Arc<dyn Task>,
    /// The masking strategy, with φ where it is learned.
    pub masking: Arc<dyn Masking>,
    /// An empty layout, for φ where nothing is learned.
    no_mask: SharedLayout,
}

impl Model {
    /// Builds the networks.
    ///
    /// # Errors
    /// [`ModelError::Config`] with everything that is wrong with the shapes.
    pub fn new(config: &ModelConfig) -> Result<Self, ModelError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(ModelError::Config(problems.join("; ")));
        }
        let c = config;
        let masking = MaskingFacts {
            grid: c.grid(),
            patch_values: c.patch_values(),
            channels: c.channels,
            num_visible: c.num_visible(),
            dim: c.dim,
            input: c.mask_input,
            hidden: c.mask_hidden,
            scales: c.mask_scales.clone().into(),
            oracle: c.mask_oracle,
            attention: c.mask_attention,
            num_parts: c.mask_parts,
            mixture: mixture::strategies(&c.mask_mixture).unwrap_or_default().into(),
            noise: c.mask_noise,
        };
        Ok(Model {
            config: config.clone(),
            vit: Vit::new(config),
            task: c.build_task()?,
            masking: Armed::wrap(
                c.masking.build(&masking),
                &c.mask_explore_arms,
                (&c.mask_ratio_arms, c.num_patches()),
            ),
            no_mask: Arc::new(Layout::new(Level::Mask)),
        })
    }

    /// The same networks with another task in the place of their own, which reads the same taps and has the same layout.
    #[must_use]
    pub fn with_task(&self, task: &Arc<dyn Task>) -> Self {
        Model { task: task.clone(), ..self.clone() }
    }

    /// Whether masks are learned; if not, there is no φ, and a run has level 1 alone.
    #[must_use]
    pub fn is_learned(&self) -> bool {
        self.masking.layout().is_some()
    }

    /// Names and shapes of a level's weights; empty for level 3 where nothing is learned.
    #[must_use]
    pub fn layout(&self, level: Level) -> &SharedLayout {
        match level {
            Level::Pretrain => &self.vit.layout,
            Level::Finetune => self.task.layout(),
            Level::Mask => self.masking.layout().unwrap_or(&self.no_mask),
        }
    }

    /// Initial weights of a level, flat.
    #[must_use]
    pub fn init(&self, level: Level, seed: u64) -> Params {
        Arc::new(match level {
            Level::Pretrain => self.vit.init(seed),
            Level::Finetune => self.task.init(seed),
            Level::Mask => self.masking.init(seed),
        })
    }
}
