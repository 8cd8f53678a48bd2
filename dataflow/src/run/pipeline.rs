//! The pipeline: the stages of a run, wired for threads or for the serial executor.

use std::ops::Range;
use std::sync::Arc;

use mlomae_model::lane::{Lane, LaneSize, Lanes, LanesSpec};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::search;
use mlomae_model::{Level, ModelError, PerLevel, Vector};
use mlomae_storage::logs::TABLES;

use crate::config::ActorsConfig;
use crate::counts::{Outer, Step};
use crate::flow::counters::StageCounters;
use crate::flow::exit::Exit;
use crate::flow::fault::FaultPlan;
use crate::flow::ports::{EdgeGauge, FanInSender, OrderedEdge, WaitContext};
use crate::flow::slot::slot;
use crate::flow::stage::{Flow, StageRunner};
use crate::flow::stage_name::{EdgeId, StageName, WorkerId};
use crate::flow::stop::StopFlag;
use crate::flow::topology::{EdgeDecl, StageDecl, Topology, TopologyError};
use crate::method::Method;
use crate::method::batch::{ImageBatch, LabelledPair, Panel, ScoredBatch, Snapshot, batch_bytes};
use crate::record::Record;
use crate::run::edges::{ENCODER_EVALUATOR, EVALUATOR_POLICY, LOAD_EVALUATOR, LOAD_SCORE, SCORE_ENCODER, capacity};
use crate::run::state::TrainState;
use crate::stages::encoder::{EncoderPorts, EncoderStage};
use crate::stages::evaluator::{EvaluatorPorts, EvaluatorStage, OptionalDirection};
use crate::stages::load::{LoadPorts, LoadStage, LoadUnit};
use crate::stages::log::{LogRunner, LogStage, RecordSink};
use crate::stages::policy::{PolicyPorts, PolicyStage, PolicyVersion};
use crate::stages::score::{ScorePorts, ScoreStage, Shift};

/// What a run starts from.
pub struct Setup {
    /// The method.
    pub method: Method,
    /// The loader, which knows the data and the plan.
    pub load: LoadStage,
    /// Where training starts.
    pub state: TrainState,
    /// Images whose masks are logged each time.
    pub panel: Panel,
    /// Workers and queues.
    pub actors: ActorsConfig,
}

/// Why a pipeline cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The declared topology is wrong.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The compute threads cannot be started.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The five stages of a run.
pub struct Stages {
    /// Data loading.
    pub load: LoadStage,
    /// Patch scoring.
    pub score: ScoreStage,
    /// Level 1.
    pub encoder: EncoderStage,
    /// Level 2 and the downstream gradient of level 3.
    pub evaluator: EvaluatorStage,
    /// Level 3.
    pub policy: PolicyStage,
}

impl Setup {
    /// The level-1 steps that are left.
    #[must_use]
    pub fn steps(&self) -> Range<Step> {
        let Range { start, end } = self.outers();
        start.first_step(self.method.unroll)..end.first_step(self.method.unroll)
    }

    /// The outer iterations that are left.
    #[must_use]
    pub const fn outers(&self) -> Range<Outer> {
        self.state.outer..self.method.total_outer
    }

    /// The stages. With lag 0 the levels take turns, so they share one set of threads as large as the largest;
    /// otherwise each has its own. Results depend on neither.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn stages(self) -> Result<(Method, Stages), ModelError> {
        let Self { method, load, state, panel, actors } = self;
        let [pretrain_batch, finetune_batch, validation_batch] = load.batch_sizes();
        let take_turns = method.lag == 0;
        let threads = |stage: StageName| actors.stage(stage).num_workers();
        let levels = [StageName::Encoder, StageName::Evaluator, StageName::Policy];
        let shared = levels.into_iter().map(threads).max().unwrap_or(1);
        let size = |stage: StageName, batch: usize| {
            let num_threads = if take_turns { shared } else { threads(stage) };
            LaneSize { num_threads, micro_batch: actors.micro_batch(stage, batch, num_threads) }
        };
        // Scores that need the newest θ hold level 1 up, so they get its threads; else each scorer is one.
        let encoder = size(StageName::Encoder, pretrain_batch);
        let shares_threads = method.scores_need_theta() || method.reads_teacher();
        let num_threads = if shares_threads { encoder.num_threads } else { 1 };
        let micro_batch = actors.micro_batch(StageName::Score, pretrain_batch, num_threads);
        let spec = LanesSpec {
            model: method.model.clone(),
            arena: method.arena.clone(),
            grain: method.grain,
            precision: method.precision,
            take_turns,
            score: LaneSize { num_threads, micro_batch },
            pretrain: encoder,
            finetune: size(StageName::Evaluator, finetune_batch.min(validation_batch)),
            mask: size(StageName::Policy, pretrain_batch),
        };
        let Lanes { score, pretrain, finetune, mask } = method.engine.device.lanes(&spec)?;
        let TrainState {
            theta,
            teacher,
            head,
            policies,
            optimizers,
            previous_hypergradient,
            masks,
            carried,
            supervised,
            ..
        } = state;
        let (theta, head) = (pretrain.upload(&theta)?, finetune.upload(&head)?);
        let teacher = teacher.map(|teacher| pretrain.upload(&teacher)).transpose()?;
        let upload = |lane: &dyn Lane, adamw: AdamW| {
            let (m, v) = (lane.upload(&adamw.m)?, lane.upload(&adamw.v)?);
            Ok::<_, ModelError>(adamw.with_moments(m, v))
        };
        let PerLevel { pretrain: adamw, finetune: adamw_f, mask: adamw_m } = optimizers;
        let (adamw, adamw_f, adamw_m) =
            (upload(&*pretrain, adamw)?, upload(&*finetune, adamw_f)?, upload(&*mask, adamw_m)?);
        let policies = policies.into_iter().map(|PolicyVersion { policy, shift }| {
            let shift = shift.map(|Shift(delta)| mask.upload(&delta).map(Shift)).transpose()?;
            Ok(PolicyVersion { policy: search::Policy { phi: mask.upload(&policy.phi)?, ..policy }, shift })
        });
        let policies = policies.collect::<Result<_, ModelError>>()?;
        let previous = previous_hypergradient.map(|previous| mask.upload(&previous)).transpose()?;
        let mut carried = carried.upload(&*mask)?;
        // The evaluator's.
        let bank = std::mem::take(&mut carried.bank);
        let supervised = supervised.map(|adamw| upload(&*mask, adamw)).transpose()?;
        let stages = Stages {
            load,
            score: ScoreStage::new(method.clone(), score),
            encoder: EncoderStage::new(method.clone(), pretrain, theta, teacher, adamw, masks, panel),
            evaluator: EvaluatorStage::new(method.clone(), finetune, head, adamw_f, bank),
            policy: PolicyStage::new(method.clone(), mask, policies, adamw_m, previous, carried, supervised),
        };
        Ok((method, stages))
    }

    /// The declared topology, with every edge's capacity and the size of its items.
    ///
    /// # Errors
    /// Never for a checked configuration.
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        topology(&self.method, &self.actors, self.load.batch_sizes())
    }
}

/// The topology of a run with batches of the given sizes (pretrain, finetune, validation).
///
/// # Errors
/// Never for a checked configuration.
pub fn topology(method: &Method, actors: &ActorsConfig, batch_sizes: [usize; 3]) -> Result<Topology, TopologyError> {
    use StageName::{Load, Log, Score};
    let c = &method.model.config;
    let [pretrain, finetune, validation] = batch_sizes;
    let batch = |num, raw, objects| batch_bytes(num, c.image_values(), raw, objects);
    let raw = method.takes_raw_images();
    // Ranks and kept patches; with a learned mask also what its gradient needs.
    let num_patches = c.num_patches();
    let trace = method.model.masking.trace_values();
    let objects = if method.masks_need_objects() { num_patches } else { 0 };
    let scored = batch(pretrain, false, objects) + 4 * pretrain * (num_patches + c.max_visible() + trace);
    let theta = 4 * method.model.vit.layout.len;
    let searches = method.searches_branches();
    let num_moments = match (searches, method.settings.precondition) {
        (true, _) => 2,
        (false, precondition) => usize::from(precondition),
    };
    let snapshot = (1 + num_moments) * theta + scored;
    let pair = if searches { batch(finetune + validation, false, 0) } else { 0 };
    // Encoder, evaluator and policy are one worker each: theirs are compute threads.
    let num_workers = |name| match name {
        Load | Score => actors.stage(name).num_workers(),
        _ => 1,
    };
    let stages = StageName::ALL.into_iter().map(|name| StageDecl { name, num_workers: num_workers(name) }).collect();
    let edge = |id, payload_bytes| EdgeDecl { id, capacity: capacity(id, actors), payload_bytes, large_bytes: 0 };
    Topology::new(
        stages,
        vec![
            edge(LOAD_SCORE, batch(pretrain, raw, objects)),
            edge(LOAD_EVALUATOR, batch(finetune + validation, raw, 0)),
            edge(SCORE_ENCODER, scored),
            edge(ENCODER_EVALUATOR, snapshot),
            edge(EVALUATOR_POLICY, 2 * theta + snapshot + pair),
            EdgeDecl {
                id: EdgeId::fan_in(Log),
                capacity: log_capacity(actors),
                payload_bytes: row_bytes(method, pretrain),
                large_bytes: part_bytes(method, actors),
            },
        ],
    )
}

/// The largest of the rows: the longest lists of any table, or the event of a lost batch, which names its samples.
fn row_bytes(method: &Method, batch: usize) -> usize {
    let num_patches = method.model.config.num_patches();
    let lists = TABLES.iter().map(|table| table.list_bytes(num_patches)).max().unwrap_or(0);
    size_of::<Record>() + lists.max(EVENT_LINE + SAMPLE_ID * batch)
}

/// Bytes of an event's message and fields beside lists of samples.
const EVENT_LINE: usize = 512;
/// Bytes of a sample's id with the comma behind it, in the fields of an event.
const SAMPLE_ID: usize = "-9223372036854775808,".len();

/// Records that the queue of the log stage holds.
fn log_capacity(actors: &ActorsConfig) -> usize {
    64 * actors.stage(StageName::Log).queue_cap.max(1)
}

/// Parts of a stage that are in no queue: in the sender's hand, in that of the log stage, the final state, and the part
/// at which a stop cuts an interval short.
const PARTS_OUTSIDE: usize = IN_SENDER + IN_LOG_STAGE + FINAL_STATE + CUT_INTERVAL;
const IN_SENDER: usize = 1;
const IN_LOG_STAGE: usize = 1;
const FINAL_STATE: usize = 1;
const CUT_INTERVAL: usize = 1;

/// Outer iterations that are in no queue between the encoder and the policy: in the hands of the three stages, and the
/// one that the encoder has begun.
const OUTERS_OUTSIDE: usize = IN_ENCODER + IN_EVALUATOR + IN_POLICY + BEGUN;
const IN_ENCODER: usize = 1;
const IN_EVALUATOR: usize = 1;
const IN_POLICY: usize = 1;
const BEGUN: usize = 1;

/// Bytes of the parts of checkpoints on their way to the log stage and in it.
///
/// ```text
/// parts of a stage = queue / (1 + rows) + PARTS_OUTSIDE + ceil(ahead / interval)
/// ahead            = k (cap(evaluator) + cap(policy) + lag + OUTERS_OUTSIDE)
/// ```
///
/// `queue` is the capacity of the log stage's queue and `rows` the number of rows that a stage records between two of
/// its parts, which lie between them in the queue. `interval` is the level-1 steps from one checkpoint to the next.
/// `ahead` is by how many level-1 steps the encoder may be ahead of the policy: its parts wait until those of all
/// stages are there.
fn part_bytes(method: &Method, actors: &ActorsConfig) -> usize {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (unroll, lag) = (method.unroll.max(1), method.lag as usize);
    // 0: only at the end of the run.
    let every = match method.checkpoint.every_steps {
        0 => Step(u32::MAX.into()),
        every => Step(every),
    };
    let steps = |outer: Outer| number(outer.first_step(unroll).0);
    let interval = steps(every.outer(unroll).max(Outer(1)));
    let num_rows = interval / number(method.metrics_every_steps.max(unroll));
    let cap = |name: StageName| actors.stage(name).queue_cap;
    let ahead = cap(StageName::Evaluator) + cap(StageName::Policy) + lag + OUTERS_OUTSIDE;
    let ahead = steps(Outer(ahead as u64));
    let num_parts = |num_rows: usize| log_capacity(actors) / (1 + num_rows) + PARTS_OUTSIDE + ahead.div_ceil(interval);
    let bytes = |level| 4 * method.model.layout(level).len;
    let (theta, head, phi) = (bytes(Level::Pretrain), bytes(Level::Finetune), bytes(Level::Mask));
    let shifts = if method.shifts_encoder() { (lag + 2) * theta } else { 0 };
    // Weights and two moments; the policy's versions in flight and its last hypergradient.
    // Of each branch weights and two moments, and what two of them make of φ.
    let branches = if method.searches_branches() { 9 * theta + 2 * phi } else { 0 };
    let policy = (lag + 5) * phi + shifts + branches;
    // Where nothing is learned of masks, level 3 records nothing between its parts.
    let num_policy = num_parts(if method.is_learned() { num_rows } else { 0 });
    let teacher = if method.reads_teacher() { theta } else { 0 };
    num_parts(num_rows).saturating_mul(3 * (theta + head) + teacher).saturating_add(num_policy.saturating_mul(policy))
}

/// One worker of the pipeline, ready to run on a thread of its own.
pub struct Worker {
    /// Which worker it is.
    pub id: WorkerId,
    /// What it counts.
    pub counters: StageCounters,
    /// Runs until the end, a stop, an error or a panic; may be called again after a panic.
    pub run: Box<dyn FnMut() -> Exit + Send>,
}

/// The wired pipeline.
pub struct Pipeline {
    /// The workers, from the first stage to the last.
    pub workers: Vec<Worker>,
    /// The edges' gauges, for telemetry.
    pub gauges: Vec<Arc<EdgeGauge>>,
    /// For records of the telemetry. The log stage ends when this and all stages' senders are gone.
    pub log: FanInSender<Record>,
    /// What was declared.
    pub topology: Topology,
}

fn worker<S, W>(runner: StageRunner<S, W>) -> Worker
where
    S: crate::flow::stage::Stage + 'static,
    W: crate::flow::stage::Wiring<S> + 'static,
{
    let mut runner = runner;
    Worker { id: runner.id(), counters: runner.context().counters.clone(), run: Box::new(move || runner.run()) }
}

/// Wires a run for threads; records go to `sink`.
///
/// # Errors
/// [`BuildError`].
pub fn build<K: RecordSink + 'static>(setup: Setup, sink: K, stop: &StopFlag) -> Result<Pipeline, BuildError> {
    build_with_faults(setup, sink, stop, &FaultPlan::default())
}

/// As [`build`], with faults put into the stages on purpose.
///
/// # Errors
/// [`BuildError`].
pub fn build_with_faults<K: RecordSink + 'static>(
    setup: Setup,
    sink: K,
    stop: &StopFlag,
    faults: &FaultPlan,
) -> Result<Pipeline, BuildError> {
    use StageName::{Encoder, Evaluator, Load, Log, Policy, Score};
    let topology = setup.topology()?;
    let (steps, outers) = (setup.steps(), setup.outers());
    let (method, stages) = setup.stages()?;
    let unroll = method.unroll;
    let load_units = LoadUnit::first_of(outers.start, unroll)..LoadUnit::first_of(outers.end, unroll);
    let step_units = steps.start.0..steps.end.0;
    let outer_units = outers.start.0..outers.end.0;

    let pretrain: OrderedEdge<Flow<ImageBatch>> = topology.ordered(Load, Score)?;
    let labelled: OrderedEdge<Flow<LabelledPair>> = topology.ordered(Load, Evaluator)?;
    let scored: OrderedEdge<Flow<ScoredBatch>> = topology.ordered(Score, Encoder)?;
    let snapshots: OrderedEdge<Flow<Snapshot>> = topology.ordered(Encoder, Evaluator)?;
    let directions: OrderedEdge<Flow<OptionalDirection>> = topology.ordered(Evaluator, Policy)?;
    let (log, records) = topology.fan_in::<Record>(Log)?;
    let gauges = vec![
        pretrain.gauge.clone(),
        labelled.gauge.clone(),
        scored.gauge.clone(),
        snapshots.gauge.clone(),
        directions.gauge.clone(),
        log.gauge().clone(),
    ];

    let (mut policy_writer, policy) = slot::<search::Policy>("policy", method.lag as usize + 2);
    let (mut shift_writer, shift) = slot::<Option<Shift>>("shift", method.lag as usize + 2);
    let newest = outers.start.newest_version();
    // Oldest first.
    for (age, version) in stages.policy.versions().iter().rev().enumerate().rev() {
        let number = newest.before(age as u64).0;
        policy_writer.publish(number, Arc::new(version.policy.clone()));
        shift_writer.publish(number, Arc::new(version.shift.clone()));
    }
    let shift = method.shifts_encoder().then_some(shift);
    let (theta_writer, theta) = if method.scores_need_theta() || method.reads_teacher() {
        let (mut writer, reader) = slot::<Vector>("theta", topology.num_workers(Score) + 1);
        let weights = stages.encoder.teacher().unwrap_or(stages.encoder.theta());
        writer.publish(method.weights_version(steps.start), Arc::new(weights.clone()));
        (Some(writer), Some(reader))
    } else {
        (None, None)
    };

    let context = || WaitContext::new(stop.clone(), StageCounters::new()).with_faults(faults.clone());
    let mut workers = Vec::new();
    let num_loaders = topology.num_workers(Load);
    for (instance, (pretrain, labelled)) in pretrain.senders.into_iter().zip(labelled.senders).enumerate() {
        let ports = LoadPorts::new(instance, num_loaders, unroll, pretrain, labelled);
        let (stage, units) = (stages.load.clone(), load_units.clone());
        workers.push(worker(StageRunner::new(stage, instance, units, ports, log.clone(), context())));
    }
    let num_scorers = topology.num_workers(Score);
    for (instance, (batches, scored)) in pretrain.receivers.into_iter().zip(scored.senders).enumerate() {
        let ports = ScorePorts {
            worker: instance as u64,
            num_workers: num_scorers as u64,
            method: method.clone(),
            batches,
            policy: policy.clone(),
            theta: theta.clone(),
            shift: shift.clone(),
            scored,
        };
        workers.push(worker(StageRunner::new(
            stages.score.clone(),
            instance,
            step_units.clone(),
            ports,
            log.clone(),
            context(),
        )));
    }
    drop((policy, theta));
    // Encoder, evaluator and policy are declared with one worker each.
    if let Some((scored, snapshots)) = scored.receivers.into_iter().zip(snapshots.senders).next() {
        let ports =
            EncoderPorts { method: method.clone(), scored, shift: shift.clone(), theta: theta_writer, snapshots };
        workers.push(worker(StageRunner::new(stages.encoder, 0, step_units, ports, log.clone(), context())));
    }
    if let Some(((snapshots, labelled), directions)) =
        snapshots.receivers.into_iter().zip(labelled.receivers).zip(directions.senders).next()
    {
        let ports = EvaluatorPorts { snapshots, labelled, directions };
        workers.push(worker(StageRunner::new(stages.evaluator, 0, outer_units.clone(), ports, log.clone(), context())));
    }
    if let Some(directions) = directions.receivers.into_iter().next() {
        let shift = method.shifts_encoder().then_some(shift_writer);
        let ports = PolicyPorts { directions, policies: policy_writer, shift };
        workers.push(worker(StageRunner::new(stages.policy, 0, outer_units, ports, log.clone(), context())));
    }
    let log_context = context();
    let counters = log_context.counters.clone();
    let mut runner = LogRunner::new(LogStage::new(sink), records, log_context);
    workers.push(Worker { id: WorkerId { stage: Log, instance: 0 }, counters, run: Box::new(move || runner.run()) });
    Ok(Pipeline { workers, gauges, log, topology })
}
