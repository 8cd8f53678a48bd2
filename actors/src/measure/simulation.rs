//! A discrete-event simulation of the pipeline: how fast it would be on other cores and with another lag.
//!
//! Workers, capacities, order and lag are those of [`pipeline`](mlomae_dataflow::run::pipeline). An item's work is cut
//! into equal pieces, which wait for a free core in the order in which their items began. Times are whole nanoseconds,
//! so that a simulation has one answer. Not modelled: memory bandwidth, shared caches, the log stage, and what cannot
//! be cut.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use mlomae_dataflow::counts::{Outer, Step, Version};
use mlomae_dataflow::flow::stage_name::{EdgeId, StageName};
use mlomae_dataflow::run::edges::{
    EDGES, ENCODER_EVALUATOR, EVALUATOR_POLICY, LOAD_EVALUATOR, LOAD_SCORE, SCORE_ENCODER,
};
use mlomae_dataflow::stages::load::LoadUnit;

/// The stages that are simulated, in their order.
pub const STAGES: [StageName; 5] =
    [StageName::Load, StageName::Score, StageName::Encoder, StageName::Evaluator, StageName::Policy];

/// The work of one item of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Nanoseconds on one core.
    pub core_ns: u64,
    /// Equal pieces of it that can be computed at the same time.
    pub num_pieces: u64,
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Cores of the machine.
    pub num_cores: usize,
    /// `pipeline.lag`.
    pub lag: u64,
    /// Level-1 steps of an outer iteration.
    pub unroll: u64,
    /// Loading one pretrain batch, and one labelled pair.
    pub load: [Work; 2],
    /// Scoring, level 1, levels 2 and 3: one item each.
    pub levels: [Work; 4],
    /// Workers of load and score.
    pub num_workers: [usize; 2],
    /// Compute threads of encoder, evaluator and policy. With lag 0 they share as many as the largest has.
    pub num_threads: [usize; 3],
    /// Capacities of the channels by edge of [`EDGES`].
    pub queue_caps: [usize; 5],
    /// Whether scores wait for the newest θ and use the encoder's threads.
    pub scores_need_theta: bool,
    /// Outer iterations to simulate; the first quarter fills the queues and is not measured.
    pub num_outer: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// Outer iterations a second.
    pub outer_per_s: f64,
    /// Share of the cores' time at work.
    pub efficiency: f64,
    /// By stage of [`STAGES`]: share of the time in which its workers had an item at work, on average over them.
    pub occupancy: [f64; 5],
}

impl Simulated {
    /// The stage whose workers were at work for the largest share of the time.
    #[must_use]
    pub fn bottleneck(&self) -> StageName {
        let place = (0..STAGES.len()).max_by(|&a, &b| self.occupancy[a].total_cmp(&self.occupancy[b]));
        STAGES[place.unwrap_or(0)]
    }
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Receive,
    Work { begun: u64, left: u64, running: u64, waiting: u64 },
    Send,
    Done,
}

#[derive(Debug)]
struct SimWorker {
    /// Place in [`STAGES`].
    stage: usize,
    instance: u64,
    unit: u64,
    doing: Doing,
    /// The threads it takes its cores from.
    pool: usize,
    busy_ns: u64,
}

/// Bounded channels between two stages.
#[derive(Debug)]
struct SimEdge {
    id: EdgeId,
    capacity: usize,
    /// By producer and consumer.
    channels: Vec<VecDeque<u64>>,
    num: [u64; 2],
}

impl SimEdge {
    fn new(id: EdgeId, capacity: usize, num_workers: impl Fn(StageName) -> usize) -> Self {
        let [producers, consumers] = [id.from.map_or(0, &num_workers), num_workers(id.to)];
        let channels = vec![VecDeque::new(); producers * consumers];
        Self { id, capacity, channels, num: [producers as u64, consumers as u64] }
    }

    fn channel(&mut self, seq: u64) -> &mut VecDeque<u64> {
        let place = (seq % self.num[0]) * self.num[1] + seq % self.num[1];
        &mut self.channels[place as usize]
    }
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    now: u64,
    workers: Vec<SimWorker>,
    /// By place in [`EDGES`].
    edges: Vec<SimEdge>,
    /// Free threads of each pool.
    pools: Vec<usize>,
    free_cores: usize,
    /// Workers with waiting pieces, in the order in which their items began.
    ready: Vec<usize>,
    /// Ends of the running pieces, with their workers.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    /// Policy updates and level-1 steps done.
    policies: u64,
    steps: u64,
    busy_core_ns: u64,
}

/// Simulates a scenario.
#[must_use]
pub fn simulate(scenario: &Scenario) -> Simulated {
    let mut simulation = Simulation::new(scenario);
    let first = scenario.num_outer / 4;
    let mut before = None;
    while simulation.step() {
        if before.is_none() && simulation.policies > first {
            before = Some(simulation.measures());
        }
        if simulation.policies >= scenario.num_outer {
            break;
        }
    }
    let (since, done, core_ns, busy) = before.unwrap_or((0, 0, 0, [0; 5]));
    let (until, all, core_ns_end, busy_end) = simulation.measures();
    let wall_ns = (until - since).max(1) as f64;
    let num = |stage: usize| simulation.workers.iter().filter(|worker| worker.stage == stage).count() as f64;
    Simulated {
        outer_per_s: (all - done) as f64 / wall_ns * 1e9,
        efficiency: (core_ns_end - core_ns) as f64 / (wall_ns * scenario.num_cores.max(1) as f64),
        occupancy: std::array::from_fn(|stage| (busy_end[stage] - busy[stage]) as f64 / (wall_ns * num(stage))),
    }
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let [num_load, num_score] = scenario.num_workers.map(|num| num.max(1));
        let [encoder, evaluator, policy] = scenario.num_threads.map(|num| num.max(1));
        let mut pools = if scenario.lag == 0 {
            vec![encoder.max(evaluator).max(policy); 1]
        } else {
            vec![encoder, evaluator, policy]
        };
        let level_pool = |level: usize| if scenario.lag == 0 { 0 } else { level };
        let mut workers = Vec::new();
        let mut add = |stage: usize, instance: usize, pool: usize| {
            let unit = first_unit(stage, instance as u64, [num_load, num_score], scenario.unroll);
            workers.push(SimWorker { stage, instance: instance as u64, unit, doing: Doing::Receive, pool, busy_ns: 0 });
        };
        for (stage, num) in [(0, num_load), (1, num_score)] {
            for instance in 0..num {
                let own = stage == 0 || !scenario.scores_need_theta;
                let pool = if own { pools.len() } else { level_pool(0) };
                if own {
                    pools.push(1);
                }
                add(stage, instance, pool);
            }
        }
        (0..3).for_each(|level| add(2 + level, 0, level_pool(level)));
        let num_workers = |stage: StageName| match stage {
            StageName::Load => num_load,
            StageName::Score => num_score,
            _ => 1,
        };
        let edges = EDGES.into_iter().zip(scenario.queue_caps);
        let edges = edges.map(|(id, capacity)| SimEdge::new(id, capacity, num_workers)).collect();
        Self {
            scenario,
            now: 0,
            workers,
            edges,
            pools,
            free_cores: scenario.num_cores.max(1),
            ready: Vec::new(),
            ends: BinaryHeap::new(),
            policies: 0,
            steps: 0,
            busy_core_ns: 0,
        }
    }

    /// Time, outer iterations, core time and the stages' times at work so far.
    fn measures(&self) -> (u64, u64, u64, [u64; 5]) {
        let mut busy = [0; 5];
        for worker in &self.workers {
            let open = if let Doing::Work { begun, .. } = worker.doing { self.now - begun } else { 0 };
            busy[worker.stage] += worker.busy_ns + open;
        }
        (self.now, self.policies, self.busy_core_ns, busy)
    }

    /// Goes on to the next end of a piece; false if there is none.
    fn step(&mut self) -> bool {
        let mut moved = true;
        while moved {
            moved = false;
            for worker in 0..self.workers.len() {
                moved |= self.advance(worker);
            }
        }
        self.start_pieces();
        let Some(Reverse((at, worker))) = self.ends.pop() else {
            return false;
        };
        self.now = at;
        self.free_cores += 1;
        self.pools[self.workers[worker].pool] += 1;
        let Doing::Work { begun, left, running, waiting } = self.workers[worker].doing else {
            return true;
        };
        self.workers[worker].doing = Doing::Work { begun, left: left - 1, running: running - 1, waiting };
        if left == 1 {
            self.finish(worker, begun);
        }
        true
    }

    fn finish(&mut self, worker: usize, begun: u64) {
        let now = self.now;
        let at = &mut self.workers[worker];
        at.busy_ns += now - begun;
        at.doing = Doing::Send;
        match STAGES[at.stage] {
            StageName::Encoder => self.steps += 1,
            StageName::Policy => self.policies += 1,
            _ => {}
        }
    }

    fn work(&self, worker: &SimWorker) -> Work {
        match (STAGES[worker.stage], LoadUnit::of(worker.unit, self.scenario.unroll)) {
            (StageName::Load, LoadUnit::Pretrain(_)) => self.scenario.load[0],
            (StageName::Load, LoadUnit::Labelled(_)) => self.scenario.load[1],
            _ => self.scenario.levels[worker.stage - 1],
        }
    }

    fn start_pieces(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for worker in ready {
            let pool = self.workers[worker].pool;
            let work = self.work(&self.workers[worker]);
            let num_pieces = work.num_pieces.max(1);
            if let Doing::Work { running, waiting, .. } = &mut self.workers[worker].doing {
                while *waiting > 0 && self.free_cores > 0 && self.pools[pool] > 0 {
                    // The pieces add up to the work to the nanosecond.
                    let place = num_pieces - *waiting;
                    let ns = (place + 1) * work.core_ns / num_pieces - place * work.core_ns / num_pieces;
                    self.ends.push(Reverse((self.now + ns, worker)));
                    self.busy_core_ns += ns;
                    (*running, *waiting) = (*running + 1, *waiting - 1);
                    self.free_cores -= 1;
                    self.pools[pool] -= 1;
                }
                if *waiting > 0 {
                    self.ready.push(worker);
                }
            }
        }
    }

    /// Whether an item waits in a channel, or in its sender's hand where the channels hold none.
    fn has(&mut self, edge: usize, seq: u64) -> bool {
        if self.edges[edge].channel(seq).front() == Some(&seq) {
            return true;
        }
        self.edges[edge].capacity == 0 && self.sender_of(edge, seq).is_some()
    }

    fn take(&mut self, edge: usize, seq: u64) {
        if self.edges[edge].channel(seq).front() == Some(&seq) {
            self.edges[edge].channel(seq).pop_front();
        } else if let Some(sender) = self.sender_of(edge, seq) {
            self.next_unit(sender);
        }
    }

    /// The worker that has the item in its hand.
    fn sender_of(&self, edge: usize, seq: u64) -> Option<usize> {
        let item = Some((self.edges[edge].id, seq));
        let mut sending = (0..self.workers.len()).filter(|&worker| self.workers[worker].doing == Doing::Send);
        sending.find(|&worker| self.output(worker) == item)
    }

    /// The edge and the number under which a finished item leaves; none if nothing leaves.
    fn output(&self, worker: usize) -> Option<(EdgeId, u64)> {
        let (worker, unroll) = (&self.workers[worker], self.scenario.unroll);
        match STAGES[worker.stage] {
            StageName::Load => Some(match LoadUnit::of(worker.unit, unroll) {
                LoadUnit::Pretrain(step) => (LOAD_SCORE, step.0),
                LoadUnit::Labelled(outer) => (LOAD_EVALUATOR, outer.0),
            }),
            StageName::Score => Some((SCORE_ENCODER, worker.unit)),
            StageName::Encoder => {
                let step = Step(worker.unit);
                step.is_last_of_outer(unroll).then_some((ENCODER_EVALUATOR, step.outer(unroll).0))
            }
            StageName::Evaluator => Some((EVALUATOR_POLICY, worker.unit)),
            _ => None,
        }
    }

    fn next_unit(&mut self, worker: usize) {
        let num_workers = [self.scenario.num_workers[0].max(1), self.scenario.num_workers[1].max(1)];
        let unroll = self.scenario.unroll;
        let at = &mut self.workers[worker];
        at.unit = match at.stage {
            0 => next_load(at.unit + 1, at.instance, num_workers[0] as u64, unroll),
            1 => at.unit + num_workers[1] as u64,
            _ => at.unit + 1,
        };
        let end = Outer(self.scenario.num_outer);
        let end = match at.stage {
            0 => LoadUnit::first_of(end, unroll),
            1 | 2 => end.first_step(unroll).0,
            _ => end.0,
        };
        at.doing = if at.unit < end { Doing::Receive } else { Doing::Done };
    }

    /// Lets a worker receive or send, if it can.
    fn advance(&mut self, worker: usize) -> bool {
        let (stage, unit) = (self.workers[worker].stage, self.workers[worker].unit);
        match self.workers[worker].doing {
            Doing::Receive => {
                if !self.receive(stage, unit) {
                    return false;
                }
                let num_pieces = self.work(&self.workers[worker]).num_pieces.max(1);
                self.workers[worker].doing =
                    Doing::Work { begun: self.now, left: num_pieces, running: 0, waiting: num_pieces };
                self.ready.push(worker);
                true
            }
            Doing::Send => match self.output(worker) {
                None => {
                    self.next_unit(worker);
                    true
                }
                Some((edge, seq)) => {
                    let Some(edge) = EDGES.iter().position(|id| *id == edge) else { return false };
                    let capacity = self.edges[edge].capacity;
                    let channel = self.edges[edge].channel(seq);
                    if channel.len() >= capacity {
                        return false;
                    }
                    channel.push_back(seq);
                    self.next_unit(worker);
                    true
                }
            },
            Doing::Work { .. } | Doing::Done => false,
        }
    }

    fn receive(&mut self, stage: usize, unit: u64) -> bool {
        let Scenario { unroll, lag, scores_need_theta, .. } = *self.scenario;
        if STAGES[stage] == StageName::Score {
            let version = Step(unit).outer(unroll).newest_version().before(lag);
            if Version(self.policies) < version || scores_need_theta && self.steps < unit {
                return false;
            }
        }
        let inputs = (0..EDGES.len()).filter(|&edge| EDGES[edge].to == STAGES[stage]);
        if !inputs.clone().all(|edge| self.has(edge, unit)) {
            return false;
        }
        inputs.for_each(|edge| self.take(edge, unit));
        true
    }
}

fn first_unit(stage: usize, instance: u64, num_workers: [usize; 2], unroll: u64) -> u64 {
    match stage {
        0 => next_load(0, instance, num_workers[0] as u64, unroll),
        1 => instance,
        _ => 0,
    }
}

/// The first unit from `unit` on that a loader owns.
fn next_load(unit: u64, instance: u64, num_loaders: u64, unroll: u64) -> u64 {
    (unit..).find(|&unit| LoadUnit::of(unit, unroll).seq() % num_loaders == instance).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn work(ms: u64, num_pieces: u64) -> Work {
        Work { core_ns: ms * MS, num_pieces }
    }

    /// Works of 10 ms of score, 40 of level 1, 20 of level 2, 30 of level 3, each in one piece.
    fn scenario(num_cores: usize, lag: u64) -> Scenario {
        Scenario {
            num_cores,
            lag,
            unroll: 1,
            load: [work(5, 1), work(5, 1)],
            levels: [work(10, 1), work(40, 1), work(20, 1), work(30, 1)],
            num_workers: [1, 1],
            num_threads: [num_cores; 3],
            queue_caps: [2, 2, 2, 1, 1],
            scores_need_theta: false,
            num_outer: 100,
        }
    }

    fn period_ms(scenario: &Scenario) -> f64 {
        1e3 / simulate(scenario).outer_per_s
    }

    fn assert_close(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 0.02, "{got} is not {expected}");
    }

    #[test]
    fn without_lag_the_levels_take_turns() {
        // The other stages hide loading.
        assert_close(period_ms(&scenario(8, 0)), 100.0);
        let unrolled = Scenario { unroll: 3, ..scenario(8, 0) };
        // Three steps, of which only the first score is not hidden.
        assert_close(period_ms(&unrolled), 10.0 + 3.0 * 40.0 + 20.0 + 30.0);
        let theta = Scenario { scores_need_theta: true, ..unrolled };
        assert_close(period_ms(&theta), 3.0 * (10.0 + 40.0) + 20.0 + 30.0);
    }

    #[test]
    fn with_lag_the_longest_stage_or_the_loop_is_the_period() {
        assert_close(period_ms(&scenario(8, 1)), 50.0);
        let simulated = simulate(&scenario(8, 4));
        assert_close(1e3 / simulated.outer_per_s, 40.0);
        assert_eq!(simulated.bottleneck(), StageName::Encoder);
        assert_close(simulated.occupancy[4], 0.75);
    }

    #[test]
    fn one_core_does_all_the_work_and_nothing_else() {
        for lag in [1, 3] {
            let simulated = simulate(&scenario(1, lag));
            assert_close(1e3 / simulated.outer_per_s, 110.0);
            assert_close(simulated.efficiency, 1.0);
        }
    }

    #[test]
    fn pieces_run_on_the_free_cores_and_the_threads_of_their_level() {
        let pieces = |num_cores, num_threads| Scenario {
            levels: [work(0, 1), work(40, 8), work(20, 8), work(24, 6)],
            num_threads: [num_threads; 3],
            ..scenario(num_cores, 0)
        };
        assert_close(period_ms(&pieces(64, 64)), 5.0 + 2.5 + 4.0);
        // Six pieces take two rounds on four threads.
        assert_close(period_ms(&pieces(64, 4)), 10.0 + 5.0 + 8.0);
        assert_close(period_ms(&pieces(64, 1)), 84.0);
    }

    #[test]
    fn workers_share_the_items_of_a_stage() {
        let slow = |num| Scenario { load: [work(100, 1), work(0, 1)], num_workers: [num, 1], ..scenario(16, 4) };
        assert_close(period_ms(&slow(1)), 100.0);
        assert_eq!(simulate(&slow(1)).bottleneck(), StageName::Load);
        assert_close(period_ms(&slow(2)), 50.0);
        assert_close(period_ms(&slow(3)), 40.0);
    }

    #[test]
    fn no_capacity_and_no_number_of_workers_stops_it() {
        for capacity in [0, 1, 3] {
            for (loaders, scorers) in [(1, 1), (2, 3), (3, 2)] {
                for lag in 0..3 {
                    let queue_caps = [capacity; 5];
                    let case = Scenario { unroll: 2, queue_caps, num_workers: [loaders, scorers], ..scenario(2, lag) };
                    let mut simulation = Simulation::new(&case);
                    while simulation.step() {}
                    assert_eq!(simulation.policies, case.num_outer, "{case:?}");
                    assert_eq!(simulate(&case), simulate(&case));
                }
            }
        }
    }
}
