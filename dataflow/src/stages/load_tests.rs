//! The load stage under threads: same batches at any number of workers and any capacity; faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlomae_model::Arena;
use mlomae_model::tasks::Targets;
use mlomae_storage::dataset::{DataError, Dataset, DatasetInfo, DecodeError, Image, Sample, Target};

use super::load::{LoadPorts, LoadStage, LoadUnit, Loaded, measure_normalisation};
use crate::config::{AugmentConfig, Crop, OnBadImage};
use crate::counts::Outer;
use crate::flow::counters::StageCounters;
use crate::flow::exit::Exit;
use crate::flow::ports::{OrderedReceiver, Payload, WaitContext, fan_in_edge, ordered_edge};
use crate::flow::stage::{Flow, Stage, StageRunner};
use crate::flow::stage_name::{EdgeId, StageName};
use crate::flow::stop::{StopFlag, StopLevel, StopReason};
use crate::input::augment::Preparation;
use crate::input::bad_images::BadImages;
use crate::input::plan::{EpochPlan, Role, Roles, Shares};
use crate::method::batch::{ImageBatch, batch_bytes};
use crate::record::{EventRow, Record, Recorder};

pub(crate) const UNROLL: u64 = 2;
const NUM_OUTER: Outer = Outer(7);

/// Small images that are a function of their index, with a fault that strikes once.
pub(crate) struct Memory {
    info: DatasetInfo,
    pub(crate) panics_at: Option<usize>,
    has_panicked: AtomicBool,
    unlabelled: Option<usize>,
    /// Samples whose images cannot be decoded.
    pub(crate) bad: Vec<usize>,
}

impl Memory {
    pub(crate) fn new(num_samples: usize) -> Self {
        let info = DatasetInfo {
            name: "memory".into(),
            format: "memory".into(),
            split: "train".into(),
            num_samples,
            class_names: (0..3).map(|class| class.to_string()).collect(),
            label_column: None,
            image_size: Some((8, 8)),
            channels: 1,
        };
        Self { info, panics_at: None, has_panicked: AtomicBool::new(false), unlabelled: None, bad: Vec::new() }
    }
}

impl Dataset for Memory {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        Ok((self.unlabelled != Some(index)).then_some(index as i32 % 3))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        if self.panics_at == Some(index) && !self.has_panicked.swap(true, Ordering::SeqCst) {
            panic!("sample {index} is poisoned");
        }
        if self.bad.contains(&index) {
            return Err(DataError::Decode { path: "memory".into(), sample: index, source: DecodeError::Absent });
        }
        let pixels = (0..64).map(|place| ((index * 31 + place * 7) % 256) as u8).collect();
        let image = Image { width: 8, height: 8, channels: 1, pixels };
        let label = self.label(index)?;
        Ok(Sample { id: index as i64, image, label, targets: vec![label.map_or(Target::Unknown, Target::Class)] })
    }
}

pub(crate) fn stage(dataset: Arc<Memory>) -> LoadStage {
    let labels: Vec<Option<i32>> = (0..dataset.len()).map(|index| Some(index as i32 % 3)).collect();
    let shares = Shares { pretrain: 0.6, finetune: 0.2, validation: 0.2 };
    let roles = Roles::split(&labels, shares, None, 1).expect("labels");
    let memory = Memory::new(dataset.len());
    let normalisation = measure_normalisation(&memory, roles.indices(Role::Pretrain), 1, &BadImages::default());
    let preparation = Preparation {
        side: 8,
        channels: 1,
        normalisation: normalisation.expect("readable"),
        augment: AugmentConfig { crop: Crop::Padded, crop_padding: 2, min_area: 0.2, flip: true },
    };
    let plan = EpochPlan::new(roles, [8, 4, 4], 9).expect("enough samples");
    LoadStage::new(dataset, plan, preparation, 9, UNROLL, Arena::new())
}

type Content = (Vec<i64>, Vec<i32>, Vec<u32>);
/// The batches of a unit, or the samples of a lost one.
type Arrived = Result<Vec<Content>, Vec<i64>>;

fn content(batch: &ImageBatch) -> Content {
    let bits = batch.images.to_values().unwrap().iter().map(|value| value.to_bits()).collect();
    let Targets::Classes(classes) = &batch.targets else { panic!("got {}", batch.targets.kind()) };
    (batch.ids.to_vec(), classes.to_vec(), bits)
}

fn contents(loaded: &Loaded) -> Vec<Content> {
    match loaded {
        Loaded::Pretrain(batch) => vec![content(batch)],
        Loaded::Labelled(pair) => vec![content(&pair.finetune), content(&pair.validation)],
    }
}

fn serial(stage: &LoadStage) -> Vec<Vec<Content>> {
    let mut stage = stage.clone();
    let mut recorder = Recorder::default();
    (0..LoadUnit::first_of(NUM_OUTER, UNROLL))
        .map(|unit| contents(&stage.process(unit, (), &mut recorder).expect("readable")))
        .collect()
}

/// Runs load workers against two readers; gives what arrived by unit, the exits of each worker's
/// runs, and the records.
fn threaded(
    stage: &LoadStage,
    num_workers: usize,
    capacity: usize,
    first_outer: Outer,
) -> (Vec<Arrived>, Vec<Exit>, Vec<Record>) {
    let pretrain =
        ordered_edge::<Flow<ImageBatch>>(EdgeId::between(StageName::Load, StageName::Score), num_workers, 1, capacity);
    let labelled = ordered_edge(EdgeId::between(StageName::Load, StageName::Evaluator), num_workers, 1, capacity);
    let (log, log_receiver) = fan_in_edge(EdgeId::fan_in(StageName::Log), num_workers, 64);
    let stop = StopFlag::new();
    let units = LoadUnit::first_of(first_outer, UNROLL)..LoadUnit::first_of(NUM_OUTER, UNROLL);
    let mut workers = Vec::new();
    for (worker, (pretrain, labelled)) in pretrain.senders.into_iter().zip(labelled.senders).enumerate() {
        let ports = LoadPorts::new(worker, num_workers, UNROLL, pretrain, labelled);
        let context = WaitContext::new(stop.clone(), StageCounters::new());
        let mut runner = StageRunner::new(stage.clone(), worker, units.clone(), ports, log.clone(), context);
        workers.push(std::thread::spawn(move || {
            let mut exits = vec![runner.run()];
            while matches!(exits.last(), Some(Exit::Panicked { .. })) {
                exits.push(runner.run());
            }
            exits
        }));
    }
    drop(log);
    let (mut pretrain, mut labelled) = (pretrain.receivers, labelled.receivers);
    let context = WaitContext::new(stop, StageCounters::new());
    fn receive<T: Payload>(
        receiver: &mut OrderedReceiver<Flow<T>>,
        seq: u64,
        context: &WaitContext,
        wrap: impl FnOnce(T) -> Loaded,
    ) -> Result<Vec<Content>, Vec<i64>> {
        match receiver.recv(seq, context).expect("an item") {
            Flow::Item(item) => Ok(contents(&wrap(item))),
            Flow::Lost(lost) => Err(lost.sample_ids),
        }
    }
    let arrived = units
        .map(|unit| match LoadUnit::of(unit, UNROLL) {
            LoadUnit::Pretrain(step) => receive(&mut pretrain[0], step.0, &context, Loaded::Pretrain),
            LoadUnit::Labelled(outer) => receive(&mut labelled[0], outer.0, &context, Loaded::Labelled),
        })
        .collect();
    let exits = workers.into_iter().flat_map(|worker| worker.join().expect("caught")).collect();
    let mut records = Vec::new();
    while let Ok(Some(record)) = log_receiver.recv_timeout(Duration::from_millis(100), &StageCounters::new()) {
        records.push(record);
    }
    (arrived, exits, records)
}

#[test]
fn an_outer_iterations_units_are_its_pretrain_batches_and_then_its_labelled_pair() {
    for unroll in [1, 2, 5] {
        for outer in Outer(0).until(NUM_OUTER) {
            let units = LoadUnit::first_of(outer, unroll)..LoadUnit::first_of(outer.next(), unroll);
            let units: Vec<LoadUnit> = units.map(|unit| LoadUnit::of(unit, unroll)).collect();
            let steps = (0..unroll).map(|place| LoadUnit::Pretrain(outer.step_at(place, unroll)));
            assert_eq!(units, steps.chain([LoadUnit::Labelled(outer)]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn any_number_of_workers_and_any_capacity_gives_the_same_bits() {
    let stage = stage(Arc::new(Memory::new(100)));
    let wanted = serial(&stage);
    for num_workers in 1..=4 {
        for capacity in 0..=4 {
            let (arrived, exits, records) = threaded(&stage, num_workers, capacity, Outer(0));
            assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{exits:?}");
            let arrived: Vec<_> = arrived.into_iter().map(|unit| unit.expect("not lost")).collect();
            assert_eq!(arrived, wanted, "{num_workers} workers, capacity {capacity}");
            assert!(records.is_empty());
        }
    }
}

#[test]
fn a_bad_image_is_replaced_from_its_own_role_by_the_same_one_at_any_number_of_workers() {
    let with_bad = |bad: Vec<usize>, on_bad_image| {
        let memory = Memory { bad, ..Memory::new(100) };
        stage(Arc::new(memory)).with_bad_images(BadImages::new(on_bad_image))
    };
    let some = || with_bad((0..100).step_by(7).collect(), OnBadImage::Skip);
    let bad_images = BadImages::new(OnBadImage::Skip);
    let stage_with_bad = some().with_bad_images(bad_images.clone());
    let wanted = serial(&stage_with_bad);
    let skipped = bad_images.skipped();
    assert!(!skipped.is_empty() && skipped.iter().all(|image| image.sample % 7 == 0), "{skipped:?}");
    let good = serial(&stage(Arc::new(Memory::new(100))));
    for (batch, before) in wanted.iter().flatten().zip(good.iter().flatten()) {
        let roles = stage_with_bad.plan().roles();
        let role = Role::ALL.into_iter().find(|role| roles.indices(*role).contains(&(before.0[0] as usize)));
        let candidates = roles.indices(role.expect("a role"));
        for (id, id_before) in batch.0.iter().zip(&before.0) {
            assert!(id % 7 != 0 && candidates.contains(&(*id as usize)), "{id} for {id_before}");
            assert!(id_before % 7 == 0 || id == id_before, "{id} for {id_before}: only bad images are replaced");
        }
    }
    for num_workers in [1, 3] {
        let (arrived, ..) = threaded(&some(), num_workers, 1, Outer(0));
        assert_eq!(arrived.into_iter().map(|unit| unit.expect("not lost")).collect::<Vec<_>>(), wanted);
    }
    // Refused otherwise, and if there is nothing else.
    let all = |on_bad_image| with_bad((0..100).collect(), on_bad_image);
    let refused = all(OnBadImage::Refuse).batch(Role::Pretrain, 0, Outer(0)).expect_err("bad").to_string();
    assert!(refused.contains("bytes are null"), "{refused}");
    let refused = all(OnBadImage::Skip).batch(Role::Pretrain, 0, Outer(0)).expect_err("bad").to_string();
    assert!(refused.contains("too many bad images in the pretrain role"), "{refused}");
    assert!(all(OnBadImage::Skip).samples(&[1, 2]).expect("none").is_empty());
    // The panel is the first good ones.
    let panel = some().panel(Role::Validation, 6).expect("readable");
    assert!(panel.len() == 6 && panel.iter().all(|index| index % 7 != 0), "{panel:?}");
}

#[test]
fn pixels_for_a_device_are_the_same_batches_in_a_quarter_of_the_bytes() {
    let [values, pixels] = [false, true].map(|raw| stage(Arc::new(Memory::new(100))).with_raw_images(raw));
    assert_eq!(serial(&pixels), serial(&values));
    let (batch, of_pixels) = [&values, &pixels].map(|stage| stage.samples(&[1, 2, 3]).expect("readable")).into();
    assert_eq!(
        (batch.size_bytes(), of_pixels.size_bytes()),
        (batch_bytes(3, 64, false, 0), batch_bytes(3, 64, true, 0))
    );
    assert_eq!(batch.size_bytes() - of_pixels.size_bytes(), 3 * (3 * 64 - 12));
}

#[test]
fn a_resumed_loader_goes_on_exactly() {
    let stage = stage(Arc::new(Memory::new(100)));
    let wanted = serial(&stage);
    for first_outer in [1, 4, 6].map(Outer) {
        let (arrived, ..) = threaded(&stage, 3, 1, first_outer);
        let arrived: Vec<_> = arrived.into_iter().map(|unit| unit.expect("not lost")).collect();
        assert_eq!(arrived, wanted[LoadUnit::first_of(first_outer, UNROLL) as usize..]);
    }
}

#[test]
fn a_panic_costs_one_batch_and_its_samples_are_named() {
    let clean = stage(Arc::new(Memory::new(100)));
    let wanted = serial(&clean);
    for (num_workers, capacity, unit) in [(1, 0, 0), (3, 1, 4), (2, 2, 5), (4, 4, 11)] {
        let poisoned_ids: Vec<i64> = wanted[unit].iter().flat_map(|batch| batch.0.clone()).collect();
        let mut memory = Memory::new(100);
        memory.panics_at = Some(poisoned_ids[1] as usize);
        // A sample comes once in an epoch; the first unit that holds it is the one that is lost.
        let first = wanted.iter().position(|batches| batches.iter().any(|batch| batch.0.contains(&poisoned_ids[1])));
        let (arrived, exits, records) = threaded(&stage(Arc::new(memory)), num_workers, capacity, Outer(0));
        let lost: Vec<usize> = (0..arrived.len()).filter(|unit| arrived[*unit].is_err()).collect();
        assert_eq!(lost.len(), 1);
        if num_workers == 1 {
            assert_eq!(Some(lost[0]), first);
        }
        let lost_ids: Vec<i64> = wanted[lost[0]].iter().flat_map(|batch| batch.0.clone()).collect();
        assert!(lost_ids.contains(&poisoned_ids[1]));
        for (unit, got) in arrived.iter().enumerate() {
            match got {
                Ok(got) => assert_eq!(got, &wanted[unit]),
                Err(ids) => assert_eq!(ids, &lost_ids),
            }
        }
        let panics: Vec<&Exit> = exits.iter().filter(|exit| !exit.is_clean()).collect();
        assert!(
            matches!(panics[..], [Exit::Panicked { message, lost_sample_ids }]
                if message.contains("is poisoned") && *lost_sample_ids == lost_ids),
            "{exits:?}"
        );
        let Some(event) = records.first().and_then(Record::get::<EventRow>).filter(|_| records.len() == 1) else {
            panic!("{records:?}");
        };
        assert_eq!(event.kind, "lost_batch");
        let fields: serde_json::Value = serde_json::from_str(&event.fields).expect("JSON");
        assert_eq!(fields["sample_ids"], serde_json::json!(lost_ids));
    }
}

#[test]
fn a_missing_label_in_a_labelled_role_is_an_error_that_names_the_sample() {
    let clean = stage(Arc::new(Memory::new(100)));
    let mut memory = Memory::new(100);
    let sample = clean.plan().roles().indices(Role::Finetune)[0];
    memory.unlabelled = Some(sample);
    let mut stage = stage(Arc::new(memory));
    let mut outcome = Ok(());
    for unit in 0..LoadUnit::first_of(NUM_OUTER, UNROLL) {
        outcome = outcome.and(stage.process(unit, (), &mut Recorder::default()).map(|_| ()));
    }
    let error = outcome.expect_err("refused");
    assert_eq!(error.exit_code(), 65);
    assert!(error.to_string().ends_with(&format!("sample without one: {sample}")), "{error}");
}

#[test]
fn a_loader_ends_when_its_readers_are_gone_or_a_stop_comes_now() {
    for graceful in [true, false] {
        let stage = stage(Arc::new(Memory::new(100)));
        let pretrain = ordered_edge(EdgeId::between(StageName::Load, StageName::Score), 1, 1, 1);
        let labelled = ordered_edge(EdgeId::between(StageName::Load, StageName::Evaluator), 1, 1, 1);
        let (log, _log_receiver) = fan_in_edge(EdgeId::fan_in(StageName::Log), 1, 8);
        let (mut senders, mut labelled_senders) = (pretrain.senders, labelled.senders);
        let ports = LoadPorts::new(0, 1, UNROLL, senders.pop().expect("one"), labelled_senders.pop().expect("one"));
        let context = WaitContext::default();
        let stop = context.stop.clone();
        let mut runner = StageRunner::new(stage, 0, 0..300, ports, log, context);
        let worker = std::thread::spawn(move || runner.run());
        std::thread::sleep(Duration::from_millis(20));
        stop.request(StopReason::Interrupt);
        std::thread::sleep(Duration::from_millis(60));
        assert!(!worker.is_finished(), "a graceful stop lets the iteration end");
        if graceful {
            drop((pretrain.receivers, labelled.receivers));
        } else {
            stop.request(StopReason::Interrupt);
            assert_eq!(stop.level(), StopLevel::Now);
        }
        let begin = Instant::now();
        assert!(matches!(worker.join(), Ok(Exit::Stopped)));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
