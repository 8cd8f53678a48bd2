//! Ports: the typed ends of the bounded channels between stages.
//!
//! Between N producers and M consumers lies a matrix of bounded channels. The item of sequence
//! number `seq` goes from producer `seq mod N` to consumer `seq mod M`, so every receiver knows
//! where its next item comes from: joins are ordered without a reorder buffer, memory is bounded,
//! since a full channel blocks its sender (back-pressure), and no capacity, not even 0, can
//! deadlock, because the smallest unfinished `seq` can always proceed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError, TrySendError};

use crate::flow::counters::StageCounters;
use crate::flow::fault::FaultPlan;
use crate::flow::stage_name::EdgeId;
use crate::flow::stop::{StopFlag, StopLevel};

/// How often a wait polls the stop flag.
pub const POLL: Duration = Duration::from_millis(25);

/// Something that travels over a port.
pub trait Payload: Send + 'static {
    /// Bytes that the item keeps in memory, as telemetry and the memory bound count them.
    fn size_bytes(&self) -> usize;
}

/// Why a wait ended without its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// The stop flag was heeded.
    Stopped,
    /// The other end is gone.
    Disconnected,
}

/// What a wait polls and counts into: one for each worker.
#[derive(Debug, Clone, Default)]
pub struct WaitContext {
    /// The pipeline's stop flag.
    pub stop: StopFlag,
    /// The worker's counters.
    pub counters: StageCounters,
    /// Faults put into the run on purpose.
    pub faults: FaultPlan,
}

impl WaitContext {
    /// A context of `stop` and `counters`, without faults.
    #[must_use]
    pub fn new(stop: StopFlag, counters: StageCounters) -> Self {
        Self { stop, counters, faults: FaultPlan::default() }
    }

    /// The same with the faults of `faults`.
    #[must_use]
    pub fn with_faults(self, faults: FaultPlan) -> Self {
        Self { faults, ..self }
    }
}

/// The state of one edge as telemetry reads it. It holds no channel end, so that reading it never
/// keeps a channel connected.
#[derive(Debug)]
pub struct EdgeGauge {
    id: EdgeId,
    queue_cap: usize,
    num_producers: usize,
    num_consumers: usize,
    // Signed, because a receiver may count an item out before its sender has counted it in.
    queue_len: AtomicI64,
    queue_bytes: AtomicI64,
}

impl EdgeGauge {
    const fn new(id: EdgeId, queue_cap: usize, num_producers: usize, num_consumers: usize) -> Self {
        Self {
            id,
            queue_cap,
            num_producers,
            num_consumers,
            queue_len: AtomicI64::new(0),
            queue_bytes: AtomicI64::new(0),
        }
    }

    /// Which edge it is.
    #[must_use]
    pub const fn id(&self) -> EdgeId {
        self.id
    }

    /// Items in the channels.
    #[must_use]
    pub fn queue_len(&self) -> usize {
        usize::try_from(self.queue_len.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Items that the channels can hold, over all channels of the edge.
    #[must_use]
    pub const fn queue_cap(&self) -> usize {
        self.queue_cap
    }

    /// Payload bytes in the channels.
    #[must_use]
    pub fn queue_bytes(&self) -> usize {
        usize::try_from(self.queue_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn sent(&self, bytes: usize) {
        self.queue_len.fetch_add(1, Ordering::Relaxed);
        self.queue_bytes.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) {
        self.queue_len.fetch_sub(1, Ordering::Relaxed);
        self.queue_bytes.fetch_sub(bytes as i64, Ordering::Relaxed);
    }
}

/// Sends with the clock started only when the channel is full.
fn send_or_wait<T>(sender: &Sender<T>, item: T, heed: StopLevel, context: &WaitContext) -> Result<(), Halt> {
    let mut item = match sender.try_send(item) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Disconnected(_)) => return Err(Halt::Disconnected),
        Err(TrySendError::Full(item)) => item,
    };
    let _wait = context.counters.wait_out();
    loop {
        if context.stop.concerns(heed) {
            return Err(Halt::Stopped);
        }
        item = match sender.send_timeout(item, POLL) {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::Disconnected(_)) => return Err(Halt::Disconnected),
            Err(SendTimeoutError::Timeout(item)) => item,
        };
    }
}

/// Receives with the clock started only when the channel is empty.
fn recv_or_wait<T>(receiver: &Receiver<T>, heed: StopLevel, context: &WaitContext) -> Result<T, Halt> {
    match receiver.try_recv() {
        Ok(item) => return Ok(item),
        Err(TryRecvError::Disconnected) => return Err(Halt::Disconnected),
        Err(TryRecvError::Empty) => {}
    }
    let _wait = context.counters.wait_in();
    loop {
        if context.stop.concerns(heed) {
            return Err(Halt::Stopped);
        }
        match receiver.recv_timeout(POLL) {
            Ok(item) => return Ok(item),
            Err(RecvTimeoutError::Disconnected) => return Err(Halt::Disconnected),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// An item in a channel with its place in the order.
struct Envelope<T> {
    seq: u64,
    bytes: usize,
    item: T,
}

/// The sending end of one producer. Not `Clone`: the channels disconnect when it is dropped.
pub struct OrderedSender<T> {
    producer: usize,
    /// By consumer; none where no sequence number pairs this producer with that consumer.
    channels: Vec<Option<Sender<Envelope<T>>>>,
    gauge: Arc<EdgeGauge>,
}

impl<T: Payload> OrderedSender<T> {
    /// Sends the item of `seq`, which must be this producer's. Waits while the channel is full and
    /// heeds only a stop of level "now".
    ///
    /// # Errors
    /// [`Halt`], and the item is dropped.
    pub fn send(&mut self, seq: u64, item: T, context: &WaitContext) -> Result<(), Halt> {
        debug_assert_eq!(seq % self.gauge.num_producers as u64, self.producer as u64);
        let consumer = (seq % self.channels.len() as u64) as usize;
        let channel =
            self.channels[consumer].as_ref().expect("invariant: a producer sends only its own sequence numbers");
        let bytes = item.size_bytes();
        send_or_wait(channel, Envelope { seq, bytes, item }, StopLevel::Now, context)?;
        self.gauge.sent(bytes);
        Ok(())
    }
}

impl<T> fmt::Debug for OrderedSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderedSender({}, producer {})", self.gauge.id, self.producer)
    }
}

/// The receiving end of one consumer. Not `Clone`: producers notice when it is dropped.
pub struct OrderedReceiver<T> {
    consumer: usize,
    /// By producer; none where no sequence number pairs that producer with this consumer.
    channels: Vec<Option<Receiver<Envelope<T>>>>,
    gauge: Arc<EdgeGauge>,
}

impl<T: Payload> OrderedReceiver<T> {
    /// Receives the item of `seq`, which must be this consumer's next. Waits while the channel is
    /// empty and heeds only a stop of level "now".
    ///
    /// # Errors
    /// [`Halt`]; disconnected if the producer of `seq` is gone and did not send it.
    pub fn recv(&mut self, seq: u64, context: &WaitContext) -> Result<T, Halt> {
        self.recv_heeding(seq, StopLevel::Now, context)
    }

    /// As [`recv`](Self::recv), but leaves the wait for any stop of level `heed` or higher.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn recv_heeding(&mut self, seq: u64, heed: StopLevel, context: &WaitContext) -> Result<T, Halt> {
        debug_assert_eq!(seq % self.gauge.num_consumers as u64, self.consumer as u64);
        let producer = (seq % self.channels.len() as u64) as usize;
        let channel =
            self.channels[producer].as_ref().expect("invariant: a consumer receives only its own sequence numbers");
        let envelope = recv_or_wait(channel, heed, context)?;
        assert_eq!(envelope.seq, seq, "invariant: {} delivers in order", self.gauge.id);
        self.gauge.received(envelope.bytes);
        Ok(envelope.item)
    }
}

impl<T> fmt::Debug for OrderedReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderedReceiver({}, consumer {})", self.gauge.id, self.consumer)
    }
}

/// The ends of one ordered edge, to be handed out once.
#[derive(Debug)]
pub struct OrderedEdge<T> {
    /// One for each producer.
    pub senders: Vec<OrderedSender<T>>,
    /// One for each consumer.
    pub receivers: Vec<OrderedReceiver<T>>,
    /// For telemetry.
    pub gauge: Arc<EdgeGauge>,
}

/// How many channels an ordered edge has: the pairs that some sequence number uses.
#[must_use]
pub const fn num_channels(num_producers: usize, num_consumers: usize) -> usize {
    num_producers / gcd(num_producers, num_consumers) * num_consumers
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Makes the matrix of channels between `num_producers` and `num_consumers`, each of `capacity` items.
///
/// # Panics
/// If there is no producer or no consumer; a topology is checked before.
#[must_use]
pub fn ordered_edge<T: Payload>(
    id: EdgeId,
    num_producers: usize,
    num_consumers: usize,
    capacity: usize,
) -> OrderedEdge<T> {
    assert!(num_producers > 0 && num_consumers > 0, "an edge has two ends: {id}");
    let gauge = Arc::new(EdgeGauge::new(
        id,
        num_channels(num_producers, num_consumers) * capacity,
        num_producers,
        num_consumers,
    ));
    let mut senders: Vec<_> = (0..num_producers)
        .map(|producer| OrderedSender {
            producer,
            channels: Vec::with_capacity(num_consumers),
            gauge: Arc::clone(&gauge),
        })
        .collect();
    let mut receivers: Vec<_> = (0..num_consumers)
        .map(|consumer| OrderedReceiver {
            consumer,
            channels: Vec::with_capacity(num_producers),
            gauge: Arc::clone(&gauge),
        })
        .collect();
    let stride = gcd(num_producers, num_consumers);
    for (producer, sender) in senders.iter_mut().enumerate() {
        for (consumer, receiver) in receivers.iter_mut().enumerate() {
            // A sequence number uses this pair if and only if it can be congruent to both.
            let used = producer % stride == consumer % stride;
            let (tx, rx) = if used {
                let (tx, rx) = channel::bounded(capacity);
                (Some(tx), Some(rx))
            } else {
                (None, None)
            };
            sender.channels.push(tx);
            receiver.channels.push(rx);
        }
    }
    OrderedEdge { senders, receivers, gauge }
}

/// The sending end of an edge without order, from any number of workers to one.
///
/// Cloning makes a further producer; the receiver ends when all are dropped.
pub struct FanInSender<T> {
    channel: Sender<(usize, T)>,
    gauge: Arc<EdgeGauge>,
}

impl<T> Clone for FanInSender<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), gauge: Arc::clone(&self.gauge) }
    }
}

impl<T: Payload> FanInSender<T> {
    /// Sends `item`, waiting while the queue is full; heeds only a stop of level "now".
    ///
    /// # Errors
    /// [`Halt`], and the item is dropped.
    pub fn send(&self, item: T, context: &WaitContext) -> Result<(), Halt> {
        let bytes = item.size_bytes();
        send_or_wait(&self.channel, (bytes, item), StopLevel::Now, context)?;
        self.gauge.sent(bytes);
        Ok(())
    }

    /// The edge's gauge.
    #[must_use]
    pub const fn gauge(&self) -> &Arc<EdgeGauge> {
        &self.gauge
    }
}

impl<T> fmt::Debug for FanInSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FanInSender({})", self.gauge.id)
    }
}

/// The receiving end of an edge without order.
pub struct FanInReceiver<T> {
    channel: Receiver<(usize, T)>,
    gauge: Arc<EdgeGauge>,
}

impl<T: Payload> FanInReceiver<T> {
    /// Receives the next item, or none if none came within `timeout`. It heeds no stop: the stage
    /// that drains ends when every sender is gone.
    ///
    /// # Errors
    /// [`Halt::Disconnected`] when the queue is empty and every sender is gone.
    pub fn recv_timeout(&self, timeout: Duration, counters: &StageCounters) -> Result<Option<T>, Halt> {
        let received = match self.channel.try_recv() {
            Err(TryRecvError::Empty) => {
                let _wait = counters.wait_in();
                self.channel.recv_timeout(timeout)
            }
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Ok(item) => Ok(item),
        };
        match received {
            Ok((bytes, item)) => {
                self.gauge.received(bytes);
                Ok(Some(item))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Halt::Disconnected),
        }
    }
}

impl<T> fmt::Debug for FanInReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FanInReceiver({})", self.gauge.id)
    }
}

/// Makes an edge without order of `capacity` items in all.
#[must_use]
pub fn fan_in_edge<T: Payload>(
    id: EdgeId,
    num_producers: usize,
    capacity: usize,
) -> (FanInSender<T>, FanInReceiver<T>) {
    let gauge = Arc::new(EdgeGauge::new(id, capacity, num_producers, 1));
    let (tx, rx) = channel::bounded(capacity);
    (FanInSender { channel: tx, gauge: Arc::clone(&gauge) }, FanInReceiver { channel: rx, gauge })
}
