//! Properties of the ports under random topologies, and exact counts of back-pressure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::flow::counters::StageCounters;
use crate::flow::ports::{
    Halt, OrderedEdge, OrderedReceiver, OrderedSender, Payload, WaitContext, fan_in_edge, ordered_edge,
};
use crate::flow::stage_name::{EdgeId, StageName};
use crate::flow::stop::{StopFlag, StopLevel, StopReason};

/// The longest time that any of these tests may wait for its threads.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    seq: u64,
    /// The workers it went through.
    path: Vec<usize>,
}

impl Payload for Item {
    fn size_bytes(&self) -> usize {
        100
    }
}

fn join_all(threads: Vec<JoinHandle<Result<(), Halt>>>, what: &str) -> Vec<Result<(), Halt>> {
    let begin = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) {
        assert!(begin.elapsed() < DEADLINE, "deadlock: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let join = |thread: JoinHandle<_>| thread.join().expect("no panic");
    threads.into_iter().map(join).collect()
}

fn nap(rng: &mut ChaCha8Rng, max_us: u64) {
    if max_us > 0 {
        std::thread::sleep(Duration::from_micros(rng.random_range(0..=max_us)));
    }
}

/// A chain of stages with a side edge from the first to the last, as labelled batches have it.
struct Chain {
    num_workers: Vec<usize>,
    capacities: Vec<usize>,
    side_capacity: usize,
    side_every: u64,
    num_items: u64,
    max_nap_us: Vec<u64>,
}

impl Chain {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let num_stages = rng.random_range(2..=5);
        let mut num_workers: Vec<usize> = (0..num_stages).map(|_| rng.random_range(1..=4)).collect();
        num_workers[num_stages - 1] = 1;
        Self {
            num_workers,
            capacities: (1..num_stages).map(|_| rng.random_range(0..=4)).collect(),
            side_capacity: rng.random_range(0..=4),
            side_every: rng.random_range(1..=3),
            num_items: rng.random_range(1..=60),
            max_nap_us: (0..num_stages).map(|_| [0, 0, 300, 1500][rng.random_range(0..4)]).collect(),
        }
    }

    fn describe(&self) -> String {
        format!(
            "workers {:?}, capacities {:?}, side {} every {}, {} items, naps {:?}",
            self.num_workers, self.capacities, self.side_capacity, self.side_every, self.num_items, self.max_nap_us
        )
    }

    fn run(&self) {
        let num_stages = self.num_workers.len();
        let mut outputs: Vec<Vec<Option<OrderedSender<Item>>>> = Vec::new();
        let mut inputs: Vec<Vec<Option<OrderedReceiver<Item>>>> =
            vec![(0..self.num_workers[0]).map(|_| None).collect()];
        let mut gauges = Vec::new();
        for (place, ends) in self.num_workers.windows(2).enumerate() {
            let OrderedEdge { senders, receivers, gauge } = ordered_edge(
                EdgeId::between(StageName::Load, StageName::Score),
                ends[0],
                ends[1],
                self.capacities[place],
            );
            outputs.push(senders.into_iter().map(Some).collect());
            inputs.push(receivers.into_iter().map(Some).collect());
            gauges.push(gauge);
        }
        outputs.push(vec![None]);
        let side = ordered_edge(
            EdgeId::between(StageName::Load, StageName::Evaluator),
            self.num_workers[0],
            1,
            self.side_capacity,
        );
        let mut side_senders: Vec<_> = side.senders.into_iter().map(Some).collect();
        let mut side_receivers: Vec<_> = side.receivers.into_iter().map(Some).collect();

        let stop = StopFlag::new();
        let mut threads = Vec::new();
        for stage in 0..num_stages {
            for worker in 0..self.num_workers[stage] {
                let mut input = inputs[stage][worker].take();
                let mut output = outputs[stage][worker].take();
                let mut side_output = if stage == 0 { side_senders[worker].take() } else { None };
                let mut side_input = if stage + 1 == num_stages { side_receivers[worker].take() } else { None };
                let (num_items, side_every) = (self.num_items, self.side_every);
                let stride = self.num_workers[stage];
                let max_nap_us = self.max_nap_us[stage];
                let context = WaitContext::new(stop.clone(), StageCounters::new());
                let mut rng = ChaCha8Rng::seed_from_u64((stage * 10 + worker) as u64);
                threads.push(std::thread::spawn(move || {
                    let side_item = |seq: u64| Item { seq, path: vec![usize::MAX] };
                    // The source's units in one order for all its workers: item, then side item.
                    for seq in 0..num_items {
                        let mine = seq % stride as u64 == worker as u64;
                        let mut item = Item { seq, path: Vec::new() };
                        if mine {
                            if let Some(input) = &mut input {
                                item = input.recv(seq, &context)?;
                                assert_eq!(item.seq, seq);
                            }
                            nap(&mut rng, max_nap_us);
                            item.path.push(worker);
                            if let Some(output) = &mut output {
                                output.send(seq, item.clone(), &context)?;
                            }
                        }
                        if (seq + 1) % side_every == 0 {
                            let side_seq = seq / side_every;
                            if let Some(output) = &mut side_output
                                && side_seq % stride as u64 == worker as u64
                            {
                                output.send(side_seq, side_item(side_seq), &context)?;
                            }
                            if let Some(input) = &mut side_input {
                                let received = input.recv(side_seq, &context)?;
                                assert_eq!(received, side_item(side_seq));
                            }
                        }
                        if mine && output.is_none() {
                            assert_eq!(item.path.len(), num_stages);
                        }
                    }
                    // Nothing comes after the last item.
                    if let Some(input) = &mut input {
                        let first = num_items.next_multiple_of(stride as u64) + worker as u64;
                        assert_eq!(input.recv(first, &context), Err(Halt::Disconnected));
                    }
                    Ok(())
                }));
            }
        }
        let ends = join_all(threads, &self.describe());
        assert!(ends.iter().all(Result::is_ok), "{}: {ends:?}", self.describe());
        for gauge in gauges {
            assert_eq!((gauge.queue_len(), gauge.queue_bytes()), (0, 0));
        }
    }
}

#[test]
fn every_item_arrives_once_and_in_order_in_any_topology() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..60 {
        Chain::random(&mut rng).run();
    }
}

#[test]
fn a_source_blocks_after_exactly_the_capacity() {
    for capacity in 0..=4_u64 {
        let OrderedEdge { mut senders, mut receivers, gauge } =
            ordered_edge(EdgeId::between(StageName::Load, StageName::Score), 1, 1, capacity as usize);
        let mut sender = senders.pop().expect("one");
        let mut receiver = receivers.pop().expect("one");
        let context = WaitContext::default();
        let sender_context = context.clone();
        let num_sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&num_sent);
        let source = std::thread::spawn(move || {
            for seq in 0..20 {
                let item = Item { seq, path: Vec::new() };
                sender.send(seq, item, &sender_context)?;
                counted.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<(), Halt>(())
        });
        let settle = |wanted: u64| {
            let begin = Instant::now();
            while num_sent.load(Ordering::SeqCst) < wanted {
                assert!(begin.elapsed() < DEADLINE, "the source blocks too early");
                std::thread::sleep(Duration::from_millis(1));
            }
            // Time enough to go too far, if it could.
            std::thread::sleep(Duration::from_millis(15));
            assert_eq!(num_sent.load(Ordering::SeqCst), wanted, "capacity {capacity}");
        };
        settle(capacity);
        assert_eq!(gauge.queue_len() as u64, capacity);
        assert_eq!(gauge.queue_bytes() as u64, capacity * 100);
        assert_eq!(gauge.queue_cap() as u64, capacity);
        for received in 1..=5 {
            receiver.recv(received - 1, &WaitContext::default()).expect("an item");
            settle(capacity + received);
        }
        assert!(context.counters.snapshot().wait_out_ns > 0);
        drop(receiver);
        assert_eq!(source.join().expect("no panic"), Err(Halt::Disconnected));
    }
}

#[test]
fn a_wait_ends_by_the_level_it_heeds() {
    let OrderedEdge { senders, mut receivers, .. } =
        ordered_edge::<Item>(EdgeId::between(StageName::Load, StageName::Score), 1, 1, 1);
    let context = WaitContext::default();
    context.stop.request(StopReason::Interrupt);
    let receiver = &mut receivers[0];
    assert_eq!(receiver.recv_heeding(0, StopLevel::Graceful, &context), Err(Halt::Stopped));
    let stop = context.stop.clone();
    let second = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(60));
        stop.request(StopReason::Interrupt);
    });
    assert_eq!(receiver.recv(0, &context), Err(Halt::Stopped));
    assert!(context.counters.snapshot().wait_in_ns >= 60_000_000);
    second.join().expect("no panic");
    drop(senders);
}

#[test]
fn what_was_sent_before_a_disconnect_still_arrives() {
    let OrderedEdge { mut senders, mut receivers, .. } =
        ordered_edge(EdgeId::between(StageName::Load, StageName::Score), 2, 1, 2);
    let context = WaitContext::default();
    let item = |seq| Item { seq, path: Vec::new() };
    for seq in 0..3 {
        senders[(seq % 2) as usize].send(seq, item(seq), &context).expect("room");
    }
    drop(senders.pop());
    for seq in 0..3 {
        assert_eq!(receivers[0].recv(seq, &context), Ok(item(seq)));
    }
    assert_eq!(receivers[0].recv(3, &context), Err(Halt::Disconnected));
}

#[test]
fn a_fan_in_ends_with_its_last_sender() {
    let (sender, receiver) = fan_in_edge(EdgeId::fan_in(StageName::Log), 2, 3);
    let other = sender.clone();
    let item = |seq| Item { seq, path: Vec::new() };
    for seq in 0..3 {
        sender.send(item(seq), &WaitContext::default()).expect("room");
    }
    assert_eq!(sender.gauge().queue_len(), 3);
    drop(sender);
    let counters = StageCounters::new();
    let next = || receiver.recv_timeout(Duration::from_millis(5), &counters);
    for seq in 0..3 {
        assert_eq!(next(), Ok(Some(item(seq))));
    }
    assert_eq!(next(), Ok(None), "one sender is left");
    drop(other);
    assert_eq!(next(), Err(Halt::Disconnected));
}
