//! What the stages need to know of a run: networks, schedules and the method's variants.

pub mod batch;
pub mod checkpoint_request;

use std::sync::Arc;

use mlomae_model::config::{ModelConfig, num_visible};
use mlomae_model::hypergradient::{HypergradientChoice, Settings};
use mlomae_model::lane::Chosen;
use mlomae_model::levels::optimizer::{AdamWConfig, Schedule};
use mlomae_model::masking::attention::AttentionConfig;
use mlomae_model::masking::schedule::Course;
use mlomae_model::masking::{MaskRule, MaskSelect, Needs};
use mlomae_model::search::PolicySearch;
use mlomae_model::tasks::{Noise, TaskSpec};
use mlomae_model::{Arena, Level, Model, ModelError, PerLevel, Precision};

use crate::config::{CheckpointConfig, Config, LevelConfig, Precondition};
use crate::counts::{Outer, Step, Version};
use crate::input::targets::Wanted;
use crate::method::checkpoint_request::CheckpointRequest;
use crate::record::{Level as LogLevel, Moment};

/// The method as configured. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Method {
    /// The networks.
    pub model: Arc<Model>,
    /// Seed of everything random.
    pub seed: u64,
    /// k: level-1 steps in an outer iteration.
    pub unroll: u64,
    /// d: the policy update of outer iteration j takes effect at the start of iteration j + 1 + d.
    pub lag: u64,
    /// Outer iterations of the whole run.
    pub total_outer: Outer,
    /// Form of the hypergradient.
    pub hypergradient: HypergradientChoice,
    /// Where the levels compute.
    pub engine: Chosen,
    /// Precision of the networks' products.
    pub precision: Precision,
    /// Control: the encoder keeps the perturbation of the finite difference.
    pub multitask: bool,
    /// Control: the direction trains the encoder and no masks.
    pub supervised: bool,
    /// Numbers and variants of level 3.
    pub settings: Settings,
    /// Dropout before the head.
    pub head_dropout: f64,
    /// Share of the patches that is masked, by level-1 step.
    pub ratio: Course,
    /// Share of patches placed at random, by level-1 step.
    pub explore: Course,
    /// Whether that share is drawn for each image by the policy.
    pub explore_arms: bool,
    /// Whether the mask ratio is drawn for each batch by the policy.
    pub ratio_arms: bool,
    /// Decay of the teacher's average for each level-1 step.
    pub ema: f64,
    /// Outer iterations between two states of the teacher; 0 for one a level-1 step.
    pub refresh: u64,
    /// How scores choose patches.
    pub select: MaskSelect,
    /// How closely drawn masks follow the scores.
    pub temperature: f64,
    /// Control: scores are permuted over the patches of their image.
    pub shuffle_scores: bool,
    /// Learning rates.
    pub schedules: PerLevel<Schedule>,
    /// Constants of AdamW.
    pub adamw: PerLevel<AdamWConfig>,
    /// Pretrain batches in an epoch.
    pub steps_per_epoch: u64,
    /// Images of a grain, over which sums are taken first.
    pub grain: usize,
    /// When checkpoints are written.
    pub checkpoint: CheckpointConfig,
    /// A checkpoint that is asked for beside them.
    pub checkpoint_request: CheckpointRequest,
    /// Level-1 steps between rows of metrics.
    pub metrics_every_steps: u64,
    /// Level-1 steps between rows of the panel's masks; 0: never.
    pub masks_every_steps: u64,
    /// What each task takes of a sample's targets.
    pub targets: Vec<Wanted>,
    /// Boxes of an image at most.
    pub max_boxes: usize,
    /// Recycled memory of the run.
    pub arena: Arena,
}

/// The networks' shapes as configured, for images of side `image` with `channels` channels: `tasks` are those of
/// [`Config::task_specs`] with what the data has for them, `num_classes` what it has for the first.
#[must_use]
pub fn model_config(
    config: &Config,
    image: usize,
    channels: usize,
    tasks: Vec<TaskSpec>,
    num_classes: usize,
) -> ModelConfig {
    let m = &config.model;
    ModelConfig {
        image,
        patch: m.patch,
        channels,
        dim: m.dim,
        depth: m.depth,
        heads: m.heads,
        dec_dim: m.dec_dim,
        dec_depth: m.dec_depth,
        dec_heads: m.dec_heads,
        pos_embed: m.pos_embed,
        mask_ratio: config.mask.ratio,
        mask_ratio_end: config.mask.ratio_end,
        masking: config.mask.strategy,
        mask_input: config.mask.input,
        mask_hidden: config.mask.hidden,
        mask_scales: config.mask.scales.clone(),
        mask_features: config.mask.features.clone(),
        mask_explore_arms: config.mask.explore_arms.clone(),
        mask_ratio_arms: config.mask.ratio_arms.clone(),
        mask_weights: config.mask.weights,
        mask_oracle: config.mask.oracle(),
        mask_attention: AttentionConfig {
            masked: config.mask.attention,
            map: config.mask.attention_map,
            hints: config.mask.hints,
        },
        mask_parts: config.mask.parts,
        mask_mixture: config.mask.mixture.clone(),
        mask_noise: config.mask.noise,
        mask_difficulty: config.mask.difficulty,
        task: config.method.task,
        tasks,
        task_balance: config.method.balance,
        num_classes,
    }
}

fn schedule(level: &LevelConfig, total_steps: u64) -> Schedule {
    Schedule { base: level.lr, warmup_steps: level.warmup_steps, total_steps, decay: level.schedule }
}

fn adamw(level: &LevelConfig) -> AdamWConfig {
    AdamWConfig {
        beta1: level.betas[0],
        beta2: level.betas[1],
        eps: 1e-8,
        weight_decay: level.weight_decay,
        decay_group: level.decay_group,
    }
}

impl Method {
    /// What the levels compute in, in words, for the record of a run: on the CPU with the instructions that decide how
    /// products round.
    #[must_use]
    pub fn arithmetic(&self) -> String {
        if self.engine.device.is_host() { self.precision.arithmetic() } else { self.precision.name().to_owned() }
    }

    /// The method of `config` with the networks of `model`.
    ///
    /// # Errors
    /// When the networks cannot be built, or the device cannot be used here.
    pub fn new(config: &Config, model: &ModelConfig, steps_per_epoch: u64) -> Result<Self, ModelError> {
        let unroll = config.method.unroll;
        let total_outer = Outer(config.train.outer_iterations);
        let num_steps = total_outer.first_step(unroll).0;
        let engine = config.engine.choose()?;
        if let Some(problem) = engine.device.refuses(config.compute.precision) {
            let precision = config.compute.precision;
            return Err(ModelError::Config(format!("compute.precision {precision}: {problem} ({engine})")));
        }
        let model = Arc::new(Model::new(model)?);
        if let Some(problem) = config.method.hypergradient.get().refuses(&*model.task) {
            return Err(ModelError::Config(problem));
        }
        if let Some(problem) = engine.device.unfit(&model.config) {
            return Err(ModelError::Config(format!("{problem}; engine = \"cpu\" has no such limit")));
        }
        Ok(Self {
            model,
            seed: config.seed,
            unroll,
            lag: u64::from(config.pipeline.lag),
            total_outer,
            hypergradient: config.method.hypergradient,
            engine,
            precision: config.compute.precision,
            multitask: config.method.multitask,
            supervised: config.method.supervised,
            settings: Settings {
                alpha: config.method.alpha,
                ridge_penalty: config.method.ridge_penalty,
                ridge_bank: config.method.ridge_bank,
                cg_damping: config.method.cg_damping,
                cg_steps: config.method.cg_steps,
                estimator: config.policy.estimator,
                precondition: config.method.precondition == Precondition::Adam,
                average: config.policy.average,
                search: config.policy.search,
                branch_steps: config.policy.branch_steps,
                branch_judges: config.policy.branch_judges,
                ratio_per_flop: config.mask.ratio_per_flop,
            },
            head_dropout: config.method.head_dropout,
            ratio: config.mask.ratio_course(num_steps),
            explore: config.mask.explore_course(num_steps),
            explore_arms: !config.mask.explore_arms.is_empty(),
            ratio_arms: !config.mask.ratio_arms.is_empty(),
            ema: config.mask.ema,
            refresh: config.mask.refresh,
            select: config.mask.select,
            temperature: config.mask.temperature,
            shuffle_scores: config.mask.shuffle_scores,
            schedules: PerLevel {
                pretrain: schedule(&config.pretrain, num_steps),
                finetune: schedule(&config.finetune, total_outer.0),
                mask: schedule(&config.policy.level(), total_outer.0),
            },
            adamw: PerLevel {
                pretrain: adamw(&config.pretrain),
                finetune: adamw(&config.finetune),
                mask: adamw(&config.policy.level()),
            },
            steps_per_epoch,
            grain: config.train.grain,
            checkpoint: config.checkpoint.clone(),
            checkpoint_request: CheckpointRequest::default(),
            metrics_every_steps: config.logs.metrics_every_steps,
            masks_every_steps: config.logs.masks_every_steps,
            targets: vec![Wanted::CLASS],
            max_boxes: config.data.max_boxes,
            arena: Arena::new(),
        })
    }

    /// The policy version that scores outer iteration `outer`.
    #[must_use]
    pub const fn policy_version(&self, outer: Outer) -> Version {
        outer.newest_version().before(self.lag)
    }

    /// The versions of the policy that outer iteration `outer` and those after it can ask for when it begins.
    #[must_use]
    pub const fn num_versions(&self, outer: Outer) -> u64 {
        outer.newest_version().since(self.policy_version(outer)) + 1
    }

    /// Whether images travel as pixels to the device, which makes values of them.
    #[must_use]
    pub fn takes_raw_images(&self) -> bool {
        self.engine.device.get().takes_raw_images()
    }

    /// What the tasks take of a sample's targets.
    #[must_use]
    pub fn with_targets(self, targets: Vec<Wanted>) -> Self {
        Self { targets, ..self }
    }

    /// Whether masks are learned; if not, levels 2 and 3 rest.
    #[must_use]
    pub fn is_learned(&self) -> bool {
        self.model.is_learned()
    }

    /// Whether level 3 trains branches of the encoder to decide on the policy.
    #[must_use]
    pub fn searches_branches(&self) -> bool {
        self.is_learned() && self.settings.search == PolicySearch::Branch
    }

    /// Whether scoring waits for the newest θ.
    #[must_use]
    pub fn scores_need_theta(&self) -> bool {
        self.model.masking.needs() == Needs::Embedding
    }

    /// Whether masks follow from a teacher, see [`teacher_version`](Self::teacher_version).
    #[must_use]
    pub fn reads_teacher(&self) -> bool {
        self.model.reads_teacher()
    }

    /// How often the teacher has been renewed before level-1 step `step`. The first is θ at the run's start.
    #[must_use]
    pub fn teacher_version(&self, step: Step) -> u64 {
        step.outer(self.unroll).0.checked_div(self.refresh).unwrap_or(step.0)
    }

    /// The version of the weights that scores of level-1 step `step` wait for, in their slot.
    #[must_use]
    pub fn weights_version(&self, step: Step) -> u64 {
        if self.reads_teacher() { self.teacher_version(step) } else { step.0 }
    }

    /// What is left of the teacher where it is renewed after level-1 step `step`: the decay of all steps since it was
    /// renewed last; none where it stays.
    #[must_use]
    pub fn teacher_decay(&self, step: Step) -> Option<f64> {
        let is_due = self.teacher_version(step.next()) != self.teacher_version(step);
        let num_steps = if self.refresh == 0 { 1 } else { self.refresh.saturating_mul(self.unroll) };
        is_due.then(|| self.ema.powf(num_steps as f64))
    }

    /// Whether masks follow from the objects of the images.
    #[must_use]
    pub fn masks_need_objects(&self) -> bool {
        self.model.masking.needs() == Needs::Objects
    }

    /// How the batch of level-1 step `step` is masked, but for [`MaskRule::objects`], which come with the batch, and for
    /// [`MaskRule::is_random`], which comes with the policy.
    #[must_use]
    pub fn mask_rule(&self, step: Step) -> MaskRule {
        let Self { seed, select, temperature, shuffle_scores, .. } = *self;
        let explore = self.explore.at(seed, step.0);
        let num_patches = self.model.config.num_patches();
        let scheduled = (!self.ratio.is_constant()).then(|| num_visible(num_patches, self.ratio.at(seed, step.0)));
        let num_steps = self.total_outer.first_step(self.unroll);
        MaskRule {
            seed,
            step: step.0,
            num_visible: scheduled,
            explore,
            explore_arms: self.explore_arms,
            explored: None,
            ratio_arms: self.ratio_arms,
            select,
            temperature,
            shuffle_scores,
            progress: (step.next().0 as f64 / num_steps.0.max(1) as f64).min(1.0),
            ..MaskRule::BY_SCORE
        }
    }

    /// How the panel is masked at level-1 step `step`: with the ratio and the exploration of that step, but the same
    /// random draws each time, so that only the policy makes a difference. A learned ratio leaves it at `mask.ratio`.
    #[must_use]
    pub fn panel_rule(&self, step: Step) -> MaskRule {
        MaskRule { step: u64::MAX, ratio_arms: false, ..self.mask_rule(step) }
    }

    /// Whether the encoder is shifted with each version of the policy, by a control.
    #[must_use]
    pub const fn shifts_encoder(&self) -> bool {
        self.multitask || self.supervised
    }

    /// Dropout of pass `pass` of outer iteration `outer`.
    #[must_use]
    pub fn noise(&self, outer: Outer, pass: u64) -> Option<Noise> {
        (self.head_dropout > 0.0).then_some(Noise {
            rate: self.head_dropout,
            seed: self.seed,
            outer: outer.0,
            pass,
            first_image: 0,
        })
    }

    /// Learning rate of a level at a step of its own: of level 1 a level-1 step, of the others an outer iteration.
    #[must_use]
    pub fn rate(&self, level: Level, step: u64) -> f64 {
        self.schedules[level].rate(step)
    }

    /// Where a row belongs after `step` level-1 steps.
    #[must_use]
    pub fn moment(&self, step: Step, level: LogLevel) -> Moment {
        let epoch = step.0.saturating_sub(1) / self.steps_per_epoch.max(1);
        Moment { epoch: i32::try_from(epoch).unwrap_or(i32::MAX), step, level }
    }

    /// Whether a checkpoint is due when `outer` outer iterations are done, by the configuration or as one was asked
    /// for.
    #[must_use]
    pub fn checkpoint_due(&self, outer: Outer) -> bool {
        self.checkpoint.is_due(outer, self.unroll) || self.checkpoint_request.is_marked(outer)
    }

    /// Whether the numbers of a level are logged after `step` level-1 steps, of which the last `span` are new.
    #[must_use]
    pub const fn metrics_due(&self, step: Step, span: u64) -> bool {
        let every = if self.metrics_every_steps == 0 { 1 } else { self.metrics_every_steps };
        step.has_passed(every, span)
    }
}
