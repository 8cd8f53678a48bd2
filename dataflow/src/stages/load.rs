//! The load stage: plans, decodes and augments batches, and normalises them where the device does not.

use std::collections::HashMap;
use std::sync::Arc;

use mlomae_model::Arena;
use mlomae_storage::dataset::{DataError, Dataset, Sample, Target, TargetKind};
use mlomae_storage::exit_code::ExitCode;

use crate::counts::{Outer, Step};
use crate::flow::exit::StageError;
use crate::flow::ports::{Halt, OrderedSender, Payload, WaitContext};
use crate::flow::stage::{Flow, Interrupt, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::input::augment::{Normalisation, Preparation};
use crate::input::bad_images::BadImages;
use crate::input::collected::Collected;
use crate::input::plan::{EpochPlan, PlannedBatch, Role};
use crate::input::targets::{CollectedTargets, Wanted};
use crate::method::batch::{ImageBatch, LabelledPair};
use crate::record::Recorder;
use mlomae_model::rng::{Purpose, below, keyed, shuffle};

/// Images at most that the normalisation is computed from.
pub const NUM_NORMALISATION_SAMPLES: usize = 2048;

/// Images that are tried in a bad one's place. If half of a role were bad, one in a billion would find none.
pub const MAX_REPLACEMENTS: usize = 32;

/// Mean and deviation over a fixed, evenly spaced part of the pretrain role, without bad images that are passed over.
///
/// # Errors
/// The data set's; that of the first image if all of the part are bad.
pub fn measure_normalisation(
    dataset: &dyn Dataset,
    pretrain: &[usize],
    channels: usize,
    bad_images: &BadImages,
) -> Result<Normalisation, DataError> {
    let num = pretrain.len().min(NUM_NORMALISATION_SAMPLES);
    let chosen = (0..num).map(|i| pretrain[i * pretrain.len() / num]);
    let mut num_read = 0;
    let read = chosen.filter_map(|index| bad_images.read(dataset, index).transpose());
    let images =
        read.map(|sample| sample.map(|sample| sample.image)).inspect(|image| num_read += usize::from(image.is_ok()));
    let normalisation = Normalisation::of_images(images, channels)?;
    match pretrain.first() {
        Some(first) if num_read == 0 => Err(dataset.sample(*first).err().unwrap_or(DataError::OutOfRange {
            name: dataset.info().name.clone(),
            len: dataset.len(),
            index: *first,
        })),
        _ => Ok(normalisation),
    }
}

/// One unit of the load stage, numbered j·(k + 1) + i: the pretrain batches i = 0..k of outer
/// iteration j, then its labelled pair. All workers share this order, which is also the order in
/// which the later stages ask, so that no capacity can deadlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadUnit {
    /// The pretrain batch of that level-1 step.
    Pretrain(Step),
    /// The labelled pair of that outer iteration.
    Labelled(Outer),
}

impl LoadUnit {
    /// What unit `unit` is with `unroll` level-1 steps in an outer iteration.
    #[must_use]
    pub const fn of(unit: u64, unroll: u64) -> Self {
        let (outer, place) = (Outer(unit / (unroll + 1)), unit % (unroll + 1));
        if place < unroll { Self::Pretrain(outer.step_at(place, unroll)) } else { Self::Labelled(outer) }
    }

    /// The first unit of outer iteration `outer`; as a number of outer iterations done, their units.
    #[must_use]
    pub const fn first_of(outer: Outer, unroll: u64) -> u64 {
        outer.0 * (unroll + 1)
    }

    /// Its number on its edge.
    #[must_use]
    pub const fn seq(self) -> u64 {
        match self {
            Self::Pretrain(step) => step.0,
            Self::Labelled(outer) => outer.0,
        }
    }
}

/// What the load stage gives.
#[derive(Debug, Clone)]
pub enum Loaded {
    /// For the scorer.
    Pretrain(ImageBatch),
    /// For the evaluator.
    Labelled(LabelledPair),
}

impl Payload for Loaded {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Pretrain(batch) => batch.size_bytes(),
            Self::Labelled(pair) => pair.size_bytes(),
        }
    }
}

/// The load stage. It has no state that matters: any unit can be done at any time by any worker.
#[derive(Clone)]
pub struct LoadStage {
    dataset: Arc<dyn Dataset>,
    plan: EpochPlan,
    preparation: Preparation,
    seed: u64,
    unroll: u64,
    arena: Arena,
    bad_images: BadImages,
    /// What the tasks take of a sample's targets.
    targets: Vec<Wanted>,
    max_boxes: usize,
    /// The sample of its role whose targets each sample of a labelled role has, where a control shuffles them.
    shuffled: Option<Arc<HashMap<usize, usize>>>,
    raw_images: bool,
    /// Side of the patches of which pretrain batches say whether they hold the object, where the masking needs it.
    object_patch: Option<usize>,
}

impl LoadStage {
    /// A loader of `dataset`'s training split by `plan`, with `unroll` pretrain batches in an outer
    /// iteration. The workers' stages are clones of one.
    #[must_use]
    pub fn new(
        dataset: Arc<dyn Dataset>,
        plan: EpochPlan,
        preparation: Preparation,
        seed: u64,
        unroll: u64,
        arena: Arena,
    ) -> Self {
        let bad_images = BadImages::default();
        Self {
            dataset,
            plan,
            preparation,
            seed,
            unroll,
            arena,
            bad_images,
            targets: vec![Wanted::CLASS],
            max_boxes: 0,
            shuffled: None,
            raw_images: false,
            object_patch: None,
        }
    }

    /// Does with bad images as `bad_images` says; otherwise they are refused.
    #[must_use]
    pub fn with_bad_images(self, bad_images: BadImages) -> Self {
        Self { bad_images, ..self }
    }

    /// Takes of the labelled roles' samples what `targets` says, of boxes at most `max_boxes` an image; otherwise their
    /// classes.
    #[must_use]
    pub fn with_targets(self, targets: Vec<Wanted>, max_boxes: usize) -> Self {
        Self { targets, max_boxes, ..self }
    }

    /// Permutes the targets of each labelled role among its samples, by the seed: the control that feedback without
    /// meaning is. Only for targets of whole images.
    #[must_use]
    pub fn with_shuffled_labels(self) -> Self {
        let mut shuffled = HashMap::new();
        for role in [Role::Finetune, Role::Validation] {
            let samples = self.plan.roles().indices(role);
            let mut others = samples.to_vec();
            shuffle(&mut others, &mut keyed(self.seed, Purpose::Labels, role as u64, 0));
            shuffled.extend(samples.iter().copied().zip(others));
        }
        Self { shuffled: Some(Arc::new(shuffled)), ..self }
    }

    /// Hands images on as pixels, of which the device makes values, if `raw_images`.
    #[must_use]
    pub fn with_raw_images(self, raw_images: bool) -> Self {
        Self { raw_images, ..self }
    }

    /// Says of each patch of `patch` by `patch` pixels of pretrain batches whether it holds the object; the dataset must
    /// know it, see [`object_patches`](Self::object_patches), and augmentation must not move it.
    #[must_use]
    pub fn with_objects(self, patch: Option<usize>) -> Self {
        Self { object_patch: patch, ..self }
    }

    /// The plan.
    #[must_use]
    pub const fn plan(&self) -> &EpochPlan {
        &self.plan
    }

    /// Images in a batch of each role (pretrain, finetune, validation).
    #[must_use]
    pub const fn batch_sizes(&self) -> [usize; 3] {
        self.plan.batch_sizes()
    }

    /// Batch `seq` of `role` for outer iteration `outer`: [batch, C, H, W].
    ///
    /// # Errors
    /// An unreadable sample, or a labelled role's sample without a label.
    pub fn batch(&mut self, role: Role, seq: u64, outer: Outer) -> Result<ImageBatch, StageError> {
        let planned = self.plan.batch(role, seq);
        self.load(role, seq, outer, &planned)
    }

    /// The given samples without augmentation, as the panel and evaluations need them. Bad images that are passed over
    /// are left out, so that there may be fewer.
    ///
    /// # Errors
    /// An unreadable sample.
    pub fn samples(&self, indices: &[usize]) -> Result<ImageBatch, StageError> {
        let planned = PlannedBatch { epoch: 0, indices: indices.to_vec() };
        self.fill(&planned, (0, Outer(0)), None, &self.targets, |index| self.read(index))
    }

    /// A fixed choice of `num` samples of `role` for the panel, ascending; good ones, where bad ones are passed over.
    ///
    /// # Errors
    /// An unreadable sample.
    pub fn panel(&self, role: Role, num: usize) -> Result<Vec<usize>, StageError> {
        if !self.bad_images.are_skipped() {
            return Ok(self.plan.panel(role, num));
        }
        let mut chosen = Vec::new();
        for index in self.plan.panel_order(role).into_iter().take(num.saturating_mul(MAX_REPLACEMENTS)) {
            if chosen.len() == num {
                break;
            }
            if self.read(index)?.is_some() {
                chosen.push(index);
            }
        }
        if chosen.is_empty() && num > 0 {
            return Err(StageError::Data {
                stage: StageName::Load,
                message: format!("too many bad images in the {role} role, there is none for the panel"),
                exit_code: ExitCode::BadData,
            });
        }
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// Which patches of `patch` by `patch` pixels hold the object of the given samples, [samples, L]. None unless the
    /// dataset knows its objects and its images are not resized.
    #[must_use]
    pub fn object_patches(&self, indices: &[usize], patch: usize) -> Option<Vec<bool>> {
        let side = self.preparation.side;
        if self.dataset.info().image_size != Some((side, side)) {
            return None;
        }
        let patches = indices.iter().map(|index| self.dataset.known_object_patches(*index, patch));
        Some(patches.collect::<Option<Vec<_>>>()?.concat())
    }

    fn load(&self, role: Role, seq: u64, outer: Outer, planned: &PlannedBatch) -> Result<ImageBatch, StageError> {
        let augment = match role {
            Role::Pretrain => Some(Purpose::PretrainAugment),
            Role::Finetune => Some(Purpose::FinetuneAugment),
            // The validation loss judges the masks, so its images are as they are.
            Role::Validation => None,
        };
        let sample = |index| {
            let mut sample = self.sample(role, planned.epoch, index)?;
            if role == Role::Pretrain {
                return Ok(Some(sample));
            }
            if let Some(other) = self.shuffled.as_ref().and_then(|shuffled| shuffled.get(&(sample.id as usize))) {
                self.take_targets(&mut sample, *other)?;
            }
            if self.learns_classes() && sample.label.is_none() {
                return Err(StageError::Data {
                    stage: StageName::Load,
                    message: format!("a labelled role needs labels, sample without one: {}", sample.id),
                    exit_code: ExitCode::BadData,
                });
            }
            Ok(Some(sample))
        };
        // Level 1 learns from no targets; a class is for the logs.
        let targets = if role == Role::Pretrain { &[Wanted::CLASS][..] } else { &self.targets };
        let mut batch = self.fill(planned, (seq, outer), augment, targets, sample)?;
        if let (Role::Pretrain, Some(patch)) = (role, self.object_patch) {
            // Of the samples that are in the batch: bad images have been replaced.
            let indices: Vec<usize> = batch.ids.iter().map(|id| *id as usize).collect();
            let objects = self.object_patches(&indices, patch).ok_or_else(|| StageError::Internal {
                stage: StageName::Load,
                message: "the objects of the data are not known".to_owned(),
            })?;
            batch.objects = Some(objects.into());
        }
        Ok(batch)
    }

    /// Whether a task learns from the class of each image.
    fn learns_classes(&self) -> bool {
        self.targets.iter().any(|wanted| wanted.kind == TargetKind::Class)
    }

    /// Gives `sample` the targets of sample `other`: of a bad image none, as of one whose label is unknown.
    fn take_targets(&self, sample: &mut Sample, other: usize) -> Result<(), StageError> {
        sample.label = self.dataset.label(other).map_err(|error| data_error(&error))?;
        if Wanted::is_class_alone(&self.targets) {
            return Ok(());
        }
        let other = self.read(other)?;
        sample.targets = other.map_or_else(|| vec![Target::Unknown; sample.targets.len()], |other| other.targets);
        Ok(())
    }

    fn read(&self, index: usize) -> Result<Option<Sample>, StageError> {
        self.bad_images.read(self.dataset.as_ref(), index).map_err(|error| data_error(&error))
    }

    /// Sample `index` of `role`, or what takes its place: drawn from the role by the seed, the epoch and the sample, so
    /// that every worker, run and resume draws the same.
    fn sample(&self, role: Role, epoch: u64, index: usize) -> Result<Sample, StageError> {
        if let Some(sample) = self.read(index)? {
            return Ok(sample);
        }
        let candidates = self.plan.roles().indices(role);
        let mut rng = keyed(self.seed, Purpose::Replacement, epoch, index as u64);
        for _ in 0..MAX_REPLACEMENTS {
            let other = candidates[below(&mut rng, candidates.len() as u64) as usize];
            if let Some(sample) = self.read(other)? {
                return Ok(sample);
            }
        }
        let why = self.dataset.sample(index).err().map_or_else(String::new, |error| error.to_string());
        Err(StageError::Data {
            stage: StageName::Load,
            message: format!(
                "too many bad images in the {role} role, {MAX_REPLACEMENTS} drawn in place of one are bad too: {why}"
            ),
            exit_code: ExitCode::BadData,
        })
    }

    /// The planned samples as `sample` gives them, without those of which it gives none.
    fn fill(
        &self,
        planned: &PlannedBatch,
        (seq, outer): (u64, Outer),
        augment: Option<Purpose>,
        targets: &[Wanted],
        sample: impl Fn(usize) -> Result<Option<Sample>, StageError>,
    ) -> Result<ImageBatch, StageError> {
        let (preparation, arena) = (&self.preparation, &self.arena);
        let mut images = Collected::with_room(planned.indices.len(), preparation, self.raw_images, arena);
        let mut ids = Vec::with_capacity(planned.indices.len());
        let (room, side) = (planned.indices.len(), preparation.side);
        let is_class_alone = Wanted::is_class_alone(targets);
        let mut targets = CollectedTargets::with_room(targets, room, side, self.max_boxes);
        for index in &planned.indices {
            let Some(sample) = sample(*index)? else { continue };
            let mut rng = augment.map(|purpose| keyed(self.seed, purpose, planned.epoch, sample.id.cast_unsigned()));
            let geometry = images.add(preparation, sample.image, rng.as_mut());
            ids.push(sample.id);
            if is_class_alone {
                targets.add(&[sample.label.map_or(Target::Unknown, Target::Class)], &geometry);
            } else {
                targets.add(&sample.targets, &geometry);
            }
        }
        Ok(ImageBatch {
            seq,
            outer,
            epoch: planned.epoch,
            ids: ids.into(),
            targets: targets.into_targets(),
            images: images.into_images(preparation, arena),
            objects: None,
        })
    }

    fn planned(&mut self, unit: u64) -> Vec<(Role, PlannedBatch)> {
        let unit = LoadUnit::of(unit, self.unroll);
        let roles: &[Role] = match unit {
            LoadUnit::Pretrain(_) => &[Role::Pretrain],
            LoadUnit::Labelled(_) => &[Role::Finetune, Role::Validation],
        };
        roles.iter().map(|role| (*role, self.plan.batch(*role, unit.seq()))).collect()
    }
}

fn data_error(error: &DataError) -> StageError {
    StageError::Data { stage: StageName::Load, message: error.to_string(), exit_code: error.exit_code() }
}

impl Stage for LoadStage {
    type In = ();
    type Out = Loaded;
    type Log = Recorder;
    const NAME: StageName = StageName::Load;

    fn process(&mut self, unit: u64, (): (), _: &mut Recorder) -> Result<Loaded, StageError> {
        match LoadUnit::of(unit, self.unroll) {
            LoadUnit::Pretrain(step) => {
                Ok(Loaded::Pretrain(self.batch(Role::Pretrain, step.0, step.outer(self.unroll))?))
            }
            LoadUnit::Labelled(outer) => Ok(Loaded::Labelled(LabelledPair {
                outer,
                finetune: self.batch(Role::Finetune, outer.0, outer)?,
                validation: self.batch(Role::Validation, outer.0, outer)?,
            })),
        }
    }

    fn sample_ids(&mut self, unit: u64, (): &()) -> Vec<i64> {
        // A sample's id is its index within the split.
        let planned = self.planned(unit);
        planned.into_iter().flat_map(|(_, batch)| batch.indices).map(|index| index as i64).collect()
    }
}

/// The ports of one load worker.
#[derive(Debug)]
pub struct LoadPorts {
    worker: u64,
    num_workers: u64,
    unroll: u64,
    pretrain: OrderedSender<Flow<ImageBatch>>,
    labelled: OrderedSender<Flow<LabelledPair>>,
}

impl LoadPorts {
    /// Worker `worker` of `num_workers`.
    #[must_use]
    pub const fn new(
        worker: usize,
        num_workers: usize,
        unroll: u64,
        pretrain: OrderedSender<Flow<ImageBatch>>,
        labelled: OrderedSender<Flow<LabelledPair>>,
    ) -> Self {
        Self { worker: worker as u64, num_workers: num_workers as u64, unroll, pretrain, labelled }
    }
}

impl Wiring<LoadStage> for LoadPorts {
    fn owns(&self, unit: u64) -> bool {
        LoadUnit::of(unit, self.unroll).seq() % self.num_workers == self.worker
    }

    fn receive(&mut self, _: u64, _: StopLevel, context: &WaitContext) -> Result<Flow<()>, Interrupt> {
        if context.stop.concerns(StopLevel::Now) {
            return Err(Halt::Stopped.into());
        }
        Ok(Flow::Item(()))
    }

    fn send(&mut self, unit: u64, output: Flow<Loaded>, context: &WaitContext) -> Result<usize, Interrupt> {
        match (LoadUnit::of(unit, self.unroll), output) {
            (LoadUnit::Pretrain(step), Flow::Item(Loaded::Pretrain(batch))) => {
                let bytes = batch.size_bytes();
                self.pretrain.send(step.0, Flow::Item(batch), context)?;
                Ok(bytes)
            }
            (LoadUnit::Labelled(outer), Flow::Item(Loaded::Labelled(pair))) => {
                let bytes = pair.size_bytes();
                self.labelled.send(outer.0, Flow::Item(pair), context)?;
                Ok(bytes)
            }
            (LoadUnit::Pretrain(step), Flow::Lost(lost)) => {
                self.pretrain.send(step.0, Flow::Lost(lost), context)?;
                Ok(0)
            }
            (LoadUnit::Labelled(outer), Flow::Lost(lost)) => {
                self.labelled.send(outer.0, Flow::Lost(lost), context)?;
                Ok(0)
            }
            (unit, Flow::Item(_)) => Err(Interrupt::Error(StageError::Internal {
                stage: StageName::Load,
                message: format!("another kind of batch than planned for {unit:?}"),
            })),
        }
    }
}
