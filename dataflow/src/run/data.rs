//! The data of a run: opened splits, roles, and how images become what the networks see.

use std::collections::HashSet;
use std::sync::Arc;

use mlomae_model::ModelConfig;
use mlomae_model::tasks::TaskSpec;
use mlomae_storage::dataset::{self, Dataset, DatasetSpec, LabelOrigin, NameSource, Split, TargetKind};

use crate::config::{Config, ConfigError, MemoryCheck};
use crate::input::augment::{Normalisation, Preparation};
use crate::input::bad_images::BadImages;
use crate::input::plan::{EpochPlan, PlanError, Role, Roles, Shares};
use crate::input::targets::{Moments, Wanted, wanted};
use crate::method::batch::Panel;
use crate::method::{Method, model_config};
use crate::run::held_out::TestRole;
use crate::run::pipeline::Setup;
use crate::run::setup_error::SetupError;
use crate::run::state::TrainState;
use crate::stages::load::{LoadStage, measure_normalisation};

/// Opened data with its roles.
#[derive(Clone)]
pub struct RunData {
    /// The split that is divided into the roles pretrain, finetune and validation.
    pub train: Arc<dyn Dataset>,
    /// The split of the test role, which training never sees, in the train split's classes; none if nothing judges.
    pub test: Option<Arc<dyn Dataset>>,
    /// Which split has the test role, and why.
    pub test_role: TestRole,
    /// Who learns from which samples of the train split.
    pub roles: Roles,
    /// Side of the square images that the networks see, in pixels.
    pub image: usize,
    /// Channels that the networks see, 1 or 3.
    pub channels: usize,
    /// Normalisation of the values.
    pub normalisation: Normalisation,
    /// What is done about bad images, and which were passed over.
    pub bad_images: BadImages,
    /// The tasks, each with what the data has for it; none for the classification of images with its defaults.
    pub tasks: Vec<TaskSpec>,
}

impl std::fmt::Debug for RunData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunData").field("train", self.train.info()).finish_non_exhaustive()
    }
}

impl RunData {
    /// Opens the data of `config`, divides it into roles and checks what only the data can tell. `normalisation` is
    /// that of a checkpoint; without it the configured one, or one measured over the pretrain role.
    ///
    /// # Errors
    /// [`SetupError`]; all errors of the configuration at once.
    pub fn open(config: &Config, normalisation: Option<Normalisation>) -> Result<Self, SetupError> {
        let data = &config.data;
        let max_resident_bytes = (config.run.memory_check == MemoryCheck::Warn).then_some(u64::MAX);
        let train = dataset::open(&DatasetSpec { max_resident_bytes, ..config.dataset_spec(Split::Train) })?;
        let info = train.info();
        let labels = (0..train.len()).map(|index| train.label(index)).collect::<Result<Vec<_>, _>>()?;
        let needs_classes = config.needs_classes();
        if needs_classes {
            check_labels(train.as_ref(), &labels, data.label_column.is_some())?;
        }
        check_targets(config, train.as_ref())?;
        let (test, test_role) = TestRole::open(config, train.as_ref(), &labels, max_resident_bytes)?;
        let shares = Shares {
            pretrain: data.pretrain_fraction,
            finetune: data.finetune_fraction,
            validation: data.validation_fraction,
        };
        // Every image may be labelled for tasks that learn from something else; a class that is known all the same evens
        // the roles out.
        let strata: Vec<Option<i32>> =
            if needs_classes { labels } else { labels.iter().map(|label| Some(label.unwrap_or(-1))).collect() };
        let roles = Roles::split(&strata, shares, data.max_samples, config.seed)?;
        let mut errors = Vec::new();
        let image = image_side(config, train.as_ref()).unwrap_or_else(|error| {
            errors.push(error);
            0
        });
        if errors.is_empty() {
            errors.extend(config.check_image(image));
            errors.extend(check_objects(config, train.as_ref(), image));
        }
        let num = |role| roles.indices(role).len();
        errors.extend(config.check_roles(num(Role::Pretrain), num(Role::Finetune), num(Role::Validation)));
        // Colour anywhere is colour: a grey training split does not take it from the test split.
        let of_test = test.as_ref().map_or(1, |test| test.info().channels);
        let channels = data.channels.unwrap_or(info.channels.max(of_test));
        let bad_images = BadImages::new(data.on_bad_image);
        if data.mean.as_ref().is_some_and(|mean| mean.len() != channels) {
            errors.push(ConfigError {
                key: "data.mean, data.std".to_owned(),
                value: format!("{} values", data.mean.as_ref().map_or(0, Vec::len)),
                problem: "one value is needed for each channel".to_owned(),
                allowed: format!("{channels} values each"),
                suggestion: None,
            });
        }
        if !errors.is_empty() {
            return Err(SetupError::Config(errors));
        }
        let normalisation = match (normalisation, &data.mean, &data.std) {
            (Some(normalisation), ..) => normalisation,
            (None, Some(mean), Some(std)) => Normalisation { mean: mean.clone(), std: std.clone() },
            _ => measure_normalisation(train.as_ref(), roles.indices(Role::Pretrain), channels, &bad_images)?,
        };
        let tasks = task_specs(config, train.as_ref(), roles.indices(Role::Finetune), &bad_images)?;
        Ok(Self { train, test, test_role, roles, image, channels, normalisation, bad_images, tasks })
    }

    /// What the readers passed over, one line each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.train.notes();
        let num_images = self.train.len();
        let num_unlabelled = (0..num_images).filter(|index| matches!(self.train.label(*index), Ok(None))).count();
        if num_unlabelled > 0 && self.learns_classes() {
            notes.push(format!(
                "{num_unlabelled} of {num_images} images of the train split have no label, they can only pretrain"
            ));
        }
        for note in self.test.iter().flat_map(|test| test.notes()) {
            // Both splits tell of the folders around them.
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    fn learns_classes(&self) -> bool {
        self.train.targets_info().iter().any(|info| info.kind == TargetKind::Class)
    }

    /// Number of classes, or what else the first task learns from: labels, values, classes of pixels or objects.
    #[must_use]
    pub fn num_classes(&self) -> usize {
        let of_first = self.train.targets_info().first().map(|info| info.names.len());
        of_first.unwrap_or_else(|| self.train.info().class_names.len())
    }

    /// What each task takes of a sample's targets.
    #[must_use]
    pub fn wanted(&self, config: &Config) -> Vec<Wanted> {
        wanted(&config.target_kinds(), &self.train.targets_info())
    }

    /// Shapes of the networks for this data.
    #[must_use]
    pub fn model_config(&self, config: &Config) -> ModelConfig {
        model_config(config, self.image, self.channels, self.tasks.clone(), self.num_classes())
    }

    /// Which batches are made of which samples.
    ///
    /// # Errors
    /// When a role has less than a batch.
    pub fn plan(&self, config: &Config) -> Result<EpochPlan, PlanError> {
        let batches = [config.pretrain.batch, config.finetune.batch, config.policy.batch];
        EpochPlan::new(self.roles.clone(), batches, config.seed)
    }

    /// The method of `config` on this data.
    ///
    /// # Errors
    /// When roles or networks do not fit.
    pub fn method(&self, config: &Config) -> Result<Method, SetupError> {
        let plan = self.plan(config)?;
        let method = Method::new(config, &self.model_config(config), plan.batches_per_epoch(Role::Pretrain))?;
        Ok(method.with_targets(self.wanted(config)))
    }

    /// A loader of `dataset` (the train or the test split), of images as `method`'s device takes them.
    ///
    /// # Errors
    /// When a role has less than a batch.
    pub fn loader(&self, config: &Config, dataset: &Arc<dyn Dataset>, method: &Method) -> Result<LoadStage, PlanError> {
        let preparation = Preparation {
            side: self.image,
            channels: self.channels,
            normalisation: self.normalisation.clone(),
            augment: config.data.augment.clone(),
        };
        let plan = self.plan(config)?;
        let (arena, unroll) = (method.arena.clone(), config.method.unroll);
        let load = LoadStage::new(dataset.clone(), plan, preparation, config.seed, unroll, arena);
        let load = load.with_targets(self.wanted(config), config.data.max_boxes);
        let load = load.with_bad_images(self.bad_images.clone()).with_raw_images(method.takes_raw_images());
        Ok(load.with_objects(method.masks_need_objects().then_some(method.model.config.patch)))
    }

    /// Everything that a run starts from.
    ///
    /// # Errors
    /// When roles do not fit or a sample of the panel cannot be read.
    pub fn setup(&self, config: &Config, method: Method, state: TrainState) -> Result<Setup, SetupError> {
        let mut load = self.loader(config, &self.train, &method)?;
        if config.method.shuffle_labels {
            load = load.with_shuffled_labels();
        }
        let indices = load.panel(Role::Validation, config.logs.panel_size)?;
        let objects = load.object_patches(&indices, method.model.config.patch);
        let panel = Panel { batch: load.samples(&indices)?, objects };
        Ok(Setup { method, load, state, panel, actors: config.actors.clone() })
    }
}

/// That the data has something for each task.
fn check_targets(config: &Config, train: &dyn Dataset) -> Result<(), SetupError> {
    let infos = train.targets_info();
    for kind in config.target_kinds() {
        if infos.iter().find(|info| info.kind == kind).is_none_or(|info| info.names.is_empty()) {
            return Err(SetupError::NoTargets { name: train.info().name.clone(), kind });
        }
    }
    Ok(())
}

/// The tasks, each with its outputs; of a regression also the mean and the deviation of its values in the role that
/// trains the head.
fn task_specs(
    config: &Config,
    train: &dyn Dataset,
    finetune: &[usize],
    bad_images: &BadImages,
) -> Result<Vec<TaskSpec>, SetupError> {
    let kinds = config.target_kinds();
    let all = wanted(&kinds, &train.targets_info());
    let mut specs = config.task_specs();
    for (spec, wanted) in specs.iter_mut().zip(&all) {
        spec.outputs = Some(wanted.num);
        if wanted.kind == TargetKind::Values {
            let Moments { mean, std } = Moments::of_values(train, finetune, wanted, bad_images)?;
            for (option, values) in [("mean", mean), ("sd", std)] {
                spec.options.entry(option.to_owned()).or_insert_with(|| values.into());
            }
        }
    }
    Ok(specs)
}

/// Whether the labels of the train split can be a task's: several classes, and several images of them.
/// Who names the column knows what is in it, so that only what cannot be a task at all is refused.
fn check_labels(train: &dyn Dataset, labels: &[Option<i32>], is_named: bool) -> Result<(), SetupError> {
    let (info, origin) = (train.info(), train.label_origin());
    let name = info.name.clone();
    let num_labelled = labels.iter().flatten().count();
    let distinct: HashSet<i32> = labels.iter().copied().flatten().collect();
    let num_classes = distinct.len();
    let labels = labels_text(train, &origin, num_labelled);
    if num_classes < 2 {
        return Err(SetupError::Classes { name, num_classes, labels });
    }
    let refuse = |problem: String| Err(SetupError::NoClasses { name: name.clone(), problem, labels: labels.clone() });
    // Names that the data declares may well be more than the images of a small part of it.
    let is_declared = is_named || origin.names == NameSource::Declared;
    if num_classes == num_labelled || (!is_declared && 2 * num_classes > num_labelled) {
        return refuse(format!("{num_labelled} labelled images have {num_classes} different ones, as an index has"));
    }
    if !is_declared && info.class_names.len() > num_labelled {
        let last = info.class_names.len() - 1;
        return refuse(format!("they are numbers up to {last} of only {num_labelled} labelled images"));
    }
    Ok(())
}

/// Where the labels of the train split were looked for, and how many there are.
fn labels_text(train: &dyn Dataset, origin: &LabelOrigin, num_labelled: usize) -> String {
    let num_images = train.len();
    match (&train.info().label_column, origin.not_taken.as_slice()) {
        (Some(column), _) => {
            let kind = origin.column_type.as_ref().map_or_else(String::new, |kind| format!(" ({kind})"));
            format!(
                "column {column}{kind} has a label in {num_labelled} of {num_images} rows; data.label_column names one"
            )
        }
        (None, []) if num_labelled == 0 => "there is no label column".to_owned(),
        (None, []) => format!("{num_labelled} of {num_images} images have a label"),
        (None, columns) => {
            format!("there is no label column, data.label_column names one of: {}", columns.join(", "))
        }
    }
}

/// That masks which follow from the objects of the images can know them.
fn check_objects(config: &Config, train: &dyn Dataset, image: usize) -> Option<ConfigError> {
    if !config.mask.needs_objects() {
        return None;
    }
    let refuse = |key: &str, value: String, problem: String, allowed: &str| ConfigError {
        key: key.to_owned(),
        value,
        problem,
        allowed: allowed.to_owned(),
        suggestion: None,
    };
    let info = train.info();
    if train.known_object_patches(0, config.model.patch).is_none() {
        let value = format!("\"{}\"", config.mask.strategy);
        let problem = format!("needs data that knows its objects, {} does not", info.name);
        return Some(refuse("mask.strategy", value, problem, "data.format = \"synthetic\", or another strategy"));
    }
    let side = info.image_size.map_or(image, |(side, _)| side);
    (side != image).then(|| {
        let problem = format!("resizes images, and with mask.strategy = \"{}\"", config.mask.strategy);
        let problem = format!("{problem} their objects must stay where they are");
        refuse("data.image", image.to_string(), problem, &side.to_string())
    })
}

/// The configured side, or that of the data's own images if they are all one square.
fn image_side(config: &Config, train: &dyn Dataset) -> Result<usize, ConfigError> {
    let refuse = |problem: String| ConfigError {
        key: "data.image".to_owned(),
        value: String::new(),
        problem,
        allowed: "a side in pixels, 8 to 1024, to which images are resized".to_owned(),
        suggestion: None,
    };
    match (config.data.image, train.info().image_size) {
        (Some(image), _) => Ok(image),
        (None, Some((width, height))) if width == height => Ok(width),
        (None, Some((width, height))) => {
            Err(refuse(format!("is missing, the images are not square ({width} x {height})")))
        }
        (None, None) => Err(refuse("is missing, the images differ in size, or are too many to look at all".to_owned())),
    }
}
